"""A run killed by kill -9 at random moments, and resumed each time, ends as the run that nobody killed: byte for byte.

    python proofs/kill.py [--kills 50] [--threads 2] [--seed 0]

Runs of the recipe ``arithmetic``, made short, are started; each is killed up to five times, at moments drawn between
nothing and the length of a whole run's work, and resumed; then it is let come to its end. Compared with the uninterrupted
run: SHA-256 of the final weights, digest of the store, scores, verdicts. Rows that were in the log at a death, and rounds
that the run had told its watcher of, must all be there in the end. Writes docs/proof/kill.md and kill.json; the exit code
is 1 when anything differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triloop import rng
from triloop.loops.config import RunConfig
from triloop.loops.progress import Silent
from triloop.recipes.table import RECIPES
from triloop.records import Verdict

ROOT = Path(__file__).resolve().parents[1]
COMPARED = ("weights_sha256", "store_digest", "rounds", "eval_before", "eval_after", "guards", "metrics_last")
LIVES = 6
"""Most lives of one run: up to five deaths, and the life in which it is left alone."""


def config(threads: int) -> RunConfig:
    """The recipe with all its parts at work and few rounds."""
    return dataclasses.replace(
        RECIPES["arithmetic"].config(),
        rounds=8,
        prompts_per_round=24,
        eval_n=128,
        eval_every=3,
        eval_mid_n=64,
        canary_every=2,
        canary_n=64,
        checkpoint_every=3,
        threads=threads,
    )


class Told(Silent):
    """Writes down, outside the run, each round that the run has called done."""

    def __init__(self, out: Path) -> None:
        self._file = out.with_suffix(".told").open("a")

    def round(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict]) -> None:
        self._file.write(f"{int(metrics['round'])}\n")
        self._file.flush()


def life(out: Path, threads: int) -> None:
    """What a child does: start the run or go on with it, and say what came of it."""
    from triloop.loops.run import resume, start
    from triloop.store.database import is_finished

    out.with_suffix(".born").touch()
    done = resume(out, Told(out)) if is_finished(out / "run.db") else start(config(threads), out, Told(out))
    out.with_suffix(".json").write_text(json.dumps(done))


def live(out: Path, threads: int, seconds: float | None) -> bool:
    """One life, ended by kill -9 after so many seconds of work; whether it was killed before it came to its end."""
    command = [sys.executable, str(Path(__file__).resolve()), "--life", str(out), "--threads", str(threads)]
    born = out.with_suffix(".born")
    born.unlink(missing_ok=True)
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not born.exists() and child.poll() is None:
        time.sleep(0.005)  # to load torch is no moment of a run
    try:
        _, said = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.communicate()
        return True
    if child.returncode:
        sys.exit(f"a life of {out.name} failed:\n{said.decode()}")
    return False


def rows(out: Path) -> set[tuple[str, str]]:
    """(id, hash) of every row in the log, of either state; what happened to the machine is none of the run's."""
    if not (out / "run.db").exists():
        return set()
    connection = sqlite3.connect(f"file:{out / 'run.db'}?mode=ro", uri=True)
    try:
        return set(connection.execute("SELECT id, hash FROM events WHERE kind NOT IN ('event', 'timing')"))
    except sqlite3.OperationalError:  # killed before the tables were made
        return set()
    finally:
        connection.close()


def reached(out: Path) -> str:
    """How far a killed run had come, in words."""
    if not (out / "run.db").exists():
        return "no folder yet"
    connection = sqlite3.connect(f"file:{out / 'run.db'}?mode=ro", uri=True)
    try:
        (round,) = connection.execute("SELECT max(round) FROM events WHERE kind = 'metrics'").fetchone()
        (safe,) = connection.execute("SELECT max(round) FROM checkpoints").fetchone()
    except sqlite3.OperationalError:
        return "an empty folder"
    finally:
        connection.close()
    if safe is None:
        return "before the first checkpoint"
    return f"round {1 + (round or 0)}, checkpoint {safe}"


