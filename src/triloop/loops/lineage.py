"""What came of what: each policy, reward model, heap of judgements and gate of a run is a row with its parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from triloop.loops.stages import Step
from triloop.loops.state import LoopState, Workshop
from triloop.store.codec import Row

__all__ = ["Thing", "artifact", "latest"]

Thing = Literal["policy", "reward", "feedback", "judge", "gate"]


def artifact(round: int, step: Step, thing: Thing, facts: Mapping[str, Any], *, parents: Sequence[str]) -> Row:
    """The row of something that a stage made."""
    payload = {"thing": thing, "generation": step.generation, "stage": step.stage, "facts": dict(facts)}
    id = f"artifact/{round}/{thing}"
    return Row(id=id, round=round, kind="artifact", payload=payload, parents=tuple(parents))


def latest(shop: Workshop, state: LoopState, thing: Thing) -> str:
    """Identifier of the newest one of its kind up to ``state``; empty before there is one.

    Rounds that are played again have left their rows of before: those do not count yet.
    """
    rows = shop.run.rows(kind="artifact")
    found = [row for row in rows if row.payload["thing"] == thing and row.round <= state.round]
    return max(found, key=lambda row: row.round).id if found else ""
