"""The loop itself: screening, budgets, optimiser steps, dynamic sampling, expert iteration, curriculum, who is asked."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from loops import tiny
from triloop.envs.sort import Sort
from triloop.envs.story import StoryRules
from triloop.errors import DataError
from triloop.kernels.native import available
from triloop.learn.choices import AlgorithmConfig, OptimConfig
from triloop.loops.build import parts, workshop
from triloop.loops.config import CurriculumConfig, EnvConfig, RunConfig, to_mapping
from triloop.loops.evaluate import evaluate
from triloop.loops.improve import due, improve
from triloop.loops.learning import expert_iteration, policy_gradient
from triloop.loops.measure import _chosen, canary, drift, round_metrics
from triloop.loops.outcome import outcome_round, screened
from triloop.loops.progress import Silent
from triloop.loops.rollout import reward_of, rollout
from triloop.loops.state import LoopState, Workshop, load_state, save_state
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Episode, Feedback, Prompt, Verdict
from triloop.store import Run

Open = Callable[..., Workshop]


@pytest.fixture
def open_shop(base: Path, tmp_path: Path) -> Iterator[Open]:
    """``open_shop(rounds=2, ...)``: the workshop of a tiny run with these settings."""
    with ExitStack() as stack:

        def make(**changes: Any) -> Workshop:
            config = tiny.config(base, **{"eval_every": 0, "canary_every": 0, **changes})
            made = stack.enter_context(parts(config))
            out = tmp_path / str(len(list(tmp_path.iterdir())))
            run = stack.enter_context(Run.create(out, to_mapping(config), made.machine))
            return workshop(made, run, Silent(), lambda: False)

        yield make


class Own(Sort):
    """A task with a judge of its own making; counts how often it and gold are asked."""

    def __init__(self, rule: Callable[[Prompt, str, int], float | None]) -> None:
        super().__init__()
        self.rule, self.asked, self.gold_asked = rule, 0, 0

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        self.asked += len(texts)
        return [Feedback(value=self.rule(p, t, i)) for i, (p, t) in enumerate(zip(prompts, texts, strict=True))]

    def gold(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        self.gold_asked += len(texts)
        return super().judge(prompts, texts)


def with_env(shop: Workshop, env: Own) -> Workshop:
    return dataclasses.replace(shop, env=env, judge=env)  # type: ignore[arg-type]  # a judge without a name


def test_due() -> None:
    assert [r for r in range(1, 9) if due(3, r, 8)] == [3, 6, 8]
    assert not any(due(0, r, 8) for r in range(1, 9))


# --------------------------------------------------------------------------- screening


def test_screened_samples_teach_nothing_and_stay_in_the_store(open_shop: Open) -> None:
    """A judge that pays an echo of the prompt: the echo loses its reward for the learner alone."""
    shop = open_shop()
    seen: list[Sequence[Episode]] = []

    def learn(shop: Workshop, state: LoopState, episodes: Sequence[Episode]) -> Mapping[str, float]:
        seen.append(episodes)
        return {}

    real = shop.policy.sample

    def sample(prompts: Sequence[Prompt], *rest: Any, **more: Any) -> Any:
        out = real(prompts, *rest, **more)
        return [dataclasses.replace(out[0], text=prompts[0].text), *out[1:]]

    shop.policy.sample = sample  # type: ignore[method-assign]
    shop = with_env(shop, Own(lambda p, t, i: 1.0 if t == p.text or i % 2 else -1.0))
    shop = dataclasses.replace(
        shop, config=dataclasses.replace(shop.config, rounds=1, prompts_per_round=8), guards=_samples_alone()
    )
    improve(shop, LoopState(), outcome_round(learn))
    echo = next(e for e in seen[0] if e.completion.text == e.prompt.text)
    assert echo.reward is None and [f.value for f in echo.feedback] == [1.0]
    stored = {e.completion.id: e for e in shop.run.episodes(1)}
    assert stored[echo.completion.id].feedback[0].value == 1.0 and stored[echo.completion.id].reward == 1.0
    (verdict,) = [v for v in shop.run.verdicts() if v.guard == "samples"]
    assert echo.completion.id in verdict.samples
    assert {e.completion.id for e in seen[0] if e.reward is None} == set(verdict.samples) < set(stored)
    assert shop.run.metrics()[0]["judge_failures"] == 0.0, "a screened sample is no failed judgement"


def _samples_alone() -> list[Any]:
    from triloop.guards.samples import Samples

    return [Samples()]


def test_screening_asks_only_the_guard_of_single_samples(open_shop: Open) -> None:
    shop = open_shop()

    class Never:
        name = "never"

        def check(self, watch: Any) -> Any:
            raise AssertionError("asked about a round that has no metrics yet")

    rolled = rollout(shop, LoopState())
    shop = dataclasses.replace(shop, guards=[Never(), *_samples_alone()])
    assert screened(shop, 1, rolled.episodes) == list(rolled.episodes)
    assert screened(dataclasses.replace(shop, guards=[Never()]), 1, rolled.episodes) == list(rolled.episodes)


# --------------------------------------------------------------------------- budgets and steps


def test_a_token_budget_ends_the_run(open_shop: Open) -> None:
    shop = open_shop(rounds=50, token_budget=100)
    state = improve(shop, LoopState(), outcome_round(policy_gradient))
    rounds = [t["tokens"] for t in shop.run.timings()]
    assert sum(rounds[:-1]) < 100 <= sum(rounds) == state.tokens
    assert state.anchor == state.round < 50
    last = shop.run.latest_checkpoint()
    assert last is not None and load_state(last.path) == state


def test_the_state_survives_its_file(open_shop: Open, tmp_path: Path) -> None:
    shop = open_shop(rounds=3, canary_every=1, curriculum=CurriculumConfig(kind="frontier"))
    shop = dataclasses.replace(shop, guards=[tiny.Alarm(since=3)])
    state = improve(shop, LoopState(), outcome_round(policy_gradient))
    assert state.alarms and state.stopped
    save_state(state, tmp_path)
    again = load_state(tmp_path)
    assert dataclasses.replace(again, alarms=()) == dataclasses.replace(state, alarms=())
    assert [a["reason"] for a in again.alarms] == [a["reason"] for a in state.alarms]


class Tighten:
    """A guard that asks for smaller steps in some rounds."""

    name = "tighten"

    def __init__(self, *rounds: int) -> None:
        self.rounds = rounds

    def check(self, watch: Any) -> Verdict:
        bad = watch.round in self.rounds
        action: Literal["tighten", "none"] = "tighten" if bad else "none"
        return Verdict(guard=self.name, round=watch.round, value=-1 if bad else 1, reason="as planned", action=action)


def test_tighten_halves_the_learning_rate_and_quiet_rounds_restore_it(open_shop: Open) -> None:
    shop = open_shop(rounds=10, optim=OptimConfig(lr=8e-3, warmup_steps=0))
    shop = with_env(shop, Own(lambda p, t, i: 1.0 if i % 2 else -1.0))
    improve(dataclasses.replace(shop, guards=[Tighten(1, 2, 3, 4, 6)]), LoopState(), outcome_round(policy_gradient))
    metrics = shop.run.metrics()
    scales = [1, 1 / 2, 1 / 4, 1 / 8, 1 / 8, 1 / 4, 1 / 8, 1 / 4, 1 / 2, 1]
    assert [m["lr_scale"] for m in metrics] == scales
    assert [m["lr"] for m in metrics] == [8e-3 * scale for scale in scales]


def test_a_tight_leash_survives_the_checkpoint(open_shop: Open) -> None:
    """Six rounds at once, and six with a stop in a tight stretch: same weights, same rates."""
    ends = []
    for halves in ((6,), (3, 6)):
        shop = open_shop(rounds=6)
        shop = dataclasses.replace(with_env(shop, Own(lambda p, t, i: 1.0 if i % 2 else -1.0)), guards=[Tighten(2, 3)])
        state = LoopState()
        for rounds in halves:
            part = dataclasses.replace(shop, config=dataclasses.replace(shop.config, rounds=rounds))
            improve(part, state, outcome_round(policy_gradient))
            last = shop.run.latest_checkpoint()
            assert last is not None
            shop.policy.load_state(last.path)
            state = load_state(last.path)
            assert rounds == 6 or state.lr_scale == 1 / 4
        ends.append((shop.policy.weights_sha256(), [m["lr_scale"] for m in shop.run.metrics()]))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(("updates", "parts_"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_optimiser_steps_of_a_round(open_shop: Open, updates: int, parts_: int) -> None:
    algorithm = AlgorithmConfig(name="grpo", updates_per_round=updates, minibatches=parts_)
    shop = open_shop(algorithm=algorithm)
    state = LoopState()
    metrics = policy_gradient(shop, state, rollout(shop, state).episodes)
    assert metrics["updates"] == shop.policy.version == updates * parts_


def test_a_round_without_signal_moves_nothing(open_shop: Open) -> None:
    shop = open_shop(rounds=1)
    shop = with_env(shop, Own(lambda p, t, i: -1.0))
    before = shop.policy.weights_sha256()
    state = improve(shop, LoopState(), outcome_round(policy_gradient))
    assert shop.policy.weights_sha256() == before and state.history[0]["updates"] == 0


def test_the_learning_rate_follows_its_schedule(open_shop: Open) -> None:
    shop = open_shop(rounds=3, optim=OptimConfig(lr=1e-2, warmup_steps=1, schedule="linear"))
    improve(shop, LoopState(), outcome_round(policy_gradient))
    assert [m["lr"] for m in shop.run.metrics()] == pytest.approx([1e-2, 1e-2, 5e-3])


# --------------------------------------------------------------------------- dynamic sampling


@pytest.mark.parametrize(("draws", "groups"), [(1, 4), (2, 8), (3, 12)])
def test_dynamic_sampling_draws_on(open_shop: Open, draws: int, groups: int) -> None:
    """Groups without spread are replaced, up to ``max_draws`` times, by fresh prompts."""
    shop = open_shop(algorithm=AlgorithmConfig(name="dapo"), max_draws=draws)
    shop = with_env(shop, Own(lambda p, t, i: -1.0))
    rolled = rollout(shop, LoopState())
    assert len({e.prompt.id for e in rolled.episodes}) == groups == rolled.cursor[str(tiny.LEVEL)]


def test_dynamic_sampling_replaces_only_what_is_flat(open_shop: Open) -> None:
    shop = open_shop(algorithm=AlgorithmConfig(name="dapo"), max_draws=3)
    flat: list[str] = []

    def rule(prompt: Prompt, text: str, index: int) -> float:
        if not flat:
            flat.append(prompt.id)  # the first prompt of all
        return -1.0 if prompt.id == flat[0] or index % 2 else 1.0

    rolled = rollout(with_env(shop, Own(rule)), LoopState())
    assert len({e.prompt.id for e in rolled.episodes}) == 5


def test_without_it_nothing_is_drawn_again(open_shop: Open) -> None:
    shop = with_env(open_shop(max_draws=3), Own(lambda p, t, i: -1.0))
    assert len(rollout(shop, LoopState()).episodes) == 16


def test_a_task_without_prompts_says_so(open_shop: Open) -> None:
    class Empty(Own):
        def prompts(self, *_: Any, **__: Any) -> list[Prompt]:  # type: ignore[override]
            return []

    shop = with_env(open_shop(), Empty(lambda p, t, i: 1.0))
    with pytest.raises(DataError, match="no train prompts"):
        rollout(shop, LoopState())


# --------------------------------------------------------------------------- expert iteration


def test_expert_iteration_begins_each_round_at_the_base(open_shop: Open) -> None:
    """The same accepted samples give the same weights, whatever was learned before them."""
    shop = open_shop(loop="expert_iteration", algorithm=AlgorithmConfig(name="rest_em"))
    shop = with_env(shop, Own(lambda p, t, i: 1.0 if i % 3 == 0 else -1.0))
    first = rollout(shop, LoopState()).episodes
    expert_iteration(shop, LoopState(), first)
    once = shop.policy.weights_sha256()
    expert_iteration(shop, LoopState(round=1), rollout(shop, LoopState(round=1)).episodes)
    assert shop.policy.weights_sha256() != once
    expert_iteration(shop, LoopState(), first)
    assert shop.policy.weights_sha256() == once
    assert shop.policy.version == 3, "the number of steps goes on counting"


def test_expert_iteration_without_a_success_keeps_its_weights(open_shop: Open) -> None:
    shop = open_shop(loop="expert_iteration", algorithm=AlgorithmConfig(name="rest_em"))
    shop = with_env(shop, Own(lambda p, t, i: -1.0))
    before = shop.policy.weights_sha256()
    assert expert_iteration(shop, LoopState(), rollout(shop, LoopState()).episodes)["updates"] == 0
    assert shop.policy.weights_sha256() == before


# --------------------------------------------------------------------------- curriculum, rewards


def test_the_frontier_moves_the_prompts(open_shop: Open) -> None:
    """Level 3 is always solved, all others half the time: the frontier leaves level 3 to the floor."""
    shop = open_shop(
        env=EnvConfig(name="sort"),
        curriculum=CurriculumConfig(kind="frontier", memory=0.0),
        sampling=Sampling(max_tokens=2, slots=64),
        rounds=12,
        prompts_per_round=12,
        group_size=2,
    )
    shop = with_env(shop, Own(lambda p, t, i: 1.0 if p.level == 3 or i % 2 else -1.0))
    state = improve(shop, LoopState(), outcome_round(lambda shop, state, episodes: {}))
    assert state.pass_rates["3"] == 1.0 and state.pass_rates["7"] == 0.5
    late = [p.level for r in range(4, 13) for p in {e.prompt.id: e.prompt for e in shop.run.episodes(r)}.values()]
    assert late.count(3) / len(late) < 0.08


def test_rewards() -> None:
    plain, partial = RunConfig(abstain_value=-0.2), RunConfig(partial_credit=True)
    assert reward_of(Feedback(value=None, failure="no"), plain) is None
    assert [reward_of(Feedback(value=v), plain) for v in (1, 0, -1, 0.3)] == [1, -0.2, -1, 0.3]
    assert reward_of(Feedback(value=-1, breakdown={"share": 0.75}), partial) == -0.25
    assert reward_of(Feedback(value=-1, breakdown={"share": 0.75}), plain) == -1
    assert reward_of(Feedback(value=1, breakdown={"share": 1.0}), partial) == 1


# --------------------------------------------------------------------------- evaluation and canary


def test_an_honest_judge_is_not_asked_twice(open_shop: Open) -> None:
    class Honest(Own):
        gold = Sort.gold

    shop = open_shop()
    honest = Honest(lambda p, t, i: 1.0 if i % 2 else -1.0)
    assert honest.honest
    facts, _ = canary(with_env(shop, honest), 1)
    assert honest.asked == facts["canary_n"] == 6
    assert facts["canary_proxy"] == facts["canary_gold"] == 0.5

    lenient = Own(lambda p, t, i: 1.0)
    assert not lenient.honest
    facts, seen = canary(with_env(shop, lenient), 1)
    assert (lenient.asked, lenient.gold_asked) == (6, 6)
    assert (facts["canary_proxy"], seen.proxy) == (1.0, 1.0) and facts["canary_gold"] < 1.0


def test_who_is_honest() -> None:
    def fluency(pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [0.0] * len(pairs)

    assert Sort().honest and StoryRules(fluency=fluency).honest
    assert not StoryRules(fluency=fluency, careless=True).honest


def test_a_scalar_judge_and_gold_are_compared_as_pass_rates(open_shop: Open) -> None:
    """The metric is then a mean score, which is no pass rate."""

    class Scalar(Own):
        def gold(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
            return [Feedback(value=0.25 if i % 2 else -0.5, kind="scalar") for i in range(len(texts))]

    facts, seen = canary(with_env(open_shop(), Scalar(lambda p, t, i: 1.0)), 1)
    assert (facts["canary_gold"], seen.value, seen.metric) == (0.5, -0.125, "mean score")


def test_evaluation_repeats_itself_and_keeps_its_prompts(open_shop: Open) -> None:
    shop = open_shop()
    c, tag = shop.config, Tag(seed=0, round=0, purpose="eval")
    first = evaluate(shop.policy, shop.env, 12, c.sampling, tag, level=tiny.LEVEL)
    assert first == evaluate(shop.policy, shop.env, 12, c.sampling, tag, level=tiny.LEVEL)
    later = evaluate(shop.policy, shop.env, 12, c.sampling, dataclasses.replace(tag, round=9), level=tiny.LEVEL)
    assert [e.prompt for e in first.episodes] == [e.prompt for e in later.episodes]
    trained = {e.prompt.id for e in rollout(shop, LoopState()).episodes}
    held = {e.prompt.id for e in first.episodes} | {e.prompt.id for e in canary(shop, 1)[1].episodes}
    assert trained.isdisjoint(held)


def test_drift_is_none_at_the_start(open_shop: Open) -> None:
    shop = open_shop()
    rolled = rollout(shop, LoopState())
    metrics = round_metrics(shop, LoopState(), rolled.episodes, {})
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-6) and metrics["ppl_original"] >= 1
    assert metrics["entropy"] > 0 and torch.isfinite(torch.tensor(list(metrics.values()))).all()
    silent = dataclasses.replace(shop, config=dataclasses.replace(shop.config, reference_rows=0))
    assert "kl" not in round_metrics(silent, LoopState(), rolled.episodes, {})


@pytest.mark.parametrize(
    ("prompts", "group", "rows", "asked", "of_each"),
    [(32, 8, 32, 8, 4), (32, 8, 30, 8, 4), (16, 2, 32, 16, 2), (5, 8, 32, 5, 4), (32, 1, 8, 8, 1), (3, 8, 2, 1, 2)],
)
def test_drift_looks_at_prompts_all_over_the_round(
    open_shop: Open, prompts: int, group: int, rows: int, asked: int, of_each: int
) -> None:
    shop = open_shop()
    one = rollout(shop, LoopState()).episodes[0]
    names = [Prompt(id=str(i), text="x") for i in range(prompts)]
    episodes = [dataclasses.replace(one, prompt=p) for p in names for _ in range(group)]
    seen: list[int] = []

    class Reference:
        def logprobs(self, items: Sequence[Any], temperature: float) -> list[np.ndarray]:
            seen.append(len(items))
            return [np.zeros(len(tokens), np.float32) for _, tokens in items]

    config = dataclasses.replace(shop.config, reference_rows=rows)
    drift(dataclasses.replace(shop, config=config, reference=Reference()), episodes)  # type: ignore[arg-type]
    assert seen == [min(rows, asked * of_each)]
    chosen = [int(e.prompt.id) for e in _chosen(episodes, rows)]
    assert len(set(chosen)) == asked and max(Counter(chosen).values()) == of_each
    assert max(chosen) >= (prompts - 1) * (asked - 1) // asked, "to the end of the round"


def test_what_is_kept_changes_no_bit(open_shop: Open) -> None:
    """Two rounds of learning with all, some and none of what the sampler computed."""
    found = set[str]()
    for megabytes in (-1, 1, 0):
        shop = open_shop(rounds=2, keep_mb=megabytes)
        assert isinstance(shop.policy, NativePolicy)
        before = shop.policy.weights_sha256()
        improve(shop, LoopState(), outcome_round(policy_gradient))
        assert shop.policy.weights_sha256() != before
        assert (shop.policy.kept_tokens > 0) == (bool(megabytes) and available())
        found.add(shop.policy.weights_sha256())
    assert len(found) == 1
