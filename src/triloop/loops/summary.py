"""What came of a run, computed from its store alone: the same for finished, stopped, interrupted and resumed runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from triloop.store.codec import Row
from triloop.store.run import Run

__all__ = ["summarise"]


def summarise(run: Run) -> dict[str, Any]:
    """The object of ``triloop run --json``. ``eval_after`` and ``weights_sha256`` are None before a run is at its end."""
    rounds = [m for m in run.metrics() if m["round"] >= 1]
    last = rounds[-1]["round"] if rounds else 0
    # Seconds of rounds that are no part of the run any more were spent, yet they are not this run's.
    timings = [t for t in run.timings() if t["round"] <= last]
    finished = [r for r in run.rows(kind="event") if r.payload["name"] == "finished" and r.round == last]
    evaluations = list(run.rows(kind="eval"))
    tokens = int(sum(t["tokens"] for t in timings))
    sampling = sum(t["rollout_seconds"] for t in timings)
    return {
        "recipe": run.config.get("recipe"),
        "seed": run.config.get("seed"),
        "rounds": len(rounds),
        "eval_before": _evaluation(evaluations, "before", 0),
        "eval_after": _evaluation(evaluations, "after", last),
        "tokens_generated": tokens,
        "seconds": sum(t["seconds"] for t in timings),
        "tokens_per_second": tokens / sampling if sampling else 0.0,
        "rollout_seconds": sampling,
        "judge_seconds": sum(t["judge_seconds"] for t in timings),
        "learn_seconds": sum(t["learn_seconds"] for t in timings),
        "guards": _guards(run),
        "metrics_first": rounds[0] if rounds else {},
        "metrics_last": rounds[-1] if rounds else {},
        "run_dir": str(run.path),
        "weights_sha256": finished[-1].payload["weights_sha256"] if finished else None,
        "store_digest": run.digest(),
    }


def _evaluation(rows: Iterable[Row], when: str, round: int) -> dict[str, Any] | None:
    """A run that went on past its first end has an ``after`` of that round too: only that of the last round counts."""
    found = [r.payload for r in rows if r.payload["when"] == when and r.round == round]
    keys = ("metric", "value", "ci95", "n", "breakdown")
    return {k: found[-1][k] for k in keys if k in found[-1]} if found else None


def _guards(run: Run) -> list[dict[str, Any]]:
    """Every alarm, and for each guard without one its last word."""
    alarms, quiet = [], {}
    for v in run.verdicts():
        entry = {"name": v.guard, "verdict": v.value, "round": v.round, "reason": v.reason, "action": v.action}
        if v.value < 0:
            alarms.append(entry)
        quiet[v.guard] = entry
    heard = {a["name"] for a in alarms}
    return [*alarms, *(e for name, e in quiet.items() if name not in heard)]
