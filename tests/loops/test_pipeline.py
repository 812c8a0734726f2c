"""One step off policy: who samples what, and that it comes out the same in two threads, in one, and after any death."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import pytest
import torch

from loops import kills, tiny
from triloop.errors import ConfigError, DataError
from triloop.learn.algorithms import ALGORITHMS
from triloop.learn.choices import AlgorithmConfig, OptimConfig
from triloop.loops import build
from triloop.loops.ahead import Ahead
from triloop.loops.build import parts, workshop
from triloop.loops.config import CurriculumConfig, EnvConfig, RunConfig, to_mapping
from triloop.loops.progress import Silent
from triloop.loops.rollout import Rollout
from triloop.loops.run import resume, start
from triloop.loops.state import LoopState, Workshop
from triloop.loops.summary import summarise
from triloop.policies.native import NativePolicy
from triloop.records import Feedback, Prompt
from triloop.sources.judge import EnvJudge
from triloop.store import Run

Cores = Callable[[int], None]
Open = Callable[..., Workshop]
LAST = tiny.config(Path("anywhere")).rounds


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Cores:
    """``cores(2)``: the machine has two, so that the sampler gets a thread of its own."""
    return lambda n: monkeypatch.setattr(build, "_available", lambda: n)


@pytest.fixture
def open_shop(base: Path, tmp_path: Path) -> Iterator[Open]:
    """``open_shop(rounds=2, ...)``: the workshop of a pipelined tiny run with these settings."""
    with ExitStack() as stack:

        def make(**changes: Any) -> Workshop:
            made = stack.enter_context(parts(config(base, **changes)))
            out = tmp_path / f"shop{len(list(tmp_path.iterdir()))}"
            run = stack.enter_context(Run.create(out, to_mapping(made.config), made.machine))
            return workshop(made, run, Silent(), lambda: False)

        yield make


def config(base: Path, **changes: Any) -> RunConfig:
    return tiny.config(base, **{"pipeline": True, **changes})


def versions(folder: Path) -> list[int]:
    """Optimiser steps behind the weights that sampled each round."""
    with Run.open(folder, write=False) as run:
        found = [{c.policy_version for c in run.completions(r)} for r in run.rounds()]
    assert all(len(v) == 1 for v in found)
    return [v.pop() for v in found]


def same(folder: Path) -> dict[str, Any]:
    """What equal runs have in common."""
    with Run.open(folder, write=False) as run:
        summary = summarise(run)
        assert run.damage() == []
    return {k: summary[k] for k in ("weights_sha256", "store_digest", "rounds", "eval_before", "eval_after", "guards")}


# -------------------------------------------------------------------- who samples


def test_each_round_is_sampled_by_the_weights_before_the_last_update(base: Path, run_dir: Path, cores: Cores) -> None:
    cores(2)
    start(config(base), run_dir)
    assert versions(run_dir) == [0, 0, 1, 2, 3, 4]
    with Run.open(run_dir, write=False) as run:
        ratios = [m["ratio_max"] for m in run.metrics()]
        of_checks = {c.round: c.policy_version for c in run.completions(purpose="canary")}
    assert ratios[0] == pytest.approx(1.0, abs=1e-4), "there is nothing to wait for in the first round"
    assert all(r > 1.001 for r in ratios[1:]), "the surrogate's ratio starts from what the sampler said"
    assert of_checks == {2: 2, 4: 4, 6: 6}, "what is measured is the policy as it is"


def test_off_by_default(open_shop: Open) -> None:
    assert not RunConfig().pipeline
    assert open_shop(pipeline=False).parts == {}


CASES = {
    "plain": {},
    "adapters": {"lora_rank": 2},
    "values": {"algorithm": AlgorithmConfig(name="ppo")},
    "corrected": {"algorithm": AlgorithmConfig(name="rloo")},
    "frontier": {"curriculum": CurriculumConfig(kind="frontier"), "env": EnvConfig(name="sort")},
    "rounded": {"precision": "bf16"},
    "from the start": {"loop": "expert_iteration", "algorithm": AlgorithmConfig(name="rest_em")},
    "budget": {"token_budget": 150},
}  # fmt: skip


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_two_threads_sample_what_one_does(base: Path, tmp_path: Path, cores: Cores, changes: dict[str, Any]) -> None:
    found = []
    for n in (1, 2):
        cores(n)
        start(config(base, **changes), tmp_path / str(n))
        found.append((same(tmp_path / str(n)), versions(tmp_path / str(n))))
    assert found[0] == found[1]


def test_the_sampler_has_a_thread_where_there_is_a_core_for_it(open_shop: Open, cores: Cores) -> None:
    used: set[str] = set()

    class Watching(EnvJudge):
        def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
            used.add(threading.current_thread().name)
            return super().judge(prompts, texts)

    for n, threads in ((1, 1), (2, 2)):
        cores(n)
        used.clear()
        shop = open_shop()
        shop = dataclasses.replace(shop, judge=Watching(shop.env))
        state = LoopState()
        for _ in range(3):
            played = shop.play(shop, state)
            state = state.after({}, cursor=played.cursor)
        assert len(used) == threads
        assert used >= {"MainThread"}, "the first round is sampled at once"


def test_threads_are_shared_out(base: Path, cores: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    cores(8)
    monkeypatch.setattr(build, "_is_small", lambda policy: False)
    try:
        assert build.set_threads(0, str(base)) == 8
        assert build.set_threads(0, str(base), shared_by=build.hands(config(base))) == 4
        assert build.set_threads(3, str(base), shared_by=2) == 3, "asked for is asked for"
    finally:
        torch.set_num_threads(1)


# -------------------------------------------------------------------- what corrects it


def test_every_algorithm_weighs_old_samples_somehow(base: Path) -> None:
    """By its own ratio against the sampler's words, or by a capped importance weight; the default is not touched."""
    capped = set()
    for name in ALGORITHMS:
        loop = "expert_iteration" if name == "rest_em" else "outcome_rl"
        for pipeline in (False, True):
            c = tiny.config(base, algorithm=AlgorithmConfig(name=name), loop=loop, pipeline=pipeline)  # type: ignore[arg-type]
            with parts(c) as made:
                cap = made.algorithm.importance_cap
            assert pipeline or cap == 0
            capped |= {name} if cap else set()
    assert capped == {"reinforce", "rloo", "gspo"}
    with parts(config(base, algorithm=AlgorithmConfig(name="rloo", importance_cap=5.0))) as made:
        assert made.algorithm.importance_cap == 5.0


