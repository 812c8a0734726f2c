"""Conversions: values by hand, and the books (lineage, confidence, cost) for every row of the table."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reading import ROOT
from triloop.errors import DataError
from triloop.feedback.conversions import CONVERSIONS, Conversion, convert, convertible
from triloop.feedback.conversions_text import (
    edit_to_spans,
    line_bounds,
    rubric_to_text,
    spans_to_signs,
    spans_to_steps,
    steps_to_spans,
    text_to_spans,
    text_to_ternary,
)
from triloop.feedback.conversions_values import (
    pair_to_ternary,
    pairs_to_scores,
    pairs_to_strengths,
    ranking_to_pairs,
    ranking_to_scores,
    rubric_to_scalar,
    rubric_to_ternary,
    scalar_to_ternary,
    scores_to_pairs,
    steps_to_scalar,
)
from triloop.feedback.kinds import (
    Abstention,
    Content,
    Edit,
    Pair,
    Ranking,
    Rubric,
    Scalar,
    Span,
    Spans,
    Steps,
    Ternary,
    Text,
    read,
    write,
)
from triloop.records import Feedback

TEXT = "first line\nsecond line"

SAMPLES: dict[str, list[tuple[Content, tuple[str, ...]]]] = {
    "scalar": [(Scalar(0.9), ("a",)), (Scalar(-0.4), ("b",))],
    "ternary": [(Ternary(1), ("a",)), (Ternary(1), ("a",)), (Ternary(0), ("a",))],
    "pair": [(Pair(1, 0.5), ("a", "b")), (Pair(0), ("b", "c"))],
    "ranking": [(Ranking(((2,), (0, 1))), ("a", "b", "c"))],
    "rubric": [(Rubric({"polite": 1, "short": -1, "true": 0}), ("a",))],
    "steps": [(Steps((1, -1)), ("a",))],
    "spans": [(Spans((Span(0, 5, -1, "x"),)), ("a",))],
    "text": [(Text('"second" is wrong'), ("a",))],
    "edit": [(Edit("first line"), ("a",))],
    "abstention": [(Abstention("?"), ("a",))],
}
NEEDS = {
    ("steps", "spans"): {"text": TEXT},
    ("spans", "steps"): {"bounds": [(0, 10), (11, 22)]},
    ("text", "spans"): {"text": TEXT},
    ("edit", "spans"): {"text": TEXT},
}


def _sources(conversion: Conversion) -> list[Feedback]:
    samples = SAMPLES[conversion.source]
    if conversion.source == conversion.target:
        samples = [(content, samples[0][1]) for content, _ in samples]
    if not conversion.several:
        samples = samples[:1]
    return [
        write(
            content,
            source=f"person:{k}",
            confidence=0.5 + 0.1 * k,
            cost=2.0,
            time=float(k),
            about=about,
            consent="study",
        )
        for k, (content, about) in enumerate(samples)
    ]


@pytest.mark.parametrize("way", CONVERSIONS, ids="-".join)
def test_the_books_are_kept(way: tuple[str, str]) -> None:
    """Parents name the sources, cost neither grows nor vanishes, nobody gets surer, consent and time go along."""
    conversion = CONVERSIONS[way]  # type: ignore[index]
    sources = _sources(conversion)
    ids = [f"f/{k}" for k in range(len(sources))]
    results = convert(sources, conversion.target, ids=ids, **NEEDS.get(way, {}))
    assert results
    for result in results:
        assert result.kind == conversion.target and not result.failed
        read(result)
        assert result.parents == tuple(ids)
        assert result.confidence <= max(f.confidence for f in sources)
        assert result.time == len(sources) - 1 and result.consent == "study"
        assert set(result.source.split("+")) == {f.source for f in sources}
    assert math.fsum(r.cost for r in results) == pytest.approx(2.0 * len(sources))


@pytest.mark.parametrize("way", CONVERSIONS, ids="-".join)
def test_each_says_what_it_loses_and_keeps_a_failure(way: tuple[str, str]) -> None:
    conversion = CONVERSIONS[way]  # type: ignore[index]
    assert len(conversion.loses) > 10
    failed = Feedback(value=None, failure="timed out", source="judge", kind=way[0], cost=1.0, about=("a",))
    (kept,) = convert(failed, conversion.target, ids=["f/0"])
    assert kept.failed and kept.failure == "timed out" and kept.value is None and kept.kind == conversion.target
    assert kept.cost == 1.0 and kept.parents == ("f/0",) and kept.about == ("a",)


def test_the_page_lists_every_conversion_and_its_loss() -> None:
    page = (ROOT / "docs" / "feedback.md").read_text(encoding="utf-8")
    for c in CONVERSIONS.values():
        several = "several, " if c.several else ""
        assert f"| {c.source} | {several}`{c.name}` | {c.target} | {c.loses.rstrip('.')} |" in page


def test_without_identifiers_the_lineage_of_the_source_stays() -> None:
    (told,) = convert(write(Scalar(1.0), source="s", parents=("x", "y")), "ternary")
    assert told.parents == ("x", "y")


def test_a_failure_among_several_is_left_out_and_paid() -> None:
    votes = [write(Ternary(s), source=str(k), cost=1.0, about=("a",)) for k, s in enumerate((1, 1, -1))]  # type: ignore[arg-type]
    broken = Feedback(value=None, failure="raised", cost=5.0, about=("a",))
    (one,) = convert([*votes, broken], "ternary")
    assert one.value == 1.0 and one.cost == 8.0
    assert one.confidence == pytest.approx((3 * 2 / 3 - 1) / 2)  # chance-corrected share of three labels


def test_what_cannot_be_converted_says_why() -> None:
    pair = write(Pair(1), source="s")
    for message, call in {
        "no conversion from text to pair": lambda: convert(write(Text("x"), source="s"), "pair"),
        "text can become ternary, spans": lambda: convert(write(Text("x"), source="s"), "pair"),
        "which completions": lambda: convert(pair, "ternary"),
        "one kind": lambda: convert([pair, write(Ternary(1), source="s")], "scalar"),
        "one judgement at a time": lambda: convert([write(Scalar(0.1), source="s")] * 2, "ternary"),
        "nothing to convert": lambda: convert([], "scalar"),
        "cannot be called so": lambda: convert(write(Scalar(0.1), source="s"), "ternary", deadzone=1),
        "2 identifiers for 1": lambda: convert(write(Scalar(0.1), source="s"), "ternary", ids=["a", "b"]),
        "different completions": lambda: convert(
            [write(Ternary(1), source="s", about=(id,)) for id in "ab"], "ternary"
        ),
    }.items():
        with pytest.raises(DataError, match=message):
            call()
    assert convertible("edit") == ["pair", "ternary", "spans"]


def test_dead_zone_by_hand() -> None:
    cut = [scalar_to_ternary(Scalar(v), dead_zone=0.2).value for v in (-1.0, -0.21, -0.2, 0.0, 0.2, 0.21)]
    assert cut == [-1, -1, 0, 0, 0, 1]
    assert scalar_to_ternary(Scalar(1e-9), dead_zone=0).value == 1
    with pytest.raises(DataError, match="dead_zone"):
        scalar_to_ternary(Scalar(0.0), dead_zone=-0.1)


def test_rubric_by_hand() -> None:
    rubric = Rubric({"polite": 1, "short": -1, "true": 0})
    assert rubric_to_scalar(rubric) == Scalar(0.0)
    assert rubric_to_scalar(rubric, weights={"polite": 3, "short": 1, "true": 4}) == Scalar(0.25)
    assert rubric_to_ternary(rubric, weights={"polite": 3, "short": 1, "true": 4}) == Ternary(1)
    assert rubric_to_ternary(rubric, weights={"polite": 3, "short": 1, "true": 4}, dead_zone=0.25) == Ternary(0)
    assert rubric_to_text(rubric) == Text("poor: short; cannot tell: true; good: polite", 0)
    for weights, message in (({"polite": 1}, "short, true"), ({"polite": 0, "short": 0, "true": 0}, "above 0")):
        with pytest.raises(DataError, match=message):
            rubric_to_scalar(rubric, weights=weights)
    with pytest.raises(DataError, match="at least 0"):
        rubric_to_scalar(rubric, weights={"polite": -1, "short": 1, "true": 1})


def test_ranking_by_hand() -> None:
    """c is best, a and b tie: a-b tie, c over a, c over b; Borda -1/2, -1/2, 1."""
    ranking = Ranking(((2,), (0, 1)))
    assert ranking_to_pairs(ranking) == [(0, 1, Pair(0)), (0, 2, Pair(-1)), (1, 2, Pair(-1))]
    assert [s.value for s in ranking_to_scores(ranking)] == [-0.5, -0.5, 1.0]
    results = convert(write(ranking, source="s", about=("a", "b", "c"), cost=3.0), "pair")
    assert [(r.about, r.value, r.cost) for r in results] == [
        (("a", "b"), 0.0, 1.0),
        (("a", "c"), -1.0, 1.0),
        (("b", "c"), -1.0, 1.0),
    ]


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(5)))
def test_pairs_of_a_ranking_give_its_order_back(order: list[int]) -> None:
    pairs = ranking_to_pairs(Ranking(tuple((k,) for k in order)))
    for scores in (pairs_to_scores(pairs, 5), pairs_to_strengths(pairs, 5)):
        values = [scores[k].value for k in order]
        assert all(a > b for a, b in pairwise(values))


def test_scores_and_pairs_by_hand() -> None:
    pairs = scores_to_pairs([Scalar(1.0), Scalar(0.95), Scalar(-1.0)], tie=0.1)
    assert pairs == [(0, 1, Pair(0)), (0, 2, Pair(1, 1.0)), (1, 2, Pair(1, 0.975))]
    assert pairs_to_scores([(0, 1, Pair(1, 0.5)), (0, 1, Pair(0))], 3) == [Scalar(0.25), Scalar(-0.25), Scalar(0.0)]
    with pytest.raises(DataError, match="two different positions"):
        pairs_to_scores([(0, 3, Pair(1))], 3)


def test_strengths_are_the_closed_form_of_two_players() -> None:
    """Three wins to one without ties: odds of 3, so s = +-log(3)/2 and tanh(s/2) = 2 sqrt(3)/(1 + sqrt(3)) - 1."""
    pairs = [(0, 1, Pair(1))] * 3 + [(1, 0, Pair(1))]
    first, second = pairs_to_strengths(pairs, 2, model="bradley_terry", ridge=0.0)
    expected = 2 * math.sqrt(3) / (1 + math.sqrt(3)) - 1
    assert first.value == pytest.approx(expected, abs=1e-6)
    assert second.value == pytest.approx(-expected, abs=1e-6)


def test_strengths_see_the_opponent_and_counts_do_not() -> None:
    """d and c have one win each in two games; d's opponents are the strong ones."""
    strong = [(0, 2, Pair(1))] * 3 + [(1, 3, Pair(1))] * 3 + [(0, 1, Pair(1)), (1, 0, Pair(1))]
    mixed = [*strong, (3, 0, Pair(1)), (2, 3, Pair(0))]
    strengths = pairs_to_strengths(mixed, 4)
    assert strengths[3].value > strengths[2].value


