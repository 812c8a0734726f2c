"""Records to rows and back, exactly. Each pair of functions is one kind; identifiers name what a row belongs to."""

from __future__ import annotations

import time as clock
from collections.abc import Iterable, Mapping
from typing import Any

from triloop.records import Completion, Episode, Feedback, Prompt, Turn, Verdict
from triloop.store.codec import Row, pack_floats, pack_ints, unpack_floats, unpack_ints

__all__ = [
    "completion_row",
    "episode_rows",
    "event_row",
    "feedback_row",
    "metrics_row",
    "prompt_row",
    "timing_row",
    "to_completion",
    "to_feedback",
    "to_prompt",
    "to_verdict",
    "verdict_row",
]

_MASK = bytes.maketrans(b"\x00\x01", b"01")


def prompt_row(prompt: Prompt, round: int) -> Row:
    """A prompt under its own id; drawn again in a later round it is the same row."""
    payload = {
        "text": prompt.text,
        "env": prompt.env,
        "answer": prompt.answer,
        "level": prompt.level,
        "meta": dict(prompt.meta),
        "turns": [[turn.role, turn.text] for turn in prompt.turns],
    }
    return Row(id=prompt.id, round=round, kind="prompt", payload=payload)


def to_prompt(row: Row) -> Prompt:
    """Inverse of ``prompt_row``."""
    fields = dict(row.payload)
    turns = tuple(Turn(role=role, text=text) for role, text in fields.pop("turns"))
    return Prompt(id=row.id, turns=turns, **fields)


def completion_row(completion: Completion, purpose: str = "train") -> Row:
    """``purpose`` tells samples of the training batch from those of an evaluation or of a guard's canary."""
    payload = {
        "prompt_id": completion.prompt_id,
        "index": completion.index,
        "prompt_tokens": pack_ints(completion.prompt_tokens),
        "tokens": pack_ints(completion.tokens),
        "logps": pack_floats(completion.logps),
        "mask": bytes(completion.mask).translate(_MASK).decode(),
        "text": completion.text,
        "finish": completion.finish,
        "policy_version": completion.policy_version,
        "purpose": purpose,
    }
    parents = (completion.prompt_id, *completion.parents)
    return Row(id=completion.id, round=completion.round, kind="completion", payload=payload, parents=parents)


def to_completion(row: Row) -> Completion:
    """Inverse of ``completion_row``."""
    fields = dict(row.payload)
    return Completion(
        id=row.id,
        prompt_id=fields["prompt_id"],
        round=row.round,
        index=fields["index"],
        prompt_tokens=unpack_ints(fields["prompt_tokens"]),
        tokens=unpack_ints(fields["tokens"]),
        logps=unpack_floats(fields["logps"]),
        mask=tuple(mark == "1" for mark in fields["mask"]),
        text=fields["text"],
        finish=fields["finish"],
        policy_version=fields["policy_version"],
        parents=row.parents[1:],
    )


def feedback_row(feedback: Feedback, completion_id: str, round: int, index: int | str = 0) -> Row:
    """One judgement of a completion. ``index``, a number or a name, tells several of one completion apart."""
    payload = {
        "value": feedback.value,
        "reason": feedback.reason,
        "source": feedback.source,
        "kind": feedback.kind,
        "confidence": feedback.confidence,
        "cost": feedback.cost,
        "breakdown": dict(feedback.breakdown),
        "failure": feedback.failure,
        **_beyond_value(feedback),
    }
    id = f"{completion_id}/feedback/{index}"
    others = tuple(other for other in (*feedback.about, *feedback.parents) if other != completion_id)
    return Row(id=id, round=round, kind="feedback", payload=payload, parents=(completion_id, *dict.fromkeys(others)))


def _beyond_value(feedback: Feedback) -> dict[str, Any]:
    """What most judgements lack, where there is any."""
    if not (feedback.about or feedback.content or feedback.consent or feedback.parents) and feedback.time is None:
        return {}
    fields: dict[str, Any] = {
        "about": list(feedback.about),
        "content": dict(feedback.content),
        "time": feedback.time,
        "consent": feedback.consent,
        "parents": list(feedback.parents),
    }
    return {name: value for name, value in fields.items() if value not in ([], {}, None, "")}


def to_feedback(row: Row) -> Feedback:
    """Inverse of ``feedback_row``."""
    fields = dict(row.payload)
    about, parents = fields.pop("about", ()), fields.pop("parents", ())
    return Feedback(**fields, about=tuple(about), parents=tuple(parents))


def verdict_row(verdict: Verdict) -> Row:
    """What one guard said of one round; its parents are the samples that show it."""
    payload = {
        "guard": verdict.guard,
        "value": verdict.value,
        "reason": verdict.reason,
        "action": verdict.action,
        "measured": dict(verdict.measured),
    }
    id = f"verdict/{verdict.round}/{verdict.guard}"
    return Row(id=id, round=verdict.round, kind="verdict", payload=payload, parents=verdict.samples)


def to_verdict(row: Row) -> Verdict:
    """Inverse of ``verdict_row``."""
    return Verdict(round=row.round, samples=row.parents, **row.payload)


def episode_rows(episodes: Iterable[Episode], purpose: str = "train") -> list[Row]:
    """Everything about these episodes: each prompt once, then completion, feedback and reward of each."""
    rows: dict[str, Row] = {}
    for episode in episodes:
        completion = episode.completion
        if episode.prompt.id not in rows:
            rows[episode.prompt.id] = prompt_row(episode.prompt, completion.round)
        judged = [
            feedback_row(feedback, completion.id, completion.round, i) for i, feedback in enumerate(episode.feedback)
        ]
        reward = Row(
            id=f"{completion.id}/episode",
            round=completion.round,
            kind="episode",
            payload={"reward": episode.reward, "purpose": purpose},
            parents=(completion.id, *(row.id for row in judged)),
        )
        for row in (completion_row(completion, purpose), *judged, reward):
            rows[row.id] = row
    return list(rows.values())


def metrics_row(round: int, metrics: Mapping[str, Any]) -> Row:
    """What was measured of one round. Wall-clock figures belong in ``timing_row``: metrics are part of the digest."""
    return Row(id=f"metrics/{round}", round=round, kind="metrics", payload=dict(metrics))


def timing_row(round: int, timing: Mapping[str, Any]) -> Row:
    """Seconds and rates of one round; outside the digest."""
    return Row(id=f"timing/{round}", round=round, kind="timing", payload=dict(timing))


def event_row(round: int, name: str, facts: Mapping[str, Any] | None = None) -> Row:
    """Something that happened to the run itself (resumed, interrupted, rolled back); outside the digest, always new."""
    id = f"event/{round}/{name}/{clock.time_ns()}"
    return Row(id=id, round=round, kind="event", payload={"name": name, **(facts or {})})
