"""Configurations: what goes into config.yaml comes back, what is wrong is named, and each field is read by something."""

from __future__ import annotations

import ast
import dataclasses
import typing
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from reading import modules
from triloop.errors import ConfigError
from triloop.guards.stack import FAMILIES, GuardConfig
from triloop.learn.choices import AlgorithmConfig, OptimConfig
from triloop.loops.build import load_policy
from triloop.loops.config import CurriculumConfig, EnvConfig, RunConfig, from_mapping, to_mapping
from triloop.policies.native import NativePolicy
from triloop.policies.sampling import Sampling
from triloop.ternary.convert import linears

KINDS = (RunConfig, EnvConfig, AlgorithmConfig, OptimConfig, Sampling, GuardConfig, CurriculumConfig)

words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
shares = st.floats(0, 1)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


configs = st.builds(
    lambda run, env, algorithm, optim, sampling, guards, curriculum: RunConfig(
        **run,
        env=EnvConfig(**env),
        algorithm=AlgorithmConfig(**algorithm),
        optim=OptimConfig(**optim),
        sampling=Sampling(**sampling),
        guards=GuardConfig(**guards),
        curriculum=CurriculumConfig(**curriculum),
    ),
    run=some(
        recipe=words, policy=words, seed=st.integers(-5, 2**40), rounds=st.integers(1, 9), abstain_value=st.floats(-1, 1),
        partial_credit=st.booleans(), verifier=st.none() | words, precision=st.sampled_from(["auto", "fp32", "bf16"]),
    ),
    env=some(name=words, level=st.none() | st.integers(-3, 99), data=st.none() | words),
    algorithm=some(
        name=st.sampled_from(["grpo", "dapo", "ppo", "nft"]), clip_high=st.none() | st.floats(0, 5),
        minibatches=st.none() | st.integers(1, 8), dynamic_sampling=st.none() | st.booleans(),
    ),
    optim=some(lr=st.floats(0, 1), betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)), warmup_steps=st.integers(0, 9)),
    sampling=some(temperature=st.floats(1e-3, 3), stop=st.lists(words, max_size=3).map(tuple), top_p=st.floats(1e-3, 1)),
    guards=some(off=st.lists(st.sampled_from(sorted(FAMILIES)), unique=True).map(tuple), window=st.integers(1, 50)),
    curriculum=some(kind=st.sampled_from(["mixture", "frontier"]), floor=st.floats(0, 0.5)),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(configs)
def test_through_a_file_and_back(config: RunConfig) -> None:
    text = yaml.safe_dump(to_mapping(config), allow_unicode=True)
    assert from_mapping(RunConfig, yaml.safe_load(text)) == config


def test_what_is_left_out_is_the_default() -> None:
    assert from_mapping(RunConfig, {}) == RunConfig()
    assert from_mapping(RunConfig, {"optim": {"lr": 1}}).optim == OptimConfig(lr=1.0)


def test_a_number_that_yaml_takes_for_text() -> None:
    values = yaml.safe_load("optim: {lr: 3e-4}")
    assert values["optim"]["lr"] == "3e-4", "YAML 1.1 asks for a point"
    assert from_mapping(RunConfig, values).optim.lr == 3e-4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"round": 3}, r"unknown setting 'round'; expected one of .*rounds"),
        ({"optim": {"rate": 1}}, r"unknown setting 'optim.rate'"),
        ({"rounds": "many"}, r"rounds is 'many'; expected int"),
        ({"rounds": 3.0}, r"rounds is 3.0; expected int"),
        ({"rounds": True}, r"rounds is True; expected int"),
        ({"rounds": None}, r"rounds is None; expected int"),
        ({"partial_credit": "yes"}, r"partial_credit is 'yes'; expected bool"),
        ({"optim": {"lr": "fast"}}, r"optim.lr is 'fast'; expected float"),
        ({"optim": {"lr": True}}, r"optim.lr is True; expected float"),
        ({"optim": 3}, r"optim is 3; expected a mapping"),
        ({"loop": "dance"}, r"loop is 'dance'; expected outcome_rl or expert_iteration"),
        ({"sampling": {"stop": "\n"}}, r"sampling.stop is '\\n'; expected"),
        ({"sampling": {"stop": [1]}}, r"sampling.stop\[0\] is 1; expected str"),
        ({"env": {"level": "hard"}}, r"env.level is 'hard'; expected int"),
        ({"policy": None}, r"policy is None; expected str"),
        ({5: 1}, r"unknown setting '5'"),
    ],
)
def test_what_is_wrong_is_named(values: dict[Any, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_mapping(RunConfig, values)


NAN = float("nan")


@pytest.mark.parametrize(
    "changes",
    [
        *({name: 0} for name in ("rounds", "prompts_per_round", "group_size", "max_draws", "eval_n", "eval_mid_n")),
        *({name: 0} for name in ("canary_n", "checkpoint_every")),
        *({"micro_tokens": n} for n in (-1, 5)),
        *(
            {name: -1}
            for name in ("token_budget", "eval_every", "canary_every", "lora_rank", "threads", "reference_rows")
        ),
        *({"verifier_timeout": x} for x in (0.0, -1.0, NAN, float("inf"))),
        *({"abstain_value": x} for x in (-1.1, 1.1, NAN)),
        *({"ternary_head": x} for x in ("int4", "")),
        {"ternary_head": "int8", "backend": "transformers"},
        {"loop": "expert_iteration"},
        {"loop": "expert_iteration", "algorithm": AlgorithmConfig(name="rest_em"), "lora_rank": 4},
        {"sampling": Sampling(temperature=0.0)},
        {"ternary_activations": "int8-256"},
        {"ternary_activations": "int4", "ternary": "absmean"},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RunConfig(**changes)


def test_a_policy_becomes_ternary_as_the_settings_say() -> None:
    config = RunConfig(policy="base:sort", ternary="twn", ternary_activations="int8-256")
    policy = load_policy(config)
    assert isinstance(policy, NativePolicy)
    found = {(m.config.quantiser, m.config.activations) for m in linears(policy.decoder).values()}
    assert found == {("twn", "int8-256")}


@pytest.mark.parametrize("changes", [{"floor": 0.6}, {"floor": NAN}, {"memory": 1.0}, {"memory": -0.1}], ids=str)
def test_curriculum_bounds(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        CurriculumConfig(**changes)  # type: ignore[arg-type]


def _reads() -> set[str]:
    """Every attribute that the package reads, outside the modules that only define settings and check them."""
    found: set[str] = set()
    for module in modules():
        if module.name in ("triloop.loops.config", "triloop.cli.fields"):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_setting_is_read(kind: type[Any]) -> None:
    """A flag that nothing reads is a defect. ``recipe`` is read from the stored mapping, by the summary."""
    unread = {f.name for f in dataclasses.fields(kind)} - _reads() - {"recipe"}
    assert not unread, f"{kind.__name__}: nothing reads {sorted(unread)}"


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_choice_is_spelled_out(kind: type[Any]) -> None:
    """Each choice of a Literal is accepted, and its default is one of them."""
    for name, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is Literal and kind is not RunConfig:
            for option in typing.get_args(hint):
                assert getattr(kind(**{name: option}), name) == option
