"""kill -9 at every failpoint: the resumed run equals the one that was never killed, and no acknowledged row is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store import toy


@pytest.fixture(scope="module")
def outcome(memory: Path | None) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        done = subprocess.run(
            [sys.executable, toy.__file__, folder], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


@pytest.mark.parametrize("case", toy.CASES)
def test_killed_and_resumed_equals_uninterrupted(outcome: dict[str, Any], case: str) -> None:
    result = outcome["results"][case]
    assert result["killed"], "the failpoint was never passed"
    assert result["digest"] == outcome["whole"]
    assert result["weights"] == outcome["weights"]
    assert result["lost"] == []
    assert result["damage"] == []
    assert result["folders"] == result["expected_folders"], "a dead writer's folder was not swept"


def test_killed_again_and_again(outcome: dict[str, Any]) -> None:
    again = outcome["again"]
    assert again["deaths"] >= 3
    assert (again["digest"], again["weights"]) == (outcome["whole"], outcome["weights"])


def test_rows_committed_before_the_kill_are_readable_at_once(outcome: dict[str, Any]) -> None:
    results = outcome["results"]
    assert results["append.written:3"]["survived"] < results["append.committed:3"]["survived"]
