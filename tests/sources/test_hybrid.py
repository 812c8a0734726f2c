"""A verifier and a reward model as one judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from jaxtyping import Float

from triloop.errors import ConfigError
from triloop.records import Feedback, Prompt
from triloop.sources.hybrid import HybridJudge


class _Verifier:
    name = "letters"

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        return [
            Feedback(value=None, failure="unreadable")
            if t == "?"
            else Feedback(value=1.0 if t.startswith("r") else -1.0)
            for t in texts
        ]


class _Scores:
    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        return np.array(
            [float("nan") if t == "w?" else float(t[1:] or 0) for t in (t.replace("?", "") or "w" for t in texts)]
        )


P, Q = Prompt(id="p", text="p"), Prompt(id="q", text="q")


def _values(how: str, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
    judge = HybridJudge(_Verifier(), _Scores(), how=how, alpha=0.2, beta=0.1)  # type: ignore[arg-type]
    return [f.value for f in judge.judge(prompts, texts)]


def test_strata_by_hand() -> None:
    """Of one prompt: wrong ones from -0.2 to 0.2, right ones from 0.9 to 1.1, and [-0.2, 1.1] is brought to [-1, 1]."""
    got = _values("stratified", [P] * 4, ["w0", "w9", "r1", "r3"])
    expected = [2 * (r + 0.2) / 1.3 - 1 for r in (-0.2, 0.2, 0.9, 1.1)]
    assert got == pytest.approx(expected, abs=1e-5)


def test_no_score_lifts_a_wrong_answer_above_a_right_one() -> None:
    low, high = _values("stratified", [P] * 2, ["r0", "w999"])
    assert low is not None
    assert high is not None
    assert low > high
    flattered = _values("sum", [P] * 2, ["r0", "w999"])
    assert flattered == pytest.approx([0.0, 0.0], abs=1e-5)


def test_a_group_is_a_prompt() -> None:
    """The score 5 is the best of one prompt's wrong answers and the worst of the other's."""
    got = _values("stratified", [P, Q, P, Q], ["w1", "w5", "w5", "w9"])
    assert got[2] == pytest.approx(got[3])
    assert got[0] == pytest.approx(got[1])


def test_what_one_of_the_two_fails_on_fails() -> None:
    judge = HybridJudge(_Verifier(), _Scores())
    told = judge.judge([P] * 3, ["r1", "?", "w1"])
    assert [f.failed for f in told] == [False, True, False]
    assert told[1].failure == "unreadable"


def test_strata_that_meet_are_refused() -> None:
    with pytest.raises(ConfigError, match="below 1"):
        HybridJudge(_Verifier(), _Scores(), alpha=0.5, beta=0.5).judge([P], ["r1"])
