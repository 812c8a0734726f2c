"""``triloop compare``: methods at equal token budget, on the same problems and seeds, with paired intervals."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triloop.cli.screen import Screen, json_flag
from triloop.errors import GuardStop, RunFolderError, UsageError

if TYPE_CHECKING:
    from triloop.loops.config import RunConfig

__all__ = ["add", "compare", "tokens"]

_NO_LIMIT = 1_000_000
"""Rounds: the token budget ends a run, not this."""
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One method at one seed."""

    method: str
    seed: int
    outcomes: Mapping[str, float]
    """Score on each held-out problem, by its id."""
    summary: Mapping[str, Any]
    stopped: str


def add(commands: Any) -> None:
    """Add the command to the parser."""
    p = commands.add_parser(
        "compare",
        help="methods at equal budget and seeds, paired",
        description="Any setting of `triloop run` can be added and then holds for all methods.",
        allow_abbrev=False,
    )
    p.add_argument(
        "methods", nargs="+", metavar="METHOD", help="algorithms; the first is what the others are compared with"
    )
    p.add_argument("--budget", required=True, metavar="TOKENS", help="generated tokens of each run, such as 2M")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="seeds (0 1 2)")
    p.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs; given again, finished runs are kept")
    json_flag(p)
    p.set_defaults(handler=compare)


def tokens(text: str) -> int:
    """``2M``, ``500k`` or ``40000`` as a number."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmb]?)", text.strip().lower())
    value = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if value < 1:
        raise UsageError(f"--budget is {text!r}; expected a number of tokens, such as 500k or 2M")
    return value


def compare(args: argparse.Namespace, screen: Screen) -> int:
    """Run every method at every seed, then print the table."""
    from triloop.cli.targets import fresh_folder

    budget = tokens(args.budget)
    configs = {
        (m, s): _config(m, s, budget, args.settings)
        for m in dict.fromkeys(args.methods)
        for s in dict.fromkeys(args.seeds)
    }
    if len(set(args.methods)) < len(args.methods) or len(args.methods) < 2:
        raise UsageError(
            f"got {' '.join(args.methods)}; a comparison needs at least two methods, each named once: the first is what "
            "the others are compared with. A method alone is `triloop run`"
        )
    env = next(iter(configs.values())).env.name
    out = args.out if args.out is not None else fresh_folder(f"compare-{env}")
    screen.folder = out
    runs = [_run(m, s, config, out / f"{m}-seed{s}", screen) for (m, s), config in configs.items()]
    rows = _rows(list(dict.fromkeys(args.methods)), runs)
    head = [
        "method",
        rows[0]["metric"],
        "95 %",
        f"minus {rows[0]['method']}",
        "95 %",
        "p",
        "tokens",
        "seconds",
        "stopped",
    ]
    screen.table(
        f"{env}, {budget:,} tokens a run, seeds {' '.join(map(str, args.seeds))}", head, [_cells(r) for r in rows]
    )
    screen.say(
        "paired on the same held-out problems; intervals are over problems, not over seeds: --json has each seed"
    )
    screen.say(f"runs  {out}")
    screen.answer({"env": env, "budget": budget, "seeds": args.seeds, "rows": rows, "out": out})
    return 0


def _config(method: str, seed: int, budget: int, settings: Mapping[str, Any]) -> RunConfig:
    """The task's recipe with another algorithm: what the recipe tuned for its own algorithm is left out."""
    from triloop.cli import fields
    from triloop.learn.choices import AlgorithmConfig
    from triloop.loops.config import EnvConfig, RunConfig
    from triloop.recipes.table import RECIPES

    env = settings.get("env.name")
    if env is None:
        raise UsageError("which task? Give --env, such as --env countdown")
    if "algorithm.name" in settings:
        raise UsageError("--algorithm and compare do not go together: name the algorithms as METHODs")
    base = RECIPES[env].config() if env in RECIPES else RunConfig(env=EnvConfig(name=env))
    loop: Literal["expert_iteration", "outcome_rl"] = "expert_iteration" if method == "rest_em" else "outcome_rl"
    rounds = settings.get("rounds", _NO_LIMIT)
    optim = base.optim if "rounds" in settings else dataclasses.replace(base.optim, schedule="constant")
    config = dataclasses.replace(
        base,
        recipe=f"compare-{env}",
        loop=loop,
        algorithm=AlgorithmConfig(name=method),  # type: ignore[arg-type]  # its own check names the known ones
        optim=optim,
        seed=seed,
        eval_every=0,
    )
    return fields.apply(config, {**settings, "rounds": rounds, "token_budget": budget, "seed": seed})


