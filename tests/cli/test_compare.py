"""``triloop compare`` with real runs, tiny ones: what stands in the table, and that all were given the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triloop.cli.main import main
from triloop.store.run import Run


def _asked(folder: Path, purpose: str) -> list[str]:
    """Requests of the first round."""
    with Run.open(folder, write=False) as run:
        return sorted({c.prompt_id for c in run.completions(1, purpose=purpose)})


def test_an_algorithm_and_an_objective_beside_the_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "compare grpo kto --env attributes --budget 600 --seeds 0 --prompts-per-round 8 --group-size 4"
    small = "--eval-n 12 --canary-every 0 --guards.preflight off --json --cycle.prefer.batch 16 --lr 1e-3"
    assert main([*words.split(), *small.split(), "--out", str(tmp_path / "c")]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["method"]: row for row in told["rows"]}
    assert list(rows) == ["grpo", "kto", "sft", "rejection"]
    assert [m for m, row in rows.items() if row["baseline"]] == ["sft", "rejection"]
    for method in ("grpo", "kto", "rejection"):
        assert 600 <= rows[method]["tokens_generated"] < 600 + 32 * 36, "one round over at most"
    rounds = rows["grpo"]["tokens_generated"] and rows["grpo"]["labels"] // 32
    assert rows["grpo"]["labels"] == 32 * rounds
    assert rows["kto"]["labels"] % 16 == 0, "one label a pair"
    most = max(rows[m]["labels"] for m in ("grpo", "kto", "rejection"))
    assert (rows["sft"]["labels"], rows["sft"]["tokens_generated"]) == (most, 0)
    assert all(row["n"] == 12 and row["seconds"] > 0 for row in rows.values())
    assert rows["kto"]["difference"]["n"] == 12, "paired on the same held-out problems"
    assert _asked(tmp_path / "c" / "grpo-seed0", "train") == _asked(tmp_path / "c" / "kto-seed0", "collect")
    with Run.open(tmp_path / "c" / "kto-seed0", write=False) as run:
        assert run.config["cycle"]["prefer"] | {"batch": 16, "lr": 1e-3} == run.config["cycle"]["prefer"]
    page = Path(told["plot"]).read_text()
    assert page.count("<svg") == 2 and "rejection (baseline)" in page


def test_a_task_without_a_teacher_says_so() -> None:
    from triloop.cli.compare import notes
    from triloop.loops.config import EnvConfig, RunConfig

    assert not any("left out" in note for note in notes(RunConfig(env=EnvConfig(name="sort"))))
    assert any("no teacher" in note for note in notes(RunConfig(env=EnvConfig(name="gym:leg_counting"))))
