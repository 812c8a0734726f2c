"""A JSONL file of one's own: what a row may be, how small a file may be, and how it is judged without a verifier."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triloop.envs.jsonl import Jsonl
from triloop.envs.reading import Row
from triloop.errors import ConfigError, DataError

Write = Callable[..., Path]


def row(**data: Any) -> Row:
    return Row(where="f.jsonl:7", data=data)


def test_forms_of_a_row() -> None:
    env = Jsonl()
    assert env.read(row(prompt="a")).text == env.read(row(question="a")).text == "a"
    chat = env.read(row(messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]))
    assert chat.text == "Hi" and [t.role for t in chat.turns] == ["system", "user"]
    assert env.read(row(prompt="a", answer=5, level=2)).answer == "5"
    assert env.read(row(prompt="a", level=2)).level == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"answer": "x"}, "has answer; expected a field 'prompt' or 'question' or 'messages'"),
        ({"messages": []}, "'messages' must be a list"),
        ({"messages": "hi"}, "'messages' must be a list"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "message 1 is .*robot.*; expected"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 1 is"),
        ({"messages": ["hi"]}, "message 1 is"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "the last message is the assistant's"),
        ({"prompt": "a", "level": "hard"}, "'level' is \"hard\"; expected a whole number"),
        ({"prompt": "a", "answer": ""}, "'answer' is empty"),
    ],
)
def test_malformed_rows(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=r"f\.jsonl:7: " + message):
        Jsonl().read(row(**data))


@pytest.mark.parametrize(
    ("answer", "text", "value"),
    [
        ("12", "so it is 12", 1),
        ("12", "12 or 13", -1),
        ("1,200.0", "#### 1200", 1),
        ("Paris", " Paris\n", 1),
        ("Paris", "It is Paris", -1),
        ("Paris", "paris", -1),
        ("Paris", "?", 0),
        ("?", "?", 1),
        ("12", "?", 0),
        ("Paris", "", -1),
    ],
)
def test_judging_by_the_answer(answer: str, text: str, value: int) -> None:
    env = Jsonl()
    assert env.verify(env.read(row(prompt="a", answer=answer)), text).value == value


def test_a_row_without_answer_is_a_failure() -> None:
    feedback = Jsonl().verify(Jsonl().read(row(prompt="a")), "x")
    assert feedback.value is None and "--verifier" in (feedback.failure or "")
    assert Jsonl().right_answer(Jsonl().read(row(prompt="a"))) is None


@pytest.mark.parametrize("n", [3, 4, 8, 30])
def test_a_small_file_still_has_three_disjoint_splits(write: Write, n: int) -> None:
    env = Jsonl(path=write([{"prompt": f"question {k}"} for k in range(n)]))
    parts = [{p.id for p in env.prompts(split, n, seed=0)} for split in ("train", "eval", "canary")]  # type: ignore[arg-type]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) == n


def test_too_small_a_file_says_so(write: Write) -> None:
    env = Jsonl(path=write([{"prompt": "only one"}]))
    assert len(env.prompts("train", 2, seed=0)) == 2
    with pytest.raises(ConfigError, match="split 'eval' has no prompt.*at least 3 problems"):
        env.prompts("eval", 1, seed=0)


def test_a_row_added_moves_no_other(write: Write) -> None:
    rows = [{"prompt": f"question {k}"} for k in range(200)]
    before, after = Jsonl(path=write(rows[:150])), Jsonl(path=write(rows))
    for split in ("train", "eval", "canary"):
        old = {p.id for p in before.prompts(split, 150, seed=0)}  # type: ignore[arg-type]
        assert old <= {p.id for p in after.prompts(split, 200, seed=0)}  # type: ignore[arg-type]


def test_duplicates(write: Write) -> None:
    rows = [{"prompt": f"q {k}", "answer": str(k)} for k in range(5)]
    env = Jsonl(path=write([*rows, *rows, {"prompt": "q  1", "answer": "1"}]))
    assert sum(len({p.id for p in env.prompts(s, 9, seed=0)}) for s in ("train", "eval", "canary")) == 5  # type: ignore[arg-type]
    path = write([*rows, {"prompt": "q 3", "answer": "4"}])
    with pytest.raises(DataError, match=re.escape(f"{path}:6: the same prompt as {path}:4, but answer '4'")):
        Jsonl(path=path)


def test_options(write: Write) -> None:
    path = write([{"prompt": f"q {k}"} for k in range(9)])
    env = Jsonl(path=path, eval_path=write([{"prompt": "held"}]), max_tokens=5, stop=("\n",))
    assert (env.max_tokens, env.stop) == (5, ("\n",))
    assert {p.text for p in env.prompts("eval", 3, seed=0)} == {"held"}
