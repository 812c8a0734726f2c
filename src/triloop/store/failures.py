"""What sqlite and the operating system say, turned into errors that a user can act on."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triloop.errors import StoreError

__all__ = ["disk_full", "is_disk_full", "no_space", "translated"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SCARCE = 1 << 20
"""Free bytes under which an unexplained write error is taken for a full disk."""

_FULL_TEXT = "disk is full"
_IO_TEXT = "disk I/O error"

_DAMAGED = (
    "the file is damaged or is not a run's log; copy the folder, then restore run.db from a backup "
    "or try `sqlite3 {path} .recover`"
)

_ADVICE = (
    (
        _IO_TEXT,
        "the disk failed to read or write; everything acknowledged so far is kept: check the disk, "
        "then `triloop resume {run}`",
    ),
    ("readonly", "the file cannot be written; check its permissions and those of its folder"),
    ("is locked", "another program holds the file; close it and try again"),
    ("unable to open", "check that the file exists, and its permissions and those of its folder"),
    ("malformed", _DAMAGED),
    ("not a database", _DAMAGED),
    ("no such table", _DAMAGED),
    ("closed database", "the run was closed; open it again"),
)
"""sqlite's words (the same in every version; the numeric codes reach Python only from 3.11) and what to do about them."""


def disk_full(path: Path) -> StoreError:
    """The one message for a full disk; ``path`` is the file or folder that could not be written."""
    run = path if path.is_dir() else path.parent
    if run.name == "checkpoints":
        run = run.parent
    if not (run / "run.db").exists():
        return StoreError(f"the disk is full: could not write {path}. Free space and start the run again")
    return StoreError(
        f"the disk is full: could not write {path}. Everything acknowledged so far is kept; "
        f"free space and `triloop resume {run}`"
    )


def no_space(error: BaseException) -> bool:
    """Whether the operating system itself says that no space is left, on the disk or of the user's share of it."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_disk_full(error: BaseException, path: Path) -> bool:
    """Whether ``error``, raised by any library while it wrote below ``path``, means that no space is left.

    torch and safetensors report a full disk as their own exception types, so the text and the disk itself are asked.
    """
    if no_space(error):
        return True
    text = str(error).lower()
    return "no space left" in text or _FULL_TEXT in text or _scarce(path)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the ``sqlite3.Error`` or ``OSError`` of the body into a ``StoreError`` about ``path``."""
    try:
        yield
    except sqlite3.Error as error:
        raise _from_sqlite(error, path) from error
    except OSError as error:
        if no_space(error):
            raise disk_full(path) from error
        raise StoreError(
            f"{path}: {error.strerror or error}. Everything acknowledged so far is kept; "
            f"check the disk and its permissions, then `triloop resume {path.parent}`"
        ) from error


def _from_sqlite(error: sqlite3.Error, path: Path) -> StoreError:
    text = str(error)
    if _FULL_TEXT in text or (_IO_TEXT in text and _scarce(path)):
        return disk_full(path)
    advice = next((advice for part, advice in _ADVICE if part in text), "please report this message: it is a defect")
    return StoreError(f"{path}: {text}: {advice.format(path=path, run=path.parent)}")


def _scarce(path: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    try:
        return shutil.disk_usage(folder).free < _SCARCE
    except OSError:
        return False
