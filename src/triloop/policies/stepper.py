"""The native decoder as the engine steps it: rows with the same history are computed once.

Completions of one prompt begin alike, and a policy that is sure of itself goes on alike for long. The cache therefore has
a row for each distinct history, not for each completion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triloop.nn.answers import Answers
from triloop.nn.decoder import Decoder
from triloop.nn.decoding import decoding_of, padded
from triloop.policies.histories import Histories
from triloop.policies.homes import Homes

__all__ = ["NativeStepper"]


class NativeStepper:
    """A decoder and its cache. Engine rows that read the same cache row have the same history.

    One can serve many generations: it looks at the weights anew at every ``open``, and its cache is reused.
    """

    refills = True

    def __init__(self, decoder: Decoder, *, prefill_tokens: int = 16384, cache_bytes: int = 2 << 30) -> None:
        self.decoder, self.prefill_tokens, self.cache_bytes = decoder, prefill_tokens, cache_bytes
        self.decoding = decoding_of(decoder)
        self.answers: Answers | None = None
        """Where to keep what the learner would compute again, if anywhere."""
        self._histories: Histories | None = None

    @property
    def vocab_size(self) -> int:
        return self.decoder.config.vocab_size

    def open(self, rows: int, length: int) -> int:
        rows = max(1, min(rows, self.cache_bytes // self.decoding.bytes_per_row(length)))
        self.decoding.reset(rows, length)
        self.homes = Homes(rows, stable=not self.decoding.paged)
        self._end()
        if self.decoding.keep(self.answers) and self.answers is not None:
            self._histories = Histories(self.answers, rows, length)
        return rows

    def admit(self, prompts: Sequence[tuple[int, ...]], rows: Sequence[int]) -> Float[Tensor, "new vocab"]:
        place = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
        distinct, source = list(place), torch.tensor([place[p] for p in prompts])
        homes = torch.from_numpy(self.homes.give(rows, source.numpy(), len(distinct)))
        at_once = max(1, self.prefill_tokens // max(map(len, distinct)))
        logits, kept = [], list[Tensor]()
        for first in range(0, len(distinct), at_once):
            part = distinct[first : first + at_once]
            logits.append(self.decoding.prefill(*padded(part), homes[first : first + at_once]))
            if self._histories is not None:
                kept.append(self.decoding.kept)
        if self._histories is not None:
            self._histories.start(rows, distinct, source, torch.cat(kept))
        joint = torch.cat(logits)
        return joint.index_select(0, source.to(joint.device))

    def step(
        self, tokens: Int[Tensor, " rows"], positions: Int[Tensor, " rows"], span: int
    ) -> Float[Tensor, "rows vocab"]:
        todo = self.homes.regroup(tokens, positions)
        self.decoding.arrange(todo.sources, todo.positions)
        logits = self.decoding.decode(todo.tokens, todo.positions, span)
        read = torch.from_numpy(self.homes.of.clip(min=0))
        if self._histories is not None:
            self._histories.append(tokens, positions, self.decoding.kept.index_select(0, read))
        return logits.index_select(0, read.to(logits.device)).float()

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        self.homes.keep(rows)
        if self._histories is not None:
            self._histories.keep(rows)

    def rest(self) -> None:
        """Let go of memory that only sampling needs; the next ``open`` takes it again."""
        self._end()
        self.decoding.rest()

    def _end(self) -> None:
        if self._histories is not None:
            self._histories.end()
        self._histories = None
