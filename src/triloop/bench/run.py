"""Runs one measurement and says what came of it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import torch

from triloop.bench.case import Case
from triloop.bench.limits import Floor, Limits, faster_threads, measure_limits
from triloop.bench.loop import Loop
from triloop.bench.measuring import Others, machine, median, peak_bytes, reset_peak
from triloop.bench.products import noted, replayed
from triloop.bench.rollout import Rollout
from triloop.bench.train import Train
from triloop.bench.work import Samples
from triloop.errors import UsageError
from triloop.kernels.native import describe
from triloop.kernels.panels import tally
from triloop.loops.build import set_threads
from triloop.nn.decoder import DecoderConfig
from triloop.policies.native import NativePolicy

__all__ = ["CLEAN", "Bench", "bench"]

CLEAN = 0.1
"""Cores that others may use before figures are no longer clean."""
_SECONDS = 10.0
_MOST = 3


class Bench(Protocol):
    """Something that can be run again and again."""

    policy: NativePolicy
    samples: Samples
    rows: int
    """Of a decode step; 0 when there is none."""
    pass_tokens: int
    """Of a training pass; 0 when there is none."""

    def work(self, runs: int) -> list[dict[str, float]]:
        """Seconds of so many runs, by part."""

    def floor(self, limits: Limits) -> Floor:
        """What a run would take at these limits."""

    def close(self) -> None:
        """Leave nothing behind."""


_BENCHES: dict[str, Callable[[Case], Bench]] = {"rollout": Rollout, "train": Train, "loop": Loop}


def bench(case: Case, note: Callable[[str], None]) -> dict[str, Any]:
    """Measure and return the answer of ``triloop bench``; ``note`` is told how far it is.

    Raises UsageError for a device that is not there, WorkError when what was measured is not what was asked for.
    """
    if case.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device is cuda, and torch finds no GPU here; use --device cpu, or install torch for CUDA")
    threads, before = torch.get_num_threads(), torch.is_grad_enabled()
    try:
        set_threads(case.threads)
        return _measured(case, note)
    finally:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(before)


def _measured(case: Case, note: Callable[[str], None]) -> dict[str, Any]:
    what = f"{case.name} {case.size}, {case.batch} x {case.length} tokens"
    note(f"{what}: making the model")
    made = _BENCHES[case.name](case)
    try:
        threads = _settle_threads(case, made)
        note(f"{what}, {threads} threads: the machine's limits, and a run that is not counted")
        limits = _limits(made, case)
        _reset_peak(case.device)
        t0 = perf_counter()
        with noted() as products:
            made.work(1)
        runs = case.repeats or max(1, min(_MOST, int(_SECONDS / (perf_counter() - t0))))
        note(f"{what}: measuring {runs} runs")
        others = Others()
        before = tally()[1]
        parts = made.work(runs)
        own = (tally()[1] - before) / runs
        peak = _peak(case.device)
        multiplying = own + median([replayed(products) for _ in range(runs)])
        cores = others.cores()
        limits = limits.best(_limits(made, case))
        answer = _answer(case, made, parts, limits)
        return answer | {
            "products_seconds": multiplying,
            "products_share": multiplying / answer["seconds"],
            "rest_seconds": max(0.0, answer["seconds"] - multiplying),
            "threads": threads,
            "peak_memory_bytes": peak,
            "other_cores": round(cores, 3),
            "clean": cores <= CLEAN,
        }
    finally:
        made.close()
        gc.collect()


def _answer(case: Case, made: Bench, parts: list[dict[str, float]], limits: Limits) -> dict[str, Any]:
    seconds = [sum(p.values()) for p in parts]
    middle, floor, samples = median(seconds), made.floor(limits), made.samples
    about = machine()
    return {
        "benchmark": case.name,
        "size": case.size,
        "batch": case.batch,
        "length": case.length,
        "vocab": case.vocab,
        "parameters": made.policy.parameters,
        "device": case.device,
        "ternary": case.ternary or None,
        "ternary_head": case.ternary_head if case.ternary else None,
        "precision": {torch.float32: "fp32", torch.bfloat16: "bf16"}[made.policy.precision],
        "tokens_per_second": samples.tokens / middle,
        "completions_per_second": samples.count / middle,
        "roofline_share": floor.seconds / middle,
        "seconds": middle,
        "seconds_each": seconds,
        "split": {name: median([p[name] for p in parts]) for name in parts[0]},
        "floor": {"products_seconds": floor.products, "memory_seconds": floor.memory, "seconds": floor.seconds},
        "limit": {
            "decode_flops_per_second": limits.decode if made.rows else None,
            "learn_flops_per_second": limits.learn if made.pass_tokens else None,
            "bytes_per_second": limits.bandwidth,
        },
        "instructions": about["instructions"],
        "kernels": describe(),
        "machine": about,
        "torch": torch.__version__,
    }


def _settle_threads(case: Case, made: Bench) -> int:
    if case.threads == 0 and case.device == "cpu":
        rows = made.rows or made.pass_tokens
        faster_threads(made.policy.decoder.config, made.policy.precision, rows=rows, all_cores=torch.get_num_threads())
    return torch.get_num_threads()


def _limits(made: Bench, case: Case) -> Limits:
    c, size = made.policy.decoder.config, made.policy.precision.itemsize
    return measure_limits(
        c,
        made.policy.precision,
        case.device,
        rows=made.rows,
        tokens=made.pass_tokens,
        traffic=size * (c.parameters + _cached(c, made)),
        packed=bool(case.ternary),
    )


def _cached(c: DecoderConfig, made: Bench) -> int:
    """Numbers in the key-value cache at the end of a rollout."""
    longest = max(made.samples.prompts) + made.samples.length
    return 2 * c.num_layers * c.num_kv_heads * c.head_dim * made.rows * longest


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()
