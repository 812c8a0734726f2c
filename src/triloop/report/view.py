"""What the page shows of a run, read from its store once. Nothing below this file knows the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triloop.records import Episode, Prompt, Verdict
from triloop.report.markup import percent
from triloop.store import Checkpoint, Run
from triloop.store.codec import Row
from triloop.store.translate import to_completion, to_feedback, to_prompt

__all__ = ["Evaluation", "RunView", "is_note", "read"]

_PER_ROUND = 6
"""Samples of one round that are shown."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One measurement on held-out problems."""

    when: str
    """``before``, ``mid`` or ``after``."""
    round: int
    metric: str
    value: float
    low: float
    high: float
    n: int

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of problems, and not a mean score of any range."""
        return self.metric != "mean score"

    def told(self, value: float) -> str:
        """A value of this metric: in per cent where it is a share, else the number."""
        return percent(value) if self.is_share else f"{value:.3f}".replace("-", "−")


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run, as plain values."""

    name: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    status: str
    """``finished``, ``stopped`` (by a guard), ``failed``, or ``unfinished`` (killed, interrupted, or still going)."""
    reason: str
    """Why it was stopped or failed, as the run recorded it."""
    stop: Verdict | None
    """The verdict that stopped the run."""
    metrics: Sequence[Mapping[str, Any]]
    """One per round, ascending, timings merged in; rounds that were rolled back are among them."""
    undone: frozenset[int]
    """Rounds that a guard rolled back: their rows are orphaned, and shown all the same."""
    evaluations: Sequence[Evaluation]
    verdicts: Sequence[Verdict]
    episodes: Mapping[int, Sequence[Episode]]
    """Some of the first, the middle and the last round; held-out ones, which repeat their problems, where there are any."""
    held_out: bool
    """Whether ``episodes`` are those of held-out checks."""
    evidence: Sequence[Episode]
    """The samples that the stopping verdict, or else the last alarm, points to."""
    checkpoints: Sequence[Checkpoint]
    events: Sequence[Mapping[str, Any]]
    artifacts: Sequence[Mapping[str, Any]]
    """What the stages of a run made, in order: identifiers, parents and facts. Empty for a run without stages."""
    counts: Mapping[str, int]
    digest: str

    @property
    def before(self) -> Evaluation | None:
        return next((e for e in self.evaluations if e.when == "before"), None)

    @property
    def after(self) -> Evaluation | None:
        """The last measurement, if there is one besides that before the run."""
        later = [e for e in self.evaluations if e.when != "before"]
        return next((e for e in reversed(later) if e.when == "after"), later[-1] if later else None)

    @property
    def last_round(self) -> int | None:
        return int(self.metrics[-1]["round"]) if self.metrics else None

    def series(self, name: str) -> list[tuple[float, float]]:
        """(round, value) wherever ``name`` was measured."""
        return [(float(m["round"]), float(m[name])) for m in self.metrics if isinstance(m.get(name), int | float)]


def is_note(verdict: Verdict) -> bool:
    """Whether a guard only wanted something to be known, and asked for nothing."""
    return verdict.value < 0 and verdict.action in ("none", "note")


