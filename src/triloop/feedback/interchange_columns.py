"""Columns of somebody else's row: found under any of their usual names, read as text, messages or lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from triloop.errors import DataError
from triloop.feedback.interchange_labels import Labels
from triloop.feedback.interchange_records import Response, make_prompt, make_response
from triloop.records import Prompt, Turn

__all__ = ["ALIASES", "Columns", "Settings", "as_text", "messages", "prompt_of", "response_of"]

ALIASES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "problem"),
    "messages": ("messages", "conversations", "conversation"),
    "response": ("completion", "response", "answer", "output"),
    "responses": ("responses", "candidates", "answers", "completions"),
    "steps": ("steps", "completions"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "first": ("response_a", "answer_a", "completion_a", "response_1", "response_0", "answer_1", "answer_0"),
    "second": ("response_b", "answer_b", "completion_b", "response_2", "response_1", "answer_2", "answer_1"),
    "preference": ("preference", "winner", "label", "vote", "decision", "choice", "votes"),
    "label": ("label", "rating", "score", "reward", "value", "vote", "decision"),
    "labels": ("labels", "votes", "ratings"),
    "item": ("item", "item_id", "task", "task_id", "pair_id", "question_id", "prompt_id"),
    "worker": ("worker", "worker_id", "annotator", "annotator_id", "rater", "judge", "workers", "annotators"),
    "in_order": ("decision_ab",),
    "swapped": ("decision_ba_swapped",),
    "gold": ("gold", "label"),
    "critique": ("critique", "feedback", "comment"),
    "original": ("original", "draft"),
    "revised": ("revised", "revision", "refinement", "edited", "edit"),
    "ranks": ("ranks", "rank"),
    "order": ("order", "ranking"),
    "scores": ("scores",),
    "strength": ("strength",),
    "tie": ("tie",),
    "system": ("system",),
    "input": ("input",),
    "text": ("text",),
    "consent": ("consent",),
    "confidence": ("confidence",),
}
"""What we call a column, and what others do, the likeliest first. ``--columns NAME=THEIRS`` names one outright."""

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_MISSING = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How rows are read."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name of a column -> theirs."""
    labels: Labels = field(default_factory=Labels)
    source: str = ""
    """Who judged, where the row does not say."""
    consent: str = ""
    names: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)
    """Our name -> what it may be called: theirs, or the usual ones that were not given another meaning."""

    def __post_init__(self) -> None:
        """Work out ``names`` once: a file has a million rows."""
        taken = set(self.columns.values())
        usual = {ours: tuple(n for n in names if n not in taken) for ours, names in ALIASES.items()}
        object.__setattr__(self, "names", usual | {ours: (theirs,) for ours, theirs in self.columns.items()})


@dataclass(frozen=True, slots=True)
class Columns:
    """One row by our names. A column that is null counts as absent."""

    data: Mapping[str, Any]
    settings: Settings

    def name(self, ours: str) -> str | None:
        """What the column is called in this row; None when it is not there."""
        for name in self.settings.names[ours]:
            if self.data.get(name) is not None:
                return name
        return None

    def has(self, *ours: str) -> bool:
        """Whether all of these columns are there."""
        return all(self.name(o) is not None for o in ours)

    def get(self, ours: str, default: Any = _MISSING) -> Any:
        """Its value; ``DataError`` when it is absent and there is no default."""
        name = self.name(ours)
        if name is not None:
            return self.data[name]
        if default is not _MISSING:
            return default
        wanted = self.settings.columns.get(ours) or " or ".join(ALIASES[ours][:4])
        raise DataError(f"has {_listed(self.data)}; expected a column {wanted} (or name yours: --columns {ours}=NAME)")

    def text(self, ours: str, default: str | None = None) -> str:
        """Its value as text; a number is taken as it is written."""
        value = self.get(ours) if default is None else self.get(ours, default)
        return as_text(value, self.name(ours) or ours)

    def items(self, ours: str) -> list[Any]:
        """Its value as a list."""
        value = self.get(ours)
        if not isinstance(value, list) or not value:
            raise DataError(f"{self.name(ours)!r} is {value!r:.60}; expected a list with at least one entry")
        return value

    def worker(self) -> str:
        """Who judged, as a source."""
        name = self.name("worker")
        if name is None:
            return self.settings.source
        return f"{'judge' if name == 'judge' else 'person'}:{as_text(self.data[name], name)}"


def as_text(value: object, name: str) -> str:
    """Text, or a number as it is written."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{name!r} is {type(value).__name__}; expected text")
    return str(value)


def messages(value: object, name: str) -> tuple[Turn, ...]:
    """A list of ``{"role", "content"}`` or ``{"from", "value"}``, or one of these, as turns."""
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{name!r} is {value!r:.60}; expected messages, a list of objects with role and content")
    return tuple(_turn(entry, name, k) for k, entry in enumerate(listed, start=1))


def prompt_of(row: Columns, *, name: str = "", answer: str | None = None) -> Prompt:
    """The prompt column, text or messages, with the row's system text and input where there are any; or the history."""
    found = row.name("prompt")
    value = row.data[found] if found else ""
    if found is None and row.has("messages"):
        found = str(row.name("messages"))
        value = row.data[found]
    if isinstance(value, list | Mapping):
        return make_prompt(turns=messages(value, str(found)), name=name, answer=answer)
    text = as_text(value, str(found)) if found else ""
    if found == "instruction" and row.has("input") and row.text("input"):
        text = f"{text}\n\n{row.text('input')}"
    if row.has("system") and row.text("system"):
        turns = (Turn(role="system", text=row.text("system")), Turn(role="user", text=text))
        return make_prompt(turns=turns, name=name, answer=answer)
    return make_prompt(text, name=name, answer=answer)


def response_of(prompt: Prompt, value: object, name: str) -> Response:
    """A response that is text, one message, or a list of messages of which the last is the assistant's."""
    if not isinstance(value, list | Mapping):
        return make_response(prompt, as_text(value, name))
    turns = messages(value, name)
    if turns[-1].role != "assistant":
        raise DataError(f"the last message of {name!r} is of role {turns[-1].role!r}; expected the assistant's")
    if len(turns) == 1:
        return make_response(prompt, turns[0].text)
    return make_response(prompt, turns[-1].text, turns)


def _turn(entry: object, name: str, k: int) -> Turn:
    if not isinstance(entry, Mapping):
        raise DataError(f"message {k} of {name!r} is {entry!r:.60}; expected an object with role and content")
    role, text = entry.get("role", entry.get("from")), entry.get("content", entry.get("value"))
    if isinstance(text, list) and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in text):
        text = "".join(part["text"] for part in text)
    if text is None and entry.get("tool_calls"):
        text = ""
    if not isinstance(role, str) or role.lower() not in _ROLES or not isinstance(text, str):
        raise DataError(
            f"message {k} of {name!r} is {dict(entry)!r:.80}; expected role (or from) of {', '.join(_ROLES)}, and "
            "content (or value) with text"
        )
    return Turn(role=_ROLES[role.lower()], text=text)


def _listed(data: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, data))[:10]) or "no column"
