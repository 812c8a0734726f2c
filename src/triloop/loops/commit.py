"""What a round leaves behind: rows in the store, and from time to time a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from triloop.errors import StoreError
from triloop.loops.evaluate import Evaluation
from triloop.loops.played import Played
from triloop.loops.state import LoopState, Workshop, save_state
from triloop.records import Verdict
from triloop.store.checkpoint import Checkpoint, Retention, verify
from triloop.store.codec import Row
from triloop.store.translate import episode_rows, event_row, metrics_row, timing_row, verdict_row

__all__ = ["commit_checkpoint", "commit_evaluation", "commit_round", "pause", "roll_back"]


def commit_round(
    shop: Workshop,
    round: int,
    played: Played,
    metrics: Mapping[str, float],
    verdicts: Sequence[Verdict],
    timing: Mapping[str, float],
    checks: Sequence[tuple[str, Evaluation]] = (),
) -> None:
    """All rows of a round, its held-out checks included, in one transaction."""
    shop.run.append(
        [
            *episode_rows(played.episodes, played.purpose),
            *played.rows,
            metrics_row(round, metrics),
            *map(verdict_row, verdicts),
            timing_row(round, timing),
            *(row for when, check in checks for row in _evaluation_rows(when, round, check)),
        ]
    )


def commit_evaluation(shop: Workshop, when: str, round: int, evaluation: Evaluation) -> None:
    """A held-out check and its samples. ``when``: before, mid, after, canary."""
    shop.run.append(_evaluation_rows(when, round, evaluation))


def _evaluation_rows(when: str, round: int, evaluation: Evaluation) -> list[Row]:
    facts = {**evaluation.summary(), "when": when, "round": round, "proxy": evaluation.proxy}
    row = Row(id=f"eval/{when}/{round}", round=round, kind="eval", payload=facts)
    return [row, *episode_rows(evaluation.episodes, purpose="canary" if when == "canary" else "eval")]


def commit_checkpoint(shop: Workshop, state: LoopState, *, gold: bool = True) -> LoopState:
    """Make this a point that a killed run goes on from, and a guard back to. ``gold``: whether the last canary is of it."""
    state = dataclasses.replace(state, anchor=state.round)
    score = state.history[-1].get("canary_gold") if gold and state.history else None
    shop.run.commit_checkpoint(state.round, _writer(shop, state), gold=score)
    return state


def pause(shop: Workshop, state: LoopState) -> None:
    """Keep a state between two of the run's own checkpoints, so that going on need not play its rounds again.

    It has no gold score, does not move the anchor and drives no other checkpoint from the disk: a run that was interrupted
    so often decides like one that never was.
    """
    kept = shop.run.checkpoints()
    if not kept or kept[-1].round != state.round:
        shop.run.commit_checkpoint(state.round, _writer(shop, state), retention=Retention(last=len(kept) + 1))


def roll_back(shop: Workshop, state: LoopState, reason: str) -> LoopState:
    """Put the weights back to the checkpoint with the best gold score, and go on with fresh prompts from there.

    The rounds since did happen and stay in the store, live. Their alarms are done with. When a guard is still not content
    after ``guards.max_rollbacks`` of these, or there is nothing to go back to, the state says that the run is to stop.
    """
    if state.rollbacks >= shop.config.guards.max_rollbacks:
        return dataclasses.replace(state, stopped=reason)
    best = shop.run.best_checkpoint() or _anchor(shop, state)
    if best is None:
        return dataclasses.replace(state, stopped=reason)
    shop.load_state(best.path)
    shop.run.append([event_row(state.round, "rolled back", {"to_round": best.round, "reason": reason})])
    # The last canary judged the weights that are given up here; those put back keep their score under their own round.
    return commit_checkpoint(shop, dataclasses.replace(state, rollbacks=state.rollbacks + 1, alarms=()), gold=False)


def _writer(shop: Workshop, state: LoopState) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        shop.policy.save_state(folder)
        for name, part in shop.parts.items():
            (folder / name).mkdir()
            part.save_state(folder / name)
        save_state(state, folder)

    return write


def _anchor(shop: Workshop, state: LoopState) -> Checkpoint | None:
    """The last checkpoint of the run's own, if its files are intact."""
    for candidate in shop.run.checkpoints():
        if candidate.round == state.anchor:
            try:
                verify(candidate)
            except StoreError:
                continue
            return candidate
    return None
