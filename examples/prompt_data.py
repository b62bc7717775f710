"""What prepare_wildchat.py and prepare_deepscaler.py share: load, filter with a count of what each filter dropped,
sample, write."""

import argparse
import unicodedata
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from darling_plugin.errors import DarlingError

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def parser(description: str, *, source: str, tokenizer: str, out: str) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--source", default=source, help="data set on the Hub, or a .jsonl or .parquet file like it")
    options.add_argument("--out", type=Path, default=Path(out), help="JSONL file to write")
    options.add_argument("--count", type=int, default=10_000, help="prompts to sample")
    options.add_argument("--seed", type=int, default=0, help="of the sample")
    options.add_argument("--tokenizer", default=tokenizer, help="of the model to train: it counts the prompt's tokens")
    return options


class Rows:
    """A data set on its way to training data; says how many rows each filter dropped."""

    def __init__(self, source: str, fields: set[str]) -> None:
        """Loads `source`. Raises DarlingError when it cannot be read or lacks one of `fields`."""
        path = Path(source)
        if path.suffix in FORMATS and not path.is_file():
            raise DarlingError("a data file", f"no file {source}", "correct --source")
        name, file = (FORMATS[path.suffix], source) if path.suffix in FORMATS else (source, None)
        try:
            self.rows: Dataset = load_dataset(name, data_files=file, split="train")
        except Exception as error:  # of a dozen kinds, from the hub, the file system or the reader of the format
            raise DarlingError(
                "a data set that Hugging Face's datasets can load",
                f"{source}: {type(error).__name__}: {error.__cause__ or error}",
                "correct --source; in a file, each field must have one type in all rows",
            ) from error
        missing = sorted(fields - set(self.rows.column_names))
        if missing:
            raise DarlingError(
                f"the field(s) {', '.join(missing)} in {source}",
                f"only {', '.join(self.rows.column_names)}",
                "name a --source with the fields of the original data set",
            )
        print(f"{len(self.rows):>9,} rows in {source}")

    def keep(self, what: str, condition: Callable[..., bool], *columns: str) -> None:
        """Drops the rows for which `condition(*values of columns)` is false."""
        before = len(self.rows)
        self.rows = self.rows.filter(condition, input_columns=list(columns), desc=what)
        print(f"{before - len(self.rows):>9,} dropped: not {what}")

    def keep_first(self, column: str) -> None:
        """Drops the rows whose text, white space and case aside, an earlier row has."""
        seen: set[str] = set()

        def is_new(text: str) -> bool:
            key = " ".join(text.split()).casefold()
            new = key not in seen
            seen.add(key)
            return new

        # Not `keep`, whose cached result, keyed by the function and not by `seen`, might answer.
        self.keep_marked(f"the first with its {column}", [is_new(text) for text in self.rows[column]])

    def keep_marked(self, what: str, marks: list[bool]) -> None:
        """Drops the rows whose mark is false."""
        self.rows = self.rows.select([k for k, mark in enumerate(marks) if mark])
        print(f"{marks.count(False):>9,} dropped: not {what}")

    def keep_short(self, column: str, tokenizer: str, limit: int) -> None:
        """Drops the rows whose prompt is longer than `limit` tokens, the chat template's included.

        A longer one is no error in training: OpenRLHF cuts its beginning off, the template's with it.
        """
        loaded = AutoTokenizer.from_pretrained(tokenizer)
        if loaded.chat_template is None:
            raise DarlingError(
                "a tokenizer with a chat template, which the recipes apply",
                f"none in {tokenizer}",
                "pass --tokenizer with the model you train",
            )
        self.keep(f"at most {limit} tokens", lambda text: tokens(loaded, text) <= limit, column)

    def normalise(self, column: str) -> None:
        """Puts the text in Unicode's form NFC, as many tokenizers (Qwen's) do: decoded, it is what it was.

        What else goes by the prompt, such as a label that repeats it, then sees the same text as the model.
        """
        before = self.rows[column]
        self.rows = self.rows.map(
            lambda text: {column: unicodedata.normalize("NFC", text)}, input_columns=[column], desc="NFC"
        )
        changed = sum(one != other for one, other in zip(before, self.rows[column], strict=True))
        print(f"{changed:>9,} normalised to NFC")

    def sample(self, count: int, seed: int) -> None:
        if len(self.rows) < count:
            raise DarlingError(f"--count {count} prompts", f"{len(self.rows)} after the filters", "lower --count")
        self.rows = self.rows.shuffle(seed=seed).select(range(count))

    def write(self, out: Path, columns: list[str]) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        self.rows.select_columns(columns).to_json(out, force_ascii=False)
        print(f"{len(self.rows):>9,} written to {out}")


def tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    chat = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
