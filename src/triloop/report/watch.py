"""The guards' timeline: a strip per guard over the rounds, and every objection with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from triloop.records import Verdict
from triloop.report.markup import details, esc, number, section, table
from triloop.report.view import RunView, is_note

__all__ = ["guards"]

_NOTED = -0.5
_WORD = {1: "healthy", 0: "cannot tell", _NOTED: "noted", -1: "alarm"}
_KIND = {1: "good", 0: "open", _NOTED: "noted", -1: "bad"}
_SIGN = {1: "●", 0: "○", _NOTED: "▽", -1: "▼"}
_MOST = 120
"""Stretches in the table of reasons."""


def guards(view: RunView) -> str:
    """Nothing when no guard ever spoke."""
    if not view.verdicts:
        return ""
    in_run = [v for v in view.verdicts if v.round >= 1]
    before = [v for v in view.verdicts if v.round < 1]
    names = sorted({v.guard for v in in_run}, key=lambda name: (_worst(in_run, name), name))
    last = max([v.round for v in in_run] + [view.last_round or 1])
    rows = "".join(_strip(name, [v for v in in_run if v.guard == name], last) for name in names)
    rows += _tightened(view, last)
    legend = "".join(f'<span class="{_KIND[v]}">{_SIGN[v]} {_WORD[v]}</span>' for v in (1, 0, _NOTED, -1))
    axis = f'<div class="axis"><span>round 1</span><span>round {last}</span></div>' if names else ""
    strips = f'<div class="legend">{legend}</div><div class="strips">{rows}{axis}</div>' if names else ""
    body = _preflight(before) + strips + _reasons(in_run)
    return section("guards", "Guards", body, "What watched the run, round by round, and what it said.")


def _level(verdict: Verdict) -> float:
    """The verdict, with a guard's notes between alarm and doubt."""
    return _NOTED if is_note(verdict) else verdict.value


def _worst(verdicts: Sequence[Verdict], name: str) -> float:
    return min(_level(v) for v in verdicts if v.guard == name)


def _strip(name: str, verdicts: Sequence[Verdict], last: int) -> str:
    """Stretches of equal verdict as blocks; widths in per cent, so that no label is stretched with them."""
    ordered = sorted(verdicts, key=lambda v: v.round)
    alarms = sum(_level(v) == -1 for v in ordered)
    blocks = []
    for value, first, end in _stretches(ordered):
        x, width = 100 * (first - 1) / last, 100 * (end - first + 1) / last
        told = f"{name}, round {first}{f' to {end}' if end > first else ''}: {_WORD[value]}"
        blocks.append(
            f'<rect class="{_KIND[value]}" x="{x:.3f}%" width="{max(width, 0.4):.3f}%" y="{4 if value else 9}" '
            f'height="{16 if value else 6}"><title>{esc(told)}</title></rect>'
        )
        if value == -1:
            at, side = (100.0, "end") if x > 97 else (0.0, "start") if x + width < 3 else (x + width / 2, "middle")
            blocks.append(f'<text class="bad" x="{at:.2f}%" y="17" text-anchor="{side}">▼</text>')
    spoken = f"{name}: {f'{alarms} alarms' if alarms else 'no alarm'} in {len(ordered)} checks"
    return (
        f'<div class="strip"><span class="guard">{esc(name)}</span>'
        f'<svg role="img" aria-label="{esc(spoken)}" height="24" width="100%">{"".join(blocks)}</svg></div>'
    )


def _tightened(view: RunView, last: int) -> str:
    """Where a guard's ``tighten`` made the steps smaller; nothing when that never happened."""
    scaled = [(int(round), scale) for round, scale in view.series("lr_scale") if scale < 1]
    if not scaled:
        return ""
    blocks = []
    for _, group in groupby(enumerate(scaled), key=lambda item: (item[1][0] - item[0], item[1][1])):
        stretch = [entry for _, entry in group]
        (first, scale), (end, _) = stretch[0], stretch[-1]
        told = f"learning rate × {scale:g}, round {first}{f' to {end}' if end > first else ''}"
        blocks.append(
            f'<rect class="noted" x="{100 * (first - 1) / last:.3f}%" width="{100 * (end - first + 1) / last:.3f}%" '
            f'y="4" height="16"><title>{esc(told)}</title></rect>'
        )
    spoken = f"learning rate: smaller in {len(scaled)} rounds, × {min(s for _, s in scaled):g} at the least"
    return (
        f'<div class="strip"><span class="guard">learning rate</span>'
        f'<svg role="img" aria-label="{esc(spoken)}" height="24" width="100%">{"".join(blocks)}</svg></div>'
    )


def _stretches(ordered: Sequence[Verdict]) -> list[tuple[float, int, int]]:
    """(value, first round, last round): neighbouring checks that say the same, with the unchecked rounds between them."""
    found: list[tuple[float, int, int]] = []
    for verdict in ordered:
        if found and found[-1][0] == _level(verdict):
            found[-1] = (found[-1][0], found[-1][1], verdict.round)
        else:
            found.append((_level(verdict), verdict.round, verdict.round))
    return found


def _reasons(verdicts: Sequence[Verdict]) -> str:
    """Objections of one guard in neighbouring rounds as one line, with the first reason."""
    spoke = sorted((v for v in verdicts if v.value < 0), key=lambda v: (v.guard, v.round))
    if not spoke:
        return '<p class="quiet">No guard objected.</p>'
    runs: list[tuple[Verdict, int]] = []
    for _, group in groupby(spoke, key=lambda v: (v.guard, v.action)):
        for verdict in group:
            if (
                runs
                and runs[-1][0].guard == verdict.guard
                and runs[-1][0].action == verdict.action
                and (verdict.round <= runs[-1][1] + 1)
            ):
                runs[-1] = (runs[-1][0], verdict.round)
            else:
                runs.append((verdict, verdict.round))
    runs.sort(key=lambda item: item[0].round)
    rows = [
        [
            f"{v.round}" if last == v.round else f"{v.round}–{last}",
            f"<b>{esc(v.guard)}</b>",
            f'<span class="chip {"nought" if is_note(v) else "minus"}">{esc(v.action.replace("_", " "))}</span>',
            esc(v.reason),
            esc(", ".join(f"{k} {number(x)}" for k, x in v.measured.items())),
        ]
        for v, last in runs[:_MOST]
    ]
    more = f'<p class="quiet">{len(runs) - _MOST} more in run.db.</p>' if len(runs) > _MOST else ""
    return (
        table(["round", "guard", "action", "reason", "measured"], rows, kind="reasons", caption="What they objected to")
        + more
    )


def _preflight(verdicts: Sequence[Verdict]) -> str:
    """The checks of the judge before the run."""
    if not verdicts:
        return ""
    rows = [
        [f'<span class="{_KIND[_level(v)]}">{_SIGN[_level(v)]} {_WORD[_level(v)]}</span>', esc(v.guard), esc(v.reason)]
        for v in verdicts
    ]
    bad = sum(v.value < 0 for v in verdicts)
    name = f"Before the run: {len(verdicts)} checks of the judge, {bad or 'no'} alarm{'s' if bad > 1 else ''}"
    return details(name, table(["verdict", "check", "reason"], rows, caption="Checks before the run"), kind="pre")
