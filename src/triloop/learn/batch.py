"""What the learner is given: ragged tokens, and one padded tensor per quantity over the completions' positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from triloop.errors import ConfigError
from triloop.learn.reduction import Denominators

__all__ = ["AnyBatch", "Batch", "TokenBatch", "TokenOutputs", "micro_batches", "minibatches", "pad", "supervised_batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOutputs:
    """What a forward pass says of each completion token, aligned with the batch; anything where its mask is false."""

    logp: Float[Tensor, "batch time"]
    """log p(token) in nats, at the temperature that it was sampled with."""
    entropy: Float[Tensor, "batch time"] | None = None
    """Entropy of the next-token distribution in nats. None where the backend saved itself the work."""
    values: Float[Tensor, "batch time"] | None = None
    """Value of the state in which the token was chosen. None without a value head."""
    alternatives: Float[Tensor, "batch time rank"] | None = None
    """log p of the most likely tokens other than this one, likeliest first. None unless the batch asks for them."""
    heads: Float[Tensor, "batch time outputs"] | None = None
    """All outputs of a value head that has several, ``values`` being the first. None with fewer."""

    def rows(self, index: Sequence[int], time: int) -> TokenOutputs:
        """Those rows, in that order, and their first ``time`` tokens."""
        picked = list(index)

        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[picked, :time]

        return TokenOutputs(
            logp=self.logp[picked, :time],
            entropy=cut(self.entropy),
            values=cut(self.values),
            alternatives=cut(self.alternatives),
            heads=cut(self.heads),
        )


class TokenBatch(Protocol):
    """What the learner needs to know of a batch, whatever its losses read."""

    @property
    def prompt_tokens(self) -> list[list[int]]: ...

    @property
    def tokens(self) -> list[list[int]]: ...

    @property
    def mask(self) -> Tensor:
        """[batch time]: true where the loss looks at the token."""
        ...

    @property
    def denominators(self) -> Denominators:
        """Of the whole batch, however little of it this is."""
        ...

    @property
    def alternatives(self) -> int:
        """How many of the most likely other tokens the loss compares each token with; 0 for none."""
        ...

    def __len__(self) -> int: ...

    def units(self) -> list[range]:
        """Rows that a loss reads together, and that no division of the batch may part; in order, each row once."""
        ...

    def rows(self, index: Sequence[int]) -> Self:
        """Those rows, in that order, padded to the longest of them only. The denominators stay those of the whole."""
        ...

    def counted_as(self, denominators: Denominators) -> Self:
        """The same rows with other denominators."""
        ...


AnyBatch = TypeVar("AnyBatch", bound=TokenBatch)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Rows are completions, the groups of a prompt together; columns their tokens, right-padded to the longest."""

    prompt_tokens: list[list[int]]
    tokens: list[list[int]]
    mask: Bool[Tensor, "batch time"]
    """True where the policy chose the token: not on padding, not on observations."""
    advantage: Float[Tensor, "batch time"]
    logp_old: Float[Tensor, "batch time"]
    """Under the policy that ratios start from, nats."""
    reward: Float[Tensor, " batch"]
    """As judged, before shaping."""
    positive: Bool[Tensor, " batch"]
    """Whether the row counts as a success."""
    success: Float[Tensor, " batch"]
    """Share of successes in the row's group."""
    denominators: Denominators
    """Of the whole batch, including the rows that were left out because their gradient is zero."""
    episode: list[int]
    """Position of each row's episode in what the batch was built from."""
    logp_ref: Float[Tensor, "batch time"] | None = None
    values_old: Float[Tensor, "batch time"] | None = None
    returns: Float[Tensor, "batch time"] | None = None
    weight: Float[Tensor, "batch time"] | None = None
    """Importance weight of the surrogate; None is 1 everywhere."""

    @property
    def alternatives(self) -> int:
        """None of the losses over such a batch looks at other tokens."""
        return 0

    def units(self) -> list[range]:
        """Every row by itself."""
        return [range(i, i + 1) for i in range(len(self))]

    def counted_as(self, denominators: Denominators) -> Batch:
        """The same rows with other denominators."""
        return replace(self, denominators=denominators)

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Sequence[int]) -> Batch:
        """Those rows, in that order, padded to the longest of them only. The denominators stay those of the whole."""
        picked = list(index)
        tokens = [self.tokens[i] for i in picked]
        time = max((len(row) for row in tokens), default=0)
        which = torch.tensor(picked, dtype=torch.long)  # once: a list becomes a tensor whenever it is an index

        def cut(x: Tensor) -> Tensor:
            return x[which, :time]

        def maybe(x: Tensor | None) -> Tensor | None:
            return None if x is None else cut(x)

        return Batch(
            prompt_tokens=[self.prompt_tokens[i] for i in picked],
            tokens=tokens,
            mask=cut(self.mask),
            advantage=cut(self.advantage),
            logp_old=cut(self.logp_old),
            reward=self.reward[which],
            positive=self.positive[which],
            success=self.success[which],
            denominators=self.denominators,
            episode=[self.episode[i] for i in picked],
            logp_ref=maybe(self.logp_ref),
            values_old=maybe(self.values_old),
            returns=maybe(self.returns),
            weight=maybe(self.weight),
        )

    def token_count(self) -> int:
        """Tokens that a forward pass without padding sees: prompts and completions."""
        return sum(_row_size(self, i) for i in range(len(self)))


