"""What a policy offers. The primitives are those that users of Tinker know; everything else is built on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from triloop import rng
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Prompt, completion_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from triloop.learn.batch import Batch
    from triloop.learn.update import LossFn
    from triloop.policies.engine import Generated

__all__ = ["Policy", "Scorer", "Tag", "completion_of", "sample_key"]


@dataclass(frozen=True, kw_only=True)
class Tag:
    """What a batch of samples is for; with the prompt and the sample's index it fixes every random number."""

    seed: int
    round: int
    purpose: str = "train"


class Scorer(Protocol):
    """A model that can say how likely given tokens are. A frozen reference model is no more than this."""

    def logprobs(
        self, items: Sequence[tuple[Sequence[int], Sequence[int]]], *, temperature: float = 1.0
    ) -> list[NDArray[np.float32]]:
        """For each (prompt tokens, tokens): log p of every token given what is before it, in nats."""
        ...


class Policy(Scorer, Protocol):
    """A model that samples, scores and learns. An endpoint that cannot learn implements ``sample`` alone."""

    version: int
    """Optimiser steps taken."""

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokens of a prompt, chat template applied when it has turns."""
        ...

    def sample(self, prompts: Sequence[Prompt], n: int, sampling: Sampling, tag: Tag) -> list[Completion]:
        """``n`` completions of every prompt, prompt by prompt."""
        ...

    def forward_backward(self, batch: Batch, loss: LossFn) -> dict[str, float]:
        """Add the gradient of ``loss`` over ``batch`` to what is there; returns the loss's metrics."""
        ...

    def optim_step(self, lr: float) -> dict[str, float]:
        """Clip, step at this learning rate, clear the gradient; returns the norm before clipping."""
        ...

    def save_state(self, folder: Path) -> None:
        """Everything that a bit-exact continuation needs: weights, optimiser, version."""
        ...

    def load_state(self, folder: Path) -> None: ...


def sample_key(tag: Tag, prompt_id: str, index: int) -> int:
    """The key of a sample's random stream: a function of what the sample is, not of where or when it is drawn."""
    return rng.key(tag.seed, tag.purpose, tag.round, prompt_id, index)


def completion_of(
    generated: Generated, prompt: Prompt, prompt_tokens: tuple[int, ...], tag: Tag, index: int, version: int
) -> Completion:
    """The record of what the engine generated."""
    name = completion_id(tag.round, prompt.id, index)
    return Completion(
        id=name if tag.purpose == "train" else f"{tag.purpose}/{name}",
        prompt_id=prompt.id,
        round=tag.round,
        index=index,
        prompt_tokens=prompt_tokens,
        tokens=tuple(generated.tokens),
        logps=tuple(generated.logps),
        mask=tuple(generated.mask),
        text=generated.text,
        finish=generated.finish,
        policy_version=version,
    )
