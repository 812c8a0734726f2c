"""What a round leaves behind: rows in the store, and from time to time a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from triloop.loops.evaluate import Evaluation
from triloop.loops.state import LoopState, Workshop, save_state
from triloop.records import Episode, Verdict
from triloop.store.codec import Row
from triloop.store.translate import episode_rows, event_row, metrics_row, timing_row, verdict_row

__all__ = ["commit_checkpoint", "commit_evaluation", "commit_round", "roll_back"]


def commit_round(
    shop: Workshop,
    round: int,
    episodes: Sequence[Episode],
    metrics: Mapping[str, float],
    verdicts: Sequence[Verdict],
    timing: Mapping[str, float],
) -> None:
    """All rows of a round in one transaction."""
    shop.run.append(
        [
            *episode_rows(episodes),
            metrics_row(round, metrics),
            *map(verdict_row, verdicts),
            timing_row(round, timing),
        ]
    )


def commit_evaluation(shop: Workshop, when: str, round: int, evaluation: Evaluation) -> None:
    """A held-out check and its samples. ``when``: before, mid, after, canary."""
    facts = {**evaluation.summary(), "when": when, "round": round, "proxy": evaluation.proxy}
    row = Row(id=f"eval/{when}/{round}", round=round, kind="eval", payload=facts)
    shop.run.append([row, *episode_rows(evaluation.episodes, purpose="canary" if when == "canary" else "eval")])


def commit_checkpoint(shop: Workshop, state: LoopState) -> LoopState:
    """Make this the point that a killed run goes on from. Keeps track of the best gold score measured so far."""
    gold = state.history[-1].get("canary_gold") if state.history else None
    if gold is not None and (state.best_gold is None or gold > state.best_gold):
        state = dataclasses.replace(state, best_gold=gold, best_round=state.round)

    def write(folder: Path) -> None:
        shop.policy.save_state(folder)
        save_state(state, folder)

    shop.run.commit_checkpoint(state.round, write, gold=gold)
    return state


def roll_back(shop: Workshop, state: LoopState, reason: str) -> LoopState:
    """Put the weights back to the checkpoint with the best gold score, and go on with fresh prompts from there.

    The rounds since stay in the store as what happened. When a guard is still not content after ``guards.max_rollbacks``
    of these, or there is nothing to go back to, the state says that the run is to stop.
    """
    best = shop.run.best_checkpoint() or shop.run.latest_checkpoint()
    if best is None or state.rollbacks >= shop.config.guards.max_rollbacks:
        return dataclasses.replace(state, stopped=reason)
    shop.policy.load_state(best.path)
    shop.run.append([event_row(state.round, "rolled back", {"to_round": best.round, "reason": reason})])
    return commit_checkpoint(shop, dataclasses.replace(state, rollbacks=state.rollbacks + 1))
