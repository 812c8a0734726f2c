"""GSM8K: agreement with recorded grades, and the published file form."""

from __future__ import annotations

from pathlib import Path

import pytest

from triloop.envs.gsm8k import Gsm8k
from triloop.envs.reading import Row
from triloop.envs.scoring import agreement, read_scored_rows, score_rows
from triloop.errors import ConfigError, DataError


def test_agreement_with_2400_recorded_grades(shared: Path) -> None:
    rows = read_scored_rows(shared / "gsm8k" / "model_solutions.jsonl.gz")
    found = agreement(rows, score_rows(rows, Gsm8k()))
    assert found.labelled == 2400
    assert found.rate == 1.0, "\n".join(found.disagreements)


def test_the_published_files(shared: Path) -> None:
    folder = shared / "gsm8k"
    env = Gsm8k(path=folder / "train_2000.jsonl.gz", eval_path=folder / "test_500.jsonl.gz")
    held = env.prompts("eval", 500, seed=0)
    assert len({p.id for p in held}) == 500, "no prompt twice before all have come once"
    assert len({p.id for p in env.prompts("train", 2000, seed=0)}) > 1800
    for prompt in held:
        assert env.verify(prompt, env.right_answer(prompt)).value == 1
        assert all(env.verify(prompt, text).value == -1 for text in env.wrong_answers(prompt))


def test_the_answer_is_read_from_each_published_form() -> None:
    env = Gsm8k()
    for data in (
        {"answer": "2+2\n#### 1,004"},
        {"final": "1004"},
        {"ground_truth": "so\nA: 1004"},
        {"answer": "1004.00"},
    ):
        prompt = env.read(Row(where="f:1", data={"question": "How many?", **data}))
        assert prompt.answer == "1004"
        assert env.verify(prompt, "It is $1,004.").value == 1
    assert env.verify(prompt, "?").value == env.verify(prompt, "####?").value == 0


def test_held_out_problems_leave_the_other_splits(write: object) -> None:
    rows = [{"question": f"{k}?", "answer": str(k)} for k in range(30)]
    env = Gsm8k(path=write(rows), eval_path=write(rows[:10]))  # type: ignore[operator]
    held = {p.text for p in env.prompts("eval", 10, seed=0)}
    rest = {p.text for s in ("train", "canary") for p in env.prompts(s, 30, seed=0)}  # type: ignore[arg-type]
    assert len(held) == 10 and held.isdisjoint(rest) and len(rest) == 20


def test_chat_form_and_wrong_use(files: dict[str, Path]) -> None:
    assert Gsm8k(path=files["gsm8k"], chat=True).prompts("train", 1, seed=0)[0].turns[0].role == "user"
    assert Gsm8k(path=files["gsm8k"], max_tokens=7).max_tokens == 7
    with pytest.raises(ConfigError, match=r"pass path=FILE\.jsonl"):
        Gsm8k().prompts("train", 1, seed=0)
    with pytest.raises(DataError, match=r"f:1: the answer 'none' holds no number"):
        Gsm8k().read(Row(where="f:1", data={"question": "?", "answer": "none"}))
