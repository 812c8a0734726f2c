"""What a judgement says, one frozen record per kind, and how it stands in a ``Feedback`` and comes back unchanged.

``value`` of a Feedback holds the kinds that are one number (scalar, ternary, pair, rubric as its mean, abstention as 0);
``content`` holds the rest as plain JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

from triloop.errors import DataError
from triloop.feedback.contents import (
    Abstention,
    Content,
    Edit,
    Pair,
    Ranking,
    Rubric,
    Scalar,
    Sign,
    Span,
    Spans,
    Steps,
    Ternary,
    Text,
    check_number,
)
from triloop.records import Feedback

__all__ = [
    "KINDS",
    "Abstention",
    "Content",
    "Edit",
    "Kind",
    "Pair",
    "Ranking",
    "Rubric",
    "Scalar",
    "Sign",
    "Span",
    "Spans",
    "Steps",
    "Ternary",
    "Text",
    "read",
    "said_nothing",
    "write",
]

Kind = Literal["scalar", "ternary", "pair", "ranking", "rubric", "steps", "spans", "text", "edit", "abstention"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def write(
    content: Content,
    *,
    source: str,
    confidence: float = 1.0,
    cost: float = 0.0,
    time: float | None = None,
    consent: str = "",
    about: Sequence[str] = (),
    parents: Sequence[str] = (),
    reason: str = "",
    breakdown: Mapping[str, float] | None = None,
) -> Feedback:
    """The content as a Feedback; ``read`` gives it back unchanged.

    ``about`` names the judged completions in the order that the content means: two for a pair, as many as it ranks for
    a ranking, the original and maybe the revised one for an edit, at most one for any other kind. A rubric's marks are
    its breakdown. Raises ``DataError``.
    """
    kind, value, told = _told(content)
    check_number("confidence", confidence, 0.0, 1.0)
    check_number("cost", cost, 0.0, math.inf)
    if time is not None:
        check_number("time", time, -math.inf, math.inf)
    _check_about(content, kind, about)
    if isinstance(content, Abstention):
        if reason and content.reason:
            raise DataError(f"an abstention has two reasons, {content.reason!r} and {reason!r}; give one")
        reason = reason or content.reason
    parts = dict(breakdown or {})
    if isinstance(content, Rubric):
        parts = {name: float(mark) for name, mark in content.marks.items()}
    return Feedback(
        value=value,
        reason=reason,
        source=source,
        kind=kind,
        confidence=float(confidence),
        cost=float(cost),
        breakdown=parts,
        about=tuple(about),
        content=told,
        time=time,
        consent=consent,
        parents=tuple(parents),
    )


def read(feedback: Feedback) -> Content:
    """What a Feedback says. ``DataError`` for a failure, which says nothing, and for content that is malformed."""
    if feedback.failed:
        why = feedback.failure or "it has no value"
        raise DataError(
            f"a failed judgement of {feedback.source or 'an unknown source'} has no content ({why}); skip it"
        )
    if feedback.kind not in _READERS:
        raise DataError(f"feedback is of kind {feedback.kind!r}; expected one of {', '.join(KINDS)}")
    content = _READERS[feedback.kind](feedback)
    _, value, _ = _told(content)
    if feedback.value is not None and value is not None and not math.isclose(value, feedback.value, abs_tol=1e-9):
        raise DataError(
            f"a {feedback.kind} says {value:g} and its value is {feedback.value:g}; expected the same number"
        )
    _check_about(content, feedback.kind, feedback.about)
    return content


def said_nothing(feedback: Feedback) -> bool:
    """Whether the judge did not decide: it failed, abstained, or marked 0. A tie between two is a decision."""
    if feedback.failed or feedback.kind == "abstention":
        return True
    if feedback.kind == "rubric":
        return not any(feedback.breakdown.values())
    return feedback.kind in ("ternary", "scalar") and feedback.value == 0


def _told(content: Content) -> tuple[Kind, float | None, dict[str, Any]]:
    """Kind, value and JSON content of what is said."""
    match content:
        case Scalar(value):
            return "scalar", float(value), {}
        case Ternary(value):
            return "ternary", float(value), {}
        case Pair(preference, strength):
            return "pair", preference * float(strength), {}
        case Rubric():
            return "rubric", content.mean, {"marks": dict(content.marks)}
        case Ranking(order):
            return "ranking", None, {"order": [list(group) for group in order]}
        case Steps(signs):
            return "steps", None, {"signs": list(signs)}
        case Spans(spans):
            return "spans", None, {"spans": [[s.start, s.end, s.sign, s.note] for s in spans]}
        case Text(critique, sign):
            return "text", None, {"critique": critique} | ({} if sign is None else {"sign": sign})
        case Edit(revised, by):
            return "edit", None, {"revised": revised} | ({"by": by} if by else {})
        case Abstention():
            return "abstention", 0.0, {}
    raise DataError(f"a judgement says {content!r}; expected one of {', '.join(t.__name__ for t in get_args(Content))}")


def _scalar(feedback: Feedback) -> Scalar:
    return Scalar(_value(feedback))


def _ternary(feedback: Feedback) -> Ternary:
    value = _value(feedback)
    return Ternary(cast(Sign, int(value) if value in (-1, 0, 1) else value))


def _pair(feedback: Feedback) -> Pair:
    value = _value(feedback)
    return Pair(cast(Sign, (value > 0) - (value < 0)), abs(value))


def _rubric(feedback: Feedback) -> Rubric:
    # A judge that fills the breakdown alone has said as much.
    marks = feedback.content.get("marks", feedback.breakdown)
    if not isinstance(marks, Mapping):
        raise _missing(feedback, "marks", "a mapping from criterion to -1, 0 or 1")
    return Rubric({k: cast(Sign, int(v) if v in (-1, 0, 1) else v) for k, v in marks.items()})


def _ranking(feedback: Feedback) -> Ranking:
    order = _field(feedback, "order", list, "groups of positions, best first")
    if not all(isinstance(group, list | tuple) for group in order):
        raise _missing(feedback, "order", "groups of positions, best first")
    return Ranking(tuple(tuple(group) for group in order))


def _steps(feedback: Feedback) -> Steps:
    return Steps(tuple(_field(feedback, "signs", list, "one of -1, 0, 1 for each step")))


def _spans(feedback: Feedback) -> Spans:
    wanted = "[start, end, sign, note] for each span"
    marked = _field(feedback, "spans", list, wanted)
    if not all(isinstance(span, list | tuple) and len(span) == 4 for span in marked):
        raise _missing(feedback, "spans", wanted)
    return Spans(tuple(Span(*span) for span in marked))


def _critique(feedback: Feedback) -> Text:
    return Text(_field(feedback, "critique", str, "text"), feedback.content.get("sign"))


def _edit(feedback: Feedback) -> Edit:
    return Edit(_field(feedback, "revised", str, "text"), feedback.content.get("by", ""))


_READERS: dict[str, Callable[[Feedback], Content]] = {
    "scalar": _scalar,
    "ternary": _ternary,
    "pair": _pair,
    "ranking": _ranking,
    "rubric": _rubric,
    "steps": _steps,
    "spans": _spans,
    "text": _critique,
    "edit": _edit,
    "abstention": lambda feedback: Abstention(feedback.reason),
}


def _check_about(content: Content, kind: str, about: Sequence[str]) -> None:
    """() is the completion that the judgement is stored with; more than one thing must be named."""
    if isinstance(about, str) or not all(isinstance(id, str) for id in about):
        raise DataError(f"a {kind} is about {about!r}; expected a sequence of identifiers")
    if isinstance(content, Pair | Ranking):
        wanted = content.size if isinstance(content, Ranking) else 2
        if about and len(about) != wanted:
            raise DataError(f"a {kind} is about {len(about)} completions; expected the identifiers of {wanted}")
    elif len(about) > (2 if isinstance(content, Edit) else 1):
        raise DataError(
            f"a {kind} is about {len(about)} completions; expected one, or none for the one it is stored with"
        )


def _value(feedback: Feedback) -> float:
    if feedback.value is None:
        raise DataError(f"a {feedback.kind} has no value; expected a number in [-1, 1]")
    return feedback.value


def _field(feedback: Feedback, name: str, kind: type[Any], wanted: str) -> Any:
    value = feedback.content.get(name)
    if isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, kind):
        raise _missing(feedback, name, wanted)
    return value


def _missing(feedback: Feedback, name: str, wanted: str) -> DataError:
    got = f"{feedback.content[name]!r}"[:60] if name in feedback.content else "absent"
    return DataError(f"{name!r} of a {feedback.kind} is {got}; expected {wanted}")
