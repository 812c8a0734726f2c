"""Where a round of the whole loop spends its time: sample, judge, learn, watch, commit. Random weights, rewards by lot."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from time import perf_counter

import column_task as task
import torch
from measuring import Others, arguments, median, note, peak_mb, report
from triloop_side import random_checkpoint, settings, workshop

from triloop.loops.improve import improve
from triloop.loops.learning import policy_gradient
from triloop.loops.progress import Silent
from triloop.loops.state import LoopState, Workshop

PARTS = ("rollout_seconds", "judge_seconds", "learn_seconds", "watch_seconds")


def rounds(shop: Workshop, state: LoopState, upto: int) -> tuple[LoopState, float]:
    """Run to round ``upto``; the state there and the seconds it took, commits and one checkpoint included."""
    t0 = perf_counter()
    state = improve(
        dataclasses.replace(shop, config=dataclasses.replace(shop.config, rounds=upto)), state, policy_gradient
    )
    assert state.round == upto, state.stopped
    return state, perf_counter() - t0


def measure(size: str, folder: Path, precision: str, threads: int, runs: int, each: int = 3) -> dict[str, object]:
    config = settings(random_checkpoint(folder, size), threads=threads, precision=precision, fixed=True, eos=(2,))
    shop = workshop(config, folder / f"run-{size}", lottery=True, progress=Silent(), interrupted=lambda: False)
    with shop.run:
        state, _ = rounds(shop, LoopState(), 1)
        others, seconds = Others(), []
        for _ in range(runs):
            state, took = rounds(shop, state, state.round + each)
            seconds.append(took / each)
        timings = shop.run.timings()[1:]
        assert all(t["tokens"] == task.PROMPTS * task.GROUP * task.MAX_NEW for t in timings), "tokens are missing"
        stored = sum(1 for _ in shop.run.rows(kind="completion"))
        assert stored == state.round * task.PROMPTS * task.GROUP, f"{stored} completions stored"
        rate = others.cores()
    parts = {name: median([t[name] for t in timings]) for name in PARTS}
    whole = median(seconds)
    return {
        "size": size,
        "completions/s": task.PROMPTS * task.GROUP / whole,
        "s/round": whole,
        **{name.replace("_seconds", " s"): value for name, value in parts.items()},
        "commit s": whole - sum(parts.values()),
        "peak MB so far": peak_mb(),
        "others": rate,
    }


def main() -> None:
    options = arguments(__doc__, sizes=("1m", "5m"), runs=3).parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            note(f"{size}: {options.runs} x 3 rounds")
            rows.append(measure(size, Path(folder), options.precision, options.threads, options.runs))
    facts = {"threads": torch.get_num_threads(), "precision": options.precision, "torch": torch.__version__}
    report("loop", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
