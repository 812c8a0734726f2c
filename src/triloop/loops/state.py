"""The state of a loop: what flows from one round to the next besides the policy. It is what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from triloop.errors import StoreError

if TYPE_CHECKING:
    from triloop.envs.base import Env
    from triloop.guards.base import Guard
    from triloop.learn.algorithms import Algorithm
    from triloop.loops.config import RunConfig
    from triloop.loops.played import Play
    from triloop.loops.progress import Progress
    from triloop.policies.protocol import Policy
    from triloop.sources.judge import Judge
    from triloop.store.run import Run

__all__ = ["LoopState", "Part", "Workshop", "load_state", "save_state"]

_FILE = "loop.json"


@dataclass(frozen=True, kw_only=True)
class LoopState:
    """Everything that a round hands to the next. JSON-able; floats survive the round trip exactly."""

    round: int = 0
    """Rounds completed."""
    cursor: Mapping[str, int] = field(default_factory=dict)
    """Next unseen training prompt, by level (``*`` is the task's mixture)."""
    tokens: int = 0
    """Tokens generated for training."""
    history: Sequence[Mapping[str, float]] = ()
    """Metrics of each round, oldest first."""
    pass_rates: Mapping[str, float] = field(default_factory=dict)
    """Running pass rate by level, for the curriculum."""
    trends: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Fast and slow running mean of the reward by level, for the curriculum."""
    anchor: int = 0
    """Round of the last checkpoint that an uninterrupted run has too. Only to such a one does a guard go back: those that
    an interruption leaves in between change nothing."""
    rollbacks: int = 0
    """How often a guard has put the weights back."""
    alarms: Sequence[Mapping[str, Any]] = ()
    """Alarms of the last ``guards.window`` rounds, as plain values: two witnesses need not speak in the same round."""
    lr_scale: float = 1.0
    """What the schedule's learning rate is multiplied by: below 1 while a guard asks for a tighter leash."""
    stopped: str = ""
    """Why a guard stopped the run; empty while it runs. A stopped run that is resumed is still stopped."""

    def after(self, metrics: Mapping[str, float], **changes: Any) -> LoopState:
        """The state after one more round."""
        return dataclasses.replace(self, round=self.round + 1, history=(*self.history, metrics), **changes)


class Part(Protocol):
    """What changes from round to round besides the policy, such as a reward model. A checkpoint holds it whole."""

    def save_state(self, folder: Path) -> None:
        """Write everything that a bit-exact continuation needs into an empty folder."""
        ...

    def load_state(self, folder: Path) -> None:
        """Go on from what ``save_state`` wrote."""
        ...


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """The parts of a run, built from its configuration. The loop uses them and owns none."""

    config: RunConfig
    policy: Policy
    reference: Policy
    """The policy as it was at the start, frozen: where KL and perplexity are measured from."""
    env: Env
    judge: Judge
    algorithm: Algorithm
    guards: Sequence[Guard]
    run: Run
    progress: Progress
    interrupted: Callable[[], bool]
    play: Play
    """What each round of this run is."""
    parts: Mapping[str, Part] = field(default_factory=dict)
    """By name; a checkpoint has a folder for each."""

    def load_state(self, folder: Path) -> None:
        """Put the policy and every other part back to what a checkpoint holds."""
        self.policy.load_state(folder)
        for name, part in self.parts.items():
            part.load_state(folder / name)


def save_state(state: LoopState, folder: Path) -> None:
    """Write ``loop.json`` into a checkpoint folder."""
    (folder / _FILE).write_text(json.dumps(dataclasses.asdict(state)))


def load_state(folder: Path) -> LoopState:
    """Read what ``save_state`` wrote."""
    try:
        values = json.loads((folder / _FILE).read_text())
        values |= {name: tuple(values[name]) for name in ("history", "alarms")}
        values["trends"] = {level: tuple(means) for level, means in values.get("trends", {}).items()}
        return LoopState(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{folder / _FILE} cannot be read ({error}); delete this checkpoint's folder and resume again"
        ) from error
