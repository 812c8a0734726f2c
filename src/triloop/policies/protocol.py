"""What a policy offers. The primitives are those that users of Tinker know; everything else is built on them.

Backends that run here (``native``, ``transformers``) implement ``Policy``. One behind an endpoint, which neither scores nor
learns, is a ``Sampler`` and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from triloop.policies.sampling import Sampling
from triloop.records import Completion, Prompt

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from triloop.learn.batch import TokenBatch
    from triloop.learn.update import LossFn
    from triloop.nn.tokenizer import Tokenizer
    from triloop.policies.engine import LogitMask, Respond

__all__ = ["Policy", "Sampler", "Scorer", "Tag"]


@dataclass(frozen=True, kw_only=True)
class Tag:
    """What a batch of samples is for; with the prompt and the sample's index it fixes every random number."""

    seed: int
    round: int
    purpose: str = "train"
    learned: bool = False
    """Whether the policy is to learn from these samples before its weights change: what it computes may then be kept."""


class Sampler(Protocol):
    """A model that can complete prompts."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: Sampling,
        tag: Tag,
        *,
        respond: Respond | None = None,
        logit_mask: LogitMask | None = None,
        interrupted: Callable[[], bool] = ...,
    ) -> list[Completion]:
        """``n`` completions of every prompt, prompt by prompt; request ``i`` is sample ``i % n`` of prompt ``i // n``.

        ``respond`` makes episodes of several turns, ``logit_mask`` forces a grammar, and when ``interrupted`` says yes what
        is there is returned as it is. Raises ConfigError for prompts that are empty or too long.
        """
        ...


class Scorer(Protocol):
    """A model that can say how likely given tokens are. A frozen reference model is no more than this."""

    def logprobs(
        self, items: Sequence[tuple[Sequence[int], Sequence[int]]], *, temperature: float = 1.0
    ) -> list[NDArray[np.float32]]:
        """For each (prompt tokens, tokens): log p of every token given what is before it, in nats."""
        ...


class Policy(Sampler, Scorer, Protocol):
    """A model that samples, scores and learns."""

    tokenizer: Tokenizer

    @property
    def version(self) -> int:
        """Optimiser steps taken."""
        ...

    @property
    def precision(self) -> torch.dtype:
        """Of the products; weights are fp32."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def parameters(self) -> int:
        """Number of the model's weights, without heads and adapters."""
        ...

    def weights_sha256(self) -> str:
        """Of the weights that it computes with: equal for policies that compute alike."""
        ...

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokens of a prompt, chat template applied when it has turns."""
        ...

    def values(self, items: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[NDArray[np.float32]]:
        """For each (prompt tokens, tokens): the value head's estimate before every token."""
        ...

    def forward_backward(self, batch: TokenBatch, loss: LossFn) -> dict[str, float]:
        """Add the gradient of ``loss`` over ``batch`` to what is there; returns the loss's metrics."""
        ...

    def optim_step(self, lr: float) -> dict[str, float]:
        """Clip, step at this learning rate, clear the gradient; returns the norm before clipping."""
        ...

    def add_value_head(self) -> None:
        """Add a value head that says 0, unless there is one. Clears the optimiser."""
        ...

    def add_lora(self, rank: int, alpha: float) -> None:
        """Freeze the weights and train low-rank adapters instead. Clears the optimiser."""
        ...

    def frozen(self) -> Self:
        """A copy that does not learn: the reference of a KL term, or the original of a canary."""
        ...

    def restart_from(self, other: Self) -> None:
        """Take the weights of another policy and forget the optimiser's memory. The version goes on counting."""
        ...

    def follow(self, other: Self) -> None:
        """Take the weights and the version of another policy: from here on sample and score as it does now."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write a Hugging Face directory."""
        ...

    def save_state(self, folder: Path) -> None:
        """Everything that a bit-exact continuation needs: weights, optimiser, version."""
        ...

    def load_state(self, folder: Path) -> None:
        """Go on from what ``save_state`` wrote."""
        ...
