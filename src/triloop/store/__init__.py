"""A run's only truth: an event log in SQLite, and checkpoints that are vouched for by its rows."""

from triloop.store.checkpoint import Checkpoint, Retention
from triloop.store.codec import Row
from triloop.store.folder import environment_differences
from triloop.store.log import Appended
from triloop.store.run import Run
from triloop.store.translate import (
    completion_row,
    episode_rows,
    event_row,
    feedback_row,
    metrics_row,
    prompt_row,
    timing_row,
    verdict_row,
)

__all__ = [
    "Appended",
    "Checkpoint",
    "Retention",
    "Row",
    "Run",
    "completion_row",
    "environment_differences",
    "episode_rows",
    "event_row",
    "feedback_row",
    "metrics_row",
    "prompt_row",
    "timing_row",
    "verdict_row",
]
