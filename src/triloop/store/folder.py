"""The run's folder: made, recognised, refused; its configuration and environment."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from triloop.errors import ConfigError, RunFolderError
from triloop.store import failpoints
from triloop.store.database import Database, create_database, is_finished
from triloop.store.failures import disk_full, no_space, translated
from triloop.store.files import sync, write_atomic
from triloop.store.lock import RunLock

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "DATABASE",
    "LOCK",
    "environment_differences",
    "found",
    "plain",
    "read_config",
    "require_run",
    "write_config",
]

CONFIG = "config.yaml"
DATABASE = "run.db"
LOCK = "run.lock"
CHECKPOINTS = "checkpoints"

_OURS = {LOCK, CONFIG, f".{CONFIG}.tmp", DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal"}
"""All that can be in the folder of a run whose creation was cut short."""

_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "afs")


def found(path: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> tuple[RunLock, Database]:
    """Make the folder of a new run, take its lock, and write its configuration and empty log.

    A crash at any point leaves a folder that the same call finishes. Raises RunFolderError for a folder in use.
    """
    settings = plain(config, "config")
    recorded = plain(environment, "environment")
    _make(path)
    with translated(path / DATABASE):
        failpoints.hit("create.folder")
        lock = RunLock.acquire(path / LOCK)
        try:
            failpoints.hit("create.locked")
            _clear_unfinished(path)
            write_config(path, settings)
            failpoints.hit("create.config")
            database = create_database(path / DATABASE, {"config": settings, "environment": recorded})
            sync(path)
        except BaseException:
            lock.release()
            raise
    return lock, database


def require_run(path: Path) -> None:
    """Raise RunFolderError unless ``path`` holds a run whose creation was completed."""
    if not path.exists():
        raise RunFolderError(f"{path} does not exist; give the folder of a run, as `triloop run` printed it")
    if not path.is_dir():
        raise RunFolderError(f"{path} is a file; give the folder of a run")
    if is_finished(path / DATABASE):
        return
    if (path / LOCK).exists() and _unfinished(path):
        raise RunFolderError(f"{path} was cut short while it was made, and holds nothing yet; start the run again")
    if (path / DATABASE).exists():
        raise RunFolderError(f"{path / DATABASE} is empty: nothing of a run is in it; restore it from a backup")
    raise RunFolderError(f"{path} is not a run: it has no {DATABASE}; give the folder that `triloop run` printed")


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in ``config.yaml``; raises RunFolderError or ConfigError with the place of the mistake."""
    try:
        loaded = yaml.safe_load(path.read_bytes())
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} is missing; restore it: it is what the run was started with") from error
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}; correct or restore it") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds {type(loaded).__name__}, expected a mapping of fields; correct or restore it")
    return loaded


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Put ``config`` in the place of the ``config.yaml`` of folder ``path``, whole or not at all."""
    content = _dump(plain(config, "config"))
    with translated(path / CONFIG):
        write_atomic(path / CONFIG, content)


def plain(value: Any, where: str) -> Any:
    """``value`` as YAML and JSON both hold it: tuples become lists and paths strings; ConfigError for anything else."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
    raise ConfigError(
        f"{where} is a {type(value).__name__}, which a file cannot hold; "
        "give text, numbers, booleans, lists or mappings"
    )


def environment_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed on the machine between two recordings, one sentence each; empty when nothing did."""
    before, now = plain(old, "environment"), plain(new, "environment")
    return [
        f"{name} was {before.get(name, 'not recorded')} and is now {now.get(name, 'not recorded')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _make(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file; choose a folder with --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
        occupied = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        if no_space(error):
            raise disk_full(path) from error
        raise RunFolderError(
            f"cannot make the folder {path} ({error.strerror}); choose another with --out or change the permissions"
        ) from error
    # Only a folder that already has our lock file can be one of ours: nobody's own config.yaml is overwritten.
    if occupied and not (LOCK in occupied and _unfinished(path)):
        _refuse(path, occupied)
    if not os.access(path, os.W_OK | os.X_OK):
        raise RunFolderError(f"{path} cannot be written; choose another folder with --out or change its permissions")
    _warn_if_remote(path)


def _refuse(path: Path, occupied: Sequence[str]) -> None:
    if DATABASE in occupied:
        raise RunFolderError(f"{path} holds a run; continue it with `triloop resume {path}`, or choose another --out")
    shown = ", ".join(occupied[:3]) + (", ..." if len(occupied) > 3 else "")
    raise RunFolderError(f"{path} is not empty (it holds {shown}); choose an empty or new folder with --out")


def _unfinished(path: Path) -> bool:
    return {entry.name for entry in path.iterdir()} <= _OURS and not is_finished(path / DATABASE)


def _clear_unfinished(path: Path) -> None:
    # Looked at again under the lock: another process may have finished this folder in the meantime.
    if not _unfinished(path):
        _refuse(path, sorted(entry.name for entry in path.iterdir()))
    for name in _OURS - {LOCK}:
        (path / name).unlink(missing_ok=True)


def _dump(settings: Any) -> bytes:
    text: str = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120)
    return text.encode()


def _warn_if_remote(path: Path) -> None:
    kind = _filesystem(path)
    if kind in _REMOTE:
        warnings.warn(
            f"{path} is on a network filesystem ({kind}), where locks and crash safety cannot be relied on; "
            "choose a local disk with --out",
            RuntimeWarning,
            stacklevel=4,
        )


def _filesystem(path: Path) -> str:
    """The filesystem's name in /proc/mounts, or an empty string where that cannot be told."""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    mounts = [(fields[1].replace("\\040", " "), fields[2]) for fields in map(str.split, lines)]
    inside = [(point, kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    return max(inside, key=lambda mount: len(mount[0]))[1] if inside else ""
