"""The quality of samples whose file has none: by a reward function of OpenRLHF's kind, or by a reward model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from tqdm import tqdm

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.evaluation.fields import LARGEST
from darling_plugin.evaluation.noveltybench import decile
from darling_plugin.evaluation.samples import Samples
from darling_plugin.queries import asked
from darling_plugin.user_code import import_user_code

logger = logging.getLogger(__name__)
Score = Callable[[Samples], list[float]]


def by_function(path: str) -> Score:
    """The function reward_func(queries, prompts, labels) of a Python file, as OpenRLHF calls it."""
    function = getattr(import_user_code(path), "reward_func", None)
    if function is None:
        raise DarlingError("a Python file with a function reward_func", f"{path} without it", "name it so")

    def score(samples: Samples) -> list[float]:
        n = len(samples.responses)
        queries = [samples.prompt + response for response in samples.responses]
        try:
            found = function(queries, [samples.prompt] * n, [samples.reference or ""] * n)
        except Exception as error:
            label = "" if samples.reference else "; the file has no label of the prompt, which may be why"
            raise DarlingError(
                f"rewards from {path}", f"{type(error).__name__}: {error}{label}", "correct reward_func, or the file"
            ) from error
        try:
            rewards = [float(value) for value in (found["rewards"] if isinstance(found, dict) else found)]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            needed = f"{n} numbers from {path}, alone or as rewards of a dict"
            raise DarlingError(needed, f"{found!r:.200}", "correct reward_func") from error
        if len(rewards) != n:
            raise DarlingError(f"{n} rewards from {path}", f"{len(rewards)}", "correct reward_func")
        return rewards

    return score


def by_model(path: str, *, label: str | None = None, deciles: bool = False, batch: int = 16) -> Score:
    """What a sequence classifier says of a response: its logit where it has one label, else a label's probability.

    It reads prompt and response through its chat template, or as a pair of texts where it has none, cut at its longest
    input.

    Args:
        label: the name of one of several labels, whose probability is the quality.
        deciles: 1 to 10 by NoveltyBench's deciles of Skywork-Reward-Gemma-2-27B-v0.2, which no other model shares.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from darling_plugin.partition.engine.device import device_and_dtype

    device, dtype = device_and_dtype(None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype).to(device).eval()
    except (OSError, ValueError) as error:
        raise DarlingError(
            f"a reward model in {path}", f"{error}", "correct the path, or download it first"
        ) from error
    column = _column(model.config, path, label)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 2**20))
    cut = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}

    def score(samples: Samples) -> list[float]:
        question = asked(samples.prompt)  # of a training log, which has it in the policy's template
        found: list[float] = []
        for start in range(0, len(samples.responses), batch):
            some = samples.responses[start : start + batch]
            if tokenizer.chat_template is None:
                inputs = tokenizer([question] * len(some), some, **cut)
            else:
                chats = [
                    [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
                    for response in some
                ]
                texts = tokenizer.apply_chat_template(chats, tokenize=False)
                inputs = tokenizer(texts, add_special_tokens=False, **cut)
            if inputs["input_ids"].shape[1] == longest:
                logger.warning("prompts with responses are cut at the %d tokens that %s reads", longest, path)
            with torch.inference_mode():
                logits = model(**inputs.to(device)).logits.float()
            values = logits if column is None else logits.softmax(dim=-1)
            found += values[:, column or 0].tolist()
        return [float(decile(value)) for value in found] if deciles else found

    return score


def _column(config, path: str, label: str | None) -> int | None:
    """The place of the label; None where the model has one alone."""
    if config.num_labels == 1 and label is None:
        return None
    if config.num_labels > 1 and label in config.label2id:
        return config.label2id[label]
    raise DarlingError(
        "one of several labels of the reward model, and none where it has one",
        f"{label} for {path} with {', '.join(config.label2id)}",
        f"correct {spelled('reward_label')}",
    )


def fill_in(all_samples: Sequence[Samples], score: Score, name: str, *, again: bool) -> None:
    """Gives a quality to the samples that have none; to all of them where it is asked for again."""
    for each in tqdm(all_samples, desc="quality", unit="prompt"):
        if again or each.quality is None:
            quality = score(each)
            if not all(abs(value) <= LARGEST for value in quality):  # nor is NaN
                needed, found = f"rewards from {-LARGEST:g} to {LARGEST:g}", f"{quality} for {each.prompt!r:.80}"
                raise DarlingError(needed, found, "correct what gives them")
            each.quality, each.quality_from = quality, name
