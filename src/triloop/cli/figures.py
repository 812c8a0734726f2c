"""What both watchers show of a round, and how: the figures, the alarms that are new, the samples behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triloop.cli.screen import visible
from triloop.errors import TriloopError
from triloop.loops.config import RunConfig
from triloop.loops.stages import STAGES
from triloop.records import Verdict

__all__ = ["Alarms", "Sample", "clock", "describe", "figures", "seen_samples", "size"]

_LONGEST = 300


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A completion behind an alarm, cut for the screen."""

    prompt: str
    text: str
    reward: str


class Alarms:
    """Remembers which guards are in alarm: an alarm that goes on is told once."""

    def __init__(self) -> None:
        self._open: set[str] = set()

    def fresh(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """Alarms of this round that are new, or that end the run."""
        now = {v.guard for v in verdicts if v.value < 0}
        new = [v for v in verdicts if v.value < 0 and (v.guard not in self._open or v.action in ("stop", "roll_back"))]
        self._open = (self._open - {v.guard for v in verdicts}) | now
        return new


def describe(config: RunConfig, facts: Mapping[str, Any]) -> str:
    """A run in one line."""
    parts = [config.recipe, config.env.name, config.algorithm.name, f"{size(facts.get('parameters'))} parameters"]
    parts += [f"{facts.get('threads')} threads", str(facts.get("precision")), f"seed {config.seed}"]
    if facts.get("resumed_from") is not None:
        parts.append(f"resumed from round {facts['resumed_from']}")
    return " · ".join(dict.fromkeys(parts))


def figures(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """The figures of a round that are worth a glance, with what was not measured left out. Of a run of stages, the
    generation and the stage come first."""
    where = []
    if "stage" in metrics:
        where = [("generation", f"{metrics['generation']:.0f} {STAGES[int(metrics['stage'])]}")]
    shown = [
        ("judgements", "judgements", "{:,.0f}"),
        ("reward_model_held_accuracy", "right on new pairs", "{:.2f}"),
        ("gate_value", "gate", "{:.3f}"),
        ("reward", "reward", "{:+.3f}"),
        ("eval_value", "held-out", "{:.3f}"),
        ("kl", "KL", "{:.4f}"),
        ("entropy", "entropy", "{:.3f}"),
        ("length", "length", "{:.1f}"),
        ("lr_scale", "learning rate", "× {:g}"),
        ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ]
    # A learning rate is said only when a guard has asked for smaller steps, a speed where something was sampled.
    usual = {"lr_scale": 1.0, "tokens_per_second": 0.0}
    return where + [
        (label, form.format(metrics[name]))
        for name, label, form in shown
        if name in metrics and metrics[name] != usual.get(name)
    ]


def clock(seconds: float) -> str:
    """``45 s``, ``3:20``, ``1:05:00``."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def size(parameters: Any) -> str:
    """``1.07M``."""
    if not isinstance(parameters, int | float):
        return "?"
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return str(parameters)


def seen_samples(folder: Path, ids: Sequence[str]) -> list[Sample]:
    """The completions of these ids, read back from the run; none when that fails: the report shows them anyway."""
    from triloop.store.run import Run

    if not ids:
        return []
    try:
        with Run.open(folder, write=False) as run:
            rows = run.log.find(ids)
            asked = run.prompts(row.payload["prompt_id"] for row in rows.values() if row.kind == "completion")
            paid = run.log.find([f"{id}/episode" for id in ids])
    except (TriloopError, KeyError):
        return []
    return [
        Sample(
            prompt=_cut(asked[rows[id].payload["prompt_id"]].text),
            text=_cut(rows[id].payload["text"]),
            reward=str(paid[f"{id}/episode"].payload["reward"]) if f"{id}/episode" in paid else "–",
        )
        for id in ids
        if id in rows and rows[id].kind == "completion" and rows[id].payload["prompt_id"] in asked
    ]


def _cut(text: str) -> str:
    """Printable and short: what a model wrote must not steer the terminal."""
    plain = visible(text)
    return plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]} …"
