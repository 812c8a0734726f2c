"""A run: one folder with ``run.db``, ``config.yaml``, ``checkpoints/`` and ``run.lock``.

One process writes, any number read. How a killed run goes on: ``Run.open(path, write=True)``, load
``latest_checkpoint()``, and play the rounds after it again. Rows that come out the
same are there already; those that come out different, or do not come out again, are orphaned: kept, and no part of the
run any more.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from triloop.errors import StoreError
from triloop.records import Completion, Episode, Feedback, Prompt, Verdict
from triloop.store import checkpoint as checkpoints
from triloop.store import failpoints, folder, reading
from triloop.store.checkpoint import STANDARD, Checkpoint, Retention
from triloop.store.codec import Row
from triloop.store.database import Database, open_database
from triloop.store.failures import translated
from triloop.store.lock import RunLock
from triloop.store.log import Appended, EventLog

__all__ = ["Run"]


class Run:
    """Open with ``create`` or ``open``, close with ``close`` or as a context manager."""

    def __init__(self, path: Path, config: dict[str, Any], database: Database, lock: RunLock | None) -> None:
        self.path = path
        self.config = config
        """What ``config.yaml`` says now."""
        self.log = EventLog(database)
        self._database = database
        self._lock = lock
        self._checkpoints = path / folder.CHECKPOINTS

    @classmethod
    def create(cls, path: Path | str, config: Mapping[str, Any], environment: Mapping[str, Any]) -> Run:
        """Begin a run in an absent or empty folder. ``environment``: threads, versions, processor; resume compares.

        Raises RunFolderError for a folder that is in use, cannot be written or is not empty; ConfigError for a value
        that a file cannot hold.
        """
        path = Path(path)
        lock, database = folder.found(path, config, environment)
        return cls(path, folder.read_config(path / folder.CONFIG), database, lock)

    @classmethod
    def open(cls, path: Path | str, *, write: bool) -> Run:
        """Open a run to read it, or, alone, to go on with it. Raises RunFolderError, ConfigError or StoreError."""
        path = Path(path)
        folder.require_run(path)
        lock = RunLock.acquire(path / folder.LOCK) if write else None
        try:
            database = open_database(path / folder.DATABASE, write=write)
            try:
                run = cls(path, folder.read_config(path / folder.CONFIG), database, lock)
                if write:
                    run._sweep()
            except BaseException:
                database.close()
                raise
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return run

    @property
    def environment(self) -> dict[str, Any]:
        """The machine as it was described when the run was created."""
        return dict(self._database.meta("environment"))

    def config_edits(self) -> list[str]:
        """What was changed in ``config.yaml`` since the run was created, one sentence each."""
        return folder.environment_differences(self._database.meta("config"), self.config)

    # Writing

    def append(self, rows: Iterable[Row], *, durable: bool = False) -> Appended:
        """Write rows in one transaction; see ``EventLog.append``. ``durable`` is for what a person said."""
        self._require_writer()
        return self.log.append(rows, durable=durable)

    def commit_checkpoint(
        self,
        round: int,
        write: Callable[[Path], None],
        *,
        gold: float | None = None,
        retention: Retention = STANDARD,
    ) -> Checkpoint:
        """Make ``round`` the point from which a killed run goes on; ``write`` fills the folder that it is given.

        Rows of earlier rounds that a replay did not make again are orphaned with it. A second commit of the same round
        takes the place of the first. Raises StoreError; then the former checkpoints still stand.
        """
        self._require_writer()
        if gold is not None and gold != gold:  # NaN would win or lose every comparison by accident
            gold = None
        name, digest = checkpoints.stage(self._checkpoints, round, write)
        now = time.time()
        with self._database.transaction("checkpoint", durable=True) as connection:
            ((base,),) = self._database.query("SELECT coalesce(max(round), -1) FROM checkpoints WHERE state = 'live'")
            connection.execute(
                "UPDATE checkpoints SET state = 'pruned' WHERE round = ? AND state != 'pruned'", (round,)
            )
            connection.execute(
                "INSERT INTO checkpoints (round, name, manifest, gold, time, state) VALUES (?, ?, ?, ?, ?, 'live')",
                (round, name, digest, gold, now),
            )
            self.log.settle(connection, base, round)
        self._prune(checkpoints.outdated(self.checkpoints(), retention))
        return Checkpoint(round=round, path=self._checkpoints / name, sha256=digest, gold=gold, time=now)

    def rewind(self, round: int) -> int:
        """Orphan all rows and drop all checkpoints of later rounds: a guard rolled back, or the run now ends earlier.

        Returns the number of rows orphaned. Commit a checkpoint soon: a crash before that replays what was rewound.
        """
        self._require_writer()
        with self._database.transaction("rewind", durable=True) as connection:
            orphaned = self.log.rewind(connection, round)
            connection.execute("UPDATE checkpoints SET state = 'orphaned' WHERE round > ? AND state = 'live'", (round,))
        self._sweep()
        return orphaned

    # Checkpoints

    def checkpoints(self) -> list[Checkpoint]:
        """Those on the disk, oldest first, unverified."""
        return checkpoints.listed(self._database, self._checkpoints)

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest whose files are all intact; warns of each damaged one, naming the file. None: replay from the
        start."""
        for candidate in reversed(self.checkpoints()):
            if self._intact(candidate):
                return candidate
        return None

    def best_checkpoint(self) -> Checkpoint | None:
        """The intact one with the highest gold score, or None when none was scored."""
        left = self.checkpoints()
        while (top := checkpoints.best(left)) is not None:
            if self._intact(top):
                return top
            left.remove(top)
        return None

    # Reading

    def rows(
        self, kind: str | None = None, round: int | None = None, *, state: str | None = "live", limit: int | None = None
    ) -> Iterator[Row]:
        """Rows in the order they were appended; ``state`` is ``live``, ``orphaned`` or None for both."""
        return self.log.rows(kind, round, state=state, limit=limit)

    def rounds(self) -> list[int]:
        """Rounds with metrics, ascending."""
        return self.log.rounds("metrics")

    def metrics(self) -> list[dict[str, Any]]:
        """One mapping per round, ascending, with its number under ``round``."""
        return reading.per_round(self.log, "metrics")

    def timings(self) -> list[dict[str, Any]]:
        """Seconds and rates, like ``metrics``."""
        return reading.per_round(self.log, "timing")

    def verdicts(self, *, state: str | None = "live") -> list[Verdict]:
        """What the guards said, by round; with ``state=None`` also of rounds that were rolled back."""
        return reading.verdicts(self.log, state)

    def prompts(self, ids: Iterable[str]) -> dict[str, Prompt]:
        """Prompts by id; an unknown id is absent."""
        return reading.prompts(self.log, ids)

    def completions(self, round: int | None = None, *, purpose: str | None = "train") -> list[Completion]:
        """Samples of a round, or of all; ``purpose`` None gives those of evaluations and canaries too."""
        return reading.completions(self.log, round, purpose)

    def feedback(self, round: int | None = None) -> dict[str, list[Feedback]]:
        """Judgements of a round, or of all, by the id of the completion they judge."""
        return reading.feedback(self.log, round)

    def episodes(self, round: int, *, purpose: str | None = "train") -> list[Episode]:
        """The round's episodes as ``episode_rows`` stored them."""
        return reading.episodes(self.log, round, purpose)

    def ancestors(self, id: str) -> list[Row]:
        """The live rows that a row was made from, nearest first, each once."""
        return reading.ancestors(self.log, id)

    def digest(self) -> str:
        """Equal for equal runs, whether or not they were killed on the way; see ``EventLog.digest``."""
        return self.log.digest()

    def damage(self) -> list[str]:
        """Everything found wrong with log and checkpoints, reading all of it; empty for a sound run."""
        found = self._database.damage() or self.log.damage()
        for candidate in self.checkpoints():
            try:
                checkpoints.verify(candidate)
            except StoreError as error:
                found.append(str(error))
        return found

    def close(self) -> None:
        """Close the log and give back the lock; doing so twice is harmless."""
        self._database.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_writer(self) -> None:
        if self._lock is None:
            raise StoreError(f"{self.path} was opened to read; open it with write=True to change it")

    def _intact(self, candidate: Checkpoint) -> bool:
        try:
            checkpoints.verify(candidate)
        except StoreError as error:
            warnings.warn(f"{error}; an earlier checkpoint is used instead", RuntimeWarning, stacklevel=3)
            if self._lock is not None:
                self._mark([candidate], "corrupt")
            return False
        return True

    def _mark(self, which: Iterable[Checkpoint], state: str) -> None:
        names = [(state, candidate.path.name) for candidate in which]
        with self._database.transaction("prune") as connection:
            connection.executemany("UPDATE checkpoints SET state = ? WHERE name = ? AND state = 'live'", names)

    def _prune(self, which: list[Checkpoint]) -> None:
        """The row first: a folder without a row is swept later, a row without its folder would count as damaged."""
        with translated(self._checkpoints):
            if which:
                self._mark(which, "pruned")
            self._sweep()
            failpoints.hit("prune.deleted")

    def _sweep(self) -> None:
        known = [*self.checkpoints(), *checkpoints.listed(self._database, self._checkpoints, "corrupt")]
        checkpoints.sweep(self._checkpoints, {candidate.path for candidate in known})
