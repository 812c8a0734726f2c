"""What a label of somebody else's data set says: words, truth values and numbers as judgements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from triloop.errors import DataError
from triloop.feedback.contents import Pair, Scalar, Ternary
from triloop.feedback.conversions_values import sign_of

__all__ = ["Labels", "Scheme", "settle"]

Scheme = Literal["auto", "binary", "ternary", "scalar"]
"""``binary``: 0 is bad. ``ternary``: 0 is *cannot tell*. ``scalar``: any number in [-1, 1], or on the given scale."""

_GOOD = ("good", "yes", "true", "positive", "up", "accept", "accepted", "pass", "passed", "correct", "right", "+")
_BAD = ("bad", "no", "false", "negative", "down", "reject", "rejected", "fail", "failed", "incorrect", "wrong", "-")
_UNSURE = ("neutral", "abstain", "cannot tell", "unsure", "unknown", "skip", "skipped")
_WORDS = {**dict.fromkeys(_GOOD, 1), **dict.fromkeys(_BAD, -1), **dict.fromkeys(_UNSURE, 0)}

_FIRST = ("a", "a>b", "a>>b", "first", "left", "model_a", "response_a", "chosen")
_SECOND = ("b", "b>a", "b>>a", "a<b", "a<<b", "second", "right", "model_b", "response_b", "rejected")
_TIE = ("tie", "a=b", "b=a", "same", "equal", "both", "neither", "tie (bothbad)", "bothbad", "draw")
_SIDES = {**dict.fromkeys(_FIRST, 1), **dict.fromkeys(_SECOND, -1), **dict.fromkeys(_TIE, 0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """How labels are read."""

    scheme: Scheme = "auto"
    words: Mapping[str, float] = field(default_factory=dict)
    """The user's own words, lower case, and the numbers that they stand for."""
    scale: tuple[float, float] | None = None
    """Lowest and highest mark; mapped linearly to -1 and +1."""

    def judgement(self, label: object) -> Ternary | Scalar:
        """Of one response. ``DataError`` says what would make the label readable."""
        if (word := self._own(label)) is not None:
            return _number_as(word, "auto")
        if isinstance(label, bool):
            return Ternary(1 if label else -1)
        number = _number(label)
        if number is None:
            if isinstance(label, str) and (known := _WORDS.get(label.strip().casefold())) is not None:
                return Ternary(sign_of(known))
            raise DataError(
                f"label is {label!r:.60}; expected a number, true or false; say what it means with --words {_hint(label)}=1"
            )
        if self.scale is not None:
            low, high = self.scale
            if not low <= number <= high:
                raise DataError(f"label is {number:g}; expected a number on the scale from {low:g} to {high:g}")
            return Scalar(min(1.0, max(-1.0, 2 * (number - low) / (high - low) - 1)))
        return _number_as(number, self.scheme)

    def preference(self, label: object) -> Pair:
        """Of the first of two over the second: a word such as ``a``, ``A>B`` or ``tie``, or a number in [-1, 1]."""
        number = self._own(label)
        if number is None and isinstance(label, str):
            number = _SIDES.get(label.strip().casefold())
        if number is None:
            number = _number(label)
        if number is None or isinstance(label, bool) or not -1.0 <= number <= 1.0:
            raise DataError(
                f"preference is {label!r:.60}; expected a, b, tie, A>B or a number in [-1, 1]; say what it means with "
                f"--words {_hint(label)}=1"
            )
        return Pair(sign_of(number), abs(number))

    def _own(self, label: object) -> float | None:
        """What the user said that this label means; a number is looked up as it is written."""
        if not self.words or not isinstance(label, str | int | float):
            return None
        return self.words.get(str(label).strip().casefold())


def settle(labels: Labels, seen: Iterable[object]) -> Labels:
    """``auto`` decided by the labels at the head of the file, so that every row is read one way.

    Whole numbers of which none is -1 and some are 0 could mean either; that is refused, since a 0 that means *bad* and a 0
    that means *cannot tell* train in opposite directions.
    """
    if labels.scheme != "auto" or labels.scale is not None:
        return labels
    numbers = {
        number
        for label in seen
        if not isinstance(label, bool) and labels._own(label) is None and (number := _number(label)) is not None
    }
    if any(abs(number) > 1 for number in numbers):
        return labels  # the first of them is refused with its row
    if any(number not in (-1, 0, 1) for number in numbers):
        return Labels(scheme="scalar", words=labels.words)
    if 0 in numbers and -1 not in numbers:
        raise DataError(
            "the labels are 0 and 1 alone, which can mean two things; say --labels binary (0 is bad) or --labels ternary "
            "(0 is cannot tell)"
        )
    return Labels(scheme="ternary", words=labels.words)


def _number_as(number: float, scheme: Scheme) -> Ternary | Scalar:
    if not -1.0 <= number <= 1.0:
        raise DataError(
            f"label is {number:g}; expected a number in [-1, 1]: give the marks' range with --scale LOW,HIGH"
        )
    if scheme == "binary":
        if number not in (0, 1):
            raise DataError(f"label is {number:g}; expected 0 or 1, since --labels is binary")
        return Ternary(1 if number else -1)
    if scheme == "scalar" or (scheme == "auto" and number not in (-1, 0, 1)):
        return Scalar(number)
    if number not in (-1, 0, 1):
        raise DataError(f"label is {number:g}; expected -1, 0 or 1: say --labels scalar for any number in [-1, 1]")
    return Ternary(sign_of(number))


def _number(label: Any) -> float | None:
    """The number that a label is or spells; None for anything else."""
    if isinstance(label, bool) or not isinstance(label, int | float | str):
        return None
    try:
        number = float(label)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _hint(label: object) -> str:
    return str(label).strip()[:20].replace(" ", "_") or "WORD"
