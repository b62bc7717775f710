r"""The final answer of a response: which part of its text it is. Strings alone; `answer_form` reads that part.

1. The last \boxed{} or \fbox{}, with a space before its brace or none, counts alone, and with it those before it that
   nothing but a comma, and, or parts from it. One that is empty, or cut off at the end of the text, is no answer.
2. Else the last statement of an answer: "the answer is 42", "Answer: 42", "42 is the answer", "#### 42",
   <answer>42</answer>, 答案是42; in markdown or not. What follows the value does not matter: in "the answer is 42, as
   6 times 7 is known" it is 42, as graders for benchmarks have it. Where no value follows, the statement is no answer.
3. Else what the last sentence ends in, with its unit: "It is 41, no, it is 42.", 6 * 7 = 42. Or what it says there is,
   before no more than a few words: "So there are 42 apples in the basket."

Otherwise there is no answer: a number that the text ends past, as 68 in "Adding 5 and 68 gives seventy-three", is
none, nor is one that is only part of a phrase, as in "five more than 68". Several values joined by a comma, and, or
are one answer of several parts. Words are answers in a box, single letters of choices also after 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from darling_plugin.answer_form import MULTIPLIERS, NO_NOUNS, FinalAnswer, match_unit, plain_characters, read_form

CLOSING_TOKEN = re.compile(r"<[^<>\s]{1,40}>\Z")  # what closes a response, as <|im_end|> or </s>
AFTER_SENTENCE = re.compile(r"^[\s$)\]}\"'*_`\\.]+")
MOST_MARKERS = 20  # of the word answer, and of boxes, that are read: a response may repeat them without end


def final_answer(text: str) -> FinalAnswer | None:
    """The final answer of a response, or None where it has none."""
    text = plain_characters(_without_closing_tokens(text).rpartition("</think>")[2])
    if BOX.search(text):
        content = _last_box(text)
        return None if content is None else read_form(content)
    prose = _Prose(text)
    return _stated(prose) or _ending(prose, _last_sentence(prose.text))


def text_after_answer(text: str) -> str | None:
    """What follows the sentence that has the final answer; None where none is boxed or stated.

    That is the first of the boxes with the last one's content, of the last MOST_MARKERS, or the last statement.
    """
    text = _without_closing_tokens(text).rpartition("</think>")[2]
    boxes = [_content(text, box.end()) for box in list(BOX.finditer(text))[-MOST_MARKERS:]]
    if boxes:
        last = boxes[-1][0]
        end = next(end for content, end in boxes if content == last)
        return None if last is None else _after_sentence(text, end)
    for marker in reversed(list(MARKER.finditer(text))[-MOST_MARKERS:]):
        before = max(0, marker.start() - 200)
        start = max((end.end() for end in SENTENCE_END.finditer(text, before, marker.start())), default=before)
        if _stated(_Prose(plain_characters(text[start : marker.end() + 200]))):
            value = BEFORE_VALUE.match(text, marker.end()).end()
            return _after_sentence(text, value)
    return None


def _without_closing_tokens(text: str) -> str:
    """A pattern of several would begin anew at each of a text that is full of tags."""
    end = kept = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        found = CLOSING_TOKEN.search(text, max(0, end - 42), end)
        if not found:
            return text[:kept]
        kept = end = found.start()


def _after_sentence(text: str, start: int) -> str:
    end = SENTENCE_END.search(text, start)
    return AFTER_SENTENCE.sub("", text[end.end() :]).rstrip() if end else ""


def label_answer(label: str) -> FinalAnswer | None:
    r"""The answer that a label is: LaTeX or a number, with $ or \boxed around it or without."""
    whole = re.fullmatch(r"\$+[^$]+\$+|\\\((?:(?!\\\)).)*\\\)|\\\[(?:(?!\\\]).)*\\\]", label, re.DOTALL)
    parts = BOX.search(label) or (not whole and re.search(r"(?<!\\)\$.*(?<!\\)\$|\\\(|\\\[", label))
    return final_answer(label) if parts else read_form(plain_characters(label))


# ── Boxes ──

BOX = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
BETWEEN_BOXES = re.compile(
    r"(?:[\s,;$]|\\[,;! ()\[\]]|\\q?quad|(?:\\text\s*\{\s*)?\b(?:and|or)\b(?:\s*\})?"
    r"|(?<![A-Za-z])[a-zA-Z](?:_\d)?\s*=)*"
)
AFTER_BOX = re.compile(
    r"[$\s]*(?:\\[,;! ]|~)*\s*(\\?%|°|\^\{?\\circ\}?|\\(?:text|mathrm|textrm|mbox)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?)"
)


def _last_box(text: str) -> str | None:
    r"""What stands in the last box, with the unit after it, or in the last boxes, with commas; None if cut off."""
    contents, start = [], len(text)
    for box in reversed(list(BOX.finditer(text))):
        content, end = _content(text, box.end())
        if content is None or not contents:
            unit = AFTER_BOX.match(text, end)
            contents.append(content)
            contents[0] = content and content + (unit[1] if unit else "")
        elif end <= start and BETWEEN_BOXES.fullmatch(text, end, start):
            contents.append(content)
        else:
            break
        if contents[-1] is None or not contents[0]:
            break
        start = box.start()
    if contents[0] is None:
        return None
    return ", ".join(content for content in dict.fromkeys(reversed(contents)) if content)


def _content(text: str, start: int) -> tuple[str | None, int]:
    r"""What the brace at `start` encloses, and where it ends; without a brace the next word, as in \boxed 6."""
    if text[start : start + 1] != "{":
        word = re.compile(r"[^\s$]+").match(text, start)
        return (word[0].rstrip(".,;:"), word.end()) if word else (None, len(text))
    depth = 0
    for brace in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start + 1 : brace.start()], brace.end()
    return None, len(text)


# ── Prose ──

SPAN = re.compile(
    r"\\begin\{(?:align|equation|gather)\*?\}(.+?)\\end\{(?:align|equation|gather)\*?\}|\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)"
    r"|(?<![\\\d$])\$(?=\S)((?:\\\$|[^$\n])+?)(?<=[^\s\\])\$(?![\d$])",
    re.DOTALL,
)
MARKS_OF_FORMULAS = re.compile("[\ue000\ue001]")
FORMULA = re.compile("\ue000(\\d+)\ue001")  # stands for a formula while the sentence around it is read
MARKDOWN = (
    (re.compile(r"~~[^~\n]+~~"), ""),
    (re.compile(r"^[ \t]*```.*$", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*(?:#{1,3}(?!#)|>|[-*+](?=\s)|\d+[.)](?=\s+\D))[ \t]*", re.MULTILINE), ""),
    (re.compile(r"</?(?:b|i|em|strong|u|code|p|br|span|div)\s*/?>"), ""),
    (re.compile(r"(?<![\w*])\*{1,3}(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*{1,3}(?![\w*])"), r"\1"),
    (re.compile(r"(?<!\w)__(?=[^\s_])([^\n]+?)(?<=[^\s_])__(?!\w)"), r"\1"),
    (re.compile(r"(?<![\w_])_{1,3}(?=[^\s_])([^_\n]+?)(?<=[^\s_])_{1,3}(?![\w_])"), r"\1"),
    (re.compile(r"`+"), ""),
    (re.compile(r"\\(?:textbf|textit|emph)\s*\{([^{}]*)\}"), r"\1"),
)


class _Prose:
    """A text without markdown, its formulas set aside."""

    def __init__(self, text: str) -> None:
        self.formulas: list[str] = []
        text = MARKS_OF_FORMULAS.sub("", text)  # the text's own would stand for a formula that there is not
        text = SPAN.sub(self._set_aside, text)
        for pattern, replacement in MARKDOWN:
            text = pattern.sub(replacement, text)
        self.text = text.strip()

    def _set_aside(self, found: re.Match) -> str:
        self.formulas.append(_last_line(next(filter(None, found.groups()))))
        return f"\ue000{len(self.formulas) - 1}\ue001"

    def restore(self, text: str) -> str:
        return FORMULA.sub(lambda mark: self.formulas[int(mark[1])], text)


def _last_line(formula: str) -> str:
    r"""Of a formula in aligned lines the last one."""
    if "&" not in formula or re.search(r"matrix|array|cases", formula):
        return formula
    lines = re.split(r"\\\\(?:\[[^\]]*\])?", re.sub(r"\\(?:begin|end)\{[^{}]*\}", "", formula))
    return next((line for line in reversed(lines) if line.strip()), "").replace("&", "")


# ── Values in a sentence ──

TOKEN = re.compile(
    r"(?P<formula>\ue000\d+\ue001)"
    r"|(?P<number>\d{1,3}(?:[, ]\d{3})+(?!\d)(?:\.\d+)?|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?!\w))?)"
    r"|(?P<command>\\[A-Za-z]+|\\[{}|%$]|(?<![A-Za-z])(?:sqrt|sin|cos|tan|log|ln|exp|pi)(?![A-Za-z]))"
    r"|(?P<word>[^\W\d_]{2,}|[^\W\d_A-Za-z])"
    r"|(?P<letter>[A-Za-z])"
    r"|(?P<operator>[-+*/^=<>_!%°$€£¥₹|]|(?<=\d):(?=\d))"
    r"|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<other>\S)"
)
LONGEST_SENTENCE = 2000  # characters: what is longer is no sentence
JOINT = re.compile(r"\s*(?:(?:,|;|,?\s*\b(?:and|or)\b)\s*)?(?:[A-Za-z]\s*=\s*)?")
ARTICLES = ("a", "A", "I")


@dataclass
class _Run:
    """A stretch of a sentence that is mathematics."""

    start: int
    end: int
    value: bool = False  # it has a number, a formula or a command


def _runs(sentence: str) -> list[_Run]:
    """The stretches with a value, those joined by a comma, and, or as one."""
    runs: list[_Run] = []
    for run in filter(lambda run: run.value, _pieces(sentence)):
        if runs and _joined(sentence[runs[-1].end : run.start]) and not _computed(sentence, runs[-1]):
            runs[-1].end = run.end
        else:
            runs.append(run)
    return runs


def _computed(sentence: str, run: _Run) -> bool:
    """Whether the run is a computation: 5 + 6 = 11, not x = 11."""
    left, equals, _ = sentence[run.start : run.end].rpartition("=")
    return bool(equals) and not re.search(r"[A-Za-z\ue000]", left)


def _pieces(sentence: str) -> list[_Run]:
    tokens, pieces, open_ = list(TOKEN.finditer(sentence)), [], False
    for k, token in enumerate(tokens):
        if token.lastgroup in ("word", "other") or (token.lastgroup == "letter" and _is_article(tokens, k)):
            open_ = False
            continue
        if not open_:
            pieces.append(_Run(token.start(), token.end()))
        open_ = True
        if token.lastgroup != "open":  # a bracket around words is not part of it
            pieces[-1].end = token.end()
        pieces[-1].value |= token.lastgroup in ("number", "formula", "command")
    return pieces


def _is_article(tokens: list[re.Match], k: int) -> bool:
    if tokens[k][0] not in ARTICLES:
        return False
    around = tokens[max(0, k - 1) : k] + tokens[k + 1 : k + 2]
    glued = any(other.end() == tokens[k].start() or tokens[k].end() == other.start() for other in around)
    return not glued and not any(other.lastgroup == "operator" for other in around)


def _joined(between: str) -> bool:
    """Whether two values with this between them are parts of one answer, as 1, 2 or 2 hours and 30."""
    between = between.strip()
    _, length = match_unit(between)
    return bool(between) and JOINT.fullmatch(between[length:]) is not None


# ── 2. Statements ──

MARKER = re.compile(r"(?P<tag><answer>)|(?P<hashes>####)|(?i:\banswer\b|答案|\bantwort\b|\brespuesta\b|\bréponse\b)")
COPULA = re.compile(r"\b(?:is|are|was|be|equals|es|ist|est)\b|:|=|是|为|\Z", re.IGNORECASE)
FILLER = re.compile(
    r"(?:[\s:=\"'(]|\b(?:about|approximately|roughly|around|exactly|only|just|simply|therefore|thus|then|hence|indeed|"
    r"actually|also|now|option|choice|equal to|given by|the number|clearly)\b|是|为)*",
    re.IGNORECASE,
)
LETTER = re.compile(r"\(?([A-H])(?:\)|(?=\s*(?:[.,:;]|$|\n|\b(?:because|since|as)\b)))")
# One of several is none; a letter of which something is said, as in "B, A is too small", is no other answer.
ANOTHER_LETTER = re.compile(
    r"\s*(?:[,;/&]|\b(?:and|or)\b)+\s*(?:(?:and|or)\b\s*)?\(?[A-H]\b\)?"
    r"(?=\s*(?:[.,:;/&*]|\Z|\n|\b(?:and|or|because|since|as)\b))"
)
# What stands between the word answer and its value, which may be below it.
BEFORE_VALUE = re.compile(r"[\s:=*_>]*(?:(?:is|are|was|equals|es|ist|est)\b[\s:=*_>]*)?", re.IGNORECASE)
STATED_BEFORE = re.compile(
    r"(?:\bis|\bwas|\bas|,)\s+(?:the|my|our|your)\s+(?:(?:final|correct|right)\s+)*$", re.IGNORECASE
)
SENTENCE_END = re.compile(r"[.!?](?=\s|$|[\"')\]])|。|\n")


def _stated(prose: _Prose) -> FinalAnswer | None:
    for marker in reversed(list(MARKER.finditer(prose.text))):
        rest = prose.text[marker.end() :]
        before = STATED_BEFORE.search(prose.text[max(0, marker.start() - 40) : marker.start()])
        if before and not re.match(r"\s*(?:is\b|:)", rest):
            return _ending(prose, _last_sentence(prose.text[: marker.start() - len(before[0])]))
        if marker.lastgroup == "tag":
            rest = rest.split("</answer>")[0]
            return _at_start(prose, rest) if _whole(rest) else _ending(prose, _last_sentence(rest.strip()))
        starts = [0] if marker.lastgroup == "hashes" else _statement_starts(rest)
        if not starts:
            continue  # the word answer alone
        found = (_at_start(prose, rest[start:]) for start in starts)
        return next(filter(None, found), None)
    return None


def _whole(text: str) -> bool:
    runs = _runs(text.strip())
    return bool(LETTER.match(text.strip())) or (bool(runs) and runs[0].start == 0 and "=" not in text)


def _statement_starts(rest: str) -> list[int]:
    """Where a value may follow the word answer: after each is, colon or = of its sentence; a heading's is below it."""
    if re.match(r"\s*\n", rest):
        return [0]
    end = SENTENCE_END.search(rest)
    clause = rest[: end.start() if end else len(rest)]
    return [copula.end() for copula in COPULA.finditer(clause) if copula[0]]


