"""Questions that reports and guards ask of the log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from triloop.records import Completion, Episode, Feedback, Prompt, Verdict
from triloop.store.codec import Row
from triloop.store.log import EventLog
from triloop.store.translate import to_completion, to_feedback, to_prompt, to_verdict

__all__ = ["ancestors", "completions", "episodes", "feedback", "per_round", "prompts", "verdicts"]


def per_round(log: EventLog, kind: str) -> list[dict[str, Any]]:
    """Payloads of this kind, one per round, ascending, each with its ``round``."""
    rows = sorted(log.rows(kind), key=lambda row: row.round)
    return [{"round": row.round, **row.payload} for row in rows]


def verdicts(log: EventLog, state: str | None) -> list[Verdict]:
    """Verdicts by round, within a round in the order they were given."""
    rows = sorted(log.rows("verdict", state=state), key=lambda row: row.round)
    return [to_verdict(row) for row in rows]


def prompts(log: EventLog, ids: Iterable[str]) -> dict[str, Prompt]:
    """Prompts by id; ids of rows of another kind are left out."""
    found = log.find(list(dict.fromkeys(ids)))
    return {id: to_prompt(row) for id, row in found.items() if row.kind == "prompt"}


def completions(log: EventLog, round: int | None, purpose: str | None) -> list[Completion]:
    """Completions of one purpose, or of all when it is None."""
    rows = log.rows("completion", round)
    return [to_completion(row) for row in rows if purpose is None or row.payload["purpose"] == purpose]


def feedback(log: EventLog, round: int | None) -> dict[str, list[Feedback]]:
    """Judgements by completion id, each list in the order they were given."""
    judged: dict[str, list[Feedback]] = {}
    for row in log.rows("feedback", round):
        judged.setdefault(row.parents[0], []).append(to_feedback(row))
    return judged


def episodes(log: EventLog, round: int, purpose: str | None) -> list[Episode]:
    """Episodes of a round, put together again from their rows.

    Only the judgements that the episode was paid for by are in it; a later one, a person's say, is in ``feedback``.
    """
    rewards = [row for row in log.rows("episode", round) if purpose is None or row.payload["purpose"] == purpose]
    drawn = {row.id: to_completion(row) for row in log.rows("completion", round)}
    judged = {row.id: to_feedback(row) for row in log.rows("feedback", round)}
    asked = prompts(log, (drawn[row.parents[0]].prompt_id for row in rewards))
    return [
        Episode(
            prompt=asked[drawn[row.parents[0]].prompt_id],
            completion=drawn[row.parents[0]],
            feedback=tuple(judged[id] for id in row.parents[1:]),
            reward=row.payload["reward"],
        )
        for row in rewards
    ]


def ancestors(log: EventLog, id: str) -> list[Row]:
    """All rows that ``id`` was made from, nearest generation first."""
    seen = {id}
    found: list[Row] = []
    generation = log.find([id])
    while generation:
        wanted = [parent for row in generation.values() for parent in row.parents if parent not in seen]
        seen.update(wanted)
        rows = log.find(list(dict.fromkeys(wanted)))
        generation = {parent: rows[parent] for parent in dict.fromkeys(wanted) if parent in rows}
        found.extend(generation.values())
    return found