def test_stages_are_not_pipelined() -> None:
    from triloop.loops.stages import CycleConfig

    with pytest.raises(ConfigError, match="pipeline is on.*stages"):
        RunConfig(loop="generations", cycle=CycleConfig(stages=("collect",)), pipeline=True)


# -------------------------------------------------------------------- deaths

POINTS = (
    "append.committed:4",  # behind the first round, with the second in flight
    "append.committed:6",  # between two checkpoints
    "checkpoint.written:2",  # a checkpoint without its row: the weights before are in it
    "checkpoint.committed:3",
    "rewind.committed:1",
)


def _all(root: Path) -> dict[str, Any]:
    """Runs that die and go on, and those that do not; in a process of its own, which may fork."""
    base = tiny.base(root)
    found: dict[str, Any] = {}
    for name, changes in (("plain", {}), ("wild", {"guards": tiny.WILD})):
        c = config(base, **changes)
        whole = kills.forked(lambda c=c, n=name: kills.play(root / n, c))  # type: ignore[misc]
        found[name] = {"status": whole, **kills.outcome(root / name)}
        for point in POINTS:
            path = root / f"{name}-{point.replace(':', '_')}"
            status = kills.forked(lambda c=c, p=path: kills.play(p, c), point)  # type: ignore[misc]
            again = kills.forked(lambda c=c, p=path: kills.play(p, c))  # type: ignore[misc]
            found[f"{name} {point}"] = {"status": status, "again": again, **kills.outcome(path)}
        path = root / f"{name}-asked"
        ask = kills.asks(15, (1, 3))
        status = kills.forked(lambda c=c, p=path, a=ask: kills.play(p, c, a))  # type: ignore[misc]
        again = kills.forked(lambda c=c, p=path: kills.play(p, c))  # type: ignore[misc]
        found[f"{name} asked"] = {"status": status, "again": again, **kills.outcome(path)}
    return found


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("deaths")
    done = subprocess.run(
        [sys.executable, "-m", "loops.test_pipeline", str(folder)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ["plain", "wild"])
@pytest.mark.parametrize("how", [*POINTS, "asked"])
def test_a_run_that_died_ends_as_one_that_did_not(deaths: dict[str, Any], name: str, how: str) -> None:
    whole, case = deaths[name], deaths[f"{name} {how}"]
    assert case["again"] == whole["status"] == {"plain": 0, "wild": 3}[name]
    assert (case["same"], case["lost"], case["damage"]) == (whole["same"], [], [])
    assert case["status"] == (130 if how == "asked" else -9) or name == "wild", "it did die on the way"


def test_a_longer_run_goes_on_as_if_it_had_been_asked_for(base: Path, tmp_path: Path) -> None:
    start(config(base, rounds=3), tmp_path / "short")
    resume(tmp_path / "short", rounds=LAST)
    start(config(base), tmp_path / "long")
    assert versions(tmp_path / "short") == versions(tmp_path / "long")
    with Run.open(tmp_path / "short", write=False) as a, Run.open(tmp_path / "long", write=False) as b:
        assert summarise(a)["weights_sha256"] == summarise(b)["weights_sha256"]


# -------------------------------------------------------------------- the part by itself


def _ahead(shop: Workshop) -> Ahead:
    return Ahead(shop.policy, overlaps=True)


def test_what_went_wrong_meanwhile_is_told_in_its_round(open_shop: Open) -> None:
    """And the update that it went on beside is none the worse for it."""
    shop = open_shop()
    ahead = _ahead(shop)
    before = ahead.rolled(shop, LoopState())
    empty = dataclasses.replace(shop, env=cast(Any, _Empty(shop.env)))
    with ahead.meanwhile(empty, LoopState(round=1, cursor=before.cursor)):
        pass
    with pytest.raises(DataError, match="no train prompts"):
        ahead.rolled(empty, LoopState(round=1))


class _Empty:
    """A task that has run out of problems."""

    name = "empty"

    def __init__(self, env: Any) -> None:
        self.levels, self.stop = env.levels, env.stop

    def prompts(self, *_: Any, **__: Any) -> list[Prompt]:
        return []


def test_a_rollback_forgets_what_other_weights_sampled(open_shop: Open, tmp_path: Path) -> None:
    shop = open_shop()
    ahead, policy = _ahead(shop), cast(NativePolicy, shop.policy)
    (nothing := tmp_path / "nothing").mkdir()
    ahead.save_state(nothing)
    assert list(nothing.iterdir()) == [], "nothing is behind before the first update"
    first = LoopState(round=1)

    def following(change: float) -> Rollout:
        """The round sampled beside an update."""
        with ahead.meanwhile(shop, first), torch.no_grad():
            policy.decoder.norm.weight.mul_(change)
        return ahead.rolled(shop, first)

    right = following(3.0)
    (saved := tmp_path / "saved").mkdir()
    ahead.save_state(saved)
    texts = [[e.completion.tokens for e in r.episodes] for r in (right, following(1 / 3))]
    assert texts[0] != texts[1], "the second was sampled by the changed weights"
    with ahead.meanwhile(shop, first):
        pass
    ahead.load_state(saved)
    assert ahead.rolled(shop, first).episodes == right.episodes
    ahead.load_state(nothing)
    assert [e.completion.tokens for e in ahead.rolled(shop, first).episodes] == texts[0], "on policy, as at the start"


def test_a_frozen_copy_can_follow_and_be_saved(tmp_path: Path) -> None:
    policy = tiny.policy()
    behind = policy.frozen()
    with torch.no_grad():
        policy.decoder.norm.weight.mul_(2)
    behind.follow(policy)
    assert (behind.weights_sha256(), behind.version) == (policy.weights_sha256(), 12)
    behind.save_state(tmp_path)
    other: NativePolicy = tiny.policy(steps=1).frozen()
    other.load_state(tmp_path)
    assert (other.weights_sha256(), other.version) == (policy.weights_sha256(), 12)


# -------------------------------------------------------------------- it learns


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_it_learns_one_step_off_policy(base: Path, tmp_path: Path, algorithm: Any, cores: Cores) -> None:
    """That it is better to abstain than to be wrong: as far as on policy, a round or so later."""
    cores(2)
    settings: dict[str, Any] = {
        "algorithm": AlgorithmConfig(name=algorithm),
        "optim": OptimConfig(lr=1e-2, warmup_steps=0),
        "rounds": 20,
        "prompts_per_round": 8,
        "group_size": 8,
        "eval_n": 1,
        "eval_every": 0,
        "canary_every": 0,
    }
    rewards = []
    for c in (config(base, **settings), tiny.config(base, **settings)):
        start(c, tmp_path / str(c.pipeline))
        with Run.open(tmp_path / str(c.pipeline), write=False) as run:
            rewards.append([m["reward"] for m in run.metrics()])
    ahead, on_policy = ((fmean(r[:2]), fmean(r[-5:])) for r in rewards)
    assert ahead[0] == pytest.approx(on_policy[0], abs=0.2)
    assert ahead[1] > ahead[0] + 0.3 and ahead[1] > on_policy[1] - 0.1, (ahead, on_policy)


if __name__ == "__main__":
    print(json.dumps(_all(Path(sys.argv[1]))))
