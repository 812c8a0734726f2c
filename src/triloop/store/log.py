"""The append-only event log: what happened, once each, and nothing ever deleted.

A row is *live* or *orphaned*. Appending a row whose id is live with the same hash does nothing, so a replayed round
adds nothing; with another hash the new row becomes live and the old one is kept as orphaned. The digest is over live
rows, and is therefore the same for a run that was killed and replayed as for one that never stopped.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from triloop.errors import StoreError
from triloop.store.codec import NOT_IN_DIGEST, Encoded, Row, content_hash, decode_payload, encode
from triloop.store.database import SCHEMA, Database

__all__ = ["Appended", "EventLog"]

_PAGE = 2000
"""Rows read at a time: a reader holds no snapshot, and no more memory than this, between pages."""

_BATCH = 5000
"""Identifiers per statement; sqlite allows 32,766 variables."""

_COLUMNS = "seq, id, round, kind, parents, payload, time, state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """What became of the rows of one ``append``."""

    added: int
    """New live rows, those that superseded another included."""
    same: int
    """Rows that were there already."""
    superseded: int
    """Old rows that a row with the same id and another content replaced."""


class EventLog:
    """Rows of one database. Keeps in memory only which old rows a replay has met again."""

    def __init__(self, database: Database) -> None:
        self._database = database
        ((self._opened_at,),) = database.query("SELECT coalesce(max(seq), 0) FROM events")
        self._met_again: set[int] = set()

    def append(self, rows: Iterable[Row], *, durable: bool = False) -> Appended:
        """Write rows in one transaction; when it returns, they survive the death of the process.

        ``durable`` rows (what a person said) survive a power cut too, and no replay orphans them, since none could
        make them again. Raises StoreError; then none of these rows is written and all earlier ones are kept.
        """
        batch = _distinct(rows)
        now = time.time()
        with self._database.transaction("append", durable=durable) as connection:
            live = self._live(list(batch))
            fresh = [e for id, e in batch.items() if id not in live or live[id][1] != e.hash]
            old = {e.row.id: live[e.row.id][0] for e in fresh if e.row.id in live}
            for encoded in fresh:
                if encoded.row.id in live and live[encoded.row.id][2] != encoded.row.kind:
                    raise StoreError(
                        f"row id {encoded.row.id!r} is taken by a {live[encoded.row.id][2]}; "
                        f"a {encoded.row.kind} needs an id of its own"
                    )
            self._orphan(connection, list(old.values()))
            self._orphan_judgements_of(connection, set(old))
            connection.executemany(
                "INSERT INTO events (id, round, kind, parents, hash, schema, payload, time, durable) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [_values(encoded, now, durable) for encoded in fresh],
            )
        self._met_again.update(seq for id, (seq, hash, _) in live.items() if id not in old and seq <= self._opened_at)
        return Appended(added=len(fresh), same=len(batch) - len(fresh), superseded=len(old))

    def rows(
        self,
        kind: str | None = None,
        round: int | None = None,
        *,
        state: str | None = "live",
        limit: int | None = None,
    ) -> Iterator[Row]:
        """Rows in the order they were appended; ``state`` None gives live and orphaned ones alike."""
        kinds = [kind] if kind is not None else self.kinds()
        where = [f"kind IN ({_marks(kinds)})", "seq > ?"]
        fixed: list[object] = []
        for column, value in (("round", round), ("state", state)):
            if value is not None:
                where.append(f"{column} = ?")
                fixed.append(value)
        # Left to itself sqlite walks the whole table in the order that is asked for.
        index = "" if round is None else "INDEXED BY events_kind_round"
        sql = f"SELECT {_COLUMNS} FROM events {index} WHERE {' AND '.join(where)} ORDER BY seq LIMIT ?"
        last, left = 0, limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            page = self._database.query(sql, (*kinds, last, *fixed, size))
            yield from map(_row, page)
            if len(page) < size:
                return
            last, left = page[-1][0], None if left is None else left - size

    def find(self, ids: Sequence[str]) -> dict[str, Row]:
        """Live rows by id; an unknown id is absent."""
        found: dict[str, Row] = {}
        for part in _parts(ids):
            sql = f"SELECT {_COLUMNS} FROM events WHERE state = 'live' AND id IN ({_marks(part)})"
            found.update((row[1], _row(row)) for row in self._database.query(sql, part))
        return found

    def kinds(self) -> list[str]:
        """Kinds of row that occur, in alphabetical order; one index seek each."""
        kinds: list[str] = []
        while found := self._database.query(
            "SELECT kind FROM events WHERE kind > ? ORDER BY kind LIMIT 1", (kinds[-1] if kinds else "",)
        ):
            kinds.append(found[0][0])
        return kinds

    def rounds(self, kind: str) -> list[int]:
        """Rounds that have a live row of this kind, ascending."""
        sql = "SELECT DISTINCT round FROM events WHERE kind = ? AND state = 'live' ORDER BY round"
        return [round for (round,) in self._database.query(sql, (kind,))]

    def count(self, *, state: str = "live") -> int:
        """Number of rows in this state."""
        return int(self._database.query("SELECT count(*) FROM events WHERE state = ?", (state,))[0][0])

    def digest(self) -> str:
        """SHA-256 over (id, hash, parents) of the live rows in the order of their ids, without events and timings."""
        total = hashlib.sha256()
        last = ""
        sql = (
            "SELECT id, hash, parents, kind FROM events INDEXED BY events_live_id "
            "WHERE state = 'live' AND id > ? ORDER BY id LIMIT ?"
        )
        while page := self._database.query(sql, (last, _PAGE)):
            for id, hash, parents, kind in page:
                if kind not in NOT_IN_DIGEST:
                    total.update(json.dumps([id, hash, parents]).encode() + b"\n")
            last = page[-1][0]
        return total.hexdigest()

    def damage(self) -> list[str]:
        """Rows whose content no longer has the hash it was stored with."""
        wrong: list[str] = []
        last = 0
        sql = "SELECT seq, id, kind, parents, hash, payload FROM events WHERE seq > ? ORDER BY seq LIMIT ?"
        while page := self._database.query(sql, (last, _PAGE)):
            wrong += [f"row {row[1]!r} of kind {row[2]!r} is damaged" for row in page if not _intact(*row[2:])]
            last = page[-1][0]
        return wrong

    def settle(self, connection: sqlite3.Connection, after: int, up_to: int) -> int:
        """Orphan what was live at opening in rounds ``after < round <= up_to`` and was not made again since.

        Part of a checkpoint's transaction: a replay that went another way leaves nothing of the first way behind.
        """
        replayed = [kind for kind in self.kinds() if kind not in NOT_IN_DIGEST]
        found = connection.execute(
            f"SELECT seq FROM events WHERE kind IN ({_marks(replayed)}) AND round > ? AND round <= ? "
            "AND state = 'live' AND durable = 0 AND seq <= ?",
            (*replayed, after, up_to, self._opened_at),
        ).fetchall()
        stale = [seq for (seq,) in found if seq not in self._met_again]
        self._orphan(connection, stale)
        return len(stale)

    def rewind(self, connection: sqlite3.Connection, round: int) -> int:
        """Orphan every live row of a later round, a person's judgements of its samples too; events and timings stay."""
        kinds = [kind for kind in self.kinds() if kind not in NOT_IN_DIGEST]
        changed = connection.execute(
            f"UPDATE events SET state = 'orphaned' WHERE kind IN ({_marks(kinds)}) AND round > ? AND state = 'live'",
            (*kinds, round),
        )
        return changed.rowcount

    def _live(self, ids: Sequence[str]) -> dict[str, tuple[int, str, str]]:
        live: dict[str, tuple[int, str, str]] = {}
        for part in _parts(ids):
            sql = f"SELECT id, seq, hash, kind FROM events WHERE state = 'live' AND id IN ({_marks(part)})"
            live.update((id, (seq, hash, kind)) for id, seq, hash, kind in self._database.query(sql, part))
        return live

    def _orphan(self, connection: sqlite3.Connection, seqs: Sequence[int]) -> None:
        connection.executemany("UPDATE events SET state = 'orphaned' WHERE seq = ?", [(seq,) for seq in seqs])

    def _orphan_judgements_of(self, connection: sqlite3.Connection, ids: set[str]) -> None:
        """A person judged the text they saw: when another text takes its id, their judgement does not pass on to it."""
        if not ids:
            return
        found = connection.execute("SELECT seq, parents FROM events WHERE durable = 1 AND state = 'live'").fetchall()
        self._orphan(connection, [seq for seq, parents in found if not ids.isdisjoint(json.loads(parents))])


def _distinct(rows: Iterable[Row]) -> dict[str, Encoded]:
    batch: dict[str, Encoded] = {}
    for row in rows:
        encoded = encode(row)
        if batch.setdefault(row.id, encoded).hash != encoded.hash:
            raise StoreError(f"two different rows of one batch have the id {row.id!r}; give each an id of its own")
    return batch


def _values(encoded: Encoded, now: float, durable: bool) -> tuple[Any, ...]:
    row = encoded.row
    when = now if row.time is None else row.time
    return row.id, row.round, row.kind, encoded.parents, encoded.hash, SCHEMA, encoded.payload, when, int(durable)


def _intact(kind: str, parents: str, hash: str, stored: bytes) -> bool:
    try:
        return content_hash(kind, parents, stored) == hash
    except zlib.error:
        return False


def _row(values: tuple[Any, ...]) -> Row:
    _, id, round, kind, parents, payload, when, state = values
    return Row(
        id=id,
        round=round,
        kind=kind,
        payload=decode_payload(id, payload),
        parents=tuple(json.loads(parents)),
        time=when,
        state=state,
    )


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[i : i + _BATCH] for i in range(0, len(ids), _BATCH))
