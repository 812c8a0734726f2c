"""The forms that data sets come in: how each is recognised by its columns, and how one row of it is read.

Columns have our names here (``interchange_columns.ALIASES`` lists what others call them).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triloop.errors import DataError
from triloop.feedback.contents import Content, Edit, Pair, Ranking, Steps, Text
from triloop.feedback.conversions_values import sign_of
from triloop.feedback.interchange_columns import Columns, messages, prompt_of, response_of
from triloop.feedback.interchange_records import ImportedItem, from_json, make_prompt, make_response
from triloop.feedback.kinds import write
from triloop.records import Feedback, Prompt, Turn

__all__ = ["FORMS", "Form", "detect"]

_TURN_MARKS = ("\n\nAssistant:", "\nAssistant:")
"""Where the answer begins in a dialogue that is written as one text, as Anthropic's are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way of writing feedback down."""

    needs: tuple[tuple[str, ...], ...]
    """Alternatives; each names columns that must all be there."""
    read: Callable[[Columns], ImportedItem]
    labels: tuple[str, ...] = ()
    """Columns whose values are labels in need of ``interchange_labels.settle``."""


def detect(row: Columns) -> str:
    """The form of these columns. ``DataError`` when they are of none."""
    if "triloop" in row.data:
        return "triloop"
    for name, form in FORMS.items():
        if any(row.has(*needed) for needed in form.needs):
            return name
    raise DataError(
        f"the columns are {', '.join(sorted(map(str, row.data))[:12])}; expected those of one form, such as prompt, chosen "
        "and rejected; prompt, completion and label; messages; item, worker and label. Name yours: --columns NAME=THEIRS"
    )


def _native(row: Columns) -> ImportedItem:
    return from_json(row.data)


def _pairs(row: Columns) -> ImportedItem:
    """Chosen over rejected; a prompt that is not written down is what both have in common."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    prompt, tails = _split_off_prompt(row, chosen, rejected)
    first, second = (response_of(prompt, t, n) for t, n in zip(tails, ("chosen", "rejected"), strict=True))
    if first.id == second.id:
        raise DataError("chosen and rejected are the same text; expected two different ones")
    said = Pair(0) if row.get("tie", False) is True else Pair(1, row.get("strength", 1.0))
    return _item(prompt, (first, second), [_feedback(row, said, (first.id, second.id))])


def _split_off_prompt(row: Columns, chosen: Any, rejected: Any) -> tuple[Prompt, tuple[Any, Any]]:
    if all(isinstance(side, list) for side in (chosen, rejected)):
        a, b = messages(chosen, "chosen"), messages(rejected, "rejected")
        if a[0].role in ("user", "system"):  # whole conversations, whatever a prompt column repeats
            same = _common(a, b, min(len(a), len(b)) - 1)
            return make_prompt(turns=a[:same]), (chosen[same:], rejected[same:])
    if row.has("prompt") or row.has("messages"):
        return prompt_of(row), (chosen, rejected)
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise DataError("chosen and rejected are no whole conversations; expected a prompt column beside them")
    cut = _common_prompt(chosen, rejected)
    return make_prompt(chosen[:cut]), (chosen[cut:], rejected[cut:])


def _common(a: Sequence[object], b: Sequence[object], most: int) -> int:
    return next((k for k in range(most) if a[k] != b[k]), max(most, 0))


def _common_prompt(chosen: str, rejected: str) -> int:
    """Length of the prompt in two texts that begin alike: up to the answer's mark, else the last white space in common."""
    same = _common(chosen, rejected, min(len(chosen), len(rejected)))
    for mark in _TURN_MARKS:
        if (at := chosen.rfind(mark, 0, same)) >= 0:
            return at + len(mark)
    return max((m.end() for m in re.finditer(r"\s+", chosen[:same])), default=0)


def _compared(row: Columns) -> ImportedItem:
    """Two responses, and who is better by one judgement or several."""
    prompt = prompt_of(row)
    first, second = (response_of(prompt, row.get(side), side) for side in ("first", "second"))
    votes = _votes_of(row, "preference")
    said = [_feedback(row, row.settings.labels.preference(v), (first.id, second.id), source=w) for v, w in votes]
    return _item(prompt, (first, second), said)


def _labelled(row: Columns) -> ImportedItem:
    """One response with one label or several."""
    prompt, response = _prompt_and_response(row)
    column = "label" if row.has("label") else "labels"
    said = [
        _feedback(row, row.settings.labels.judgement(v), (response.id,), source=w) for v, w in _votes_of(row, column)
    ]
    return _item(prompt, (response,), said)


