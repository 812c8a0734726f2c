"""A run's progress on a terminal: curve, figures, guard lights, time left. Drawn at most four times a second."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from triloop.cli.figures import Alarms, clock, describe, figures, seen_samples
from triloop.cli.screen import visible
from triloop.loops.config import RunConfig
from triloop.records import Verdict

__all__ = ["Live", "braille", "sparkline"]

_GAP = 0.25
"""Seconds between two drawings."""
_LIGHTS = {1: ("●", "green"), 0: ("○", "yellow"), -1: ("▼", "bold red")}
_NOTED = ("▽", "yellow")
"""Form and colour say the same, for those who do not see the one or the other."""
_WIDTH, _HEIGHT = 56, 7


class Live:
    """Holds what was told so far and draws it. Text of models goes to the screen as ``Text``, never as markup."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._live = RichLive(console=self._console, auto_refresh=False, transient=False, redirect_stdout=False)
        self._live.start()
        self._folder, self._head, self._stage = Path(), "", "loading"
        self._rewards: list[float] = []
        self._held: list[float] = []
        self._held_text = ""
        self._metrics: Mapping[str, float] = {}
        self._lights: dict[str, tuple[str, str]] = {}
        self._alarms = Alarms()
        self._began, self._first, self._drawn = time.monotonic(), 0, 0.0
        self._draw()

    def started(self, config: RunConfig, folder: Path, facts: Mapping[str, Any]) -> None:
        self._folder, self._head = folder, describe(config, facts)
        self._first = int(facts.get("resumed_from") or 0)
        self._draw()

    def stage(self, text: str) -> None:
        self._stage = text
        self._draw()

    def round(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict]) -> None:
        if self._stage:  # the first round: time left is counted from here, without loading and evaluation
            self._began = time.monotonic() - float(metrics.get("seconds", 0.0))
        self._stage = ""
        self._metrics = {**self._metrics, **metrics}
        if "reward" in metrics:
            self._rewards.append(float(metrics["reward"]))
        if "eval_value" in metrics:
            self._hold(metrics["eval_value"], metrics["eval_low"], metrics["eval_high"])
        self._lights.update((v.guard, _light(v)) for v in verdicts)
        for verdict in self._alarms.fresh(verdicts):
            if verdict.action in ("none", "note"):
                continue  # its light says it
            self._live.console.print(_alarm(self._folder, verdict))
        if time.monotonic() - self._drawn >= _GAP:
            self._draw()

    def evaluated(self, when: str, result: Mapping[str, Any]) -> None:
        self._hold(result["value"], *result["ci95"])
        self._draw()

    def _hold(self, value: float, low: float, high: float) -> None:
        self._held.append(value)
        self._held_text = f"{100 * value:.1f} %  [{100 * low:.0f}, {100 * high:.0f}]"

    def finished(self, summary: Mapping[str, Any]) -> None:
        self._stage = "done"
        self._draw()

    def close(self) -> None:
        """Draw once more and give the terminal back."""
        self._draw()
        self._live.stop()

    def _draw(self) -> None:
        self._live.update(self._screen(), refresh=True)
        self._drawn = time.monotonic()

    def _screen(self) -> RenderableType:
        parts: list[RenderableType] = [self._bar()]
        if self._metrics:
            parts += [self._body(), self._guards()]
        title = Text(self._head or "triloop", style="bold")
        return Panel(
            Group(*parts), title=title, title_align="left", box=box.ROUNDED, border_style="dim", padding=(0, 1)
        )

    def _bar(self) -> RenderableType:
        round, rounds = int(self._metrics.get("round", self._first)), int(self._metrics.get("rounds", 0))
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right")
        left = Text(f"round {round}/{rounds}" if rounds else "", style="bold")
        bar: RenderableType = ProgressBar(total=rounds, completed=round, width=None) if rounds else Text("")
        row.add_row(left, bar, Text(self._stage or self._left(round, rounds), style="cyan"))
        return row

    def _left(self, round: int, rounds: int) -> str:
        done, spent = round - self._first, time.monotonic() - self._began
        if done < 1 or round >= rounds:
            return clock(spent)
        return f"{clock(spent / done * (rounds - round))} left"

    def _body(self) -> RenderableType:
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column(no_wrap=True)
        if self._held_text:
            facts.add_row("held-out", Text(self._held_text, style="bold cyan"))
            facts.add_row("", Text(sparkline(self._held, 22), style="cyan"))
        for name, value in figures(self._metrics):
            if name != "held-out":
                facts.add_row(name, value)
        row = Table.grid(padding=(0, 3))
        row.add_row(self._curve(), facts)
        return row

    def _curve(self) -> RenderableType:
        width = max(20, min(_WIDTH, self._console.width - 44))
        low, high = min(self._rewards, default=0.0), max(self._rewards, default=1.0)
        lines = braille(self._rewards, width, _HEIGHT, int(self._metrics.get("rounds", 0)) - self._first)
        out = Text()
        for i, line in enumerate(lines):
            label = f"{high:+.2f}" if i == 0 else f"{low:+.2f}" if i == len(lines) - 1 else ""
            out.append(f"{label:>6} ", style="dim")
            out.append(line + "\n", style="green")
        out.append(f"{'':>6} reward, round {self._first + 1} to {self._first + len(self._rewards)}", style="dim")
        return out

    def _guards(self) -> RenderableType:
        line = Text("guards  ", style="dim")
        for name in sorted(self._lights):
            sign, colour = self._lights[name]
            line.append(f"{sign}\u00a0{name}  ", style=colour)  # a sign and its name stay on one line
        return line


