"""Does RLHF improve a real pre-trained model by a learned reward, on held-out gold, without leaving that model far behind?

    python proofs/stories_rlhf.py [--policy DIR] [--seeds 0 1 2] [--no-kills]

``triloop run rlhf --policy DIR --seed S``, as the command line makes it, on one thread. The policy never sees the rules:
simulated people see them, compare two stories, and a reward model learns from no more than these comparisons. The rule,
set before the runs: for every seed the whole 95 % interval of the gain in gold, paired by held-out opening, lies above 0,
and the policy stays within 0.5 nats a token of the model that it started from. Seed 0 is run once more and killed (SIGKILL)
when the last round of stages has been stored; weights and store digest must come out the same. Writes
docs/proof/rlhf_stories.md and rlhf_stories.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes import ROOT, config_of, killed_at_stages, processor
from triloop import stats
from triloop.envs.story import RULES
from triloop.errors import GuardStop
from triloop.loops.build import load_policy
from triloop.loops.run import start
from triloop.records import Episode
from triloop.store.run import Run

STORIES = ROOT.parent / "shared" / "data" / "models" / "stories260K"
OUT = ROOT / "docs" / "proof" / "rlhf_stories.json"
MOST_DRIFT = 0.5
"""Nats a token between the policy and the model that it started from."""
_SHOWN = 3
"""Openings whose stories the page shows."""


def once(seed: int, policy: str, kills: bool) -> dict[str, Any]:
    """One run and what came of it."""
    config = config_of("rlhf", seed, policy)
    with tempfile.TemporaryDirectory() as folder:
        path, stopped, summary = Path(folder) / "run", "", dict[str, Any]()
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            summary = start(config, path)
        except GuardStop as stop:
            stopped = str(stop).split(". Nothing is lost")[0]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        with Run.open(path, write=False) as run:
            before, after = (run.episodes(r, purpose="eval") for r in (0, max(run.rounds())))
            metrics = run.metrics()
        again = killed_at_stages(config, Path(folder) / "killed", summary) if kills and summary else None
    original = load_policy(config).frozen()
    first, last = ({e.prompt.id: e for e in es} for es in (before, after))
    both = [(held(first[p]), held(last[p])) for p in first if p in last]
    gain = stats.paired_difference([b for _, b in both], [a for a, _ in both], seed=0)
    drift = kl(original, after)
    return {
        "seed": seed,
        "n": len(both),
        "before": share(before),
        "after": share(after),
        "gain": [gain.value, gain.low, gain.high],
        "rules": {r: [part(before, r), part(after, r)] for r in RULES},
        "perplexity": [perplexity(original, before), perplexity(original, after)],
        "kl": drift,
        "length": [float(np.mean([len(e.completion.tokens) for e in es])) for es in (before, after)],
        "generations": generations(metrics),
        "judgements": int(sum(m.get("judgements", 0.0) for m in metrics)),
        "seconds": wall,
        "processor_seconds": cpu,
        "stopped": stopped,
        "holds": gain.low > 0 and drift < MOST_DRIFT and not stopped,
        "killed": again,
        "stories": [[e.prompt.text, e.completion.text, last[e.prompt.id].completion.text] for e in before[:_SHOWN]],
    }


def held(e: Episode) -> float:
    """1 where every rule holds."""
    return float((e.reward or 0.0) > 0)


def share(episodes: Sequence[Episode]) -> list[float]:
    """Of stories that keep every rule, with Wilson's interval."""
    found = stats.wilson(int(sum(map(held, episodes))), len(episodes))
    return [found.value, found.low, found.high]


def part(episodes: Sequence[Episode], rule: str) -> float:
    """Share of the stories that keep one rule."""
    return float(np.mean([e.feedback[0].breakdown[rule] for e in episodes]))


def kl(original: Any, episodes: Sequence[Episode]) -> float:
    """KL(policy || original), nats a token, from the policy's own held-out samples: the mean of log ratios."""
    ours = np.concatenate([np.asarray(e.completion.logps) for e in episodes])
    return float(np.mean(ours - _under(original, episodes)))


def perplexity(original: Any, episodes: Sequence[Episode]) -> float:
    """Of the samples under the model that the run started from."""
    return float(np.exp(-_under(original, episodes).mean()))


def _under(original: Any, episodes: Sequence[Episode]) -> Any:
    items = [(e.completion.prompt_tokens, e.completion.tokens) for e in episodes]
    return np.concatenate(original.logprobs(items))