def trial(out: Path, whole: Mapping[str, Any], moments: Sequence[float], threads: int) -> dict[str, Any]:
    """Kill one run at these moments of its lives, let it finish, and compare."""
    seen: set[tuple[str, str]] = set()
    deaths: list[str] = []
    for seconds in moments:
        if not live(out, threads, seconds):
            break
        deaths.append(f"{seconds:.2f} s: {reached(out)}")
        seen |= rows(out)
    live(out, threads, None)
    told = {int(line) for line in out.with_suffix(".told").read_text().split()}
    left = rows(out)
    kept = {int(id.rpartition("/")[2]) for id, _ in left if id.startswith("metrics/")}
    end = json.loads(out.with_suffix(".json").read_text())
    return {
        "deaths": deaths,
        "differs": [name for name in COMPARED if end[name] != whole[name]],
        "rows_lost": len(seen - left),
        "rounds_lost": sorted(told - kept),
    }


def machine() -> dict[str, Any]:
    """Date and hardware."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def prove(kills: int, threads: int, seed: int) -> dict[str, Any]:
    """All trials."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        live(root / "whole", threads, None)
        length = time.time() - (root / "whole.born").stat().st_mtime
        whole = json.loads((root / "whole.json").read_text())
        trials: list[dict[str, Any]] = []
        while (left := kills - sum(len(t["deaths"]) for t in trials)) > 0:
            draw = rng.generator(seed, "kill", len(trials))
            wanted = min(left, int(draw.integers(1, LIVES)))
            moments = np.sort(draw.random(wanted) * length)[::-1].tolist()  # the later, the less is left to kill
            trials.append(trial(root / f"run{len(trials)}", whole, moments, threads))
            dead = sum(len(t["deaths"]) for t in trials)
            print(
                f"run {len(trials)}: {trials[-1]}  ({dead}/{kills} kills, {time.monotonic() - began:.0f} s)", flush=True
            )
    bad = [t for t in trials if t["differs"] or t["rows_lost"] or t["rounds_lost"]]
    return {
        "claim": "killed and resumed equals uninterrupted, byte for byte; no acknowledged row is lost",
        "holds": not bad,
        "kills": sum(len(t["deaths"]) for t in trials),
        "runs": len(trials),
        "runs_that_differ": len(bad),
        "threads": threads,
        "seed": seed,
        "seconds_of_a_whole_run": round(length, 1),
        "seconds": round(time.monotonic() - began),
        "machine": machine(),
        "uninterrupted": {name: whole[name] for name in COMPARED[:5]},
        "trials": trials,
    }


def page(result: Mapping[str, Any]) -> str:
    """The proof for people."""
    m, whole = result["machine"], result["uninterrupted"]
    word = "Holds" if result["holds"] else "DOES NOT HOLD"
    same = result["runs"] - result["runs_that_differ"]
    lines = [
        "# Killed and resumed equals uninterrupted",
        "",
        f"**{word}.** {result['kills']} kills by SIGKILL at random moments, in {result['runs']} runs, each resumed after "
        f"every death: {same} of {result['runs']} ended with the weights, the store digest, the scores and the verdicts of "
        f"the run that nobody killed. Rows lost: {sum(t['rows_lost'] for t in result['trials'])}.",
        "",
        f"`python proofs/kill.py --kills {result['kills']} --threads {result['threads']} --seed {result['seed']}`, "
        f"{m['date']}: {m['processor']}, {m['cores']} cores, {m['system']}, Python {m['python']}, torch {m['torch']}; "
        f"{result['seconds']} s in all, {result['seconds_of_a_whole_run']} s for a whole run, of the recipe `arithmetic` "
        f"with {whole['rounds']} rounds and a checkpoint every third.",
        "",
        f"- weights SHA-256 `{whole['weights_sha256']}`",
        f"- store digest `{whole['store_digest']}`",
        "",
        "| run | deaths: when in the life, and how far the run had come | equal | rows lost |",
        "| --- | --- | --- | --- |",
    ]
    for i, t in enumerate(result["trials"], start=1):
        equal = "yes" if not t["differs"] else f"no: {', '.join(t['differs'])}"
        lines.append(f"| {i} | {'; '.join(t['deaths']) or 'ended before the kill'} | {equal} | {t['rows_lost']} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "proof")
    parser.add_argument("--life", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.life is not None:
        life(args.life, args.threads)
        return 0
    result = prove(args.kills, args.threads, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "kill.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "kill.md").write_text(page(result))
    said = "holds" if result["holds"] else "DOES NOT HOLD"
    print(f"{said}: {result['kills']} kills, {result['runs']} runs, {result['seconds']} s")
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
