"""Small models and pairs that training can learn, and its command lines."""

from safetensors.torch import load_file, save_file
from tiny_classifiers import make_classifier

ANSWERS = [
    ("red", "Red!", "blue"),
    ("seven", "7", "eight"),
    ("Rome", "It is Rome.", "Oslo"),
    ("a cat", "cat", "a fox"),
]
WHOLE_SENTENCES = [
    "One example of a city that I would like to see is Lisbon.",
    "I would go to Lisbon, which is beautiful in the spring.",
    "One example of a city that I would like to see is Nairobi.",
]


def trainable(folder, kind):
    """The tiny classifiers' weights are too large to learn with: here they have a fifth of that."""
    make_classifier(folder, kind)
    weights = load_file(folder / "model.safetensors")
    small = {name: each if "norm" in name.lower() else each / 5 for name, each in weights.items()}
    save_file(small, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def story(subject, ending):
    """37 words and more: longer than what counts as a sentence."""
    return (
        f"The {subject} went down to the harbour before dawn, waited there for the ferry, and in the end {ending}. "
        "Nobody had asked for it, but everybody in the small town spoke of nothing else for weeks."
    )


def cross(pairs, base, out, *more):
    options = (
        "--max_length",
        "32",
        "--epochs",
        "6",
        "--learning_rate",
        "3e-3",
        "--patience",
        "6",
        "--accumulate",
        "1",
    )
    return [pairs, "-o", str(out), "--kind", "cross-encoder", "--base", base, "--folds", "4", *options, *more]
