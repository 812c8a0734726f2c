"""Flags from the fields of the configuration."""

from __future__ import annotations

import pytest

from triloop.cli import fields
from triloop.errors import ConfigError, UsageError
from triloop.loops.config import RunConfig


def test_values_take_the_type_of_their_field() -> None:
    words = "--rounds 7 --optim.lr 3e-4 --group_size=4 --env countdown --level none --algorithm.whiten off demo --json"
    values, rest = fields.take(words.split())
    assert values == {
        "rounds": 7,
        "optim.lr": 3e-4,
        "group_size": 4,
        "env.name": "countdown",
        "env.level": None,
        "algorithm.whiten": False,
    }
    assert rest == ["demo", "--json"]


def test_lists_are_given_with_commas_or_again() -> None:
    values, _ = fields.take(["--optim.betas", "0.8,0.9", "--sampling.stop", "\\n", "--sampling.stop", "a,b"])
    assert values == {"optim.betas": (0.8, 0.9), "sampling.stop": ("\n", "a,b")}


def test_a_negative_number_is_a_value() -> None:
    assert fields.take(["--abstain-value", "-0.5"])[0] == {"abstain_value": -0.5}


def test_a_switch_may_stand_alone() -> None:
    assert fields.take(["--algorithm.whiten", "--json"]) == ({"algorithm.whiten": True}, ["--json"])


def test_apply_changes_what_was_given_and_nothing_else() -> None:
    base = RunConfig(recipe="demo", rounds=9)
    changed = fields.apply(base, {"optim.lr": 1e-3, "env.name": "sort"})
    assert (changed.optim.lr, changed.env.name, changed.rounds, changed.recipe) == (1e-3, "sort", 9, "demo")
    assert fields.apply(base, {}) == base


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rounds ten", "--rounds is 'ten'; expected a whole number"),
        ("--rounds", "--rounds needs a value"),
        ("--rounds --json", "--rounds needs a value"),
        ("--algorithm grppo", "Did you mean grpo?"),
        ("--algorithm.whiten maybe", "expected on|off"),
    ],
)
def test_a_wrong_value_names_flag_and_expectation(words: str, message: str) -> None:
    with pytest.raises(UsageError, match="^--") as error:
        fields.take(words.split())
    assert message in str(error.value)


def test_a_value_out_of_bounds_is_refused_by_the_configuration() -> None:
    with pytest.raises(ConfigError, match="rounds is 0; expected at least 1"):
        fields.apply(RunConfig(), {"rounds": 0})


def test_every_field_has_a_flag_a_meaning_and_a_place_in_the_help() -> None:
    text = fields.help_text(RunConfig())
    for setting in fields.settings():
        assert setting.doc, f"{setting.path} has no docstring"
        assert f"{setting.flag}" in text
    flags = [s.flag for s in fields.settings()]
    assert len(flags) == len(set(flags))
    assert set(fields.ALIASES.values()) <= {s.path for s in fields.settings()}
    assert not set(fields.ALIASES) & set(flags)
