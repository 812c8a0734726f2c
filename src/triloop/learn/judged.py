"""A batch of judged completions for the one trainer: any kinds of examples together, pairs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from triloop.errors import ConfigError
from triloop.learn.examples import Consumes
from triloop.learn.reduction import Denominators

__all__ = ["JudgedBatch", "Pairs"]


class Pairs(NamedTuple):
    """What was said of the pairs of a batch, one entry each."""

    p: Tensor
    tie: Tensor
    margin: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedBatch:
    """Rows are completions, right-padded to the longest; the two of a pair stand next to each other and stay together."""

    prompt_tokens: list[list[int]]
    tokens: list[list[int]]
    mask: Bool[Tensor, "batch time"]
    """True where the loss looks at the token."""
    example: list[int]
    """Position of each row's example in what the batch was built from. Rows of one example are one unit."""
    kind: list[Consumes]
    value: Float[Tensor, " batch"]
    """Of rated completions in [-1, 1], before ``balance``; 0 elsewhere."""
    signs: Float[Tensor, "batch time"]
    """Of spans in [-1, 1]; 0 elsewhere."""
    p: Float[Tensor, " batch"]
    """Of pairs: chance that the first is preferred, on both of its rows; so are ``tie`` and ``margin``."""
    tie: Bool[Tensor, " batch"]
    margin: Float[Tensor, " batch"]
    scale: Float[Tensor, " batch"]
    """What the row's unit counts in the loss: its weight over the mean of its kind, times the coefficient."""
    denominators: Denominators
    """Of the whole batch; ``sequences`` counts units."""
    logp_ref: Float[Tensor, "batch time"] | None = None
    """Under the reference, nats; anything in rows whose objective needs none."""
    logp_old: Float[Tensor, "batch time"] | None = None
    """Under the policy before the update, nats."""
    baseline: float | None = None
    """KTO's z0 of the whole batch, nats; the same number in every part of it."""
    alternatives: int = 0
    """How many of the most likely other tokens the losses look at."""

    def __len__(self) -> int:
        return len(self.tokens)

    def units(self) -> list[range]:
        """The rows of each example, in order."""
        found, start = [], 0
        for _, rows in groupby(self.example):
            end = start + sum(1 for _ in rows)
            found.append(range(start, end))
            start = end
        return found

    def of(self, kind: Consumes) -> list[int]:
        """The rows of that kind, in order."""
        return [i for i, k in enumerate(self.kind) if k == kind]

    def pairs(self) -> Pairs:
        """For a batch of pairs alone: what was said of each. ``ConfigError`` when a pair was torn apart."""
        if len(self) % 2 or self.example[0::2] != self.example[1::2]:
            raise ConfigError("a pair without its other half: take rows of a judged batch by its units()")
        return Pairs(self.p[0::2], self.tie[0::2], self.margin[0::2])

    def counted_as(self, denominators: Denominators) -> JudgedBatch:
        """The same rows with other denominators."""
        return replace(self, denominators=denominators)

    def rows(self, index: Sequence[int]) -> JudgedBatch:
        """Those rows, in that order, padded to the longest of them only. The denominators stay those of the whole."""
        picked = list(index)
        tokens = [self.tokens[i] for i in picked]
        time = max((len(row) for row in tokens), default=0)

        def cut(x: Tensor) -> Tensor:
            return x[picked, :time]

        return replace(
            self,
            prompt_tokens=[self.prompt_tokens[i] for i in picked],
            tokens=tokens,
            mask=cut(self.mask),
            example=[self.example[i] for i in picked],
            kind=[self.kind[i] for i in picked],
            value=self.value[picked],
            signs=cut(self.signs),
            p=self.p[picked],
            tie=self.tie[picked],
            margin=self.margin[picked],
            scale=self.scale[picked],
            logp_ref=None if self.logp_ref is None else cut(self.logp_ref),
            logp_old=None if self.logp_old is None else cut(self.logp_old),
        )