def test_pair_to_each_side() -> None:
    assert pair_to_ternary(Pair(-1, 0.5)) == (Ternary(-1), Ternary(1))
    assert pair_to_ternary(Pair(0)) == (Ternary(0), Ternary(0))
    sides = convert(write(Pair(1, 0.5), source="s", confidence=0.8, about=("a", "b")), "ternary")
    assert [(s.about, s.value, s.confidence) for s in sides] == [(("a",), 1.0, 0.4), (("b",), -1.0, 0.4)]
    ties = convert(write(Pair(0), source="s", confidence=0.8, about=("a", "b")), "ternary")
    assert [(s.value, s.confidence) for s in ties] == [(0.0, 0.8), (0.0, 0.8)]


@pytest.mark.parametrize(
    ("critique", "sign"),
    [
        ("good", 1),
        ("This is not good.", -1),
        ("wrong and rude", -1),
        ("clear but wrong", 0),
        ("never rude", 1),
        ("the fox", 0),
        ("not at all a very long but helpful text", 1),  # the negation is too far away
    ],
)
def test_tone_of_a_critique(critique: str, sign: int) -> None:
    assert text_to_ternary(Text(critique)).value == sign
    assert text_to_ternary(Text(critique, 0)).value == 0


def test_a_guessed_tone_is_less_sure() -> None:
    (guessed,) = convert(write(Text("good"), source="s", confidence=0.8), "ternary")
    (said,) = convert(write(Text("good", 1), source="s", confidence=0.8), "ternary")
    assert guessed.confidence == 0.4 and said.confidence == 0.8


