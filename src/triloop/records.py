"""The words that every room speaks: frozen records, no behaviour beyond what follows from their fields.

A round turns prompts into episodes: ``Prompt`` -> ``Completion`` -> ``Feedback`` -> (learner) -> ``Verdict``.
Identifiers are strings that name their origin, so that lineage can be read off them:
a completion of round 3, prompt ``p``, sample 5 is ``3/p/5``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Completion", "Episode", "Feedback", "Finish", "Prompt", "Turn", "Verdict", "completion_id"]

Finish = Literal["stop", "length", "interrupted"]
_WITHOUT_NUMBER = frozenset({"ranking", "steps", "spans", "text", "edit"})
Action = Literal["none", "note", "warn", "screen", "tighten", "roll_back", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of a dialogue. ``role`` is ``system``, ``user``, ``assistant`` or ``tool``."""

    role: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem as the policy sees it, and what its verifier needs to know."""

    id: str
    """Stable across runs: derived from the problem, not from when it was drawn."""
    text: str
    """What the policy continues. Ignored when ``turns`` is given."""
    env: str = ""
    """Name of the environment that made it."""
    answer: str | None = None
    """Reference answer, when there is one. Never shown to the policy."""
    level: int = 0
    """Difficulty, in the environment's own units."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able facts for the verifier."""
    turns: tuple[Turn, ...] = ()
    """Chat form of the prompt; rendered through the tokenizer's chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a policy generated for one prompt, with the probabilities it was drawn under.

    ``tokens``, ``logps`` and ``mask`` have equal length. ``mask`` is true where the policy chose the token and false
    where an environment inserted it (an observation of a multi-turn episode); ``logps`` is 0.0 there.
    Log-probabilities are in nats, under the sampling distribution's untruncated softmax at the sampling temperature.
    """

    id: str
    prompt_id: str
    round: int
    index: int
    """Which sample of its group, from 0."""
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    mask: tuple[bool, ...]
    text: str
    """Decoded policy tokens, without special tokens and without the stop sequence."""
    finish: Finish
    policy_version: int
    """Number of optimiser steps taken before this was sampled."""
    parents: tuple[str, ...] = ()
    """Identifiers of the completions or feedback that this one was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One judgement, of one completion or of several. ``value`` lies in [-1, 1]; +1, 0, -1 is the ternary word.

    0 means *abstained or cannot tell* and is a value like any other. A judge that failed gives ``value=None`` and says
    why in ``failure``: a failure is never a score.
    """

    value: float | None
    """Of a ``pair``: +1 the first is better, -1 the second, 0 a tie; its size is the strength. None also where a kind has
    no number: ``ranking``, ``steps``, ``spans``, ``text``, ``edit``."""
    reason: str = ""
    source: str = ""
    """Who judged: ``env:countdown``, ``verifier:my.py:check``, ``person:anna``."""
    kind: str = "ternary"
    """``scalar``, ``ternary``, ``pair``, ``ranking``, ``rubric``, ``steps``, ``spans``, ``text``, ``edit`` or
    ``abstention``."""
    confidence: float = 1.0
    cost: float = 0.0
    """In the unit of the source's price; 0 for a program."""
    breakdown: Mapping[str, float] = field(default_factory=dict)
    """Named parts of the judgement, such as one entry per rule."""
    failure: str | None = None
    about: tuple[str, ...] = ()
    """Identifiers of the completions that it judges, in the order of ``content``; () is the one that it is stored with."""
    content: Mapping[str, Any] = field(default_factory=dict)
    """What it says beyond ``value``, JSON-able; ``triloop.feedback.kinds`` reads and writes it."""
    time: float | None = None
    """Seconds since the epoch, when it was given; None where the clock must not matter."""
    consent: str = ""
    """What its author allowed it to be used for; empty: not asked, as with a program."""
    parents: tuple[str, ...] = ()
    """Identifiers of the feedback or completions that this one was made from."""

    @property
    def failed(self) -> bool:
        """Whether there is no judgement: a failure is said, or a kind that has a number came without one."""
        return self.failure is not None or (self.value is None and self.kind not in _WITHOUT_NUMBER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A prompt, one completion of it, and every judgement of that completion; ``reward`` is what the learner sees."""

    prompt: Prompt
    completion: Completion
    feedback: tuple[Feedback, ...]
    reward: float | None
    """None when no judgement succeeded: the episode then carries no gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a guard says of one round: +1 healthy, 0 cannot tell (too early, too few samples), -1 alarm."""

    guard: str
    round: int
    value: int
    reason: str
    action: Action = "none"
    """What the guard asks the loop to do about it."""
    measured: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[str, ...] = ()
    """Identifiers of the completions that show it."""


def completion_id(round: int, prompt_id: str, index: int) -> str:
    """Identifier of a completion; equal inputs give equal identifiers, so a replayed round names the same rows."""
    return f"{round}/{prompt_id}/{index}"
