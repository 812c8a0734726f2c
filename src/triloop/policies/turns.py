"""The text of a turn: when it has reached a stop sequence, and how it reads after what stands before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

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
        self.stops_at: Bool[Tensor, " vocab"] = torch.from_numpy(self._stops.candidates)
        """Tokens that may complete a stop sequence; ask ``stopped`` for those only."""
        self.ends_at: Bool[Tensor, " vocab"] = torch.zeros(len(self.stops_at), dtype=torch.bool)
        """End-of-sequence tokens."""
        self.ends_at[[i for i in tokenizer.eos_ids if i < len(self.ends_at)]] = True

    def stopped(self, turn: Sequence[int]) -> bool:
        """Whether the last token of ``turn`` completes a stop sequence."""
        return self._stops.hit(turn)

    def read(self, before: Sequence[Sequence[int]], turns: Sequence[Sequence[int]]) -> list[str]:
        """Text of each turn as it goes on from the tokens ``before`` it, cut before a stop sequence."""
        heads = [list(b[-_CONTEXT:]) for b in before]
        wholes = [[*h, *t] for h, t in zip(heads, turns, strict=True)]
        decoded = self._tokenizer.decode_batch([*heads, *wholes])
        texts = []
        for head, whole, turn in zip(decoded[: len(heads)], decoded[len(heads) :], turns, strict=True):
            text = whole[len(head) :] if whole.startswith(head) else self._tokenizer.decode(turn)
            texts.append(self._stops.cut(text))
        return texts
