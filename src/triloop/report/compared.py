"""Methods side by side as one HTML file: each with its interval, each seed, and what it cost. No script, no request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from triloop.report.html import POLICY
from triloop.report.markup import clock, count, esc, number, section, table
from triloop.report.svg import ticks

__all__ = ["forest", "page"]

_WIDTH, _ROW, _NAMES, _EDGE, _HEAD = 760.0, 34.0, 190.0, 16.0, 26.0

Row = Mapping[str, Any]
"""Of ``triloop compare --json``."""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    low: float
    high: float

    def x(self, value: float) -> float:
        return _NAMES + (value - self.low) / (self.high - self.low) * (_WIDTH - _NAMES - _EDGE)


def forest(rows: Sequence[Row], pick: Callable[[Row], Row | None], *, zero: bool = False) -> str:
    """One line a method: a dot at ``value``, a bar over ``ci95``, small rings at ``by_seed`` where there is one.

    ``pick`` says what of a row is drawn; rows of which it says None are left out. Empty when nothing is left.
    """
    drawn = [(row, shown) for row in rows if (shown := pick(row)) is not None]
    if not drawn:
        return ""
    axis = _axis([s for _, s in drawn], zero)
    height = _HEAD + _ROW * len(drawn)
    parts = [
        f'<line class="{"zero" if t == 0 else "rule"}" x1="{axis.x(t):.1f}" x2="{axis.x(t):.1f}" y1="{_HEAD - 6:g}" '
        f'y2="{height:g}"/><text class="tick" x="{axis.x(t):.1f}" y="{_HEAD - 12:g}" text-anchor="middle">'
        f"{f'{t:g}'.replace('-', '−')}</text>"
        for t in ticks(axis.low, axis.high, 6)
    ]
    parts += [_line(row, shown, axis, _HEAD + _ROW * (i + 0.5)) for i, (row, shown) in enumerate(drawn)]
    told = "; ".join(f"{row['method']} {_interval(shown)}" for row, shown in drawn)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{esc(told)}">'
        f"{''.join(parts)}</svg>"
    )


def _axis(shown: Sequence[Row], zero: bool) -> _Axis:
    values = [v for s in shown for v in (*s["ci95"], *s.get("by_seed", {}).values())] + ([0.0] if zero else [])
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.1
    return _Axis(low=low - room, high=high + room)


def _line(row: Row, shown: Row, axis: _Axis, y: float) -> str:
    tone = 2 if row.get("baseline") else 1
    low, high = (axis.x(v) for v in shown["ci95"])
    rings = "".join(
        f'<circle class="dot t{tone}" cx="{axis.x(v):.1f}" cy="{y + 8:.1f}" r="2"><title>seed {esc(seed)}: {v:.3f}</title>'
        "</circle>"
        for seed, v in shown.get("by_seed", {}).items()
    )
    return (
        f'<text class="tick name" x="0" y="{y + 4:.1f}">{esc(_named(row))}</text>'
        f'<path class="bar t{tone}" d="M{low:.1f} {y:.1f}H{high:.1f}"/>'
        f'<circle class="dot t{tone}" cx="{axis.x(shown["value"]):.1f}" cy="{y:.1f}" r="4">'
        f"<title>{esc(row['method'])} {esc(_interval(shown))}</title></circle>{rings}"
    )


def _interval(shown: Row) -> str:
    return f"{shown['value']:.3f} ({shown['ci95'][0]:.3f} to {shown['ci95'][1]:.3f})"


def _named(row: Row) -> str:
    return f"{row['method']} (baseline)" if row.get("baseline") else str(row["method"])


def page(title: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The whole page; ``rows`` as ``triloop compare --json`` has them, the first method first."""
    style = resources.files("triloop.report").joinpath("style.css").read_text(encoding="utf-8")
    first = rows[0]["method"]
    scores = forest(rows, lambda r: r)
    lead = "Dot: mean over held-out problems and seeds; bar: 95 % interval; rings: each seed."

    gains = forest(rows, lambda r: r["difference"], zero=True)
    head = ["method", rows[0]["metric"], "95 %", f"minus {first}", "95 %", "labels", "tokens", "time"]
    body = section("scores", rows[0]["metric"].capitalize(), f'<figure class="card">{scores}</figure>', lead)
    if gains:
        said = "Paired on the same problems at the same seeds."
        body += section("gains", f"Minus {first}", f'<figure class="card">{gains}</figure>', said)
    costs = table(head, map(_cells, rows), kind="data", caption="what each method reached, and what it cost, all seeds")
    body += section("costs", "Cost", costs)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{esc(title)}</title><style>{style}</style></head><body>'
        f"<main><header><h1>{esc(title)}</h1></header>{body}"
        f"{''.join(f'<p>{esc(note)}</p>' for note in notes)}</main>"
        '<footer class="end">Made by Triloop; this file loads nothing.</footer></body></html>\n'
    )


def _cells(row: Row) -> list[str]:
    d = row["difference"]
    return [
        esc(_named(row)),
        number(row["value"]),
        f"{row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}",
        f"{d['value']:+.3f}".replace("-", "−") if d else "",
        f"{d['ci95'][0]:+.3f} to {d['ci95'][1]:+.3f}".replace("-", "−") if d else "",
        count(row["labels"]),
        count(row["tokens_generated"]),
        clock(row["seconds"]),
    ]
