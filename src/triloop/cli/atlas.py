"""``triloop atlas list | show | run | check``: published systems as miniatures, each with a verdict of its own."""

from __future__ import annotations

import argparse
from importlib import import_module
from types import ModuleType
from typing import Any

from triloop.cli.screen import Screen, json_flag
from triloop.errors import UsageError

__all__ = ["add", "atlas"]

_WORD = {1: "+1 holds", 0: "0 undecided", -1: "−1 contradicted", None: "–"}


def add(commands: Any) -> None:
    """Add the command and its four actions to the parser."""
    p = commands.add_parser("atlas", help="published systems as small experiments", allow_abbrev=False)
    actions = p.add_subparsers(dest="action", metavar="list|show|run|check", required=True)
    for name, said in (
        ("list", "all rows with their verdicts"),
        ("show", "one row: mechanism, claim, miniature"),
        ("run", "run rows and decide their verdicts"),
        ("check", "is every recorded verdict what its data say?"),
    ):
        action = actions.add_parser(name, help=said, allow_abbrev=False)
        if name == "show":
            action.add_argument("ids", nargs=1, metavar="ID")
        elif name == "run":
            action.add_argument("ids", nargs="*", metavar="ID")
            action.add_argument("--all", action="store_true", help="every row that stands")
            action.add_argument(
                "--save", action="store_true", help="record the results in the atlas (a checkout of yours)"
            )
        json_flag(action)
        action.set_defaults(handler=atlas)


def atlas(args: argparse.Namespace, screen: Screen) -> int:
    """Hand the action to the atlas."""
    book = _book()
    if args.action == "list":
        rows: list[dict[str, Any]] = book.list_rows()
        screen.table(
            "",
            ["id", "title", "room", "verdict"],
            [[r["id"], r["title"], r["room"], _WORD[r["verdict"]]] for r in rows],
        )
        screen.answer({"rows": rows})
        return 0
    if args.action == "show":
        return _one(book.show(args.ids[0]), screen)
    if args.action == "run":
        if bool(args.ids) == args.all:
            raise UsageError("which rows? Give ids, such as `triloop atlas run A18 A20`, or --all, and not both")
        from triloop.loops.signals import terminable

        done = []
        for id in book.ROWS if args.all else args.ids:
            with terminable():
                done.append(book.run(id))
            if args.save:
                book.save(done[-1])
            result = done[-1]
            screen.say(f"{id}  {_WORD[result['verdict']]}  {result['claim']}  ({result['seconds']:.0f} s)")
        screen.answer(done[0] if len(done) == 1 else {"rows": done})
        return 0
    wrong: list[str] = book.check()
    for line in wrong:
        screen.say(line)
    screen.say("every verdict is what its data say" if not wrong else f"{len(wrong)} to mend")
    screen.answer({"ok": not wrong, "problems": wrong})
    return 1 if wrong else 0


def _one(row: dict[str, Any], screen: Screen) -> int:
    for key, value in row.items():
        screen.say(f"{key:<12} {value}")
    screen.answer(row)
    return 0


def _book() -> ModuleType:
    try:
        return import_module("triloop.atlas.book")
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("triloop.atlas"):
            raise UsageError(
                "the atlas is not part of this installation; use a complete checkout of Triloop"
            ) from missing
        raise
