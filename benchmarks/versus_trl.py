"""Triloop beside TRL's GRPOTrainer: same checkpoint, task and settings, same machine, alternating blocks of rounds.

    python benchmarks/versus_trl.py --size 1m --length natural --json    one comparison
    python benchmarks/versus_trl.py --sizes 1m 5m 30m --out docs/proof/trl.json

TRL is installed into an environment of its own when it is missing (``--install`` does only that).

A round is 32 prompts x 8 completions of at most 32 tokens at temperature 1, and one AdamW step (lr 1e-5, clip 0.2, token
mean, advantages divided by the group's standard deviation, no KL) on all 256 in one micro-batch. TRL runs at the
fastest of its settings, found here beforehand; Triloop with its guards, its store and its checkpoints. Three comparisons:

- natural, exact    the policy ends its completions itself, the verifier pays. Triloop leaves groups without spread out of
                    its update, for their gradient is exactly zero; TRL computes them.
- natural, random   rewards by lot, half of every group: nobody can leave anything out.
- fixed, random     the end-of-sequence token is never drawn: 32 tokens for everybody. Nothing to skip, no row to refill.

``--length natural`` takes the first (the second too with ``--rewards exact random``), ``--length forced`` the last, neither
all three. Natural lengths need a policy that has learned to stop: a folder SIZE_d2 in one of ``--checkpoints``, such as the
baseline's own script makes. Where there is none, ``--length natural`` warms one up for up to ``--warm-minutes`` and keeps
it in benchmarks/.checkpoints; one that gets less than a tenth right then compares with rewards by lot. Without
``--length``, and for forced lengths, random weights stand in, and only the last comparison is made.

``--out FILE.json`` writes FILE.json and FILE.md.
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

from blocks import Contender
from warm import success_rate, warm

from triloop.bench import column_task as task
from triloop.bench.case import SIZES
from triloop.bench.measuring import machine, median, multiplies_bf16, note, table
from triloop.bench.model import random_checkpoint

HERE = Path(__file__).resolve().parent
TRL_ENV = HERE / ".trl-venv"
WARMED = HERE / ".checkpoints"
CHECKPOINTS = HERE.parent.parent / "shared" / "bench" / "checkpoints"
PINS = (("torch==2.13.0",), ("trl==1.16.0", "transformers==5.23.0"))
BATCH = task.PROMPTS * task.GROUP
WORTH_JUDGING = 0.1
"""Share of right answers below which nearly every group is all wrong."""
HEAD = [
    *("size", "length", "reward", "system", "setting", "compl/s", "s/round", "cpu s", "rollout s", "learn s"),
    *("tokens", "flat", "peak MiB", "others"),
]
LEGEND = (
    "compl/s: completions a second over the whole loop, median of the blocks. s/round, rollout s, learn s: medians over "
    "rounds. cpu s: processor seconds of a round over all threads, which neighbours disturb least. tokens: mean length. "
    "flat: share of groups without spread. others: cores that other processes used; "
    "figures with more than 0.1 are not clean."
)


@dataclass(frozen=True, kw_only=True)
class TrlSetting:
    """How TRL computes."""

    attention: str
    bf16: bool

    @property
    def name(self) -> str:
        return f"{'bf16' if self.bf16 else 'fp32'} {self.attention}"

    @property
    def flags(self) -> list[str]:
        return ["--attention", self.attention, *(["--bf16"] if self.bf16 else [])]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One comparison."""

    size: str
    checkpoint: Path
    warm: bool
    fixed: bool
    reward: str

    @property
    def flags(self) -> list[str]:
        return ["--checkpoint", str(self.checkpoint), "--reward", self.reward, *(["--fixed"] if self.fixed else [])]

    @property
    def name(self) -> str:
        return f"{self.size} {'fixed' if self.fixed else 'natural'} length, {self.reward} reward"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to run the contenders."""

    trl_python: Path
    threads: int
    precision: str
    blocks: int
    logs: Path

    def trl(self, cell: Cell, setting: TrlSetting) -> Contender:
        command = [str(self.trl_python), str(HERE / "trl_side.py"), *cell.flags, *setting.flags]
        return self._start("trl", command)

    def triloop(self, cell: Cell) -> Contender:
        command = [sys.executable, str(HERE / "triloop_side.py"), *cell.flags, "--precision", self.precision]
        return self._start("triloop", command)

    def _start(self, name: str, command: list[str]) -> Contender:
        return Contender(name, [*command, "--threads", str(self.threads)], self.threads, self.logs / f"{name}.log")


def install() -> None:
    """Make TRL's environment; torch first, so that trl does not choose another."""
    python = TRL_ENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(TRL_ENV)], check=True)
    for pins in PINS:
        note(f"installing {' '.join(pins)} into {TRL_ENV.name}")
        subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", *pins], check=True)


