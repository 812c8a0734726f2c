"""The table of conversions, and ``convert``, which keeps the books: lineage, confidence, cost, consent and time.

A conversion is a pure function of what was said (``conversions_values``, ``conversions_text``); its docstring says what it
loses. Whatever the function, the books are kept one way: parents name what it was made from, the cost of the sources is
shared out among the results and neither grows nor vanishes, and no result is surer than the surest of its sources.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from triloop.errors import DataError
from triloop.feedback import conversions_text as text
from triloop.feedback import conversions_values as values
from triloop.feedback.aggregate import confidence as surety
from triloop.feedback.aggregate import decide, ternary_ballot
from triloop.feedback.contents import Content, Pair, Scalar, Ternary, Text
from triloop.feedback.kinds import Kind, read, write
from triloop.records import Feedback

__all__ = ["CONVERSIONS", "Conversion", "convert", "convertible", "mean_of", "vote_of_pairs", "vote_of_ternaries"]

_GUESS = 0.5
"""What is left of a critic's confidence when a word list had to guess whether it was praise or blame."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One result: what it says, of which completions, and what share of the confidence is left."""

    content: Content
    about: tuple[str, ...]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class _Given:
    """One source: what it said, of which completions, how sure."""

    content: Any
    about: tuple[str, ...]
    confidence: float


