"""``triloop eval`` and ``triloop score``: how good a model is, and how good recorded completions are."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triloop.cli.screen import Screen, json_flag
from triloop.errors import JudgeError, RunFolderError, UsageError

if TYPE_CHECKING:
    from triloop.envs.scoring import Agreement
    from triloop.loops.config import RunConfig
    from triloop.records import Feedback

__all__ = ["add", "evaluate", "score"]

_MOST = 1_000_000
"""Problems of one evaluation; a world would go on making them."""
_LISTED = 40
"""Disagreements that are printed; ``--json`` has all."""


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    p = commands.add_parser("eval", help="how good is a model, with an interval", allow_abbrev=False)
    p.add_argument("target", metavar="RUN|MODEL", help="folder of a run, a model directory, or base:NAME")
    p.add_argument("--env", metavar="E", help="task; a run's own task without it")
    p.add_argument("--data", metavar="FILE", help="problems, for tasks that need a file")
    p.add_argument("--level", type=int, metavar="N", help="difficulty, where the task has levels")
    p.add_argument("--n", type=int, default=512, metavar="N", help="held-out problems (512)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (0)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to compute (cpu; a run's own)")
    json_flag(p)
    p.set_defaults(handler=evaluate)

    p = commands.add_parser("score", help="judge recorded completions of a JSONL file", allow_abbrev=False)
    p.add_argument("file", metavar="FILE", help="JSONL (.gz too) with prompt or question, completion, answer")
    p.add_argument("--env", required=True, metavar="E", help="task whose verifier judges")
    p.add_argument("--verifier", metavar="FILE.py:FUNCTION", help="your own verifier in its place")
    p.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds for one call of it (10)")
    json_flag(p)
    p.set_defaults(handler=score)


def evaluate(args: argparse.Namespace, screen: Screen) -> int:
    """Held-out score of a model directory, or of a run's last checkpoint."""
    if not 1 <= args.n <= _MOST:
        raise UsageError(f"--n is {args.n}; expected 1 to {_MOST:,} problems")
    base, original = _base(args)
    from triloop.loops.run import evaluate_policy

    result = evaluate_policy(base, args.n, seed=args.seed, original=original)
    result = {**result, "target": args.target}
    low, high = result["ci95"]
    screen.say(f"{result['metric']}  {result['value']:.3f}  [{low:.3f}, {high:.3f}]  on {result['n']} problems")
    screen.answer(result)
    return 0


def score(args: argparse.Namespace, screen: Screen) -> int:
    """One judgement per row, in the file's order."""
    from triloop.envs.scoring import agreement, read_scored_rows, score_rows
    from triloop.envs.table import make

    env = make(args.env)
    rows = read_scored_rows(args.file)
    if args.verifier is None:
        judged = score_rows(rows, env)
    else:
        from triloop.sources.verifier import UserVerifier

        with UserVerifier(args.verifier, timeout=args.timeout) as verifier:
            judged = score_rows(rows, env, verifier.judge)
    values = [f.value for f in judged if f.value is not None]
    mean = sum(values) / len(values) if values else None
    agreed = agreement(rows, judged)
    answer: dict[str, Any] = {
        "rows": [{"value": f.value, "reason": f.reason or f.failure or ""} for f in judged],
        "mean": mean,
    }
    if agreed.labelled:
        answer["agreement"] = {
            "labelled": agreed.labelled,
            "agreed": agreed.agreed,
            "rate": agreed.rate,
            "disagreements": list(agreed.disagreements),
        }
    _show(judged, mean, agreed, screen)
    if mean is None:
        return screen.fail(JudgeError(_all_failed(judged)), **answer)
    screen.answer(answer)
    return 0


def _all_failed(judged: Sequence[Feedback]) -> str:
    first = judged[0]
    return (
        f"all {len(judged):,} judgements of {first.source or 'the judge'} failed; the first: {first.failure}. Mend it, or "
        "check that the rows are what it expects"
    )


def _base(args: argparse.Namespace) -> tuple[RunConfig, str]:
    """The configuration to evaluate with, the run's own or the defaults, and the policy that it began with."""
    from triloop.loops.config import EnvConfig, RunConfig, from_mapping
    from triloop.store.run import Run

    path = Path(args.target)
    if (path / "run.db").is_file():
        with Run.open(path, write=False) as run:
            config: RunConfig = from_mapping(RunConfig, run.config)
            found = run.latest_checkpoint()
        if found is None:
            raise RunFolderError(f"{path} has no intact checkpoint yet, so there is no model to evaluate")
        original = config.policy
        config = dataclasses.replace(config, policy=str(found.path / "policy"), lora_rank=0)
    else:
        if args.env is None:
            raise UsageError("a model needs a task to be evaluated on; give --env, such as --env countdown")
        config, original = RunConfig(policy=args.target), args.target
    if args.env is None:
        env = config.env
    elif args.env == config.env.name:
        env = dataclasses.replace(config.env, data=args.data or config.env.data)
    else:
        env = EnvConfig(name=args.env, data=args.data)
    if args.level is not None:
        env = dataclasses.replace(env, level=args.level)
    if env.name != config.env.name:
        config = dataclasses.replace(config, verifier=None)  # it was written for the run's own task
    device = config.device if args.device is None else args.device
    return dataclasses.replace(config, env=env, device=device), original


def _show(judged: Sequence[Feedback], mean: float | None, agreed: Agreement, screen: Screen) -> None:
    counts = Counter("failed" if f.value is None else f"{f.value:+g}" if f.value else "0" for f in judged)
    rows = [
        [value, f"{n:,}", f"{100 * n / len(judged):.1f} %"] for value, n in sorted(counts.items(), reverse=True)[:20]
    ]
    screen.table("", ["judgement", "completions", "share"], rows)
    if mean is not None:
        screen.say(f"mean {mean:+.4f} over {len(judged):,} completions")
    if agreed.labelled:
        screen.say(f"agrees with {agreed.agreed:,} of {agreed.labelled:,} labels ({100 * agreed.rate:.2f} %)")
        for line in agreed.disagreements[:_LISTED]:
            screen.say(f"  {line}")
        if len(agreed.disagreements) > _LISTED:
            screen.say(f"  and {len(agreed.disagreements) - _LISTED} more; --json lists all")
