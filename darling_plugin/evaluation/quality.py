"""The quality of samples whose file has none: by a reward function of OpenRLHF's kind, or by a reward model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tqdm import tqdm

from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.noveltybench import DECILES
from darling_plugin.evaluation.samples import Samples
from darling_plugin.user_code import import_user_code

Score = Callable[[Samples], list[float]]


def by_function(path: str) -> Score:
    """The function reward_func(queries, prompts, labels) of a Python file, as OpenRLHF calls it."""
    function = getattr(import_user_code(path), "reward_func", None)
    if function is None:
        raise DarlingError("a Python file with a function reward_func", f"{path} without it", "name it so")

    def score(samples: Samples) -> list[float]:
        n = len(samples.responses)
        queries = [samples.prompt + response for response in samples.responses]
        found = function(queries, [samples.prompt] * n, [samples.reference or ""] * n)
        rewards = found["rewards"] if isinstance(found, dict) else found
        rewards = [float(value) for value in rewards]
        if len(rewards) != n:
            raise DarlingError(f"{n} rewards from {path}", f"{len(rewards)}", "correct reward_func")
        return rewards

    return score


def by_model(path: str, *, deciles: bool = False, batch: int = 16) -> Score:
    """The logit of a sequence classifier with one label that reads the conversation through its chat template.

    Args:
        deciles: 1 to 10 by NoveltyBench's deciles of Skywork-Reward-Gemma-2-27B-v0.2, which no other model shares.
    """
    import bisect

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from darling_plugin.partition.engine.device import device_and_dtype

    device, dtype = device_and_dtype(None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype).to(device).eval()
    except OSError as error:
        raise DarlingError(
            f"a reward model in {path}", f"{error}", "correct the path, or download it first"
        ) from error
    if model.config.num_labels != 1:
        raise DarlingError("a reward model with one label", f"{path} with {model.config.num_labels}", "name another")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id

    def score(samples: Samples) -> list[float]:
        texts = [_conversation(tokenizer, samples.prompt, response) for response in samples.responses]
        found: list[float] = []
        for start in range(0, len(texts), batch):
            inputs = tokenizer(
                texts[start : start + batch], return_tensors="pt", padding=True, add_special_tokens=False
            )
            with torch.inference_mode():
                found += model(**inputs.to(device)).logits[:, 0].float().tolist()
        return [float(bisect.bisect_left(DECILES, value) + 1) for value in found] if deciles else found

    return score


def _conversation(tokenizer, prompt: str, response: str) -> str:
    if tokenizer.chat_template is None:
        return prompt + response
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return tokenizer.apply_chat_template(chat, tokenize=False)


def fill_in(all_samples: Sequence[Samples], score: Score, *, again: bool) -> None:
    """Gives a quality to the samples that have none; to all of them where it is asked for again."""
    for each in tqdm(all_samples, desc="quality", unit="prompt"):
        if again or each.quality is None:
            each.quality = score(each)
