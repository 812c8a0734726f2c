"""``triloop compare``: methods at equal token budget, on the same problems and seeds, with paired intervals."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triloop.cli.screen import Screen, json_flag
from triloop.errors import GuardStop, RunFolderError, StoreError, UsageError

if TYPE_CHECKING:
    from triloop.loops.config import RunConfig

__all__ = ["add", "compare", "notes", "tokens"]

_TEACHERLESS = "sft is left out: this task has no teacher whose answers could be imitated"
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One method at one seed."""

    method: str
    seed: int
    outcomes: Mapping[str, float]
    """Score on each held-out problem, by its id."""
    summary: Mapping[str, Any]
    labels: int
    """Judgements that it learned from, and demonstrations that a teacher wrote for it."""
    stopped: str


def add(commands: Any) -> None:
    """Add the command to the parser."""
    p = commands.add_parser(
        "compare",
        help="methods at equal budget and seeds, paired, with the baselines beside them",
        description="Algorithms (grpo, nft, rest_em, ...) and objectives on judgements (dpo, kto, ...) side by side; "
        "supervised learning on the teacher's level (sft) and rejection sampling (rejection) stand beside them. Any "
        "setting of `triloop run` can be added and then holds for all methods that have it.",
        allow_abbrev=False,
    )
    p.add_argument("methods", nargs="+", metavar="METHOD", help="the first is what the others are compared with")
    p.add_argument("--budget", required=True, metavar="TOKENS", help="generated tokens of each run, such as 2M")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="seeds (0 1 2)")
    p.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs; given again, finished runs are kept")
    p.add_argument("--plot", type=Path, metavar="FILE.html", help="where the plot goes (DIR/compare.html)")
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
    """Run every method at every seed, then the baselines; print the table and draw the plot."""
    from triloop.cli.targets import fresh_folder
    from triloop.recipes import methods

    budget, seeds = tokens(args.budget), list(dict.fromkeys(args.seeds))
    starts = {s: _start(s, budget, args.settings) for s in seeds}
    for method in args.methods:
        methods.check(method)
    if len(set(args.methods)) < len(args.methods) or len(args.methods) < 2:
        raise UsageError(
            f"got {' '.join(args.methods)}; a comparison needs at least two methods, each named once: the first is what "
            "the others are compared with. A method alone is `triloop run`"
        )
    env = starts[seeds[0]].env.name
    said = notes(starts[seeds[0]])
    beside = [b for b in methods.BASELINES if b not in args.methods and not (b == "sft" and _TEACHERLESS in said)]
    out = args.out if args.out is not None else fresh_folder(f"compare-{env}")
    screen.folder = out
    names = [*args.methods, *beside]
    configs = {(m, s): _config(m, starts[s], args.settings) for m in names if m != "sft" for s in seeds}
    runs = [_run(m, s, config, out / f"{m}-seed{s}", screen) for (m, s), config in configs.items()]
    for seed in seeds if "sft" in names else ():
        most = max(r.labels for r in runs if r.seed == seed)
        taught = _config("sft", starts[seed], args.settings, labels=most)
        runs.append(_run("sft", seed, taught, out / f"sft-seed{seed}", screen))
    rows = [{**row, "baseline": row["method"] in methods.BASELINES} for row in _rows(names, runs)]
    title = f"{env}, {budget:,} tokens a run, seeds {' '.join(map(str, seeds))}"
    plot = _draw(args.plot or out / "compare.html", title, rows, said)
    _tell(screen, title, rows, said)
    screen.say(f"plot  {plot}\nruns  {out}")
    screen.answer({"env": env, "budget": budget, "seeds": seeds, "rows": rows, "notes": said, "plot": plot, "out": out})
    return 0


