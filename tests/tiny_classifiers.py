"""Sequence classifiers of a few thousand random weights, of every architecture that is packed, and one that is not.

Their weights are large, so that scores differ from pair to pair.
"""

from itertools import combinations

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from darling_plugin.partition import Pair, load_partition_model

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "then"]
SPECIAL = ["<pad>", "<unk>", "<cls>", "<sep>"]
SIZE = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.5,
    "num_labels": 2,
    "pad_token_id": 0,
}
MODERN = {"local_attention": 16, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
KINDS = {
    "bert": ("Bert", {"max_position_embeddings": 300}),
    "roberta": ("Roberta", {"max_position_embeddings": 300}),
    "xlm-roberta": ("XLMRoberta", {"max_position_embeddings": 300}),
    "modernbert": ("ModernBert", MODERN),
    "modernbert-mean": ("ModernBert", {**MODERN, "classifier_pooling": "mean"}),
    "modernbert-1": ("ModernBert", {**MODERN, "num_labels": 1}),
    "llama": ("Llama", {"num_key_value_heads": 4}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "electra": ("Electra", {"max_position_embeddings": 300, "embedding_size": 32}),
}
CAUSAL = ("llama", "qwen2", "qwen3")


def make_classifier(folder, kind):
    """Saves the classifier and a tokenizer of WORDS to `folder`; returns its path as str."""
    name, own = KINDS[kind]
    make_tokenizer(kind).save_pretrained(folder)
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZE, **own})
    getattr(transformers, f"{name}ForSequenceClassification")(config).eval().save_pretrained(folder)
    return str(folder)


def make_tokenizer(kind):
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single, pair = ("$A <sep>",) * 2 if kind in CAUSAL else ("<cls> $A <sep>", "<cls> $A <sep> $B:1 <sep>:1")
    if kind in CAUSAL:
        pair = "$A <sep> $B <sep>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("<cls>", 2), ("<sep>", 3)]
    )
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if kind in ("bert", "electra") else [])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<cls>",
        sep_token="<sep>",
        eos_token="<sep>",
        model_input_names=names,
    )


def some_texts(count, longest, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [" ".join(WORDS[k] for k in torch.randint(12, (n,), generator=generator).tolist()) for n in lengths]


MAX_LENGTH = 80
TEXTS = some_texts(9, 60)
PAIRS = [Pair("p", *two) for two in combinations(TEXTS, 2)]


def load(path, **options):
    return load_partition_model(f"cross-encoder:{path}", max_length=MAX_LENGTH, **options)
