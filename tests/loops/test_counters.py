"""Counter-metrics: counted by hand, refused where there are none, and a gate and a guard that act on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from loops.test_generations import config
from triloop.envs.attributes import Attributes
from triloop.envs.sort import Sort
from triloop.errors import ConfigError, GuardStop
from triloop.guards.stack import GuardConfig
from triloop.loops import counters
from triloop.loops.config import EnvConfig
from triloop.loops.run import start
from triloop.loops.stages import CycleConfig, GateConfig, ImitateConfig, UsersConfig
from triloop.records import Completion, Episode, Feedback, Prompt
from triloop.store.run import Run

WORLD = Attributes()
FOX = WORLD.parse("tell fox red den :")


def episode(prompt: Prompt, text: str) -> Episode:
    completion = Completion(
        id=f"1/{prompt.id}/{text}", prompt_id=prompt.id, round=1, index=0, prompt_tokens=(1,), tokens=(), logps=(),
        mask=(), text=text, finish="stop", policy_version=0,
    )  # fmt: skip
    return Episode(prompt=prompt, completion=completion, feedback=tuple(WORLD.gold([prompt], [text])), reward=None)


def test_counted_by_hand() -> None:
    """Two texts: the first is clean and says half of it, the second is rude and charming and says all."""
    texts = ("please note the fox is red .", "wow , the ugly fox is red , den .")
    seen = [episode(FOX, t) for t in texts]
    names = ("clean", "coverage", "plain")
    assert counters.mean_counters(names, WORLD, seen) == {
        "counter_clean": 0.5,
        "counter_coverage": 0.75,
        "counter_plain": 0.5,
    }
    assert counters.by_prompt(names, seen[:1]) == {
        "clean": {FOX.id: 1.0},
        "coverage": {FOX.id: 0.5},
        "plain": {FOX.id: 1.0},
    }
    # what gold failed to measure is missing, not 0
    lost = dataclasses.replace(seen[0], feedback=(Feedback(value=None, failure="gone"),))
    assert counters.by_prompt(("clean", "plain"), [lost]) == {"clean": {}, "plain": {FOX.id: 1.0}}
    assert counters.mean_counters((), WORLD, seen) == {} and counters.mean_counters(names, WORLD, []) == {}


def test_what_is_known_of_a_task() -> None:
    assert counters.known_counters(WORLD) >= {"plain", "clean", "polite", "coverage"}
    assert counters.known_counters(Sort()) == {"plain"}


def test_changes_are_paired() -> None:
    change = counters.changed({"a": 1.0, "b": 0.0, "gone": 5.0}, {"a": 0.5, "b": -0.5, "new": 9.0}, seed=0)
    assert change.value == change.low == change.high == -0.5


@pytest.mark.parametrize(
    ("cycle", "env", "message"),
    [
        (CycleConfig(stages=("gate",), counters=("clear",)), "attributes", "names clear; .* are clean, concise"),
        (CycleConfig(stages=("gate",), counters=("clean",)), "sort", "names clean; .* of sort are plain"),
        (CycleConfig(stages=("imitate",), counters=("clean",)), "attributes", "watched in stages improve and gate"),
    ],
)
def test_what_is_not_measured_is_refused(cycle: CycleConfig, env: str, message: str, run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        start(config(cycle, env=EnvConfig(name=env)), run_dir)
    assert not run_dir.exists()


def test_a_generation_that_lost_a_counter_metric_is_put_back(run_dir: Path) -> None:
    """A teacher who errs in everything: here gold would let that pass, and the counter-metrics do not."""
    taught = ImitateConfig(examples=96, noise=1.0, steps=12, batch=48, lr=3e-3)
    cycle = CycleConfig(
        first=("gate",),
        stages=("imitate", "gate"),
        imitate=taught,
        gate=GateConfig(n=48, margin=2.0),  # gold itself would let anything pass
        counters=("clean", "concise"),
    )
    start(config(cycle), run_dir)
    with Run.open(run_dir, write=False) as run:
        first, last = (row.payload["facts"] for row in run.rows("artifact") if row.payload["thing"] == "gate")
        assert first["accepted"] and not last["accepted"]
        assert set(last["fell"].split(", ")) <= {"clean", "concise"} and last["change"] > -2.0
        gates = [m for m in run.metrics() if "gate_value" in m]
        assert gates[1]["gate_clean"] < gates[0]["gate_clean"] and gates[1]["gate_accepted"] == 0.0
        assert "gate_approval" not in gates[0], "no users judge here"


def test_the_guard_sees_the_rounds_samples(run_dir: Path) -> None:
    """Paid by users who love any charming word, at a rate that is far too high: pay rises and plainness falls."""
    cycle = CycleConfig(
        stages=("improve",), judge="users", counters=("plain",), users=UsersConfig(charm=1.0, noise=0.0, pleased=1.0)
    )
    hurried = config(cycle, rounds=14, prompts_per_round=16, group_size=8, guards=GuardConfig(preflight=False))
    hurried = dataclasses.replace(hurried, optim=dataclasses.replace(hurried.optim, lr=2e-3, warmup_steps=1))
    with pytest.raises(GuardStop, match="plain fell from"):
        start(hurried, run_dir)
    with Run.open(run_dir, write=False) as run:
        counted = [m["counter_plain"] for m in run.metrics()]
        assert counted[-1] < counted[0] - 0.1 and all(0 <= c <= 1 for c in counted)


def test_users_are_asked_at_the_gate_where_they_judge(run_dir: Path) -> None:
    cycle = CycleConfig(stages=("improve", "gate"), judge="users", gate=GateConfig(n=8))
    start(config(cycle, rounds=1), run_dir)
    with Run.open(run_dir, write=False) as run:
        assert 0 <= run.metrics()[-1]["gate_approval"] <= 1
