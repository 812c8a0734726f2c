"""Conversions from and to words, marked passages, steps and edits. Pure functions; each says what it loses.

Offsets count characters of the judged text, as Python indexes it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import cast

from triloop.errors import DataError
from triloop.feedback.contents import Edit, Pair, Rubric, Sign, Span, Spans, Steps, Ternary, Text
from triloop.feedback.conversions_values import sign_of

__all__ = [
    "BLAME",
    "PRAISE",
    "edit_to_demonstration",
    "edit_to_pair",
    "edit_to_spans",
    "line_bounds",
    "rubric_to_text",
    "spans_to_signs",
    "spans_to_steps",
    "steps_to_spans",
    "text_to_spans",
    "text_to_ternary",
]


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


PRAISE = _words(
    "accurate appropriate clear clean complete concise correct excellent fine fluent good great grounded helpful polite "
    "precise relevant right sound true useful valid well"
)
BLAME = _words(
    "bad error errors fails false hallucinated harmful impolite incomplete inaccurate incorrect invalid irrelevant "
    "missing mistake misleading off-topic omits redundant repeated repeats rude toxic ugly unclear ungrounded unhelpful "
    "unsafe unsupported untrue useless verbose vague wrong"
)
_NEGATION = _words("not no never nor without hardly isn't wasn't doesn't don't cannot can't lacks")
_WORD = re.compile(r"[\w'-]+")
_CLAUSE = re.compile(r"[^;\n.!?]+")
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|`([^`]+)`|(?<!\w)'([^']+)'(?!\w)")
_PIECE = re.compile(r"\w+|\s+|[^\w\s]")


def rubric_to_text(content: Rubric) -> Text:
    """The marks in words, the bad ones first: ``poor: a, b; cannot tell: c; good: d``; its sign is that of the mean.

    Loses: nothing that a reader could not read back, but losses on text do not read marks.
    """
    groups = [("poor", -1), ("cannot tell", 0), ("good", 1)]
    named = [(word, [c for c, mark in content.marks.items() if mark == sign]) for word, sign in groups]
    told = "; ".join(f"{word}: {', '.join(criteria)}" for word, criteria in named if criteria)
    return Text(told, sign_of(content.mean))


def text_to_ternary(content: Text) -> Ternary:
    """The critic's own sign; without one, whether words of praise or of blame prevail, a negation turning one round.

    Loses: what was said. Without a sign it is a guess from a short list of English words, and 0 where they balance.
    """
    return Ternary(content.sign if content.sign is not None else sign_of(_tone(content.critique)))


def text_to_spans(
    content: Text, *, text: str, templates: Sequence[tuple[str, Sign]] = (), missing: bool = False
) -> Spans:
    """Passages of ``text`` that the critique names, each with its clause as the note.

    A clause ends at ``;``, a line or a full stop. A template such as ``("rude {}", -1)`` names what follows; words in
    quotation marks name themselves, with the clause's own tone as sign, or the critique's where the clause has none. Every
    whole-word occurrence in ``text`` is marked, whatever its case. With ``missing``, what a bad clause names and the text
    does not hold is marked on the text's last word: it should have come by then.

    Loses: what is missing from the text (it has no place there), and all that is neither quoted nor in a template.
    """
    spans: dict[tuple[int, int], Span] = {}
    last = [m.span() for m in re.finditer(r"\S+", text)][-1:] if missing else []
    for clause in _clauses(content.critique):
        for named, sign in _named(clause, content.sign, templates):
            for start, end in list(_occurrences(named, text)) or (last if sign < 0 else []):
                spans.setdefault((start, end), Span(start, end, sign, clause))
    return Spans(tuple(spans[where] for where in sorted(spans)))


def spans_to_signs(content: Spans, offsets: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """One sign a token, given each token's characters ``(start, end)``: that of the spans it touches, 0.0 without any.

    A token that a bad span touches is bad, whatever else touches it: a passage is marked bad for a reason. Tokens without
    characters (special ones) get 0.0.

    Loses: the notes, which spans belong together, and where in a token a span begins.
    """
    return tuple(float(_sign_within(content, start, end)) for start, end in offsets)


def spans_to_steps(content: Spans, *, bounds: Sequence[tuple[int, int]]) -> Steps:
    """One sign a step, given each step's characters: -1 where a bad span touches it, else +1 where a good one does, else 0.

    Loses: the notes, and where in a step the passage stands.
    """
    return Steps(tuple(_sign_within(content, start, end) for start, end in bounds))


def steps_to_spans(content: Steps, *, text: str, bounds: Sequence[tuple[int, int]] | None = None) -> Spans:
    """One span a step; without ``bounds`` a step is a line of ``text`` that is not blank.

    Raises ``DataError`` when there are not as many steps as signs.

    Loses: nothing as long as the spans are kept together.
    """
    bounds = line_bounds(text) if bounds is None else bounds
    if len(bounds) != len(content.signs):
        raise DataError(
            f"{len(content.signs)} signs for {len(bounds)} steps of the text; expected one a step: give bounds"
        )
    return Spans(tuple(Span(start, end, sign) for (start, end), sign in zip(bounds, content.signs, strict=True)))


def edit_to_pair(content: Edit) -> Pair:
    """The revised text (first) over the original (second).

    Loses: what was changed, and that the two are versions of one text; a tie cannot be said.
    """
    return Pair(1)


def edit_to_demonstration(content: Edit) -> Ternary:
    """The revised text as one to imitate: +1 about it.

    Loses: the original, and with it what was wrong.
    """
    return Ternary(1)


def edit_to_spans(content: Edit, *, text: str) -> tuple[Spans, Spans]:
    """Marks on both texts by a diff of words: in the original, removed -1 and kept 0; in the revised, added +1 and kept 0.

    Loses: moved words count as removed and added, and a kept word may be kept only because nobody looked at it.
    """
    before, after = _PIECE.findall(text), _PIECE.findall(content.revised)
    left, right = _starts(before), _starts(after)
    old: list[Span] = []
    new: list[Span] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        kept = tag == "equal"
        if b > a:
            old.append(Span(left[a], left[b], 0 if kept else -1, "kept" if kept else "removed"))
        if d > c:
            new.append(Span(right[c], right[d], 0 if kept else 1, "kept" if kept else "added"))
    return Spans(tuple(old)), Spans(tuple(new))


def line_bounds(text: str) -> list[tuple[int, int]]:
    """Where each line that is not blank begins and ends, without the white space around it."""
    return [(m.start(), m.end()) for m in re.finditer(r"\S(?:[^\n]*\S)?", text)]


def _starts(pieces: Sequence[str]) -> list[int]:
    """Offset of each piece, and of the end."""
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    return starts


def _sign_within(content: Spans, start: int, end: int) -> Sign:
    touching = [s.sign for s in content.spans if s.start < end and start < s.end]
    return cast(Sign, -1 if -1 in touching else max(touching, default=0))


def _clauses(critique: str) -> Iterator[str]:
    """Clauses, without cutting a quotation in two."""
    quoted = [(m.start(), m.end()) for m in _QUOTED.finditer(critique)]
    cuts = [m.start() for m in re.finditer(r"[;\n.!?]", critique) if not any(a < m.start() < b for a, b in quoted)]
    for a, b in pairwise([-1, *cuts, len(critique)]):
        if clause := critique[a + 1 : b].strip():
            yield clause


def _tone(words: str) -> int:
    """Words of praise less words of blame; a negation turns the next one within three words round."""
    tone, turn = 0, 0
    for word in _WORD.findall(words.lower()):
        sign = (word in PRAISE) - (word in BLAME)
        if word in _NEGATION:
            turn = 3
        elif sign:
            tone += -sign if turn else sign
            turn = 0
        else:
            turn = max(0, turn - 1)
    return tone


def _named(clause: str, sign: Sign | None, templates: Sequence[tuple[str, Sign]]) -> Iterator[tuple[str, Sign]]:
    """What a clause names, by the first template that fits, else by its quotation marks."""
    for template, given in templates:
        if template.count("{}") != 1:
            raise DataError(f"a template is {template!r}; expected one '{{}}' where the named words stand")
        pattern = re.escape(template).replace(re.escape("{}"), "(.+)")
        if found := re.fullmatch(pattern, clause, re.IGNORECASE):
            yield found[1].strip(" \"'`"), given
            return
    for found in _QUOTED.finditer(clause):
        tone = sign_of(_tone(_QUOTED.sub(" ", clause)))
        yield next(group for group in found.groups() if group), tone or sign or 0


def _occurrences(named: str, text: str) -> Iterator[tuple[int, int]]:
    if not named.strip():
        return
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, named.split())) + r"(?!\w)"
    for found in re.finditer(pattern, text, re.IGNORECASE):
        yield found.start(), found.end()
