"""A decoder with a cache for rows that advance one token at a time: what a rollout engine steps.

Two of a kind. ``TorchDecoding`` runs everywhere, ``KernelDecoding`` (nn/kernel_decoding.py) on the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from triloop.kernels import native, train
from triloop.kernels.products import OwnProduct
from triloop.nn.answers import Answers
from triloop.nn.decoder import Decoder, KVCache
from triloop.nn.fused import Linear
from triloop.nn.kernel_decoding import KernelDecoding, projections

__all__ = ["Decoding", "KernelDecoding", "TorchDecoding", "decoding_of", "padded"]


class Decoding(Protocol):
    """Rows are numbered 0..rows-1. Position 0 marks a row that is free: what is computed for it means nothing."""

    rows: int
    paged: bool
    """Whether ``arrange`` may move rows at no cost."""
    kept: Int[Tensor, " n"]
    """Where the answers are (``keep``): of every row of the last ``decode``, or every token of the last ``prefill``."""

    def bytes_per_row(self, length: int) -> int:
        """Memory of the cache for one row of this length."""
        ...

    def reset(self, rows: int, length: int) -> None:
        """Empty rows for up to ``length`` positions each."""
        ...

    def prefill(
        self, ids: Int[Tensor, "prompts time"], lengths: Int[Tensor, " prompts"], rows: Int[Tensor, " prompts"]
    ) -> Float[Tensor, "prompts vocab"]:
        """Right-padded prompts into these rows; logits after the last token of each."""
        ...

    def arrange(self, sources: Int[Tensor, " n"], lengths: Int[Tensor, " n"]) -> None:
        """Row i is from now on what row ``sources[i]`` was, of which the first ``lengths[i]`` positions are filled, 0 where
        it is free; rows behind the first n are free."""
        ...

    def decode(self, tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"], span: int) -> Float[Tensor, "n vocab"]:
        """One token for each of the first n rows, at ``positions[r]`` < ``span``; the next logits.

        The answer may be overwritten by the next call.
        """
        ...

    def keep(self, answers: Answers | None) -> bool:
        """Keep there what the projections answer to what is read from now on. False, and nothing is kept, where a learner
        would not compute the same to the last bit."""
        ...

    def rest(self) -> None:
        """Let go of memory that only sampling needs, where it is much; ``reset`` takes it again."""
        ...


def decoding_of(decoder: Decoder) -> Decoding:
    """The fastest one for this decoder here."""
    # An adapter's weight is not all that it multiplies by.
    known = all(type(m) in (nn.Linear, Linear) or isinstance(m, OwnProduct) for m in projections(decoder))
    if known and decoder.device.type == "cpu" and decoder.dtype in train.PRODUCTS and native.available():
        return KernelDecoding(decoder)
    return TorchDecoding(decoder)


class TorchDecoding:
    """On any device, by torch's operations."""

    paged = False

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.rows, self.kept = decoder, 0, torch.empty(0, dtype=torch.long)

    def bytes_per_row(self, length: int) -> int:
        c = self.decoder.config
        return 2 * c.num_layers * c.num_kv_heads * c.head_dim * length * self.decoder.dtype.itemsize

    def reset(self, rows: int, length: int) -> None:
        d = self.decoder
        self.rows, self.cache = rows, KVCache(d.config, rows, length, d.dtype, d.device)

    def prefill(self, ids: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
        d = self.decoder.device
        logits, prompts = self.decoder.prefill(ids.to(d), lengths.to(d))
        self.cache.place(rows.to(d), torch.arange(len(rows), device=d), prompts)
        return logits

    def arrange(self, sources: Tensor, lengths: Tensor) -> None:
        rows = torch.nonzero((sources != torch.arange(len(sources))) & (lengths > 0))[:, 0]
        if len(rows):
            d = self.decoder.device
            self.cache.fork(rows.to(d), sources[rows].to(d), int(lengths[rows].max()))

    def decode(self, tokens: Tensor, positions: Tensor, span: int) -> Tensor:
        d = self.decoder.device
        return self.decoder.decode(tokens.to(d), positions.to(d), self.cache, span)

    def keep(self, answers: Answers | None) -> bool:
        return False

    def rest(self) -> None:
        """Nothing."""


def padded(prompts: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "prompts time"], Int[Tensor, " prompts"]]:
    """Prompts right-padded with zeros, and their lengths."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts])
    return ids, torch.tensor([len(p) for p in prompts])
