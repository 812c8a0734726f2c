"""Judgements out of a file: what a run learns from them, in addition or instead, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loops.test_generations import STEPS, config
from triloop.envs.attributes import Attributes
from triloop.errors import ConfigError, DataError, RunFolderError
from triloop.learn.objective_config import ObjectiveConfig
from triloop.loops.config import RunConfig
from triloop.loops.run import resume, start
from triloop.loops.stages import CollectConfig, CycleConfig, ImitateConfig, PreferConfig, RewardStageConfig
from triloop.store.run import Run

WORLD = Attributes()
PROMPTS = WORLD.prompts("train", 12, seed=5)


def rows(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """What people have: a prompt, a better answer, a worse one."""
    made = [{"prompt": p.text, "chosen": WORLD.right_answer(p), "rejected": "the ugly fox ."} for p in PROMPTS]
    return rows(tmp_path / "pairs.jsonl", made)


def run_of(path: Path | str, *, source: str = "recorded", prompts: int = 8, **changes: Any) -> RunConfig:
    cycle = CycleConfig(
        stages=("collect", "prefer"),
        collect=CollectConfig(prompts=prompts, samples=2, source=source),  # type: ignore[arg-type]
        prefer=PreferConfig(objective=ObjectiveConfig(name="dpo"), **STEPS),
        recorded=str(path),
    )
    return config(dataclasses.replace(cycle, **changes), generations=2)


def test_instead_of_sampling(pairs: Path, run_dir: Path) -> None:
    start(run_of(pairs), run_dir)
    with Run.open(run_dir, write=False) as run:
        first, second = (run.episodes(r, purpose="collect") for r in (1, 3))
        assert run.metrics()[0]["judgements"] == 8 and run.metrics()[1]["examples"] == 8
    asked = [[e.prompt.text for e in episodes[::2]] for episodes in (first, second)]
    # eight of the twelve, in order; then the other four, and from the start again
    texts = [p.text for p in PROMPTS]
    assert asked == [texts[:8], texts[8:] + texts[:4]]
    told = [(e.completion.text, f.value, f.source) for e in first for f in e.feedback]
    assert told[0] == (WORLD.right_answer(PROMPTS[0]), 1.0, "data:pairs.jsonl")
    assert all(f.about == (a.completion.id, b.completion.id)
               for a, b in zip(first[::2], first[1::2], strict=True) for f in a.feedback)  # fmt: skip
    assert len({e.completion.id for e in (*first, *second)}) == 32


def test_in_addition_to_what_it_collects(pairs: Path, run_dir: Path) -> None:
    start(run_of(pairs, source="people", prompts=6), run_dir)
    with Run.open(run_dir, write=False) as run:
        told = [f for e in run.episodes(1, purpose="collect") for f in e.feedback]
        assert sum(f.source == "data:pairs.jsonl" for f in told) == 6
        assert sum(f.source == "person:0" for f in told) == 6
        assert run.metrics()[0]["recorded"] == 12  # samples: two of each pair


def test_a_reward_model_and_imitation_learn_from_it(tmp_path: Path, run_dir: Path) -> None:
    """Scores of single answers teach a reward model; a data set without any judgement is imitated."""
    scored = [{"prompt": p.text, "completion": t, "label": v} for p in PROMPTS
              for t, v in ((WORLD.right_answer(p), True), ("the ugly fox .", False))]  # fmt: skip
    cycle = {"stages": ("collect", "reward"), "reward": RewardStageConfig(epochs=1)}
    start(run_of(rows(tmp_path / "scored.jsonl", scored), prompts=12, **cycle), run_dir)
    with Run.open(run_dir, write=False) as run:
        made = [r.payload["facts"] for r in run.rows("artifact") if r.payload["thing"] == "reward"]
        assert made[0]["pairs"] == 12 and made[0]["reward_model_held_out"] >= 0
    shown = rows(tmp_path / "shown.jsonl", [{"prompt": p.text, "completion": WORLD.right_answer(p)} for p in PROMPTS])
    imitate = {"stages": ("collect", "imitate"), "imitate": ImitateConfig(on="edits", **STEPS)}
    start(run_of(shown, prompts=12, **imitate), tmp_path / "imitates")
    with Run.open(tmp_path / "imitates", write=False) as run:
        assert run.metrics()[1]["examples"] == 12


def test_several_rows_about_one_answer_are_one_sample(tmp_path: Path, run_dir: Path) -> None:
    votes = [
        {"prompt": PROMPTS[0].text, "completion": "the ugly fox .", "label": v, "annotator": who}
        for v, who in ((False, "anna"), (False, "ben"), (True, "cem"))
    ]
    how = {"prefer": PreferConfig(objective=ObjectiveConfig(name="kto"), **STEPS)}
    start(run_of(rows(tmp_path / "votes.jsonl", votes), **how), run_dir)
    with Run.open(run_dir, write=False) as run:
        (only,) = run.episodes(1, purpose="collect")
        assert [f.value for f in only.feedback] == [-1, -1, 1] and run.metrics()[1]["examples"] == 3


def test_what_a_run_is_measured_on_is_left_out(tmp_path: Path, run_dir: Path) -> None:
    held = WORLD.prompts("eval", 3, seed=0)
    pair = {"chosen": "a .", "rejected": "b ."}
    mixed = rows(tmp_path / "mixed.jsonl", [{"prompt": p.text, **pair} for p in (*held, PROMPTS[0])])
    start(run_of(mixed), run_dir)
    with Run.open(run_dir, write=False) as run:
        assert {e.prompt.text for e in run.episodes(1, purpose="collect")} == {PROMPTS[0].text}
    only = rows(tmp_path / "only.jsonl", [{"prompt": p.text, **pair} for p in held])
    with pytest.raises(DataError, match="measured on all 3 prompts"):
        start(run_of(only), tmp_path / "none")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "there is no such file"),
        ([], "there is no row in it"),
        ([{"question_text": "?", "first": "a", "second": "b"}], "columns|expected|mean"),
        ([{"prompt": "?", "chosen": "a", "rejected": "b", "mood": "x"}], "columns without a meaning here: mood"),
        ([{"prompt": "?", "chosen": "a"}, {"prompt": "?", "chosen": 3, "rejected": "b"}], "jsonl"),
    ],
    ids=["missing", "empty", "unknown columns", "one column too many", "malformed"],
)
def test_what_cannot_be_read_is_said_before_anything_is_written(
    made: list[dict[str, Any]] | None, message: str, tmp_path: Path, run_dir: Path
) -> None:
    path = tmp_path / "file.jsonl"
    if made is not None:
        rows(path, made)
    with pytest.raises(DataError, match=message):
        start(run_of(path), run_dir)
    assert not run_dir.exists()


def test_settings_that_go_together(pairs: Path, run_dir: Path) -> None:
    with pytest.raises(ConfigError, match="cycle.recorded names no file"):
        start(run_of(""), run_dir)
    with pytest.raises(ConfigError, match="a file that nothing reads"):
        start(run_of(pairs, stages=("imitate",), imitate=ImitateConfig(examples=4, **STEPS)), run_dir)


def test_a_run_goes_on_where_it_was_and_not_from_another_file(pairs: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole = start(run_of(pairs), tmp_path / "whole")
    short = dataclasses.replace(run_of(pairs), generations=1)
    start(short, tmp_path / "short")
    assert resume(tmp_path / "short", generations=2)["weights_sha256"] == whole["weights_sha256"]
    start(short, tmp_path / "again")
    rows(pairs, [{"prompt": PROMPTS[0].text, "chosen": "x .", "rejected": "y ."}])
    with pytest.raises(RunFolderError, match="recorded_sha256 was"):
        resume(tmp_path / "again", generations=2)
