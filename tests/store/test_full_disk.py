"""A full disk gives one clear message, loses nothing, and the run goes on when there is room again."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from triloop.errors import StoreError
from triloop.store import Row, Run, failpoints

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
