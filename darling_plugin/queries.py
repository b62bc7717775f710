"""What OpenRLHF formats, taken apart: a query into its response, for reward functions; a prompt into its question."""

from __future__ import annotations

import re
import unicodedata

FORMS = ("NFC", "NFKC")  # in which tokenizers normalise: Qwen's in the first, SentencePiece's mostly in the second
TAILS = (24, 12)  # characters of the prompt's end, the chat template's: longer ones may hold what is decoded otherwise
LEAST_LEFT = 8  # characters of a prompt that was cut: fewer may be there by chance
LONGEST_CHARACTER = 4  # bytes, of which a cut may leave up to three, decoded as U+FFFD


def response_of(query: str, prompt: str) -> str:
    """What follows the prompt in the query, special tokens included.

    The query need not start with the prompt: tokenizers normalise (a decomposed é, U+212B for Å), some drop spaces
    when they decode, and OpenRLHF cuts a prompt that is too long from the left. Looked for are, in this order, the
    whole prompt, the whole prompt normalised, what a cut left of either, and the prompt's last characters.

    Raises ValueError where none of them is in the query.
    """
    forms = list(dict.fromkeys([prompt, *(unicodedata.normalize(form, prompt) for form in FORMS)]))
    for form in forms:
        if query.startswith(form):
            return query[len(form) :]
    for find in (_after_cut_prompt, _after_tail):
        for form in forms:
            response = find(query, form)
            if response is not None:
                return response
    raise ValueError(
        f"the query does not start with its prompt, not normalised and not cut from the left either: query "
        f"{query[:200]!r}, prompt {prompt[:200]!r}"
    )


def _after_cut_prompt(query: str, prompt: str) -> str | None:
    """After the longest end of the prompt that the query starts with."""
    broken = len(query) - len(query.lstrip("\ufffd"))
    for start in range(min(broken, LONGEST_CHARACTER - 1) + 1):
        anchor = query[start : start + LEAST_LEFT]
        at = prompt.find(anchor) if len(anchor) == LEAST_LEFT else -1
        while at >= 0:
            if query.startswith(prompt[at:], start):
                return query[start + len(prompt) - at :]
            at = prompt.find(anchor, at + 1)
    return None


def _after_tail(query: str, prompt: str) -> str | None:
    """After the last characters of the prompt, which may be in it more than once, as in a conversation."""
    for tail in (prompt[-length:] for length in TAILS if len(prompt) >= length):
        times = min(prompt.count(tail), query.count(tail))
        if times:
            return query.split(tail, times)[-1]
    return None


# Where a turn begins, with its role: ChatML, Llama 3, gpt-oss and Granite; Gemma; Phi, Zephyr and DeepSeek; Mistral.
TURN = re.compile(
    r"<(?:\|(?:im_start|start_header_id|start_of_role|start)\||start_of_turn)>(?P<role>\w+)"
    r"(?:<\|(?:end_header_id|end_of_role|message)\|>)?"
    r"|<[|｜](?P<named>user|assistant|system)[|｜]>"
    r"|(?P<opened>\[INST\])|\[/INST\]",
    re.IGNORECASE,
)
END_OF_TURN = re.compile(r"\s*(?:<\|(?:im_end|eot_id|end|end_of_text|endoftext)\|>|<end_of_turn>|</s>)\s*$")
SYSTEM_IN_TURN = re.compile(r"^\s*<<SYS>>.*?<</SYS>>", re.DOTALL)  # Llama 2


def asked(prompt: str) -> str:
    """What the user asked last, out of the marks of a chat template. A prompt without such marks stays as it is."""
    turns = list(TURN.finditer(prompt))
    ends = [turn.start() for turn in turns[1:]] + [len(prompt)]
    of_user = [
        prompt[turn.end() : end]
        for turn, end in zip(turns, ends, strict=False)
        if turn["opened"] or (turn["role"] or turn["named"] or "").lower() == "user"
    ]
    return SYSTEM_IN_TURN.sub("", END_OF_TURN.sub("", of_user[-1])).strip() if of_user else prompt
