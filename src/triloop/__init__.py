"""Triloop builds, runs and guards feedback loops that improve language models.

The names below are loaded on first use: ``import triloop`` and ``triloop --help`` wait for no numerical library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triloop.errors import TriloopError as TriloopError
    from triloop.records import Completion as Completion
    from triloop.records import Episode as Episode
    from triloop.records import Feedback as Feedback
    from triloop.records import Prompt as Prompt
    from triloop.records import Turn as Turn
    from triloop.records import Verdict as Verdict

__version__ = "0.1.0"

_HOME = {
    "Completion": "triloop.records",
    "Episode": "triloop.records",
    "Feedback": "triloop.records",
    "Prompt": "triloop.records",
    "TriloopError": "triloop.errors",
    "Turn": "triloop.records",
    "Verdict": "triloop.records",
}
"""Public name -> module that defines it. A new name joins here, in ``__all__`` and above; a test holds the three equal."""

__all__ = ["Completion", "Episode", "Feedback", "Prompt", "TriloopError", "Turn", "Verdict", "__version__"]


def __getattr__(name: str) -> object:
    """Load a public name from its home (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'triloop' has no attribute {name!r}; it has {', '.join(__all__)}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
