"""Checkpoints: folders that appear whole, and are vouched for by a row that is committed last.

Files are written to a temporary folder, forced to disk, listed with size and SHA-256 in ``manifest.json``, and the
folder is renamed; then the row, which holds the manifest's own SHA-256, is committed. A folder without a row does not
count, and is swept away.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triloop.errors import ConfigError, StoreError
from triloop.store import failpoints
from triloop.store.database import Database
from triloop.store.failures import disk_full, is_disk_full, translated
from triloop.store.files import file_sha256, sync, sync_tree, write_atomic

__all__ = ["MANIFEST", "Checkpoint", "STANDARD", "Retention", "best", "listed", "outdated", "stage", "sweep", "verify"]

MANIFEST = "manifest.json"
_STAGING = ".staging-"
_PREFIX = "round_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A committed state of a run after ``round``; ``path`` is the folder with the files and their manifest."""

    round: int
    path: Path
    sha256: str
    """Of the manifest, and through it of every file."""
    gold: float | None
    """The held-out gold score at this round, when it was measured."""
    time: float
    """Seconds since 1970 at which it was committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which checkpoints stay on the disk; the rows of all of them stay in the log."""

    last: int = 2
    """So many of the newest; two, so that a damaged newest one has a predecessor."""
    best: bool = True
    """The one with the highest gold score: what a guard rolls back to."""
    first: bool = False
    """The oldest one."""

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ConfigError(f"Retention(last={self.last}): at least the newest checkpoint must stay; give last >= 1")


STANDARD = Retention()


def listed(database: Database, folder: Path, state: str = "live") -> list[Checkpoint]:
    """Committed checkpoints in this state, oldest first."""
    sql = "SELECT round, name, manifest, gold, time FROM checkpoints WHERE state = ? ORDER BY round, seq"
    return [
        Checkpoint(round=round, path=folder / name, sha256=manifest, gold=gold, time=time)
        for round, name, manifest, gold, time in database.query(sql, (state,))
    ]


def best(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """The one with the highest gold score, the earliest of equals; None when none was scored."""
    scored = [(c.gold, -i, c) for i, c in enumerate(checkpoints) if c.gold is not None]
    return max(scored, key=lambda item: item[:2])[2] if scored else None


def outdated(checkpoints: Sequence[Checkpoint], retention: Retention) -> list[Checkpoint]:
    """Those of ``checkpoints`` (oldest first) that need not stay on the disk."""
    stay = {c.path for c in checkpoints[-retention.last :]}
    top = best(checkpoints)
    if retention.best and top is not None:
        stay.add(top.path)
    if retention.first and checkpoints:
        stay.add(checkpoints[0].path)
    return [c for c in checkpoints if c.path not in stay]


def stage(folder: Path, round: int, write: Callable[[Path], None]) -> tuple[str, str]:
    """Let ``write`` fill a new folder, make it durable and give it its name.

    Returns the name and the manifest's SHA-256. On any error nothing is left behind and older ones are untouched.
    """
    staging = folder / f"{_STAGING}{round:06d}-{os.getpid()}"
    try:
        with translated(folder):
            failpoints.hit("checkpoint.staging")
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            _fill(staging, write)
            failpoints.hit("checkpoint.files")
            sync_tree(staging)
            failpoints.hit("checkpoint.synced")
            digest = _write_manifest(staging, round)
            failpoints.hit("checkpoint.manifest")
            name = _free_name(folder, round)
            os.rename(staging, folder / name)
            failpoints.hit("checkpoint.renamed")
            sync(folder)
            failpoints.hit("checkpoint.dir_synced")
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return name, digest


def verify(checkpoint: Checkpoint) -> None:
    """Compare every file with the manifest and that with the log; raises StoreError naming the first bad file."""
    manifest = checkpoint.path / MANIFEST
    try:
        if file_sha256(manifest) != checkpoint.sha256:
            raise StoreError(f"{manifest} is corrupt: its SHA-256 is not the one that the log recorded")
        files: dict[str, dict[str, Any]] = json.loads(manifest.read_bytes())["files"]
        for name, expected in files.items():
            file = checkpoint.path / name
            size = file.stat().st_size
            if size != expected["size"]:
                raise StoreError(f"{file} is corrupt: it has {size} bytes, {expected['size']} were written")
            if file_sha256(file) != expected["sha256"]:
                raise StoreError(f"{file} is corrupt: its content is not what was written (SHA-256 differs)")
    except FileNotFoundError as error:
        raise StoreError(f"{error.filename} is missing from the checkpoint of round {checkpoint.round}") from error
    except OSError as error:
        raise StoreError(f"{error.filename or checkpoint.path} cannot be read: {error.strerror}") from error


def sweep(folder: Path, known: Collection[Path]) -> list[Path]:
    """Delete what a killed writer left: staging folders, and checkpoints that no row vouches for. Returns them."""
    if not folder.is_dir():
        return []
    left = [
        path
        for path in sorted(folder.iterdir())
        if path.name.startswith(_STAGING) or (path.name.startswith(_PREFIX) and path not in known)
    ]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return left


def _fill(staging: Path, write: Callable[[Path], None]) -> None:
    try:
        write(staging)
    except Exception as error:
        if is_disk_full(error, staging):
            raise disk_full(staging.parent) from error
        if isinstance(error, OSError):
            raise StoreError(f"the checkpoint could not be written to {staging.parent}: {error}") from error
        raise


def _write_manifest(staging: Path, round: int) -> str:
    files = {
        path.relative_to(staging).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(staging.rglob("*"))
        if path.is_file()
    }
    if MANIFEST in files:
        raise StoreError(f"a checkpoint may not hold a file named {MANIFEST}; give it another name")
    write_atomic(staging / MANIFEST, json.dumps({"schema": 1, "round": round, "files": files}, indent=1).encode())
    return file_sha256(staging / MANIFEST)


def _free_name(folder: Path, round: int) -> str:
    """A round is committed a second time after a roll back; the first folder must stay until the second counts."""
    name, again = f"{_PREFIX}{round:06d}", 1
    while (folder / name).exists():
        name, again = f"{_PREFIX}{round:06d}-{again}", again + 1
    return name
