"""A run written through the store, without a policy: what the loop would have left behind."""

from __future__ import annotations

import math
from pathlib import Path

from triloop.loops.config import RunConfig, to_mapping
from triloop.records import Completion, Episode, Feedback, Prompt, Verdict, completion_id
from triloop.stats import wilson
from triloop.store import Row, Run, episode_rows, event_row, metrics_row, timing_row, verdict_row

ENVIRONMENT = {"threads": 2, "precision": "float32", "torch": "2.13.0", "python": "3.11", "device": "cpu"}
NASTY = '<script>alert(1)</script> & "quoted" \x00\x1b[2J \u202egnp.exe'


def episode(round: int, prompt_id: str, index: int, text: str, value: float | None) -> Episode:
    prompt = Prompt(id=prompt_id, text=f"Make 24 from <b>3</b>, 8, 1 ({prompt_id}).\n", env="countdown", answer="24")
    completion = Completion(
        id=completion_id(round, prompt_id, index),
        prompt_id=prompt_id,
        round=round,
        index=index,
        prompt_tokens=(1, 2, 3),
        tokens=(4, 5),
        logps=(-0.1, -0.2),
        mask=(True, True),
        text=text,
        finish="length" if index else "stop",
        policy_version=2 * round,
    )
    reason = None if value is None else f"is {'24' if value > 0 else '23'} <i>sic</i>"
    judged = Feedback(
        value=value, reason=reason or "", source="env:countdown", failure="raised" if value is None else None
    )
    return Episode(prompt=prompt, completion=completion, feedback=(judged,), reward=value)


def evaluation(run: Run, when: str, round: int, passed: int, n: int, lucky: int = 2) -> None:
    interval = wilson(passed, n)
    facts = {"when": when, "round": round, "metric": "pass@1", "value": passed / n, "n": n, "proxy": None}
    row = Row(
        id=f"eval/{when}/{round}", round=round, kind="eval", payload={**facts, "ci95": [interval.low, interval.high]}
    )
    purpose = "canary" if when == "canary" else "eval"
    seen = [
        episode(round, f"{purpose}-{k}", 0, NASTY if k == 0 else f"8*3*{k}", 1 if k % lucky else -1) for k in range(5)
    ]
    run.append([row, *episode_rows(seen, purpose=purpose)])


def make(
    path: Path,
    *,
    rounds: int = 12,
    done: int | None = None,
    stop: int | None = None,
    config: RunConfig | None = None,
    lucky: int = 2,
) -> Path:
    """A finished run; with ``done`` fewer rounds and no end (killed); with ``stop`` ended by the canary in that round.

    Of the held-out problems every ``lucky``-th is failed.
    """
    with Run.create(path, to_mapping(config or RunConfig(recipe="demo", rounds=rounds)), ENVIRONMENT) as run:
        run.append([verdict_row(Verdict(guard="preflight:right", round=0, value=1, reason="16 of 16 accepted"))])
        if done == 0:
            return path
        evaluation(run, "before", 0, 170, 512)
        run.commit_checkpoint(0, _model)
        last = stop or done or rounds
        for round in range(1, last + 1):
            _round(run, round, stop == round)
            if round % 4 == 0:
                evaluation(run, "mid", round, min(128, 60 + round), 128)
                evaluation(run, "canary", round, 60, 128)
        if done is None:
            evaluation(run, "after", last, 468, 512, lucky)
            run.commit_checkpoint(last, _model, gold=0.9)
            run.append([event_row(last, "finished", {"weights_sha256": "ab" * 32})])
        if stop is not None:
            run.append([event_row(last, "GuardStop", {"reason": f"stopped in round {stop} by canary"})])
    return path


def _round(run: Run, round: int, stopped: bool) -> None:
    seen = [episode(round, f"{round}-{k}", i, "8*3", (1, 0, -1, None)[(k + i) % 4]) for k in range(3) for i in range(2)]
    metrics = {
        "round": float(round),
        "reward": -0.4 + 0.1 * round,
        "entropy": 0.6 / round,
        "kl": math.nan if round == 3 else 0.01 * round,
        "length": 12.0,
        "zero_std_share": 0.2,
        "ppl_original": 1.9 + 0.01 * round,
        **({"canary_proxy": 0.9, "canary_gold": 0.1, "canary_n": 128.0} if round % 4 == 0 else {}),
    }
    verdicts = [Verdict(guard="kl", round=round, value=1 if round > 2 else 0, reason="KL is low")]
    if round in (5, 6):
        verdicts.append(Verdict(guard="entropy", round=round, value=-1, reason="entropy <fell>", action="warn"))
    if round == 7:
        verdicts.append(Verdict(guard="spread", round=round, value=-1, reason="little to learn from", action="note"))
    if stopped:
        samples = tuple(e.completion.id for e in seen[:2])
        told = Verdict(
            guard="canary", round=round, value=-1, reason="the reward is gamed", action="stop", samples=samples
        )
        verdicts.append(told)
    timing = {"seconds": 0.6, "rollout_seconds": 0.3, "judge_seconds": 0.0, "learn_seconds": 0.2, "tokens": 3000.0}
    rows = [*episode_rows(seen), metrics_row(round, metrics), *map(verdict_row, verdicts)]
    run.append([*rows, timing_row(round, {**timing, "tokens_per_second": 1e4})])


def _model(folder: Path) -> None:
    (folder / "policy").mkdir()
    (folder / "policy" / "config.json").write_text("{}")