def _at_start(prose: _Prose, text: str) -> FinalAnswer | None:
    """The value that the text begins with."""
    text = text[FILLER.match(text).end() :] if not re.match(r"\s*\(", text) else text.lstrip()
    letter = LETTER.match(text)
    if letter:
        return None if ANOTHER_LETTER.match(text, letter.end()) else FinalAnswer(letter[1])
    end = SENTENCE_END.search(text)
    sentence = text[: end.start() if end else len(text)][:LONGEST_SENTENCE]
    runs = _runs(sentence)
    if not runs or runs[0].start != 0:
        return None
    return _read(prose, sentence, runs[0])


# ── 3. The last sentence ──

SAYS = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|gives?|gets?|makes?|yields?|has|have|becomes?|to|total of)|[=:是为于有得共])"
    r"[\s\"'(]*(?:(?:about|exactly|only|just)\s+)?$",
    re.IGNORECASE,
)
# Before a number they make it a part of something else: more than 68, the sum of 5 and 68.
PARTS = re.compile(
    r"\b(?:than|(?<!total )of|by|from|not|n't|with|between|for|per|plus|minus|times|over|under|until|step|question|"
    r"problem|part|case|number|add|adding|take|multiply|divide|subtract|and|or)[\s\"'(]*$",
    re.IGNORECASE,
)
TO = re.compile(r"\bto[\s\"'(]*$", re.IGNORECASE)
EQUAL_TO = re.compile(
    r"(?:equal|equivalent|comes?|up|down|simplif\w+|evaluat\w+|amounts?|reduc\w+|sums?|leads?|rounds?|rounded|close)"
    r" to[\s\"'(]*$",
    re.IGNORECASE,
)
# A character that is not read here makes a number a part of something: 10'000, 6th.
GLUED_AFTER = re.compile(r"[^\s.,;:!?)\]}\"'*。\u3000-\uffef-]|['.,]\d")
GLUED_BEFORE = re.compile(r"[^\s(\[{\"'=:,;<>~*。\u3000-\uffef-]$")
# A task, as a response that repeats its prompt has it, is no answer: Compute the divisors that end in 1.
TASK = re.compile(
    r"\W*(?:(?:please|then|first|next|now),? )?(?:find|compute|determine|calculate|what|how|which|prove|show that)\b",
    re.IGNORECASE,
)
MOST_WORDS = 6


