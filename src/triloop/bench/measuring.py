"""What every measurement needs: facts about the machine, medians, tables, and who else used the cores. No torch."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Others", "machine", "median", "multiplies_bf16", "note", "peak_bytes", "processor", "reset_peak", "table"]

_TICKS = os.sysconf("SC_CLK_TCK")


def processor() -> tuple[str, set[str]]:
    """Name and flags of the processor; empty where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}
    return fields.get("model name", platform.machine()), set(fields.get("flags", "").split())


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    name, flags = processor()
    wide = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {
        "processor": name,
        "cores": cores,
        "instructions": [f for f in wide if f in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bf16 numbers."""
    return bool({"avx512_bf16", "amx_bf16"} & processor()[1])


def _busy() -> float:
    """Core-seconds that all processes together have used since boot."""
    try:
        with open("/proc/stat") as f:
            ticks = [int(x) for x in f.readline().split()[1:]]
    except OSError:
        return 0.0
    return (sum(ticks[:3]) + sum(ticks[5:7])) / _TICKS


def _own() -> float:
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


class Others:
    """How many cores other processes used on average while this one was measured."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._t, self._b, self._o = time.perf_counter(), _busy(), _own()

    def cores(self) -> float:
        wall = max(1e-9, time.perf_counter() - self._t)
        return max(0.0, (_busy() - self._b - (_own() - self._o)) / wall)


def reset_peak() -> None:
    """Let the peak begin anew at what is in use now, where the system can (Linux); elsewhere it counts from the start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Largest resident memory of this process since ``reset_peak``."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def table(rows: Sequence[Sequence[object]], head: Sequence[str], *, markdown: bool = False) -> str:
    """Rows under a heading; numbers to the right."""
    cells = [[_cell(x) for x in row] for row in rows]
    widths = [max(len(r[i]) for r in [list(head), *cells]) for i in range(len(head))]
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        parts = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        return ("| " + " | ".join(parts) + " |") if markdown else "  ".join(parts).rstrip()

    rule = [("-" * (w - 1) + ":") if n else "-" * w for w, n in zip(widths, numeric, strict=True)]
    return "\n".join([line(list(head)), *([line(rule)] if markdown else []), *map(line, cells)])


def _is_number(x: object) -> bool:
    return x is None or (isinstance(x, (int, float)) and not isinstance(x, bool))


def _cell(x: object) -> str:
    if x is None:
        return ""
    if isinstance(x, float):
        return f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3g}" if abs(x) >= 0.001 or x == 0 else f"{x:.1e}"
    return str(x)


def note(text: str) -> None:
    """A line of progress: on standard error, for standard output belongs to the result."""
    print(text, file=sys.stderr, flush=True)
