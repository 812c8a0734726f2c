"""Line charts as SVG, by hand: no script, no library, sharp in print. Tones are CSS classes, so dark mode reaches them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from triloop.report.markup import esc, number

__all__ = ["Chart", "Line", "Mark", "draw", "running_mean", "ticks"]

Point = tuple[float, float]

_MOST = 600
"""Points of one line; more are thinned to each bucket's lowest and highest, so that no spike is lost."""
_HOVER = 160
"""Lines of at most so many points name their values when pointed at."""
_TOP, _BOTTOM, _LEFT, _RIGHT = 20.0, 24.0, 4.0, 8.0


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve."""

    label: str
    points: Sequence[Point]
    tone: int = 1
    """1 to 4: a colour and a dash of the style sheet."""
    faint: bool = False
    """The measured values behind a smoothed line."""
    dots: bool = False
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high): an interval around the curve."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line at a round at which something happened."""

    x: float
    text: str
    kind: str = "alarm"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What to draw and how to read its numbers."""

    title: str
    lines: Sequence[Line]
    show: Callable[[float], str] = number
    tick: Callable[[float], str] = "{:g}".format
    size: tuple[float, float] = (420.0, 190.0)
    marks: Sequence[Mark] = ()
    undone: tuple[float, float] | None = None
    """First and last round that were rolled back."""
    span: tuple[float | None, float | None] = field(default=(None, None))
    """Ends of the value axis; None takes the data's."""


@dataclass(frozen=True)
class _Scale:
    x0: float
    x1: float
    y0: float
    y1: float
    width: float
    height: float

    def x(self, value: float) -> float:
        share = (value - self.x0) / (self.x1 - self.x0) if self.x1 > self.x0 else 0.5
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y0) / (self.y1 - self.y0)
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)


def draw(chart: Chart) -> str:
    """The chart as one SVG element; an empty string when no line has a finite point."""
    lines = [_finite(line) for line in chart.lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    scale = _scale(chart, lines)
    width, height = chart.size
    parts = [_undone(chart, scale), _grid(chart, scale), _rounds(scale), *(_mark(m, scale) for m in chart.marks)]
    parts += [_band(line, scale) for line in lines] + [_curve(line, scale, chart.show) for line in lines]
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{esc(_spoken(chart, lines))}">'
        f"{''.join(parts)}</svg>"
    )


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that span ``low`` to ``high``: steps of 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Centred mean over ``window`` points, fewer at the ends."""
    half = window // 2
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    spans = [(max(0, i - half), min(len(points), i + half + 1)) for i in range(len(points))]
    return [(points[i][0], (sums[b] - sums[a]) / (b - a)) for i, (a, b) in enumerate(spans)]


def _finite(line: Line) -> Line:
    keep = [p for p in line.points if math.isfinite(p[0]) and math.isfinite(p[1])]
    band = [b for b in line.band if all(map(math.isfinite, b))]
    return Line(label=line.label, points=_thinned(keep), tone=line.tone, faint=line.faint, dots=line.dots, band=band)


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    if len(points) <= _MOST:
        return points
    size = math.ceil(len(points) / (_MOST // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        kept += sorted({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])})
    return kept


def _scale(chart: Chart, lines: Sequence[Line]) -> _Scale:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [v for line in lines for _, a, b in line.band for v in (a, b)]
    low = min(ys) if chart.span[0] is None else chart.span[0]
    high = max(ys) if chart.span[1] is None else chart.span[1]
    if high - low < 1e-9 * max(1.0, abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    room = 0.04 * (high - low)
    low = low - room if chart.span[0] is None else low
    high = high + room if chart.span[1] is None else high
    return _Scale(min(xs), max(xs), low, high, *chart.size)


def _grid(chart: Chart, scale: _Scale) -> str:
    """Rules with their value above the left end: no margin is lost to labels, however large the type."""
    parts = []
    for value in ticks(scale.y0, scale.y1):
        y = scale.y(value)
        kind = "zero" if value == 0 else "rule"
        parts.append(f'<line class="{kind}" x1="{_LEFT}" x2="{scale.width - _RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT}" y="{y - 3:.1f}">{esc(chart.tick(value).replace("-", "−"))}</text>'
        )
    return "".join(parts)


def _rounds(scale: _Scale) -> str:
    if scale.x1 <= scale.x0:
        shown = [scale.x0]
    else:
        shown = [t for t in ticks(scale.x0, scale.x1) if t == int(t)]
    parts = []
    for value in shown:
        x = scale.x(value)
        side = "start" if x < 24 else "end" if x > scale.width - 24 else "middle"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{scale.height - 7:g}" text-anchor="{side}">{value:g}</text>')
    return "".join(parts)


def _mark(mark: Mark, scale: _Scale) -> str:
    x = scale.x(min(max(mark.x, scale.x0), scale.x1))
    return (
        f'<g class="mark {esc(mark.kind)}"><title>{esc(mark.text)}</title>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8:g}" y2="{scale.height - _BOTTOM:g}"/>'
        f'<path d="M{x - 5:.1f} {_TOP - 16:g}h10l-5 9z"/></g>'
    )


def _undone(chart: Chart, scale: _Scale) -> str:
    if chart.undone is None:
        return ""
    a, b = (scale.x(min(max(v, scale.x0), scale.x1)) for v in (chart.undone[0] - 0.5, chart.undone[1]))
    return (
        f'<rect class="undone" x="{a:.1f}" y="{_TOP - 8:g}" width="{max(1.0, b - a):.1f}" '
        f'height="{scale.height - _TOP - _BOTTOM + 8:g}"><title>rolled back</title></rect>'
    )


def _band(line: Line, scale: _Scale) -> str:
    if len(line.band) == 1:
        x, low, high = line.band[0]
        return f'<path class="bar t{line.tone}" d="M{scale.x(x):.1f} {scale.y(low):.1f}V{scale.y(high):.1f}"/>'
    if not line.band:
        return ""
    upper = [f"{scale.x(x):.1f} {scale.y(high):.1f}" for x, _, high in line.band]
    lower = [f"{scale.x(x):.1f} {scale.y(low):.1f}" for x, low, _ in reversed(line.band)]
    return f'<path class="band t{line.tone}" d="M{"L".join(upper + lower)}Z"/>'


def _curve(line: Line, scale: _Scale, show: Callable[[float], str]) -> str:
    path = "L".join(f"{scale.x(x):.1f} {scale.y(y):.1f}" for x, y in line.points)
    kind = "faint" if line.faint else "curve"
    parts = [f'<path class="{kind} t{line.tone}" d="M{path}"/>'] if len(line.points) > 1 else []
    dots = line.dots or len(line.points) == 1
    if dots or (len(line.points) <= _HOVER and not line.faint):
        drawn = "dot" if dots else "hover"
        parts += [
            f'<circle class="{drawn} t{line.tone}" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="{3.6 if dots else 6:g}">'
            f"<title>{esc(f'round {x:g}: {show(y)} {line.label}')}</title></circle>"
            for x, y in line.points
        ]
    return "".join(parts)


def _spoken(chart: Chart, lines: Sequence[Line]) -> str:
    """The chart in one sentence for those who hear the page."""
    told = [
        f"{line.label} from {chart.show(line.points[0][1])} at round {line.points[0][0]:g} "
        f"to {chart.show(line.points[-1][1])} at round {line.points[-1][0]:g}"
        for line in lines
        if not line.faint
    ]
    return f"{chart.title}: {'; '.join(told)}"
