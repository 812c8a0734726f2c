"""Small episodes to build batches from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from triloop.records import Completion, Episode, Prompt

MakeEpisodes = Callable[..., list[Episode]]


def _episode(prompt: str, index: int, reward: float | None, tokens: Sequence[int], logps: Sequence[float]) -> Episode:
    completion = Completion(
        id=f"0/{prompt}/{index}",
        prompt_id=prompt,
        round=0,
        index=index,
        prompt_tokens=(1, 2),
        tokens=tuple(tokens),
        logps=tuple(logps),
        mask=(True,) * len(tokens),
        text="",
        finish="stop",
        policy_version=0,
    )
    return Episode(prompt=Prompt(id=prompt, text=""), completion=completion, feedback=(), reward=reward)


@pytest.fixture
def make_episodes() -> MakeEpisodes:
    """``make_episodes([[1, 0], [0, 0]], lengths=[[2, 3], [1, 4]])``: one list of rewards per prompt."""

    def make(
        rewards: Sequence[Sequence[float | None]], lengths: Sequence[Sequence[int]] | None = None, logp: float = -1.0
    ) -> list[Episode]:
        made = []
        for p, group in enumerate(rewards):
            for i, reward in enumerate(group):
                n = 3 if lengths is None else lengths[p][i]
                made.append(_episode(f"p{p}", i, reward, [(p + i + t) % 5 for t in range(n)], [logp] * n))
        return made

    return make
