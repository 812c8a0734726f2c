"""What losses on judgements eat: tokens and what was said of them, in three shapes. No torch.

A ``Demonstration`` is to be imitated, a ``Rated`` completion has a value of its own or a sign per token, a ``Preference``
compares two completions of one prompt. Every kind of feedback becomes one of the three before it is learned from; condition
texts (a critique, a control word, a wished direction) are simply part of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from triloop.errors import ConfigError
from triloop.rng import generator

__all__ = [
    "Consumes",
    "Demonstration",
    "Example",
    "Preference",
    "Rated",
    "Row",
    "chain_of_hindsight",
    "consumer",
    "rows_of",
]

Consumes = Literal["demonstrations", "rated", "spans", "pairs"]
"""What an objective learns from. ``spans`` are rated completions with a sign per token."""

Row: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""Prompt tokens, and completion tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A completion to be imitated: a person's, an edit, a refinement, or a winner."""

    prompt_tokens: Sequence[int]
    tokens: Sequence[int]
    mask: Sequence[bool] | None = None
    """True where the token is learned; None: all of them."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        _check_length("mask", self.mask, self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """A completion with a value in [-1, 1], or with a sign per token. 0 means *abstained*."""

    prompt_tokens: Sequence[int]
    tokens: Sequence[int]
    mask: Sequence[bool] | None = None
    value: float = 0.0
    signs: Sequence[float] | None = None
    """One per token in [-1, 1], of spans or steps; 0 where nothing was said. With signs, ``value`` is not read."""
    weight: float = 1.0
    level: str | None = None
    """What the signs are about: ``span``, ``step``, or None."""

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        _check_length("mask", self.mask, self.tokens)
        _check_length("signs", self.signs, self.tokens)
        for value in (self.value, *(self.signs or ())):
            if not -1.0 <= value <= 1.0:
                raise ConfigError(f"a rated completion with the value {value}: expected a number in [-1, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Two completions of one prompt, and how likely the first is the better one."""

    prompt_tokens: Sequence[int]
    first: Sequence[int]
    second: Sequence[int]
    p: float = 1.0
    """P(first preferred): 1, 0, or between where judges disagree or are unsure."""
    tie: bool = False
    """Judged equally good, which is a finding of its own and not the doubt that p = 0.5 alone says. Needs p = 0.5."""
    margin: float = 0.0
    """By how much the better one must lead, in the unit of the objective's difference (see ``preferences.logistic``)."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        if not 0.0 <= self.p <= 1.0:
            raise ConfigError(f"a preference with p={self.p}: expected a probability")
        if self.tie and self.p != 0.5:
            raise ConfigError(f"a tie with p={self.p}: expected 0.5, for neither is the better one")
        if not math.isfinite(self.margin):
            raise ConfigError(f"a preference with margin={self.margin}: expected a finite number")


Example: TypeAlias = Demonstration | Rated | Preference


def _check_weight(weight: float) -> None:
    if not 0.0 <= weight < math.inf:
        raise ConfigError(f"an example with weight={weight}: expected a finite number, at least 0")


def _check_length(what: str, given: Sequence[float] | None, tokens: Sequence[int]) -> None:
    if given is not None and len(given) != len(tokens):
        raise ConfigError(f"{what} of {len(given)} entries for {len(tokens)} tokens: expected one per token")


def consumer(example: Example) -> Consumes:
    """Which kind of objective learns from this example."""
    if isinstance(example, Preference):
        return "pairs"
    if isinstance(example, Demonstration):
        return "demonstrations"
    return "rated" if example.signs is None else "spans"


def rows_of(example: Example) -> list[Row]:
    """The completions of an example, each with its prompt: two for a preference, one otherwise."""
    if isinstance(example, Preference):
        return [(example.prompt_tokens, example.first), (example.prompt_tokens, example.second)]
    return [(example.prompt_tokens, example.tokens)]


def chain_of_hindsight(
    prompt_tokens: Sequence[int],
    chain: Sequence[Row],
    *,
    learn: Literal["last", "all"] = "last",
    hidden: float = 0.0,
    hidden_token: int = 0,
    seed: int = 0,
    weight: float = 1.0,
) -> Demonstration:
    """One demonstration of several outputs in turn, each behind the feedback on it: (feedback tokens, output tokens) pairs.

    The likelihood runs over outputs alone, never over feedback; with ``learn="last"`` over the last output alone, so that
    the earlier ones are read and not imitated. Of the earlier outputs each token is replaced by ``hidden_token`` with
    probability ``hidden``, so that copying does not pay; replaced tokens are not learned. Chain of Hindsight,
    arXiv:2302.02676 section 2 (there ``learn="all"`` and ``hidden=0.15``, by masking attention instead of tokens).
    """
    if not chain:
        raise ConfigError("a chain of hindsight without an output: expected at least one (feedback, output) pair")
    tokens: list[int] = []
    mask: list[bool] = []
    draw = generator(seed, "hindsight", *map(int, prompt_tokens))
    for place, (feedback, output) in enumerate(chain):
        last = place == len(chain) - 1
        hide = [False] * len(output) if last else (draw.random(len(output)) < hidden).tolist()
        tokens += [*feedback, *(hidden_token if h else t for h, t in zip(hide, output, strict=True))]
        mask += [False] * len(feedback) + [(last or learn == "all") and not h for h in hide]
    return Demonstration(prompt_tokens=tuple(prompt_tokens), tokens=tuple(tokens), mask=tuple(mask), weight=weight)
