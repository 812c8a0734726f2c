"""Sequences without padding and without repetition: the layout that training and scoring run on.

A causal decoder's state at a token is a function of the tokens up to it. Completions of one prompt share that prompt, and
whatever they begin with alike; everything but attention itself is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from triloop.kernels import native, train

__all__ = ["Packing", "gathered", "packing", "prefix_tree", "spread"]


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a pack stand in the sequences.

    Attention works on slots, the right-padded [sequences, longest] layout; everything else on the packed tokens.
    """

    lengths: tuple[int, ...]
    """Of the sequences, in tokens."""
    positions: Int[Tensor, " tokens"]
    slots: Int[Tensor, " tokens"]
    """One slot of each packed token, its first."""
    source: Int[Tensor, " slots"]
    """The packed token of each slot; 0 behind a sequence's end, where nobody looks."""
    order: Int[Tensor, " total"] | None = None
    """The packed token of each token of the sequences laid end to end; None where the pack is just that."""

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def size(self) -> int:
        """Number of slots."""
        return len(self.lengths) * self.longest

    @property
    def dense(self) -> bool:
        """Whether packed tokens and slots are the same thing: nothing is shared, nothing padded."""
        return self.order is None and len(self.slots) == self.size

    @cached_property
    def walk(self) -> Tensor:
        """How the compiled attention goes through the pack."""
        tokens = len(self.positions)
        order = torch.arange(tokens) if self.order is None else self.order
        return train.plan_walk(order, self.lengths, tokens)


def packing(lengths: list[int], device: torch.device | str = "cpu") -> Packing:
    """Layout of sequences of these lengths (tokens, each at least 1) laid end to end, with nothing shared."""
    longest = max(lengths)
    counts = torch.tensor(lengths)
    row = torch.repeat_interleave(torch.arange(len(lengths)), counts)
    first = torch.cumsum(counts, 0) - counts
    positions = torch.arange(int(counts.sum())) - first[row]
    slots = row * longest + positions
    source = torch.zeros(len(lengths) * longest, dtype=torch.long).index_copy_(0, slots, torch.arange(len(slots)))
    return Packing(tuple(lengths), positions.to(device), slots.to(device), source.to(device))


def prefix_tree(
    sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, " tokens"], Packing]:
    """The tokens of these sequences (each at least 1 long), those with the same history once, and their layout."""
    lengths = tuple(map(len, sequences))
    if native.available():
        flat = np.fromiter(chain.from_iterable(sequences), np.int64, sum(lengths))
        made = train.prefix_tree(torch.from_numpy(flat), torch.tensor(lengths))
        pack, *where = (x.to(device) for x in made)
        return pack, Packing(lengths, *where)
    longest = max(map(len, sequences))
    nodes: dict[tuple[int, int], int] = {}
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    source: list[int] = []
    order: list[int] = []
    for row, sequence in enumerate(sequences):
        node = -1
        for at, token in enumerate(sequence):
            fresh = len(ids)
            node = nodes.setdefault((node, token), fresh)
            if node == fresh:
                ids.append(token)
                positions.append(at)
                slots.append(row * longest + at)
            order.append(node)
        source += order[len(order) - len(sequence) :]
        source += [0] * (longest - len(sequence))
    pack, *where = (torch.tensor(x, device=device) for x in (ids, positions, slots, source, order))
    return pack, Packing(lengths, *where)


class _Spread(torch.autograd.Function):
    """A token's gradient is the sum over the slots that show it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor) -> Tensor:
        ctx.save_for_backward(source)
        ctx.tokens = x.shape[0]
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (source,) = ctx.saved_tensors
        # Adds rows to rows, an order of magnitude faster than index_add_. Many rows may meet in one: sum them in fp32.
        total = torch.ops.aten.embedding_dense_backward(grad.float(), source, ctx.tokens, -1, False)
        return total.to(grad.dtype), None


class _Gathered(torch.autograd.Function):
    """Every slot is read at most once, so the gradient is a plain scatter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.total = x.shape[0]
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return grad.new_zeros(ctx.total, grad.shape[1]).index_copy_(0, slots, grad), None


def spread(x: Float[Tensor, "tokens width"], where: Packing) -> Float[Tensor, "slots width"]:
    """Packed tokens into every slot that shows them. Slots behind a sequence's end hold some other token."""
    return x if where.dense else _Spread.apply(x, where.source)


def gathered(x: Float[Tensor, "slots width"], where: Packing) -> Float[Tensor, "tokens width"]:
    """Each packed token from one of its slots."""
    return x if where.dense else _Gathered.apply(x, where.slots)
