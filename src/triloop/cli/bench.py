"""``triloop bench NAME``: runs one of the repository's benchmarks."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from triloop.cli.screen import Screen, json_flag
from triloop.errors import UsageError, WorkError

__all__ = ["add", "bench"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    p = commands.add_parser("bench", help="run a benchmark of the checkout", allow_abbrev=False)
    p.add_argument("name", nargs="?", metavar="NAME", help="without it, the names")
    json_flag(p)
    p.set_defaults(handler=bench)


def bench(args: argparse.Namespace, screen: Screen) -> int:
    """List the benchmarks, or run one; its own output goes to standard error under ``--json``."""
    folder = Path(__file__).resolve().parents[3] / "benchmarks"
    found = {p.stem.removeprefix("bench_"): p for p in sorted(folder.glob("bench_*.py"))}
    if args.name is None:
        for name in found:
            screen.say(name)
        screen.answer({"benchmarks": list(found)})
        return 0
    if args.name not in found:
        names = ", ".join(found) or "none here: benchmarks come with the repository, not with the package"
        raise UsageError(f"no benchmark {args.name!r}; there are {names}")
    out = sys.stderr if screen.json else None
    done = subprocess.run([sys.executable, str(found[args.name])], stdout=out, check=False)
    if done.returncode:
        raise WorkError(f"benchmark {args.name} failed with exit code {done.returncode}; its output above says why")
    screen.answer({"benchmark": args.name, "exit_code": 0})
    return 0
