"""The loop over mixed feedback: the plan, what each stage leaves behind, and death at every stage's end."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from triloop.errors import ConfigError
from triloop.learn.choices import AlgorithmConfig
from triloop.learn.objective_config import ObjectiveConfig
from triloop.loops.config import EnvConfig, RunConfig, from_mapping, to_mapping
from triloop.loops.progress import Silent
from triloop.loops.run import resume, start
from triloop.loops.stages import (
    CollectConfig,
    CycleConfig,
    GateConfig,
    ImitateConfig,
    OpposeConfig,
    PeopleConfig,
    PreferConfig,
    ReviseConfig,
    RewardStageConfig,
    plan,
)
from triloop.policies.sampling import Sampling
from triloop.records import Verdict
from triloop.store.run import Run

STEPS: Mapping[str, Any] = {"steps": 1, "batch": 8}
SMALL = CycleConfig(
    first=("imitate",),
    stages=("collect", "reward", "improve", "prefer", "gate"),
    imitate=ImitateConfig(examples=16, **STEPS),
    collect=CollectConfig(prompts=12, samples=2, kinds=("pair", "ternary", "text", "edit", "ranking", "spans")),
    reward=RewardStageConfig(epochs=1),
    prefer=PreferConfig(
        objective=ObjectiveConfig(name="dpo_davidson"),
        beside=("pmpo", "span_pg", "sft"),
        reference="generation",
        **STEPS,
    ),
    gate=GateConfig(n=8),
)


def config(cycle: CycleConfig = SMALL, **changes: Any) -> RunConfig:
    plain: dict[str, Any] = {
        "loop": "generations",
        "policy": "base:attributes",
        "env": EnvConfig(name="attributes"),
        "cycle": cycle,
        "algorithm": AlgorithmConfig(name="grpo", kl_coef=0.05),
        "sampling": Sampling(max_tokens=24, slots=64),
        "rounds": 2,
        "prompts_per_round": 4,
        "group_size": 2,
        "max_draws": 1,
        "eval_n": 8,
        "eval_mid_n": 8,
        "eval_every": 0,
        "canary_every": 0,
        "checkpoint_every": 3,
        "threads": 1,
    }
    return RunConfig(**{**plain, **changes})


class Deadly(Silent):
    """Dies, without a chance to say goodbye, when a round of these has been stored."""

    def __init__(self, rounds: Sequence[int]) -> None:
        self.rounds = rounds

    def round(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict]) -> None:
        if int(metrics["round"]) in self.rounds:
            os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_longer_plan_begins_with_a_shorter_one() -> None:
    short, long = plan(SMALL, 1, 2), plan(SMALL, 3, 2)
    assert long[: len(short)] == short
    assert [s.stage for s in short] == ["imitate", "collect", "reward", "improve", "improve", "prefer", "gate"]
    assert [s.generation for s in long] == [0] + [1] * 6 + [2] * 6 + [3] * 6
    assert [s.last for s in short] == [True, True, True, False, True, True, True]
    assert config(generations=3).total_rounds == len(long)


def test_the_configuration_survives_its_file() -> None:
    assert from_mapping(RunConfig, to_mapping(config())) == config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ("improve",)}, "no stage trains it"),
        ({"stages": ("prefer",), "first": ()}, "let one of collect, revise, oppose come before"),
        ({"collect": CollectConfig(source="task", kinds=("text",))}, "asks task for text; it gives scalar"),
        ({"collect": CollectConfig(samples=1)}, "needs at least 2"),
    ],
)
def test_what_cannot_follow_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, run_dir: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        start(config(dataclasses.replace(SMALL, **changes)), run_dir)
    assert not run_dir.exists()


def test_settings_of_stages_are_for_stages() -> None:
    with pytest.raises(ConfigError, match="are for loop generations"):
        RunConfig(cycle=SMALL)
    with pytest.raises(ConfigError, match="has no stages"):
        RunConfig(loop="generations")


def test_a_task_without_a_teacher_says_so(run_dir: Path) -> None:
    cycle = CycleConfig(first=("imitate",), imitate=ImitateConfig(examples=4, **STEPS))
    wrong = config(cycle, env=EnvConfig(name="gym:chain_sum"))
    with pytest.raises(ConfigError, match="has no teacher"):
        start(wrong, run_dir)
    assert not run_dir.exists()
    asks = CycleConfig(stages=("collect",), collect=CollectConfig(source="judge"))
    with pytest.raises(ConfigError, match="brings no principles; give the judge a YAML file"):
        start(config(asks, env=EnvConfig(name="sort")), run_dir)
    words = CycleConfig(stages=("collect",), collect=CollectConfig(kinds=("pair", "text")))
    with pytest.raises(ConfigError, match="cannot say what is wrong in sort"):
        start(config(words, env=EnvConfig(name="sort")), run_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("generations") / "whole"
    torch.set_num_threads(1)
    return folder, start(config(generations=2), folder)


def test_every_stage_leaves_what_it_made(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = whole
    assert summary["rounds"] == 13
    with Run.open(folder, write=False) as run:
        made = {row.id: row for row in run.rows("artifact")}
        assert [made[k].payload["thing"] for k in sorted(made, key=lambda k: int(k.split("/")[1]))][:6] == [
            "policy",
            "feedback",
            "reward",
            "policy",
            "policy",
            "gate",
        ]
        # the reward model came of the judgements, the policy of policy and reward model, the gate looked at the last one
        assert made["artifact/3/reward"].parents == ("artifact/2/feedback",)
        assert set(made["artifact/5/policy"].parents) == {"artifact/1/policy", "artifact/3/reward"}
        assert made["artifact/7/gate"].parents == ("artifact/6/policy",)
        assert set(made["artifact/9/reward"].parents) == {"artifact/8/feedback", "artifact/3/reward"}
        collected = run.episodes(2, purpose="collect")
        kinds = {f.kind for e in collected for f in e.feedback}
        assert kinds >= {"pair", "ternary", "text", "edit", "ranking", "spans"}
        assert len({e.prompt.id for e in collected}) == 12 and len(collected) == 24
        pairs = [f for e in collected for f in e.feedback if f.kind == "pair"]
        ids = {e.completion.id for e in collected}
        assert pairs and all(len(f.about) == 2 and set(f.about) <= ids for f in pairs)
        learned = run.metrics()[5]
        assert {"pairs/loss", "rated/loss", "spans/loss", "demonstrations/loss"} <= learned.keys()


def test_a_run_goes_on_after_death_at_the_end_of_every_stage(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Killed when each stage's last round is stored and its checkpoint is not: the same weights and rows as undisturbed."""
    _, summary = whole
    ends = [i + 1 for i, step in enumerate(plan(SMALL, 2, 2)) if step.last]
    folder = tmp_path / "run"
    assert forked(lambda: start(config(generations=2), folder, Deadly(ends[:1]))) == -signal.SIGKILL
    for end in ends[1:]:
        assert forked(lambda e=end: resume(folder, Deadly([e]))) == -signal.SIGKILL  # type: ignore[misc]
    last = resume(folder)
    same = ("weights_sha256", "store_digest", "rounds", "eval_before", "eval_after")
    assert {k: last[k] for k in same} == {k: summary[k] for k in same}


