"""What a reward model is, and how it is trained, as plain data. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from triloop.errors import ConfigError
from triloop.learn.choices import OptimConfig
from triloop.sources.templates import check_names

__all__ = ["RewardConfig", "RewardTraining", "Ties"]

Ties = Literal["bradley_terry", "davidson", "rao_kupper"]


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Outputs, the model of ties, and the prior on features."""

    attributes: tuple[str, ...] = ()
    """One more output for each of these names."""
    weights: Mapping[str, float] | None = None
    """The score is this weighted sum of attributes, which then learn from pairs too; None: it is an output of its own."""
    token_level: bool = False
    """One more output, of every token, that learns from marked passages."""
    pooled: float = 0.0
    """Scale of what every token of the text says, averaged, beside what is read at its end; 0: the end alone. A state that
    must have kept count of a whole text learns slowly from some hundred pairs; its tokens each know their own part."""
    template: str = ""
    """What the network reads instead of prompt and text, with ``{request}`` and ``{response}`` in it; the score is then
    read where the template ends. For a policy that can already judge when it is asked."""
    answers: tuple[str, str] | None = None
    """The score starts as the difference of these two words' logits, such as yes and no after a question, instead of 0."""
    ties: Ties = "bradley_terry"
    """Likelihood of a pair: without ties (a tie is then half of each), by Davidson (1970), or by Rao and Kupper (1967)."""
    tie_nu: float | None = None
    """How readily ties are called (see ``learn/preferences.py``); None: as often as in the first examples learned from."""
    prior_gain: float = 1.0
    """Scale of the features' part: how fast it learns beside the network."""
    prior_l2: float = 1.0
    """Ridge on the features' weights, ``prior_l2 / (2 examples) |w|^2``: a Gaussian prior of that precision."""
    centring: float = 0.0
    """Weight of the squared sum of a pair's scores, which keeps scores around 0."""
    train_trunk: bool = True
    """Whether the network's weights learn too, or only what reads its states."""

    def __post_init__(self) -> None:
        if len(set(self.attributes)) != len(self.attributes) or not all(self.attributes):
            raise ConfigError(f"attributes={self.attributes}: expected names, each once")
        if self.ties not in get_args(Ties):
            raise ConfigError(f"ties={self.ties!r}: expected one of {', '.join(get_args(Ties))}")
        if self.weights is not None and not (self.weights and set(self.weights) <= set(self.attributes)):
            raise ConfigError(
                f"weights of {', '.join(self.weights) or 'nothing'}: expected some of the attributes "
                f"{', '.join(self.attributes) or '(there are none)'}"
            )
        check_names("template", (self.template,), ("request", "response"))
        if self.template and ("{response}" not in self.template or self.per_token):
            raise ConfigError(
                f"template={self.template!r} with token_level={self.token_level} and pooled={self.pooled}: expected "
                "{response} in it, and no output per token, whose place in a template nobody knows"
            )
        least = 1.0 if self.ties == "rao_kupper" else 0.0
        if self.tie_nu is not None and not least < self.tie_nu < math.inf:
            raise ConfigError(f"tie_nu={self.tie_nu}: expected a finite number above {least:g} with ties={self.ties}")
        for name in ("prior_gain", "prior_l2", "centring", "pooled"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a finite number, at least 0")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs for a whole text, in order."""
        return ("score", *self.attributes)

    @property
    def per_token(self) -> bool:
        """Whether every token of the text has an output."""
        return self.token_level or self.pooled > 0

    @property
    def outputs(self) -> int:
        """Width of the head: the score and the attributes, once more as tokens have them, and the one for passages."""
        return len(self.names) * (1 + (self.pooled > 0)) + self.token_level


@dataclass(frozen=True, kw_only=True)
class RewardTraining:
    """How it is trained. The defaults suit networks of 0.1M to 1M parameters and a few thousand pairs."""

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, warmup_steps=10, schedule="linear", weight_decay=0.01)
    )
    epochs: int = 3
    """Most passes over the examples."""
    steps: int = 0
    """Most optimiser steps; 0 is no limit beside ``epochs``."""
    batch: int = 32
    """Examples of one step."""
    held_out: float = 0.1
    """Share of the prompts whose examples only decide when to stop; 0: train to the end."""
    patience: int = 2
    """Passes without a better held-out loss before training stops. The best pass's weights are kept."""
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            (self.epochs >= 1, "epochs", self.epochs, "at least 1"),
            (self.steps >= 0, "steps", self.steps, "0 (no limit) or more"),
            (self.batch >= 1, "batch", self.batch, "at least 1"),
            (0 <= self.held_out < 1, "held_out", self.held_out, "in [0, 1)"),
            (self.patience >= 1, "patience", self.patience, "at least 1"),
        )
        for good, name, got, expected in rules:
            if not good:
                raise ConfigError(f"training.{name} is {got!r}; expected {expected}")
