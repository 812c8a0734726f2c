"""What compare can set side by side: nothing is missing, and each is a run that can start."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from triloop.errors import UsageError
from triloop.learn.choices import AlgorithmName
from triloop.learn.objective_config import ObjectiveName
from triloop.learn.objective_table import OBJECTIVES as TABLE
from triloop.learn.objective_table import resolve_objective
from triloop.loops.checks import check_cycle
from triloop.recipes.methods import ALGORITHMS, BASELINES, OBJECTIVES, check, configured, starting_point, taught
from triloop.recipes.table import RECIPES

BASE = replace(starting_point("attributes", RECIPES), token_budget=50_000, seed=3)


def test_every_algorithm_and_objective_is_there() -> None:
    assert set(ALGORITHMS) == set(get_args(AlgorithmName))
    policies = {name for name in get_args(ObjectiveName) if not TABLE[name].needs_values}
    assert set(OBJECTIVES) == policies - set(BASELINES)


@pytest.mark.parametrize("method", [*ALGORITHMS, *OBJECTIVES, "rejection"])
def test_a_method_is_a_run_with_the_same_prompts_and_budget(method: str) -> None:
    config = configured(method, BASE)
    assert (config.token_budget, config.seed, config.policy) == (50_000, 3, "base:attributes")
    if config.loop != "generations":
        assert config.algorithm.name == method and config.optim.lr == pytest.approx(6e-4 * ALGORITHMS[method].rate)
        assert (config.prompts_per_round, config.group_size) == (32, 8) or method == "rest_em"
        return
    check_cycle(config)
    collect, prefer = config.cycle.collect, config.cycle.prefer
    if method == "spin":
        assert config.cycle.oppose.prompts == 256 and config.cycle.stages == ("oppose", "prefer")
        return
    assert (collect.prompts, collect.samples) == (32, 8)
    assert config.generations * 256 * 4 >= 50_000, "of four tokens a sample, still enough generations"
    if method != "rejection":
        objective = resolve_objective(prefer.objective)
        spoken = {"pairs": {"pair"}, "rated": {"pair", "scalar"}, "spans": {"spans"}}[objective.consumes]
        assert set(collect.kinds) <= spoken
        judged = 256 // (2 if collect.kinds == ("pair",) else 1)
        assert prefer.steps * prefer.batch == judged, "each judgement once"


def test_rates_are_in_proportion_to_the_tasks_own_and_can_be_given() -> None:
    sort = replace(starting_point("sort", RECIPES), token_budget=1000)
    assert configured("dpo", sort).cycle.prefer.lr == pytest.approx(OBJECTIVES["dpo"].rate * sort.optim.lr)
    assert configured("grpo", sort).optim.lr == sort.optim.lr
    assert configured("dpo", sort, 1e-5).cycle.prefer.lr == configured("grpo", sort, 1e-5).optim.lr == 1e-5
    assert taught(sort, 10, 1e-5).cycle.imitate.lr == 1e-5


@pytest.mark.parametrize(("labels", "passes"), [(100, 8), (10_000, 2), (50_000, 1)])
def test_the_taught_baseline_gets_as_many_labels(labels: int, passes: int) -> None:
    how = taught(BASE, labels).cycle.imitate
    assert how.examples * how.rounds == pytest.approx(labels, rel=0.01)
    assert how.examples <= 2048 and how.noise == 0
    assert how.steps * how.batch == pytest.approx(passes * how.examples, abs=how.batch)


def test_wrong_names_are_told_with_both_lists() -> None:
    with pytest.raises(UsageError, match=r"did you mean dpo.*grpo, .*ipo, .*rejection"):
        check("dpoo")
    with pytest.raises(UsageError, match="trains a reward model"):
        check("reward_bt")
