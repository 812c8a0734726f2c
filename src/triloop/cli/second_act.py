"""The second act of ``triloop run demo``: a verifier with a hole in it, and whether the guards notice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triloop.cli.screen import Screen
from triloop.cli.watch import watcher
from triloop.errors import GuardStop

__all__ = ["FOLLOWS", "play"]

FOLLOWS: Mapping[str, str] = {"demo": "planted"}
"""Recipe -> the recipe that shows what a careless verifier leads to; it runs after it, and a guard is to stop it."""

_PASSED_ON = ("seed", "threads", "precision", "device")


def play(recipe: str, settings: Mapping[str, Any], folder: Path, screen: Screen) -> dict[str, Any]:
    """Run the planted hack into ``folder``. Returns what came of it: caught, round, guards, reason, run_dir."""
    from triloop.cli import fields
    from triloop.loops.run import start
    from triloop.recipes.table import RECIPES

    name = FOLLOWS[recipe]
    config = fields.apply(RECIPES[name].config(), {k: v for k, v in settings.items() if k in _PASSED_ON})
    screen.say()
    screen.say(f"Second act: {RECIPES[name].summary}. Nobody tells the guards.")
    reason = ""
    with watcher(screen) as progress:
        try:
            start(config, folder, progress)
        except GuardStop as stop:
            reason = str(stop)
    return {"caught": bool(reason), "reason": reason, "run_dir": str(folder), **_alarms(folder)}


def _alarms(folder: Path) -> dict[str, Any]:
    """Round and names of the alarms that ended the run."""
    from triloop.store.run import Run

    with Run.open(folder, write=False) as run:
        alarms = [v for v in run.verdicts() if v.value < 0 and v.round >= 1]
        last = max((v.round for v in alarms), default=0)
        rounds = run.rounds()
    return {
        "round": last if alarms else None,
        "guards": sorted({v.guard for v in alarms if v.round == last}),
        "rounds": len(rounds),
    }