def test_what_a_text_lacks_is_marked_on_its_last_word_when_asked() -> None:
    text, templates = "the fox is red .", [("missing {}", -1), ("named {}", 1), ("rude {}", -1)]
    told = Text("missing den ; named red ; named pond ; missing fish")
    found = text_to_spans(told, text=text, templates=templates, missing=True)
    assert found.spans == (Span(11, 14, 1, "named red"), Span(15, 16, -1, "missing den"))
    assert text_to_spans(told, text=text, templates=templates).spans == found.spans[:1]
    assert text_to_spans(told, text=" ", templates=templates, missing=True).spans == ()


def test_text_to_spans_by_hand() -> None:
    text = "the fox is ugly , UGLY and ugliness"
    found = text_to_spans(Text("missing den ; rude ugly ; not polite"), text=text, templates=[("rude {}", -1)])
    assert [(text[s.start : s.end], s.sign, s.note) for s in found.spans] == [
        ("ugly", -1, "rude ugly"),
        ("UGLY", -1, "rude ugly"),
    ]
    quoted = text_to_spans(
        Text("It is 'the fox' that is good. Don't say \"is; ugly\""),
        text="is; ugly is the  fox",
    )
    assert [(s.start, s.end, s.sign) for s in quoted.spans] == [(0, 8, 0), (12, 20, 1)]
    assert text_to_spans(Text("`fox`", -1), text="fox").spans == (Span(0, 3, -1, "`fox`"),)
    with pytest.raises(DataError, match="template"):
        text_to_spans(Text("x"), text="x", templates=[("rude", -1)])


