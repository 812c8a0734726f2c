"""What a judgement says: one frozen record per kind, each refusing with ``DataError`` what no judgement can mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from triloop.errors import DataError

__all__ = [
    "Abstention",
    "Content",
    "Edit",
    "Pair",
    "Ranking",
    "Rubric",
    "Scalar",
    "Sign",
    "Span",
    "Spans",
    "Steps",
    "Ternary",
    "Text",
    "check_number",
]

Sign = Literal[-1, 0, 1]


@dataclass(frozen=True, slots=True)
class Scalar:
    """How good, in [-1, 1]."""

    value: float

    def __post_init__(self) -> None:
        """Refuse what is no number in range."""
        check_number("the value of a scalar", self.value, -1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Ternary:
    """+1 good, -1 bad, 0 abstained or cannot tell."""

    value: Sign

    def __post_init__(self) -> None:
        """Refuse any other number."""
        _sign("the value of a ternary", self.value)


@dataclass(frozen=True, slots=True)
class Pair:
    """Of two: +1 the first is better, -1 the second, 0 a tie. ``strength`` in (0, 1] says how much; a tie has 0."""

    preference: Sign
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a preference without strength and a tie with one; ``Pair(0)`` is a tie."""
        _sign("the preference of a pair", self.preference)
        check_number("the strength of a pair", self.strength, 0.0, 1.0)
        if self.preference and not self.strength:
            raise DataError("a pair prefers one side with strength 0; expected above 0, or preference 0 for a tie")
        if not self.preference and self.strength not in (0.0, 1.0):
            raise DataError(f"a tie has strength {self.strength!r}; expected none: a tie is Pair(0)")
        if not self.preference:
            object.__setattr__(self, "strength", 0.0)

    @property
    def tie(self) -> bool:
        """Whether neither side is better."""
        return self.preference == 0


@dataclass(frozen=True, slots=True)
class Ranking:
    """Groups of positions in ``about``, the best group first; positions of one group are equally good."""

    order: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Every position from 0 once, no empty group, at least two of them."""
        object.__setattr__(self, "order", tuple(tuple(group) for group in self.order))
        named = [k for group in self.order for k in group]
        whole = all(_whole(k) for k in named)
        if not whole or sorted(named) != list(range(len(named))) or len(named) < 2 or not all(self.order):
            raise DataError(
                f"a ranking orders {self.order!r}; expected groups that name each position 0, 1, 2, ... once, the best "
                "group first, such as ((2,), (0, 1))"
            )

    @property
    def size(self) -> int:
        """How many things it ranks."""
        return sum(map(len, self.order))


@dataclass(frozen=True, slots=True)
class Rubric:
    """Each criterion with its own ternary mark; the mean of the marks is the value."""

    marks: Mapping[str, Sign]

    def __post_init__(self) -> None:
        """Refuse an empty rubric, an unnamed criterion and a mark that is not ternary."""
        object.__setattr__(self, "marks", dict(self.marks))
        if not self.marks or not all(_filled(name) for name in self.marks):
            raise DataError(f"a rubric has criteria {list(self.marks)!r}; expected at least one, each with a name")
        for name, mark in self.marks.items():
            _sign(f"the mark of criterion {name!r}", mark)

    @property
    def mean(self) -> float:
        """Of the marks, all criteria alike."""
        return sum(self.marks.values()) / len(self.marks)


@dataclass(frozen=True, slots=True)
class Steps:
    """One ternary per step of the completion, in order."""

    signs: tuple[Sign, ...]

    def __post_init__(self) -> None:
        """Refuse a judgement of no steps and a sign that is not ternary."""
        object.__setattr__(self, "signs", tuple(self.signs))
        if not self.signs:
            raise DataError("a judgement of steps has no step; expected one sign for each step")
        for k, sign in enumerate(self.signs, start=1):
            _sign(f"step {k}", sign)


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start <= k < end`` of the completion's text are good, bad, or neither."""

    start: int
    end: int
    sign: Sign
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse an empty or backward span."""
        if not (_whole(self.start) and _whole(self.end) and 0 <= self.start < self.end):
            raise DataError(
                f"a span runs from {self.start!r} to {self.end!r}; expected whole numbers, 0 <= start < end"
            )
        _sign("the sign of a span", self.sign)
        _text("the note of a span", self.note)


@dataclass(frozen=True, slots=True)
class Spans:
    """Marked passages, in the order they were marked; none says that nothing was worth marking."""

    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        """Refuse what is no span."""
        object.__setattr__(self, "spans", tuple(self.spans))
        for span in self.spans:
            if not isinstance(span, Span):
                raise DataError(f"spans hold {span!r}; expected Span(start, end, sign, note)")


@dataclass(frozen=True, slots=True)
class Text:
    """A critique in words, and, where its author said so, whether it is praise (+1), blame (-1) or neither (0)."""

    critique: str
    sign: Sign | None = None

    def __post_init__(self) -> None:
        """Refuse an empty critique."""
        _text("a critique", self.critique, filled=True)
        if self.sign is not None:
            _sign("the sign of a critique", self.sign)


@dataclass(frozen=True, slots=True)
class Edit:
    """A better text for the one that was judged: revised > original. ``by`` says who or what wrote it."""

    revised: str
    by: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no text. An empty revision is one: to say nothing may be better."""
        _text("a revision", self.revised)
        _text("the author of a revision", self.by)


@dataclass(frozen=True, slots=True)
class Abstention:
    """The judge looked and would not say; its value is 0, and that is trained on like any other."""

    reason: str = ""

    def __post_init__(self) -> None:
        """Refuse a reason that is no text."""
        _text("the reason of an abstention", self.reason)


Content = Scalar | Ternary | Pair | Ranking | Rubric | Steps | Spans | Text | Edit | Abstention


def check_number(what: str, value: object, low: float, high: float) -> None:
    """``DataError`` unless ``value`` is a plain number, not NaN and not a boolean, from ``low`` to ``high``."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high:
        return
    span = (
        f"in [{low:g}, {high:g}]" if high < math.inf else "that is finite" + (f", at least {low:g}" * (low > -math.inf))
    )
    raise DataError(f"{what} is {value!r}; expected a number {span}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _filled(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _sign(what: str, value: object) -> None:
    if not _whole(value) or value not in (-1, 0, 1):
        raise DataError(f"{what} is {value!r}; expected -1, 0 or 1")


def _text(what: str, value: object, *, filled: bool = False) -> None:
    if not isinstance(value, str) or (filled and not _filled(value)):
        raise DataError(f"{what} is {value!r}; expected {'some ' if filled else ''}text")
