"""What ``triloop atlas`` calls: list, show, run and check, and the recorded results.

``results.jsonl`` beside this file holds one line a row: the data of the last full run, and the verdict that they gave. It
is part of the repository: an unwelcome verdict is kept like any other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triloop.atlas.frame import Context, Measured, Row, outcome
from triloop.atlas.table import ROWS, find_row, find_system, systems
from triloop.errors import ConfigError, UsageError, WorkError

__all__ = ["ROWS", "check", "list_rows", "results", "run", "save", "show"]

RESULTS = Path(__file__).with_name("results.jsonl")


def list_rows() -> list[dict[str, Any]]:
    """All systems; ``verdict`` is None where no row stands, or it has not been measured."""
    found = results()
    return [
        {"id": s.id, "title": s.title, "room": s.room, "verdict": found[s.id]["verdict"] if s.id in found else None}
        for s in systems().values()
    ]


def show(id: str) -> dict[str, Any]:
    """One system, its experiment if there is one, and its last result if there is one. ConfigError for an unknown id."""
    system = find_system(id)
    shown: dict[str, Any] = {
        "id": system.id,
        "title": system.title,
        "kind": system.kind,
        "room": system.room,
        "mechanism": system.mechanism,
        "source_claim": system.claim,
        "claim": None,
        "setup": None,
        "core": None,
        "rule": None,
        "changed_after_first_look": None,
        "verdict": None,
    }
    if id in ROWS:
        row = ROWS[id]
        shown |= {"claim": row.claim, "setup": row.setup, "core": row.core, "rule": row.rule}
        shown["changed_after_first_look"] = row.changed_after_first_look or "nothing"
        shown |= results().get(id, {})
    return shown


def run(
    id: str,
    *,
    share: float = 1.0,
    seeds: Sequence[int] | None = None,
    base: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Run a row and decide its verdict. ConfigError for an unknown id.

    ``share`` below 1 is a quick form, ``base`` another policy than the one that comes with Triloop: neither can be saved.
    """
    row, system = find_row(id), find_system(id)
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}; expected above 0 and at most 1")
    workers = workers or min(4, len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="triloop-atlas-") as folder:
        context = Context(
            folder=Path(folder),
            seeds=tuple(seeds or row.seeds),
            base=base or row.base,
            share=share,
            workers=workers,
        )
        result = outcome(row, row.run(context))
    return {
        "id": row.id,
        "title": system.title,
        **result,
        "seconds": round(time.perf_counter() - started, 1),
        "full": share == 1.0 and base is None and context.seeds == row.seeds,
        "made": _made(workers, context.base),
    }


def _made(workers: int, base: str) -> dict[str, Any]:
    import torch

    from triloop import __version__
    from triloop.loops.build import policy_path

    weights = (policy_path(base) / "model.safetensors").read_bytes()

    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "processes": workers,
        "base_sha256": hashlib.sha256(weights).hexdigest(),
        "triloop": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def results() -> dict[str, dict[str, Any]]:
    """The recorded results by id."""
    if not RESULTS.is_file():
        return {}
    lines = RESULTS.read_text(encoding="utf-8").splitlines()
    return {result["id"]: result for result in (json.loads(line) for line in lines if line.strip())}


def save(result: dict[str, Any]) -> None:
    """Record a result in place of an earlier one of the same row; in the order of the table, one line each."""
    if not result["full"]:
        raise UsageError(
            f"row {result['id']} was run in a quick form or from another base; only a full run can be saved"
        )
    fresh = RESULTS.with_suffix(".fresh")
    try:
        with RESULTS.open("a", encoding="utf-8") as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # two that save at once must not forget each other's
            known = results() | {result["id"]: result}
            # rows that this process does not know stay: they may have been added while it ran
            order = [*ROWS, *(id for id in known if id not in ROWS)]
            text = "".join(f"{json.dumps(known[id], ensure_ascii=False)}\n" for id in order if id in known)
            fresh.write_text(text, encoding="utf-8")
            RESULTS.write_text(text, encoding="utf-8")
            fresh.unlink()
    except OSError as error:
        raise WorkError(f"{RESULTS} cannot be written ({error.strerror}); save from a checkout of your own") from error


def check() -> list[str]:
    """What is wrong with the recorded results: one sentence each, none when every verdict is what its data say."""
    wrong: list[str] = []
    for id, recorded in results().items():
        if id not in ROWS:
            wrong.append(f"{id}: a result is recorded, and no such row stands; remove its line from {RESULTS.name}")
        else:
            wrong += [f"{id}: {fault}" for fault in _faults(ROWS[id], recorded)]
    return wrong


def _faults(row: Row, recorded: dict[str, Any]) -> list[str]:
    """How a recorded result differs from what the row's rule makes of the recorded data."""
    if recorded["rule"] != row.rule:
        return ["the rule was changed after the data; run it again and save"]
    if recorded["seeds"] != len(row.seeds) or not recorded["full"]:
        return [f"recorded with {recorded['seeds']} seeds or in a quick form; run all {len(row.seeds)} and save"]
    data = recorded["contrasts"]
    measured = Measured(
        baseline=[c["baseline"] for c in data], treatment=[c["treatment"] for c in data], facts=recorded["facts"]
    )
    again = outcome(row, measured)
    # through JSON, as the record went: tuples are lists there
    again = json.loads(json.dumps(again, ensure_ascii=False))
    return [
        f"{name} is recorded as {recorded.get(name)!r}, but the data say {value!r}; run it again and save"
        for name, value in again.items()
        if recorded.get(name) != value
    ]
