"""Compressors of vectors: what becomes of a gradient on its way to the other workers, and how many bits it takes.

All work on rows, one worker's vector each ([rows n]), and every message is the bytes that go over the wire: its size is its
length, nothing is counted that is not sent. ``Dense``, ``TopK``, ``ScaledSign`` and ``BestTernary`` are contractive, with

    ||C(x) - x||^2 <= (1 - alpha) ||x||^2

for every x of length n and the alpha that they name: what error feedback asks for. TernGrad's rounding is not; it is
unbiased instead: E[s code] = g.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float64, Int8, UInt8
from torch import Tensor

from triloop.comms.trits import from_trits, packed_length, to_trits
from triloop.errors import ConfigError, DataError

__all__ = [
    "BestTernary",
    "Compressor",
    "Dense",
    "ScaledSign",
    "TopK",
    "best_ternary",
    "clipped",
    "largest_magnitude",
    "packed_floats",
    "ternarised",
    "unpacked_floats",
]


class Compressor(Protocol):
    """A contractive compressor: a vector as bytes and back. One rule, no state, nothing drawn."""

    def encode(self, x: Float[Tensor, "rows n"]) -> UInt8[Tensor, "rows bytes"]:
        """What goes over the wire, as many bytes for every row."""
        ...

    def decode(self, message: UInt8[Tensor, "rows bytes"], n: int) -> Float[Tensor, "rows n"]:
        """The vectors that the other side makes of it."""
        ...

    def alpha(self, n: int) -> float:
        """The share of ||x||^2 that is kept of any vector of ``n`` numbers; 1 is lossless."""
        ...

    def bits(self, n: int) -> int:
        """Of the message of one vector of ``n`` numbers."""
        ...


def packed_floats(x: Float[Tensor, "rows n"]) -> UInt8[Tensor, "rows bytes"]:
    """As fp32, four bytes each in the machine's order; gloo asks for machines of one kind."""
    return x.detach().to(torch.float32).contiguous().view(torch.uint8)


def unpacked_floats(message: UInt8[Tensor, "rows bytes"]) -> Float[Tensor, "rows n"]:
    """The inverse of ``packed_floats``."""
    return _whole(message, torch.float32)


