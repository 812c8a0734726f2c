"""Judging as a task: verdicts by hand, and questions that are none."""

from __future__ import annotations

import numpy as np
import pytest

from triloop.envs.attributes_judging import AttributeJudging
from triloop.errors import ConfigError, DataError

ASK, COMPARE = AttributeJudging("ask"), AttributeJudging("compare")
GOOD, RUDE = "please note the fox is red , den .", "the ugly fox is red ."


def test_verdicts_by_hand() -> None:
    """All six attributes kept: utility 1. One of two facts, rude and curt: 2 (0.35 / 2 + 0.15 + 0.1 + 0.05) - 1 < 0.6."""
    for text, answer in ((GOOD, "yes"), (RUDE, "no")):
        p = ASK.parse(f"judge tell fox red den : {text} ; overall ?")
        assert (p.answer, p.level, p.env) == (answer, 2, "attributes-ask")
        assert [f.value for f in ASK.gold([p] * 3, ["yes", " no ", "maybe"])] == [
            1 if answer == "yes" else -1,
            1 if answer == "no" else -1,
            -1,
        ]
    for first, second, answer in ((GOOD, RUDE, "A"), (RUDE, GOOD, "B"), (GOOD, GOOD, "none")):
        p = COMPARE.parse(f"compare tell fox red den : A {first} ; B {second} ; overall ?")
        assert p.answer == answer and COMPARE.verify(p, answer).value == 1


def test_both_verdicts_are_asked_for() -> None:
    for task, least in ((ASK, 2), (COMPARE, 2)):
        answers = [p.answer for p in task.prompts("train", 100, seed=0)]
        common = [a for a in task.answers if answers.count(a) >= 20]
        assert len(common) >= least, answers


def test_a_teacher_errs_as_often_as_said() -> None:
    g, asked = np.random.default_rng(0), COMPARE.prompts("train", 200, seed=1)
    wrong = sum(COMPARE.demonstration(p, g, 0.3) != p.answer for p in asked)
    assert 40 <= wrong <= 80
    assert all(COMPARE.demonstration(p, g, 0.0) == p.answer for p in asked)


@pytest.mark.parametrize(
    "text",
    ["judge tell fox red den : ; overall ?", "judge tell fox red den : a", "compare tell fox red den : A a ; overall ?",
     "judge tell fox green : a ; overall ?", "tell fox red den :"],
)  # fmt: skip
def test_what_is_no_question_is_refused(text: str) -> None:
    for task in (ASK, COMPARE):
        with pytest.raises(DataError, match="is no such question|is not a request"):
            task.parse(text)
    with pytest.raises(ConfigError, match="task is 'rank'; expected ask or compare"):
        AttributeJudging("rank")  # type: ignore[arg-type]
