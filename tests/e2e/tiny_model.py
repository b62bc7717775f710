"""Random two-layer models with a byte-level tokenizer of their own: all that a real run of OpenRLHF needs."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

# Upper case: a reward that counts lower-case letters does not see special tokens, as the partition does not.
CHAT_TEMPLATE = "{% for m in messages %}<|{{ m.role.upper() }}|>{{ m.content }}{% endfor %}<|ASSISTANT|>"


FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32}),
    # A window shorter than a sequence here, on the first layer alone.
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {"head_dim": 32, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}


def build(folder: Path, family: str = "llama", *, tie_word_embeddings: bool = True, seed: int = 0) -> Path:
    """Saves a policy and its tokenizer to `folder` and returns it."""
    config_class, model_class, own = FAMILIES[family]
    torch.manual_seed(seed)
    model = model_class(_config(config_class, _save_tokenizer(folder), tie_word_embeddings=tie_word_embeddings, **own))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def build_reward_model(folder: Path, seed: int = 1) -> Path:
    """Saves a reward model, as OpenRLHF's train_rm leaves them, whose scores lie on both sides of 0."""
    torch.manual_seed(seed)
    config = _config(LlamaConfig, _save_tokenizer(folder), num_labels=1)
    LlamaForSequenceClassification(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
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
    tokenizer.save_pretrained(folder)
    return tokenizer


def _config(config_class: type, tokenizer: PreTrainedTokenizerFast, **own) -> PretrainedConfig:
    return config_class(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        # Larger than the usual 0.02: log-probabilities that differ between tokens show whether weights arrived.
        initializer_range=0.1,
        **own,
    )
