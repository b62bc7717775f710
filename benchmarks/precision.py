"""What bfloat16, packing and torch.compile change, against one text or pair at a time in float32.

    python benchmarks/precision.py

Compared are decisions and partitions. The reference is transformers with eager attention, one pair alone
(sentence-transformers, one text alone), in float32, on the GPU where there is one.
Groups of 8 responses in classes of 4, 3 and 1, up to 200 tokens each; thresholds are the models' own. `close pairs`
are those that the reference puts within 0.02 of the threshold: no decision further away may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from common import all_pairs, classes, console, make_groups, save, sizes
from cross_encoders import path_of, tokenizer
from rich.progress import track
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from darling_plugin.partition import Group, Pair, load_partition_model
from darling_plugin.partition.models.embedding import _default_model_path

GROUPS, TOKENS, CLASSES, CLOSE = 24, 200, (4, 3, 1), 0.02
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = ("float32", "bfloat16")


def one_pair_at_a_time(path: str, pairs: Sequence[Pair]) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(path, attn_implementation="eager").to(DEVICE).eval()
    tokens = AutoTokenizer.from_pretrained(path)
    found = []
    for pair in track(pairs, description="one pair at a time", console=console):
        inputs = tokens(pair.first, pair.second, truncation="longest_first", max_length=512, return_tensors="pt")
        with torch.inference_mode():
            found.append(model(**inputs.to(DEVICE)).logits[0].softmax(-1)[1])
    return torch.stack(found).cpu()


def one_text_at_a_time(groups: Sequence[Group]) -> torch.Tensor:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(_default_model_path(), device=DEVICE, model_kwargs={"attn_implementation": "eager"})
    found = []
    for group in track(groups, description="one text at a time", console=console):
        vectors = torch.stack([model.encode(text, convert_to_tensor=True) for text in group.responses])
        cosines = torch.nn.functional.normalize(vectors) @ torch.nn.functional.normalize(vectors).T
        n = len(group.responses)
        found.append(cosines.cpu()[torch.triu_indices(n, n, offset=1).unbind()])
    return torch.cat(found)


def compare(spec: str, dtype: str, groups: Sequence[Group], reference: torch.Tensor) -> dict[str, object]:
    model = load_partition_model(spec, dtype=dtype, compile_after=0)
    similarities = model.similarities(groups)
    scores = torch.cat([each[torch.triu_indices(*each.shape, offset=1).unbind()] for each in similarities])
    flipped = (scores > model.threshold) != (reference > model.threshold)
    ours = [each.tolist() for each in model.partition(groups)]
    theirs = classes(reference, model.threshold, groups)
    other = sum(a != b for a, b in zip(ours, theirs, strict=True))
    close = (reference - model.threshold).abs() < CLOSE
    return {
        "model": spec if spec == "embedding" else f"cross-encoder, {Path(spec).name}",
        "dtype": dtype,
        "pairs": len(scores),
        "close pairs": int(close.sum()),
        "decisions that differ": f"{int(flipped.sum())} ({flipped.float().mean():.1%})",
        "of them close": int((flipped & close).sum()),
        "partitions that differ": f"{other} of {len(groups)}",
        "largest score difference": (scores - reference).abs().max().item(),
    }


def rows(groups: Sequence[Group], path: str) -> Iterator[dict[str, object]]:
    """Of the cross-encoder in `path` and of `embedding`, each in both dtypes."""
    references = {
        f"cross-encoder:{path}": lambda: one_pair_at_a_time(path, all_pairs(groups)),
        "embedding": lambda: one_text_at_a_time(groups),
    }
    for spec, reference in references.items():
        exact = reference()
        for dtype in DTYPES:
            yield compare(spec, dtype, groups, exact)


def main() -> None:
    groups = make_groups(tokenizer(), GROUPS, sizes(TOKENS), CLASSES)
    save("precision", "What bfloat16, packing and torch.compile change", __doc__, rows(groups, str(path_of("minilm"))))


if __name__ == "__main__":
    main()
