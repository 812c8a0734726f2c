"""Places where a test may kill this process, so that a crash can be put exactly where it hurts most.

Inert unless the environment variable ``TRILOOP_FAILPOINT`` is set to ``name:count`` (SIGKILL at the count-th passage,
from 1) or ``name:count:ERRNO`` (raise that ``OSError`` instead, such as ``append.written:2:ENOSPC``).
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from triloop.errors import UsageError

__all__ = ["NAMES", "VARIABLE", "hit", "rearm"]

VARIABLE = "TRILOOP_FAILPOINT"

NAMES = (
    "create.folder",
    "create.locked",
    "create.config",
    "create.begin",
    "create.written",
    "create.committed",
    "append.begin",
    "append.written",
    "append.committed",
    "checkpoint.staging",
    "checkpoint.files",
    "checkpoint.synced",
    "checkpoint.manifest",
    "checkpoint.renamed",
    "checkpoint.dir_synced",
    "checkpoint.begin",
    "checkpoint.written",
    "checkpoint.committed",
    "prune.begin",
    "prune.written",
    "prune.committed",
    "prune.deleted",
    "rewind.begin",
    "rewind.written",
    "rewind.committed",
)
"""Every failpoint, in the order in which a run passes them for the first time."""


@dataclass(frozen=True, slots=True)
class _Armed:
    name: str
    count: int
    error: int | None
    passages: Iterator[int]


@cache
def _armed() -> _Armed | None:
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    name, _, rest = text.partition(":")
    count, _, error = rest.partition(":")
    if name not in NAMES or not count.isdigit() or (error and error not in errno.errorcode.values()):
        raise UsageError(
            f"{VARIABLE}={text!r}: expected NAME:COUNT or NAME:COUNT:ERRNO, NAME one of {', '.join(NAMES)}"
        )
    return _Armed(name, int(count), getattr(errno, error) if error else None, itertools.count(1))


def hit(name: str) -> None:
    """Pass the failpoint ``name``; the process ends here when the environment says so."""
    armed = _armed()
    if armed is None or armed.name != name or next(armed.passages) != armed.count:
        return
    if armed.error is not None:
        failure = OSError(armed.error, os.strerror(armed.error))
        raise failure
    os.kill(os.getpid(), signal.SIGKILL)


def rearm() -> None:
    """Read the environment variable again and count from the start (for tests)."""
    _armed.cache_clear()
