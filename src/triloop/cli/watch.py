"""Who watches a run on the command line: the live screen on a terminal, plain lines elsewhere, nobody under ``--json``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from triloop.cli.screen import Screen, coloured
from triloop.loops.progress import Progress, Silent

__all__ = ["watcher"]


@contextmanager
def watcher(screen: Screen) -> Iterator[Progress]:
    """A watcher for one run; leaves the terminal as it was, however the run ends."""
    stream = sys.stderr if screen.json else screen.out
    if coloured(stream):
        from triloop.cli.live import Live

        live = Live(stream)
        try:
            yield live
        finally:
            live.close()
    elif screen.json:
        yield Silent()
    else:
        from triloop.cli.plain import Plain

        yield Plain(screen.say)
