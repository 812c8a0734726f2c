"""What a reward model learns from: pairs and ratings of texts, with attributes and marked passages. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from triloop.errors import DataError
from triloop.feedback.kinds import Pair, Rubric, Scalar, Spans, Ternary, read
from triloop.learn.examples import Example, Preference, Rated
from triloop.records import Feedback, Prompt

if TYPE_CHECKING:
    from triloop.nn.tokenizer import Tokenizer

__all__ = ["RewardExample", "RewardPair", "RewardRating", "pair_from", "rating_from", "texts_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardPair:
    """Two completions of one prompt, and how likely the first is the better one."""

    prompt: Prompt
    first: str
    second: str
    p: float = 1.0
    """P(first preferred): 1, 0, or between where judges disagree."""
    tie: bool = False
    """Judged equally good. Needs p = 0.5."""
    margin: float = 0.0
    """By how much the better one must lead, in nats of the score."""
    weight: float = 1.0
    attributes: Mapping[str, float] = field(default_factory=dict)
    """P(first preferred) under one attribute alone."""

    def __post_init__(self) -> None:
        _probability("p", self.p)
        for name, p in self.attributes.items():
            _probability(f"attribute {name!r}", p)
        _weight(self.weight)
        if self.tie and self.p != 0.5:
            raise DataError(f"a tie has p={self.p}; expected 0.5, for neither is the better one")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise DataError(f"a pair has margin {self.margin}; expected a finite number, at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRating:
    """One completion and what was said of it. What is None or absent was not asked."""

    prompt: Prompt
    text: str
    value: float | None = None
    """In [-1, 1]."""
    attributes: Mapping[str, float] = field(default_factory=dict)
    """What the output of that name is to be: any finite number."""
    spans: Spans | None = None
    """Marked passages, for a model with an output per token."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        _weight(self.weight)
        if self.value is not None and not -1.0 <= self.value <= 1.0:
            raise DataError(f"a rating has value {self.value}; expected a number in [-1, 1]")
        if not all(math.isfinite(x) for x in self.attributes.values()):
            raise DataError(f"a rating has attributes {dict(self.attributes)}; expected finite numbers")


RewardExample: TypeAlias = RewardPair | RewardRating


def pair_from(prompt: Prompt, first: str, second: str, feedback: Feedback, *, margin: float = 0.0) -> RewardPair | None:
    """What ``pair`` feedback teaches; None for a failure and for any other kind.

    The judge's confidence becomes the label: p = (1 + confidence) / 2 of the preferred one, 1/2 at no confidence; a tie
    weighs as much as it is confident. The better one must lead by ``margin`` times the strength, in nats.
    """
    if feedback.failed or feedback.kind != "pair":
        return None
    said = read(feedback)
    assert isinstance(said, Pair)
    if said.tie:
        return RewardPair(prompt=prompt, first=first, second=second, p=0.5, tie=True, weight=feedback.confidence)
    p = (1 + said.preference * feedback.confidence) / 2
    return RewardPair(prompt=prompt, first=first, second=second, p=p, margin=margin * said.strength)


def rating_from(prompt: Prompt, text: str, feedback: Feedback) -> RewardRating | None:
    """What scalar, ternary, rubric and span feedback teach, weighted by confidence; None for failures and other kinds.

    A rubric's marks become attributes, in [-1, 1].
    """
    if feedback.failed or feedback.kind not in ("scalar", "ternary", "rubric", "spans"):
        return None
    said, weight = read(feedback), feedback.confidence
    if isinstance(said, Scalar | Ternary):
        return RewardRating(prompt=prompt, text=text, value=said.value, weight=weight)
    if isinstance(said, Rubric):
        marks = {name: float(mark) for name, mark in said.marks.items()}
        return RewardRating(prompt=prompt, text=text, value=said.mean, attributes=marks, weight=weight)
    assert isinstance(said, Spans)
    return RewardRating(prompt=prompt, text=text, spans=said, weight=weight)


def texts_of(examples: Sequence[Example], tokenizer: Tokenizer) -> list[RewardExample]:
    """Preferences and rated completions of a policy's tokens as texts; demonstrations and signs teach no score."""
    out: list[RewardExample] = []
    for i, e in enumerate(examples):
        prompt = Prompt(id=f"example-{i}", text=tokenizer.decode(e.prompt_tokens))
        if isinstance(e, Preference):
            first, second = (tokenizer.continuation(e.prompt_tokens, tokens) for tokens in (e.first, e.second))
            out.append(
                RewardPair(
                    prompt=prompt, first=first, second=second, p=e.p, tie=e.tie, margin=e.margin, weight=e.weight
                )
            )
        elif isinstance(e, Rated) and e.signs is None:
            text = tokenizer.continuation(e.prompt_tokens, e.tokens)
            out.append(RewardRating(prompt=prompt, text=text, value=e.value, weight=e.weight))
    return out


def _probability(what: str, p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise DataError(f"{what} of a pair is {p}; expected a probability that the first is the better one")


def _weight(weight: float) -> None:
    if not 0.0 <= weight < math.inf:
        raise DataError(f"an example has weight {weight}; expected a finite number, at least 0")
