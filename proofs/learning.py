"""Do the recipes learn, seed after seed? Held-out pass@1 before and after, and the gain paired by problem.

    python proofs/learning.py [--recipes demo arithmetic countdown] [--seeds 0 1 2] [--policy DIR] [--precision bf16]

Each recipe runs as ``triloop run RECIPE --seed S`` does. Before and after are judged on the same held-out problems, so
the gain's interval is a paired bootstrap over problems; the rule is that its lower end exceeds 0 for every seed.
``story-rules`` and ``story-hack`` need ``--policy``; the latter is to be stopped by a guard. Writes docs/proof/learning.md
and learning.json, where the results of other recipes, and of other precisions of matrix products, stay as they were.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

from triloop import stats
from triloop.errors import GuardStop
from triloop.loops.run import start
from triloop.recipes.table import RECIPES
from triloop.store.run import Run

ROOT = Path(__file__).resolve().parents[1]


def passes(run: Run, round: int) -> dict[str, float]:
    """Prompt -> whether its evaluation sample of this round passed."""
    return {e.prompt.id: float((e.feedback[0].value or 0) > 0) for e in run.episodes(round, purpose="eval")}


def label(recipe: str, precision: str) -> str:
    """Of a row: the recipe, and the precision unless it is the usual one."""
    return recipe if precision == "fp32" else f"{recipe} in {precision}"


def once(recipe: str, seed: int, policy: str | None, threads: int, precision: str) -> dict[str, Any]:
    """One run, and what came of it."""
    config = dataclasses.replace(RECIPES[recipe].config(), seed=seed, threads=threads, precision=precision)
    if policy and not config.policy:
        config = dataclasses.replace(config, policy=policy)
    with tempfile.TemporaryDirectory() as folder:
        stopped = ""
        try:
            start(config, Path(folder) / "run")
        except GuardStop as stop:
            stopped = str(stop).split(". Nothing is lost")[0]
        with Run.open(Path(folder) / "run", write=False) as run:
            last = max(run.rounds())
            before, after = passes(run, 0), passes(run, last)
            metrics, seconds = run.metrics(), sum(t["seconds"] for t in run.timings())
    both = [p for p in before if p in after]
    gain = stats.paired_difference([after[p] for p in both], [before[p] for p in both], seed=0)
    return {
        "recipe": label(recipe, precision),
        "seed": seed,
        "before": sum(before.values()) / len(before),
        "after": sum(after.values()) / len(after),
        "gain": [gain.value, gain.low, gain.high],
        "n": len(both),
        "rounds": last,
        "seconds": round(seconds, 1),
        "perplexity": [metrics[0].get("ppl_original"), metrics[-1].get("ppl_original")],
        "highest_reward": max(m["reward"] for m in metrics),
        "stopped": stopped,
    }


def page(facts: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Learning, seed by seed",
        "",
        f"Made by `python proofs/learning.py` (stories: with `--policy`) on {facts['date']}, {facts['machine']}. "
        "Gain: paired bootstrap, 95 %.",
        "",
        "| recipe | seed | before | after | gain | n | rounds | s | perplexity under the original | stopped |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in facts["runs"]:
        value, low, high = r["gain"]
        drift = " to ".join("–" if x is None else f"{x:.2f}" for x in r["perplexity"])
        lines.append(
            f"| {r['recipe']} | {r['seed']} | {r['before']:.3f} | {r['after']:.3f} "
            f"| {value:+.3f} [{low:+.3f}, {high:+.3f}] | {r['n']} | {r['rounds']} "
            f"| {r['seconds']:.0f} | {drift} | {r['stopped'] or '–'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=["demo", "arithmetic", "countdown"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--policy", help="for recipes that bring none")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "proof")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file, labels = args.out / "learning.json", [label(r, args.precision) for r in args.recipes]
    before = json.loads(file.read_text())["runs"] if file.exists() else []
    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, threads {args.threads or 'by the size of the policy'}",
        "runs": [r for r in before if r["recipe"] not in labels],
    }
    for recipe in args.recipes:
        for seed in args.seeds:
            facts["runs"].append(once(recipe, seed, args.policy, args.threads, args.precision))
            print(json.dumps(facts["runs"][-1]), flush=True)
            file.write_text(json.dumps(facts, indent=1) + "\n")
            (args.out / "learning.md").write_text(page(facts))
    new = [r for r in facts["runs"] if r["recipe"] in labels]
    healthy = [r for r in new if not r["recipe"].startswith("story-hack")]
    hacks = [r for r in new if r["recipe"].startswith("story-hack")]
    return int(any(r["gain"][1] <= 0 for r in healthy) or any(not r["stopped"] for r in hacks))


if __name__ == "__main__":
    raise SystemExit(main())
