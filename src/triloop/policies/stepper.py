"""The native decoder as the engine steps it: rows with the same history are computed once.

Completions of one prompt begin alike, and a policy that is sure of itself goes on alike for long. The cache therefore has
a row for each distinct history, not for each completion. Where completions part, their cache row is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triloop.nn.decoder import Decoder
from triloop.nn.decoding import decoding_of, padded

__all__ = ["NativeStepper"]


class NativeStepper:
    """A decoder and its cache. Engine rows that read the same cache row have the same history.

    One can serve many generations: it looks at the weights anew at every ``open``, and its cache is reused.
    """

    refills = True

    def __init__(self, decoder: Decoder, *, prefill_tokens: int = 16384, cache_bytes: int = 2 << 30) -> None:
        self.decoder, self.prefill_tokens, self.cache_bytes = decoder, prefill_tokens, cache_bytes
        self.decoding = decoding_of(decoder)

    @property
    def vocab_size(self) -> int:
        return self.decoder.config.vocab_size

    def open(self, rows: int, length: int) -> int:
        rows = max(1, min(rows, self.cache_bytes // self.decoding.bytes_per_row(length)))
        self.decoding.reset(rows, length)
        self.home = torch.full((rows,), -1)  # the cache row of each engine row; -1 for one that is free
        return rows

    def admit(self, prompts: Sequence[tuple[int, ...]], rows: Sequence[int]) -> Float[Tensor, "new vocab"]:
        place = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
        distinct, source = list(place), torch.tensor([place[p] for p in prompts])
        self.home[list(rows)] = -1
        homes = self._free()[: len(distinct)]
        at_once = max(1, self.prefill_tokens // max(map(len, distinct)))
        logits = [
            self.decoding.prefill(*padded(distinct[first : first + at_once]), homes[first : first + at_once])
            for first in range(0, len(distinct), at_once)
        ]
        self.home[list(rows)] = homes[source]
        joint = torch.cat(logits)
        return joint.index_select(0, source.to(joint.device))

    def _free(self) -> Int[Tensor, " free"]:
        """Cache rows that no engine row reads, lowest first: the rows in use stay close together."""
        used = torch.zeros(self.decoding.rows, dtype=torch.bool)
        used[self.home[self.home >= 0]] = True
        return torch.nonzero(~used)[:, 0]

    def step(
        self, tokens: Int[Tensor, " rows"], positions: Int[Tensor, " rows"], span: int
    ) -> Float[Tensor, "rows vocab"]:
        self.home[positions == 0] = -1  # the engine's sign for a row that has nothing to say
        self._part(tokens, span - 1)
        self._close_gaps(span - 1)
        live = torch.nonzero(self.home >= 0)[:, 0]
        homes = self.home[live]
        count = int(homes.max()) + 1
        # Rows in a gap compute something that nobody reads.
        token = torch.zeros(count, dtype=torch.long).index_copy_(0, homes, tokens[live])
        position = torch.zeros(count, dtype=torch.long).index_copy_(0, homes, positions[live])
        logits = self.decoding.decode(token, position, span)
        return logits.index_select(0, self.home.clamp(min=0).to(logits.device)).float()

    def _part(self, tokens: Tensor, span: int) -> None:
        """Give engine rows that read one cache row and now append different tokens a cache row for each token."""
        live = torch.nonzero(self.home >= 0)[:, 0]
        branch = self.home[live] * self.vocab_size + tokens[live]
        branches, member = branch.unique(return_inverse=True)
        parent = branches // self.vocab_size
        heir = torch.ones(len(branches), dtype=torch.bool)
        heir[1:] = parent[1:] != parent[:-1]  # sorted: the first branch of each row stays in it
        if bool(heir.all()):
            return
        homes = parent.clone()
        homes[~heir] = self._free()[: int((~heir).sum())]
        self.decoding.fork(homes[~heir], parent[~heir], span)
        self.home[live] = homes[member]

    def _close_gaps(self, span: int) -> None:
        """Renumber the cache rows when more than a quarter of those below the highest one are not in use."""
        used = self.home[self.home >= 0].unique()
        count = len(used)
        top = int(used[-1]) + 1
        if top - count <= top // 4:
            return
        movers = used[used >= count]
        gaps = self._free()[: len(movers)]
        number = torch.arange(self.decoding.rows).index_copy_(0, movers, gaps)
        self.decoding.fork(gaps, movers, span)
        self.home = torch.where(self.home >= 0, number[self.home], self.home)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        self.home = self.home[rows]
