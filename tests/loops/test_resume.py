"""However a run dies, going on with it ends where the run that never died ended: same weights, same store, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loops import kills

EXIT = {"plain": 0, "wild": 3, "codes": 0}


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "loops.kills", folder],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def equal(found: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    """The outcome of this case, which is the uninterrupted run's."""
    case = found[f"{name} {kind}"]
    assert case["same"] == found["whole"][name]["same"]
    assert (case["code"], case["lost"], case["damage"]) == (EXIT[name], [], [])
    return dict(case)


def test_the_runs_learn_and_end(found: dict[str, Any]) -> None:
    whole = found["whole"]
    assert {name: whole[name]["code"] for name in whole} == EXIT
    assert len({run["same"]["weights_sha256"] for run in whole.values()}) == len(whole)
    assert whole["wild"]["same"]["eval_after"] is not None, "a guard's stop is measured as well"


@pytest.mark.parametrize(("name", "point"), [(n, p) for n, points in kills.CASES.items() for p in points])
def test_killed_at_a_point(found: dict[str, Any], name: str, point: str) -> None:
    assert equal(found, name, point)["status"] == -9


@pytest.mark.parametrize("share", kills.MOMENTS)
def test_killed_at_a_moment(found: dict[str, Any], share: float) -> None:
    equal(found, "plain", f"moment {share}")


@pytest.mark.parametrize("name", EXIT)
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_asked_to_stop(found: dict[str, Any], name: str, number: str) -> None:
    """Exit 130; and the checkpoint that this leaves behind is not one that a guard goes back to."""
    assert equal(found, name, number)["status"] == 130


@pytest.mark.parametrize("point", kills.FULL)
def test_full_disk(found: dict[str, Any], point: str) -> None:
    assert equal(found, "plain", point)["status"] == 1


def test_killed_again_and_again(found: dict[str, Any]) -> None:
    again = found["again"]
    assert again["deaths"] >= 3
    assert (again["same"], again["lost"]) == (found["whole"]["plain"]["same"], [])