# ------------------------------------------------------------------ measuring


def fastest_setting(plan: Plan, cell: Cell, candidates: Sequence[TrlSetting]) -> list[tuple[float, TrlSetting]]:
    """Candidates with the seconds of their best round of two, fastest first."""
    found = []
    for setting in candidates:
        with plan.trl(cell, setting) as trl:
            trl.go(1)
            seconds = min(r["seconds"] for r in trl.go(2)["rounds"])
            trl.end()
        note(f"  TRL {setting.name}: {seconds:.2f} s a round")
        found.append((seconds, setting))
    return sorted(found, key=lambda pair: pair[0])


def side_by_side(plan: Plan, cell: Cell, setting: TrlSetting, rounds: int) -> dict[str, Any]:
    """Alternate the two in blocks of ``rounds``, one unmeasured round first."""
    done: dict[str, list[dict[str, Any]]] = {"triloop": [], "trl": []}
    with plan.triloop(cell) as ours, plan.trl(cell, setting) as theirs:
        pair = (ours, theirs)
        gap = abs(ours.facts["probe"] - theirs.facts["probe"])
        assert gap < 1e-2, f"the two do not start from the same weights: log-probabilities differ by {gap}"
        assert ours.facts["parameters"] == theirs.facts["parameters"]
        for contender in pair:
            contender.go(1)
        for block in range(plan.blocks):
            for contender in pair if block % 2 == 0 else pair[::-1]:
                done[contender.name].append(contender.go(rounds))
        ends = {c.name: c.end() for c in pair}
        facts = {c.name: c.facts for c in pair}
    result: dict[str, Any] = {
        name: _figures(cell, blocks)
        | {"peak_memory_bytes": ends[name]["peak_memory_bytes"], "versions": facts[name]["versions"]}
        for name, blocks in done.items()
    }
    assert all(e["moved"] > 0 for e in ends.values()), "a side's weights did not move"
    _same_work(cell, result["triloop"], result["trl"])
    result["trl"]["setting"] = setting.name
    result["triloop"]["setting"] = {"float32": "fp32", "bfloat16": "bf16"}[facts["triloop"]["precision"]]
    return result | {"parameters": facts["triloop"]["parameters"], "rounds_per_block": rounds} | _ratios(result)


