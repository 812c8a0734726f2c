"""Do the recipes of the loop over mixed feedback improve a policy, seed after seed, and survive death at every stage?

    python proofs/recipes.py [--recipes rlhf constitutional ...] [--seeds 0 1 2] [--policy DIR] [--no-kills]

Each recipe runs as ``triloop run RECIPE --seed S`` does, on one thread. The rule: the held-out score after lies above the
one before, by a bootstrap paired on the same problems, whole 95 % interval, for every seed. Seed 0 is run once more and
killed (SIGKILL) when the last round of each stage has been stored; weights and store digest must come out the same.
``--policy`` runs ``rlhf`` from a model directory of one's own. Writes docs/proof/recipes.md and recipes.json, where the
results of other recipes stay as they were.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triloop import stats
from triloop.cli import targets
from triloop.errors import GuardStop
from triloop.loops.config import RunConfig
from triloop.loops.progress import Silent
from triloop.loops.run import resume, start
from triloop.loops.stages import plan
from triloop.records import Verdict
from triloop.store.run import Run

ROOT = Path(__file__).resolve().parents[1]
RECIPES = (
    *("rlhf", "constitutional", "online-ai-feedback", "spin", "feedback-conditional"),
    *("user-reactions", "routed-feedback", "multi-domain", "hero", "densities", "learned-judge"),
)
_FREQUENT = 8
"""Stage ends at which a run of many short stages is killed."""


class Deadly(Silent):
    """Dies when this round has been stored."""

    def __init__(self, round: int) -> None:
        self._round = round

    def round(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict]) -> None:
        if int(metrics["round"]) == self._round:
            os.kill(os.getpid(), signal.SIGKILL)


def config_of(recipe: str, seed: int, policy: str | None) -> RunConfig:
    """As the command line makes it."""
    settings = {"policy": policy} if policy else {}
    return dataclasses.replace(targets.load(recipe, settings), seed=seed, threads=1, **settings)


def values(run: Run, round: int) -> dict[str, float]:
    """Problem -> gold value of its held-out sample; a condition in the prompt does not make it another problem."""
    return {e.prompt.id.split("|")[0]: float(e.reward or 0.0) for e in run.episodes(round, purpose="eval")}


def once(recipe: str, seed: int, policy: str | None, kills: bool) -> dict[str, Any]:
    """One run, what came of it, and of the same one killed at every stage's end."""
    config = config_of(recipe, seed, policy)
    with tempfile.TemporaryDirectory() as folder:
        path, stopped, began = Path(folder) / "run", "", time.perf_counter()
        try:
            summary = start(config, path)
        except GuardStop as stop:
            stopped, summary = str(stop).split(". Nothing is lost")[0], {}
        seconds = time.perf_counter() - began
        with Run.open(path, write=False) as run:
            last = max(run.rounds())
            before, after, metrics = values(run, 0), values(run, last), run.metrics()
            cost = sum(m.get("cost", 0.0) for m in metrics)
            judgements = int(sum(m.get("judgements", 0.0) for m in metrics))
            drift = [m["kl"] for m in metrics if "kl" in m][-1:]
        both = [p for p in before if p in after]
        gain = stats.paired_difference([after[p] for p in both], [before[p] for p in both], seed=0)
        killed = killed_at_stages(config, Path(folder) / "killed", summary) if kills and summary else None
    return {
        "recipe": recipe if policy is None else f"{recipe} --policy {Path(policy).name}",
        "seed": seed,
        "before": sum(before.values()) / len(before),
        "after": sum(after.values()) / len(after),
        "n": len(both),
        "gain": gain.value,
        "ci95": [gain.low, gain.high],
        "holds": gain.low > 0 and not stopped,
        "stopped": stopped,
        "judgements": judgements,
        "cost": cost,
        "kl": drift[0] if drift else None,
        "seconds": seconds,
        "killed": killed,
    }


