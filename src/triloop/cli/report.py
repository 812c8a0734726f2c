"""``triloop report``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from triloop.cli.screen import Screen, json_flag

__all__ = ["add", "report", "write_report"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    p = commands.add_parser("report", help="write the HTML report of a run", allow_abbrev=False)
    p.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    json_flag(p)
    p.set_defaults(handler=report)


def write_report(folder: Path) -> Path:
    """The one place where the command line knows the report."""
    from triloop.report.html import write

    return write(folder)


def report(args: argparse.Namespace, screen: Screen) -> int:
    """Write ``report.html`` again, whatever state the run is in."""
    path = write_report(args.run)
    screen.say(f"report  {path}")
    screen.answer({"report": path, "run_dir": args.run})
    return 0
