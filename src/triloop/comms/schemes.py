"""Schemes of exchange: what each worker sends of a layer, what all make of it, and what is remembered in between.

A scheme is a record with three pure functions: ``offered`` (numbers of which all workers first take the largest), ``send``
and ``receive``. The same functions run behind a DDP hook, one row a process, and in the simulator, all workers as rows,
so that both give the same bits. What a worker remembers for itself is ``own``; what all know alike is ``common``.

A layer is one parameter: scales, places and memories are each layer's own and do not depend on how DDP fills its buckets,
which changes after the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from triloop import rng
from triloop.comms.compressors import (
    BestTernary,
    Compressor,
    Dense,
    clipped,
    largest_magnitude,
    ternarised,
    unpacked_floats,
)
from triloop.comms.trits import from_trits, to_trits
from triloop.comms.votes import agreement, ballot, latent, plurality, soft_vote, trusted
from triloop.errors import ConfigError

__all__ = ["EF14", "EF21", "Direct", "FedVote", "Memory", "Place", "Scheme", "TernGrad", "Vote", "uniforms"]

Memory = Mapping[str, Tensor]
"""What a scheme remembers of one layer, by name. Of ``own`` memories, the first dimension is the worker."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a message is for: all that its random numbers depend on."""

    seed: int
    step: int
    layer: str
    ranks: tuple[int, ...]
    """The workers whose vectors are the rows at hand."""
    workers: int
    """Of all, here or elsewhere."""


def uniforms(place: Place, n: int) -> Float64[Tensor, "rows n"]:
    """Numbers in [0, 1) for each worker's row: a function of seed, step, layer and rank alone."""
    keys = [rng.key(place.seed, "comms", place.step, place.layer, rank) for rank in place.ranks]
    return torch.from_numpy(rng.uniforms(np.array(keys, dtype=np.uint64), 0, n))


