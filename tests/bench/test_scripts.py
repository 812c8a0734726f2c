"""The scripts of benchmarks/ that draw conclusions: slopes, pages, pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.dom import minidom

import pytest

from reading import ROOT


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    import scaling as module  # type: ignore[import-not-found]

    found: ModuleType = module
    return found


def _result(scaling: Any) -> dict[str, Any]:
    """Time proportional to the work on our side, and twice that on the other."""
    done = {}
    for cell in scaling.cells():
        seconds = 1e-9 * cell.parameters * cell.batch * cell.length
        sides = {
            n: {"seconds": k * seconds, "peak_memory_bytes": 2**20} for n, k in (("triloop", 1), ("transformers", 2))
        }
        about = {"size": cell.size, "batch": cell.batch, "length": cell.length, "vocab": cell.vocab}
        done[cell.key] = {**about, "parameters": cell.parameters, **sides, "other_cores": 0.0}
    largest = done.popitem()[1]
    facts = {
        "machine": {"processor": "x"},
        "date": "d",
        "code": "c",
        "threads": 1,
        "precision": "fp32",
        "versions": "v",
    }
    return {**facts, "cells": done, "skipped": [largest], "slopes": scaling.slopes(done)}


def test_proportional_time_has_slope_one(scaling: Any) -> None:
    found = _result(scaling)["slopes"]
    for axis in ("size", "batch", "length"):
        for side in ("triloop", "transformers"):
            assert found[axis][side]["all"] == pytest.approx(1.0)
            assert found[axis][side]["last"] == pytest.approx(1.0)


def test_files(scaling: Any, tmp_path: Path) -> None:
    result = _result(scaling)
    scaling.write(tmp_path, result)
    assert json.loads((tmp_path / "scaling.json").read_text()) == result
    page = (tmp_path / "scaling.md").read_text()
    assert "Left out for lack of time: new tokens 2048." in page
    assert "| 2 |" in page.replace("            2 |", " 2 |")
    drawn = minidom.parse(str(tmp_path / "scaling.svg"))
    assert len(drawn.getElementsByTagName("g")) == 4
    assert len(drawn.getElementsByTagName("path")) == 8


def test_cells_run_from_small_to_large(scaling: Any) -> None:
    cells = scaling.cells()
    assert [c.flops for c in cells] == sorted(c.flops for c in cells)
    ranges = {axis: [getattr(c, axis) for c in cells] for axis in ("batch", "length", "vocab")}
    assert {axis: (min(v), max(v)) for axis, v in ranges.items()} == {
        "batch": (8, 1024),
        "length": (32, 2048),
        "vocab": (64, 50257),
    }
    assert {c.size for c in cells} == {"0.2m", "1m", "5m", "30m", "100m"}


def test_earlier_cells_count_on_the_same_machine_only(scaling: Any, tmp_path: Path) -> None:
    result = _result(scaling)
    scaling.write(tmp_path, result)
    assert scaling._kept(tmp_path, result) == result["cells"]
    assert scaling._kept(tmp_path, {**result, "threads": 2}) == {}
    assert scaling._kept(tmp_path / "nothing", result) == {}