def _row_size(batch: TokenBatch, i: int) -> int:
    return len(batch.prompt_tokens[i]) + len(batch.tokens[i])


def micro_batches(batch: AnyBatch, max_tokens: int, *, shared: int = 0) -> Iterator[AnyBatch]:
    """Consecutive units, as many at a time as hold at most ``max_tokens`` tokens, prompts included.

    Memory grows with tokens, not rows. In rows of up to ``shared`` tokens those with the same history count once, for a
    network that computes them once. A single unit (a row, or the rows that its loss reads together) longer than that
    stands alone. Losses of the pieces, taken with ``batch.denominators``, add up to the loss of the whole.
    """
    if max_tokens < 1:
        raise ConfigError(f"max_tokens={max_tokens} of a micro-batch: expected at least 1")
    start, held = 0, _Held(batch, shared)
    for unit in batch.units():
        held.add(unit)
        if unit.start > start and held.tokens > max_tokens:
            yield batch.rows(range(start, unit.start))
            start, held = unit.start, _Held(batch, shared)
            held.add(unit)
    if start < len(batch):
        yield batch.rows(range(start, len(batch)))


class _Held:
    """Tokens of the rows so far."""

    def __init__(self, batch: TokenBatch, shared: int) -> None:
        self.batch, self.shared, self.tokens = batch, shared, 0
        self._after: dict[tuple[int, int], int] = {}  # a history by the one before it and its last token

    def add(self, unit: range) -> None:
        for i in unit:
            size = _row_size(self.batch, i)
            self.tokens += self._fresh(i) if size <= self.shared else size

    def _fresh(self, i: int) -> int:
        """Histories of this row that no row before it has."""
        after, history, before = self._after, 0, len(self._after)
        for token in chain(self.batch.prompt_tokens[i], self.batch.tokens[i]):
            history = after.setdefault((history, token), len(after) + 1)
        return len(after) - before


def minibatches(batch: AnyBatch, n: int, order: Sequence[int] | None = None) -> list[AnyBatch]:
    """``n`` parts of nearly equal size for ``n`` optimiser steps; fewer when there are fewer units.

    ``order`` is a permutation of the batch's units, which are its rows unless losses read several together (default: as
    they stand). Each part's denominators are an equal share of the whole's, so that the mean of the parts' gradients is
    the gradient of the whole, however the units fall.
    """
    if n <= 1 and order is None:
        return [batch]
    units = batch.units()
    order = range(len(units)) if order is None else order
    if sorted(order) != list(range(len(units))):
        raise ConfigError(f"order of {len(order)} rows: expected a permutation of the batch's {len(units)} rows")
    n = max(1, min(n, len(units)))
    whole = batch.denominators
    share = replace(whole, tokens=whole.tokens / n, sequences=whole.sequences / n)
    cuts = [len(order) * k // n for k in range(n + 1)]
    return [batch.rows([i for u in order[a:b] for i in units[u]]).counted_as(share) for a, b in pairwise(cuts)]


def pad(
    rows: Sequence[Any], time: int | None = None, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch time"]:
    """Ragged rows (lists, arrays or tensors of numbers) to one tensor, zeros to the right."""
    lengths = [len(row) for row in rows]
    width = max(lengths, default=0) if time is None else time
    out = torch.zeros(len(rows), width, dtype=dtype)
    if any(lengths):  # all rows at once: one by one takes longer than all else that makes a batch
        if all(isinstance(row, (list, tuple)) for row in rows):
            flat = torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.float64, sum(lengths))).to(dtype)
        else:
            flat = torch.cat([torch.as_tensor(row, dtype=dtype) for row in rows])
        out[torch.arange(width) < torch.tensor(lengths)[:, None]] = flat
    return out


def supervised_batch(
    prompt_tokens: Sequence[Sequence[int]],
    tokens: Sequence[Sequence[int]],
    masks: Sequence[Sequence[bool]] | None = None,
) -> Batch:
    """Demonstrations as a batch for ``update.supervised_loss``: every completion token, or those under ``masks``."""
    width = max((len(row) for row in tokens), default=0)
    mask = pad([[1.0] * len(row) for row in tokens] if masks is None else masks, width) > 0
    n = len(tokens)
    return Batch(
        prompt_tokens=[list(row) for row in prompt_tokens],
        tokens=[list(row) for row in tokens],
        mask=mask,
        advantage=mask.float(),
        logp_old=torch.zeros(n, width),
        reward=torch.ones(n),
        positive=torch.ones(n, dtype=torch.bool),
        success=torch.ones(n),
        denominators=Denominators(tokens=float(mask.sum()), sequences=float(n), max_tokens=max(1, width)),
        episode=list(range(n)),
    )
