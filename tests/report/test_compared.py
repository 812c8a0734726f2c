"""The page of a comparison: where dots and bars stand, and that names cannot steer it."""

from __future__ import annotations

import re
from typing import Any

from triloop.report.compared import forest, page


def _row(method: str, value: float, half: float, **more: Any) -> dict[str, Any]:
    plain = {
        "method": method,
        "metric": "mean score",
        "value": value,
        "ci95": [value - half, value + half],
        "by_seed": {"0": value - half / 2, "1": value + half / 2},
        "labels": 1200,
        "tokens_generated": 50_000,
        "seconds": 61.0,
        "difference": None,
        "baseline": False,
    }
    return {**plain, **more}


ROWS = [
    _row("grpo", 0.5, 0.1),
    _row("<b>", 1.0, 0.1, difference={"value": 0.5, "ci95": [0.4, 0.6], "n": 9}),
    _row("sft", 0.0, 0.0, baseline=True),
]


def test_bars_by_hand() -> None:
    """From 0 to 1.1, and a twentieth of that on either side: -0.055 to 1.155 over 190 to 744."""
    drawn = forest(ROWS, lambda row: row)
    x = [190 + (v + 0.055) / 1.21 * 554 for v in (0.4, 0.6, 0.9, 1.1)]
    bars = re.findall(r'd="M([\d.]+) [\d.]+H([\d.]+)"', drawn)
    assert bars[0] == (f"{x[0]:.1f}", f"{x[1]:.1f}") and bars[1] == (f"{x[2]:.1f}", f"{x[3]:.1f}")
    assert drawn.count('r="4"') == 3 and drawn.count('r="2"') == 6, "a dot a method, a ring a seed"
    assert "sft (baseline)" in drawn and drawn.count('class="bar t2"') == 1


def test_what_is_left_out_is_not_drawn() -> None:
    drawn = forest(ROWS, lambda row: row["difference"], zero=True)
    assert drawn.count('class="bar') == 1 and 'class="zero"' in drawn
    assert forest(ROWS[:1], lambda row: row["difference"]) == ""


def test_the_page_holds_costs_and_escapes_names() -> None:
    made = page("attributes & co", ROWS, ["labels are judgements"])
    assert "<b>" not in made.split("</style>")[1] and "&lt;b&gt;" in made and "attributes &amp; co" in made
    assert "<script" not in made and made.count("<svg") == 2
    for shown in ("1,200", "50,000", "61 s", "0.400 to 0.600", "+0.500", "minus grpo", "labels are judgements"):
        assert shown in made, shown
    assert page("x", ROWS[:1], []).count("<svg") == 1, "nothing to subtract"
