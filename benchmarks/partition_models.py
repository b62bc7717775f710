"""What a partition costs: milliseconds a group of 8 for each built-in model that runs here.

    python benchmarks/partition_models.py

All score the same groups in turn, distinct responses, round by round.
"""

from statistics import median

from common import console, make_groups, save, side_by_side, sizes
from cross_encoders import path_of, tokenizer

from darling_plugin.partition import load_partition_model, measure

TOKENS, GROUPS, ROUNDS = (8, 32, 200), 2, 3


def main() -> None:
    models = {name: load_partition_model(name) for name in ("lexical", "embedding")}
    for name in ("minilm", "modernbert-base"):
        models[f"cross-encoder, {name}"] = load_partition_model(f"cross-encoder:{path_of(name)}", threshold=1.0)
    rows = []
    for tokens in TOKENS:
        console.print(f"up to {tokens} tokens a response")
        groups = make_groups(tokenizer(), GROUPS, sizes(tokens))
        seconds = side_by_side(
            {name: lambda model=model, groups=groups: measure(model, groups) for name, model in models.items()}, ROUNDS
        )
        each = {f"{name}, ms": median(times) / GROUPS * 1000 for name, times in seconds.items()}
        rows.append({"tokens a response": f"≤ {tokens}"} | each)
    save("partition_models", "Milliseconds a group of 8", __doc__, rows)


if __name__ == "__main__":
    main()