def _start(seed: int, budget: int, settings: Mapping[str, Any]) -> RunConfig:
    """What all methods have in common at a seed: task, policy, prompts, budget."""
    from triloop.cli import fields
    from triloop.recipes import methods
    from triloop.recipes.table import RECIPES

    env = settings.get("env.name")
    if env is None:
        raise UsageError("which task? Give --env, such as --env countdown")
    for name, flag in (("algorithm.name", "--algorithm"), ("loop", "--loop")):
        if name in settings:
            raise UsageError(f"{flag} and compare do not go together: name the algorithms as METHODs")
    base = methods.starting_point(env, RECIPES, scheduled="rounds" in settings)
    common = {k: v for k, v in settings.items() if not k.startswith(("cycle.", "algorithm.")) and k != "generations"}
    return fields.apply(base, {**common, "token_budget": budget, "seed": seed})


def _config(method: str, base: RunConfig, settings: Mapping[str, Any], labels: int = 0) -> RunConfig:
    """``base`` as a run of this method, with those of the other settings that it has."""
    from triloop.cli import fields
    from triloop.recipes import methods

    lr = settings.get("optim.lr")
    config = methods.taught(base, labels, lr) if method == "sft" else methods.configured(method, base, lr)
    own = "cycle." if config.loop == "generations" else "algorithm."
    return fields.apply(config, {k: v for k, v in settings.items() if k.startswith(own)})


def notes(base: RunConfig) -> list[str]:
    """What has to be known to read the table."""
    from triloop.envs.world import TextWorld
    from triloop.loops.build import make_env

    env = make_env(base.env)
    teacher = isinstance(env, TextWorld)
    return [
        "paired on the same held-out problems; intervals are over problems, not over seeds: --json has each seed",
        "labels are judgements of samples, or of pairs of samples, and demonstrations; a run ends with the round in which "
        "its tokens are spent",
        "rejection imitates the best sample of each group"
        + ("; sft imitates a teacher who never errs, in as many demonstrations as the method with most labels bought"
           if teacher else ""),
        *([] if teacher else [_TEACHERLESS]),
    ]  # fmt: skip


def _draw(path: Path, title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> Path:
    from triloop.report.compared import page

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(title, rows, notes), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}); free space or choose another --plot") from error
    return path


def _tell(screen: Screen, title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> None:
    first = rows[0]
    head = ["method", first["metric"], "95 %", f"minus {first['method']}", "95 %", "p"]
    screen.table(title, [*head, "labels", "tokens", "seconds", "stopped"], [_cells(r) for r in rows])
    for note in notes:
        screen.say(note)


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
        summary, outcomes, labels = summarise(run), _outcomes(run), _labels(run)
    before, after = summary["eval_before"]["value"], summary["eval_after"]["value"]
    screen.note(
        f"{method} seed {seed}: {before:.3f} -> {after:.3f} in {summary['rounds']} rounds, "
        f"{summary['seconds']:.0f} s{', stopped by a guard' if stopped else ''}"
    )
    return _Run(method=method, seed=seed, outcomes=outcomes, summary=summary, labels=labels, stopped=stopped)


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


def _labels(run: Any) -> int:
    """What people, or whoever judges, had to say or write for it."""
    if "oppose" in run.config["cycle"]["stages"]:  # the same answers in every generation
        return int(run.config["cycle"]["oppose"]["prompts"])
    written = sum(row.payload["purpose"] in ("train", "demonstration") for row in run.rows("completion"))
    return written + int(sum(m.get("judgements", 0.0) for m in run.metrics()))


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
            "labels": sum(r.labels for r in own),
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
        f"{row['method']} (baseline)" if row["baseline"] else row["method"],
        f"{row['value']:.3f}",
        f"{row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}",
        f"{d['value']:+.3f}" if d else "",
        f"{d['ci95'][0]:+.3f} to {d['ci95'][1]:+.3f}" if d else "",
        f"{d['p_sign']:.2g}" if d else "",
        f"{row['labels']:,}",
        f"{row['tokens_generated']:,}",
        f"{row['seconds']:.0f}",
        ", ".join(f"seed {s}" for s in row["stopped"]),
    ]