def test_spans_to_signs_by_hand() -> None:
    """Tokens (0,3) (3,6) (6,9) and a special one without characters; bad wins where both touch."""
    spans = Spans((Span(0, 4, 1), Span(5, 6, -1), Span(8, 20, 0)))
    assert spans_to_signs(spans, [(0, 3), (3, 6), (6, 9), (9, 9)]) == (1.0, -1.0, 0.0, 0.0)
    assert spans_to_steps(spans, bounds=[(0, 5), (5, 9)]) == Steps((1, -1))


def test_steps_are_lines() -> None:
    text = "  2 + 2 = 4\n\n so 5 \n"
    assert [text[a:b] for a, b in line_bounds(text)] == ["2 + 2 = 4", "so 5"]
    spans = steps_to_spans(Steps((1, -1)), text=text)
    assert spans == Spans((Span(2, 11, 1), Span(14, 18, -1)))
    assert spans_to_steps(spans, bounds=line_bounds(text)) == Steps((1, -1))
    assert steps_to_scalar(Steps((1, 1, -1))) == Scalar(-1.0)
    with pytest.raises(DataError, match="3 signs for 2 steps"):
        steps_to_spans(Steps((1, 1, 1)), text=text)


def test_edit_by_hand() -> None:
    old, new = edit_to_spans(Edit("the red fox"), text="the ugly fox")
    assert [("the ugly fox"[s.start : s.end], s.sign) for s in old.spans] == [("the ", 0), ("ugly", -1), (" fox", 0)]
    assert [("the red fox"[s.start : s.end], s.sign) for s in new.spans] == [("the ", 0), ("red", 1), (" fox", 0)]
    edit = write(Edit("the red fox"), source="s", cost=1.0)
    (pair,) = convert(edit, "pair", stored_with="3/p/0")
    assert pair.about == ("3/p/0/revised", "3/p/0") and pair.value == 1.0
    (shown,) = convert(edit, "ternary", stored_with="3/p/0")
    assert shown.about == ("3/p/0/revised",) and shown.value == 1.0
    named = write(Edit("x"), source="s", about=("o", "r"))
    assert convert(named, "pair")[0].about == ("r", "o")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_a_diff_covers_both_texts(before: str, after: str) -> None:
    old, new = edit_to_spans(Edit(after), text=before)
    for text, spans in ((before, old.spans), (after, new.spans)):
        assert [p for s in spans for p in range(s.start, s.end)] == list(range(len(text)))
    kept = [
        "".join(t[s.start : s.end] for s in spans if s.sign == 0)
        for t, spans in ((before, old.spans), (after, new.spans))
    ]
    assert kept[0] == kept[1]


def test_merging_by_hand() -> None:
    pairs = [write(Pair(p, 0.5 if p else 1.0), source=str(k), about=("a", "b")) for k, p in enumerate((1, -1))]  # type: ignore[arg-type]
    (tied,) = convert(pairs, "pair")
    assert tied.value == 0.0 and tied.about == ("a", "b") and tied.confidence < 0.5
    weighed = [write(Scalar(v), source="s", confidence=c) for v, c in ((1.0, 0.75), (-1.0, 0.25))]
    (mean,) = convert(weighed, "scalar")
    assert mean.value == 0.5 and mean.confidence == 0.5
    (one,) = convert(write(Ternary(-1), source="s", confidence=0.7), "ternary")
    assert one.value == -1.0 and one.confidence == pytest.approx(0.7)