def test_more_generations_go_on_from_the_last(tmp_path: Path) -> None:
    cycle = dataclasses.replace(
        SMALL, first=(), stages=("collect", "prefer"), collect=CollectConfig(prompts=6, samples=2)
    )
    cycle = dataclasses.replace(cycle, prefer=PreferConfig(objective=ObjectiveConfig(name="dpo"), **STEPS))
    long = start(config(cycle, generations=3), tmp_path / "long")
    start(config(cycle, generations=1), tmp_path / "short")
    assert resume(tmp_path / "short", generations=3)["weights_sha256"] == long["weights_sha256"]
    with pytest.raises(ConfigError, match="ask for more generations instead"):
        resume(tmp_path / "short", rounds=9)


def test_a_worse_generation_is_put_back(run_dir: Path) -> None:
    """A teacher who errs in everything makes the policy worse; the gate sees it and restores the champion."""
    bad = ImitateConfig(examples=96, noise=1.0, steps=12, batch=48, lr=3e-3)
    cycle = CycleConfig(first=("gate",), stages=("imitate", "gate"), imitate=bad, gate=GateConfig(n=48))
    start(config(cycle), run_dir)
    with Run.open(run_dir, write=False) as run:
        gates = [row.payload["facts"]["accepted"] for row in run.rows("artifact") if row.payload["thing"] == "gate"]
        assert gates == [True, False]
        before, after = (m["gate_value"] for m in run.metrics() if "gate_value" in m)
        assert after < before - 0.2
        back = run.rows("artifact")
        assert any("put back to generation" in row.payload["facts"] for row in back)
    assert list(run_dir.glob("checkpoints/*/champion/policy/model.safetensors"))


