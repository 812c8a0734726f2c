"""A group of workers over gloo in which a lost worker ends the work with its name instead of a silence.

``join`` starts the group from torchrun's variables (or from a shared file); ``Group.gather`` and ``Group.largest`` are the
two collectives that schemes need. Where one of them fails, the workers that are left say so in the store that they met
in, wait for the time-out whether the others do too, and raise WorkError with the ranks that did not.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from triloop.errors import ConfigError, WorkError

__all__ = ["Group", "Meeting", "join"]

_GRACE = 2.0
"""Seconds beyond the time-out that survivors wait for each other's word."""
_READ = 0.5
"""Seconds that the first to know stays, so that the others can read its verdict in a store that may end with it."""
_JOINED, _HERE, _VERDICT = (f"triloop-comms/{name}" for name in ("joined/", "here/", "verdict"))
"""Keys of the store: who has come, a survivor's word after a failure, and the ranks that have not given theirs."""
_SIGNS = ("gloo", "pair closure", "Connection closed", "Connection reset", "Broken pipe", "timeout", "Timed out")
"""Words by which an error of the transport is known; torch has no type for it."""


class Meeting(Protocol):
    """What is asked of the store in which the workers met: any of torch's."""

    def set(self, key: str, value: str, /) -> None:
        """Says something to all."""
        ...

    def get(self, key: str, /) -> bytes:
        """What was said under that key; waits for it."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Whether something was said under all of these."""
        ...


@dataclass(frozen=True, kw_only=True)
class Group:
    """The workers of a run, as one of them sees them."""

    rank: int
    size: int
    timeout: float
    """Seconds that a collective may take."""
    store: Meeting | None = None
    """Where the workers met; None (a group that was started elsewhere) leaves a lost worker without its name."""

    @staticmethod
    def current(timeout: float) -> Group:
        """The default group of a program that started one itself, with the time-out that it was started with."""
        if not dist.is_initialized():
            raise ConfigError("no process group is started; call triloop.comms.group.join first")
        return Group(rank=dist.get_rank(), size=dist.get_world_size(), timeout=timeout)

    def gather(self, message: UInt8[Tensor, " bytes"]) -> UInt8[Tensor, "workers bytes"]:
        """Every worker's message, by rank. WorkError where a worker is lost or late."""
        if self.size == 1:
            return message[None]
        every = [torch.empty_like(message) for _ in range(self.size)]
        with self.guarded("gathering messages"):
            dist.all_gather(every, message)
        return torch.stack(every)

    def largest(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The largest of all workers, number by number. WorkError where a worker is lost or late."""
        found = x.clone()
        if self.size > 1 and x.numel():
            with self.guarded("agreeing on scales"):
                dist.all_reduce(found, dist.ReduceOp.MAX)
        return found

    @contextlib.contextmanager
    def guarded(self, doing: str) -> Iterator[None]:
        """Turns an error of the transport into a WorkError that names who is lost; for collectives of one's own too.

        Put it around the whole step: DDP's own messages (buffers, the start) then end as clearly as a hook's.
        """
        try:
            yield
        except WorkError:
            raise
        except RuntimeError as error:
            if not any(sign in str(error) for sign in _SIGNS):
                raise
            first = str(error).splitlines()[0]
            raise WorkError(
                f"worker {self.rank} of {self.size} failed while {doing}: {self._who()}. Look in that worker's log (killed "
                "for want of memory? crashed? a step longer than the time-out?), then start all workers again from the "
                f"state that was saved last; time-out {self.timeout:g} s. The transport said: {first}"
            ) from error

    def close(self) -> None:
        """Leave the group; harmless when it has failed or is left already."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _who(self) -> str:
        """Who did not answer, in words; takes up to the time-out and its grace."""
        if self.store is None:
            return "which worker is lost cannot be told of a group that was not started by triloop.comms.group.join"
        found: list[list[int]] = []
        # beside the work: a store whose process is stopped, not dead, answers never
        asking = threading.Thread(target=self._ask, args=(self.store, found), daemon=True)
        asking.start()
        asking.join(self.timeout + 2 * _GRACE)
        if not found:
            return "rank 0 does not answer (or torchrun, if that keeps the store in which the workers met)"
        (silent,) = found
        if self.rank in silent:
            return "this worker was too late, and the others have given it up"
        if not silent:
            return "all workers still answer, so it was the connection"
        ranks = ", ".join(str(r) for r in silent)
        return f"rank {ranks} does not answer" if len(silent) == 1 else f"ranks {ranks} do not answer"

    def _ask(self, store: Meeting, found: list[list[int]]) -> None:
        with contextlib.suppress(RuntimeError):  # torch's DistNetworkError and kin: the store has gone with its process
            found.append(self._silent(store))

    def _silent(self, store: Meeting) -> list[int]:
        """Ranks that gave no word within the time-out. The first worker to know tells the others."""
        store.set(_HERE + str(self.rank), "1")
        end = time.monotonic() + self.timeout + _GRACE
        waiting = [r for r in range(self.size) if r != self.rank]
        while waiting and time.monotonic() < end:
            if store.check([_VERDICT]):
                return [int(r) for r in store.get(_VERDICT).decode().split(",")]
            waiting = [r for r in waiting if not store.check([_HERE + str(r)])]
            time.sleep(0.05)
        if waiting:
            store.set(_VERDICT, ",".join(map(str, waiting)))
        if self.size > 2:
            time.sleep(_READ)
        return waiting


def join(
    *,
    timeout: float = 120.0,
    patience: float = 300.0,
    init_method: str = "env://",
    rank: int | None = None,
    size: int | None = None,
) -> Group:
    """Start the default process group over gloo, and wait at most ``patience`` seconds until all workers are there.

    ``env://`` reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which torchrun sets; ``file://PATH`` meets in a file
    that does not exist yet and needs ``rank`` and ``size``. ``timeout`` is for every later collective: longer than the
    longest step of the slowest worker. ConfigError where a variable is missing, WorkError where workers do not come.
    """
    if timeout <= 0 or patience <= 0:
        raise ConfigError(f"time-out and patience are {timeout} s and {patience} s; expected above 0")
    limit, start = (datetime.timedelta(seconds=s) for s in (timeout, patience))
    try:
        store, here, workers = next(
            rendezvous(init_method, -1 if rank is None else rank, -1 if size is None else size, timeout=start)
        )
        # all must be there before the short time-out begins to count
        store.set(_JOINED + str(here), "1")
        store.wait([_JOINED + str(r) for r in range(workers)], start)
        store.set_timeout(limit)
        dist.init_process_group("gloo", store=store, rank=here, world_size=workers, timeout=limit)
    except ValueError as error:
        raise ConfigError(
            f"this worker does not know its group: {error}. Start it by `torchrun --nproc-per-node 2 script.py`, or give "
            "init_method, rank and size"
        ) from error
    except RuntimeError as error:
        raise WorkError(
            f"not all workers came within {patience:g} s: {str(error).splitlines()[0]}. Start all of them at about "
            "the same time, with one MASTER_ADDR and MASTER_PORT that is free"
        ) from error
    return Group(rank=here, size=workers, timeout=timeout, store=store)
