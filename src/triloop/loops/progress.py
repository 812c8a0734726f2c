"""What a run tells whoever watches it. The loop calls these and knows nothing of terminals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from triloop.loops.config import RunConfig
from triloop.records import Verdict

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Watches a run. Nothing that it does can change the run."""

    def started(self, config: RunConfig, folder: Path, facts: Mapping[str, object]) -> None:
        """The policy is loaded. ``facts``: parameters, threads, precision, resumed_from (a round, or None)."""

    def stage(self, text: str) -> None:
        """What is being done outside the rounds, such as ``preflight`` or ``evaluating 512 held-out prompts``."""

    def round(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict]) -> None:
        """A round is done. ``metrics``: ``round``, ``rounds``, the names of ``guards.base.Watch``, rates and seconds."""

    def evaluated(self, when: str, result: Mapping[str, object]) -> None:
        """A held-out score. ``when``: before, mid, after; ``result``: metric, value, ci95, n."""

    def finished(self, summary: Mapping[str, object]) -> None:
        """The run came to its end; ``summary`` is what ``--json`` prints."""


class Silent:
    """Watches without a word."""

    def started(self, config: RunConfig, folder: Path, facts: Mapping[str, object]) -> None:
        pass

    def stage(self, text: str) -> None:
        pass

    def round(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict]) -> None:
        pass

    def evaluated(self, when: str, result: Mapping[str, object]) -> None:
        pass

    def finished(self, summary: Mapping[str, object]) -> None:
        pass
