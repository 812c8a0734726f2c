"""The file ``run.db``: its tables, and one connection whose every failure is a StoreError.

WAL mode: readers never wait for the writer nor it for them. A commit always survives the death of the process; it
survives a power cut when it, or one after it, was ``durable`` (synchronous=FULL). The file stays consistent either way.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from triloop.errors import RunFolderError, StoreError
from triloop.store import failpoints
from triloop.store.failures import translated

__all__ = ["APPLICATION_ID", "SCHEMA", "Database", "create_database", "is_finished", "open_database"]

SCHEMA = 1
"""Version of the tables and of the payloads. A file of a newer version is refused."""

APPLICATION_ID = 0x54524C50
"""``TRLP``: marks the file as a run's log in its header."""

_HEADER = 100
_VERSION_AT = slice(60, 64)
"""Where the file format keeps ``user_version``, big-endian (sqlite.org/fileformat.html, 1.3)."""

_WAIT = 10.0
"""Seconds to wait for another connection, such as a backup, before giving up."""

_TABLES = (
    """CREATE TABLE events (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL, parents TEXT NOT NULL,
        hash TEXT NOT NULL, schema INTEGER NOT NULL, payload BLOB NOT NULL, time REAL NOT NULL,
        durable INTEGER NOT NULL, state TEXT NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'orphaned')))""",
    "CREATE UNIQUE INDEX events_live_id ON events (id) WHERE state = 'live'",
    "CREATE INDEX events_kind_round ON events (kind, round)",
    """CREATE TABLE checkpoints (
        seq INTEGER PRIMARY KEY, round INTEGER NOT NULL, name TEXT NOT NULL, manifest TEXT NOT NULL, gold REAL,
        time REAL NOT NULL, state TEXT NOT NULL CHECK (state IN ('live', 'corrupt', 'orphaned', 'pruned')))""",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
)


class Database:
    """A connection, usable from several threads, one at a time."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._turn = threading.RLock()

    @contextmanager
    def transaction(self, name: str, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """All of the body's writes or none. Passes the failpoints ``name.begin``, ``.written`` and ``.committed``."""
        with self._turn, translated(self.path):
            failpoints.hit(f"{name}.begin")
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                failpoints.hit(f"{name}.written")
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # sqlite has rolled back by itself after some errors
                    self._connection.execute("ROLLBACK")
                raise
            failpoints.hit(f"{name}.committed")

    def query(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement, from one snapshot."""
        with self._turn, translated(self.path):
            return self._connection.execute(sql, values).fetchall()

    def meta(self, key: str) -> Any:
        """A JSON value kept under ``key``, or None."""
        found = self.query("SELECT value FROM meta WHERE key = ?", (key,))
        return json.loads(found[0][0]) if found else None

    def damage(self) -> list[str]:
        """What sqlite's own quick check finds wrong; empty for a sound file."""
        try:
            return [str(line) for (line,) in self.query("PRAGMA quick_check(5)") if line != "ok"]
        except StoreError as error:
            return [str(error)]

    def close(self) -> None:
        with self._turn, suppress(sqlite3.Error):  # folding the WAL into the file can wait for the next opening
            self._connection.close()


def create_database(path: Path, meta: Mapping[str, Any]) -> Database:
    """Make the file with its tables and ``meta``; one transaction, so that it is a run's log wholly or not at all."""
    with translated(path):
        database = Database(path, _connect(path, "rwc"))
        database.query("PRAGMA journal_mode = WAL")
    with database.transaction("create", durable=True) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for statement in _TABLES:
            connection.execute(statement)
        values = {"created": time.time(), **meta}
        connection.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in values.items()])
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
    return database


def open_database(path: Path, *, write: bool) -> Database:
    """Open an existing log; raises StoreError for a damaged file and RunFolderError for one that is not a run's log."""
    try:
        return _open(path, "rw" if write else "ro")
    except StoreError:
        # A cleanly closed log in a folder that cannot be written (an archive) needs no WAL and gets none.
        wal = path.with_name(f"{path.name}-wal")
        if write or os.access(path.parent, os.W_OK) or (wal.exists() and wal.stat().st_size):
            raise
        return _open(path, "ro&immutable=1")


def is_finished(path: Path) -> bool:
    """Whether the creation of this log was completed. A damaged file, or one of another kind, counts as finished."""
    try:
        header = _header(path)
        if not header or int.from_bytes(header[_VERSION_AT], "big"):
            return bool(header)
        # Nothing in the file itself: its first transaction may still be in the WAL.
        with translated(path):
            connection = _connect(path, "ro")
            try:
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            finally:
                connection.close()
    except (StoreError, OSError):
        return True
    return bool(version or tables)


def _header(path: Path) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return file.read(_HEADER)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(path.resolve()))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_WAIT)


def _open(path: Path, mode: str) -> Database:
    with translated(path):
        connection = _connect(path, mode)
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if application != APPLICATION_ID:
                raise RunFolderError(f"{path} is a database, but not the log of a Triloop run; choose another folder")
            if version > SCHEMA:
                raise RunFolderError(
                    f"{path} was written by a newer Triloop (its schema is {version}, this one reads up to {SCHEMA}); "
                    "update Triloop to open this run"
                )
            connection.execute("SELECT count(*) FROM meta").fetchone()
        except BaseException:
            connection.close()
            raise
    return Database(path, connection)
