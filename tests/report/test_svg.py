"""Charts: scales, ticks and lines by hand."""

from __future__ import annotations

import math

import pytest

from triloop.report.markup import clock, esc, number, percent, signed
from triloop.report.svg import Chart, Line, draw, running_mean, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (-0.4, 0.95, [0, 0.5]),
        (0, 150, [0, 50, 100, 150]),
        (1e-6, 4e-6, [1e-6, 2e-6, 3e-6, 4e-6]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw(Chart(title="x", lines=[Line(label="a", points=[])])) == ""
    assert draw(Chart(title="x", lines=[Line(label="a", points=[(1, math.nan)])])) == ""


def test_a_flat_line_and_a_single_point_have_a_place() -> None:
    flat = draw(Chart(title="x", lines=[Line(label="a", points=[(1, 0.0), (2, 0.0)])]))
    single = draw(Chart(title="x", lines=[Line(label="a", points=[(1, 5.0)])]))
    assert "nan" not in flat + single
    assert "<circle" in single


def test_higher_values_are_drawn_higher() -> None:
    svg = draw(Chart(title="x", lines=[Line(label="a", points=[(0, 0.0), (1, 1.0)])], span=(0.0, 1.0)))
    assert 'd="M4.0 166.0L412.0 20.0"' in svg


def test_a_long_line_is_thinned_but_keeps_its_spike() -> None:
    points = [(float(i), 0.0) for i in range(5000)]
    points[3210] = (3210.0, 9.0)
    svg = draw(Chart(title="x", lines=[Line(label="a", points=points)], span=(0.0, 9.0)))
    assert len(svg) < 40_000
    assert " 20.0L" in svg, "the spike reaches the top"


def test_running_mean_by_hand() -> None:
    assert running_mean([(0, 0.0), (1, 3.0), (2, 6.0)], 3) == [(0, 1.5), (1, 3.0), (2, 4.5)]


def test_figures() -> None:
    assert [number(v) for v in (0.1234, 12, -3.0, 1234567.0, 0.00001, None, math.nan)] == [
        "0.123", "12", "−3", "1,234,567", "1.00e-05".replace("-", "−"), "–", "not finite",
    ]  # fmt: skip
    assert (percent(0.914), signed(1), signed(-0.5), signed(0)) == ("91.4 %", "+1", "−0.50", "0")
    assert (clock(3.21), clock(42), clock(600), clock(6000)) == ("3.2 s", "42 s", "10 min", "1 h 40 min")


def test_text_cannot_leave_its_place() -> None:
    assert esc('"><b>\x07\u202e') == "&quot;&gt;&lt;b&gt;␇⟨U+202E⟩"
