"""``triloop run`` and ``triloop resume``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triloop.cli.screen import Screen, json_flag
from triloop.errors import GuardStop, Interrupted, TriloopError, UsageError, WorkError

if TYPE_CHECKING:
    from triloop.loops.progress import Progress

__all__ = ["add", "drive", "quiet_warnings", "resume", "run", "score"]

_RUN = """Run a recipe, a configuration FILE.yaml, or FILE.py:FUNCTION that returns a RunConfig.
`triloop run RECIPE --help` lists every setting with its value in that recipe."""


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    p = commands.add_parser(
        "run",
        help="run a recipe",
        description=_RUN,
        add_help=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("recipe", nargs="?", metavar="RECIPE", help="a recipe, FILE.yaml, or FILE.py:FUNCTION")
    p.add_argument("-h", "--help", action="store_true", help="this text, with every setting of the recipe")
    p.add_argument("--out", type=Path, metavar="DIR", help="folder of the run; a new one under runs/ without it")
    json_flag(p)
    p.set_defaults(handler=run)

    p = commands.add_parser("resume", help="go on with a run that was interrupted or killed", allow_abbrev=False)
    p.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    p.add_argument("--rounds", type=int, metavar="N", help="another total of rounds than it was started with")
    p.add_argument("--generations", type=int, metavar="N", help="another number of generations, for a run of stages")
    p.add_argument("--threads", type=int, metavar="N", help="another number of threads; bit-exactness ends there")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), help="another device; bit-exactness ends there")
    p.add_argument("--allow-changed", action="store_true", help="go on although threads, versions or settings differ")
    json_flag(p)
    p.set_defaults(handler=resume)


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Start a run in a new folder."""
    from triloop.cli import fields, targets

    if args.help:
        return _help(args, screen)
    if args.recipe is None and not args.settings:
        from triloop.recipes.table import RECIPES

        raise UsageError(f"which recipe? Choose one of {', '.join(RECIPES)}; or give FILE.yaml or FILE.py:FUNCTION")
    config = fields.apply(targets.load(args.recipe, args.settings), args.settings)
    if not config.policy:
        raise UsageError(
            f"recipe {config.recipe!r} needs a model to begin with; give --policy DIR (a Hugging Face directory)"
        )
    folder = args.out if args.out is not None else targets.fresh_folder(config.recipe)
    from triloop.loops.run import start

    return drive(
        lambda progress: start(config, folder, progress), folder, screen, then=_second_act(args, folder, screen)
    )


def _second_act(args: argparse.Namespace, folder: Path, screen: Screen) -> Callable[[], Mapping[str, Any]]:
    """What follows the run on the screen and in the summary: nothing, but for the demo."""
    from triloop.cli import second_act

    def then() -> Mapping[str, Any]:
        if args.recipe not in second_act.FOLLOWS:
            return {}
        planted = second_act.play(args.recipe, args.settings, folder / "planted", screen)
        report = _report(folder / "planted", screen)
        if not planted["caught"]:
            raise WorkError(f"the planted hack was not caught in {planted['rounds']} rounds; see {report}")
        screen.say()
        screen.say(f"planted hack  caught in round {planted['round']} by {', '.join(planted['guards'])}")
        screen.say(f"its report    {report}")
        return {"planted": planted}

    return then


def resume(args: argparse.Namespace, screen: Screen) -> int:
    """Go on from the last checkpoint."""
    from triloop.store.folder import require_run

    require_run(args.run)
    if args.rounds is not None and args.rounds < 1:
        raise UsageError(f"--rounds is {args.rounds}; expected at least 1")
    if args.generations is not None and args.generations < 1:
        raise UsageError(f"--generations is {args.generations}; expected at least 1")
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads is {args.threads}; expected at least 1")
    from triloop.loops.run import resume as go_on

    return drive(
        lambda progress: go_on(
            args.run,
            progress,
            rounds=args.rounds,
            generations=args.generations,
            threads=args.threads,
            device=args.device,
            allow_changed=args.allow_changed,
        ),
        args.run,
        screen,
    )


def drive(
    work: Callable[[Progress], Mapping[str, Any]],
    folder: Path,
    screen: Screen,
    then: Callable[[], Mapping[str, Any]] = dict,
) -> int:
    """Do the work with its progress shown; then write the report and say how it ended, however it ended.

    ``then`` follows a run that came to its end, and adds to the summary.
    """
    from triloop.cli.watch import watcher

    screen.folder = folder
    error: TriloopError | None = None
    summary: Mapping[str, Any] = {}
    with watcher(screen) as progress, quiet_warnings():
        try:
            summary = work(progress)
        except (GuardStop, Interrupted) as stopped:
            error = stopped
    if error is not None:
        summary = _stored(folder)
    report = _report(folder, screen)
    if error is None:
        _closing(summary, folder, report, screen)
        screen.answer({**summary, **then()})
        return 0
    code = screen.fail(error, **summary)
    _closing(summary, folder, report, screen)
    return code


@contextlib.contextmanager
def quiet_warnings() -> Any:
    """Nothing of torch's that a user could act on is lost: only its remarks about this machine's lack of devices."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(CUDA|cuda|NNPACK|pin_memory).*")
        yield


def _stored(folder: Path) -> dict[str, Any]:
    """The summary of a run that did not return one."""
    from triloop.loops.summary import summarise
    from triloop.store.run import Run

    with Run.open(folder, write=False) as stored:
        return summarise(stored)


def _report(folder: Path, screen: Screen) -> Path | None:
    """The report must never hide how the run itself ended."""
    from triloop.cli.report import write_report

    try:
        return write_report(folder)
    except TriloopError as error:
        screen.note(f"warning: no report: {error}")
        return None


def _closing(summary: Mapping[str, Any], folder: Path, report: Path | None, screen: Screen) -> None:
    before, after = summary.get("eval_before"), summary.get("eval_after")
    screen.say()
    if before and after:
        screen.say(f"{after['metric']} on held-out problems  {score(before)}  ->  {score(after)}")
    if summary.get("tokens_generated"):
        screen.say(
            f"{summary['rounds']} rounds, {summary['tokens_generated']:,} tokens in {summary['seconds']:.0f} s "
            f"({summary['tokens_per_second']:,.0f} a second while sampling)"
        )
    if report is not None:
        screen.say(f"report  {report}")
    if not after:
        screen.say(f"go on   triloop resume {folder}")


def score(result: Mapping[str, Any]) -> str:
    """``0.332 [0.293, 0.374]``."""
    low, high = result["ci95"]
    return f"{result['value']:.3f} [{low:.3f}, {high:.3f}]"


def _help(args: argparse.Namespace, screen: Screen) -> int:
    from triloop.cli import fields, targets
    from triloop.recipes.table import RECIPES

    config = targets.load(args.recipe)
    name = args.recipe or "RECIPE"
    lines = [f"usage: triloop run {name} [--field value ...] [--out DIR] [--json]", "", _RUN, ""]
    if args.recipe is None:
        lines += ["recipes:", *(f"  {name:<16} {recipe.summary}" for name, recipe in RECIPES.items()), ""]
    lines += [
        "  --out DIR    folder of the run; a new one under runs/ without it",
        "  --json       print one JSON object, nothing else, on standard output",
        "",
        "settings, with the value in brackets:" if args.recipe else "settings, with their defaults in brackets:",
        "",
        fields.help_text(config),
    ]
    screen.out = sys.stdout
    print("\n".join(lines), file=screen.out)
    return 0
