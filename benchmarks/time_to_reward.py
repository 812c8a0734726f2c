"""How long Triloop and TRL's GRPOTrainer take to a mean training reward of 0.6, and whether they learn alike.

    python benchmarks/time_to_reward.py --out docs/proof/time_to_reward.json     about 45 minutes; call again to go on
    python benchmarks/time_to_reward.py --rounds 6 --seeds 0 --rates 1e-4 --threads 1 --out /tmp/try.json

The task, the settings and the two sides are those of ``versus_trl.py``, natural length and exact reward: 32 prompts x 8
completions a round, one AdamW step, from one checkpoint. The problems of a round are the same on both sides, in the same
order, which each run's record shows; seeds differ in the samples and in where they begin in the stream of problems.

With the first seed each side runs at every rate of ``--rates``; the other seeds run at the rate at which the side was
soonest there. Runs of the two sides alternate, each alone on the machine and for all of its ``--rounds``, so that the
curves can be compared. Each finished run is written to ``--out`` at once, and a later call on the same machine keeps it.

Time to the reward: seconds of all rounds, start-up left out, up to the one with which the mean of the last five has it.
Do they agree? At TRL's best rate, over all seeds, in bins of 25 rounds: mean reward of each side with Student's interval
over the seeds; these have to overlap in every bin. The difference, paired by seed, stands beside them. Triloop's guards
watch and may act, as in any run; ``lr_scale`` says whether one did.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import versus_trl as versus
from blocks import Contender

from triloop.bench import column_task as task
from triloop.bench.measuring import machine, median, note, table

WINDOW = 5
"""Rounds whose mean reward counts: 1,280 completions, a standard error of 0.014."""
BIN = 25
OFFSET = 6000
"""Problems between the beginnings of two seeds."""
BLOCK = 25
T975 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t at 97.5 %, by degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """One run of one side."""

    side: str
    seed: int
    rate: float

    @property
    def key(self) -> str:
        return f"{self.side} seed {self.seed} rate {self.rate:g}"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all runs share."""

    checkpoint: Path
    rounds: int
    threads: int
    precision: str
    trl_python: Path
    trl: versus.TrlSetting
    logs: Path

    def start(self, course: Course) -> Contender:
        """The side's process, at the first problem of its seed."""
        about = ["--checkpoint", str(self.checkpoint), "--threads", str(self.threads), "--seed", str(course.seed)]
        about += ["--lr", repr(course.rate), "--offset", str(OFFSET * course.seed % task.TRAIN_COUNT)]
        trl = [str(self.trl_python), str(versus.HERE / "trl_side.py"), *self.trl.flags]
        ours = [sys.executable, str(versus.HERE / "triloop_side.py"), "--precision", self.precision]
        command = [*(trl if course.side == "trl" else ours), *about]
        return Contender(course.side, command, self.threads, self.logs / f"{course.side}.log")

    def run(self, course: Course) -> dict[str, Any]:
        """All rounds of a run. A side that ends before them says why in ``ended``."""
        rounds: list[dict[str, float]] = []
        others: list[float] = []
        ended, facts = "", dict[str, Any]()
        with self.start(course) as side:
            try:
                while len(rounds) < self.rounds:
                    done = side.go(min(BLOCK, self.rounds - len(rounds)))
                    rounds += done["rounds"]
                    others.append(done["other_cores"])
                facts = side.end()
            except RuntimeError as error:
                ended = str(error)
            versions = side.facts["versions"]
        columns = {name: [round(r[name], 5) for r in rounds] for name in ("seconds", "reward", "tokens")}
        kept = {k: facts[k] for k in ("asked", "peak_memory_bytes") if k in facts}
        low = min((r.get("lr_scale", 1.0) for r in rounds), default=1.0)
        return {
            **asdict(course),
            **columns,
            **kept,
            "lr_scale": low,
            "other_cores": others,
            "ended": ended,
            "versions": versions,
        }


# ------------------------------------------------------------------ what a run says


def reached(rewards: Sequence[float], target: float) -> int | None:
    """The first round with which the mean of the last ``WINDOW`` is at least ``target``."""
    ends = range(WINDOW, len(rewards) + 1)
    return next((n for n in ends if statistics.fmean(rewards[n - WINDOW : n]) >= target), None)


