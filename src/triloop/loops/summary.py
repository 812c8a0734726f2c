"""What came of a run, computed from its store alone: the same for finished, stopped, interrupted and resumed runs."""

from __future__ import annotations

from typing import Any

from triloop.store.run import Run

__all__ = ["summarise"]


def summarise(run: Run) -> dict[str, Any]:
    """The object of ``triloop run --json``. ``eval_after`` is None while a run has not come to its end."""
    rounds = [m for m in run.metrics() if m["round"] >= 1]
    timings = run.timings()
    evaluations = [r.payload for r in run.rows(kind="eval")]
    finished = [r.payload for r in run.rows(kind="event") if r.payload["name"] == "finished"]
    tokens = int(sum(t["tokens"] for t in timings))
    sampling = sum(t["rollout_seconds"] for t in timings)
    return {
        "recipe": run.config.get("recipe"),
        "seed": run.config.get("seed"),
        "rounds": len(rounds),
        "eval_before": _evaluation(evaluations, "before"),
        "eval_after": _evaluation(evaluations, "after"),
        "tokens_generated": tokens,
        "seconds": sum(t["seconds"] for t in timings),
        "tokens_per_second": tokens / sampling if sampling else 0.0,
        "rollout_seconds": sampling,
        "judge_seconds": sum(t["judge_seconds"] for t in timings),
        "learn_seconds": sum(t["learn_seconds"] for t in timings),
        "guards": _guards(run),
        "metrics_last": rounds[-1] if rounds else {},
        "run_dir": str(run.path),
        "weights_sha256": finished[-1]["weights_sha256"] if finished else None,
        "store_digest": run.digest(),
    }


def _evaluation(evaluations: list[dict[str, Any]], when: str) -> dict[str, Any] | None:
    found = [e for e in evaluations if e["when"] == when]
    return {k: found[-1][k] for k in ("metric", "value", "ci95", "n")} if found else None


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
