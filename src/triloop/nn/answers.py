"""What a decoder's projections answered for the tokens of a rollout, kept for the learner.

Where the sampler computes what the learner computes, to the last bit, the learner's forward pass would multiply the same
numbers a second time. It takes the answers that were kept instead, and multiplies for its gradients only. What a token's
answers are follows from the weights and the tokens before it, so they are found by those: a token whose answers were not
kept, or were forgotten because a weight has changed, is computed as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from triloop.kernels.calls import Call, Count
from triloop.kernels.panels import Known
from triloop.nn.decoder import DecoderConfig, Projection
from triloop.nn.packing import Packing

__all__ = ["Answers", "Recalled", "numbers_per_token"]

NONE = -1
"""The slot of a token whose answers are not kept."""


def numbers_per_token(c: DecoderConfig) -> int:
    """How many numbers the projections of all layers answer for one token."""
    return c.num_layers * sum(_widths(c).values())


def _widths(c: DecoderConfig) -> dict[Projection, int]:
    return {"qkv": c.qkv_size, "out": c.hidden_size, "gate_up": 2 * c.intermediate_size, "down": c.hidden_size}


@final
class Answers:
    """Room for the answers of ``capacity`` tokens, in fp32. Each token that is kept has a slot."""

    def __init__(self, config: DecoderConfig, capacity: int) -> None:
        widths = _widths(config)
        self.capacity = capacity
        self.held = [{name: torch.empty(capacity, widths[name]) for name in get_args(Projection)}
                     for _ in range(config.num_layers)]  # fmt: skip
        self._stamp: object = None
        self._used = 0
        self._noted: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._slots: dict[bytes, Int[np.ndarray, " tokens"]] = {}  # by the tokens of a sequence

    def begin(self, stamp: object) -> None:
        """What comes is computed by the weights that ``stamp`` stands for; what others computed is forgotten."""
        if stamp != self._stamp:
            self._stamp, self._used = stamp, 0
            self._slots.clear()
            self._noted.clear()

    @property
    def tokens(self) -> int:
        """How many have a slot."""
        return self._used

    def take(self, wanted: Tensor) -> Int[Tensor, " rows"]:
        """Slots for the rows where ``wanted`` is true; NONE for the others, and when there is no room left."""
        rows = np.flatnonzero(wanted.numpy())[: self.capacity - self._used]
        slots = np.full(len(wanted), NONE)
        slots[rows] = np.arange(self._used, self._used + len(rows))
        self._used += len(rows)
        return torch.from_numpy(slots)

    def lines(self, index: int, name: Projection, slots: Int[Tensor, " n"]) -> Float[Tensor, "n out"] | None:
        """The memory of these slots of ``take``, to be written there at once; None unless all rows got one."""
        first, last = int(slots[0]), int(slots[-1])
        return self.held[index][name][first : last + 1] if 0 <= first == last + 1 - len(slots) else None

    def keeper(
        self,
        index: int,
        name: Projection,
        rows: Float[Tensor, "n out"],
        slots: Int[Tensor, " most"],
        count: Count | None = None,
    ) -> Call:
        """The call that keeps these rows in the slots that then stand in ``slots``, for lists of calls. ``count``: so many
        first rows, as it then stands."""
        into = self.held[index][name]
        return Call("keep_rows", "rrpnit", (rows, slots, into, len(rows) if count is None else count, rows.shape[1]))

    def note(
        self,
        tokens: Int[np.ndarray, "rows length"],
        slots: Int[np.ndarray, "rows length"],
        lengths: Int[np.ndarray, " rows"],
    ) -> None:
        """The answers for the first ``lengths[r]`` tokens of each of these sequences lie in these slots."""
        self._noted.append((tokens, slots, lengths))

    def find(self, stamp: object, sequences: Sequence[Sequence[int]], where: Packing) -> Recalled | None:
        """What is kept of the packed tokens of these sequences, given that the weights are those of ``stamp``."""
        if stamp != self._stamp:
            return None
        self._sort_out()
        slots = torch.from_numpy(np.concatenate([self._slots_of(s) for s in sequences]))
        if where.order is not None:  # a token that several sequences share may be kept for any of them
            slots = torch.full((len(where.positions),), NONE).scatter_reduce_(0, where.order, slots, "amax")
        missing = torch.nonzero(slots < 0)[:, 0]
        return None if len(missing) == len(slots) else Recalled(self.held, slots.clamp_(min=0), missing)

    def _sort_out(self) -> None:
        for tokens, slots, lengths in self._noted:
            for sequence, places, n in zip(tokens, slots, lengths.tolist(), strict=True):
                self._slots[sequence[:n].tobytes()] = places[:n]
        self._noted.clear()

    def _slots_of(self, sequence: Sequence[int]) -> Int[np.ndarray, " tokens"]:
        found = self._slots.get(np.array(sequence, np.int64).tobytes())
        return np.full(len(sequence), NONE) if found is None else found


@final
@dataclass(frozen=True, eq=False)
class Recalled:
    """Answers the projections of a pack (``nn.decoder.Answer``): from what is kept, and by a product where nothing is."""

    held: Sequence[dict[Projection, Tensor]]
    slots: Int[Tensor, " tokens"]
    missing: Int[Tensor, " some"]
    """Tokens whose slot means nothing."""

    def __call__(self, index: int, name: Projection, module: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(module, nn.Linear)
        answer = self.held[index][name].index_select(0, self.slots)
        if len(self.missing):
            with torch.no_grad():
                answer.index_copy_(0, self.missing, module(x.index_select(0, self.missing)))
        known: Tensor = Known.apply(x, module.weight, module.bias, answer)
        return known