def _last_sentence(text: str) -> str:
    """The last sentence, or its last characters, with a mark for what is cut off."""
    text = text.strip()
    last = len(text.rstrip(" .!?。\"')]}\n"))
    start = max((end.end() for end in SENTENCE_END.finditer(text, 0, last)), default=0)
    cut = len(text) - LONGEST_SENTENCE
    return "…" + text[cut:] if cut > start else text[start:].strip()


def _ending(prose: _Prose, sentence: str) -> FinalAnswer | None:
    """What the sentence ends in, or what it says there is."""
    runs = _runs(sentence)
    if not runs or sentence.rstrip("\"')").endswith("?"):
        return None
    run = runs[-1]
    if TASK.match(sentence) and not _computed(sentence, run):
        return None
    before, after = sentence[: run.start], sentence[run.end :].rstrip(" .!。,;\"')*").lstrip(" \"')*")
    if (not _computed(sentence, run) and PARTS.search(before)) or (TO.search(before) and not EQUAL_TO.search(before)):
        return None
    rest = after[len(_unit(after)) :].strip(" .")
    says = not before.strip() or _computed(sentence, run) or SAYS.search(before) or sentence[run.start] == "="
    if rest and not (says and _few_words(rest)):
        return None
    return _read(prose, sentence, run)


