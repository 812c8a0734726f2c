"""Stop sequences: text that ends a completion, found while tokens arrive.

A stop sequence is text and may begin in the middle of one token and end in another, so it cannot be matched on token
ids. Decoding every row at every step would cost more than the model; most tokens, though, cannot complete a stop
sequence, and which ones can is known beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from triloop.nn.tokenizer import Tokenizer

__all__ = ["StopMatcher", "cut_at"]


def cut_at(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the earliest occurrence of any stop sequence; the whole text when there is none."""
    found = [text.find(s) for s in stop]
    return text[: min((i for i in found if i >= 0), default=len(text))]


class StopMatcher:
    """Finds when a growing token sequence completes one of ``stop``.

    ``candidates[id]`` is false for tokens that cannot complete any stop sequence: test a whole batch of new tokens
    with one index, and call ``hit`` only for the rest.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], *, vocab_size: int = 0) -> None:
        """``vocab_size`` is the number of ids the model can speak, where that is more than the tokenizer knows."""
        if any(not s for s in stop):
            raise ValueError(f"stop sequences must not be empty, got {tuple(stop)!r}")
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        # One token of text carries at least one byte, except special tokens, which ``hit`` leaves out; four more so
        # that a character cut by the window's start is not one of the stop's own.
        self._window = max((len(s.encode()) for s in stop), default=0) + 4
        self.candidates = self._candidates(max(vocab_size, tokenizer.vocab_size))

    def _candidates(self, size: int) -> NDArray[np.bool_]:
        candidates = np.zeros(size, dtype=np.bool_)
        if self.stop:
            # "\ufffd" is part of a character in bytes: its neighbours decide what it is.
            last = {s[-1] for s in self.stop} | {"\ufffd"}
            candidates[: self.tokenizer.vocab_size] = [not last.isdisjoint(s) for s in self.tokenizer.surfaces]
        return candidates

    def hit(self, tokens: Sequence[int]) -> bool:
        """Does the text of ``tokens``, whose last one has just arrived, end in or just after a stop sequence?

        Looks back only as far as the longest stop sequence reaches; call it for each new candidate token.
        """
        if not self.stop:
            return False
        speaking = (t for t in reversed(tokens) if t not in self.tokenizer.special_ids)
        tail = self.tokenizer.decode([*islice(speaking, self._window)][::-1])
        return any(s in tail for s in self.stop)

    def cut(self, text: str) -> str:
        """``text`` up to the earliest stop sequence."""
        return cut_at(text, self.stop)
