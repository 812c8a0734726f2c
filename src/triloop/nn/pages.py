"""Which pages of a cache hold the positions of each row.

Rows that began alike read the same pages until they part; then only the last page, if it is partly filled, is copied. What
a group of completions shares is held once, and a step that reads it for one of them finds it near for the next.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray

__all__ = ["Pages"]


@final
class Pages:
    """Of up to ``rows`` rows of up to ``length`` positions: ``rows * length / size`` pages, which always suffice.

    The lowest free ones are taken first, so that memory that nobody needs is never touched.
    """

    def __init__(self, rows: int, length: int, size: int) -> None:
        self.size, self.width = size, -(-length // size)
        self.total = rows * self.width
        self.table = torch.zeros(rows, self.width, dtype=torch.long)
        """[rows, width] The page of each ``size`` positions of each row."""
        self._table: NDArray[np.int64] = self.table.numpy()
        self._held = np.zeros(rows, np.int64)  # how many of them mean something

    def clear(self) -> None:
        """No row holds anything."""
        self._held[:] = 0

    def start(self, rows: Int[np.ndarray, " n"], lengths: Int[np.ndarray, " n"]) -> None:
        """These rows begin anew, with pages for so many positions."""
        self._held[rows] = 0
        need = -(-lengths // self.size)
        fresh = np.zeros((len(rows), self.width), np.int64)
        fresh[np.arange(self.width) < need[:, None]] = self._free(int(need.sum()))
        self._table[rows], self._held[rows] = fresh, need

    def arrange(
        self, sources: Int[np.ndarray, " n"], lengths: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " some"], Int[np.ndarray, " some"]]:
        """Row i is from now on what row ``sources[i]`` was, of which ``lengths[i]`` positions are filled; what other rows
        were is forgotten. The pages to copy, into and from."""
        n, filled = len(sources), -(-lengths // self.size)
        self._table[:n], self._held[:n], self._held[n:] = self._table[sources], filled, 0
        again = np.ones(n, np.bool_)
        again[np.unique(sources, return_index=True)[1]] = False  # the first that names a row writes on in its last page
        rows = np.flatnonzero(again & (lengths % self.size > 0))
        last = filled[rows] - 1
        old = self._table[rows, last]
        self._table[rows, last] = into = self._free(len(rows))
        return into, old

    def reach(self, positions: Int[np.ndarray, " n"]) -> None:
        """The first n rows are about to write these positions; a row at position 0 is free."""
        page = positions // self.size
        rows = np.flatnonzero((page >= self._held[: len(page)]) & (positions > 0))
        if len(rows):
            self._table[rows, page[rows]] = self._free(len(rows))
            self._held[rows] = page[rows] + 1

    def _free(self, count: int) -> NDArray[np.int64]:
        """The lowest pages that no row holds."""
        used = np.zeros(self.total, np.bool_)
        used[self._table[np.arange(self.width) < self._held[:, None]]] = True
        return np.flatnonzero(~used)[:count]
