import itertools
import math
import re
import time

import pytest

from triloop.errors import VerifierError
from triloop.records import Feedback, Prompt
from triloop.sources.judge import EnvJudge
from triloop.sources.preflight import JUNK, preflight
from triloop.sources.verifier import UserVerifier


class Sums:
    """Sums with known answers; ``known=False`` is a file of questions without any."""

    name = "sums"

    def __init__(self, known=True):
        self.known = known

    def prompts(self, split, n, *, seed, start=0, level=None):
        pairs = [(i % 7 + 2, i * 3 % 11 + 1) for i in range(start, start + n)]
        return [Prompt(id=f"{a}+{b}", text=f"{a}+{b}=", answer=str(a + b)) for a, b in pairs]

    def judge(self, prompts, texts):
        return [Feedback(value=1.0 if t.strip() == p.answer else -1.0) for p, t in zip(prompts, texts, strict=True)]

    gold = judge

    def right_answer(self, prompt):
        return prompt.answer if self.known else None

    def wrong_answers(self, prompt):
        return [str(int(prompt.answer) + 1), "", prompt.text] if self.known else ["", prompt.text]


class Said:
    """A judge from a function of (prompt, text) that returns a value."""

    name = "said"

    def __init__(self, function):
        self.function = function

    def judge(self, prompts, texts):
        return [
            v if isinstance(v := self.function(p, t), Feedback) else Feedback(value=v, source=self.name)
            for p, t in zip(prompts, texts, strict=True)
        ]


def outcome(judge, env=None):
    return {v.guard.removeprefix("preflight:"): v for v in preflight(env or Sums(), judge, seed=0)}


def test_a_careful_judge_passes():
    out = outcome(EnvJudge(Sums()))
    assert list(out) == ["right", "wrong", "empty", "echo", "junk", "repeatable", "failures"]
    assert {v.value for v in out.values()} == {1}
    assert {v.action for v in out.values()} == {"none"}
    assert out["right"].measured == {"tried": 16.0, "failed": 0.0}


def signed(right):
    return 1.0 if right else -1.0


@pytest.mark.parametrize(
    ("careless", "caught"),
    [
        (lambda p, t: signed(re.search(r"\d", t)), {"wrong", "echo", "junk"}),  # any number will do
        (lambda p, t: signed(p.answer in t), {"junk"}),  # containment: list all numbers
        (lambda p, t: signed(t.strip() in ("", p.answer)), {"empty"}),  # an empty answer scores by default
        (lambda p, t: signed(t in (p.text, p.answer)), {"echo"}),
        (lambda p, t: signed(t in ("Thought process:", p.answer)), {"junk"}),  # master key
        (
            lambda p, t: signed(t and abs(float(t) - int(p.answer)) < 2 if t.isdigit() else False),
            {"wrong"},
        ),  # tolerance
        (lambda p, t: -1.0, {"right"}),
        (lambda p, t: 0.0, {"right"}),
        (lambda p, t: signed(t.strip() == p.answer + "."), {"right"}),  # another format than the task's
        (lambda p, t: 1.0, {"wrong", "empty", "echo", "junk"}),
    ],
)
def test_a_careless_judge_is_stopped(careless, caught):
    out = outcome(Said(careless))
    assert {name for name, v in out.items() if v.value == -1} == caught
    assert all(out[name].action == "stop" for name in caught)
    assert all("such as: prompt " in out[name].reason for name in caught)


def test_one_lucky_number_is_no_junk():
    # takes the last number: right for the list only where the answer is 50
    assert outcome(Said(lambda p, t: signed((re.findall(r"\d+", t) or [""])[-1] == p.answer)))["junk"].value == 1


def test_unknown_answers_say_so():
    out = outcome(EnvJudge(Sums()), Sums(known=False))
    assert (out["right"].value, out["wrong"].value) == (0, 0)
    assert "cannot tell" in out["right"].reason
    assert out["empty"].value == 1


def test_a_judge_that_changes_its_mind():
    flip = itertools.cycle([1.0, 0.5])
    out = outcome(Said(lambda p, t: next(flip) if t == p.answer else -1.0))
    assert (out["repeatable"].value, out["repeatable"].action) == (-1, "warn")
    assert "first 1.0, then 0.5" in out["repeatable"].reason


def test_a_few_failures_warn():
    out = outcome(Said(lambda p, t: signed(t.split()[0] == p.answer) if t.strip() else fail("IndexError")))
    assert (out["failures"].value, out["failures"].action) == (-1, "warn")
    assert "IndexError" in out["failures"].reason
    assert out["empty"].value == 0


def fail(why):
    return Feedback(value=None, failure=why)


def broken(p, t):
    raise KeyError("answer")


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        (lambda p, t: fail("ZeroDivisionError"), "fails on a right answer: ZeroDivisionError"),
        (lambda p, t: 1.0 if t == p.answer else fail("boom"), "completions: boom"),
        (lambda p, t: math.nan, "returned nan"),
        (lambda p, t: 10.0, "returned 10.0"),
        (broken, "KeyError: 'answer'"),
        (lambda p, t: fail("timed out after 3 s"), "does not end"),
    ],
)
def test_a_broken_judge_raises_with_the_example(judge, expected):
    with pytest.raises(VerifierError, match="nothing was started") as error:
        preflight(Sums(), Said(judge), seed=0)
    assert expected in str(error.value)
    assert "The example: prompt '2+1='" in str(error.value)


def test_a_verifier_that_never_returns_costs_one_time_limit(tmp_path):
    (tmp_path / "hang.py").write_text("def check(p, c):\n    while True: pass")
    with UserVerifier(f"{tmp_path}/hang.py:check", timeout=0.5) as v:
        start = time.monotonic()
        with pytest.raises(VerifierError, match=r"does not end: timed out after 0\.5 s"):
            preflight(Sums(), v, seed=0)
        assert time.monotonic() - start < 2


def test_a_good_user_verifier_passes(tmp_path):
    (tmp_path / "good.py").write_text("def check(p, c, answer):\n    return c.strip() == answer")
    with UserVerifier(f"{tmp_path}/good.py:check") as v:
        assert {x.value for x in preflight(Sums(), v, seed=0)} == {1}


def test_a_slow_judge_keeps_to_its_time():
    def slow(p, t):
        time.sleep(0.02)
        return signed(t.strip() == p.answer)

    start = time.monotonic()
    out = preflight(Sums(), Said(slow), n=1000, seed=0, seconds=0.3)
    assert time.monotonic() - start < 1
    assert {v.value for v in out} == {1}


def test_no_prompts_is_no_proof():
    assert {v.value for v in preflight(Sums(), Said(lambda p, t: 1.0), n=0, seed=0)} == {0}


def test_junk_has_no_empty_text():
    assert all(j.strip() for j in JUNK)
