"""What bfloat16, packing and torch.compile change, against one text or pair at a time in float32.

    python benchmarks/precision.py

Compared are decisions and partitions. The reference is transformers with eager attention, one pair alone
(sentence-transformers, one text alone), in float32.
Groups of 8 responses in classes of 4, 3 and 1, up to 200 tokens each; thresholds are the models' own. `close pairs`
are those that the reference puts within 0.02 of the threshold: no decision further away may change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import all_pairs, classes, console, make_groups, save, sizes
from cross_encoders import path_of, tokenizer
from rich.progress import track
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from darling_plugin.partition import Group, Pair, load_partition_model
from darling_plugin.partition.models.embedding import _default_model_path

GROUPS, TOKENS, CLOSE = 24, 200, 0.02
DTYPES = ("float32", "bfloat16")


def one_pair_at_a_time(path: str, pairs: Sequence[Pair]) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(path, attn_implementation="eager").eval()
    tokens = AutoTokenizer.from_pretrained(path)
    found = []
    for pair in track(pairs, description="one pair at a time", console=console):
        inputs = tokens(pair.first, pair.second, truncation="longest_first", max_length=512, return_tensors="pt")
        with torch.inference_mode():
            found.append(model(**inputs).logits[0].softmax(-1)[1])
    return torch.stack(found)


def one_text_at_a_time(groups: Sequence[Group]) -> torch.Tensor:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(_default_model_path(), device="cpu", model_kwargs={"attn_implementation": "eager"})
    found = []
    for group in track(groups, description="one text at a time", console=console):
        vectors = torch.stack([model.encode(text, convert_to_tensor=True) for text in group.responses])
        cosines = torch.nn.functional.normalize(vectors) @ torch.nn.functional.normalize(vectors).T
        n = len(group.responses)
        found.append(cosines[torch.triu_indices(n, n, offset=1).unbind()])
    return torch.cat(found)


def compare(spec: str, dtype: str, groups: Sequence[Group], reference: torch.Tensor) -> dict[str, object]:
    model = load_partition_model(spec, dtype=dtype, compile_after=0)
    scores = torch.cat([each[torch.triu_indices(8, 8, offset=1).unbind()] for each in model.similarities(groups)])
    flipped = (scores > model.threshold) != (reference > model.threshold)
    ours = [each.tolist() for each in model.partition(groups)]
    theirs = classes(reference, model.threshold, groups)
    other = sum(a != b for a, b in zip(ours, theirs, strict=True))
    close = (reference - model.threshold).abs() < CLOSE
    return {
        "model": "embedding" if spec == "embedding" else "cross-encoder, minilm",
        "dtype": dtype,
        "pairs": len(scores),
        "close pairs": int(close.sum()),
        "decisions that differ": f"{int(flipped.sum())} ({flipped.float().mean():.1%})",
        "of them close": int((flipped & close).sum()),
        "partitions that differ": f"{other} of {len(groups)}",
        "largest score difference": (scores - reference).abs().max().item(),
    }


def main() -> None:
    groups = make_groups(tokenizer(), GROUPS, sizes(TOKENS), (4, 3, 1))
    path = str(path_of("minilm"))
    exact = {f"cross-encoder:{path}": one_pair_at_a_time(path, all_pairs(groups))}
    exact["embedding"] = one_text_at_a_time(groups)
    rows = [compare(spec, dtype, groups, reference) for spec, reference in exact.items() for dtype in DTYPES]
    save("precision", "What bfloat16, packing and torch.compile change", __doc__, rows)


if __name__ == "__main__":
    main()