def time_to(run: Mapping[str, Any], target: float) -> float | None:
    """Seconds of the rounds up to there; None when the run never came to it."""
    rounds = reached(run["reward"], target)
    return None if rounds is None else sum(run["seconds"][:rounds])


def best_rate(runs: Sequence[Mapping[str, Any]], target: float) -> float:
    """Of the runs of one side and seed: the rate that was soonest there, else the one that came furthest."""

    def order(run: Mapping[str, Any]) -> tuple[float, float]:
        seconds, last = time_to(run, target), run["reward"][-BIN:]
        return (math.inf if seconds is None else seconds, -statistics.fmean(last or [0.0]))

    return float(min(runs, key=order)["rate"])


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and Student's 95 % interval of it; without end for a single value."""
    mean, n = statistics.fmean(values), len(values)
    half = T975[min(n - 1, max(T975))] * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return mean, mean - half, mean + half


def curves(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bin by bin, as far as every run goes: both sides' mean reward and the paired difference, each with its interval."""
    shortest = min(len(r["reward"]) for r in (*ours, *theirs))
    bins = []
    for first in range(0, shortest, BIN):
        part = slice(first, min(first + BIN, shortest))
        a, b = ([statistics.fmean(r["reward"][part]) for r in side] for side in (ours, theirs))
        sides = {
            "triloop": interval(a),
            "trl": interval(b),
            "difference": interval([x - y for x, y in zip(a, b, strict=True)]),
        }
        apart = sides["triloop"][1] > sides["trl"][2] or sides["trl"][1] > sides["triloop"][2]
        bins.append({"first": first + 1, "last": part.stop, **sides, "agree": not apart})
    return bins


# ------------------------------------------------------------------ the whole


def planned(seeds: Sequence[int], rates: Sequence[float], done: Mapping[str, Any], target: float) -> Iterator[Course]:
    """The runs in their order. Looks at what is done by then, to know the best rates."""
    sides = ("triloop", "trl")
    for rate in rates:
        for side in sides:
            yield Course(side=side, seed=seeds[0], rate=rate)
    best = bests(done, seeds[0], rates, target)
    for seed in seeds:
        for rate in dict.fromkeys((best["triloop"], best["trl"])):
            yield Course(side="triloop", seed=seed, rate=rate)
        yield Course(side="trl", seed=seed, rate=best["trl"])


def bests(done: Mapping[str, Any], seed: int, rates: Sequence[float], target: float) -> dict[str, float]:
    """The best rate of each side, by its runs with the first seed."""
    return {
        side: best_rate([done[Course(side=side, seed=seed, rate=r).key] for r in rates], target)
        for side in ("triloop", "trl")
    }


def conclude(done: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Times, ratios and the comparison of the curves."""
    best = bests(done, options.seeds[0], options.rates, options.target)
    at = {s: [done[Course(side=s, seed=n, rate=best[s]).key] for n in options.seeds] for s in best}
    sides = {side: _side(runs, best[side], options.target) for side, runs in at.items()}
    twins = [done[Course(side="triloop", seed=n, rate=best["trl"]).key] for n in options.seeds]
    bins = curves(twins, at["trl"])
    shortest = min(len(r["reward"]) for r in (*twins, *at["trl"]))
    apart = [statistics.fmean(a["reward"][:shortest]) - statistics.fmean(b["reward"][:shortest])
             for a, b in zip(twins, at["trl"], strict=True)]  # fmt: skip
    ratios, at_least = _ratios(at, options.target)
    return {
        "target": options.target,
        **sides,
        "ratio": median(ratios) if ratios else None,
        "ratio_each": ratios,
        "ratio_is_at_least": at_least,
        "ratio_at_one_rate": _one_rate(twins, at["trl"], options.target),
        "curves": bins,
        "difference": interval(apart),
        "agree": all(b["agree"] for b in bins),
        "same_prompts": all(a.get("asked", 0) == b.get("asked", 1) for a, b in zip(twins, at["trl"], strict=True)),
        "other_cores": median([c for runs in at.values() for r in runs for c in r["other_cores"]]),
        "by_rate": _by_rate(done, options),
    }


def _side(runs: Sequence[Mapping[str, Any]], rate: float, target: float) -> dict[str, Any]:
    return {
        "rate": rate,
        "seconds": [time_to(r, target) for r in runs],
        "rounds": [reached(r["reward"], target) for r in runs],
        "seconds_per_round": median([s for r in runs for s in r["seconds"]]),
        "lr_scale": min(r["lr_scale"] for r in runs),
        "ended": [r["ended"] for r in runs],
    }


def _ratios(at: Mapping[str, Sequence[Mapping[str, Any]]], target: float) -> tuple[list[float], bool]:
    """TRL's time over ours, seed by seed where we came there; and whether TRL did not in one of them, whose time is then
    that of its whole run."""
    found, open_end = [], False
    for ours, theirs in zip(at["triloop"], at["trl"], strict=True):
        mine, other = time_to(ours, target), time_to(theirs, target)
        if mine is not None:
            open_end |= other is None
            found.append((sum(theirs["seconds"]) if other is None else other) / mine)
    return found, open_end


def _one_rate(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], target: float) -> float | None:
    ratios, _ = _ratios({"triloop": ours, "trl": theirs}, target)
    return median(ratios) if ratios else None


def _by_rate(done: Mapping[str, Any], options: argparse.Namespace) -> list[list[object]]:
    rows: list[list[object]] = []
    for side in ("triloop", "trl"):
        for rate in options.rates:
            run = done[Course(side=side, seed=options.seeds[0], rate=rate).key]
            last = statistics.fmean(run["reward"][-BIN:])
            rows.append([side, f"{rate:g}", reached(run["reward"], options.target), time_to(run, options.target), last])
    return rows


# ------------------------------------------------------------------ files and words


def facts_of(options: argparse.Namespace, setting: versus.TrlSetting) -> dict[str, Any]:
    """What a run depends on besides its course."""
    about = {"machine": machine(), "threads": options.threads, "precision": options.precision, "rounds": options.rounds}
    return {**about, "trl_setting": setting.name, "checkpoint": options.checkpoint.name}


def kept(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Runs of an earlier call under the same facts."""
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    same = before.get("facts") == json.loads(json.dumps(facts))
    if not same:
        note(f"{path} holds runs of other settings; they are replaced")
    return dict(before["runs"]) if same else {}


def words(result: Mapping[str, Any]) -> list[str]:
    """The outcome in sentences."""
    ours, theirs = result["triloop"], result["trl"]
    if result["ratio"] is None:
        first = "Triloop did not come to the reward."
    else:
        least = "at least " if result["ratio_is_at_least"] else ""
        first = (
            f"Time to a mean reward of {result['target']:g}: {least}{result['ratio']:.2f} times shorter than TRL's "
            f"(by seed {', '.join(f'{r:.2f}' for r in result['ratio_each'])}), each side at its best rate "
            f"({ours['rate']:g} and {theirs['rate']:g}); a round is "
            f"{theirs['seconds_per_round'] / ours['seconds_per_round']:.2f} times shorter."
        )
    mean, low, high = result["difference"]
    agree = "agree" if result["agree"] else "do NOT agree"
    return [
        first,
        f"The curves at rate {theirs['rate']:g} {agree}: Triloop minus TRL is {mean:+.3f} [{low:+.3f}, {high:+.3f}] over "
        f"the run, {sum(b['agree'] for b in result['curves'])} of {len(result['curves'])} bins overlap.",
        f"Same prompts in the same rounds: {'yes' if result['same_prompts'] else 'NO'}. Other processes used "
        f"{result['other_cores']:.2f} cores. Smallest lr_scale of Triloop's guards: {ours['lr_scale']:g}.",
    ]


def tables(result: Mapping[str, Any], *, markdown: bool = False) -> list[str]:
    """Every rate, every seed, every bin."""

    def shown(x: tuple[float, float, float]) -> str:
        return f"{x[0]:.3f} [{x[1]:.3f}, {x[2]:.3f}]"

    rates = table(result["by_rate"], ["system", "rate", "rounds", "seconds", "last reward"], markdown=markdown)
    seeds = [
        [side, i, n, s] for side in ("triloop", "trl")
        for i, (n, s) in enumerate(zip(result[side]["rounds"], result[side]["seconds"], strict=True))
    ]  # fmt: skip
    bins = [
        [
            f"{b['first']}-{b['last']}",
            *(shown(b[k]) for k in ("triloop", "trl", "difference")),
            "yes" if b["agree"] else "NO",
        ]
        for b in result["curves"]
    ]
    return [
        rates,
        table(seeds, ["system", "seed", "rounds", "seconds"], markdown=markdown),
        table(bins, ["rounds", "triloop", "trl", "difference", "overlap"], markdown=markdown),
    ]


def write(path: Path, facts: Mapping[str, Any], runs: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
    """The runs so far; with the outcome, a page beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    date = datetime.date.today().isoformat()
    path.write_text(json.dumps({"date": date, "facts": facts, "result": result, "runs": runs}) + "\n")
    if result is None:
        return
    page = ["# Time to a reward, beside TRL's GRPOTrainer", ""]
    page += ["Written by `python benchmarks/time_to_reward.py`, whose text says what is compared and how.", ""]
    page += [f"- {k}: {v}" for k, v in {"date": date, **facts["machine"], **facts}.items() if k != "machine"]
    page += ["", *(f"- {s}" for s in words(result)), ""]
    page += [part for t in tables(result, markdown=True) for part in (t, "")]
    path.with_suffix(".md").write_text("\n".join(page))


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--checkpoint", type=Path, default=versus.CHECKPOINTS / "1m_d2")
    ap.add_argument("--target", type=float, default=0.6, help="mean training reward, as a share of right answers")
    ap.add_argument("--rounds", type=int, default=400, help="of every run")
    ap.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ap.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-4, 3e-4], help="learning rates, for both sides")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="auto", help="of Triloop's products")
    ap.add_argument(
        "--trl-setting", choices=("eager", "sdpa"), help="TRL's attention; without it the faster one is found"
    )
    ap.add_argument("--trl-python", type=Path, default=versus.TRL_ENV / "bin" / "python")
    ap.add_argument(
        "--out", type=Path, required=True, metavar="FILE.json", help="runs and outcome; FILE.md is the page"
    )
    ap.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else")
    return ap.parse_args(given)


def setting_of(options: argparse.Namespace, logs: Path) -> versus.TrlSetting:
    """TRL's fastest setting here, or the one asked for."""
    if options.trl_setting is not None:
        return versus.TrlSetting(attention=options.trl_setting, bf16=False)
    plan = versus.Plan(
        trl_python=options.trl_python, threads=options.threads, precision=options.precision, blocks=1, logs=logs
    )
    cell = versus.Cell(size="1m", checkpoint=options.checkpoint, warm=True, fixed=False, reward="exact")
    note("which of TRL's settings is fastest?")
    return versus.fastest_setting(plan, cell, versus.candidates_for([]))[0][1]


def main() -> int:
    options = parse()
    if not options.trl_python.exists():
        subprocess.run([sys.executable, str(versus.HERE / "versus_trl.py"), "--install"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        setting = setting_of(options, Path(folder))
        facts = facts_of(options, setting)
        runs = kept(options.out, facts)
        bench = Bench(
            checkpoint=options.checkpoint,
            rounds=options.rounds,
            threads=options.threads,
            precision=options.precision,
            trl_python=options.trl_python,
            trl=setting,
            logs=Path(folder),
        )
        for course in planned(options.seeds, options.rates, runs, options.target):
            if course.key in runs:
                continue
            note(f"{course.key}: {options.rounds} rounds")
            runs[course.key] = run = bench.run(course)
            write(options.out, facts, runs, None)
            seconds = time_to(run, options.target)
            said = (
                "did not come there"
                if seconds is None
                else f"{seconds:.0f} s, {reached(run['reward'], options.target)} rounds"
            )
            note(f"  {said}; {sum(run['seconds']):.0f} s in all{'; ' + run['ended'] if run['ended'] else ''}")
    result = conclude(runs, options)
    write(options.out, facts, runs, result)
    print(json.dumps({**result, "facts": facts}) if options.json else "\n\n".join([*tables(result), *words(result)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
