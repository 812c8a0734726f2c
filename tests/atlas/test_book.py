"""The list of all systems, the recorded results, and one row that is run for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from triloop.atlas import book, page
from triloop.atlas.frame import Contrast, Measured, Row, outcome
from triloop.atlas.table import ROWS, systems
from triloop.errors import ConfigError, UsageError


def test_all_systems_are_listed() -> None:
    rows = book.list_rows()
    assert len(rows) == 254 == len({r["id"] for r in rows})
    assert all(set(r) == {"id", "title", "room", "verdict"} and r["title"] and r["room"] for r in rows)
    measured = book.results()
    assert all((r["verdict"] is None) == (r["id"] not in measured) for r in rows)
    assert all(r["verdict"] in (1, 0, -1, None) for r in rows)


def test_the_rows_of_the_first_issue_stand() -> None:
    assert set(ROWS) >= {"A18", "A20", "A21", "A05", "A15", "S104", "S132", "S085", "A23"}
    assert set(ROWS) <= set(systems())
    assert all(len(row.seeds) >= 3 and row.contrasts for row in ROWS.values())


@pytest.mark.parametrize(("id", "near"), [("a18", "A18"), ("s104", "S104"), ("S132x", "S132")])
def test_an_unknown_row_names_the_nearest(id: str, near: str) -> None:
    for act in (book.show, book.run):
        with pytest.raises(ConfigError, match=f"no row .*did you mean {near}"):
            act(id)


def test_a_system_without_an_experiment_says_so() -> None:
    waiting = next(id for id in systems() if id not in ROWS)
    assert book.show(waiting)["verdict"] is None
    with pytest.raises(ConfigError, match="no experiment yet"):
        book.run(waiting)


def test_recorded_results_are_what_their_data_say() -> None:
    assert book.check() == []
    for result in book.results().values():
        assert {"id", "title", "claim", "measured", "baseline", "ci95", "seeds", "seconds", "verdict"} <= set(result)


def _row(data: list[float], above: float = 0.5) -> tuple[Row, dict[str, Any]]:
    contrast = Contrast(metric="m", treatment="t", baseline="b", above=above, below=0.0)
    measured = Measured(baseline=[[0.0] * len(data)], treatment=[data])
    row = Row(
        id="A18",
        claim="c",
        setup="s",
        core="k",
        contrasts=(contrast,),
        run=lambda _: measured,
        seeds=tuple(range(len(data))),
    )
    made = {"date": "2026-01-31", "processor": "p", "processes": 1, "torch": "t", "triloop": "v"}
    return row, {"title": "T", **outcome(row, measured), "seconds": 1.0, "full": True, "made": made}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A book with one row and one result."""
    row, result = _row([1.0, 1.1, 1.2])
    monkeypatch.setattr(book, "RESULTS", tmp_path / "results.jsonl")
    for module in (book, page):
        monkeypatch.setattr(module, "ROWS", {"A18": row})
    book.save(result)
    return result


def test_a_sound_record_passes_and_is_shown(recorded: dict[str, Any]) -> None:
    assert book.check() == []
    assert book.show("A18")["verdict"] == 1 == recorded["verdict"]
    assert "| m | t: 1.1 | b: 0 | +1.1 |" in page.page()


def test_a_verdict_that_was_touched_is_found(recorded: dict[str, Any]) -> None:
    book.save({**recorded, "verdict": 0})
    assert book.check() == ["A18: verdict is recorded as 0, but the data say 1; run it again and save"]


def test_a_rule_that_was_changed_after_the_data_is_found(
    recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "ROWS", {"A18": _row([1.0, 1.1, 1.2], above=0.2)[0]})
    assert book.check() == ["A18: the rule was changed after the data; run it again and save"]


def test_a_quick_form_is_never_recorded(recorded: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="only a full run can be saved"):
        book.save({**recorded, "full": False})


def test_the_page_names_every_row() -> None:
    text = page.page()
    assert all(f"## {id}\n" in text for id in ROWS)
    assert all(f"| {s.id} |" in text for s in systems().values() if s.id not in ROWS)


LEVELS_WERE = {"A15": ("levels 6 to 8", "levels 5 to 6"), "A23": ("levels 2 to 6", "3 to 6")}
"""Metrics of the rule that were on other levels when first written (see the history of their modules)."""


def test_the_page_says_row_by_row_what_was_changed_after_a_look() -> None:
    text = page.page()
    assert "no threshold was" not in text
    section = text.partition("## What was changed after a first look\n")[2].partition("\n## ")[0]
    for id, row in ROWS.items():
        told = row.changed_after_first_look
        assert text.count(told) == 2 if told else f"- **{id}.**" not in section, id
        assert ("Rule: " in told and "2026-11-21" in told) or not told, f"{id}: what became of the rule, and when?"
        assert book.show(id)["changed_after_first_look"] == (told or "nothing")
    for id, levels in LEVELS_WERE.items():
        assert f"- **{id}.** Rule: " in section and all(said in ROWS[id].changed_after_first_look for said in levels)


def test_a_row_runs(tmp_path: Path) -> None:
    """Every variant, from a policy that has learned to be brief: through loop, store, evaluator and verdict."""
    from triloop.atlas.bases import TinyBase, taught
    from triloop.envs.charset import CHARS

    base = tmp_path / "base"
    base.mkdir()
    taught(
        TinyBase(name="t", recipe="t", chars=CHARS, hidden=16, layers=1, steps=40, lr=0.02),
        lambda _: [("1+1=", "2#2")] * 4,
        base,
    )
    result = book.run("S104", share=0.02, seeds=(0, 1, 2), base=str(base), workers=1)
    assert {"id", "title", "claim", "measured", "baseline", "ci95", "seeds", "seconds", "verdict"} <= set(result)
    assert result["verdict"] in (1, 0, -1)
    assert not result["full"]
    json.dumps(result)
