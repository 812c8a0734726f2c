"""What one round of a loop is, whatever it does: a function from the state to what it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from triloop.loops.state import LoopState, Workshop
from triloop.records import Episode
from triloop.store.codec import Row

__all__ = ["Play", "Played"]


@dataclass(frozen=True, kw_only=True)
class Played:
    """What one round made, before anybody looks at it."""

    metrics: Mapping[str, float]
    cursor: Mapping[str, int]
    """Next unseen training prompts."""
    episodes: Sequence[Episode] = ()
    """Prompt-major: the completions of a prompt stand together."""
    purpose: str = "train"
    """What the episodes are stored as."""
    rows: Sequence[Row] = ()
    """What the store is to keep besides."""
    tokens: int = 0
    """Tokens that the policy generated for learning."""
    sample_seconds: float = 0.0
    judge_seconds: float = 0.0
    learn_seconds: float = 0.0
    measure_seconds: float = 0.0
    """Spent on ``metrics``; the loop counts it as watching."""
    kept: bool = False
    """Whether a checkpoint must follow, whatever the round's number."""
    held_out: bool | None = None
    """Whether a held-out check must follow; None goes by the round's number."""
    watched: bool = True
    """Whether the guards have anything to see: the policy sampled for learning."""


Play = Callable[[Workshop, LoopState], Played]
"""One round of whatever kind: samples, judgements, updates. It changes the parts of the workshop, and writes nothing."""