def _few_words(text: str) -> bool:
    first, *words = [word.lower() for word in re.findall(r"[^\W\d_]+", text)] or [""]
    plain = re.fullmatch(r"[^\W\d_]+(?:[\s'-]+[^\W\d_]+)*", text)
    odd = NO_NOUNS.intersection(words) - {"and", "or", "to", "for"}
    return bool(plain) and len(words) < MOST_WORDS and first not in NO_NOUNS and not odd


def _unit(after: str) -> str:
    """The beginning of what follows a value that belongs to it: a unit, percent, million."""
    number = re.match(rf"\s*(?:{'|'.join(MULTIPLIERS)}|percent(?:age)?|pct)(?![A-Za-z])\s*", after, re.IGNORECASE)
    start = number.end() if number else 0
    return after[: start + match_unit(after[start:])[1]]


def _read(prose: _Prose, sentence: str, run: _Run) -> FinalAnswer | None:
    """The run's answer, with its unit; none where more of the value follows, as in 68 plus five or 6th."""
    value = sentence[run.start : run.end].lstrip("=:* ").rstrip("!: ")
    after = sentence[run.end :]
    spaced = after.lstrip()
    unit = _unit(spaced)
    next_word = re.match(r"[^\W\d_]+", spaced[len(unit) :].lstrip() if unit else spaced)
    if next_word and (next_word[0].lower() in NO_NOUNS - {"and", "or", "not", "if", "for", "is", "are", "was"}):
        return None
    if (GLUED_AFTER.match(after) and not unit) or GLUED_BEFORE.search(sentence[: run.start]):
        return None
    value = _balanced(value)
    if not value or value[-1] in "=+-*/^<>_":
        return None
    value = re.sub(r"(?<=\d)(?=[mghsL]$)", " ", value)  # in a sentence 5m is a length
    return read_form(prose.restore(value) + (f" {unit}" if unit else ""))


def _balanced(value: str) -> str:
    """Without a bracket at either end whose other half stands elsewhere in the sentence."""
    value = value.strip()
    while value and sum(map(value.count, "([{")) < sum(map(value.count, ")]}")) and value[-1] in ")]}":
        if re.fullmatch(r"[\[(].*[\])]", value):  # [1, 4)
            break
        value = value[:-1].strip()
    while value and sum(map(value.count, "([{")) > sum(map(value.count, ")]}")) and value[0] in "([{":
        value = value[1:].strip()
    return value
