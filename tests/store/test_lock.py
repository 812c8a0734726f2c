from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from triloop.errors import RunFolderError
from triloop.store import Run
from triloop.store.lock import RunLock

HOLD = """
import os, sys
from pathlib import Path
from triloop.store.lock import RunLock
lock = RunLock.acquire(Path(sys.argv[1]))
if sys.argv[2] == "fork" and os.fork() == 0:
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
if sys.argv[2] == "alone":
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


def holder(path: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(path), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_second_writer_is_told_who_holds_the_run_and_readers_are_not_kept_out(run_dir: Path) -> None:
    Run.create(run_dir, {}, {}).close()
    with holder(run_dir / "run.lock", "alone") as process:
        assert process.stdout is not None
        pid = process.stdout.readline().strip()
        with pytest.raises(
            RunFolderError, match=rf"run is in use by process {pid} since \d{{4}}-.*wait for it or stop"
        ):
            Run.open(run_dir, write=True)
        Run.open(run_dir, write=False).close()
        process.send_signal(signal.SIGKILL)
        process.wait()
        Run.open(run_dir, write=True).close()


def test_a_forked_child_does_not_keep_the_lock_of_a_dead_writer(tmp_path: Path) -> None:
    with holder(tmp_path / "run.lock", "fork") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        RunLock.acquire(tmp_path / "run.lock").release()
        os.kill(child, signal.SIGKILL)


def test_two_writers_in_one_process(run_dir: Path) -> None:
    with Run.create(run_dir, {}, {}), pytest.raises(RunFolderError, match=f"process {os.getpid()} since"):
        Run.open(run_dir, write=True)
    Run.open(run_dir, write=True).close()


def test_a_lock_without_a_note(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path / "run.lock")
    (tmp_path / "run.lock").write_text("")
    with pytest.raises(RunFolderError, match="in use by another process"):
        RunLock.acquire(tmp_path / "run.lock")
    lock.release()
    lock.release()


def test_a_folder_that_cannot_hold_a_lock(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot open .*check the permissions"):
        RunLock.acquire(tmp_path / "absent" / "run.lock")
