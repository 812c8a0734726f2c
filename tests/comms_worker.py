"""One worker of the tests of hooks, a process of its own: ``python worker.py TASK RANK SIZE MEETING FOLDER``.

``agree`` runs every scheme on vectors and on a small network, once through and once interrupted; ``train`` takes steps
until it is stopped, saying which.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from triloop.comms.compressors import BestTernary, ScaledSign, TopK
from triloop.comms.group import Group, join
from triloop.comms.hooks import Link, attach
from triloop.comms.schemes import EF14, EF21, Direct, FedVote, Scheme, TernGrad, Vote

__all__ = ["SCHEMES", "STEPS", "batch", "net", "vectors"]

SCHEMES: dict[str, Scheme] = {
    "dense": Direct(),
    "terngrad": TernGrad(),
    "ef14-sign": EF14(compressor=ScaledSign()),
    "ef21-top": EF21(compressor=TopK(share=0.05)),
    "ef21-ternary": EF21(compressor=BestTernary()),
    "ef21-w": EF21(compressor=TopK(share=0.05), weights=(0.25, 0.75)),
    "vote": Vote(),
    "vote-soft": Vote(soft=True),
    "fedvote": FedVote(),
    "fedvote-binary": FedVote(binary=True),
}
STEPS = 6


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(9, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))


def batch(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each worker's data are another region's."""
    g = torch.Generator().manual_seed(100 * step + rank)
    x = torch.randn(12, 9, generator=g) + rank
    return x, x.sin().sum(dim=1, keepdim=True)


def vectors(rank: int, step: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1000 + 100 * step + rank)
    return {"a": torch.randn(3, 7, generator=g), "b": torch.randn(1, generator=g), "c": torch.randn(64, generator=g)}


def trained(scheme: Scheme, group: Group, *, stop_at: int | None) -> tuple[dict[str, torch.Tensor], int]:
    """Weights after STEPS steps of SGD with momentum and the bits sent; with ``stop_at`` everything is rebuilt there."""
    model, link, optimiser = _built(scheme, group)
    for step in range(STEPS):
        if step == stop_at:
            saved = (model.module.state_dict(), optimiser.state_dict(), link.state_dict())
            torch.save(saved, buffer := f"{sys.argv[5]}/state-{group.rank}.pt")
            model, link, optimiser = _built(scheme, group)
            weights, moments, state = torch.load(buffer, weights_only=True)
            model.module.load_state_dict(weights)
            optimiser.load_state_dict(moments)
            link.load_state_dict(state)
        x, y = batch(group.rank, step)
        (model(x) - y).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}, link.bits


def _built(scheme: Scheme, group: Group) -> tuple[DistributedDataParallel, Link, torch.optim.SGD]:
    # buckets of 4 KB: several, in another order after the first step
    model = DistributedDataParallel(net(), bucket_cap_mb=0.004)
    return model, attach(model, scheme, group, seed=5), torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def agree(group: Group, folder: Path) -> None:
    found = {}
    for name, scheme in SCHEMES.items():
        link = Link(scheme=scheme, group=group, seed=5)
        said = [link.exchange(vectors(group.rank, step)) for step in range(3)]
        found[name] = {"said": said, "said_bits": link.bits}
        if not isinstance(scheme, FedVote):
            found[name]["weights"], found[name]["bits"] = trained(scheme, group, stop_at=None)
            found[name]["resumed"], found[name]["resumed_bits"] = trained(scheme, group, stop_at=STEPS // 2)
    torch.save(found, folder / f"found-{group.rank}.pt")


def train(group: Group) -> None:
    model, _, optimiser = _built(TernGrad(), group)
    for step in range(1_000_000):
        x, y = batch(group.rank, step)
        with group.guarded("taking a step"):
            (model(x) - y).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        print(f"step {step}", flush=True)


def main() -> None:
    task, rank, size, meeting, folder = sys.argv[1:]
    torch.set_num_threads(1)
    limit = 60.0 if task == "agree" else 3.0
    # torchrun's way for the one, a shared file for the other
    where = {"init_method": meeting, "rank": int(rank), "size": int(size)} if meeting != "env://" else {}
    group = join(timeout=limit, **where)  # type: ignore[arg-type]
    if task == "agree":
        agree(group, Path(folder))
    else:
        train(group)
    group.close()


if __name__ == "__main__":
    main()
