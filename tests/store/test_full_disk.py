"""A full disk gives one clear message, loses nothing, and the run goes on when there is room again."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from triloop.errors import StoreError
from triloop.store import Row, Run, failpoints
from triloop.store.database import is_finished

FULL = (
    r"the disk is full: could not write .*Everything acknowledged so far is kept; free space and `triloop resume .*run`"
)


def batch(i: int, size: int = 8) -> list[Row]:
    return [Row(id=f"{i}/{j}", round=i, kind="x", payload={"noise": f"{i * 31 + j:08d}" * 100}) for j in range(size)]


def test_sqlite_reports_a_full_disk(run_dir: Path) -> None:
    with Run.create(run_dir, {}, {}) as run:
        run.append(batch(0))
        (pages,) = run._database.query("PRAGMA page_count")[0]
        run._database.query(f"PRAGMA max_page_count = {pages + 2}")
        acknowledged = 8
        with pytest.raises(StoreError, match=FULL):
            for i in range(1, 100):
                run.append(batch(i, 64))
                acknowledged += 64
        assert len(list(run.rows())) == acknowledged
        run._database.query("PRAGMA max_page_count = 1000000")
        run.append(batch(100))
        assert run.damage() == []


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EIO", "EROFS"])
@pytest.mark.parametrize("where", ["append.written", "checkpoint.synced", "checkpoint.written", "prune.written"])
def test_the_system_reports_an_error(run_dir: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: str) -> None:
    def state(folder: Path) -> None:
        (folder / "state").write_bytes(b"s")

    with Run.create(run_dir, {}, {}) as run:
        run.append(batch(0))
        run.commit_checkpoint(0, state)
        run.commit_checkpoint(1, state)
        monkeypatch.setenv(failpoints.VARIABLE, f"{where}:1:{error}")
        failpoints.rearm()
        expected = FULL if error in ("ENOSPC", "EDQUOT") else "Everything acknowledged so far is kept; check the disk"
        with pytest.raises(StoreError, match=expected):
            run.append(batch(2))
            run.commit_checkpoint(2, state)
        monkeypatch.delenv(failpoints.VARIABLE)
        failpoints.rearm()
        assert len(list(run.rows(round=0))) == 8
        latest = run.latest_checkpoint()
        assert latest is not None
        assert latest.round == (2 if where.startswith("prune") else 1)
        run.append(batch(2))
        assert run.commit_checkpoint(2, state) == run.latest_checkpoint()
        assert len(list((run_dir / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("where", failpoints.NAMES)
def test_a_full_disk_anywhere_is_told_in_one_way(run_dir: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """At every failpoint: the one message, exit code 1, and the same steps go through once there is room."""

    def state(folder: Path) -> None:
        (folder / "state").write_bytes(b"s")

    def steps() -> None:
        made = is_finished(run_dir / "run.db")
        with Run.open(run_dir, write=True) if made else Run.create(run_dir, {}, {}) as run:
            run.append(batch(0))
            for round in range(4):
                run.commit_checkpoint(round, state)
            run.append(batch(9))
            run.rewind(2)

    monkeypatch.setenv(failpoints.VARIABLE, f"{where}:1:ENOSPC")
    failpoints.rearm()
    nothing = where in ("create.folder", "create.locked", "create.config")
    expected = "the disk is full: could not write .* Free space and start the run again" if nothing else FULL
    with pytest.raises(StoreError, match=expected) as told:
        steps()
    assert told.value.exit_code == 1
    monkeypatch.delenv(failpoints.VARIABLE)
    failpoints.rearm()
    steps()
    with Run.open(run_dir, write=False) as run:
        assert [c.round for c in run.checkpoints()] == [2] and run.damage() == []


@pytest.mark.parametrize("call", ["open", "pwrite"])
def test_no_room_for_the_lock(run_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    Run.create(run_dir, {}, {}).close()
    real = getattr(os, call)

    def full(*given: object, **more: object) -> object:
        if call == "open" and not str(given[0]).endswith("run.lock"):
            return real(*given, **more)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StoreError, match=FULL):
            Run.open(run_dir, write=True)
    Run.open(run_dir, write=True).close()


def test_no_room_for_the_folder(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StoreError, match="the disk is full: could not write"):
        Run.create(run_dir, {}, {})


def test_sqlites_own_io_error_says_what_to_do(run_dir: Path) -> None:
    expected = pytest.raises(StoreError, match="the disk failed to read or write")
    with Run.create(run_dir, {}, {}) as run, expected, run._database.transaction("append"):
        raise sqlite3.OperationalError("disk I/O error")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 3 MiB."""
    point = tmp_path / "disk"
    point.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(point)], capture_output=True, check=False
    )
    if not made or made.returncode != 0:
        pytest.skip("a filesystem cannot be mounted here")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    path = small_disk / "run"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"b" * (1 << 20))

    def state(size: int):  # type: ignore[no-untyped-def]
        return lambda folder: (folder / "state").write_bytes(b"s" * size)

    with Run.create(path, {}, {}) as run:
        run.append(batch(0))
        run.commit_checkpoint(0, state(1000))
        with pytest.raises(StoreError, match=FULL):
            run.commit_checkpoint(1, state(4 << 20))
        acknowledged = 8
        with pytest.raises(StoreError, match=FULL):
            for i in range(1, 10000):
                run.append([Row(id=f"{i}", round=i, kind="x", payload={"n": list(range(i, i + 9000, 7))})])
                acknowledged += 1
        assert len(list(run.rows())) == acknowledged
    ballast.unlink()
    with Run.open(path, write=True) as run:
        assert len(list(run.rows())) == acknowledged
        latest = run.latest_checkpoint()
        assert latest is not None
        assert latest.round == 0
        run.append(batch(20000))
        run.commit_checkpoint(1, state(1000))
        assert run.damage() == []
