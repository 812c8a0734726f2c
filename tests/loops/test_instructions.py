"""Which principles a judge goes by: counts by hand, a bandit that finds the good ones, and a run that changes its judge."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from loops.test_generations import STEPS, config
from triloop.errors import ConfigError, StoreError
from triloop.learn.objective_config import ObjectiveConfig
from triloop.loops.instruct import agreements
from triloop.loops.instructions import Instructions
from triloop.loops.run import resume, start
from triloop.loops.stages import CollectConfig, CycleConfig, InstructConfig, PreferConfig
from triloop.records import Feedback
from triloop.store.run import Run

CYCLE = CycleConfig(
    stages=("instruct", "collect", "prefer"),
    instruct=InstructConfig(prompts=8, tried=2, sets=("clean", "coverage+clean", "fluent")),
    collect=CollectConfig(prompts=8, samples=2, source="judge"),
    prefer=PreferConfig(objective=ObjectiveConfig(name="dpo"), **STEPS),
)


def test_sets_of_principles() -> None:
    assert Instructions.of(["a", "b", "c"]).sets == (("a", "b", "c"), ("b", "c"), ("a", "c"), ("a", "b"))
    assert Instructions.of(["a", "b"]).sets == (("a", "b"), ("b",), ("a",))
    assert Instructions.of(["a"]).sets == (("a",),)
    assert Instructions.of(["a", "b", "c"], ["c+a", "b"]).sets == (("c", "a"), ("b",))
    with pytest.raises(ConfigError, match="no principle is called d, e"):
        Instructions.of(["a", "b"], ["a+d", "e"])
    with pytest.raises(ConfigError, match="twice"):
        Instructions.of(["a", "b"], ["a+b", "b+a"])


def test_counts_by_hand() -> None:
    """3 of 4 is (3 + 1) / (4 + 2); a round later half of that is left, and 1 of 1 beside it."""
    learned = Instructions([("a",), ("b",), ("c",)], memory=0.5)
    assert (learned.best, learned.agreement) == (("a",), 0.5)
    learned.tell([(1, 3.0, 4.0), (2, 1.0, 4.0)])
    assert learned.best == ("b",) and learned.agreement == pytest.approx(4 / 6)
    learned.tell([(2, 4.0, 4.0)])
    assert learned.mean(1) == pytest.approx((1.5 + 1) / (2 + 2)) and learned.mean(2) == pytest.approx(5.5 / 8)
    assert learned.best == ("c",)
    # bad news of what was tried does not crown what was not
    worse = Instructions([("a",), ("b",)])
    worse.tell([(0, 0.0, 9.0)])
    assert worse.best == ("a",)


def test_a_bandit_finds_what_agrees() -> None:
    truth, g = (0.55, 0.6, 0.85, 0.5, 0.7), np.random.default_rng(0)
    learned, tried = Instructions([(n,) for n in "abcde"]), [0] * 5
    for _ in range(30):
        drawn = learned.draw(2, g)
        assert len(set(drawn)) == 2
        learned.tell([(k, float(g.binomial(16, truth[k])), 16.0) for k in drawn])
        for k in drawn:
            tried[k] += 1
    assert learned.best == ("c",) and tried[2] > 25 and tried[3] < 10


def test_agreements_by_hand() -> None:
    people = [Feedback(value=v, kind="pair") for v in (1.0, -1.0, 1.0, -1.0, 0.0, None)]
    judge = [Feedback(value=v, kind="pair") for v in (0.3, 0.2, 0.0, None, 1.0, 1.0)]
    assert agreements(people, judge) == (1.5, 4.0)


def test_what_it_learned_survives(tmp_path: Path) -> None:
    learned = Instructions([("a",), ("b",)])
    learned.tell([(1, 2.25, 3.0)])
    learned.save_state(tmp_path)
    again = Instructions([("a",), ("b",)])
    again.load_state(tmp_path)
    assert (again.best, again.agreement) == (learned.best, learned.agreement)
    with pytest.raises(StoreError, match="counts 2 sets of principles where the run has 1"):
        Instructions([("a",)]).load_state(tmp_path)
    (tmp_path / "instructions.json").write_text("{}")
    with pytest.raises(StoreError, match="cannot be read"):
        again.load_state(tmp_path)


def test_a_run_learns_what_its_judge_goes_by(run_dir: Path, tmp_path: Path) -> None:
    whole = start(config(CYCLE, generations=2), run_dir)
    with Run.open(run_dir, write=False) as run:
        chosen = [row.payload["facts"] for row in run.rows("artifact") if row.payload["thing"] == "judge"]
        assert len(chosen) == 2 and all(c["tried"] == 2 and 0 < c["agreement"] < 1 for c in chosen)
        assert chosen[0]["principles"] in ("clean", "coverage, clean", "fluent")
        kept, learned = run.episodes(1, purpose="instruct"), run.metrics()[2]
        assert len(kept) == 16 and learned["examples"] <= 8, "what people compared is not learned from"
    start(config(CYCLE, generations=1), tmp_path / "short")
    assert resume(tmp_path / "short", generations=2)["weights_sha256"] == whole["weights_sha256"]


def test_what_cannot_be_instructed_is_refused(run_dir: Path) -> None:
    people = dataclasses.replace(CYCLE, collect=CollectConfig(prompts=8, source="people"))
    with pytest.raises(ConfigError, match="chooses what a judge goes by, and no stage asks one"):
        start(config(people), run_dir)
    wrong = dataclasses.replace(CYCLE, instruct=InstructConfig(sets=("kind",)))
    with pytest.raises(ConfigError, match="no principle is called kind; expected different sets of coverage"):
        start(config(wrong), run_dir)
    for changes, message in (
        ({"tried": 0}, "tried 0"),
        ({"memory": 0.0}, "memory is 0"),
        ({"prompts": 0}, "prompts 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            InstructConfig(**changes)  # type: ignore[arg-type]
    assert not run_dir.exists()
