"""Athene-RM as OpenRLHF's reward function: the score of a response, read where that model was trained to give it.

Athene-RM is Llama-3 with a head `v_head`, read at the tokenizer's CLS token, which follows the conversation in the
model's own chat template. OpenRLHF's reward model actor reads at the response's last token and keeps the policy's
template, so the model runs here instead, on the GPU of the rollout actor that calls.

The label must be the prompt as the user wrote it (`--data.label_key` the same as `--data.input_key`).
The environment variable ATHENE_RM names another copy of the model; on a cluster, set it in the job's runtime_env.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

from darling_plugin.queries import response_of

MODEL = os.environ.get("ATHENE_RM", "Nexusflow/Athene-RM-8B")
MAX_LENGTH = 4096  # tokens; the model's own code cuts there

# OpenRLHF calls from many threads, and CUDA keeps a workspace for each that ever computed.
_one_at_a_time = ThreadPoolExecutor(1)


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, Any]:
    """Scores of `queries`, each a prompt and its response as the policy's tokenizer decodes them."""
    scores = _one_at_a_time.submit(_scores, queries, prompts, labels).result()
    return {"rewards": scores, "scores": scores, "extra_logs": {}}


def _scores(queries: list[str], prompts: list[str], labels: list[str]) -> torch.Tensor:
    model, tokenizer = load()
    texts = [
        conversation(tokenizer, label, without_end(response_of(query, prompt), tokenizer))
        for query, prompt, label in zip(queries, prompts, labels, strict=True)
    ]
    return torch.tensor([score(model, tokenizer, text) for text in texts])


@cache
def load() -> tuple[Any, Any]:
    from openrlhf.models import get_llm_for_sequence_regression
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    if tokenizer.cls_token_id is None:
        raise ValueError(f"{MODEL} has no CLS token, so it is not read as Athene-RM is")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = get_llm_for_sequence_regression(
        MODEL, "reward", value_head_prefix="v_head", attn_implementation="sdpa", device_map=device
    )
    return model.eval(), tokenizer


def without_end(response: str, tokenizer: Any) -> str:
    """The response without the special tokens that end it."""
    special = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    while response.endswith(special):
        response = response.removesuffix(next(token for token in special if response.endswith(token)))
    return response


def conversation(tokenizer: Any, question: str, response: str) -> str:
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    return tokenizer.apply_chat_template(chat, tokenize=False)


def score(model: Any, tokenizer: Any, text: str) -> float:
    ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=MAX_LENGTH - 1)["input_ids"]
    # OpenRLHF's reward model reads its head at the last token, which this way is the CLS token.
    ids = torch.tensor([[*ids, tokenizer.cls_token_id]], device=model.device)
    with torch.inference_mode():
        return model(ids, torch.ones_like(ids)).float().item()
