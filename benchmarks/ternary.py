"""How fast are ternary products, beside torch's own and beside other kernels for few bits?

    python benchmarks/ternary.py [--threads 1] [--rows 1 8 32 128 512] [--shapes 6912x2560 ...] [--out docs/proof]

Hot: one matrix again and again. Cold: by turns through copies that fill --cold-mb megabytes, as a model's layers do.
Contenders take turns, round after round, in one process; a figure is the median of the rounds, and the best one beside it.
Every answer is compared with an fp32 reference before and after its timing: a contender that is wrong is refused, not
timed. Installed ones are found by themselves (onnxruntime with onnx, auto-round-lib); a build of llama.cpp is named by
LLAMA_CPP_BUILD. The memory's bandwidth is measured in the same run; `share` is what a cold product reaches of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHAPES = ("6912x2560", "2560x6912", "2048x2048", "4096x4096")
HEAD = (
    "weights",
    "m",
    "memory",
    "contender",
    "median us",
    "best us",
    "GOP/s",
    "GB/s",
    "share",
    "times triloop",
    "others",
)
TOLERANCE = 0.02
"""Of the largest number: ternary weights are exact everywhere, activations of 8 bits are not."""


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128, 512], help="activation rows")
    p.add_argument("--shapes", nargs="+", default=list(SHAPES), help="weight rows x columns")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=0.1, help="of one contender's turn, at least")
    p.add_argument("--limit", type=float, default=2.0, help="seconds of a first product above which one is left out")
    p.add_argument("--cold-mb", type=int, default=256)
    p.add_argument("--memory", nargs="+", choices=("hot", "cold"), default=["cold", "hot"])
    p.add_argument("--contenders", nargs="+", help="names; all unless given")
    p.add_argument("--out", type=Path, help="folder for ternary_kernels.md and ternary_kernels.json")
    return p.parse_args()


def bandwidth(megabytes: int = 1024) -> float:
    """Bytes a second that a sum reads from memory: the best of five."""
    import torch

    x = torch.ones(megabytes << 18)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        x.sum()
        best = min(best, time.perf_counter() - start)
    return x.numel() * 4 / best


def wrong(answer: Any, x: Any, codes: Any, whole_numbers: bool) -> float:
    """The largest difference from fp32, as a share of the largest number; NaN counts as wrong."""
    import torch

    from triloop.kernels.ternary import quantise_rows

    given = quantise_rows(x)[0].float() if whole_numbers else x
    truth = given @ codes.float().t()
    y = torch.as_tensor(answer).float()
    if y.shape != truth.shape:
        return float("inf")
    off = float((y - truth).abs().max() / truth.abs().max())
    return off if off == off else float("inf")


def case(options: argparse.Namespace, shape: str, m: int, memory: str) -> list[dict[str, Any]]:
    """All contenders by turns on one shape."""
    import torch
    from ternary_peers import CONTENDERS, Contender

    from triloop.bench.measuring import Others, note

    rows, columns = map(int, shape.split("x"))
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 2, (rows, columns), generator=draw, dtype=torch.int8)
    x = torch.randn(m, columns, generator=draw)
    running: dict[str, Contender] = {}
    for name in options.contenders or CONTENDERS:
        make = CONTENDERS[name]
        try:
            one = make(codes, x, 1, options.threads)
            one.run()
            start = time.perf_counter()
            one.run()
            slow = time.perf_counter() - start
            off = wrong(one.answer(), x, codes, one.whole_numbers)
            if off > TOLERANCE:
                note(f"{shape} m={m} {name}: WRONG by {off:.3g}, refused")
            elif slow > options.limit:
                note(f"{shape} m={m} {name}: {slow:.1f} s a product, left out")
            else:
                copies = 1 if memory == "hot" else max(2, -(-(options.cold_mb << 20) // int(one.reads)))
                running[name] = one if copies == 1 else make(codes, x, copies, options.threads)
        except (ImportError, RuntimeError, AttributeError, StopIteration, TypeError) as why:
            note(f"{shape} m={m} {name}: not measured ({str(why)[:120]})")
    times: dict[str, list[float]] = {name: [] for name in running}
    others: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(options.rounds):
        for name, c in running.items():
            c.run()
            watch, count, start = Others(), 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < options.seconds or not count:
                c.run()
                count += c.copies
            times[name].append(spent / count)
            others[name].append(watch.cores())
    made = []
    for name, c in running.items():
        off = wrong(c.answer(), x, codes, c.whole_numbers)
        if off > TOLERANCE:
            note(f"{shape} m={m} {name}: WRONG by {off:.3g} after its timing, refused")
            continue
        made.append(figures(shape, m, memory, name, times[name], others[name], c.reads))
    mine = next((r["median_us"] for r in made if r["contender"] == "triloop"), None)
    return [{**r, "times_triloop": round(r["median_us"] / mine, 2) if mine else None} for r in made]


def figures(
    shape: str, m: int, memory: str, name: str, times: Sequence[float], others: Sequence[float], reads: float
) -> dict[str, Any]:
    """One row of the table."""
    from triloop.bench.measuring import median

    rows, columns = map(int, shape.split("x"))
    middle = median(times)
    return {
        "weights": shape,
        "m": m,
        "memory": memory,
        "contender": name,
        "median_us": round(middle * 1e6, 1),
        "best_us": round(min(times) * 1e6, 1),
        "gops": round(2e-9 * rows * columns * m / middle, 1),
        "gb_per_s": round(reads / middle * 1e-9, 2),
        "other_cores": round(median(others), 2),
    }


def packing(shape: str) -> dict[str, float]:
    """Milliseconds to pack one matrix, from codes and from fp32 weights."""
    import torch

    from triloop.kernels import ternary

    rows, columns = map(int, shape.split("x"))
    codes = torch.randint(-1, 2, (rows, columns), dtype=torch.int8)
    weights, made = codes.float(), {}
    for name, call in (
        ("codes", lambda: ternary.pack(codes, 1.0)),
        ("fp32", lambda: ternary.pack_weights(weights, 1.0)),
    ):
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
        made[name] = round(best * 1e3, 2)
    return made


def page(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table and what it depends on."""
    from triloop.bench.measuring import table

    keys = (*list(HEAD[:4]), "median_us", "best_us", "gops", "gb_per_s", "share", "times_triloop", "other_cores")
    about = facts["machine"]
    return "\n".join(
        (
            "# Ternary products beside others",
            "",
            "Written by `python benchmarks/ternary.py --out docs/proof`, whose text says what is measured. Contenders",
            "took turns in one process; the machine is shared (others: cores that other processes used), so only ratios",
            "mean anything.",
            "",
            f"- date: {facts['date']}",
            f"- machine: {about['processor']}, {about['cores']} cores; {facts['threads']} thread(s); {facts['kernels']}",
            f"- memory: {facts['memory_gb_per_s']} GB/s read; packing in ms: {json.dumps(facts['packing_ms'])}",
            "",
            table([[r[k] for k in keys] for r in rows], HEAD, markdown=True),
        )
    )


def main() -> None:
    """Measure, print the table and write the JSON."""
    options = arguments()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "BTLA_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its workers spin on after a product and slow the others
    import torch

    from triloop.bench.measuring import machine, note
    from triloop.kernels import native

    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    read = bandwidth()
    note(f"{native.describe()}; {options.threads} threads; memory {read * 1e-9:.1f} GB/s")
    rows: list[dict[str, Any]] = []
    for shape in options.shapes:
        for memory in options.memory:
            for m in options.rows:
                if memory == "cold" and m > 32:
                    continue  # reading the weights no longer matters
                for r in case(options, shape, m, memory):
                    share = round(r["gb_per_s"] * 1e9 / read, 2) if memory == "cold" else None
                    rows.append({**r, "share": share})
                    note(json.dumps(rows[-1]))
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "torch": torch.__version__,
        "kernels": native.describe(),
        "threads": options.threads,
    }
    facts |= {"memory_gb_per_s": round(read * 1e-9, 2), "packing_ms": {s: packing(s) for s in options.shapes}}
    print(page(facts, rows))
    if options.out:
        (options.out / "ternary_kernels.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
        (options.out / "ternary_kernels.md").write_text(page(facts, rows) + "\n")


if __name__ == "__main__":
    sys.exit(main())
