"""How the time of a rollout grows with parameters, batch, length and vocabulary, beside transformers' ``generate``.

    python benchmarks/scaling.py --minutes 10 --out docs/proof/scaling      writes scaling.json, .md and .svg there

Each panel varies one of the four and leaves the others at 1m, 64 completions, 32 tokens, 64 tokens of vocabulary. Every
cell is measured twice on each side, in turns; the faster counts. Cells run from the least work to the most. One that
would not end within ``--minutes``, by the speed of those before it, is left out, and the page says so. What is in the
JSON file already, from the same machine, code and settings, is not measured again: run it again to go on.

``generate`` runs in another interpreter, the one of TRL's environment (``versus_trl.py --install``); without it, this
measures Triloop alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from blocks import Contender
from loglog import Panel, picture, short, slope

from triloop.bench.case import GROUP, PROMPT, Case
from triloop.bench.measuring import Others, machine, note, peak_bytes, reset_peak, table
from triloop.bench.model import config_of
from triloop.bench.rollout import Rollout
from triloop.bench.work import Samples, decoding
from triloop.policies.native import pick_precision

HERE = Path(__file__).resolve().parent
BASE = {"size": "1m", "batch": 64, "length": 32, "vocab": 64}
AXES: dict[str, list[Any]] = {
    "size": ["0.2m", "1m", "5m", "30m", "100m"],
    "batch": [8, 32, 64, 128, 256, 512, 1024],
    "length": [32, 128, 512, 1024, 2048],
    "vocab": [64, 512, 4096, 16384, 50257],
}
TITLES = {"size": "Parameters", "batch": "Completions at once", "length": "New tokens", "vocab": "Vocabulary"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One shape."""

    size: str
    batch: int
    length: int
    vocab: int

    @property
    def key(self) -> str:
        return f"{self.size}/{self.batch}/{self.length}/{self.vocab}"

    @property
    def parameters(self) -> int:
        return config_of(self.size, self.vocab).parameters

    @property
    def flops(self) -> float:
        """By which cells are put in order; a small one costs its steps."""
        group = min(GROUP, self.batch)
        s = Samples(prompts=(PROMPT,) * (self.batch // group), group=group, length=self.length)
        return decoding(config_of(self.size, self.vocab), s, 4).flops + 2e7 * self.length


def cells() -> list[Cell]:
    """All of them once, from little work to much."""
    found = {Cell(**{**BASE, axis: value}) for axis, values in AXES.items() for value in values}
    return sorted(found, key=lambda c: c.flops)


class Peer:
    """``generate`` in its process; None of it where transformers is not at hand."""

    def __init__(self, python: Path, threads: int, bf16: bool, log: Path) -> None:
        command = [str(python), str(HERE / "transformers_side.py"), "--threads", str(threads)]
        self.process = Contender("transformers", [*command, *(["--bf16"] if bf16 else [])], threads, log)

    def generate(self, cell: Cell, repeat: bool) -> dict[str, Any]:
        return self.process.ask({**asdict(cell), "repeat": repeat})


class Ours:
    """Triloop's rollout, in this process."""

    def __init__(self, cell: Cell, threads: int, precision: str) -> None:
        case = Case(name="rollout", **asdict(cell), threads=threads, precision=precision)
        self.rollout = Rollout(case)
        reset_peak()

    def generate(self) -> dict[str, Any]:
        return {"seconds": self.rollout.work(1)[0]["rollout"], "peak_memory_bytes": peak_bytes()}


def measure(cell: Cell, peer: Peer | None, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides twice, in turns, after nothing: the faster of two runs leaves the start of the first out."""
    ours, mine, theirs, others = Ours(cell, options.threads, options.precision), [], [], Others()
    for turn in range(2):
        mine.append(ours.generate())
        if peer is not None:
            theirs.append(peer.generate(cell, repeat=turn > 0))
    found = {**asdict(cell), "parameters": cell.parameters, "triloop": _best(mine), "other_cores": others.cores()}
    if theirs:
        found["transformers"] = _best(theirs)
        # What the other process did is no foreign work: it ran while this one waited.
        own = sum(r["seconds"] for r in theirs) * options.threads
        wall = own / options.threads + sum(r["seconds"] for r in mine)
        found["other_cores"] = max(0.0, found["other_cores"] - own / wall)
    return found


def _best(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "seconds": min(r["seconds"] for r in runs),
        "seconds_each": [round(r["seconds"], 4) for r in runs],
        "peak_memory_bytes": max(r["peak_memory_bytes"] for r in runs),
    }


def run(options: argparse.Namespace, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Measure what is missing, writing after every cell."""
    done, skipped = _kept(options.out, facts), []
    end, paces = time.monotonic() + 60 * options.minutes, [0.0, *_paces(done)]
    with tempfile.TemporaryDirectory() as folder:
        peer = None
        if options.python.exists():
            peer = Peer(options.python, options.threads, facts["precision"] == "bf16", Path(folder) / "log")
        for cell in cells():
            if cell.key in done:
                continue
            left = end - time.monotonic()
            expected = 1.3 * cell.flops * max(paces[-3:])  # the slowest of late: caches are outgrown, neighbours come
            if left <= 0 or expected > left:
                skipped.append({**asdict(cell), "expected_seconds": round(expected)})
                continue
            note(f"{cell.key}: about {expected:.0f} s of {left:.0f} s left")
            t0 = time.monotonic()
            done[cell.key] = measure(cell, peer, options)
            paces.append((time.monotonic() - t0) / cell.flops)
            write(options.out, _result(facts, done, skipped))
        if peer is not None:
            peer.process.close()
    return _result(facts, done, skipped)


def _paces(done: Mapping[str, Any]) -> list[float]:
    """Seconds for a FLOP of the cells that were measured before, the least work first."""
    found = []
    for cell in cells():
        if cell.key in done:
            sides = (done[cell.key].get(name, {}).get("seconds_each", []) for name in ("triloop", "transformers"))
            found.append(sum(map(sum, sides)) / cell.flops)
    return found


def _result(facts: Mapping[str, Any], done: Mapping[str, Any], skipped: Sequence[Any]) -> dict[str, Any]:
    return {**facts, "cells": dict(done), "skipped": list(skipped), "slopes": slopes(done)}


def _kept(out: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier call measured with the same machine, code and settings."""
    try:
        before = json.loads((out / "scaling.json").read_text())
    except (OSError, ValueError):
        return {}
    same = all(before.get(name) == facts[name] for name in ("machine", "code", "threads", "precision"))
    return dict(before["cells"]) if same else {}


def curve(done: Mapping[str, Mapping[str, Any]], axis: str, side: str) -> list[tuple[float, float]]:
    """(value, seconds) along one axis, the others at their base."""
    found = []
    for value in AXES[axis]:
        cell = Cell(**{**BASE, axis: value})
        measured = done.get(cell.key, {}).get(side)
        if measured is not None:
            found.append((float(cell.parameters if axis == "size" else value), measured["seconds"]))
    return found


def slopes(done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Over the whole range, and of its last step."""
    return {
        axis: {
            side: {"all": slope(points), "last": slope(points[-2:])}
            for side in ("triloop", "transformers")
            if (points := curve(done, axis, side))
        }
        for axis in AXES
    }


def write(out: Path, result: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "scaling.md").write_text(page(result))
    panels = [
        Panel(
            title=TITLES[axis],
            x=TITLES[axis].lower(),
            y="seconds of a rollout",
            curves=[(side, curve(result["cells"], axis, side)) for side in ("triloop", "transformers")],
        )
        for axis in AXES
    ]
    (out / "scaling.svg").write_text(picture(panels))


def page(r: Mapping[str, Any]) -> str:
    """The tables."""
    lines = [
        "# How the time of a rollout grows",
        "",
        "Written by `python benchmarks/scaling.py`, whose text says how.",
        "",
    ]
    lines += ["![Seconds of a rollout against parameters, batch, length and vocabulary](scaling.svg)", ""]
    told = {**r["machine"], **{k: r[k] for k in ("date", "code", "threads", "precision", "versions")}}
    lines += [f"- {k}: {', '.join(v) if isinstance(v, list) else v}" for k, v in told.items()]
    base = ", ".join(f"{k} {v}" for k, v in BASE.items())
    lines += ["", f"Each table varies one of: {base}. Slopes are of log seconds against log size: 1 is proportional."]
    for axis, title in TITLES.items():
        rows = [_row(r["cells"][key], axis) for v in AXES[axis] if (key := Cell(**{**BASE, axis: v}).key) in r["cells"]]
        if rows:
            head = [title.lower(), "triloop s", "tokens/s", "MiB", "generate s", "MiB", "times faster", "others"]
            lines += ["", f"## {title}", "", table(rows, head, markdown=True), ""]
            lines += [_told(side, found) for side, found in r["slopes"][axis].items()]
    if r["skipped"]:
        names = ", ".join(f"{TITLES[a].lower()} {c[a]}" for c in r["skipped"] for a in AXES if c[a] != BASE[a])
        lines += ["", f"Left out for lack of time: {names}."]
    return "\n".join(lines) + "\n"


def _told(side: str, found: Mapping[str, float | None]) -> str:
    whole, last = (f"{found[k]:.2f}" if found[k] is not None else "unknown" for k in ("all", "last"))
    return f"- {side}: slope {whole}, over the last step {last}"


def _row(cell: Mapping[str, Any], axis: str) -> list[object]:
    ours, theirs = cell["triloop"], cell.get("transformers", {})
    name = f"{cell['size']} ({short(cell['parameters'])})" if axis == "size" else cell[axis]
    speed = cell["batch"] * cell["length"] / ours["seconds"]
    memory = [x["peak_memory_bytes"] / 2**20 if x else None for x in (ours, theirs)]
    ratio = theirs["seconds"] / ours["seconds"] if theirs else None
    return [name, ours["seconds"], speed, memory[0], theirs.get("seconds"), memory[1], ratio, cell["other_cores"]]


def facts_of(options: argparse.Namespace) -> dict[str, Any]:
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    code = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "code": code or "unknown",
        "threads": options.threads,
        "precision": {"torch.float32": "fp32", "torch.bfloat16": "bf16"}[str(pick_precision(options.precision))],
        "versions": f"torch {torch.__version__}",
    }


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, default=Path("docs/proof/scaling"), help="folder [docs/proof/scaling]")
    ap.add_argument("--minutes", type=float, default=10.0, help="about how long it may take [10]")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of both sides")
    ap.add_argument("--python", type=Path, default=HERE / ".trl-venv" / "bin" / "python", help="one with transformers")
    options = ap.parse_args()
    torch.set_num_threads(options.threads)
    result = run(options, facts_of(options))
    write(options.out, result)
    for axis, found in result["slopes"].items():
        note(f"{axis}: " + "; ".join(_told(side, s)[2:] for side, s in found.items()))
    if result["skipped"]:
        note(f"left out for lack of time: {len(result['skipped'])} cells; run it again to go on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
