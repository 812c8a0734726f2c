"""What an imported row becomes, and its own JSON form, which comes back exactly.

One line of Triloop's own JSONL is one object, ``{"triloop": 1, "prompt": {...}, "responses": [...], "feedback": [...]}``:
each part with the fields of its record, those that have their default left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triloop.errors import DataError
from triloop.feedback.kinds import read
from triloop.records import Feedback, Prompt, Turn
from triloop.rng import key

__all__ = [
    "VERSION",
    "ImportedItem",
    "Response",
    "feedback_from_json",
    "feedback_to_json",
    "from_json",
    "make_prompt",
    "make_response",
    "to_json",
]

VERSION = 1
"""Of the JSON form; a reader refuses a newer one."""

_NUMBERS = ("value", "confidence", "cost", "time")
_TEXTS = ("reason", "source", "kind", "failure", "consent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One text that answers a prompt. Equal texts for equal prompts have equal identifiers."""

    id: str
    text: str
    turns: tuple[Turn, ...] = ()
    """All messages of a response that has several (tool calls in between); ``text`` is then the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedItem:
    """One row of a data set: a prompt, the responses that it shows, and what was said of them.

    Responses without any feedback are demonstrations. ``feedback`` names what it judges in ``about``: identifiers of the
    responses, or, where a row has labels without texts, of the prompt.
    """

    prompt: Prompt
    responses: tuple[Response, ...] = ()
    feedback: tuple[Feedback, ...] = ()
    where: str = field(default="", compare=False)
    """``file:row`` that it came from."""


def make_prompt(text: str = "", turns: Sequence[Turn] = (), *, name: str = "", answer: str | None = None) -> Prompt:
    """A prompt under an identifier made from its content, or under its own name where the data gives one."""
    turns = tuple(turns)
    text = turns[-1].text if turns else text
    parts = [part for turn in turns for part in (turn.role, turn.text)] or [text]
    return Prompt(id=name or f"data:{key(*parts):016x}", text=text, answer=answer, turns=turns)


def make_response(prompt: Prompt, text: str, turns: Sequence[Turn] = ()) -> Response:
    """A response under an identifier made from the prompt's and its own content."""
    parts = [part for turn in turns for part in (turn.role, turn.text)] or [text]
    return Response(id=f"{prompt.id}/{key(*parts):016x}", text=text, turns=tuple(turns))


def to_json(item: ImportedItem) -> dict[str, Any]:
    """The item as one JSON object."""
    prompt = {**_said(item.prompt, Prompt(id="", text=""), {"id", "text"}), "turns": _turns_out(item.prompt.turns)}
    return {
        "triloop": VERSION,
        "prompt": {k: v for k, v in prompt.items() if k != "turns" or v},
        "responses": [
            {"id": r.id, "text": r.text, **({"turns": _turns_out(r.turns)} if r.turns else {})} for r in item.responses
        ],
        "feedback": [feedback_to_json(f) for f in item.feedback],
    }


def from_json(data: Mapping[str, Any], where: str = "") -> ImportedItem:
    """Inverse of ``to_json``; ``DataError`` for what it never writes."""
    if data.get("triloop") != VERSION:
        raise DataError(
            f"'triloop' is {data.get('triloop')!r}; expected {VERSION}: write the file with this version of it"
        )
    prompt = _fields(data.get("prompt"), "prompt", Prompt, ("id", "text"))
    responses = [
        _fields(r, f"response {k}", Response, ("id", "text")) for k, r in enumerate(_list(data, "responses"), start=1)
    ]
    return ImportedItem(
        prompt=Prompt(**{**prompt, "turns": _turns_in(prompt.get("turns", []))}),
        responses=tuple(Response(**{**r, "turns": _turns_in(r.get("turns", []))}) for r in responses),
        feedback=tuple(feedback_from_json(f) for f in _list(data, "feedback")),
        where=where,
    )


def feedback_to_json(feedback: Feedback) -> dict[str, Any]:
    """A judgement as one JSON object: ``value``, ``kind``, and every field that differs from its default."""
    return _said(feedback, Feedback(value=None), {"value", "kind"})


def feedback_from_json(data: object) -> Feedback:
    """Inverse of ``feedback_to_json``; ``DataError`` for unknown fields, wrong types and malformed content."""
    fields = _fields(data, "feedback", Feedback, ("value",))
    for name in _NUMBERS:
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise DataError(f"{name!r} of a feedback is {value!r}; expected a number")
    for name in _TEXTS:
        if not isinstance(fields.get(name, ""), str) and not (name == "failure" and fields[name] is None):
            raise DataError(f"{name!r} of a feedback is {fields[name]!r}; expected text")
    for name in ("about", "parents"):
        listed = fields.get(name, [])
        if not isinstance(listed, list) or not all(isinstance(id, str) for id in listed):
            raise DataError(f"{name!r} of a feedback is {listed!r}; expected a list of identifiers")
        fields[name] = tuple(listed)
    for name in ("breakdown", "content"):
        if not isinstance(fields.get(name, {}), dict):
            raise DataError(f"{name!r} of a feedback is {fields[name]!r}; expected an object")
    feedback = Feedback(**fields)
    if not feedback.failed:
        read(feedback)
    return feedback


def _said(record: Any, blank: Any, always: set[str]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name in (f.name for f in dataclasses.fields(record)):
        value = getattr(record, name)
        if name in always or value != getattr(blank, name):
            told[name] = (
                list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            )
    return told


def _fields(data: object, what: str, kind: type[Any], needed: tuple[str, ...]) -> dict[str, Any]:
    known = [f.name for f in dataclasses.fields(kind)]
    if not isinstance(data, Mapping):
        raise DataError(f"{what} is {data!r:.60}; expected an object with {', '.join(needed)}")
    missing, unknown = [n for n in needed if n not in data], [n for n in data if n not in known]
    if missing or unknown:
        got = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(map(repr, unknown))}"
        raise DataError(f"{what} {got}; expected fields of {', '.join(known)}")
    if not all(isinstance(data[n], str) for n in ("id", "text") if n in data):
        raise DataError(f"'id' and 'text' of {what} are not both text; expected text")
    return dict(data)


def _list(data: Mapping[str, Any], name: str) -> list[Any]:
    value = data.get(name, [])
    if not isinstance(value, list):
        raise DataError(f"{name!r} is {value!r:.60}; expected a list")
    return value


def _turns_out(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def _turns_in(turns: object) -> tuple[Turn, ...]:
    if not isinstance(turns, list) or not all(isinstance(t, dict) and t.keys() == {"role", "content"} for t in turns):
        raise DataError(f"'turns' is {turns!r:.60}; expected a list of objects with role and content")
    return tuple(Turn(role=turn["role"], text=turn["content"]) for turn in turns)
