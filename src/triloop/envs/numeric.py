"""The number that a worked answer comes to: found in text, read exactly, compared exactly.

final_number("... so 5 * 2 = 10 apples.\\n#### 10")   ->  Fraction(10)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Found", "boxed", "final_answer", "final_number", "read_number", "same"]

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?P<sign>[-\u2212+]\s?)?\\?\$?\s?(?P<sign2>[-\u2212])?"
    rf"(?:\\[dt]?frac\{{(?P<up>[0-9]+)\}}\{{(?P<down>[0-9]+)\}}|(?P<plain>{_DIGITS})(?:\s?/\s?(?P<over>[0-9]+)(?![0-9]))?)"
)
_LONGEST = 60
"""Digits. A longer run is not an answer but a policy that lost its way, and costs time to read."""
_MARKERS = (
    ("####", re.compile(r"####\s*(.*)")),
    ("A:", re.compile(r"(?:^|\n)[ \t]*A:\s*(.*)")),
    ("answer is", re.compile(r"\banswer[ \t]*(?:is\b[ \t]*:?|[:=])\s*(.*)", re.IGNORECASE)),
)
_CLOSE = Fraction(1, 10**9)
"""Relative tolerance: what binary arithmetic adds to a decimal (0.30000000000000004), and no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The final answer of a text: its words, and its number when it is one."""

    text: str
    number: Fraction | None
    by: str
    """How it was found: ``####``, ``boxed``, ``A:``, ``answer is`` or ``last number``."""


def final_answer(text: str) -> Found | None:
    """The final answer as its writer marked it, last mark of the first kind that is there, else the last number.

    Kinds in order: ``#### x``, ``\\boxed{x}``, a line ``A: x``, ``the answer is x`` (or ``answer: x``). None when there is
    neither mark nor number. A mark without a number is found, with ``number`` None.
    """
    for by, marker in _MARKERS:
        if by == "A:" and (inside := boxed(text)) is not None:
            return Found(text=inside, number=_only(inside), by="boxed")
        if (tail := _last(marker, text)) is not None:
            # "the answer is 2 * 5 = 10": what is worked out stands after the last equals sign.
            return Found(text=tail, number=_only(tail.rpartition("=")[2]), by=by)
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    return Found(text=matches[-1][0].strip(), number=_value(matches[-1]), by="last number")


def final_number(text: str) -> Fraction | None:
    """The number of ``final_answer``, or None."""
    found = final_answer(text)
    return None if found is None else found.number


def read_number(text: str) -> Fraction | None:
    """The number that this text is, and nothing besides: ``$1,000.50``, ``-3``, ``5.00``, ``1/2``, ``50%``; else None."""
    match = _NUMBER.fullmatch(text.strip().rstrip(".").rstrip("%\\ ").strip("$ "))
    return None if match is None else _value(match)


def same(a: Fraction, b: Fraction) -> bool:
    """Equal, up to what binary floating point adds."""
    return abs(a - b) <= _CLOSE * max(Fraction(1), abs(a), abs(b))


def boxed(text: str) -> str | None:
    """What the last ``\\boxed{...}`` holds, braces balanced; None without one or when it is never closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for k in range(start + 6, len(text)):
        depth += {"{": 1, "}": -1}.get(text[k], 0)
        if depth == 0:
            return text[start + 7 : k].strip()
    return None


def _last(marker: re.Pattern[str], text: str) -> str | None:
    """What follows the last mark on its line."""
    tails = [match[1].strip() for match in marker.finditer(text)]
    return tails[-1] if tails else None


def _only(text: str) -> Fraction | None:
    """The number that a short answer gives: the first one in it."""
    match = _NUMBER.search(text)
    return None if match is None else _value(match)


def _value(match: re.Match[str]) -> Fraction | None:
    up = match["up"] or match["plain"]
    down = match["down"] or match["over"] or "1"
    if len(up) > _LONGEST or len(down) > _LONGEST or int(down) == 0:
        return None
    value = Fraction(up.replace(",", "")) / int(down)
    signs = [s for s in (match["sign"], match["sign2"]) if s and s.strip() in "-\u2212"]
    return -value if len(signs) % 2 else value