def braille(values: Sequence[float], width: int, height: int, total: int = 0) -> list[str]:
    """A curve in ``height`` lines of ``width`` signs, each of which has 2 by 4 dots; neighbours are joined.

    ``total`` values fill the width: what is still to come is left empty.
    """
    across, down = 2 * width, 4 * height
    cells = [[0] * width for _ in range(height)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    before: int | None = None
    for x, value in enumerate(_resampled(values, across, max(total, len(values)))):
        y = down - 1 - round((value - low) / (high - low) * (down - 1)) if high > low else down // 2
        last = y if before is None else before
        for dot in range(min(y, last), max(y, last) + 1):
            cells[dot // 4][x // 2] |= ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))[dot % 4][x % 2]
        before = y
    return ["".join(chr(0x2800 + cell) for cell in row) for row in cells]


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as bars of eight heights."""
    last = list(values)[-width:]
    low, high = min(last, default=0.0), max(last, default=1.0)
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((v - low) * scale)] for v in last)


def _resampled(values: Sequence[float], n: int, total: int) -> list[float]:
    """One value per dot column of ``n`` for ``total`` values: means of stretches, or repeats; short where values are."""
    found: list[float] = []
    for x in range(n):
        a = x * total // n
        b = max(a + 1, (x + 1) * total // n)
        if a >= len(values):
            break
        part = values[a:b]
        found.append(sum(part) / len(part))
    return found


def _light(verdict: Verdict) -> tuple[str, str]:
    return _NOTED if verdict.value < 0 and verdict.action in ("none", "note") else _LIGHTS[verdict.value]


def _alarm(folder: Path, verdict: Verdict) -> RenderableType:
    parts: list[RenderableType] = [Text(visible(verdict.reason))]
    parts += [
        Text.assemble("\n", (sample.prompt, "dim"), "\n", sample.text, ("  reward ", "dim"), sample.reward)
        for sample in seen_samples(folder, verdict.samples[:2])
    ]
    hard = verdict.action in ("stop", "roll_back")
    title = Text(f"▼ {verdict.guard}, round {verdict.round}: {verdict.action.replace('_', ' ')}")
    return Panel(
        Group(*parts), title=title, title_align="left", border_style="red" if hard else "yellow", padding=(0, 1)
    )
