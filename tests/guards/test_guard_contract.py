"""One suite over every guard: pure, never raises, says -1, 0 or 1, and joins by one line in the table of stack.py."""

import copy
import importlib
import inspect
import math
import pkgutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import triloop.guards
from guards.trajectories import HEALTHY, episode, play, story_hack
from triloop.guards.base import Watch
from triloop.guards.stack import FAMILIES, ORDER, GuardConfig, build, watch
from triloop.records import Verdict

GUARDS = build(GuardConfig())
NAMES = (
    *("reward", "reward_std", "zero_std_share", "entropy", "kl", "ppl_original", "length", "truncated_share"),
    *("distinct_2", "template_share", "loss", "grad_norm", "judge_failures", "canary_proxy", "canary_gold", "canary_n"),
    *("counter_clean", "counter_plain"),
)
every_guard = pytest.mark.parametrize("guard", GUARDS, ids=lambda g: g.name)
value = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-1, 1),
    st.sampled_from([0, 1, -1, 10**400, True, None, "text", 5e-324, 1.7e308]),
)
metrics = st.dictionaries(st.sampled_from(NAMES), value)


EPISODES = (episode(), episode(1, reward=None), episode(2, text="", reward=math.nan), episode(3, answer=None))


def well_formed(verdict, guard):
    assert isinstance(verdict, Verdict)
    assert verdict.guard == guard.name
    assert verdict.value in (-1, 0, 1)
    assert (verdict.value < 0) == (verdict.action != "none")
    assert verdict.action in ORDER
    assert verdict.reason
    assert all(isinstance(x, float) and math.isfinite(x) for x in verdict.measured.values()), verdict.measured


@every_guard
@given(rows=st.lists(metrics, max_size=30), data=st.booleans())
@settings(max_examples=25, deadline=None)
def test_never_raises(guard, rows, data):
    rows = rows or [{}]
    seen = Watch(round=len(rows) - 1, metrics=rows[-1], history=rows[:-1], episodes=EPISODES if data else ())
    well_formed(guard.check(seen), guard)


@every_guard
@pytest.mark.parametrize("fill", [0.0, 1.0, -1.0, 1e300, -1e300, math.nan, math.inf])
def test_extreme_constants(guard, fill):
    rows = [dict.fromkeys(NAMES, fill)] * 30
    well_formed(guard.check(Watch(round=29, metrics=rows[-1], history=rows[:-1], episodes=EPISODES)), guard)


@every_guard
def test_nothing_measured_is_no_verdict(guard):
    assert guard.check(Watch(round=0, metrics={})).value == 0


@every_guard
def test_pure(guard):
    rows = story_hack(0)[:60]
    seen = Watch(round=59, metrics=rows[-1], history=rows[:-1], episodes=EPISODES)
    before = copy.deepcopy(seen)
    first = guard.check(seen)
    assert guard.check(seen) == first
    assert seen == before
    assert type(guard)() == guard  # thresholds only: a frozen record without state
    with pytest.raises(AttributeError):
        guard.rounds = 5


@every_guard
def test_one_gap_in_the_measurements_is_no_alarm(guard):
    rows = HEALTHY["story-rules"](0)[:80]
    seen = Watch(round=80, metrics={}, history=rows)
    assert guard.check(seen).value == 0


def _guard_classes():
    found = set()
    for info in pkgutil.iter_modules(triloop.guards.__path__):
        module = importlib.import_module(f"triloop.guards.{info.name}")
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__ and name != "Guard" and "check" in vars(cls):
                found.add(cls)
    return found


def test_every_guard_is_in_the_table():
    assert {type(g) for g in GUARDS} == _guard_classes()
    assert {g.name for g in GUARDS} == set(FAMILIES)


def test_a_round_is_cheap():
    import time

    rows = (HEALTHY["demo arithmetic"](0) * 14)[:2000]
    seen = Watch(round=1999, metrics=rows[-1], history=rows[:-1])
    start = time.perf_counter()
    watch(GUARDS, seen)
    assert time.perf_counter() - start < 0.25  # about 15 ms after 2000 rounds


def test_no_heavy_import():
    code = (
        "import sys, triloop.guards.stack, triloop.guards.measure, triloop.sources.preflight; "
        "sys.exit(any(m in sys.modules for m in ('numpy', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_played_twice_is_the_same():
    assert play(story_hack(3)) == play(story_hack(3))