def killed_at_stages(config: RunConfig, path: Path, whole: Mapping[str, Any]) -> dict[str, Any]:
    ends = [i + 1 for i, s in enumerate(plan(config.cycle, config.generations, config.rounds)) if s.last]
    ends = ends[:: max(1, len(ends) // _FREQUENT)]
    for k, end in enumerate(ends):
        code = _forked(config, path, end, first=k == 0)
        if code != -signal.SIGKILL:
            return {"kills": k, "same": False, "why": f"was not killed at round {end}: exit code {code}"}
    again = resume(path)
    same = all(again[k] == whole[k] for k in ("weights_sha256", "store_digest", "eval_after"))
    return {"kills": len(ends), "same": same}


def _forked(config: RunConfig, path: Path, end: int, *, first: bool) -> int:
    child = os.fork()
    if child == 0:
        try:
            start(config, path, Deadly(end)) if first else resume(path, Deadly(end))
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def page(rows: Sequence[Mapping[str, Any]], made: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Recipes of the loop over mixed feedback",
        "",
        f"`python proofs/recipes.py`, {made['date']}, {made['processor']}, one thread a run. Gold on held-out problems "
        "before and after (attributes: mean utility, -1 to 1; stories: +1 where all rules hold, else -1; multi-domain: +1 "
        "right, -1 wrong, 0 abstained); the gain is paired by problem, with a 95 % bootstrap "
        "interval. The rule: its lower end lies above 0, for every seed.",
        "",
        "| recipe | seed | before | after | gain | 95 % | n | judgements | KL | seconds | holds | killed at stage ends |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        kl = "" if r["kl"] is None else f"{r['kl']:.2f}"
        killed = (
            ""
            if not r["killed"]
            else f"{r['killed']['kills']}, {'same bytes' if r['killed']['same'] else 'NOT THE SAME'}"
        )
        lines.append(
            f"| {r['recipe']} | {r['seed']} | {r['before']:.3f} | {r['after']:.3f} | {r['gain']:+.3f} | "
            f"{r['ci95'][0]:+.3f} to {r['ci95'][1]:+.3f} | {r['n']} | {r['judgements']:,} | {kl} | {r['seconds']:.0f} | "
            f"{'yes' if r['holds'] else 'NO ' + r['stopped']} | {killed} |"
        )
    return "\n".join(lines) + "\n"


def processor() -> str:
    """Its name, where the system tells."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.machine())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--policy", help="model directory, for rlhf")
    parser.add_argument("--no-kills", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        row = once(args.recipes[0], args.seeds[0], args.policy, not args.no_kills)
        print(json.dumps(row))
        return 0
    out = ROOT / "docs" / "proof" / "recipes.json"
    kept = json.loads(out.read_text())["rows"] if out.exists() else []
    jobs = [(r, s) for r in args.recipes for s in args.seeds]
    fresh: list[dict[str, Any]] = []
    for pair in (jobs[i : i + 2] for i in range(0, len(jobs), 2)):  # two at a time, a process each
        running = [subprocess.Popen(_command(args, *job), stdout=subprocess.PIPE, text=True) for job in pair]
        for job, process in zip(pair, running, strict=True):
            text, _ = process.communicate()
            if process.returncode:
                raise SystemExit(f"{job} failed with exit code {process.returncode}")
            fresh.append(json.loads(text.strip().splitlines()[-1]))
            print(f"{job[0]} seed {job[1]}: {fresh[-1]['before']:.3f} to {fresh[-1]['after']:.3f}", file=sys.stderr)
        _write(out, fresh, kept)
    good = all(r["holds"] and (not r["killed"] or r["killed"]["same"]) for r in fresh)
    return 0 if good else 1


def _write(out: Path, fresh: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]]) -> None:
    done = {(r["recipe"], r["seed"]) for r in fresh}
    every = [*fresh, *(r for r in kept if (r["recipe"], r["seed"]) not in done)]
    rows = sorted(every, key=lambda r: (r["recipe"], r["seed"]))
    made = {"date": datetime.date.today().isoformat(), "processor": processor()}
    out.write_text(json.dumps({"made": made, "rows": rows}, indent=1) + "\n")
    out.with_suffix(".md").write_text(page(rows, made))


def _command(args: argparse.Namespace, recipe: str, seed: int) -> list[str]:
    kills = [] if seed == args.seeds[0] and not args.no_kills else ["--no-kills"]
    policy = ["--policy", args.policy] if args.policy else []
    here = [sys.executable, str(Path(__file__).resolve()), "--one"]
    return [*here, "--recipes", recipe, "--seeds", str(seed), *policy, *kills]


if __name__ == "__main__":
    raise SystemExit(main())
