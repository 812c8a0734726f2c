"""``triloop doctor``: what works on this machine, what is missing, and how to get it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

from triloop import __version__
from triloop.cli.screen import Screen, json_flag

__all__ = ["add", "doctor"]

_EXTRAS = {
    "chat": ("jinja2", "chat templates of model directories"),
    "hf": ("transformers", "policies of other architectures"),
    "gguf": ("gguf", "models for llama.cpp, and from it"),
    "math": ("math_verify", "GSM8K and MATH judged as mathematics"),
    "gym": ("reasoning_gym", "the tasks of reasoning-gym"),
    "track": ("tensorboard", "curves in a tracker of your own"),
}
_GIB = 1024**3


def add(commands: Any) -> None:
    """Add the command to the parser."""
    p = commands.add_parser("doctor", help="what works on this machine, and what is missing", allow_abbrev=False)
    json_flag(p)
    p.set_defaults(handler=doctor)


def doctor(args: argparse.Namespace, screen: Screen) -> int:
    """Exit code 0 when everything that is needed is there, else 1."""
    facts, problems = _facts()
    extras = {
        name: {
            "installed": importlib.util.find_spec(module) is not None,
            "for": what,
            "install": f"pip install 'triloop[{name}]'",
        }
        for name, (module, what) in _EXTRAS.items()
    }
    screen.table("", ["", ""], [[key, _told(value)] for key, value in facts.items()])
    rows = [
        [n, "yes" if e["installed"] else "no", str(e["for"]), "" if e["installed"] else str(e["install"])]
        for n, e in extras.items()
    ]
    screen.table("extras", ["name", "here", "for", "to install"], rows)
    for problem in problems:
        screen.say(f"problem: {problem}")
    screen.say("all that is needed is here" if not problems else f"{len(problems)} to mend")
    screen.answer({"ok": not problems, **facts, "extras": extras, "problems": problems})
    return 1 if problems else 0


def _facts() -> tuple[dict[str, Any], list[str]]:
    problems: list[str] = []
    facts: dict[str, Any] = {
        "triloop": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **_torch(problems),
        **{name: _version(name, problems) for name in ("numpy", "safetensors", "tokenizers", "rich", "PyYAML")},
        "sqlite": sqlite3.sqlite_version,
        "memory_gib": _memory(),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / _GIB, 1),
        "folder_writable": os.access(Path.cwd(), os.W_OK),
    }
    if sqlite3.sqlite_version_info < (3, 31):
        problems.append(f"SQLite {sqlite3.sqlite_version} is too old; install a Python with 3.31 or later")
    if not facts["folder_writable"]:
        problems.append(f"{Path.cwd()} cannot be written; go elsewhere or give --out")
    if facts["disk_free_gib"] < 1:
        problems.append(f"less than 1 GiB is free at {Path.cwd()}; a run needs room for its samples and checkpoints")
    if not os.access(tempfile.gettempdir(), os.W_OK):
        problems.append(f"{tempfile.gettempdir()} cannot be written; set TMPDIR")
    return facts, problems


def _torch(problems: list[str]) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        problems.append(f"torch cannot be loaded ({error}); pip install torch")
        return {"torch": None}
    from triloop.kernels import native

    capability = torch.backends.cpu.get_cpu_capability()
    flags = _cpu_flags()
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "cpu_capability": capability,
        "amx": "amx_tile" in flags,
        "bf16": "amx_bf16" in flags or "avx512_bf16" in flags,
        "cuda": torch.cuda.is_available(),
        "kernels": native.describe(),
    }


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


def _memory() -> float | None:
    """GiB of this machine, or of the container where that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        total = min(total, int(limit)) if limit.isdigit() else total
    except OSError:
        pass
    return round(total / _GIB, 1)


def _version(package: str, problems: list[str]) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # costs 25 ms, which --help need not pay

    try:
        return version(package)
    except PackageNotFoundError:
        problems.append(f"{package} is missing; pip install {package}")
        return None


def _told(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else "–" if value is None else str(value)
