"""A reward model per token: where its marks fall, and that a run is paid by them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from loops.test_generations import config
from triloop.errors import ConfigError, DataError
from triloop.learn.choices import AlgorithmConfig
from triloop.loops.densities import placed
from triloop.loops.run import start
from triloop.loops.stages import CollectConfig, CycleConfig, RewardStageConfig
from triloop.store.run import Run

CYCLE = CycleConfig(
    stages=("collect", "reward", "improve"),
    collect=CollectConfig(prompts=8, samples=2, kinds=("pair", "spans")),
    reward=RewardStageConfig(epochs=1, words=0.5),
)
PPO = AlgorithmConfig(name="ppo")


def test_marks_fall_on_the_tokens_that_end_no_earlier() -> None:
    """``ab cd`` read as ab, cd, end; written as a, b, (inserted) cd."""
    own, chosen = [(0, 2), (2, 5)], [(0, 1), (1, 2), (2, 2), (2, 5)]
    scores = np.array([0.5, -1.0, 9.0])
    assert placed(scores, own, chosen, (True, True, False, True)) == [(1, 0.5), (3, -1.0)]
    # two words of the reader in one token of the writer
    assert placed(scores, own, [(0, 5)], (True,)) == [(0, -1.0), (0, 0.5)]
    # a reader that saw the second word alone, a text without words, and a completion without a word of its own
    assert placed(np.array([-1.0, 9.0]), own, chosen, (True,) * 4) == [(3, -1.0)]
    assert placed(np.array([9.0]), [], [], (True,)) == []
    assert placed(scores, own, chosen, (False,) * 4) == []


def test_what_is_paid_for_words_changes_what_is_learned(run_dir: Path, tmp_path: Path) -> None:
    learned = []
    for words, folder in ((0.5, run_dir), (0.0, tmp_path / "none")):
        cycle = dataclasses.replace(CYCLE, reward=dataclasses.replace(CYCLE.reward, words=words))
        learned.append(start(config(cycle, algorithm=PPO), folder)["weights_sha256"])
    assert learned[0] != learned[1]
    with Run.open(run_dir, write=False) as run:
        assert run.metrics()[1]["words_held_loss"] >= 0
    assert list(run_dir.glob("checkpoints/*/words/*")), "a checkpoint holds it"


def test_what_it_needs_is_said(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match="need a value head; choose ppo"):
        start(config(CYCLE), run_dir)
    assert not run_dir.exists()
    pairs = dataclasses.replace(CYCLE, collect=CollectConfig(prompts=8, samples=2, kinds=("pair",)))
    with pytest.raises(DataError, match="marks a passage"):
        start(config(pairs, algorithm=PPO), run_dir)
