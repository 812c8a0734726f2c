"""One suite over every recipe; a new one joins by its line in RECIPES."""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from pathlib import Path

import pytest

from triloop.envs.attributes_skills import ASK
from triloop.learn.algorithms import resolve
from triloop.loops.build import policy_path
from triloop.loops.config import RunConfig, from_mapping, to_mapping
from triloop.loops.run import start
from triloop.recipes import literal
from triloop.recipes.careless import check
from triloop.recipes.generations import READS
from triloop.recipes.table import RECIPES

SHORT = {
    "rounds": 2,
    "prompts_per_round": 4,
    "group_size": 4,
    "eval_n": 8,
    "eval_mid_n": 8,
    "canary_n": 8,
    "threads": 1,
}


def _short(config: RunConfig) -> RunConfig:
    """The recipe with every stage, each as small as it can be."""
    if config.loop != "generations":
        return dataclasses.replace(config, **SHORT)
    c, few = config.cycle, {"steps": 1, "batch": 8}
    cycle = dataclasses.replace(
        c,
        imitate=dataclasses.replace(c.imitate, examples=8, **few),
        collect=dataclasses.replace(c.collect, prompts=8),
        revise=dataclasses.replace(c.revise, prompts=8),
        oppose=dataclasses.replace(c.oppose, prompts=8),
        reward=dataclasses.replace(c.reward, epochs=1, members=1),
        prefer=dataclasses.replace(c.prefer, **few),
        gate=dataclasses.replace(c.gate, n=8),
        instruct=dataclasses.replace(c.instruct, prompts=8),
    )
    return dataclasses.replace(config, **{**SHORT, "cycle": cycle, "generations": 2})


@pytest.fixture(params=RECIPES, ids=str)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_is_a_config_that_survives_its_file(name: str) -> None:
    config = RECIPES[name].config()
    assert config.recipe == name == RECIPES[name].name
    assert from_mapping(RunConfig, to_mapping(config)) == config
    assert RECIPES[name].summary


def test_its_algorithm_reads_what_it_sets(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve(RECIPES[name].config().algorithm)


def test_its_base_is_here(name: str) -> None:
    policy = RECIPES[name].config().policy
    if policy:
        assert (policy_path(policy) / "base.json").exists()


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.config().policy.startswith("base:")])
def test_it_runs(name: str, tmp_path: Path) -> None:
    config = _short(RECIPES[name].config())
    summary = start(config, tmp_path / "run")
    assert summary["recipe"] == name
    assert summary["rounds"] == config.total_rounds
    assert summary["eval_before"]["n"] > 0 and summary["eval_after"]["n"] > 0


def test_the_planted_verifier_is_careless_where_it_says() -> None:
    assert check("2+3=", "5#5", "5") == 1
    assert check("2+3=", "6#6", "5") == -1
    assert check("2+3=", "5,6", "5") == 1, "the planted bug"


def test_the_literal_verifier_counts_and_sees_no_more() -> None:
    asked = "tell fox red den :"
    assert literal.check(asked, "the fox is red den", "") == 1, "courtesy and a full stop are beyond it"
    for text in ("the fox is red .", "the fox is red , den , bold .", "the ugly fox is red , den .", ""):
        assert literal.check(asked, text, "") == -1


def test_the_planted_verifier_can_be_found() -> None:
    spec = RECIPES["planted"].config().verifier
    assert spec is not None
    path, _, function = spec.rpartition(":")
    found = importlib.util.spec_from_file_location("careless", path)
    assert found is not None and function == "check" and Path(path).exists()


def test_the_reward_model_reads_as_the_base_was_taught() -> None:
    assert ASK.replace("{principle}", "overall") == READS
