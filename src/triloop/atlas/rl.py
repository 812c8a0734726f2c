"""Variants of one run, side by side: the library's own loop in a temporary run folder, read back from its store.

All variants of a seed share base, training prompts, random numbers and held-out problems. Guards are off: the rows measure
methods, and a guard that stopped one of two runs would end the comparison, not the cheating.
"""

from __future__ import annotations

import os
import shutil
import statistics
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triloop.atlas.frame import Context
from triloop.errors import Interrupted, WorkError
from triloop.guards.stack import FAMILIES, GuardConfig
from triloop.learn.choices import AlgorithmConfig, OptimConfig
from triloop.loops.config import EnvConfig, RunConfig
from triloop.policies.sampling import Sampling

if TYPE_CHECKING:
    from triloop.store.run import Run

__all__ = ["Outcome", "algorithm", "arithmetic", "each", "mean_over", "sweep", "train"]

_NEVER = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one training run."""

    before: float
    """Held-out gold score of the base."""
    after: float
    """Held-out gold score at the end."""
    metrics: tuple[Mapping[str, float], ...]
    """One mapping a round."""
    drawn: tuple[int, ...]
    """Completions that each round drew: more than asked for where groups were refilled."""
    tokens: int
    """Generated for training."""
    learn_seconds: float
    by_level: Mapping[int, Mapping[int, float]]
    """Held-out problems at the end: level -> judgement (+1, 0, -1) -> share."""
    extra: Mapping[int, float]
    """Held-out gold score at levels that were asked for besides."""
    parts: Mapping[str, float]
    """Mean of each named part of the held-out gold judgements at the end, such as one per attribute."""
    parts_before: Mapping[str, float]
    """The same of the base."""


def arithmetic(context: Context, **changes: Any) -> RunConfig:
    """A short run on chained arithmetic from the hasty base, which knows the careful way and mostly does not take it."""
    plain: dict[str, Any] = {
        "recipe": "atlas",
        "policy": context.base,
        "env": EnvConfig(name="arithmetic"),
        "optim": OptimConfig(lr=3e-4, warmup_steps=5),
        "sampling": Sampling(max_tokens=28, slots=512),
        "prompts_per_round": 16,
        "group_size": 8,
        "max_draws": 1,
        "reference_rows": 0,
        "guards": GuardConfig(off=tuple(sorted(FAMILIES)), preflight=False),
        "eval_n": context.scaled(512),
        "eval_every": 0,
        "canary_every": 0,
        "checkpoint_every": _NEVER,
        "threads": 1,
    }
    return RunConfig(**{**plain, **changes})


def algorithm(name: str, **overrides: Any) -> AlgorithmConfig:
    """Short for an algorithm with overrides."""
    return AlgorithmConfig(name=name, **overrides)  # type: ignore[arg-type]  # its own check names the known ones


def train(config: RunConfig, folder: Path, levels: Sequence[int] = ()) -> Outcome:
    """Run to the end in ``folder``, read what came of it, remove the folder."""
    from triloop.store.run import Run

    try:
        summary = _whole(config, folder)
        with Run.open(folder, write=False) as run:
            episodes = run.episodes(_round_of(run, "after"), purpose="eval")
            final = replace(config, policy=str(_weights(run))) if levels else config
            return Outcome(
                before=summary["eval_before"]["value"],
                after=summary["eval_after"]["value"],
                metrics=tuple(run.metrics()),
                drawn=_drawn(run),
                tokens=summary["tokens_generated"],
                learn_seconds=summary["learn_seconds"],
                by_level=_shares([(e.prompt.level, e.feedback[0].value) for e in episodes]),
                extra={level: _score(final, level) for level in levels},
                parts=summary["eval_after"].get("breakdown", {}),
                parts_before=summary["eval_before"].get("breakdown", {}),
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _whole(config: RunConfig, folder: Path) -> dict[str, Any]:
    from triloop.loops.run import start

    try:
        return start(config, folder)
    except Interrupted as error:  # which says how to go on, but the folder is removed
        raise KeyboardInterrupt from error


def sweep(
    context: Context, variants: Mapping[str, RunConfig], *, levels: Sequence[int] = ()
) -> dict[str, list[Outcome]]:
    """Every variant at every seed; by variant, in the order of the seeds."""
    jobs = [
        (replace(config, seed=seed), context.folder / f"{name}-{seed}", tuple(levels))
        for name, config in variants.items()
        for seed in context.seeds
    ]
    if context.workers > 1:
        with _pool(context.workers) as pool:
            done = list(pool.map(_job, jobs))
    else:
        done = [_job(job) for job in jobs]
    n = len(context.seeds)
    return {name: done[i * n : (i + 1) * n] for i, name in enumerate(variants)}


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for runs, none of which outlives this one: ended when the body fails or is interrupted, and by themselves
    when this process is killed."""
    others = set(active_children())
    # spawn: a forked child would inherit torch's thread pools half way
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(active_children()) - others:
            worker.kill()  # its runs are in a folder that is removed
        raise
    finally:
        pool.shutdown()


def _follow_parent() -> None:
    """Leave when the process that started this one is gone, however it went."""
    parent = parent_process()
    assert parent is not None

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def each(outcomes: Sequence[Outcome], name: str, *, last: int = 0) -> list[float]:
    """For each run, the mean of a round metric, over its last so many rounds or over all."""
    return [mean_over(o, name, last=last) for o in outcomes]


def mean_over(outcome: Outcome, name: str, *, last: int = 0) -> float:
    """Mean of a round metric over the last so many rounds (0: all) that have it."""
    return statistics.fmean(m[name] for m in outcome.metrics[-last:] if name in m)


def _drawn(run: Run) -> tuple[int, ...]:
    counts = Counter(row.round for row in run.rows("episode") if row.payload["purpose"] == "train")
    return tuple(counts[round] for round in run.rounds())


def _round_of(run: Run, when: str) -> int:
    """The round after which this held-out check was made."""
    return next(row.round for row in run.rows("eval") if row.payload["when"] == when)


def _weights(run: Run) -> Path:
    """The final policy's directory."""
    last = run.latest_checkpoint()
    if last is None or last.round != _round_of(run, "after"):
        raise WorkError(f"{run.path} ended without a checkpoint of its last round")
    return last.path / "policy"


def _job(job: tuple[RunConfig, Path, tuple[int, ...]]) -> Outcome:
    return train(*job)


def _shares(judged: Sequence[tuple[int, float | None]]) -> dict[int, dict[int, float]]:
    shares: dict[int, dict[int, float]] = {}
    for level in sorted({level for level, _ in judged}):
        values = [value for at, value in judged if at == level]
        shares[level] = {v: values.count(v) / len(values) for v in (1, 0, -1)}
    return shares


def _score(config: RunConfig, level: int) -> float:
    """Held-out gold score at one level, of the policy in the configuration."""
    from triloop.loops.build import load_policy, make_env
    from triloop.loops.evaluate import evaluate
    from triloop.policies.protocol import Tag

    tag = Tag(seed=config.seed, round=0, purpose="eval")
    return evaluate(
        load_policy(config), make_env(config.env), config.eval_n // 2, config.sampling, tag, level=level
    ).value
