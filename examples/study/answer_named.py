"""The study's oracle: two responses are equivalent if they name the same accepted answer first.

    --darling.partition_model examples/study/answer_named.py:AnswerNamed

A response that names no accepted answer is a class of its own: it says what no other is known to say.
"""

import json
import sys
from pathlib import Path

from darling_plugin import PairwiseModel

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(EXAMPLES))

from reward_named_answer import named_answers  # noqa: E402


class AnswerNamed(PairwiseModel):
    """P(equivalent) is 1 or 0, by the accepted answers of the prompt, which are looked up in many_answers.jsonl."""

    threshold = 0.5
    calibrated = True

    def __init__(self, **options):
        super().__init__(**options)
        lines = (EXAMPLES / "data/many_answers.jsonl").read_text(encoding="utf-8").splitlines()
        self.answers = {record["input"]: record["answers"] for record in map(json.loads, lines)}

    def similarity(self, pairs):
        found = []
        for pair in pairs:
            answers = self.accepted(pair.prompt)
            first, second = (named_answers(text, answers)[:1] for text in (pair.first, pair.second))
            found.append(float(bool(first) and first == second))
        return found

    def accepted(self, prompt):
        """The accepted answers of a prompt, which may stand within a chat template; KeyError for an unknown one."""
        if prompt not in self.answers:
            within = [known for known in self.answers if known in prompt]
            self.answers[prompt] = self.answers[max(within, key=len, default=prompt)]
        return self.answers[prompt]
