"""Scoring recorded completions: rows of prompt or question, completion and answer, judged by an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from triloop.envs.base import Env
from triloop.envs.reading import Row, read_jsonl
from triloop.errors import DataError
from triloop.records import Feedback, Prompt

__all__ = ["Agreement", "Judge", "RowEnv", "agreement", "read_scored_rows", "score_rows"]

Judge = Callable[[Sequence[Prompt], Sequence[str]], list[Feedback]]


class RowEnv(Env, Protocol):
    """An environment that can also read a prompt back from a recorded row; all of ours can."""

    def read(self, row: Row) -> Prompt:
        """The prompt that a row is about. DataError, beginning with ``row.where``, when it is none of this task."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far judgements agree with labels of right and wrong that came with the rows."""

    labelled: int
    agreed: int
    disagreements: tuple[str, ...]
    """One line each: where, the label, the judgement and its reason."""

    @property
    def rate(self) -> float:
        """Share in [0, 1] of the labelled rows; NaN without any."""
        return self.agreed / self.labelled if self.labelled else float("nan")


def score_rows(rows: Sequence[Row], env: RowEnv, judge: Judge | None = None) -> list[Feedback]:
    """One judgement a row, in order, by ``judge`` (a user's verifier) or by the environment itself.

    DataError naming file and line when a row has no ``completion`` (or ``solution``, ``response``), or a prompt that is
    none of ``env``.
    """
    prompts = [env.read(row) for row in rows]
    texts = [_completion(row) for row in rows]
    return (judge or env.judge)(prompts, texts)


def read_scored_rows(path: str | Path) -> list[Row]:
    """Rows to score. A row that holds several graded solutions becomes one row for each, in its own order.

    This is the form of GSM8K's ``example_model_solutions``: a question, a ``ground_truth``, and under each model's name an
    object with ``solution`` and ``is_correct``.
    """
    return [part for row in read_jsonl(path) for part in _unfold(row)]


def agreement(rows: Sequence[Row], judged: Sequence[Feedback]) -> Agreement:
    """Compare judgements with the rows' ``is_correct``, where they have it: right is a value of at least 1."""
    labelled, lines = 0, []
    for row, feedback in zip(rows, judged, strict=True):
        label = row.data.get("is_correct")
        if not isinstance(label, bool):
            continue
        labelled += 1
        if label != (feedback.value is not None and feedback.value >= 1):
            said = "right" if label else "wrong"
            lines.append(
                f"{row.where}: labelled {said}, judged {feedback.value}: {feedback.reason or feedback.failure}"
            )
    return Agreement(labelled=labelled, agreed=labelled - len(lines), disagreements=tuple(lines))


def _unfold(row: Row) -> list[Row]:
    graded = {name: part for name, part in row.data.items() if isinstance(part, dict) and "solution" in part}
    if not graded or "completion" in row.data:
        return [row]
    common = {name: part for name, part in row.data.items() if name not in graded}
    return [Row(where=f"{row.where} ({name})", data={**common, **_graded(part)}) for name, part in graded.items()]


def _graded(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"completion": part["solution"], "is_correct": part.get("is_correct")}


def _completion(row: Row) -> str:
    """An empty completion is one too, and is judged; an absent one is a wrong file."""
    for name in ("completion", "solution", "response"):
        value = row.data.get(name)
        if isinstance(value, str):
            return value
        if value is not None:
            raise DataError(f"{row.where}: {name!r} is {type(value).__name__}; expected text")
    has = ", ".join(sorted(map(str, row.data))[:8]) or "nothing"
    raise DataError(f"{row.where}: has {has}; expected a text field 'completion'")
