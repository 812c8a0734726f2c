"""One writer per run: an advisory lock that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from triloop.errors import RunFolderError
from triloop.store.failures import disk_full, no_space, translated

__all__ = ["RunLock"]


class RunLock:
    """An exclusive ``flock`` on a file that also says who holds it and since when. The file itself stays."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        # A forked child (a verifier's process, say) shares the lock: left open there, it would outlive this process.
        release = weakref.WeakMethod(self.release)
        os.register_at_fork(after_in_child=lambda: _call(release))

    @classmethod
    def acquire(cls, path: Path) -> RunLock:
        """Take the lock at once, or raise RunFolderError naming the process that holds it. StoreError: the disk is full."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if no_space(error):
                raise disk_full(path) from error
            raise RunFolderError(
                f"cannot open {path} for writing ({error.strerror}); check the permissions of {path.parent}"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunFolderError(
                    f"{path.parent} does not support file locks ({error.strerror}); use a folder on a local disk"
                ) from error
            raise RunFolderError(f"{path.parent} is in use by {_holder(path)}; wait for it or stop it") from None
        note = json.dumps({"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        try:
            with translated(path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, note.encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def release(self) -> None:
        """Give the lock back; doing so twice is harmless."""
        if self._descriptor is not None:
            # Not LOCK_UN: in a forked child that would take the lock from the parent, and closing does not.
            os.close(self._descriptor)
            self._descriptor = None


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    release = method()
    if release is not None:
        release()


def _holder(path: Path) -> str:
    try:
        note = json.loads(path.read_text())
        return f"process {note['pid']} since {note['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it has the lock and has not written its note yet
