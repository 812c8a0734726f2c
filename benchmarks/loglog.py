"""Panels of curves on logarithmic axes as one SVG, by hand like the report's charts. Reads well on light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from triloop.report.markup import esc

Point = tuple[float, float]

WIDTH, HEIGHT = 420.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 68.0, 40.0
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-weight: 600; font-size: 14px } .tick { font-size: 11px }
.grid { stroke: #bbb; stroke-width: .5 } .t1 { stroke: #0b62a4; fill: #0b62a4 } .t2 { stroke: #c2571a; fill: #c2571a }
path { fill: none !important; stroke-width: 2 } path.t2 { stroke-dasharray: 6 4 } text.t1, text.t2 { stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .grid { stroke: #555 } .t1 { stroke: #6db3f2; fill: #6db3f2 } .t2 { stroke: #f2a06d; fill: #f2a06d }
}
"""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart: a name for each curve, its points, both axes positive."""

    title: str
    x: str
    y: str
    curves: Sequence[tuple[str, Sequence[Point]]]


def picture(panels: Sequence[Panel], columns: int = 2) -> str:
    """All panels in a grid, as a file of its own."""
    rows = -(-len(panels) // columns)
    parts = [
        f'<g transform="translate({i % columns * WIDTH:g} {i // columns * HEIGHT:g})">{_panel(p)}</g>'
        for i, p in enumerate(panels)
    ]
    size = f'width="{columns * WIDTH:g}" height="{rows * HEIGHT:g}" viewBox="0 0 {columns * WIDTH:g} {rows * HEIGHT:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return f"{head}<style>{STYLE}</style>{''.join(parts)}</svg>\n"


def slope(points: Sequence[Point]) -> float | None:
    """Of the straight line through the logarithms, by least squares: 1 is proportional. None for fewer than two points."""
    if len({x for x, _ in points}) < 2:
        return None
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def short(value: float) -> str:
    """1200 as 1.2k, 0.0031 as 0.0031."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{value:.2g}" if value < 1 else f"{value:.3g}"


def _panel(panel: Panel) -> str:
    points = [p for _, curve in panel.curves for p in curve]
    if not points:
        return f'<text class="title" x="{LEFT:g}" y="20">{esc(panel.title)}: not measured</text>'
    xs, ys = sorted({x for x, _ in points}), [y for _, y in points]
    x0, x1 = math.log(xs[0]), math.log(xs[-1])
    y0, y1 = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)) + 1e-9)

    def at(point: Point) -> tuple[float, float]:
        across = (math.log(point[0]) - x0) / (x1 - x0) if x1 > x0 else 0.5
        up = (math.log10(point[1]) - y0) / max(1, y1 - y0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text class="title" x="{LEFT:g}" y="20">{esc(panel.title)}</text>']
    for power in range(y0, y1 + 1):
        _, y = at((xs[0], 10.0**power))
        parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = short(10.0**power)
        parts.append(f'<text class="tick" x="{LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for x in xs:
        across, _ = at((x, 10.0**y0))
        side = "end" if x == xs[-1] and len(xs) > 1 else "middle"
        parts.append(
            f'<text class="tick" x="{across:.1f}" y="{HEIGHT - BOTTOM + 16:g}" text-anchor="{side}">{short(x)}</text>'
        )
    parts.append(f'<text x="{WIDTH - RIGHT:g}" y="{HEIGHT - 7:g}" text-anchor="end">{esc(panel.x)}</text>')
    parts.append(f'<text class="tick" x="6" y="{TOP - 12:g}">{esc(panel.y)}</text>')
    for tone, (name, curve) in enumerate(panel.curves, 1):
        parts.append(_curve(name, curve, tone, [at(p) for p in curve]))
    return "".join(parts)


def _curve(name: str, curve: Sequence[Point], tone: int, places: Sequence[Point]) -> str:
    if not places:
        return ""
    found = slope(curve)
    told = name if found is None else f"{name}, slope {found:.2f}"
    key = f'<text class="t{tone}" x="{LEFT + (tone - 1) * 170:g}" y="38">{esc(told)}</text>'
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dots = [
        f'<circle class="t{tone}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
        f"<title>{esc(f'{name}: {short(a)}, {short(b)} s')}</title></circle>"
        for (x, y), (a, b) in zip(places, curve, strict=True)
    ]
    return f'{key}<path class="t{tone}" d="M{path}"/>{"".join(dots)}'
