"""The page of the atlas, made from the table and the recorded results: ``docs/atlas.md``."""

from __future__ import annotations

from collections import Counter
from typing import Any

from triloop.atlas.book import results
from triloop.atlas.frame import Row
from triloop.atlas.table import ROWS, systems

__all__ = ["page"]

VERDICTS = {1: "+1 holds", 0: "0 undecided", -1: "−1 contradicted", None: "not measured"}

_HEAD = """\
# The atlas

<!-- Made by `make docs` from src/triloop/atlas. Change the rows there, not this page. -->

Published systems as small experiments, each with a verdict: **+1** the claim holds here, **0** undecided, **−1**
contradicted.
A verdict says what this miniature shows, on a policy of under a million parameters within minutes; it does not judge the
paper. The rule is written down before the data that are recorded, and `triloop atlas check` recomputes every verdict from
them. Where experiment or rule were changed after a first look at other data, the row says what and when. An unwelcome
verdict is kept.

```
triloop atlas list              all systems, with their verdicts
triloop atlas show A18          one of them: mechanism, claim, experiment, rule, result
triloop atlas run A18           measure it again
triloop atlas run --all --save  measure all rows and record them (for a quiet machine)
```

Every row compares runs of the library's own loop: same base, same training prompts, same held-out problems, one pair a
seed. The interval is Student's t over the seeds' differences, for the training run is what is repeated. Guards are off in
these runs.
"""


def page() -> str:
    """The whole page."""
    found = results()
    parts = [_HEAD, _glance(found)]
    parts += [_row(row, found.get(id)) for id, row in ROWS.items()]
    parts += [_looks(), _rest()]
    return "\n".join(parts).rstrip() + "\n"


def _glance(found: dict[str, dict[str, Any]]) -> str:
    titles = systems()
    lines = ["| row | system | verdict |", "| --- | --- | --- |"]
    for id in ROWS:
        verdict = VERDICTS[found[id]["verdict"] if id in found else None]
        lines.append(f"| [{id}](#{id.lower()}) | {_cell(titles[id].title)} | {verdict} |")
    return "\n".join(lines) + "\n"


def _row(row: Row, result: dict[str, Any] | None) -> str:
    system = systems()[row.id]
    lines = [
        f"## {row.id}\n",
        f"**{system.title}** · {VERDICTS[result['verdict'] if result else None]}\n",
        f"**Claim.** {row.claim}\n",
        f"**Experiment.** {row.setup}. In ordinary use: `{row.core}`.{_parts(row)}\n",
        f"**Rule.** {row.rule}\n",
    ]
    if row.changed_after_first_look:
        lines.append(f"**Changed after a first look.** {row.changed_after_first_look}\n")
    if result is not None:
        lines += [_table(row, result), _facts(result)]
    return "\n".join(lines)


def _looks() -> str:
    """Row by row, in the rows' own words."""
    changed = {id: row.changed_after_first_look for id, row in ROWS.items() if row.changed_after_first_look}
    same = ", ".join(id for id in ROWS if id not in changed)
    return (
        "## What was changed after a first look\n\nAll of it before the data that are recorded.\n\n"
        + "".join(f"- **{id}.** {told}\n" for id, told in changed.items())
        + (f"\nAs first written, experiment and rule: {same}.\n" if same else "")
    )


def _table(row: Row, result: dict[str, Any]) -> str:
    lines = [
        "| compared | treatment | baseline | difference | 95 % | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for contrast, c in zip(row.contrasts, result["contrasts"], strict=True):
        sides = [sum(c[side]) / len(c[side]) for side in ("treatment", "baseline")]
        low, high = c["ci95"]
        lines.append(
            f"| {contrast.metric} | {contrast.treatment}: {sides[0]:.4g} | {contrast.baseline}: {sides[1]:.4g} "
            f"| {c['difference']:+.4g} | {low:+.4g} to {high:+.4g} | {c['verdict']:+d} |"
        )
    return "\n".join(lines) + "\n"


def _facts(result: dict[str, Any]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in result["facts"].items())
    made = result["made"]
    return (
        f"Besides: {facts}.\n\nMeasured {made['date']}, {result['seeds']} seeds, {result['seconds']:.0f} s in "
        f"{made['processes']} processes of one thread, {made['processor']}, torch {made['torch']}, "
        f"Triloop {made['triloop']}.\n"
    )


def _rest() -> str:
    """What is still to come: every system without a row."""
    waiting = [s for s in systems().values() if s.id not in ROWS]
    rooms = Counter(s.room for s in waiting)
    counts = ", ".join(f"{n} in {room}" for room, n in sorted(rooms.items()))
    lines = [
        "## Systems without an experiment yet\n",
        f"{len(waiting)} of {len(waiting) + len(ROWS)}: {counts}.\n",
        "| row | system | room |",
        "| --- | --- | --- |",
        *(f"| {s.id} | {_cell(s.title)} | {s.room} |" for s in waiting),
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _parts(row: Row) -> str:
    return f" Made of {', '.join(f'`{part}`' for part in row.parts)}." if row.parts else ""
