"""reasoning-gym: its own scores, exactly."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from triloop.envs.gym import Gym, tasks
from triloop.envs.reading import read_jsonl
from triloop.envs.scoring import score_rows
from triloop.errors import ConfigError, DataError

pytest.importorskip("reasoning_gym")


def recorded(shared: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    with gzip.open(shared / "reasoning_gym" / "tasks_seed11.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            found.setdefault(row["task"], []).append(row)
    return found


def test_scores_equal_the_library_s(shared: Path, tmp_path: Path) -> None:
    """Right, spoiled, padded and tagged answers of 18 recorded tasks: the same number, bit for bit, or the same failure."""
    import reasoning_gym

    judged = 0
    for task, entries in recorded(shared).items():
        path = tmp_path / f"{task}.jsonl"
        rows = [
            {**entry, "completion": text}
            for entry in entries[:8]
            for answer in [entry["answer"] or "p"]
            for text in (answer, answer + " 1", answer[:-1], f"It is {answer}", "")
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        library = reasoning_gym.create_dataset(task, seed=11, size=25)
        for row, feedback in zip(rows, score_rows(read_jsonl(path), Gym(task)), strict=True):
            try:
                score, failure = library.score_answer(row["completion"], row), None
            except (ValueError, TypeError) as error:
                score, failure = None, f"score: {type(error).__name__}: {error}"
            assert (feedback.value, feedback.failure, feedback.kind) == (score, failure, "scalar"), (task, row)
            judged += 1
    assert judged == 18 * 8 * 5


def test_recorded_answers_are_right(shared: Path) -> None:
    for task, entries in recorded(shared).items():
        rows = read_jsonl(shared / "reasoning_gym" / "tasks_seed11.jsonl.gz")
        mine = [row for row in rows if row.data["task"] == task and row.data["answer"] is not None][:5]
        env = Gym(task)
        assert len(entries) == 25
        for row in mine:
            assert env.verify(env.read(row), row.data["answer"]).value == 1.0


def test_an_answer_in_tags_is_taken_out() -> None:
    env = Gym("chain_sum")
    prompt = env.prompts("train", 1, seed=0)[0]
    feedback = env.verify(prompt, f"thinking ... <answer> {prompt.answer} </answer>")
    assert feedback.value == 1.0
    assert feedback.breakdown == {"score": 1.0, "tagged": 1.0}


def test_settings_reach_the_task() -> None:
    env = Gym("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1, chat=True, max_tokens=9)
    prompt = env.prompts("train", 1, seed=0)[0]
    assert prompt.text.count("+") + prompt.text.count(" - ") == 1
    assert prompt.turns[0].text == prompt.text and env.max_tokens == 9


def test_wrong_use() -> None:
    with pytest.raises(ConfigError, match="gym:nope: reasoning-gym knows no such task; it has .*countdown"):
        Gym("nope")
    with pytest.raises(ConfigError, match="cannot be used"):
        Gym("chain_sum", colour=3)
    with pytest.raises(ConfigError, match="cannot be used"):
        Gym("chain_sum", min_terms=5, max_terms=2)
    from triloop.envs.reading import Row

    with pytest.raises(DataError, match="f:1: 'metadata' is str"):
        Gym("chain_sum").read(Row(where="f:1", data={"question": "?", "answer": "1", "metadata": "x"}))
    assert len(tasks()) > 50
