"""Start, resume and evaluate runs. What the command line calls, and a program may call as well."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from triloop.errors import GuardStop, RunFolderError, TriloopError, VerifierError
from triloop.loops.build import load_policy, make_env, set_threads, workshop
from triloop.loops.commit import commit_checkpoint, commit_evaluation
from triloop.loops.config import EnvConfig, RunConfig, from_mapping, to_mapping
from triloop.loops.evaluate import evaluate
from triloop.loops.improve import Learn, improve, measure_held_out
from triloop.loops.learning import expert_iteration, policy_gradient
from triloop.loops.progress import Progress, Silent
from triloop.loops.signals import interruptible
from triloop.loops.state import LoopState, Workshop, load_state
from triloop.loops.summary import summarise
from triloop.nn.hf_io import weights_sha256
from triloop.policies.protocol import Tag
from triloop.records import Verdict
from triloop.sources.preflight import preflight
from triloop.store.folder import environment_differences
from triloop.store.run import Run
from triloop.store.translate import event_row, verdict_row

__all__ = ["evaluate_policy", "resume", "start"]

_LOOPS: dict[str, Learn] = {"outcome_rl": policy_gradient, "expert_iteration": expert_iteration}


def start(config: RunConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run from the beginning in a new folder; returns the summary.

    Raises UsageError before anything is written, GuardStop and Interrupted after everything is safe.
    """
    progress = progress or Silent()

    def create(environment: dict[str, Any]) -> Run:
        return Run.create(out, to_mapping(config), environment)

    with interruptible() as asked, workshop(config, create, progress, asked) as shop:
        return _complete(shop, LoopState(), resumed=None)


def resume(
    folder: Path, progress: Progress | None = None, *, rounds: int | None = None, allow_changed: bool = False
) -> dict[str, Any]:
    """Go on with a run from its last checkpoint. ``rounds`` asks for another total than the run was started with.

    Refuses when threads, versions or processor differ from those at the start (the result would not be bit-exact), unless
    ``allow_changed``.
    """
    progress = progress or Silent()
    with Run.open(folder, write=True) as run:
        values = run.config if rounds is None else {**run.config, "rounds": rounds}
        config: RunConfig = from_mapping(RunConfig, values)

        def reopen(environment: dict[str, Any]) -> Run:
            _compare(run, environment, allow_changed)
            return run

        with interruptible() as asked, workshop(config, reopen, progress, asked) as shop:
            saved = run.latest_checkpoint()
            state = LoopState()
            if saved is not None:
                shop.policy.load_state(saved.path)
                state = load_state(saved.path)
            run.append([event_row(state.round, "resumed")])
            return _complete(shop, state, resumed=state.round)


def _compare(run: Run, environment: Mapping[str, Any], allow_changed: bool) -> None:
    changed = [*environment_differences(run.environment, environment), *run.config_edits()]
    if changed and not allow_changed:
        raise RunFolderError(
            f"{run.path} was started under other conditions: {'; '.join(changed)}. Resume as it was started (such as with "
            "--threads), or add --allow-changed to go on without the promise of a bit-exact result"
        )
    for difference in changed:
        warnings.warn(f"resuming although {difference}", stacklevel=2)


def _complete(shop: Workshop, state: LoopState, *, resumed: int | None) -> dict[str, Any]:
    c, run = shop.config, shop.run
    facts = {
        "parameters": shop.policy.decoder.config.parameters,
        "threads": run.environment["threads"],
        "precision": run.environment["precision"],
        "resumed_from": resumed,
    }
    shop.progress.started(c, run.path, facts)
    try:
        if not run.rounds() and state.round == 0:
            _begin(shop, state)
        state = improve(shop, dataclasses.replace(state, stopped=""), _LOOPS[c.loop])
        shop.progress.stage(f"evaluating {c.eval_n} held-out prompts")
        after = measure_held_out(shop, state.round, c.eval_n)
        commit_evaluation(shop, "after", state.round, after)
        shop.progress.evaluated("after", after.summary())
        run.append([event_row(state.round, "finished", {"weights_sha256": weights_sha256(shop.policy.decoder)})])
        if state.stopped:
            raise GuardStop(f"{state.stopped}. Nothing is lost: the samples are in the report of {run.path}")
    except TriloopError as error:
        run.append([event_row(state.round, type(error).__name__, {"reason": str(error)})])
        raise
    summary = summarise(run)
    shop.progress.finished(summary)
    return summary


def _begin(shop: Workshop, state: LoopState) -> None:
    """What happens once, before round 1: preflight, the first held-out score, the first checkpoint."""
    c = shop.config
    shop.progress.stage("preflight: does the verifier accept right answers and reject wrong ones?")
    verdicts = preflight(shop.env, shop.judge, seed=c.seed) if c.guards.preflight else []
    shop.run.append(map(verdict_row, verdicts))
    _stop_on(verdicts)
    shop.progress.stage(f"evaluating {c.eval_n} held-out prompts")
    before = measure_held_out(shop, 0, c.eval_n)
    commit_evaluation(shop, "before", 0, before)
    shop.progress.evaluated("before", before.summary())
    commit_checkpoint(shop, state)


def _stop_on(verdicts: list[Verdict]) -> None:
    bad = [v for v in verdicts if v.action == "stop"]
    if bad:
        raise VerifierError(
            f"the verifier failed its preflight: {'; '.join(v.reason for v in bad)}. Mend it, or add --guards.preflight off "
            "to run all the same"
        )


def evaluate_policy(
    policy: str, env: EnvConfig, n: int, *, seed: int = 0, base: RunConfig | None = None
) -> dict[str, Any]:
    """Held-out gold score of a model directory or of a run's latest checkpoint on a task."""
    config = base or RunConfig(policy=policy, env=env)
    set_threads(config.threads)
    model = load_policy(config)
    task = make_env(env, model.frozen())
    sampling = dataclasses.replace(config.sampling, max_tokens=task.max_tokens, stop=tuple(task.stop))
    result = evaluate(model, task, n, sampling, Tag(seed=seed, round=0, purpose="eval"), level=env.level)
    return {**result.summary(), "env": env.name, "policy": policy, "seed": seed}