def _whole(message: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers of four; of a copy, since a slice may lie in memory where no wider number can."""
    rows, size = message.shape
    fours = message.reshape(rows, size // 4, 4).clone(memory_format=torch.contiguous_format)
    return fours.view(dtype).reshape(rows, size // 4)


def _bitmap(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=-1)).to(mask.device)


def _from_bitmap(message: Tensor, n: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(message.cpu().numpy(), axis=-1, count=n)).to(message.device).bool()


@dataclass(frozen=True, kw_only=True)
class Dense:
    """C(x) = x, in fp32: what the others are compared with."""

    def encode(self, x: Float[Tensor, "rows n"]) -> UInt8[Tensor, "rows bytes"]:
        return packed_floats(x)

    def decode(self, message: UInt8[Tensor, "rows bytes"], n: int) -> Float[Tensor, "rows n"]:
        return unpacked_floats(message)

    def alpha(self, n: int) -> float:
        return 1.0

    def bits(self, n: int) -> int:
        return 32 * n


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The ``k`` = ceil(share n) largest magnitudes as they are, 0 elsewhere; alpha = k / n, reached where all are alike.

    Values in fp32; their places as 32-bit indices, or as a map of n bits where that is shorter (from 1 in 32 on).
    """

    share: float
    """Of the numbers of each vector, above 0 and at most 1; at least one number is sent."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"TopK's share is {self.share}; expected above 0 and at most 1, such as 0.02")

    def count(self, n: int) -> int:
        """k of a vector of ``n`` numbers; the tolerance keeps 0.1 of 30 at 3."""
        return min(n, max(1, math.ceil(self.share * n - 1e-9)))

    def _mapped(self, n: int) -> bool:
        return -(-n // 8) < 4 * self.count(n)

    def encode(self, x: Float[Tensor, "rows n"]) -> UInt8[Tensor, "rows bytes"]:
        n = x.shape[1]
        if n == 0:
            return x.new_zeros(x.shape, dtype=torch.uint8)
        places = x.abs().topk(self.count(n), dim=1).indices.sort(dim=1).values
        if self._mapped(n):
            said = _bitmap(torch.zeros_like(x, dtype=torch.bool).scatter_(1, places, True))
        else:
            said = places.to(torch.int32).contiguous().view(torch.uint8)
        return torch.cat([packed_floats(x.gather(1, places)), said], dim=1)

    def decode(self, message: UInt8[Tensor, "rows bytes"], n: int) -> Float[Tensor, "rows n"]:
        x = torch.zeros(message.shape[0], n, device=message.device)
        if n == 0:
            return x
        k = self.count(n)
        values, said = unpacked_floats(message[:, : 4 * k]), message[:, 4 * k :]
        if self._mapped(n):
            mask = _from_bitmap(said, n)
            if not bool((mask.sum(dim=1) == k).all()):
                raise DataError(f"a top-k message marks {mask.sum(dim=1).tolist()} places; expected {k}: it is damaged")
            x[mask] = values.reshape(-1)
            return x
        places = _whole(said, torch.int32).long()
        if bool(((places < 0) | (places >= n)).any()):
            raise DataError(f"a top-k message names a place outside 0 to {n - 1}: it is damaged")
        return x.scatter_(1, places, values)

    def alpha(self, n: int) -> float:
        return self.count(n) / n if n else 1.0

    def bits(self, n: int) -> int:
        return 8 * (4 * self.count(n) + (-(-n // 8) if self._mapped(n) else 4 * self.count(n))) if n else 0


@dataclass(frozen=True, kw_only=True)
class ScaledSign:
    """C(x) = (||x||_1 / n) sign(x), one bit a number and one fp32 scale; sign(0) = 1.

    ||C(x) - x||^2 = ||x||^2 - ||x||_1^2 / n, so alpha = 1 / n, reached by a vector with a single number that is not 0; of
    a gradient whose numbers are of like size it keeps far more (2 / pi of normal ones). Karimireddy et al.,
    arXiv:1901.09847.
    """

    def encode(self, x: Float[Tensor, "rows n"]) -> UInt8[Tensor, "rows bytes"]:
        if x.shape[1] == 0:
            return x.new_zeros(x.shape, dtype=torch.uint8)
        scale = x.abs().double().mean(dim=1, keepdim=True).float()
        return torch.cat([packed_floats(scale), _bitmap(x >= 0)], dim=1)

    def decode(self, message: UInt8[Tensor, "rows bytes"], n: int) -> Float[Tensor, "rows n"]:
        if n == 0:
            return torch.zeros(message.shape[0], 0)
        scale = unpacked_floats(message[:, :4])
        return torch.where(_from_bitmap(message[:, 4:], n), scale, -scale)

    def alpha(self, n: int) -> float:
        return 1.0 / n if n else 1.0

    def bits(self, n: int) -> int:
        return 32 + 8 * -(-n // 8) if n else 0


@dataclass(frozen=True, kw_only=True)
class BestTernary:
    """The s t nearest to x among all scales s and codes t in {-1, 0, 1}: 1.6 bits a number and one fp32 scale.

    With T the places of the k largest magnitudes and S_k their sum, s = S_k / k and ||s t - x||^2 = ||x||^2 - S_k^2 / k; k
    is the best one (the rule of ternary weight networks, arXiv:1605.04711, solved exactly by sorting). Its alpha is

        alpha(n) = 1 / sum_{k=1..n} (sqrt(k) - sqrt(k - 1))^2

    Proof: if S_k^2 / k <= c for all k then the prefix sums of |x|, sorted, are at most sqrt(c k), and among those vectors
    x_k = sqrt(c) (sqrt(k) - sqrt(k - 1)) majorises all others, so that ||x||^2 is at most c / alpha(n). It falls like
    4 / (log n + 4): 0.22 of a million numbers, at a twentieth of fp32's bits.
    """

    def encode(self, x: Float[Tensor, "rows n"]) -> UInt8[Tensor, "rows bytes"]:
        if x.shape[1] == 0:
            return x.new_zeros(x.shape, dtype=torch.uint8)
        codes, scale = best_ternary(x)
        return torch.cat([packed_floats(scale[:, None]), to_trits(codes)], dim=1)

    def decode(self, message: UInt8[Tensor, "rows bytes"], n: int) -> Float[Tensor, "rows n"]:
        if n == 0:
            return torch.zeros(message.shape[0], 0)
        return unpacked_floats(message[:, :4]) * from_trits(message[:, 4:], n)

    def alpha(self, n: int) -> float:
        steps = np.diff(np.sqrt(np.arange(n + 1, dtype=np.float64)))
        return float(1.0 / (steps @ steps)) if n else 1.0

    def bits(self, n: int) -> int:
        return 32 + 8 * packed_length(n) if n else 0


def best_ternary(x: Float[Tensor, "rows n"]) -> tuple[Int8[Tensor, "rows n"], Float[Tensor, " rows"]]:
    """Codes and scale of ``BestTernary``; a row of zeros has code 0 and scale 0."""
    size = x.abs().double()
    sums = size.sort(dim=1, descending=True).values.cumsum(dim=1)
    count = torch.arange(1, x.shape[1] + 1, dtype=torch.float64, device=x.device)
    best = (sums.square() / count).argmax(dim=1, keepdim=True)
    # at the best k the last number inside is above s / 2 and the first outside below it, so equal numbers stay together
    kept = size > (sums.gather(1, best) / (best + 1)) / 2
    scale = torch.where(kept, size, 0.0).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
    return torch.where(kept, x.sign(), 0.0).to(torch.int8), scale.float()


def clipped(g: Float[Tensor, "rows n"], sigmas: float | None) -> Float[Tensor, "rows n"]:
    """Every number within ``sigmas`` standard deviations of its row, which clips few and makes the scale far smaller.

        f(g_i) = g_i where |g_i| <= c sigma, else c sigma sign(g_i)

    TernGrad, arXiv:1705.07878 section 3.3, c = 2.5; None clips nothing. sigma is about 0, as in the paper's model of a
    gradient: about its own mean, a layer of a single number would be clipped to nothing.
    """
    if sigmas is None or g.shape[1] == 0:
        return g
    bound = sigmas * g.square().mean(dim=1, keepdim=True).sqrt()
    return torch.minimum(torch.maximum(g, -bound), bound)


def largest_magnitude(g: Float[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
    """max_i |g_i|, TernGrad's scale; 0 for an empty row."""
    return g.abs().amax(dim=1) if g.shape[1] else g.new_zeros(g.shape[0])


def ternarised(
    g: Float[Tensor, "rows n"], scale: Float[Tensor, " rows"], uniform: Float64[Tensor, "rows n"]
) -> Int8[Tensor, "rows n"]:
    """Codes sign(g_i) b_i with P(b_i = 1) = |g_i| / s, so that E[s code_i] = g_i wherever |g_i| <= s.

    ``uniform`` are numbers in [0, 1) that decide; with scale 0 all codes are 0. TernGrad, arXiv:1705.07878 eq. 1 to 3.
    """
    kept = uniform * scale[:, None].double() < g.abs().double()
    return torch.where(kept, g.sign(), 0.0).to(torch.int8)