def _voted(row: Columns) -> ImportedItem:
    """One worker's label of an item, with or without its texts; a preference where there are two responses or ``A>B``."""
    name = _item_name(row)
    gold = str(row.get("gold")) if row.has("gold") and row.name("gold") != row.name("label") else None
    prompt = prompt_of(row, name=name, answer=gold)
    if not name and not prompt.text:
        row.get("item")  # says what is missing
    if row.has("first", "second"):
        return _compared(row)
    responses = (response_of(prompt, row.get("response"), "response"),) if row.has("response") else ()
    about = responses[0].id if responses else prompt.id
    said: list[Feedback] = []
    for value, worker in _votes_of(row, "label" if row.has("label") else "labels"):
        if isinstance(value, str) and re.fullmatch(r"\s*\w+\s*(>{1,2}|<{1,2}|=)\s*\w+\s*", value):
            sides = (f"{prompt.id}/a", f"{prompt.id}/b")
            said.append(_feedback(row, row.settings.labels.preference(value), sides, source=worker))
        else:
            said.append(_feedback(row, row.settings.labels.judgement(value), (about,), source=worker))
    return _item(prompt, responses, said)


def _both_orders(row: Columns) -> ImportedItem:
    """A judge's decisions on a pair in both orders; ``about`` has the order in which it was shown."""
    gold = str(row.get("gold")) if row.has("gold") else None
    prompt = prompt_of(row, name=_item_name(row), answer=gold)
    a, b = f"{prompt.id}/a", f"{prompt.id}/b"
    said = [
        _feedback(row, row.settings.labels.preference(row.get(column)), about)
        if row.has(column)
        else Feedback(value=None, kind="pair", failure="no decision", source=row.worker(), about=about)
        for column, about in (("in_order", (a, b)), ("swapped", (b, a)))
    ]
    return _item(prompt, (), said)


def _ranked(row: Columns) -> ImportedItem:
    """Several responses with ranks (1 is best), an order of positions (best first), or a score or label each."""
    prompt = prompt_of(row)
    responses = tuple(response_of(prompt, r, "responses") for r in row.items("responses"))
    ids = tuple(r.id for r in responses)
    if row.has("scores") or row.has("labels"):
        scores = _as_many(row, "scores" if row.has("scores") else "labels", len(ids))
        said = [_feedback(row, row.settings.labels.judgement(s), (id,)) for s, id in zip(scores, ids, strict=True)]
    elif row.has("ranks"):
        ranks = _as_many(row, "ranks", len(ids))
        if not all(isinstance(r, int | float) and not isinstance(r, bool) for r in ranks):
            raise DataError(f"'ranks' is {ranks!r:.60}; expected a number for each response, 1 the best")
        order = tuple(tuple(k for k, r in enumerate(ranks) if r == rank) for rank in sorted(set(ranks)))
        said = [_feedback(row, Ranking(order), ids)]
    else:
        order = tuple(tuple(g) if isinstance(g, list) else (g,) for g in row.items("order"))
        said = [_feedback(row, Ranking(order), ids)]
    return _item(prompt, responses, said)


def _stepwise(row: Columns) -> ImportedItem:
    """Steps and a label each; the response is the steps, a line each."""
    prompt = prompt_of(row)
    steps = [str(step) for step in row.items("steps")]
    marks = [row.settings.labels.judgement(v) for v in _as_many(row, "labels", len(steps))]
    response = make_response(prompt, "\n".join(steps))
    said = Steps(tuple(sign_of(mark.value) for mark in marks))
    return _item(prompt, (response,), [_feedback(row, said, (response.id,))])


def _criticised(row: Columns) -> ImportedItem:
    """A response and what was said of it in words, maybe with a label, which also says whether it was praise."""
    prompt, response = _prompt_and_response(row)
    said = [row.settings.labels.judgement(row.get("label"))] if row.has("label") else []
    sign = sign_of(said[0].value) if said else None
    words = [Text(row.text("critique"), sign)] if row.has("critique") or not said else []
    return _item(prompt, (response,), [_feedback(row, content, (response.id,)) for content in (*words, *said)])


def _edited(row: Columns) -> ImportedItem:
    """An original and its revision, maybe with the critique that led to it."""
    prompt = prompt_of(row)
    value = row.get("original") if row.has("original") else row.get("response")
    first, second = response_of(prompt, value, "original"), response_of(prompt, row.get("revised"), "revised")
    said = [_feedback(row, Edit(second.text), (first.id, second.id))]
    if row.has("critique"):
        said.insert(0, _feedback(row, Text(row.text("critique")), (first.id,)))
    return _item(prompt, (first, second), said)