_Spread = Callable[[Callable[..., Any], Sequence[_Given], Mapping[str, Any]], list[_Part]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """One way from a kind to a kind."""

    source: Kind
    target: Kind
    function: Callable[..., Any]
    """On contents, without the books."""
    spread: _Spread
    """From the function to judgements of named completions."""
    several: bool = False
    """Whether it takes several judgements at once; else one."""

    @property
    def name(self) -> str:
        """Of the function."""
        return str(self.function.__name__)

    @property
    def loses(self) -> str:
        """What the function's docstring says is lost."""
        _, _, lost = (self.function.__doc__ or "").partition("Loses:")
        return " ".join(lost.split())


def convert(
    judged: Feedback | Sequence[Feedback],
    target: Kind,
    *,
    ids: Sequence[str] = (),
    stored_with: str = "",
    **options: Any,
) -> tuple[Feedback, ...]:
    """Judgements as another kind, by the table; ``options`` are the function's own (``dead_zone``, ``text``, ``weights``).

    ``ids`` are the identifiers of the sources, which become the parents; without them the sources' own parents are kept.
    ``stored_with`` names the completion meant by a source whose ``about`` is empty. A failure stays a failure, of
    the new kind; among several it is left out. ``DataError`` where there is no such conversion or it lacks something.
    """
    given = [judged] if isinstance(judged, Feedback) else list(judged)
    heard = [f for f in given if not f.failed]
    if not given:
        raise DataError(f"nothing to convert to {target}; expected at least one judgement")
    if not heard:
        return (dataclasses.replace(_books(given, ids), kind=target, value=None, content={}, breakdown={}),)
    conversion = _find({f.kind for f in heard}, target)
    if not conversion.several and len(heard) > 1:
        raise DataError(f"{conversion.name} converts one judgement at a time; got {len(heard)}")
    told = [_Given(read(f), f.about or ((stored_with,) if stored_with else ()), f.confidence) for f in heard]
    try:
        parts = conversion.spread(conversion.function, told, options)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise DataError(f"{conversion.name} cannot be called so: {error}; its docstring names what it takes") from error
    books = _books(given, ids)
    return tuple(_entered(part, books, len(parts)) for part in parts)


def convertible(source: str) -> list[Kind]:
    """The kinds that this one can become."""
    return [target for kind, target in CONVERSIONS if kind == source]


def vote_of_ternaries(judged: Sequence[tuple[Ternary, float]]) -> tuple[Ternary, float]:
    """The sign with the most confidence behind it, 0 among equals, and how sure: by majority, 0 a label like any other.

    Reliability of the voters is not asked; ``triloop.feedback.crowd`` learns it from many items.

    Loses: who disagreed, and whether a 0 was said or is the balance of +1 and -1.
    """
    sign, sure = _vote([(float(content.value), weight) for content, weight in judged])
    return Ternary(values.sign_of(sign)), sure


def vote_of_pairs(judged: Sequence[tuple[Pair, float]]) -> tuple[Pair, float]:
    """The preference with the most confidence behind it, a tie among equals, and how sure; strength is the voters' mean.

    Loses: who disagreed, and whether a tie was said or is the balance of two sides.
    """
    sign, sure = _vote([(float(content.preference), weight) for content, weight in judged])
    with_it = [content.strength for content, _ in judged if content.preference == sign]
    return Pair(values.sign_of(sign), min(1.0, sum(with_it) / len(with_it)) if sign else 0.0), sure


def mean_of(judged: Sequence[tuple[Scalar, float]]) -> tuple[Scalar, float]:
    """The mean weighed by confidence, and the mean confidence.

    Loses: who disagreed: half +1 and half -1 is the same 0 as all 0.
    """
    total = sum(weight for _, weight in judged)
    value = sum(content.value * weight for content, weight in judged) / total if total else 0.0
    return Scalar(max(-1.0, min(1.0, value))), 1.0


def _vote(marks: Sequence[tuple[float, float]]) -> tuple[int, float]:
    box = ternary_ballot(
        (("it", Feedback(value=v, source=str(k))) for k, (v, _) in enumerate(marks)), abstentions="label"
    )
    counts = box.votes.counts(np.array([weight for _, weight in marks], dtype=np.float64))
    if counts.sum() <= 0:
        return 0, 0.0
    posterior = counts / counts.sum()
    winner = int(decide(posterior, ties="none")[0])
    return (int(box.labels[winner]) if winner >= 0 else 0), float(surety(posterior)[0])


def _find(kinds: set[str], target: Kind) -> Conversion:
    if len(kinds) > 1:
        raise DataError(
            f"judgements of kinds {', '.join(sorted(kinds))} together; expected one kind: convert each first"
        )
    (kind,) = kinds
    found = next((c for (a, b), c in CONVERSIONS.items() if (a, b) == (kind, target)), None)
    if found is None:
        ways = ", ".join(convertible(kind)) or "nothing"
        raise DataError(f"there is no conversion from {kind} to {target}; {kind} can become {ways}")
    return found


def _books(given: Sequence[Feedback], ids: Sequence[str]) -> Feedback:
    """What all results share: everything of the sources but what they say."""
    if ids and len(ids) != len(given):
        raise DataError(f"{len(ids)} identifiers for {len(given)} judgements; expected one each, or none")
    heard = [f for f in given if not f.failed] or list(given)
    times = [f.time for f in heard if f.time is not None]
    lineage = ids or [parent for f in given for parent in f.parents]
    reasons = dict.fromkeys(f.reason for f in heard if f.reason)
    return Feedback(
        value=None,
        reason="; ".join(reasons),
        source="+".join(dict.fromkeys(f.source for f in heard if f.source)),
        confidence=sum(f.confidence for f in heard) / len(heard),
        cost=sum(f.cost for f in given),  # a judge that failed was paid all the same
        failure=given[0].failure or "it has no value" if all(f.failed for f in given) else None,
        about=given[0].about if len(given) == 1 else (),
        time=max(times) if times else None,
        # made from several, it may be used only for what each of their authors allowed
        consent=" and ".join(sorted({f.consent for f in heard if f.consent})),
        parents=tuple(dict.fromkeys(lineage)),
    )


def _entered(part: _Part, books: Feedback, parts: int) -> Feedback:
    return write(
        part.content,
        source=books.source,
        confidence=min(1.0, books.confidence * part.share),
        cost=books.cost / parts,
        time=books.time,
        consent=books.consent,
        about=part.about,
        parents=books.parents,
        reason=books.reason,
    )


def _named(given: _Given, wanted: int, what: str) -> tuple[str, ...]:
    if len(given.about) < wanted:
        raise DataError(
            f"{what} needs to know which completions are meant; give the judgement `about`, or stored_with=ID"
        )
    return given.about


def _revised(given: _Given) -> tuple[str, str]:
    """Identifiers of the original and of the revised text; the latter is made from the former where it has none."""
    about = _named(given, 1, "an edit")
    return about[0], about[1] if len(about) > 1 else f"{about[0]}/revised"


def _same(function: Callable[..., Any], given: Sequence[_Given], options: Mapping[str, Any]) -> list[_Part]:
    (one,) = given
    return [_Part(function(one.content, **options), one.about[:1])]


def _sides(function: Callable[..., Any], given: Sequence[_Given], options: Mapping[str, Any]) -> list[_Part]:
    """Strength is lost to the signs and kept as confidence."""
    (one,) = given
    about = _named(one, 2, "a pair")
    share = 1.0 if one.content.tie else one.content.strength
    return [_Part(side, (id,), share) for side, id in zip(function(one.content, **options), about, strict=True)]


def _tone(function: Callable[..., Any], given: Sequence[_Given], options: Mapping[str, Any]) -> list[_Part]:
    (one,) = given
    said = isinstance(one.content, Text) and one.content.sign is not None
    return [_Part(function(one.content, **options), one.about, 1.0 if said else _GUESS)]


def _versus(function: Callable[..., Any], given: Sequence[_Given], options: Mapping[str, Any]) -> list[_Part]:
    (one,) = given
    about = _named(one, one.content.size, "a ranking")
    return [_Part(pair, (about[i], about[j])) for i, j, pair in function(one.content, **options)]


def _places(function: Callable[..., Any], given: Sequence[_Given], options: Mapping[str, Any]) -> list[_Part]:
    (one,) = given
    about = _named(one, one.content.size, "a ranking")
    return [_Part(score, (id,)) for score, id in zip(function(one.content, **options), about, strict=True)]


def _scored(function: Callable[..., Any], given: Sequence[_Given], options: Mapping[str, Any]) -> list[_Part]:
    named = [_named(one, 2, "a pair") for one in given]
    place = {id: k for k, id in enumerate(dict.fromkeys(id for about in named for id in about))}
    pairs = [(place[a], place[b], one.content) for (a, b), one in zip(named, given, strict=True)]
    scores = function(pairs, len(place), **options)
    return [_Part(score, (id,)) for score, id in zip(scores, place, strict=True)]


def _compared(function: Callable[..., Any], given: Sequence[_Given], options: Mapping[str, Any]) -> list[_Part]:
    ids = [_named(one, 1, "a score")[0] for one in given]
    if len(set(ids)) < len(ids) or len(ids) < 2:
        raise DataError(f"scores of {', '.join(ids)}; expected one each of at least two completions: aggregate first")
    pairs = function([one.content for one in given], **options)
    return [_Part(pair, (ids[i], ids[j])) for i, j, pair in pairs]


def _merged(function: Callable[..., Any], given: Sequence[_Given], options: Mapping[str, Any]) -> list[_Part]:
    if len({one.about for one in given}) > 1:
        raise DataError("judgements of different completions together; expected several of the same one")
    content, sure = function([(one.content, one.confidence) for one in given], **options)
    return [_Part(content, given[0].about, sure)]


def _better(function: Callable[..., Any], given: Sequence[_Given], options: Mapping[str, Any]) -> list[_Part]:
    old, new = _revised(given[0])
    return [_Part(function(given[0].content, **options), (new, old))]


def _imitated(function: Callable[..., Any], given: Sequence[_Given], options: Mapping[str, Any]) -> list[_Part]:
    return [_Part(function(given[0].content, **options), (_revised(given[0])[1],))]


def _both(function: Callable[..., Any], given: Sequence[_Given], options: Mapping[str, Any]) -> list[_Part]:
    marks = function(given[0].content, **options)
    return [_Part(spans, (id,)) for spans, id in zip(marks, _revised(given[0]), strict=True)]


_ROWS: tuple[tuple[Kind, Kind, Callable[..., Any], _Spread, bool], ...] = (
    ("scalar", "ternary", values.scalar_to_ternary, _same, False),
    ("scalar", "scalar", mean_of, _merged, True),
    ("scalar", "pair", values.scores_to_pairs, _compared, True),
    ("ternary", "scalar", values.ternary_to_scalar, _same, False),
    ("ternary", "ternary", vote_of_ternaries, _merged, True),
    ("abstention", "ternary", values.abstention_to_ternary, _same, False),
    ("pair", "ternary", values.pair_to_ternary, _sides, False),
    ("pair", "pair", vote_of_pairs, _merged, True),
    ("pair", "scalar", values.pairs_to_strengths, _scored, True),
    ("ranking", "pair", values.ranking_to_pairs, _versus, False),
    ("ranking", "scalar", values.ranking_to_scores, _places, False),
    ("rubric", "scalar", values.rubric_to_scalar, _same, False),
    ("rubric", "ternary", values.rubric_to_ternary, _same, False),
    ("rubric", "text", text.rubric_to_text, _same, False),
    ("steps", "scalar", values.steps_to_scalar, _same, False),
    ("steps", "spans", text.steps_to_spans, _same, False),
    ("spans", "steps", text.spans_to_steps, _same, False),
    ("text", "ternary", text.text_to_ternary, _tone, False),
    ("text", "spans", text.text_to_spans, _same, False),
    ("edit", "pair", text.edit_to_pair, _better, False),
    ("edit", "ternary", text.edit_to_demonstration, _imitated, False),
    ("edit", "spans", text.edit_to_spans, _both, False),
)

CONVERSIONS: Mapping[tuple[Kind, Kind], Conversion] = {
    (source, target): Conversion(source=source, target=target, function=function, spread=spread, several=several)
    for source, target, function, spread, several in _ROWS
}
"""Every conversion there is, by (from kind, to kind). From a kind to itself: several judgements become one."""