def test_feedback_as_a_condition_is_asked_for_in_checks(run_dir: Path) -> None:
    cycle = CycleConfig(
        stages=("collect", "imitate"),
        collect=CollectConfig(prompts=8, samples=2, kinds=("ternary",)),
        imitate=ImitateConfig(on="feedback", **STEPS),
        condition="good",
    )
    start(config(cycle), run_dir)
    with Run.open(run_dir, write=False) as run:
        asked = [e.prompt for e in run.episodes(2, purpose="eval")]
        assert asked and all(p.text.startswith("good ; tell ") and p.id.endswith("|good") for p in asked)
        assert not any("|" in e.prompt.id for e in run.episodes(0, purpose="eval"))


def test_a_teacher_is_preferred_to_the_policy(run_dir: Path) -> None:
    cycle = CycleConfig(
        stages=("oppose", "prefer"),
        oppose=OpposeConfig(prompts=8),
        prefer=PreferConfig(objective=ObjectiveConfig(name="spin"), **STEPS),
    )
    start(config(cycle, generations=2), run_dir)
    with Run.open(run_dir, write=False) as run:
        first, again = (run.episodes(r, purpose="collect") for r in (1, 3))
        taught = [
            [e.completion.text for e in es if e.completion.id.startswith("demonstration/")] for es in (first, again)
        ]
        assert taught[0] == taught[1] and len(taught[0]) == 8  # the same data in every generation
        said = [f for e in first for f in e.feedback]
        assert {f.source for f in said} == {"teacher"} and all(f.value == 1 for f in said)


def test_revisions_are_imitated(run_dir: Path) -> None:
    cycle = CycleConfig(
        first=("revise", "imitate"),
        revise=ReviseConfig(prompts=12, source="people", times=1),
        imitate=ImitateConfig(on="edits", **STEPS),
        people=PeopleConfig(flip=0.0),
    )
    start(config(cycle), run_dir)
    with Run.open(run_dir, write=False) as run:
        said = [f for e in run.episodes(1, purpose="collect") for f in e.feedback]
        assert {f.kind for f in said} == {"text", "edit"}
        assert run.metrics()[1]["examples"] == 12


def test_a_reward_model_reads_so_many_generations_as_it_is_told_and_pools_its_tokens(tmp_path: Path) -> None:
    def learned_from(history: int | None, pooled: float) -> list[float]:
        reward = RewardStageConfig(epochs=1, held_out=0.0, history=history, pooled=pooled)
        cycle = CycleConfig(
            stages=("collect", "reward"), collect=CollectConfig(prompts=6, samples=4), reward=reward, judge="task"
        )
        folder = tmp_path / f"{history} {pooled}"
        start(config(cycle, generations=3), folder)
        heads = torch.load(next(folder.glob("checkpoints/*/reward/member-0/reward.pt")))["heads"]
        assert len(heads["head.weight"]) == (2 if pooled else 1)
        with Run.open(folder, write=False) as run:
            return [m["reward_model_examples"] for m in run.metrics() if "reward_model_examples" in m]

    a, ab, abc = learned_from(None, 0.0)
    assert 0 < a < ab < abc
    assert learned_from(0, 4.0) == [a, ab - a, abc - ab]
    assert learned_from(1, 0.0) == [a, ab, abc - a]
