"""Where the run came from and what it ran on: lineage, configuration, environment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from triloop.report.lineage import draw_lineage
from triloop.report.markup import details, esc, number, percent, section, table
from triloop.report.view import RunView

__all__ = ["configuration", "environment", "lineage"]

_FILES = 12


def lineage(view: RunView) -> str:
    """From the policy that it began with, through the rounds, to the weights on the disk."""
    config = view.config
    done = len(view.metrics) - len(view.undone)
    steps = [
        ("policy", str(config.get("policy", "–")), _sha(view.environment.get("policy_sha256"))),
        ("rounds", f"{done} rounds, seed {config.get('seed', 0)}", f"{view.counts.get('live', 0):,} rows in run.db"),
    ]
    if view.checkpoints:
        last = view.checkpoints[-1]
        steps.append(("checkpoint", f"after round {last.round}", _sha(last.sha256)))
    weights = next((e.get("weights_sha256") for e in reversed(view.events) if e.get("weights_sha256")), None)
    if weights:
        steps.append(("weights", "as they are at the end", _sha(weights)))
    chain = "".join(f"<li><b>{esc(a)}</b><span>{esc(b)}</span><code>{esc(c)}</code></li>" for a, b, c in steps)
    body = f'<ol class="chain">{chain}</ol>' + draw_lineage(view.artifacts) + _checkpoints(view) + _parents(view)
    body += f'<p class="quiet">Digest of the store <code>{esc(view.digest)}</code>. Equal runs have equal digests.'
    orphaned = view.counts.get("orphaned", 0)
    body += f" {orphaned:,} rows were rolled back or replayed differently, and are kept.</p>" if orphaned else "</p>"
    return section("lineage", "Lineage", body + _events(view))


def configuration(view: RunView) -> str:
    """Every setting, grouped as in ``config.yaml``."""
    plain = {k: v for k, v in view.config.items() if not isinstance(v, Mapping)}
    groups = [("run", plain), *((k, v) for k, v in view.config.items() if isinstance(v, Mapping))]
    parts = []
    for name, values in groups:
        rows = [[f"<code>{esc(key)}</code>", _value(value)] for key, value in _flat(values)]
        parts.append(f'<div class="group">{table(["setting", "value"], rows, kind="facts", caption=str(name))}</div>')
    how = '<p class="quiet"><code>triloop run config.yaml</code> with the file of the run folder starts it again.</p>'
    body = details("All settings", f'<div class="groups">{"".join(parts)}</div>') + how
    return section("configuration", "Configuration", body)


def environment(view: RunView) -> str:
    """Machine and versions, as they were when the run began."""
    rows = [[f"<code>{esc(key)}</code>", _value(value)] for key, value in _flat(view.environment)]
    if not rows:
        return ""
    return section(
        "environment", "Environment", table(["fact", "value"], rows, kind="facts", caption="When the run began")
    )


def _checkpoints(view: RunView) -> str:
    if not view.checkpoints:
        return '<p class="quiet">No checkpoint yet.</p>'
    rows = [
        [
            number(c.round),
            f"<code>{esc(c.path.name)}</code>",
            f"<code>{esc(c.sha256[:16])}…</code>",
            percent(c.gold) if c.gold is not None and 0 <= c.gold <= 1 else number(c.gold),
            esc(_when(c.time)),
        ]
        for c in view.checkpoints[-_FILES:]
    ]
    return table(
        ["round", "folder", "SHA-256 of its manifest", "gold", "written"], rows, caption="Checkpoints on the disk"
    )


def _parents(view: RunView) -> str:
    """Identifiers name their origin; here they are spelled out for the samples that the page shows."""
    shown = [*(e for episodes in view.episodes.values() for e in episodes), *view.evidence]
    unique = {e.completion.id: e for e in shown}
    if not unique:
        return ""
    rows = [
        [
            f"<code>{esc(id)}</code>",
            " ".join(f"<code>{esc(p)}</code>" for p in dict.fromkeys((e.completion.prompt_id, *e.completion.parents))),
            number(e.completion.policy_version),
            esc(", ".join(f.source for f in e.feedback if f.source) or "–"),
        ]
        for id, e in unique.items()
    ]
    head = ["sample", "made from", "optimiser steps before it", "judged by"]
    return details("Where the samples on this page come from", table(head, rows, caption="Lineage of the samples"))


def _events(view: RunView) -> str:
    if not view.events:
        return ""
    rows = []
    for event in view.events[-40:]:
        told = ", ".join(f"{k} {v}" for k, v in event.items() if k not in ("round", "time", "name"))
        rows.append([number(event["round"]), esc(event.get("name", "event")), esc(_when(event["time"])), esc(told)])
    return details("What happened to the run", table(["round", "event", "time", "more"], rows, caption="Events"))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _value(value: object) -> str:
    if value is None or value == "":
        return '<span class="quiet">none</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return esc(", ".join(map(str, value))) or '<span class="quiet">empty</span>'
    return esc(value)


def _sha(value: object) -> str:
    return f"{str(value)[:16]}…" if value else ""


def _when(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else "–"
