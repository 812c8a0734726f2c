"""A small world for reward models: a good text has more of the letter that its prompt names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies import small
from triloop import rng
from triloop.learn.choices import OptimConfig
from triloop.records import Prompt
from triloop.sources.reward_config import RewardConfig, RewardTraining
from triloop.sources.reward_examples import RewardPair
from triloop.sources.reward_model import RewardModel

TRAINING = RewardTraining(
    optim=OptimConfig(lr=3e-3, warmup_steps=5, schedule="linear"), epochs=4, batch=16, held_out=0.0
)


def ask(letter: str = "a", n: int = 1) -> list[Prompt]:
    return [Prompt(id=f"{letter}{i}", text=f"{letter}=") for i in range(n)]


def model(config: RewardConfig | None = None, *, training: RewardTraining = TRAINING, **options: object) -> RewardModel:
    return RewardModel(small.decoder(), small.tokenizer(), config, training=training, **options)


def utility(prompt: Prompt, text: str) -> float:
    return float(text.count(prompt.text[0]))


def texts(n: int, seed: int = 0) -> list[str]:
    draw = rng.generator(seed, "texts")
    return ["".join(draw.choice(list("abcd"), size=int(draw.integers(2, 6)))) for _ in range(n)]


def pairs(n: int, seed: int = 0, letters: Sequence[str] = ("a",)) -> list[RewardPair]:
    """Decided pairs, the better one as often second as first."""
    out: list[RewardPair] = []
    made = texts(20 * n, seed)
    for i in range(0, len(made) - 1, 2):
        prompt = Prompt(id=f"q{i}", text=f"{letters[i // 2 % len(letters)]}=")
        lead = utility(prompt, made[i]) - utility(prompt, made[i + 1])
        if lead and len(out) < n:
            out.append(RewardPair(prompt=prompt, first=made[i], second=made[i + 1], p=float(lead > 0)))
    return out


def swapped(pair: RewardPair) -> RewardPair:
    return RewardPair(
        prompt=pair.prompt, first=pair.second, second=pair.first, p=1 - pair.p, tie=pair.tie, margin=pair.margin
    )


def numbers(feedback: Sequence[object]) -> np.ndarray:
    return np.array([f.value for f in feedback], dtype=float)  # type: ignore[attr-defined]
