"""What a judge goes by, learned: sets of principles, and how often each agreed with people; a bandit says which to try."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triloop.errors import ConfigError, StoreError

__all__ = ["Instructions"]

_FILE = "instructions.json"


class Instructions:
    """Counts of agreement by set, discounted. A part of the workshop: a checkpoint holds it.

    Each set's agreement has a Beta posterior, uniform at first. ``draw`` takes the sets whose sampled agreement is highest
    (Thompson 1933), so that those in doubt are tried and those known to be bad are not; ``best`` has the highest mean of
    those that were tried, and before that is the first set.
    """

    def __init__(self, sets: Sequence[tuple[str, ...]], *, memory: float = 1.0) -> None:
        self.sets, self._memory = tuple(sets), memory
        self._agreed, self._asked = [0.0] * len(self.sets), [0.0] * len(self.sets)

    @classmethod
    def of(cls, names: Sequence[str], sets: Sequence[str] = (), *, memory: float = 1.0) -> Instructions:
        """``sets`` as settings have them, names joined by +; none is all together, and all but each: a judge that
        goes by one principle alone agrees well until the policy gives up the others.

        ConfigError for a name that no principle has, and for the same set twice.
        """
        if sets:
            found = [tuple(name.strip() for name in one.split("+")) for one in sets]
        else:
            but_one = [tuple(n for n in names if n != left) for left in names] if len(names) > 1 else []
            found = [tuple(names), *but_one]
        strange = sorted({n for one in found for n in one} - set(names))
        if strange or len({frozenset(one) for one in found}) < len(found):
            wrong = f"no principle is called {', '.join(strange)}" if strange else "a set stands there twice"
            raise ConfigError(
                f"cycle.instruct.sets: {wrong}; expected different sets of {', '.join(names)}, joined by +"
            )
        return cls(found, memory=memory)

    @property
    def best(self) -> tuple[str, ...]:
        """The set that a judge goes by."""
        return self.sets[self._leader]

    @property
    def agreement(self) -> float:
        """Posterior mean of the best set's agreement with people: 1/2 before anything was tried."""
        return self.mean(self._leader)

    def mean(self, k: int) -> float:
        """Of set ``k``: (agreed + 1) / (asked + 2)."""
        return (self._agreed[k] + 1.0) / (self._asked[k] + 2.0)

    def draw(self, n: int, g: np.random.Generator) -> list[int]:
        """Which sets to try, at most ``n`` different ones."""
        lost = [a - w for a, w in zip(self._asked, self._agreed, strict=True)]
        hopes = g.beta(1.0 + np.array(self._agreed), 1.0 + np.array(lost))
        return [int(k) for k in np.argsort(-hopes, kind="stable")[:n]]

    def tell(self, results: Sequence[tuple[int, float, float]]) -> None:
        """A round's (set, agreements, questions): what was known before fades by ``memory``, then these count."""
        self._agreed = [w * self._memory for w in self._agreed]
        self._asked = [a * self._memory for a in self._asked]
        for k, agreed, asked in results:
            self._agreed[k] += agreed
            self._asked[k] += asked

    def save_state(self, folder: Path) -> None:
        """The counts; the sets come with the configuration."""
        facts = {"sets": ["+".join(one) for one in self.sets], "agreed": self._agreed, "asked": self._asked}
        (folder / _FILE).write_text(json.dumps(facts))

    def load_state(self, folder: Path) -> None:
        """Go on from what ``save_state`` wrote."""
        try:
            facts = json.loads((folder / _FILE).read_text())
            agreed, asked = list(map(float, facts["agreed"])), list(map(float, facts["asked"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{folder / _FILE} cannot be read ({error}); delete this checkpoint's folder and resume again"
            ) from error
        if len(agreed) != len(self.sets) or len(asked) != len(self.sets):
            raise StoreError(
                f"{folder / _FILE} counts {len(agreed)} sets of principles where the run has {len(self.sets)}; resume it "
                "with the principles that it was started with"
            )
        self._agreed, self._asked = agreed, asked

    @property
    def _leader(self) -> int:
        tried = [k for k, asked in enumerate(self._asked) if asked > 0]
        return max(tried, key=lambda k: (self.mean(k), -k), default=0)
