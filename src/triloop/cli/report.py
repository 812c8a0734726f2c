"""``triloop report`` and ``triloop export``."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from triloop.cli.screen import Screen, json_flag
from triloop.errors import RunFolderError, StoreError, UsageError

__all__ = ["add", "export", "report", "write_report"]

_LATER = {
    "gguf": "comes with the ternary rooms; until then export --format hf and use llama.cpp's converter",
    "pairs": "comes with the feedback rooms; until then the rows are in run.db (SQLite)",
}


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    p = commands.add_parser("report", help="write the HTML report of a run", allow_abbrev=False)
    p.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    json_flag(p)
    p.set_defaults(handler=report)

    p = commands.add_parser("export", help="the trained model in a form that others read", allow_abbrev=False)
    p.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    p.add_argument("--format", default="hf", metavar="hf|gguf|pairs", help="hf: a Hugging Face directory")
    p.add_argument("--out", type=Path, metavar="DIR", help="where to; RUN/export-hf without it")
    p.add_argument("--best", action="store_true", help="the checkpoint with the best gold score, not the last one")
    json_flag(p)
    p.set_defaults(handler=export)


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


def export(args: argparse.Namespace, screen: Screen) -> int:
    """Copy the model out of a checkpoint whose files are intact."""
    if args.format in _LATER:
        raise UsageError(f"--format {args.format} {_LATER[args.format]}")
    if args.format != "hf":
        raise UsageError(f"--format is {args.format!r}; expected hf")
    from triloop.store.run import Run

    with Run.open(args.run, write=False) as run:
        found = run.best_checkpoint() if args.best else run.latest_checkpoint()
        if found is None:
            kind = "scored checkpoint: run it with canary_every above 0" if args.best else "intact checkpoint yet"
            raise RunFolderError(f"{args.run} has no {kind}, so there is no model to export")
        target = args.out if args.out is not None else args.run / "export-hf"
        _copy(found.path / "policy", target)
    screen.say(f"model of round {found.round}  {target}")
    screen.answer({"format": "hf", "round": found.round, "gold": found.gold, "path": target})
    return 0


def _copy(source: Path, target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already and not empty; choose another folder with --out")
    try:
        shutil.copytree(source, target, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise StoreError(f"the model could not be written to {target} ({error}); free space or choose --out") from error
