from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from typing import Any, get_args

import pytest

from triloop.errors import ConfigError
from triloop.learn.algorithms import ALGORITHMS, Algorithm, resolve
from triloop.learn.choices import AlgorithmConfig, AlgorithmName, OptimConfig


def test_every_algorithm_can_be_named() -> None:
    assert set(get_args(AlgorithmName)) == set(ALGORITHMS)


def test_every_override_is_a_field_of_the_algorithm() -> None:
    overrides = {f.name for f in fields(AlgorithmConfig)} - {"name"}
    own = {"advantage", "surrogate", "reduction", "on_success", "positives_only"}
    assert overrides | own == {f.name for f in fields(Algorithm)}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "dr-grpo"}, "expected one of .*did you mean dr_grpo"),
        ({"clip_low": 1.5}, "clip_low=1.5: expected a number, at least 0.0 and at most 1.0"),
        ({"clip_high": math.nan}, "clip_high=nan"),
        ({"clip_high": math.inf}, "clip_high=inf: expected a number, at least 0.0 and finite"),
        ({"kl_coef": "0.1"}, "kl_coef='0.1'"),
        ({"minibatches": 0}, "minibatches=0: expected a whole number, at least 1"),
        ({"minibatches": 1.5}, "minibatches=1.5: expected a whole number"),
        ({"minibatches": True}, "minibatches=True: expected a whole number"),
        ({"kl_estimator": "k4"}, "expected one of k1, k2, k3"),
    ],
)
def test_a_wrong_value_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        AlgorithmConfig(**wrong)


def test_optimiser_values_are_checked() -> None:
    with pytest.raises(ConfigError, match="lr=-1"):
        OptimConfig(lr=-1.0)
    with pytest.raises(ConfigError, match="betas"):
        OptimConfig(betas=(0.9, 1.0))
    with pytest.raises(ConfigError, match="schedule='cos'.*did you mean cosine"):
        OptimConfig(schedule="cos")  # type: ignore[arg-type]


def test_resolve_applies_overrides_from_both_sides() -> None:
    assert resolve("grpo") == ALGORITHMS["grpo"]
    assert resolve(AlgorithmConfig(name="grpo", clip_high=0.5)).clip_high == 0.5
    assert resolve("grpo", clip_high=1).clip_high == 1.0
    assert resolve(AlgorithmConfig(name="grpo", clip_high=0.5), clip_high=0.3).clip_high == 0.3


def test_resolve_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match="did you mean grpo"):
        resolve("grppo")
    with pytest.raises(ConfigError, match="did you mean clip_high"):
        resolve("grpo", clip_hi=0.3)


def test_k1_as_a_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected gradient is zero"):
        resolve("grpo", kl_coef=0.1, kl_estimator="k1")
    assert resolve("grpo", kl_coef=0.1, kl_estimator="k1", kl_in="reward").needs_reference


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("reinforce", "clip_high", 0.3),
        ("grpo", "lam", 0.9),
        ("grpo", "kl_estimator", "k2"),
        ("dapo", "nft_eps", 0.5),
        ("rest_em", "negative_weight", 0.5),
        ("grpo", "success_above", 0.5),
    ],
)
def test_an_override_that_nothing_reads_warns(name: str, field: str, value: object) -> None:
    with pytest.warns(UserWarning, match=f"{name} does not read: {field}"):
        resolve(name, **{field: value})


def test_records_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ALGORITHMS["grpo"].clip_low = 0.1  # type: ignore[misc]
    with pytest.raises(TypeError):
        ALGORITHMS["mine"] = ALGORITHMS["grpo"]  # type: ignore[index]


def test_choices_and_schedule_load_no_torch() -> None:
    code = (
        "import sys, triloop.learn.choices, triloop.learn.schedule;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'jaxtyping')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
