"""What came of what: each policy, reward model, heap of judgements and gate of a run is a row with its parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from triloop.loops.stages import Step
from triloop.loops.state import Workshop
from triloop.store.codec import Row

__all__ = ["Thing", "artifact", "latest"]

Thing = Literal["policy", "reward", "feedback", "gate"]


def artifact(round: int, step: Step, thing: Thing, facts: Mapping[str, Any], *, parents: Sequence[str]) -> Row:
    """The row of something that a stage made."""
    payload = {"thing": thing, "generation": step.generation, "stage": step.stage, "facts": dict(facts)}
    id = f"artifact/{round}/{thing}"
    return Row(id=id, round=round, kind="artifact", payload=payload, parents=tuple(parents))


def latest(shop: Workshop, thing: Thing) -> str:
    """Identifier of the newest one of its kind; empty before there is one."""
    found = [row for row in shop.run.rows(kind="artifact") if row.payload["thing"] == thing]
    return max(found, key=lambda row: row.round).id if found else ""
