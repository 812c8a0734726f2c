"""Many workers in one process: the schemes themselves on rows, one a worker, with bits counted and liars among them.

A ``Fleet`` stands for all the ``Link``s of a group: same functions, same random numbers, same bits. ``train`` is data-
parallel training of any module on it, ``descend`` gradient descent on a formula, ``federate`` rounds of local training
with an exchange of weights or of updates in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triloop.comms.schemes import Memory, Place, Scheme
from triloop.errors import ConfigError

__all__ = ["Attack", "Fleet", "Loss", "Point", "alone", "descend", "federate", "inverted", "magnified", "train"]

Attack = Callable[[Tensor], Tensor]
"""What a dishonest worker puts in place of its vectors [rows n], before the scheme makes messages of them."""
Loss = Callable[[nn.Module, int, int], Tensor]
"""(model, worker, step) -> the loss of that worker's next batch, a scalar with a gradient."""
_FLAT = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measurement on the way."""

    step: int
    bits: int
    """Sent by each worker up to here."""
    value: float


def inverted(x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    """The opposite of what is true."""
    return -x


def magnified(x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    """The opposite, a hundred times as large."""
    return -100.0 * x


@dataclass(kw_only=True)
class Fleet:
    """All workers of a group, and what they remember."""

    scheme: Scheme
    workers: int
    seed: int = 0
    liars: int = 0
    """So many workers, those of the highest ranks, send what ``attack`` makes of their vectors."""
    attack: Attack = inverted
    bits: int = 0
    """Sent by each worker so far, counted as ``Link`` does."""
    steps: dict[str, int] = field(default_factory=dict)
    own: dict[str, Memory] = field(default_factory=dict)
    common: dict[str, Memory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.liars < self.workers:
            raise ConfigError(f"{self.liars} of {self.workers} workers were to lie; expected fewer than all")

    def exchange(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the scheme makes of tensors [workers, ...] of these names; without the first dimension, fp32."""
        found = {}
        for name, x in vectors.items():
            step = self.steps.get(name, 0)
            ranks = tuple(range(self.workers))
            place = Place(seed=self.seed, step=step, layer=name, ranks=ranks, workers=self.workers)
            rows = self._said(x.detach().to(torch.float32).reshape(self.workers, -1))
            offered = self.scheme.offered(rows)
            agreed = offered.amax(dim=0)
            messages, self.own[name] = self.scheme.send(place, rows, agreed, self.own.get(name, {}))
            known = self.common.get(name, {})
            y, self.common[name] = self.scheme.receive(place, messages, rows.shape[1], agreed, known)
            self.steps[name] = step + 1
            self.bits += 8 * messages.shape[1] + 32 * offered.shape[1]
            found[name] = y.view(x.shape[1:])
        return found

    def _said(self, rows: Tensor) -> Tensor:
        if not self.liars:
            return rows
        honest = self.workers - self.liars
        return torch.cat([rows[:honest], self.attack(rows[honest:])])


def train(
    model: nn.Module,
    loss: Loss,
    fleet: Fleet,
    optimiser: torch.optim.Optimizer,
    steps: int,
    *,
    layerwise: bool = True,
    measure: Callable[[nn.Module], float] | None = None,
    every: int = 1,
) -> list[Point]:
    """Data-parallel training, the model in place. Each point is ``measure`` of the model every so many steps and at the
    end, or without it the workers' mean loss of that step.

    ``layerwise=False`` sends the whole model as one vector: one scale for all layers.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    points = []
    for step in range(steps):
        losses, gradients = [], []
        for worker in range(fleet.workers):
            lost = loss(model, worker, step)
            gradients.append(torch.autograd.grad(lost, list(named.values())))
            losses.append(float(lost.detach()))
        rows = {name: torch.stack(list(each)) for name, each in zip(named, zip(*gradients, strict=True), strict=True)}
        found = fleet.exchange(rows) if layerwise else _as_one(fleet, rows)
        for name, p in named.items():
            p.grad = found[name].to(p.dtype)
        optimiser.step()
        optimiser.zero_grad()
        if (step + 1) % every == 0 or step + 1 == steps:
            value = sum(losses) / len(losses) if measure is None else measure(model)
            points.append(Point(step=step + 1, bits=fleet.bits, value=value))
    return points


def _as_one(fleet: Fleet, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    flat = torch.cat([x.reshape(fleet.workers, -1) for x in rows.values()], dim=1)
    found = fleet.exchange({_FLAT: flat})[_FLAT].split([x[0].numel() for x in rows.values()])
    return {name: y.view(x.shape[1:]) for (name, x), y in zip(rows.items(), found, strict=True)}


def descend(
    gradients: Callable[[Tensor], Tensor],
    x: Float[Tensor, " n"],
    fleet: Fleet,
    lr: float,
    steps: int,
    *,
    enough: Callable[[Tensor, Tensor], bool] = lambda x, g: False,
) -> tuple[Float[Tensor, " n"], int]:
    """x <- x - lr exchange(gradients(x)), until ``enough`` of x and the true mean gradient, or x has left 1e12, or all
    ``steps`` are done; returns x and the steps that were taken. ``gradients`` gives [workers n] for x [n]."""
    for step in range(steps):
        rows = gradients(x)
        if enough(x, rows.mean(dim=0)):
            return x, step
        x = x - lr * fleet.exchange({_FLAT: rows})[_FLAT]
        if not float(x.abs().max()) < 1e12:
            return x, step + 1
    return x, steps


def alone(
    loss: Callable[[Tensor, int], Tensor], workers: int, steps: int, lr: float
) -> Callable[[Tensor, int], Tensor]:
    """The local training of ``federate``: ``steps`` plain gradient steps of every worker by itself.

    ``loss(rows, step)`` are the workers' losses [workers] at their weights [workers n], each on its own next batch; steps
    are counted through all rounds.
    """

    def local(x: Tensor, round: int) -> Tensor:
        rows = x.expand(workers, -1).clone()
        for step in range(round * steps, (round + 1) * steps):
            rows.requires_grad_(True)
            (slope,) = torch.autograd.grad(loss(rows, step).sum(), rows)
            rows = rows.detach() - lr * slope
        return rows

    return local


def federate(
    local: Callable[[Tensor, int], Tensor],
    start: Float[Tensor, " n"],
    fleet: Fleet,
    rounds: int,
    *,
    what: Literal["weights", "updates"] = "updates",
    measure: Callable[[Tensor], float],
) -> tuple[Float[Tensor, " n"], list[Point]]:
    """Rounds of local training and exchange. ``local(x, round)`` are the workers' weights [workers n] after training by
    themselves from x; they exchange these, or by how much they moved, which is added to x."""
    x, points = start, []
    for round in range(rounds):
        moved = local(x, round)
        if what == "weights":
            x = fleet.exchange({_FLAT: moved})[_FLAT]
        else:
            x = x + fleet.exchange({_FLAT: moved - x})[_FLAT]
        points.append(Point(step=round + 1, bits=fleet.bits, value=measure(x)))
    return x, points
