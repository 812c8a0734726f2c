"""What came of what in a run of stages, drawn: judgements, reward models, policies and gates, an arrow from each parent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triloop.report.markup import esc

__all__ = ["draw_lineage"]

_LANES = {"policy": 0, "feedback": 1, "reward": 2, "judge": 3, "gate": 4}
_NAMES = {"policy": "policy", "feedback": "judgements", "reward": "reward model", "judge": "judge", "gate": "gate"}
_WIDE, _HIGH, _STEP, _LANE, _LEFT = 150, 40, 172, 66, 96
_MOST = 60
"""Things that are drawn; of a longer run the last ones."""


def draw_lineage(artifacts: Sequence[Mapping[str, Any]]) -> str:
    """One box a thing, from left to right as they were made, on a lane for its kind. Empty without any.

    Each artifact has ``id``, ``parents``, ``thing``, ``generation``, ``stage``, ``round`` and ``facts``.
    """
    if not artifacts:
        return ""
    shown = list(artifacts)[-_MOST:]
    lanes = [t for t in _LANES if any(a["thing"] == t for a in shown)]
    place = {a["id"]: (_LEFT + i * _STEP, 14 + lanes.index(a["thing"]) * _LANE) for i, a in enumerate(shown)}
    width, height = _LEFT + len(shown) * _STEP, 14 + len(lanes) * _LANE
    arrows = "".join(_arrow(place[p], place[a["id"]]) for a in shown for p in a["parents"] if p in place)
    boxes = "".join(_box(a, *place[a["id"]]) for a in shown)
    names = "".join(
        f'<text x="0" y="{14 + k * _LANE + _HIGH / 2 + 4:g}" class="lane">{esc(_NAMES[t])}</text>'
        for k, t in enumerate(lanes)
    )
    left = len(artifacts) - len(shown)
    note = f'<p class="quiet">The {left} before these are in run.db.</p>' if left else ""
    return (
        f'<div class="tree" tabindex="0"><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{esc(_spoken(artifacts))}">{names}{arrows}{boxes}</svg></div>{note}'
    )


def _box(a: Mapping[str, Any], x: int, y: int) -> str:
    refused = a["thing"] == "gate" and not a["facts"].get("accepted", True)
    first, second = _words(a)
    kind = f"box {a['thing']}{' refused' if refused else ''}"
    told = ", ".join(f"{k} {_short(v)}" for k, v in a["facts"].items())
    return (
        f'<g class="{kind}"><title>{esc(a["id"])}: {esc(told)}</title>'
        f'<rect x="{x}" y="{y}" width="{_WIDE}" height="{_HIGH}" rx="6"/>'
        f'<text x="{x + _WIDE / 2:g}" y="{y + 16}">{esc(first)}</text>'
        f'<text x="{x + _WIDE / 2:g}" y="{y + 31}" class="small">{esc(second)}</text></g>'
    )


def _words(a: Mapping[str, Any]) -> tuple[str, str]:
    """What stands in a box: two short lines."""
    facts, where = a["facts"], f"generation {a['generation']}"
    if a["thing"] == "feedback":
        return f"{facts['judgements']:,} by {facts['source']}", str(facts["kinds"])[:24]
    if a["thing"] == "reward":
        right = facts.get("reward_model_held_accuracy")
        told = f"{facts['pairs']:,} pairs" if facts["pairs"] else f"{facts.get('ratings', 0):,} ratings"
        return told, "" if right is None else f"held-out accuracy {right:.2f}"
    if a["thing"] == "judge":
        return str(facts["principles"])[:24], f"agreement {facts['agreement']:.2f}"
    if a["thing"] == "gate":
        return ("accepted" if facts["accepted"] else "refused"), f"gold {facts['value']:.3f}"
    return f"{a['stage']}, {where}", f"{facts['version']:,} steps" if "version" in facts else "put back"


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    x0, y0, x1, y1 = start[0] + _WIDE, start[1] + _HIGH / 2, end[0], end[1] + _HIGH / 2
    bend = (x1 - x0) / 2
    return f'<path d="M{x0} {y0:g}C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1} {y1:g}"/>'


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _spoken(artifacts: Sequence[Mapping[str, Any]]) -> str:
    counts = {t: sum(a["thing"] == t for a in artifacts) for t in _LANES}
    names = {
        "policy": "policies",
        "feedback": "heaps of judgements",
        "reward": "reward models",
        "judge": "choices of principles",
        "gate": "gates",
    }
    told = ", ".join(f"{n} {names[t]}" for t, n in counts.items() if n)
    return f"Lineage: {told}; each with what it was made from"
