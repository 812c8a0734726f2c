"""The text of a turn: when it has reached a stop sequence, and how it reads after what stands before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triloop.nn.stops import StopMatcher
from triloop.nn.tokenizer import Tokenizer

__all__ = ["TurnReader"]

_CONTEXT = 8
"""Tokens before a turn that are decoded with it: a first space or half a character belongs to both sides."""


class TurnReader:
    """Reads the turns of one call of the engine."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._stops = StopMatcher(tokenizer, stop, vocab_size=vocab_size)
        self.stops_at = self._stops.candidates
        """Tokens that may complete a stop sequence; ask ``stopped`` for those only."""
        self.ends_at = np.zeros_like(self.stops_at)
        """End-of-sequence tokens."""
        self.ends_at[[i for i in tokenizer.eos_ids if i < len(self.ends_at)]] = True

    def stopped(self, turn: Sequence[int]) -> bool:
        """Whether the last token of ``turn`` completes a stop sequence."""
        return self._stops.hit(turn)

    def read(self, before: Sequence[Sequence[int]], turns: Sequence[Sequence[int]]) -> list[str]:
        """Text of each turn as it goes on from the tokens ``before`` it, cut before a stop sequence."""
        heads = [tuple(b[-_CONTEXT:]) for b in before]
        wholes = [(*h, *t) for h, t in zip(heads, turns, strict=True)]
        distinct = dict.fromkeys([*heads, *wholes])
        decoded = dict(zip(distinct, self._tokenizer.decode_batch(list(distinct)), strict=True))
        texts = []
        for head, whole, turn in zip(heads, wholes, turns, strict=True):
            known, text = decoded[head], decoded[whole]
            text = text[len(known) :] if text.startswith(known) else self._tokenizer.decode(turn)
            texts.append(self._stops.cut(text))
        return texts
