"""A random two-layer Llama with a byte-level tokenizer of its own: all that a real run of OpenRLHF needs."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Upper case: a reward that counts lower-case letters does not see special tokens, as the partition does not.
CHAT_TEMPLATE = "{% for m in messages %}<|{{ m.role.upper() }}|>{{ m.content }}{% endfor %}<|ASSISTANT|>"


def build(folder: Path, *, tie_word_embeddings: bool = True, seed: int = 0) -> Path:
    """Saves the model and its tokenizer to `folder` and returns it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<PAD>", "<EOS>", "<|USER|>", "<|ASSISTANT|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(["name a fruit, a river, a colour or a bird"] * 10, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<PAD>", eos_token="<EOS>")
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tie_word_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        # Larger than the usual 0.02: log-probabilities that differ between tokens show whether weights arrived.
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