def read(run: Run) -> RunView:
    """Read all that the page needs; a few rounds' samples, not all of them."""
    metrics, undone = _metrics(run)
    evaluations = _evaluations(run)
    verdicts = _verdicts(run)
    events = [{"round": row.round, "time": row.time, **row.payload} for row in run.rows("event")]
    status, reason = _status(events, evaluations)
    stop = _stop(verdicts) if status == "stopped" else None
    checked = sorted({e.round for e in evaluations})
    rounds = checked if len(checked) > 1 else [int(m["round"]) for m in metrics if int(m["round"]) not in undone]
    purpose = "eval" if len(checked) > 1 else "train"
    shown = sorted({rounds[0], rounds[len(rounds) // 2], rounds[-1]}) if rounds else []
    return RunView(
        name=run.path.resolve().name,
        config=run.config,
        environment=run.environment,
        status=status,
        reason=reason,
        stop=stop,
        metrics=metrics,
        undone=undone,
        evaluations=evaluations,
        verdicts=verdicts,
        episodes={round: _spread(run.episodes(round, purpose=purpose)) for round in shown},
        held_out=purpose == "eval",
        evidence=_evidence(run, stop or next((v for v in reversed(verdicts) if v.value < 0 and v.samples), None)),
        checkpoints=run.checkpoints(),
        events=events,
        artifacts=[{"id": row.id, "parents": row.parents, "round": row.round, **row.payload} for row in _made(run)],
        counts=_counts(run),
        digest=run.digest(),
    )


def _made(run: Run) -> list[Row]:
    """In the order in which they were made; what a gate put back comes after the gate."""
    order = {"gate": 1, "policy": 2}
    return sorted(run.rows("artifact"), key=lambda row: (row.round, order.get(row.payload["thing"], 0), row.id))


def _metrics(run: Run) -> tuple[list[dict[str, Any]], frozenset[int]]:
    """Metrics of every round with its timing; a round that exists only as orphaned was rolled back."""
    found: dict[int, tuple[str, dict[str, Any]]] = {}
    for row in run.rows("metrics", state=None):
        if row.state == "live" or found.get(row.round, ("", {}))[0] != "live":
            found[row.round] = (row.state, {**row.payload, "round": row.round})
    for row in run.rows("timing"):
        if row.round in found:
            found[row.round][1].update({k: v for k, v in row.payload.items() if k != "round"})
    undone = frozenset(round for round, (state, _) in found.items() if state != "live")
    return [found[round][1] for round in sorted(found)], undone


def _evaluations(run: Run) -> list[Evaluation]:
    found = []
    for row in run.rows("eval"):
        if row.payload.get("when") == "canary":
            continue
        low, high = row.payload.get("ci95") or (row.payload["value"],) * 2
        found.append(
            Evaluation(
                when=str(row.payload.get("when", "mid")),
                round=int(row.payload.get("round", row.round)),
                metric=str(row.payload.get("metric", "pass@1")),
                value=float(row.payload["value"]),
                low=float(low),
                high=float(high),
                n=int(row.payload.get("n", 0)),
            )
        )
    order = {"before": 0, "mid": 1, "after": 2}
    return sorted(found, key=lambda e: (e.round, order.get(e.when, 1)))


def _verdicts(run: Run) -> list[Verdict]:
    """The live verdict of each guard and round, or the one that was rolled back."""
    live = {(v.round, v.guard): v for v in run.verdicts()}
    everything = {(v.round, v.guard): v for v in run.verdicts(state=None)}
    return [live.get(key, verdict) for key, verdict in sorted(everything.items(), key=lambda item: item[0])]


def _status(events: Sequence[Mapping[str, Any]], evaluations: Sequence[Evaluation]) -> tuple[str, str]:
    """State and reason, from the last thing that happened to the run; a killed run had no time to say anything."""
    last: Mapping[str, Any] = next((e for e in reversed(events) if e.get("name") != "rolled back"), {})
    name, reason = str(last.get("name", "")), str(last.get("reason", ""))
    if name == "GuardStop":
        return "stopped", reason
    if name == "finished" or (not events and any(e.when == "after" for e in evaluations)):
        return "finished", ""
    return ("unfinished" if name in ("", "resumed", "Interrupted") else "failed"), reason


def _stop(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The verdict that ended the run: of the last round with an alarm, the one that asked for most."""
    alarms = [v for v in verdicts if v.value < 0 and v.round >= 1]
    weight = {"stop": 2, "roll_back": 1}
    return max(alarms, key=lambda v: (v.round, weight.get(v.action, 0)), default=None)


def _spread(found: Sequence[Episode]) -> list[Episode]:
    """A few episodes of different prompts, the same ones at every rendering."""
    first: dict[str, Episode] = {}
    for episode in found:
        first.setdefault(episode.prompt.id, episode)
    chosen = sorted(first.values(), key=lambda e: e.prompt.id)
    return chosen[:_PER_ROUND]


def _evidence(run: Run, verdict: Verdict | None) -> list[Episode]:
    """The samples a verdict names, also when its round was rolled back and its rows are orphaned."""
    if verdict is None or not verdict.samples:
        return []
    wanted = set(verdict.samples[:4])
    found = {e.completion.id: e for round in _rounds_of(wanted, verdict.round) for e in _any_state(run, round, wanted)}
    return [found[id] for id in verdict.samples if id in found]


def _rounds_of(ids: Iterable[str], default: int) -> set[int]:
    """Completion identifiers begin with their round."""
    heads = {id.partition("/")[0] for id in ids}
    return {int(head) for head in heads if head.isdigit()} or {default}


def _any_state(run: Run, round: int, wanted: set[str]) -> list[Episode]:
    drawn = {r.id: to_completion(r) for r in run.rows("completion", round, state=None) if r.id in wanted}
    judged: dict[str, list[Any]] = {}
    for row in run.rows("feedback", round, state=None) if drawn else ():
        if row.parents and row.parents[0] in drawn:
            judged.setdefault(row.parents[0], []).append(to_feedback(row))
    rewards = {
        row.parents[0]: row.payload["reward"]
        for row in (run.rows("episode", round, state=None) if drawn else ())
        if row.parents and row.parents[0] in drawn
    }
    prompts = _prompts(run, {c.prompt_id for c in drawn.values()})
    return [
        Episode(
            prompt=prompts[c.prompt_id],
            completion=c,
            feedback=tuple(judged.get(c.id, ())),
            reward=rewards.get(c.id, judged[c.id][0].value if judged.get(c.id) else None),
        )
        for c in drawn.values()
        if c.prompt_id in prompts
    ]


def _prompts(run: Run, ids: set[str]) -> dict[str, Prompt]:
    found = dict(run.prompts(ids))
    if missing := ids - found.keys():
        found.update((row.id, to_prompt(row)) for row in run.rows("prompt", state=None) if row.id in missing)
    return found


def _counts(run: Run) -> dict[str, int]:
    """Rows by state: what the run is, and what was rolled back or replayed differently."""
    return {"live": run.log.count(), "orphaned": run.log.count(state="orphaned")}