def generations(metrics: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Of each generation: pairs that people could not decide, the reward model's accuracy on pairs that it had not seen,
    what it paid in the last round, and gold on the canary prompts of the gate."""
    names = {
        "undecided": "undecided",
        "accuracy": "reward_model_held_accuracy",
        "paid": "reward",
        "kl": "kl",
        "gate": "gate_value",
        "accepted": "gate_accepted",
    }
    found: dict[int, dict[str, float]] = {}
    for m in metrics:
        here = found.setdefault(int(m["generation"]), {})
        here |= {short: m[name] for short, name in names.items() if name in m}
    return [found[g] for g in sorted(found) if g > 0]


def page(rows: Sequence[Mapping[str, Any]], made: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "# RLHF on a real pre-trained model",
        "",
        f"`python proofs/stories_rlhf.py`, {made['date']}, {made['processor']}, one thread a run. `triloop run rlhf "
        f"--policy {made['policy']} --seed S`: people (simulated, 5 % of their answers turned round) compare two stories "
        "by how many of the six rules they keep; a reward model that starts from the policy's weights learns from these "
        "pairs alone; RL follows it, and both are refreshed in each generation. Gold is the share of held-out openings "
        "whose story keeps all six rules, checked by program. The rule, set before the runs: the whole 95 % interval of "
        f"the gain, paired by opening, above 0, and KL to the start below {MOST_DRIFT} nats a token, for every seed.",
        "",
        "| seed | gold before | gold after | gain, paired | n | KL, nats a token | perplexity under the start | tokens | "
        "pairs | seconds (processor) | holds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        before, after, gain = (_interval(r[k]) for k in ("before", "after", "gain"))
        lines.append(
            f"| {r['seed']} | {before} | {after} | {gain} | {r['n']} | {r['kl']:.2f} | {r['perplexity'][0]:.2f} to "
            f"{r['perplexity'][1]:.2f} | {r['length'][0]:.0f} to {r['length'][1]:.0f} | {r['judgements']:,} | "
            f"{r['seconds']:.0f} ({r['processor_seconds']:.0f}) | {'yes' if r['holds'] else 'NO ' + r['stopped']} |"
        )
    lines += [
        "",
        "Each rule, before and after:",
        "",
        f"| seed | {' | '.join(RULES)} |",
        "| --- " * (len(RULES) + 1) + "|",
    ]
    lines += [
        f"| {r['seed']} | {' | '.join(f'{a:.2f} to {b:.2f}' for a, b in (r['rules'][k] for k in RULES))} |"
        for r in rows
    ]
    lines += [
        "",
        "By generation: pairs that people could not decide, the reward model's accuracy on decided pairs of held-out "
        "prompts, what it paid (-1 to 1) and KL in the last round of RL, and gold at the gate, which puts back a "
        "generation that is worse than the last accepted one with 95 % confidence.",
        "",
        "| seed | generation | undecided | accuracy | paid | KL | gate | accepted |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        for g, seen in enumerate(r["generations"], start=1):
            told = [f"{seen[k]:.2f}" if k in seen else "" for k in ("undecided", "accuracy", "paid", "kl", "gate")]
            lines.append(f"| {r['seed']} | {g} | {' | '.join(told)} | {'yes' if seen.get('accepted', 1.0) else 'no'} |")
    lines += ["", *_resumed(rows), "", *_shown(rows[0])]
    return "\n".join(lines) + "\n"


def _interval(x: Sequence[float]) -> str:
    return f"{x[0]:.3f} ({x[1]:.3f} to {x[2]:.3f})"


def _resumed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"Seed {r['seed']}, run again, killed with SIGKILL {r['killed']['kills']} times where a stage ends and resumed: "
        f"{'the same weights and store, byte for byte' if r['killed']['same'] else 'NOT THE SAME ' + str(r['killed'])}."
        for r in rows
        if r["killed"]
    ]


def _shown(row: Mapping[str, Any]) -> list[str]:
    lines = [f"The first {len(row['stories'])} held-out openings of seed {row['seed']}, and their stories:", ""]
    for opening, before, after in row["stories"]:
        told = [f"**{opening}**", f"before: {before.strip()}", f"after: {after.strip()}"]
        lines += ["- " + "<br>".join(" ".join(t.split()) for t in told)]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default=str(STORIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--no-kills", action="store_true")
    args = parser.parse_args()
    if not Path(args.policy).exists():
        print(f"{args.policy} is not there; give a model directory with --policy", file=sys.stderr)
        return 0
    for seed in args.seeds:
        row = once(seed, args.policy, seed == args.seeds[0] and not args.no_kills)
        print(f"seed {seed}: {row['before'][0]:.3f} to {row['after'][0]:.3f}, KL {row['kl']:.2f}", file=sys.stderr)
        kept = {r["seed"]: r for r in json.loads(OUT.read_text())["rows"]} if OUT.exists() else {}
        kept[seed] = row
        made = {
            "date": datetime.date.today().isoformat(),
            "processor": processor(),
            "policy": Path(args.policy).name,
        }
        rows = [kept[s] for s in sorted(kept)]
        OUT.write_text(json.dumps({"made": made, "rows": rows}, indent=1) + "\n")
        OUT.with_suffix(".md").write_text(page(rows, made))
    return 0 if all(kept[s]["holds"] and (kept[s]["killed"] or {"same": True})["same"] for s in args.seeds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
