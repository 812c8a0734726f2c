"""``triloop``: reads the command, hands it on, turns errors into messages and exit codes. Loads no numerics itself."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from triloop import __version__
from triloop.cli import atlas, bench, compare, doctor, exchange, judge, report, run, serve
from triloop.cli.screen import Screen, visible
from triloop.errors import TriloopError, UsageError

__all__ = ["entry", "main"]

_ABOUT = """Improve a language model from feedback, and watch the loop for cheating.

  triloop run demo                 a policy learns in under two minutes, a planted hack is caught
  triloop run RECIPE --help        every setting of a recipe, with its value"""

_CODES = "exit codes: 0 done, 1 the work failed, 2 wrong use, 3 stopped by a guard, 130 interrupted (resumable)"

_WITH_SETTINGS = ("run", "compare")
"""Commands of which every field of the configuration is a flag."""

Handler = Callable[[argparse.Namespace, Screen], int]


class _Parser(argparse.ArgumentParser):
    """Wrong use is an exception like any other: one place prints it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` shows how it is used")


def entry() -> NoReturn:
    """The command of the package."""
    warnings.showwarning = _warn
    # A defect of a library that only its authors can mend is none of the user's business.
    warnings.simplefilter("ignore", DeprecationWarning)
    sys.exit(main(None))


def main(argv: Sequence[str] | None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    screen = Screen(json="--json" in words)
    try:
        with screen.guarded():
            return _dispatch(words, screen)
    except SystemExit as stop:  # argparse has printed help or version
        return stop.code if isinstance(stop.code, int) else 0
    except TriloopError as error:
        return screen.fail(error)
    except KeyboardInterrupt:
        screen.note("interrupted")
        screen.answer({"error": {"type": "KeyboardInterrupt", "message": "interrupted"}, "exit_code": 130})
        return 130
    except BrokenPipeError:
        # Whoever read us has gone; the interpreter must not complain of it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  whatever is not foreseen above is a defect, and told as one
        return screen.defect(error)


def _dispatch(words: list[str], screen: Screen) -> int:
    parser, commands = _parser()
    command = next((w for w in words if not w.startswith("-")), None)
    settings: dict[str, object] = {}
    if command in _WITH_SETTINGS and not {"-h", "--help"} & set(words):
        from triloop.cli.fields import take

        settings, words = take(words)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        _refuse(unknown, command or "", commands)
    if "handler" not in args:
        parser.print_help()
        return 0 if not words else 2
    args.settings = settings
    handler: Handler = args.handler
    return handler(args, screen)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="triloop",
        description=_ABOUT,
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"triloop {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    for room in (run, judge, report, exchange, compare, atlas, bench, doctor, serve):
        room.add(commands)
    return parser, dict(commands.choices)


def _refuse(unknown: Sequence[str], command: str, commands: dict[str, argparse.ArgumentParser]) -> NoReturn:
    """Say which flag is unknown, which is meant, and where all of them stand."""
    word = next((w for w in unknown if w.startswith("-")), unknown[0])
    if not word.startswith("-"):
        raise UsageError(f"unexpected argument {word!r}; `triloop {command} --help` shows how it is used")
    known = [s for action in commands[command]._actions for s in action.option_strings] if command in commands else []
    from triloop.cli import fields

    if command in _WITH_SETTINGS:
        known += [s.flag for s in fields.settings()] + list(fields.ALIASES)
    hint = fields.closest(word, known)
    raise UsageError(f"unknown flag {word.partition('=')[0]}.{hint} `triloop {command} --help` lists all flags")


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {visible(str(message))}", file=sys.stderr, flush=True)
