"""Federated updates in few bits: QSGD's rounding with the Euclidean norm for a scale, averaged, as FedPAQ sends them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from triloop.comms.compressors import packed_floats, ternarised, unpacked_floats
from triloop.comms.schemes import Memory, Place, uniforms
from triloop.comms.trits import from_trits, to_trits

__all__ = ["FedPAQ"]


@dataclass(frozen=True, kw_only=True)
class FedPAQ:
    """Vectors rounded at random to ||x|| {-1, 0, 1} without bias, each worker with its own norm; all take the mean.

        code_i = sign(x_i) b_i,  P(b_i = 1) = |x_i| / ||x||_2;   E[||x|| code_i] = x_i

    FedPAQ (Reisizadeh et al., arXiv:1909.13014, algorithm 1) with QSGD of one level (Alistarh et al., arXiv:1610.02132
    section 3.1), as many bits as TernGrad, whose scale is the largest clipped number of all workers. The variance is up to
    sqrt(n) ||x||^2, which is what so coarse a rounding of long vectors costs.
    """

    def offered(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows 0"]:
        return x.new_zeros(x.shape[0], 0)

    def send(self, place: Place, x: Tensor, agreed: Tensor, own: Memory) -> tuple[Tensor, Memory]:
        norm = torch.linalg.vector_norm(x, dim=1)
        codes = ternarised(x, norm, uniforms(place, x.shape[1]))
        return torch.cat([packed_floats(norm[:, None]), to_trits(codes)], dim=1), {}

    def receive(self, place: Place, messages: Tensor, n: int, agreed: Tensor, common: Memory) -> tuple[Tensor, Memory]:
        return (unpacked_floats(messages[:, :4]) * from_trits(messages[:, 4:], n)).mean(dim=0), {}