def _run(method: str, seed: int, config: RunConfig, folder: Path, screen: Screen) -> _Run:
    """Start the run, go on with it, or take it as it is when it is finished."""
    from triloop.loops.progress import Silent
    from triloop.loops.run import resume, start
    from triloop.loops.summary import summarise
    from triloop.store.run import Run

    stopped = ""
    try:
        if not (folder / "run.db").is_file():
            start(config, folder, Silent())
        elif not _finished(folder, config):
            resume(folder, Silent())
    except GuardStop as stop:
        stopped = str(stop)
    with Run.open(folder, write=False) as run:
        summary, outcomes = summarise(run), _outcomes(run)
    before, after = summary["eval_before"]["value"], summary["eval_after"]["value"]
    screen.note(
        f"{method} seed {seed}: {before:.3f} -> {after:.3f} in {summary['rounds']} rounds, "
        f"{summary['seconds']:.0f} s{', stopped by a guard' if stopped else ''}"
    )
    return _Run(method=method, seed=seed, outcomes=outcomes, summary=summary, stopped=stopped)


def _finished(folder: Path, config: RunConfig) -> bool:
    """Whether the run there came to its end; refuses one of other settings, which would compare what is not alike."""
    from triloop.loops.config import to_mapping
    from triloop.store.folder import environment_differences, plain
    from triloop.store.run import Run

    with Run.open(folder, write=False) as run:
        differing = environment_differences(run.config, plain(to_mapping(config), "config"))
        if differing:
            raise RunFolderError(
                f"{folder} holds a run of other settings ({'; '.join(differing)}); choose another --out"
            )
        return any(row.payload["when"] == "after" for row in run.rows("eval"))


def _outcomes(run: Any) -> dict[str, float]:
    """Score of each held-out problem after the run."""
    last = [row for row in run.rows("eval") if row.payload["when"] == "after"][-1]
    ternary = last.payload["metric"] == "pass@1"
    return {
        e.prompt.id: float(e.feedback[0].value == 1) if ternary else float(e.feedback[0].value or 0.0)
        for e in run.episodes(last.round, purpose="eval")
    }


def _rows(methods: Sequence[str], runs: Sequence[_Run]) -> list[dict[str, Any]]:
    from triloop.stats import bootstrap_mean, paired_difference, sign_test

    scores = {m: {(r.seed, id): v for r in runs if r.method == m for id, v in r.outcomes.items()} for m in methods}
    first = scores[methods[0]]
    rows: list[dict[str, Any]] = []
    for method in methods:
        mine, own = scores[method], [r for r in runs if r.method == method]
        both = sorted(first.keys() & mine.keys())
        mean = bootstrap_mean(list(mine.values()))
        row: dict[str, Any] = {
            "method": method,
            "metric": own[0].summary["eval_after"]["metric"],
            "value": mean.value,
            "ci95": [mean.low, mean.high],
            "n": mean.n,
            "by_seed": {str(r.seed): r.summary["eval_after"]["value"] for r in own},
            "before": {str(r.seed): r.summary["eval_before"]["value"] for r in own},
            "tokens_generated": sum(r.summary["tokens_generated"] for r in own),
            "seconds": sum(r.summary["seconds"] for r in own),
            "stopped": [r.seed for r in own if r.stopped],
            "difference": None,
        }
        if method != methods[0] and both:
            a, b = [mine[k] for k in both], [first[k] for k in both]
            diff = paired_difference(a, b)
            row["difference"] = {
                "value": diff.value,
                "ci95": [diff.low, diff.high],
                "n": diff.n,
                "p_sign": sign_test(a, b),
            }
        rows.append(row)
    return rows


def _cells(row: Mapping[str, Any]) -> list[str]:
    d = row["difference"]
    return [
        row["method"],
        f"{row['value']:.3f}",
        f"{row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}",
        f"{d['value']:+.3f}" if d else "",
        f"{d['ci95'][0]:+.3f} to {d['ci95'][1]:+.3f}" if d else "",
        f"{d['p_sign']:.2g}" if d else "",
        f"{row['tokens_generated']:,}",
        f"{row['seconds']:.0f}",
        ", ".join(f"seed {s}" for s in row["stopped"]),
    ]
