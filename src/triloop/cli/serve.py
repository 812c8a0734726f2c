"""``triloop serve``: the page where people judge. A later release brings it."""

from __future__ import annotations

import argparse
from typing import Any

from triloop.cli.screen import Screen, json_flag
from triloop.errors import UsageError

__all__ = ["add", "serve"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    p = commands.add_parser("serve", help="the feedback page (not in this release)", allow_abbrev=False)
    p.add_argument("folder", nargs="?", metavar="DIR")
    json_flag(p)
    p.set_defaults(handler=serve)


def serve(args: argparse.Namespace, screen: Screen) -> int:
    """Say that it is not there yet, and what is."""
    raise UsageError("the feedback page is not in this release; `triloop report RUN` writes a run's page as a file")
