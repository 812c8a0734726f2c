"""Which tokens each row of the engine has read, and in which slots their answers are kept (``nn.answers``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from triloop.nn.answers import NONE, Answers

__all__ = ["Histories"]


@final
class Histories:
    """Of rows of up to ``length`` tokens; told to ``answers`` when a row is done with."""

    def __init__(self, answers: Answers, rows: int, length: int) -> None:
        self.answers = answers
        self._read = np.full((2, rows, length), NONE)  # tokens and slots
        self._count = np.zeros(rows, np.int64)
        # Steps that are not in these yet: many at once cost little more than one.
        self._steps: list[tuple[NDArray[np.int64], ...]] = []

    def start(
        self,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        which: Int[Tensor, " rows"],
        slots: Int[Tensor, " tokens"],
    ) -> None:
        """These rows begin anew, row ``i`` with prompt ``which[i]``; the answers for the prompts, which lie end to end, are
        in these slots."""
        lengths = np.array([len(p) for p in prompts])
        longest = int(lengths.max())
        padded = np.full((2, len(prompts), longest), NONE)
        inside = np.arange(longest) < lengths[:, None]
        padded[0][inside], padded[1][inside] = np.concatenate([np.asarray(p) for p in prompts]), slots.numpy()
        index, source = np.asarray(rows), which.numpy()
        self._tell(index)
        self._read[:, index, :longest] = padded[:, source]
        self._count[index] = lengths[source]

    def append(
        self, tokens: Int[Tensor, " rows"], positions: Int[Tensor, " rows"], slots: Int[Tensor, " rows"]
    ) -> None:
        """Every row reads a token; one at position 0 is done. The tensors are kept."""
        self._steps.append((tokens.numpy(), positions.numpy(), slots.numpy()))

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Forget every row but these."""
        kept, gone = rows.numpy(), np.ones(len(self._count), np.bool_)
        gone[kept] = False
        self._tell(np.flatnonzero(gone))
        self._read, self._count = self._read[:, kept], self._count[kept]

    def end(self) -> None:
        """All rows are done."""
        self._tell(np.arange(len(self._count)))

    def _tell(self, done: NDArray[np.int64]) -> None:
        if self._steps:
            tokens, positions, slots = map(np.stack, zip(*self._steps, strict=True))
            step, row = np.nonzero(positions)
            at = positions[step, row]
            self._read[:, row, at] = tokens[step, row], slots[step, row]
            self._count[row] = at + 1  # the last step's stays
            self._steps.clear()
        done = done[self._count[done] > 0]
        if len(done):
            tokens, slots = self._read[:, done]  # copies
            self.answers.note(tokens, slots, self._count[done])
            self._count[done] = 0