class Scheme(Protocol):
    """One way to turn the workers' vectors of a layer into one vector that all of them hold."""

    def offered(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows numbers"]:
        """Numbers of each worker, of which the largest of all workers comes back as ``agreed``. May be none."""
        ...

    def send(
        self, place: Place, x: Float[Tensor, "rows n"], agreed: Float[Tensor, " numbers"], own: Memory
    ) -> tuple[UInt8[Tensor, "rows bytes"], Memory]:
        """Each worker's message and new memory. All messages of a layer have the same length."""
        ...

    def receive(
        self,
        place: Place,
        messages: UInt8[Tensor, "workers bytes"],
        n: int,
        agreed: Float[Tensor, " numbers"],
        common: Memory,
    ) -> tuple[Float[Tensor, " n"], Memory]:
        """What all make of all messages, and the new common memory."""
        ...


class _OffersNothing:
    """For schemes whose workers need to agree on nothing before they send."""

    def offered(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows numbers"]:
        return x.new_zeros(x.shape[0], 0)


@dataclass(frozen=True, kw_only=True)
class Direct(_OffersNothing):
    """The mean of the compressed vectors, with no feedback: exact with ``Dense``; biased, and not to be trusted, else."""

    compressor: Compressor = field(default_factory=Dense)

    def send(self, place: Place, x: Tensor, agreed: Tensor, own: Memory) -> tuple[Tensor, Memory]:
        return self.compressor.encode(x), {}

    def receive(self, place: Place, messages: Tensor, n: int, agreed: Tensor, common: Memory) -> tuple[Tensor, Memory]:
        return self.compressor.decode(messages, n).mean(dim=0), {}


@dataclass(frozen=True, kw_only=True)
class EF14(_OffersNothing):
    """Classic error feedback: what compression left out is added to the next vector. arXiv:1901.09847, algorithm 2.

    p_i = e_i + x_i,   send C(p_i),   e_i <- p_i - C(p_i);   all take mean_i C(p_i)
    """

    compressor: Compressor

    def send(self, place: Place, x: Tensor, agreed: Tensor, own: Memory) -> tuple[Tensor, Memory]:
        owed = x + own["error"] if own else x
        message = self.compressor.encode(owed)
        return message, {"error": owed - self.compressor.decode(message, x.shape[1])}

    def receive(self, place: Place, messages: Tensor, n: int, agreed: Tensor, common: Memory) -> tuple[Tensor, Memory]:
        return self.compressor.decode(messages, n).mean(dim=0), {}


@dataclass(frozen=True, kw_only=True)
class EF21(_OffersNothing):
    """EF21 (arXiv:2106.05203), and with ``weights`` EF21-W (arXiv:2402.10774, algorithm 2).

        c_i = C(x_i / (N w_i) - g_i),   g_i <- g_i + c_i,   all: g <- g + sum_i w_i c_i   and take g

    with w_i = 1 / N in EF21. g_i begins at 0, so the first message is C of the first vector. See ``smoothness`` for the
    weights and step sizes that the papers prove.
    """

    compressor: Compressor
    weights: Sequence[float] | None = None
    """w_i by rank, above 0 and summing to 1; None weighs all workers alike."""

    def __post_init__(self) -> None:
        w = self.weights
        if w is not None and (min(w, default=0.0) <= 0 or abs(sum(w) - 1.0) > 1e-6):
            raise ConfigError(f"EF21's weights are {list(w)}; expected one above 0 for each worker, summing to 1")

    def _weights(self, workers: int) -> Tensor:
        if self.weights is None:
            return torch.full((workers,), 1.0 / workers)
        if len(self.weights) != workers:
            raise ConfigError(f"EF21 has {len(self.weights)} weights for {workers} workers; expected one each")
        return torch.tensor(list(self.weights), dtype=torch.float32)

    def send(self, place: Place, x: Tensor, agreed: Tensor, own: Memory) -> tuple[Tensor, Memory]:
        if self.weights is not None:
            x = x / (place.workers * self._weights(place.workers)[list(place.ranks), None])
        known = own["known"] if own else torch.zeros_like(x)
        message = self.compressor.encode(x - known)
        return message, {"known": known + self.compressor.decode(message, x.shape[1])}

    def receive(self, place: Place, messages: Tensor, n: int, agreed: Tensor, common: Memory) -> tuple[Tensor, Memory]:
        change = self._weights(place.workers) @ self.compressor.decode(messages, n)
        known = common["known"] + change if common else change
        return known, {"known": known}


@dataclass(frozen=True, kw_only=True)
class TernGrad:
    """Gradients rounded at random to s {-1, 0, 1}, without bias, with one scale a layer that all workers share.

        s = max_i max |f(x_i)|,   code_i = sign(f(x_i)) b_i,  P(b_i = 1) = |f(x_i)| / s;   all take s mean_i code_i

    f clips at ``clip`` standard deviations. arXiv:1705.07878, algorithm 1 with sections 3.2 and 3.3.
    """

    clip: float | None = 2.5
    """Standard deviations; None clips nothing."""

    def __post_init__(self) -> None:
        if self.clip is not None and self.clip <= 0:
            raise ConfigError(f"TernGrad clips at {self.clip} standard deviations; expected above 0, or None")

    def offered(self, x: Tensor) -> Tensor:
        return largest_magnitude(clipped(x, self.clip))[:, None]

    def send(self, place: Place, x: Tensor, agreed: Tensor, own: Memory) -> tuple[Tensor, Memory]:
        codes = ternarised(clipped(x, self.clip), agreed.expand(x.shape[0]), uniforms(place, x.shape[1]))
        return to_trits(codes), {}

    def receive(self, place: Place, messages: Tensor, n: int, agreed: Tensor, common: Memory) -> tuple[Tensor, Memory]:
        total = from_trits(messages, n).sum(dim=0, dtype=torch.int32)
        return total * (agreed / place.workers), {}


@dataclass(frozen=True, kw_only=True)
class Vote(_OffersNothing):
    """Gradients by plurality: each worker votes with the codes of its nearest ternary vector, and names its scale.

    All take the median of the scales times the winner of each number (ties: 0), or, ``soft``, times the sum of the votes
    weighted by reputation: no worker can pull harder than its weight, whatever it sends. Reputation is the running
    share of agreement with the winner, by layer (FedVote, arXiv:2110.02998 section V).
    """

    soft: bool = False
    memory: float = 0.5
    """Of reputations: 1 keeps all alike for ever."""

    def __post_init__(self) -> None:
        _check_memory(self.memory)

    def send(self, place: Place, x: Tensor, agreed: Tensor, own: Memory) -> tuple[Tensor, Memory]:
        return BestTernary().encode(x), {}

    def receive(self, place: Place, messages: Tensor, n: int, agreed: Tensor, common: Memory) -> tuple[Tensor, Memory]:
        scale, votes = unpacked_floats(messages[:, :4]), from_trits(messages[:, 4:], n)
        before = common["reputation"] if common else torch.ones(place.workers)
        winner = plurality(votes, before / before.sum())
        after, weights = trusted(before, agreement(votes, winner), self.memory)
        decided = soft_vote(votes, weights) if self.soft else winner.float()
        return scale.median() * decided, {"reputation": after}


@dataclass(frozen=True, kw_only=True)
class FedVote(_OffersNothing):
    """Weights, not gradients: after a while of training by itself each worker sends votes of its weights.

    The vectors are latent weights h of layers that compute with tanh(slope h). A worker rounds tanh(slope h) at random to
    votes; all count them, weighted by reputation, and go on from the latent weights of the count. Yue et al.,
    arXiv:2110.02998, algorithm 1. ``deployed`` are the ternary (binary) weights that most voted for.
    """

    slope: float = 1.5
    binary: bool = False
    memory: float | None = 0.5
    """Of reputations; None weighs all workers alike (FedVote without defence)."""
    limit: float = 0.998
    """Largest share that a vote is taken for, so that latent weights stay finite (p between 0.001 and 0.999)."""

    def __post_init__(self) -> None:
        if self.slope <= 0 or not 0 < self.limit < 1:
            raise ConfigError(f"FedVote needs slope > 0 and 0 < limit < 1; got {self.slope} and {self.limit}")
        if self.memory is not None:
            _check_memory(self.memory)

    def send(self, place: Place, x: Tensor, agreed: Tensor, own: Memory) -> tuple[Tensor, Memory]:
        votes = ballot(torch.tanh(self.slope * x), uniforms(place, x.shape[1]), binary=self.binary)
        if self.binary:
            return torch.from_numpy(np.packbits(votes.numpy() > 0, axis=-1)), {}
        return to_trits(votes), {}

    def receive(self, place: Place, messages: Tensor, n: int, agreed: Tensor, common: Memory) -> tuple[Tensor, Memory]:
        if self.binary:
            bits = np.unpackbits(messages.numpy(), axis=-1, count=n).astype(np.int8)
            votes = torch.from_numpy(2 * bits - np.int8(1))
        else:
            votes = from_trits(messages, n)
        before = common["reputation"] if common else torch.ones(place.workers)
        winner = plurality(votes, before / before.sum(), self._coin(place, n))
        after, weights = before, before / before.sum()
        if self.memory is not None:
            after, weights = trusted(before, agreement(votes, winner), self.memory)
        return latent(soft_vote(votes, weights), self.slope, self.limit), {"reputation": after, "deployed": winner}

    def _coin(self, place: Place, n: int) -> Tensor | None:
        """For binary ties; of no worker, hence the same on all."""
        if not self.binary:
            return None
        key = rng.key(place.seed, "comms coin", place.step, place.layer)
        return torch.from_numpy(rng.uniforms(np.array([key], dtype=np.uint64), 0, n))[0]


def _check_memory(memory: float) -> None:
    if not 0 <= memory <= 1:
        raise ConfigError(f"a reputation's memory is {memory}; expected 0 (this vote alone) to 1 (never changes)")
