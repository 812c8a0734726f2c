"""However a parallel run of a row ends, no process and no folder of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """\
import sys
from triloop.atlas import book
from triloop.cli.main import main

if __name__ == "__main__":
    run = book.run
    book.run = lambda id: run(id, workers=2)
    sys.exit(main(["atlas", "run", "A18"]))
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are looked up in /proc")


def _children(pid: int) -> set[int]:
    """Those with a run in hand: spawned, and past their imports."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return {int(c) for c in found if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()}
    except OSError:
        return set()


def _until(true: object, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (folders := tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        env={**os.environ, "TMPDIR": str(folders)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert _until(lambda: len(list(folders.glob("triloop-atlas-*/*-*"))) >= 2), "two runs have begun"
    workers = _children(process.pid)
    assert len(workers) == 2
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=90)
        assert _until(lambda: not any(map(_alive, workers)), 10), "the workers went on"
    finally:
        for pid in filter(_alive, workers):
            os.kill(pid, signal.SIGKILL)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        return
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted" and "Traceback" not in err
    assert list(folders.glob("triloop-*")) == []
