"""The policy that later generations are measured against: that of the last generation that passed its gate."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from triloop.errors import StoreError
from triloop.policies.protocol import Policy

__all__ = ["Champion"]

_FILE = "champion.json"


class Champion:
    """Frozen weights, and what they scored at the gate. A part of the workshop: a checkpoint holds it."""

    def __init__(self, policy: Policy, load: Callable[[Path], Policy]) -> None:
        """``load`` reads a directory that ``save_pretrained`` wrote."""
        self.policy, self._load = policy, load
        self.generation = 0
        self.scores: Mapping[str, float] = {}
        """Gold value by prompt, on the gate's prompts; empty before the first gate."""
        self.counters: Mapping[str, Mapping[str, float]] = {}
        """Counter-metrics by name and prompt, of the same samples."""

    def crown(
        self,
        policy: Policy,
        generation: int,
        scores: Mapping[str, float],
        counters: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Take this policy, as it is now, for the one to beat."""
        self.policy, self.generation, self.scores = policy.frozen(), generation, dict(scores)
        self.counters = {name: dict(values) for name, values in (counters or {}).items()}

    def save_state(self, folder: Path) -> None:
        """Weights and scores."""
        self.policy.save_pretrained(folder / "policy")
        counters = {name: dict(values) for name, values in self.counters.items()}
        facts = {"generation": self.generation, "scores": dict(self.scores), "counters": counters}
        (folder / _FILE).write_text(json.dumps(facts))

    def load_state(self, folder: Path) -> None:
        """Go on from what ``save_state`` wrote."""
        try:
            facts = json.loads((folder / _FILE).read_text())
            self.generation, self.scores = facts["generation"], facts["scores"]
            self.counters = facts["counters"]
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"{folder / _FILE} cannot be read ({error}); delete this checkpoint's folder and resume again"
            ) from error
        self.policy = self._load(folder / "policy").frozen()
