"""Names to environments, and recorded rows to judgements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from triloop.envs.arithmetic import Arithmetic
from triloop.envs.reading import Row
from triloop.envs.scoring import agreement, read_scored_rows, score_rows
from triloop.envs.table import ENVS, make
from triloop.errors import ConfigError, DataError
from triloop.records import Feedback, Prompt


def test_names() -> None:
    with pytest.raises(ConfigError, match="unknown environment 'countdwn': did you mean 'countdown'"):
        make("countdwn")
    with pytest.raises(ConfigError) as caught:
        make("xyzzy")
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in ENVS)


def test_options() -> None:
    assert make("arithmetic", mixture=[2]).prompts("train", 1, seed=0)[0].level == 2
    with pytest.raises(ConfigError, match="arithmetic: unknown option levls; it takes levels, mixture, largest"):
        make("arithmetic", levls=[2])
    with pytest.raises(ConfigError, match="story-hack: unknown option careless"):
        make("story-hack", careless=False)


def test_rows_of_a_world(write: Callable[..., Path]) -> None:
    path = write(
        [
            {"prompt": "7+12-5+9=", "completion": "19,14,23#23"},
            {"question": "1+1=", "completion": "#3"},
            {"prompt": "1+1=", "completion": "?"},
            {"prompt": "1+1=", "completion": ""},
        ]
    )
    judged = score_rows(read_scored_rows(path), Arithmetic())
    assert [f.value for f in judged] == [1, -1, 0, -1]
    assert judged[1].reason == "answer '3' is not 2"


def test_rows_that_cannot_be_scored(write: Callable[..., Path]) -> None:
    path = write([{"prompt": "1+1=", "completion": "#2"}, {"prompt": "hello", "completion": "#2"}])
    with pytest.raises(DataError, match=rf"{path}:2: arithmetic: 'hello' is not a problem"):
        score_rows(read_scored_rows(path), Arithmetic())
    for data, message in (
        ({}, "has prompt; expected a text field 'completion'"),
        ({"completion": 3}, "'completion' is int"),
    ):
        with pytest.raises(DataError, match=f"f:1: {message}"):
            score_rows([Row(where="f:1", data={"prompt": "1+1=", **data})], Arithmetic())


def test_a_verifier_of_one_s_own_takes_the_environment_s_place() -> None:
    def judge(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        return [Feedback(value=len(text) / 10, reason=prompt.text) for prompt, text in zip(prompts, texts, strict=True)]

    row = Row(where="f:1", data={"prompt": "1+1=", "completion": "four"})
    assert score_rows([row], Arithmetic(), judge) == [Feedback(value=0.4, reason="1+1=")]


def test_agreement_lists_every_disagreement(write: Callable[..., Path]) -> None:
    graded = {"question": "1+1?", "ground_truth": "A: 2", "a": {"solution": "A: 2", "is_correct": True}}
    path = write(
        [{**graded, "b": {"solution": "A: 3", "is_correct": True}}, {"question": "?", "answer": "1", "completion": "1"}]
    )
    rows = read_scored_rows(path)
    assert [row.where for row in rows] == [f"{path}:1 (a)", f"{path}:1 (b)", f"{path}:2"]
    found = agreement(rows, score_rows(rows, make("gsm8k")))
    assert (found.labelled, found.agreed, found.rate) == (2, 1, 0.5)
    assert found.disagreements == (f"{path}:1 (b): labelled right, judged -1: '3' (by A:) is not 2",)
