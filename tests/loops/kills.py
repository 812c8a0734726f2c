"""Kills tiny runs, resumes them, and says what became of them.

As a program (``python -m loops.kills FOLDER``) it forks one child per death, so that torch is loaded once. Prints JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from loops import tiny
from triloop.errors import TriloopError
from triloop.loops.config import RunConfig
from triloop.loops.progress import Silent
from triloop.loops.run import resume, start
from triloop.loops.summary import summarise
from triloop.records import Verdict
from triloop.store import Run, failpoints
from triloop.store.database import is_finished

CASES = {
    "plain": (
        "create.config:1",  # nothing is there yet
        "append.committed:2",  # the first score is stored, the first checkpoint is not
        "checkpoint.committed:1",  # before the first round
        "append.written:4",  # half of a round
        "append.committed:6",  # rounds behind the last checkpoint
        "checkpoint.renamed:3",  # files without their row
        "rewind.committed:1",  # all rounds, no last score
        "append.committed:10",  # the last score, not the end
    ),
    "wild": (
        "append.committed:6",  # the alarm is stored, the weights are not yet back
        "checkpoint.written:4",  # the rollback's checkpoint
        "rewind.begin:1",  # the guard's stop is in the state alone
    ),
    "codes": (  # a ternary policy, whose latent weights are what has to come back
        "append.committed:6",
        "checkpoint.renamed:3",
    ),
}
FULL = ("append.written:5:ENOSPC", "checkpoint.synced:3:ENOSPC")
MOMENTS = (0.35, 0.7)


class Ear(Silent):
    """Notes each round that was acknowledged, outside the store, and calls ``at`` with its number."""

    def __init__(self, path: Path, at: Callable[[int], None] = lambda _: None) -> None:
        self.path, self.at = path, at

    def round(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict]) -> None:
        with self.path.with_suffix(".acknowledged").open("a") as file:
            file.write(f"{int(metrics['round'])}\n")
        self.at(int(metrics["round"]))


def play(path: Path, config: RunConfig, at: Callable[[int], None] = lambda _: None) -> int:
    """Start the run, or go on with it; the exit code it would have had."""
    tiny.one_thread()
    with tiny.alarms() if config.guards == tiny.WILD else nullcontext():
        try:
            if is_finished(path / "run.db"):
                resume(path, Ear(path, at))
            else:
                start(config, path, Ear(path, at))
        except TriloopError as error:
            return error.exit_code
    return 0


def outcome(path: Path) -> dict[str, Any]:
    """What a test compares, and what must be in order besides."""
    with Run.open(path, write=False) as run:
        summary = summarise(run)
        known = {row.round for row in run.rows("metrics", state=None)}
        noted = {int(line) for line in path.with_suffix(".acknowledged").read_text().split()}
        same = {
            k: summary[k] for k in ("weights_sha256", "store_digest", "rounds", "eval_before", "eval_after", "guards")
        }
        return {"same": same, "lost": sorted(noted - known), "damage": run.damage()}


def forked(work: Callable[[], int], failpoint: str = "", after: float = 0.0) -> int:
    """The status of a child that did ``work``: killed at ``failpoint``, or after so many seconds, or at its end."""
    child = os.fork()
    if child == 0:
        os.environ[failpoints.VARIABLE] = failpoint
        failpoints.rearm()
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    if after:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def asks(number: int, rounds: Sequence[int]) -> Callable[[int], None]:
    """Sends this process a signal after these rounds."""
    return lambda done: os.kill(os.getpid(), number) if done in rounds else None


def main(root: Path) -> dict[str, Any]:
    base = tiny.base(root)
    configs = {"plain": tiny.config(base), "wild": tiny.config(base, guards=tiny.WILD)}
    configs["codes"] = tiny.config(base, ternary="absmean", ternary_head="int8")
    found: dict[str, Any] = {"whole": {}, "seconds": 0.0}
    for name, config in configs.items():
        began = time.monotonic()
        code = forked(lambda c=config, n=name: play(root / n, c))  # type: ignore[misc]
        found["seconds"] = time.monotonic() - began
        found["whole"][name] = {"code": code, **outcome(root / name)}

    def tried(name: str, kind: str, first: Callable[[Path, RunConfig], int]) -> None:
        path = root / f"{name}-{kind}".replace(":", "_").replace(".", "_")
        status = first(path, configs[name])
        code = forked(lambda: play(path, configs[name]))
        found[f"{name} {kind}"] = {"status": status, "code": code, **outcome(path)}

    for name, points in CASES.items():
        for point in points:
            tried(name, point, lambda path, c, p=point: forked(lambda: play(path, c), p))  # type: ignore[misc]
        for number in (signal.SIGINT, signal.SIGTERM):
            ask = asks(number, (1, 3))
            tried(name, signal.Signals(number).name, lambda path, c, a=ask: forked(lambda: play(path, c, a)))  # type: ignore[misc]
    for point in FULL:
        tried("plain", point, lambda path, c, p=point: forked(lambda: play(path, c), p))  # type: ignore[misc]
    for share in MOMENTS:
        after = share * found["seconds"]
        tried("plain", f"moment {share}", lambda path, c, a=after: forked(lambda: play(path, c), after=a))  # type: ignore[misc]
    again, deaths = root / "again", 0
    while forked(lambda: play(again, configs["plain"]), "append.committed:4") == -signal.SIGKILL:
        deaths += 1
    found["again"] = {"deaths": deaths, **outcome(again)}
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
