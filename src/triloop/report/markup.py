"""Markup from text. Everything that enters from a run (model text, reasons, paths) passes through ``esc``."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

__all__ = ["clock", "count", "details", "esc", "number", "percent", "points", "prose", "section", "signed", "table"]

_LONGEST = 6000
"""Characters of one text that are shown; the store holds all of it."""

# Control characters cannot stand in HTML, and direction marks would let a text re-order what surrounds it: both are
# shown as visible signs. Newline and tab stay.
_VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "\ufffd"),
    **{code: f"\u27e8U+{code:04X}\u27e9" for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}


def esc(value: object) -> str:
    """Safe as text and inside a quoted attribute, whatever the value holds."""
    return html.escape(str(value).translate(_VISIBLE), quote=True)


def prose(text: str) -> str:
    """Model text: escaped, its direction isolated, cut when endless."""
    if not text:
        return '<span class="quiet">(empty)</span>'
    cut = len(text) - _LONGEST
    more = f'<span class="quiet"> … {cut:,} more characters in run.db</span>' if cut > 0 else ""
    return f'<bdi class="said">{esc(text[:_LONGEST])}</bdi>{more}'


def number(value: object, digits: int = 3) -> str:
    """A figure with so many significant digits; a dash for what was not measured."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else esc(value)
    if not math.isfinite(value):
        return "not finite"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}".replace("-", "−")
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}".replace("-", "−")


def percent(value: float) -> str:
    """A share in [0, 1] as per cent, one decimal."""
    return f"{100 * value:.1f} %".replace("-", "−")


def points(value: float) -> str:
    """A difference of two shares, in percentage points with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def signed(value: float) -> str:
    """A reward: +1, 0, −1, or a number with its sign."""
    text = f"{value:+g}" if value == int(value) else f"{value:+.2f}"
    return "0" if value == 0 else text.replace("-", "−")


def count(value: float) -> str:
    """A large count, short: 12,345 or 1.23 million."""
    if value >= 1e6:
        return f"{value / 1e6:.2f} million"
    return f"{round(value):,}"


def clock(seconds: float) -> str:
    """A duration as a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "", caption: str = "") -> str:
    """A table that scrolls by itself on a narrow page. Cells are markup: escape what they hold."""
    top = "".join(f'<th scope="col">{esc(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    said = f"<caption>{esc(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{esc(caption or "table")}">'
        f'<table class="{esc(kind)}">{said}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def details(summary: str, body: str, *, kind: str = "") -> str:
    """A part that opens on demand."""
    return f'<details class="{esc(kind)}"><summary>{esc(summary)}</summary>{body}</details>'


def section(id: str, title: str, body: str, lead: str = "") -> str:
    """A part of the page under its own heading."""
    said = f'<p class="lead">{esc(lead)}</p>' if lead else ""
    head = f'<h2 id="{esc(id)}-h">{esc(title)}</h2>'
    return f'<section id="{esc(id)}" aria-labelledby="{esc(id)}-h">{head}{said}{body}</section>'
