"""Schemes as communication hooks of PyTorch's DistributedDataParallel over gloo.

    group = join(timeout=60)
    model = DistributedDataParallel(net)
    link = attach(model, EF21(compressor=TopK(share=0.02)), group, seed=0)

From then on ``backward`` leaves in every ``.grad`` what the scheme makes of all workers' gradients. ``link.state_dict()``
goes into the checkpoint of its worker: memories, counters and with them the random numbers, so that a run that was
interrupted goes on with the same bits. The messages of one bucket travel together, in two collectives at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from triloop.comms.group import Group
from triloop.comms.schemes import Memory, Place, Scheme
from triloop.errors import ConfigError, WorkError

__all__ = ["Bucket", "Link", "attach", "communicate"]


class Bucket(Protocol):
    """What is asked of DDP's GradBucket."""

    def parameters(self) -> list[Tensor]:
        """The parameters whose gradients it carries."""
        ...

    def gradients(self) -> list[Tensor]:
        """Their gradients, as views of the buffer."""
        ...

    def buffer(self) -> Tensor:
        """All of them in one vector."""
        ...


@dataclass(kw_only=True)
class Link:
    """One worker's end of a scheme: what it remembers, and what it has sent."""

    scheme: Scheme
    group: Group
    seed: int = 0
    names: Mapping[int, str] = field(default_factory=dict)
    """Of parameters, by ``id``; for the hook."""
    bits: int = 0
    """Sent by this worker since the start: its messages and the numbers that it offered, each counted once, however
    many others read them."""
    steps: dict[str, int] = field(default_factory=dict)
    own: dict[str, Memory] = field(default_factory=dict)
    common: dict[str, Memory] = field(default_factory=dict)

    def exchange(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the scheme makes of all workers' tensors of these names, in their shapes; fp32.

        All workers must come with the same names, order and shapes. WorkError for a number that is not finite, which would
        reach every worker, and where a worker is lost.
        """
        rows = {name: self._row(name, x) for name, x in vectors.items()}
        agreed = self._agreed(rows)
        places = {name: self._place(name) for name in rows}
        sent: dict[str, Tensor] = {}
        for name, x in rows.items():
            message, self.own[name] = self.scheme.send(places[name], x, agreed[name], self.own.get(name, {}))
            sent[name] = message[0]
        every = self.group.gather(torch.cat(list(sent.values())))
        self.bits += 8 * every.shape[1]
        found = {}
        for (name, x), messages in zip(rows.items(), every.split([len(m) for m in sent.values()], dim=1), strict=True):
            known = self.common.get(name, {})
            y, self.common[name] = self.scheme.receive(places[name], messages, x.shape[1], agreed[name], known)
            found[name] = y.view(vectors[name].shape)
            self.steps[name] = places[name].step + 1
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; of this worker only. Copies, fit for ``torch.save``."""
        return {
            "scheme": repr(self.scheme),
            "seed": self.seed,
            "rank": self.group.rank,
            "size": self.group.size,
            "bits": self.bits,
            "steps": dict(self.steps),
            "own": {name: _copied(m) for name, m in self.own.items()},
            "common": {name: _copied(m) for name, m in self.common.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. ConfigError where it was another worker's, scheme's or seed's."""
        mine = {"scheme": repr(self.scheme), "seed": self.seed, "rank": self.group.rank, "size": self.group.size}
        wrong = [f"{key} {state.get(key)!r} (here {value!r})" for key, value in mine.items() if state.get(key) != value]
        if wrong:
            raise ConfigError(
                f"the saved state of communication is of {', '.join(wrong)}; go on with the same scheme, seed and number "
                "of workers, each with its own file, or start without the state"
            )
        self.bits, self.steps = state["bits"], dict(state["steps"])
        self.own = {name: _copied(m) for name, m in state["own"].items()}
        self.common = {name: _copied(m) for name, m in state["common"].items()}

    def _row(self, name: str, x: Tensor) -> Tensor:
        row = x.detach().to(torch.float32).reshape(1, -1)
        if not bool(torch.isfinite(row).all()):
            raise WorkError(
                f"worker {self.group.rank}, step {self.steps.get(name, 0)}: {name} has a number that is not finite; it "
                "was not sent. Lower the learning rate or clip before; the other workers end by their time-out"
            )
        return row

    def _place(self, name: str) -> Place:
        rank, size = self.group.rank, self.group.size
        return Place(seed=self.seed, step=self.steps.get(name, 0), layer=name, ranks=(rank,), workers=size)

    def _agreed(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        offered = {name: self.scheme.offered(x)[0] for name, x in rows.items()}
        largest = self.group.largest(torch.cat(list(offered.values())))
        self.bits += 32 * largest.numel()
        return dict(zip(rows, largest.split([len(o) for o in offered.values()]), strict=True))


def _copied(memory: Memory) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in memory.items()}


def communicate(link: Link, bucket: Bucket) -> torch.futures.Future[torch.Tensor]:
    """The hook itself: exchanges a bucket's gradients, layer by layer, and writes what came of it back."""
    gradients = bucket.gradients()
    named = {link.names[id(p)]: g for p, g in zip(bucket.parameters(), gradients, strict=True)}
    for g, found in zip(gradients, link.exchange(named).values(), strict=True):
        g.copy_(found)
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def attach(model: nn.parallel.DistributedDataParallel, scheme: Scheme, group: Group, *, seed: int = 0) -> Link:
    """Put a scheme on a DDP model; returns the worker's end of it, whose state belongs into the checkpoint."""
    names = {id(p): name for name, p in model.module.named_parameters() if p.requires_grad}
    link = Link(scheme=scheme, group=group, seed=seed, names=names)
    # a hook's annotations are compared with torch's own types, which these are not
    model.register_comm_hook(link, lambda link, bucket: communicate(link, bucket))
    return link