def _figures(cell: Cell, blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rounds = [r for b in blocks for r in b["rounds"]]
    if cell.fixed:
        assert all(r["tokens"] == BATCH * task.MAX_NEW for r in rounds), "a completion is not 32 tokens long"
    return {
        "completions_per_second": [BATCH * len(b["rounds"]) / sum(r["seconds"] for r in b["rounds"]) for b in blocks],
        "seconds": median([r["seconds"] for r in rounds]),
        "cpu_seconds": median([r["cpu_seconds"] for r in rounds]),
        "rollout_seconds": median([r["rollout_seconds"] for r in rounds]),
        "learn_seconds": median([r["learn_seconds"] for r in rounds]),
        "tokens_per_second": sum(r["tokens"] for r in rounds) / sum(r["rollout_seconds"] for r in rounds),
        "mean_length": sum(r["tokens"] for r in rounds) / BATCH / len(rounds),
        "flat_share": sum(r["flat_share"] for r in rounds) / len(rounds),
        "reward": sum(r["reward"] for r in rounds) / len(rounds),
        "other_cores": [b["other_cores"] for b in blocks],
        "round_seconds": [[round(r["seconds"], 4) for r in b["rounds"]] for b in blocks],
    }


def _same_work(cell: Cell, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Both sample from one policy for one task: lengths and rewards must agree as samples do."""
    assert abs(ours["mean_length"] / theirs["mean_length"] - 1) < 0.15, "completions of different lengths"
    if cell.warm:
        assert abs(ours["reward"] - theirs["reward"]) < 0.12, "different rewards from the same policy"


def _ratios(result: Mapping[str, Any]) -> dict[str, Any]:
    ours, theirs = result["triloop"], result["trl"]
    pairs = zip(ours["completions_per_second"], theirs["completions_per_second"], strict=True)
    each = [a / b for a, b in pairs]
    parts = {k: theirs[f"{k}_seconds"] / ours[f"{k}_seconds"] for k in ("rollout", "learn", "cpu")}
    return {"ratio": median(each), "ratio_each": each, "ratio_parts": parts}


# ------------------------------------------------------------------ planning


def cells_of(size: str, options: argparse.Namespace, scratch: Path) -> list[Cell]:
    """The comparisons of a size."""
    kinds = [(False, r) for r in ("exact", "random") if r in (options.rewards or ("exact", "random"))]
    if options.length == "natural" and not options.rewards:
        kinds = kinds[:1]
    forced = [(True, "random")] if "random" in (options.rewards or ("random",)) else []
    places = (c / f"{size}_d2" for c in options.checkpoints)
    path = next((p for p in places if (p / "config.json").exists()), None)
    if path is None and options.length == "natural":
        path = warm(WARMED, size, options.warm_minutes)
    if path is None:
        return [Cell(size=size, checkpoint=random_checkpoint(scratch, size), warm=False, fixed=True, reward="random")]
    if success_rate(path) < WORTH_JUDGING:
        note(f"{size}: {path.name} gets too little right for its groups to differ; rewards are by lot")
        kinds = [(False, "random")]
    wanted = {"natural": kinds, "forced": forced or [(True, "random")]}.get(options.length, kinds + forced)
    return [Cell(size=size, checkpoint=path, warm=True, fixed=f, reward=r) for f, r in wanted]


def candidates_for(previous: Sequence[tuple[float, TrlSetting]]) -> list[TrlSetting]:
    """All of TRL's settings that this processor has instructions for; from the second size on the three fastest.

    Without such instructions bf16 products are emulated: a round took 90 s where fp32 took 1.5.
    """
    precisions = (False, True) if multiplies_bf16() else (False,)
    return [s for _, s in previous[:3]] or [
        TrlSetting(attention=a, bf16=b) for b in precisions for a in ("eager", "sdpa")
    ]


def rounds_for(seconds: float, budget: float, blocks: int) -> int:
    """Rounds of a block such that both sides' blocks take about ``budget`` seconds."""
    return max(1, min(10, int(budget / (blocks * seconds * 1.6))))


def compare(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Every cell of every size, within about ``--minutes``."""
    plan = Plan(
        trl_python=options.trl_python,
        threads=options.threads,
        precision=options.precision,
        blocks=options.blocks,
        logs=scratch,
    )
    per_size = {s: cells_of(s, options, scratch) for s in options.sizes}
    left = sum(map(len, per_size.values()))
    deadline = time.monotonic() + 60 * options.minutes
    ranking: list[tuple[float, TrlSetting]] = []
    results = []
    for size, cells in per_size.items():
        note(f"{size}: which of TRL's settings is fastest?")
        ranking = fastest_setting(plan, cells[-1], candidates_for(ranking))
        for cell in cells:
            # Half of what is left goes to loading and to the settings of the sizes to come.
            rounds = rounds_for(ranking[0][0], 0.5 * max(0.0, deadline - time.monotonic()) / left, plan.blocks)
            left -= 1
            note(f"{cell.name}: {plan.blocks} blocks of {rounds} rounds each")
            measured = side_by_side(plan, cell, ranking[0][1], rounds)
            about = {k: v for k, v in asdict(cell).items() if k != "checkpoint"}
            settings = {s.name: seconds for seconds, s in ranking}
            results.append({**about, **measured, "trl_settings_seconds": settings})
            note(f"  Triloop / TRL: {measured['ratio']:.2f} times the completions a second")
    return results


# ------------------------------------------------------------------ writing


def rows_of(result: Mapping[str, Any]) -> list[list[object]]:
    label = [result["size"], "fixed" if result["fixed"] else "natural", result["reward"]]
    rows: list[list[object]] = []
    for name in ("triloop", "trl"):
        r = result[name]
        seconds = [r[k] for k in ("seconds", "cpu_seconds", "rollout_seconds", "learn_seconds")]
        speed = median(r["completions_per_second"])
        about = [r["mean_length"], r["flat_share"], r["peak_memory_bytes"] / 2**20, median(r["other_cores"])]
        rows.append([*label, name, r["setting"], speed, *seconds, *about])
    return rows


def sentences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ratios in words, and what they include."""
    out = []
    for r in results:
        low, high = min(r["ratio_each"]), max(r["ratio_each"])
        where = f"{r['size']}, {'fixed' if r['fixed'] else 'natural'} length, {r['reward']} reward"
        parts = ", ".join(f"{k} {v:.2f}" for k, v in r["ratio_parts"].items())
        memory = r["triloop"]["peak_memory_bytes"] / r["trl"]["peak_memory_bytes"]
        text = f"{where}: {r['ratio']:.2f} times TRL (blocks {low:.2f} to {high:.2f}); {parts}; memory {memory:.2f}."
        if r["reward"] == "exact":
            share = r["triloop"]["flat_share"]
            text += (
                f" Triloop skips the {share:.0%} of groups without spread in its update: their gradient is exactly 0."
            )
        if r["reward"] == "random":
            text += " Nothing skipped: rewards by lot give every group spread."
        out.append(text)
    return out


def write(path: Path, results: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    rows = [row for r in results for row in rows_of(r)]
    text = [
        "# Triloop beside TRL's GRPOTrainer",
        "",
        "Written by `python benchmarks/versus_trl.py`, whose text says what is compared and how.",
        "",
        *(f"- {k}: {', '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in facts["machine"].items()),
        *(f"- {k}: {v}" for k, v in facts.items() if k != "machine"),
        "",
        table(rows, HEAD, markdown=True),
        "",
        LEGEND,
        "",
        *(f"- {s}" for s in sentences(results)),
    ]
    path.with_suffix(".md").write_text("\n".join(text) + "\n")


def facts_of(options: argparse.Namespace, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    versions = {**results[0]["trl"]["versions"], **results[0]["triloop"]["versions"]}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
        "threads": options.threads,
        "blocks": options.blocks,
    }


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--install", action="store_true", help="install TRL into its own environment and stop")
    ap.add_argument("--sizes", "--size", nargs="+", choices=list(SIZES), default=["1m"], metavar="S")
    ap.add_argument("--length", choices=("natural", "forced"), help="only comparisons of this kind")
    ap.add_argument("--rewards", nargs="+", choices=("exact", "random"), help="only these; see above")
    ap.add_argument("--checkpoints", type=Path, nargs="+", default=[CHECKPOINTS, WARMED], help="have SIZE_d2 in them")
    ap.add_argument("--warm-minutes", type=float, default=3.0, help="most that making one may take")
    ap.add_argument("--blocks", type=int, default=3, help="measured blocks of each side")
    ap.add_argument("--minutes", type=float, default=10.0, help="about how long all of it may take")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="auto", help="of Triloop's products")
    ap.add_argument("--trl-python", type=Path, default=TRL_ENV / "bin" / "python")
    ap.add_argument("--out", type=Path, help="write FILE.json and FILE.md")
    ap.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else")
    return ap.parse_args(words)


def headline(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first comparison in few words."""
    first = results[0]
    sides = {
        name: {
            "completions_per_second": median(first[name]["completions_per_second"]),
            "peak_memory_bytes": first[name]["peak_memory_bytes"],
            "setting": first[name]["setting"],
        }
        for name in ("triloop", "trl")
    }
    other_cores = [c for name in sides for c in first[name]["other_cores"]]
    return {
        "size": first["size"],
        "length": "forced" if first["fixed"] else "natural",
        "reward": first["reward"],
        **sides,
        "ratio": first["ratio"],
        "ratio_each": first["ratio_each"],
        "memory_ratio": sides["triloop"]["peak_memory_bytes"] / sides["trl"]["peak_memory_bytes"],
        "other_cores": median(other_cores),
        "clean": median(other_cores) <= 0.1,
    }


def main() -> int:
    options = parse()
    if options.install or not options.trl_python.exists():
        if options.trl_python != TRL_ENV / "bin" / "python":
            print(f"{options.trl_python} does not exist; leave --trl-python out to have TRL installed", file=sys.stderr)
            return 2
        install()
    if options.install:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        results = compare(options, Path(folder))
    facts = facts_of(options, results)
    if options.out is not None:
        write(options.out, results, facts)
    if options.json:
        print(json.dumps({**headline(results), **facts, "results": results}))
        return 0
    print(table([row for r in results for row in rows_of(r)], HEAD), LEGEND, *sentences(results), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
