"""Start, resume and evaluate runs. What the command line calls, and a program may call as well."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from triloop.errors import ConfigError, GuardStop, RunFolderError, TriloopError, VerifierError
from triloop.loops.build import (
    Parts,
    describe_machine,
    hands,
    judging,
    load_policy,
    make_env,
    parts,
    set_threads,
    workshop,
)
from triloop.loops.commit import commit_checkpoint, commit_evaluation
from triloop.loops.config import RunConfig, from_mapping, to_mapping
from triloop.loops.evaluate import evaluate
from triloop.loops.improve import improve, measure_held_out, over
from triloop.loops.progress import Progress, Silent
from triloop.loops.signals import interruptible
from triloop.loops.state import LoopState, Workshop, load_state
from triloop.loops.summary import summarise
from triloop.policies.devices import pick_device
from triloop.policies.native import pick_precision
from triloop.policies.protocol import Tag
from triloop.records import Verdict
from triloop.sources.preflight import preflight
from triloop.store.database import is_finished
from triloop.store.folder import DATABASE, environment_differences, write_config
from triloop.store.run import Run
from triloop.store.translate import event_row, verdict_row

__all__ = ["evaluate_policy", "resume", "start"]

_FREE = ("rounds", "threads", "device", "generations")
"""Settings that may be changed in ``config.yaml`` before a resume: the length of a run is open, and threads and device are
compared as they turn out, not as they are asked for."""


def start(config: RunConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run from the beginning in a new folder; returns the summary.

    Raises UsageError before anything is written, GuardStop and Interrupted after everything is safe.
    """
    progress = progress or Silent()
    if is_finished(out / DATABASE):  # said before the model is loaded and the verifier tried
        raise RunFolderError(f"{out} holds a run; continue it with `triloop resume {out}`, or choose another --out")
    with interruptible() as asked, parts(config) as made:
        proofs = _proved(made, progress)
        if asked():
            raise KeyboardInterrupt
        with Run.create(out, to_mapping(config), made.machine) as run:
            return _complete(workshop(made, run, progress, asked), LoopState(), resumed=None, proofs=proofs)


def resume(
    folder: Path,
    progress: Progress | None = None,
    *,
    rounds: int | None = None,
    generations: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    allow_changed: bool = False,
) -> dict[str, Any]:
    """Go on with a run from its last checkpoint. ``rounds`` asks for another total (``generations`` where there are
    stages), ``threads`` for another number of
    processor threads, ``device`` for another device; ``config.yaml`` then says so.

    A finished run is left as it is and gives its summary again; one that a guard stopped raises GuardStop again, unless its
    ``guards`` were changed. Refuses when threads, versions, processor or policy differ from those at the start (the result
    would not be bit-exact), unless ``allow_changed``, or where nothing differs but what was asked for. Then a warning and
    the log say from which round on.
    """
    progress = progress or Silent()
    with interruptible() as asked, Run.open(folder, write=True) as run:
        asks = {"rounds": rounds, "generations": generations, "threads": threads, "device": device}
        wanted = {k: v for k, v in asks.items() if v is not None}
        config: RunConfig = from_mapping(RunConfig, {**run.config, **wanted})
        changed = [*_differences(run, _machine(config)), *_edits(run)]
        _refuse(run, [c for c in changed if not c.startswith(_begins(wanted))], allow_changed)
        saved = run.latest_checkpoint()
        state = LoopState() if saved is None else load_state(saved.path)
        _check_length(config, state, rounds)
        if state.stopped and any(e.startswith("guards was ") for e in _edits(run)):
            state = dataclasses.replace(state, stopped="", alarms=())
        if any(run.config.get(name) != value for name, value in wanted.items()):
            run.config.update(wanted)
            write_config(run.path, run.config)
        if saved is not None and _ended(run, config, state):
            return _again(run, state)
        with parts(config) as made:
            inputs = {k: made.machine[k] for k in ("policy_sha256", "recorded_sha256") if k in made.machine}
            other = _differences(run, inputs)
            _refuse(run, other, allow_changed)
            shop = workshop(made, run, progress, asked)
            if saved is not None:
                shop.load_state(saved.path)
            proofs = _proved(made, progress) if saved is None else None
            run.append([event_row(state.round, "resumed", _inexact(state, [*changed, *other]))])
            return _complete(shop, state, resumed=state.round, proofs=proofs)


def _machine(config: RunConfig) -> dict[str, Any]:
    """What the machine is like with these settings; sets the number of threads."""
    device = pick_device(config.device)
    threads = set_threads(config.threads, config.policy, shared_by=hands(config))
    return describe_machine(threads, pick_precision(config.precision, device), device)


def _begins(names: Iterable[str]) -> tuple[str, ...]:
    """How what is told of changes in these begins."""
    return tuple(f"{name} was " for name in names)


def _check_length(config: RunConfig, state: LoopState, rounds: int | None) -> None:
    """Refuse to end a run before where it has come to, or to change how long its past stages were."""
    if config.loop == "generations" and rounds is not None:
        raise ConfigError(
            "--rounds is the length of each stage here, and stages that were played cannot change theirs; ask for more "
            "generations instead: --generations N"
        )
    if state.round > config.total_rounds:
        raise ConfigError(
            f"the run has come to round {state.round}; it is to have {config.total_rounds}, ask for at least {state.round}"
        )


def _differences(run: Run, machine: Mapping[str, Any]) -> list[str]:
    """Where what is known of the machine by now is not as recorded."""
    return environment_differences({k: v for k, v in run.environment.items() if k in machine}, machine)


def _edits(run: Run) -> list[str]:
    """What was changed in ``config.yaml`` that matters."""
    return [e for e in run.config_edits() if not e.startswith(_begins(_FREE))]


