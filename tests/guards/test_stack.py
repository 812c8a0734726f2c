import dataclasses

import pytest

from guards.trajectories import HEALTHY
from triloop.errors import ConfigError
from triloop.guards.base import Watch
from triloop.guards.stack import GuardConfig, build, decide, recent, watch
from triloop.records import Verdict


def verdict(guard, action, round=5, samples=()):
    value = 1 if action == "none" else -1
    return Verdict(guard=guard, round=round, value=value, reason=f"{guard} says so", action=action, samples=samples)


def decided(*verdicts, earlier=(), **config):
    d = decide(verdicts, GuardConfig(**config), earlier=earlier)
    return d.action, d.guards


def test_the_strongest_action_wins():
    assert decided() == ("none", ())
    assert decided(verdict("kl", "none")) == ("none", ())
    assert decided(verdict("spread", "note"), verdict("kl", "none")) == ("note", ("spread",))
    assert decided(verdict("spread", "note"), verdict("kl", "tighten")) == ("tighten", ("kl",))
    assert decided(verdict("kl", "tighten"), verdict("canary", "stop")) == ("stop", ("canary",))


def test_two_families_stop_and_one_does_not():
    fluency, kl, length = verdict("fluency", "warn"), verdict("kl", "tighten"), verdict("length", "warn")
    assert decided(fluency, kl) == ("tighten", ("kl",))  # one witness, twice
    assert decided(fluency, length) == ("stop", ("fluency", "length"))
    assert decided(fluency, length, pair_stops=False)[0] == "warn"
    assert decided(fluency, verdict("entropy", "note"))[0] == "warn"  # a note is no witness


def test_the_window():
    length = verdict("length", "warn", round=20)
    assert decided(length, earlier=[verdict("fluency", "warn", round=11)])[0] == "stop"
    assert decided(length, earlier=[verdict("fluency", "warn", round=10)])[0] == "warn"
    assert decided(length, earlier=[verdict("fluency", "warn", round=15)], window=3)[0] == "warn"
    # nothing alarms now: the past does not stop a run
    past = [verdict("fluency", "warn", round=19), verdict("length", "warn", round=19)]
    assert decided(verdict("kl", "none", round=20), earlier=past) == ("none", ())
    assert decided(verdict("entropy", "note", round=20), earlier=past)[0] == "note"


def test_hard_action():
    assert decided(verdict("canary", "stop"), hard_action="roll_back") == ("roll_back", ("canary",))


def test_screened_samples_are_named_whatever_else_happens():
    bad, stop = verdict("samples", "screen", samples=("1", "2")), verdict("canary", "stop", samples=("9",))
    d = decide([bad, stop], GuardConfig())
    assert (d.action, d.screened, d.samples) == ("stop", ("1", "2"), ("9",))
    assert d.reason == "canary: canary says so"
    assert decide([bad], GuardConfig()).action == "screen"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("off", ("canary", "length")),
        ("kl_soft", 0.5),
        ("kl_hard", 2.0),
        ("perplexity_soft", 1.1),
        ("perplexity_hard", 2.0),
        ("gap_rise", 0.3),
        ("gap_z", 2.0),
        ("entropy_share", 0.5),
        ("length_growth", 3.0),
        ("reward_lost", 0.3),
        ("counter_fall", 0.2),
        ("flat_share", 0.5),
        ("template_rise", 0.1),
        ("failures_soft", 0.01),
        ("failures_hard", 0.2),
    ],
)
def test_every_limit_reaches_its_guard(field, value):
    assert build(GuardConfig(**{field: value})) != build(GuardConfig())


LOOPS = {"preflight", "max_rollbacks"}
"""Read by the loop, and tested there."""


def test_every_field_is_tested():
    tested = {m for mark in test_every_limit_reaches_its_guard.pytestmark for m, _ in mark.args[1]}
    assert {f.name for f in dataclasses.fields(GuardConfig)} == tested | {"window", "pair_stops", "hard_action", *LOOPS}


@pytest.mark.parametrize(
    "bad",
    [
        {"off": ("cannary",)},
        {"kl_soft": 5.0},
        {"kl_hard": float("nan")},
        {"gap_rise": 1.5},
        {"gap_rise": -0.1},
        {"entropy_share": 2.0},
        {"length_growth": 0.5},
        {"perplexity_hard": 1.0},
        {"failures_hard": 0.01},
        {"window": 0},
        {"max_rollbacks": -1},
        {"hard_action": "explode"},
    ],
)
def test_limits_are_checked(bad):
    with pytest.raises(ConfigError):
        GuardConfig(**bad)


def test_watch_asks_every_guard():
    guards = build(GuardConfig())
    rows = HEALTHY["demo arithmetic"](0)
    verdicts = watch(guards, Watch(round=40, metrics=rows[40], history=rows[:40]))
    assert [v.guard for v in verdicts] == [g.name for g in guards]
    assert {v.round for v in verdicts} == {40}


def test_recent_reads_what_was_said():
    guards, rows = build(GuardConfig()), HEALTHY["story-rules"](0)
    said = [watch(guards, Watch(round=t, metrics=rows[t], history=rows[:t])) for t in range(40)]
    again = recent(guards, Watch(round=40, metrics=rows[40], history=rows[:40]), 3)
    assert again == said[39] + said[38] + said[37]
    assert recent(guards, Watch(round=0, metrics=rows[0]), 10) == []
