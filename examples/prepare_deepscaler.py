"""DeepScaleR to the prompts of recipes/deepscaler_qwen3_*.sh: problems with an answer that Math-Verify can read, at
most 1024 tokens long, each once, with the instruction to reason and to box the answer; a seeded sample of 10,000 as
JSONL with the keys `input` and `answer`. Needs `pip install ".[math]"`."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

from datasets import Features, Value
from prompt_data import Rows, parser
from reward_math import WORKERS, check_answer
from tqdm import tqdm

from darling_plugin.errors import DarlingError

MAX_TOKENS = 1024
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."


def answer_text(answer: object) -> str:
    """The answer as a text, empty where it is none: columns of numbers are answers, true and false are not."""
    if isinstance(answer, (int, float)) and not isinstance(answer, bool) and math.isfinite(answer):
        return format(Decimal(str(answer)), "f")  # not 1e-05, which LaTeX reads as a product with Euler's number
    return answer.strip() if isinstance(answer, str) else ""


def is_checkable(answer: str) -> bool:
    """Whether the answer, given as a response, earns the reward. A label that cannot be read would stop the run."""
    try:
        equal, _ = check_answer(rf"\boxed{{{answer}}}", answer)
    except ValueError:
        return False
    return equal


def main(argv: list[str] | None = None) -> None:
    options = parser(
        __doc__,
        source="agentica-org/DeepScaleR-Preview-Dataset",
        tokenizer="Qwen/Qwen3-4B-Base",
        out="data/deepscaler10k.jsonl",
    ).parse_args(argv)
    data = Rows(options.source, {"problem", "answer"})
    data.keep("a problem with text", lambda problem: isinstance(problem, str) and bool(problem.strip()), "problem")
    data.keep("a problem with an answer", lambda answer: bool(answer_text(answer)), "answer")
    data.normalise("problem")
    data.keep_first("problem")
    with ThreadPoolExecutor(WORKERS) as threads:
        checked = threads.map(is_checkable, map(answer_text, data.rows["answer"]))
        marks = list(tqdm(checked, total=len(data.rows), desc="an answer that Math-Verify can read"))
    data.keep_marked("a problem whose answer Math-Verify can read", marks)
    data.rows = data.rows.map(
        lambda problem, answer: {"input": f"{problem.strip()}\n\n{INSTRUCTION}", "answer": answer_text(answer)},
        input_columns=["problem", "answer"],
        remove_columns=data.rows.column_names,
        features=Features({"input": Value("string"), "answer": Value("string")}),  # else answers become numbers again
        desc="instruction",
    )
    data.keep_short("input", options.tokenizer, MAX_TOKENS)
    data.sample(options.count, options.seed)
    data.write(options.out, ["input", "answer"])


if __name__ == "__main__":
    try:
        main()
    except DarlingError as error:
        sys.exit(str(error))