def _refuse(run: Run, changed: Sequence[str], allow_changed: bool) -> None:
    if changed and not allow_changed:
        threads = any(c.startswith(_begins(["threads"])) for c in changed)
        hint = f" (such as with --threads {run.environment['threads']})" if threads else ""
        raise RunFolderError(
            f"{run.path} was started under other conditions: {'; '.join(changed)}. Resume as it was started{hint}, or add "
            "--allow-changed to go on without the promise of a bit-exact result"
        )


def _inexact(state: LoopState, changed: Sequence[str]) -> dict[str, str]:
    """What the log, and a warning, say of a run that goes on under other conditions; nothing where there are none."""
    if not changed:
        return {}
    told = "; ".join(changed)
    end = f"from round {state.round + 1} on this run is not bit-identical to one that was never interrupted"
    warnings.warn(f"resuming although {told}: {end}", stacklevel=3)
    return {"inexact": end, "changed": told}


def _ended(run: Run, config: RunConfig, state: LoopState) -> bool:
    """Whether there is nothing left to do."""
    last = [r for r in run.rows(kind="event") if r.payload["name"] == "finished" and r.round == state.round]
    return bool(last) and over(config, state) and state.anchor == state.round


def _again(run: Run, state: LoopState) -> dict[str, Any]:
    """What a run that has ended says, without a trace of having been asked."""
    if run.rounds()[-1:] > [state.round]:  # it was to go on, and now is not
        run.rewind(state.round)
    if state.stopped:
        raise GuardStop(_farewell(run, state))
    return summarise(run)


def _complete(
    shop: Workshop, state: LoopState, *, resumed: int | None, proofs: Sequence[Verdict] | None
) -> dict[str, Any]:
    """Begin, when there are ``proofs`` of the judge to begin with; then all rounds, and the end."""
    c, run = shop.config, shop.run
    facts = {
        "parameters": shop.policy.parameters,
        "threads": torch.get_num_threads(),
        "precision": run.environment["precision"],
        "resumed_from": resumed,
    }
    shop.progress.started(c, run.path, facts)
    try:
        if proofs is not None:
            state = _begin(shop, state, proofs)
        state = improve(shop, state, shop.play)
        _finish(shop, state)
    except TriloopError as error:
        with suppress(TriloopError):  # a full disk is told once
            run.append([event_row(state.round, type(error).__name__, {"reason": str(error)})])
        raise
    if state.stopped:
        raise GuardStop(_farewell(run, state))
    summary = summarise(run)
    shop.progress.finished(summary)
    return summary


def _proved(made: Parts, progress: Progress) -> list[Verdict]:
    """The judge's preflight, whole: stopped by the clock, it would leave other rows behind each time."""
    if not made.config.guards.preflight:
        return []
    progress.stage("preflight: does the verifier accept right answers and reject wrong ones?")
    verdicts = preflight(made.env, made.judge, seed=made.config.seed, seconds=math.inf)
    bad = [v for v in verdicts if v.action == "stop"]
    if bad:
        raise VerifierError(
            f"the verifier failed its preflight: {'; '.join(v.reason for v in bad)}. Mend it, or add "
            "--guards.preflight off to run all the same"
        )
    return verdicts


def _begin(shop: Workshop, state: LoopState, proofs: Sequence[Verdict]) -> LoopState:
    """What happens once, before round 1: the first held-out score and checkpoint. Done again, it changes nothing."""
    c = shop.config
    shop.run.append(map(verdict_row, proofs))
    shop.progress.stage(f"evaluating {c.eval_n} held-out prompts")
    before = measure_held_out(shop, 0, c.eval_n, interrupted=shop.interrupted)
    commit_evaluation(shop, "before", 0, before)
    shop.progress.evaluated("before", before.summary())
    return commit_checkpoint(shop, state)


def _finish(shop: Workshop, state: LoopState) -> None:
    """What happens once, after the last round: the last held-out score. Done again, it changes nothing."""
    c, run = shop.config, shop.run
    run.rewind(state.round)  # rounds that were played when the run was to be longer
    shop.progress.stage(f"evaluating {c.eval_n} held-out prompts")
    after = measure_held_out(shop, state.round, c.eval_n, interrupted=shop.interrupted)
    commit_evaluation(shop, "after", state.round, after)
    shop.progress.evaluated("after", after.summary())
    events = [event_row(state.round, "finished", {"weights_sha256": shop.policy.weights_sha256()})]
    if state.stopped:
        events.append(event_row(state.round, "GuardStop", {"reason": _farewell(run, state)}))
    run.append(events)


def _farewell(run: Run, state: LoopState) -> str:
    return f"{state.stopped}. Nothing is lost: the samples are in the report of {run.path}"


def evaluate_policy(config: RunConfig, n: int, *, seed: int = 0, original: str | None = None) -> dict[str, Any]:
    """Held-out gold score of ``config.policy`` on ``config.env``.

    ``original`` names the model that the policy began as, for tasks that judge fluency under it; default: the policy.
    """
    set_threads(config.threads, config.policy)
    model = load_policy(config)
    began = (
        model if original in (None, config.policy) else load_policy(dataclasses.replace(config, policy=original or ""))
    )
    task = make_env(config.env, began.frozen())
    longest = min(task.max_tokens, config.sampling.max_tokens) if original else task.max_tokens
    sampling = dataclasses.replace(config.sampling, max_tokens=longest, stop=tuple(task.stop))
    with judging(config, task) as (judged, _):
        result = evaluate(model, judged, n, sampling, Tag(seed=seed, round=0, purpose="eval"), level=config.env.level)
    return {**result.summary(), "env": config.env.name, "policy": config.policy, "seed": seed}
