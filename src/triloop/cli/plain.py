"""A run's progress as plain lines: about twenty rounds of it, every held-out check and every alarm."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from triloop.cli.figures import Alarms, clock, describe, figures, seen_samples
from triloop.loops.config import RunConfig
from triloop.records import Verdict

__all__ = ["Plain"]

_LINES = 20


class Plain:
    """Prints through ``say``."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._began = time.monotonic()
        self._first = 0
        self._folder = Path()
        self._alarms = Alarms()

    def started(self, config: RunConfig, folder: Path, facts: Mapping[str, Any]) -> None:
        self._folder = folder
        self._first = int(facts.get("resumed_from") or 0)
        self._began = time.monotonic()
        self._say(describe(config, facts))
        self._say(f"run     {folder}")

    def stage(self, text: str) -> None:
        self._say(f"        {text}")

    def round(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict]) -> None:
        round, rounds = int(metrics["round"]), int(metrics.get("rounds", 0))
        if round == self._first + 1:  # time left is counted without loading and the first evaluation
            self._began = time.monotonic() - float(metrics.get("seconds", 0.0))
        fresh = self._alarms.fresh(verdicts)
        step = max(1, rounds // _LINES) if rounds else 10
        if round % step == 0 or round in (rounds, self._first + 1) or fresh:
            told = "  ".join(f"{name} {value}" for name, value in figures(metrics))
            self._say(f"round {round:>4}/{rounds}  {told}  {self._left(round, rounds)}".rstrip())
        for verdict in fresh:
            word = "note" if verdict.action in ("none", "note") else "ALARM"
            self._say(f"{word:<7} {verdict.guard} ({verdict.action.replace('_', ' ')}): {verdict.reason}")
            for sample in seen_samples(self._folder, verdict.samples[:2]) if word == "ALARM" else ():
                self._say(f"        | {sample.prompt!r} -> {sample.text!r} (reward {sample.reward})")

    def evaluated(self, when: str, result: Mapping[str, Any]) -> None:
        low, high = result["ci95"]
        self._say(
            f"{when:<7} {result['metric']} {result['value']:.3f} [{low:.3f}, {high:.3f}] on {result['n']} held-out problems"
        )

    def finished(self, summary: Mapping[str, Any]) -> None:
        pass

    def _left(self, round: int, rounds: int) -> str:
        done = round - self._first
        if not rounds or done < 2 or round >= rounds:
            return ""
        return f"{clock((time.monotonic() - self._began) / done * (rounds - round))} left"
