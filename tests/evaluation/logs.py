"""Folders as `--darling.log_dir` leaves them, for the tests of what reads them."""

import json

FLAGS = {"enable": True, "reward": "multiply", "weight": 1.0, "diversity_floor": 0.1, "partition_model": "lexical"}


def group(step, labels, quality, *, split="train", prompt="Name a fruit.", responses=None, floor=0.1, **more):
    """One line, rewarded as FLAGS say."""
    n = len(labels)
    diversity = [sum(other != label for other in labels) / (n - 1) for label in labels]
    reward = [q * max(d, floor) for q, d in zip(quality, diversity, strict=True)]
    return {
        "step": step,
        "split": split,
        "prompt": f"<|user|>\n{prompt}<|end|>\n<|assistant|>\n",
        "responses": responses or [f"answer {label} of {k}" for k, label in enumerate(labels)],
        "labels": labels,
        "quality": quality,
        "diversity": diversity,
        "reward": quality if split == "eval" else reward,
        "advantage": None if split == "eval" else [r - sum(reward) / n for r in reward],
        "response_length": [3 + label for label in labels],
        "truncated": [False] * n,
        **more,
    }


def write(folder, records, flags=FLAGS):
    """flags: None leaves run.json out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "partitions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if flags is not None:
        (folder / "run.json").write_text(json.dumps({"darling": flags, "versions": {"openrlhf": "0.11.2"}}))
    return folder
