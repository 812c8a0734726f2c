"""Reward models where people, or the attribute world's truth, have judged: the short forms of proofs/reward_model.py."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from triloop import rng
from triloop.envs.attributes import MEDIOCRE, Attributes
from triloop.loops.build import policy_path
from triloop.sources.reward_config import RewardConfig, RewardTraining
from triloop.sources.reward_examples import RewardPair
from triloop.sources.reward_model import RewardModel


@pytest.fixture(scope="module")
def proof() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "proofs" / "reward_model.py"
    spec = importlib.util.spec_from_file_location("proof_reward_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_dialogues_are_parted_where_they_part(proof, tmp_path: Path):
    file = tmp_path / "pairs.jsonl.gz"
    with gzip.open(file, "wt") as out:
        out.write(
            '{"chosen": "\\n\\nHuman: hi\\n\\nAssistant: yes, you", "rejected": "\\n\\nHuman: hi\\n\\nAssistant: yes"}\n'
        )
    (pair,) = proof.read_pairs(file)
    assert (pair.prompt.text, pair.first, pair.second) == ("\n\nHuman: hi\n\nAssistant:", " yes, you", " yes")
    assert sorted(i for fold in proof.folds(23, 0) for i in fold) == list(range(23))


def test_one_fold_of_real_preferences(proof, shared: Path):
    """Better than chance beyond the interval, and calibrated: its log loss is below that of a coin."""
    pairs = proof.read_pairs(shared / "hh_rlhf" / "harmless_base_test_1500.jsonl.gz")
    held = set(proof.folds(len(pairs), 0)[0])
    model = next(iter(proof.METHODS.values()))([e for i, e in enumerate(pairs) if i not in held], 0)
    audit = model.audit([pairs[i] for i in held])
    assert audit.pairs == 300 and audit.accuracy.low > 0.5
    assert audit.log_loss < 0.68 and audit.ece < 0.1


def test_the_attribute_world_is_learned_from_its_base():
    """Noisy labels on the base's kind of answers; judged on pairs whose true utilities differ by 0.5."""
    env = Attributes()

    def made(split, n, seed):
        draw = rng.generator(seed, "pairs")
        out = []
        for prompt in env.prompts(split, n, seed=seed):
            first, second = (env.demonstration(prompt, draw, rates=MEDIOCRE) for _ in range(2))
            lead = float(np.subtract(*(f.value for f in env.gold([prompt] * 2, [first, second]))))
            p = 1 / (1 + np.exp(-lead / 0.15)) if split == "train" else float(lead > 0)
            out.append((RewardPair(prompt=prompt, first=first, second=second, p=float(draw.random() < p)), abs(lead)))
        return out

    model = RewardModel.load(policy_path("base:attributes"), RewardConfig(), training=RewardTraining(epochs=2))
    done = model.learn([e for e, _ in made("train", 500, 1)])
    assert done.held_out and done.held_losses[-1] < 0.65
    audit = model.audit([e for e, gap in made("eval", 300, 2) if gap >= 0.5])
    assert audit.accuracy.value > 0.75