def _demonstrated(row: Columns) -> ImportedItem:
    """A response to be imitated."""
    if row.has("text") and not row.has("response") and not row.has("messages"):
        prompt = make_prompt()
        return _item(prompt, (make_response(prompt, row.text("text")),), [])
    prompt, response = _prompt_and_response(row)
    return _item(prompt, (response,), [])


def _asked(row: Columns) -> ImportedItem:
    """A prompt alone."""
    return _item(prompt_of(row), (), [])


def _prompt_and_response(row: Columns) -> tuple[Prompt, Any]:
    """From two columns, or from messages that end in the assistant's."""
    if row.has("response") or not row.has("messages"):
        prompt = prompt_of(row)
        return prompt, response_of(prompt, row.get("response"), str(row.name("response")))
    turns = messages(row.get("messages"), str(row.name("messages")))
    if turns[-1].role != "assistant":
        raise DataError(f"the last message is of role {turns[-1].role!r}; expected the assistant's, which is judged")
    head = turns[:-1]
    if row.has("system") and head and head[0].role != "system":
        head = (Turn(role="system", text=row.text("system")), *head)
    prompt = make_prompt(turns=head)
    return prompt, make_response(prompt, turns[-1].text)


def _item_name(row: Columns) -> str:
    return f"data:{row.text('item')}" if row.has("item") else ""


def _votes_of(row: Columns, column: str) -> list[tuple[Any, str]]:
    """The label and who gave it, or all of them where the row has lists."""
    value = row.get(column)
    if not isinstance(value, list):
        return [(value, row.worker())]
    if all(isinstance(v, Mapping) for v in value):
        inner = [Columns(v, row.settings) for v in value]
        return [(v.get("label" if v.has("label") else "preference"), v.worker()) for v in inner]
    name = row.name("worker")
    workers = row.data[name] if name else list(range(len(value)))
    if not isinstance(workers, list) or len(workers) != len(value):
        raise DataError(
            f"{row.name(column)!r} has {len(value)} labels and {name!r} is {workers!r:.60}; expected one worker each"
        )
    return [(v, f"person:{w}") for v, w in zip(value, workers, strict=True)]


def _as_many(row: Columns, ours: str, n: int) -> list[Any]:
    listed = row.items(ours)
    if len(listed) != n:
        raise DataError(f"{row.name(ours)!r} has {len(listed)} entries for {n} responses; expected one each")
    return listed


def _feedback(row: Columns, content: Content, about: tuple[str, ...], source: str = "") -> Feedback:
    return write(
        content,
        source=source or row.worker(),
        confidence=row.get("confidence", 1.0),
        consent=row.text("consent", row.settings.consent),
        about=about,
    )


def _item(prompt: Prompt, responses: Sequence[Any], feedback: Sequence[Feedback]) -> ImportedItem:
    return ImportedItem(prompt=prompt, responses=tuple(responses), feedback=tuple(feedback))


FORMS: Mapping[str, Form] = {
    "triloop": Form(needs=(), read=_native),
    "pairs": Form(needs=(("chosen", "rejected"),), read=_pairs),
    "edits": Form(needs=(("revised", "original"), ("revised", "response")), read=_edited),
    "steps": Form(needs=(("steps", "labels"),), read=_stepwise, labels=("labels",)),
    "rankings": Form(
        needs=tuple(("responses", said) for said in ("ranks", "order", "scores", "labels")),
        read=_ranked,
        labels=("scores", "labels"),
    ),
    "compared": Form(needs=(("first", "second", "preference"),), read=_compared),
    "orders": Form(needs=(("in_order", "swapped"),), read=_both_orders),
    "critiques": Form(needs=(("response", "critique"), ("messages", "critique")), read=_criticised, labels=("label",)),
    "votes": Form(
        needs=(("worker", "label"), ("worker", "labels"), ("response", "labels"), ("item", "labels")),
        read=_voted,
        labels=("label", "labels"),
    ),
    "labels": Form(needs=(("response", "label"), ("messages", "label")), read=_labelled, labels=("label",)),
    "sft": Form(needs=(("response",), ("messages",), ("text",)), read=_demonstrated),
    "prompts": Form(needs=(("prompt",),), read=_asked),
}
"""Every form, the most telling first: the first whose columns are there is taken."""
