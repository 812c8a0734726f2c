"""What a judgement says survives the record, JSON and the store; what it cannot mean is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triloop.errors import DataError
from triloop.feedback.kinds import (
    KINDS,
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
    said_nothing,
    write,
)
from triloop.records import Feedback, Prompt
from triloop.store import Run, feedback_row
from triloop.store.translate import prompt_row, to_feedback

SIGN = st.sampled_from((-1, 0, 1))
WORDS = st.text(min_size=1).filter(lambda s: bool(s.strip()))


@st.composite
def _rankings(draw: st.DrawFn) -> Ranking:
    n = draw(st.integers(2, 6))
    order = draw(st.permutations(range(n)))
    cuts = draw(st.lists(st.booleans(), min_size=n - 1, max_size=n - 1))
    groups: list[list[int]] = [[order[0]]]
    for k, cut in zip(order[1:], cuts, strict=True):
        if cut:
            groups.append([k])
        else:
            groups[-1].append(k)
    return Ranking(tuple(map(tuple, groups)))


CONTENTS: st.SearchStrategy[Content] = st.one_of(
    st.builds(Scalar, st.floats(-1, 1)),
    st.builds(Ternary, SIGN),
    st.builds(Pair, st.sampled_from((-1, 1)), st.floats(0.001, 1)),
    st.just(Pair(0)),
    _rankings(),
    st.builds(Rubric, st.dictionaries(WORDS, SIGN, min_size=1, max_size=5)),
    st.builds(Steps, st.lists(SIGN, min_size=1, max_size=5).map(tuple)),
    st.builds(
        Spans,
        st.lists(
            st.builds(lambda a, n, s, t: Span(a, a + n, s, t), st.integers(0, 99), st.integers(1, 9), SIGN, st.text())
        ).map(tuple),
    ),
    st.builds(Text, WORDS, st.one_of(st.none(), SIGN)),
    st.builds(Edit, st.text(), st.text()),
    st.builds(Abstention, st.text()),
)


@settings(max_examples=300, deadline=None)
@given(CONTENTS, st.floats(0, 1), st.floats(0, 100))
def test_every_kind_comes_back_through_record_json_and_row(content: Content, confidence: float, cost: float) -> None:
    told = write(content, source="person:anna", confidence=confidence, cost=cost, time=0.0, consent="research")
    assert told.kind in KINDS and told.kind == type(content).__name__.lower()
    assert read(told) == content
    row = feedback_row(told, "3/p/5", 3)
    stored = to_feedback(dataclasses.replace(row, payload=json.loads(json.dumps(row.payload))))
    assert stored == told
    assert read(stored) == content


def test_every_kind_comes_back_from_a_run(run_dir: Path) -> None:
    samples: list[Content] = [
        Scalar(0.25),
        Pair(-1, 0.5),
        Ranking(((2,), (0, 1))),
        Rubric({"b": 1, "a": 0}),
        Spans((Span(2, 5, -1, "rude"),)),
        Text("too long", -1),
        Edit("short", "person:ben"),
        Abstention("no idea"),
    ]
    told = [write(c, source="s", about=("a", "b", "c") if isinstance(c, Ranking) else ()) for c in samples]
    with Run.create(run_dir, {}, {}) as run:
        run.append(
            [prompt_row(Prompt(id="p", text="?"), 0), *(feedback_row(f, "0/p/0", 0, k) for k, f in enumerate(told))]
        )
    with Run.open(run_dir, write=False) as run:
        back = run.feedback()["0/p/0"]
    assert back == told
    assert [read(f) for f in back] == samples


def test_values_worked_by_hand() -> None:
    """The number of each kind, as the record defines it."""
    value = {
        "pair": (Pair(-1, 0.5), -0.5),
        "tie": (Pair(0), 0.0),
        "rubric": (Rubric({"a": 1, "b": -1, "c": 1, "d": 0}), 0.25),
        "abstention": (Abstention("x"), 0.0),
        "ranking": (Ranking(((1,), (0,))), None),
        "steps": (Steps((1, -1)), None),
        "spans": (Spans(()), None),
        "text": (Text("bad", -1), None),
        "edit": (Edit(""), None),
    }
    for content, expected in value.values():
        told = write(content, source="s")
        assert told.value == expected
        assert not told.failed
    assert write(Rubric({"a": 1, "b": 0}), source="s").breakdown == {"a": 1.0, "b": 0.0}
    assert write(Abstention("x"), source="s").reason == "x"
    assert Pair(0) == Pair(0, 0.0) and Pair(0).tie


WRONG: dict[str, Any] = {
    "scalar above 1": lambda: Scalar(1.01),
    "scalar NaN": lambda: Scalar(math.nan),
    "scalar of a truth": lambda: Scalar(True),
    "ternary of a half": lambda: Ternary(0.5),  # type: ignore[arg-type]
    "ternary of a truth": lambda: Ternary(True),
    "preference without strength": lambda: Pair(1, 0.0),
    "tie with strength": lambda: Pair(0, 0.3),
    "ranking with a gap": lambda: Ranking(((0,), (2,))),
    "ranking twice": lambda: Ranking(((0,), (0, 1))),
    "ranking of one": lambda: Ranking(((0,),)),
    "ranking with an empty group": lambda: Ranking(((0,), (), (1,))),
    "ranking of words": lambda: Ranking((("a",), (0,))),  # type: ignore[arg-type]
    "empty rubric": lambda: Rubric({}),
    "rubric mark": lambda: Rubric({"polite": 2}),  # type: ignore[dict-item]
    "no steps": lambda: Steps(()),
    "backward span": lambda: Span(3, 3, 1),
    "span sign": lambda: Span(0, 1, 2),  # type: ignore[arg-type]
    "spans of tuples": lambda: Spans(((0, 1, 1, ""),)),  # type: ignore[arg-type]
    "blank critique": lambda: Text(" "),
    "edit of none": lambda: Edit(None),  # type: ignore[arg-type]
    "confidence": lambda: write(Ternary(1), source="s", confidence=1.5),
    "endless cost": lambda: write(Ternary(1), source="s", cost=math.inf),
    "pair about one": lambda: write(Pair(1), source="s", about=("a",)),
    "ranking about two of three": lambda: write(Ranking(((0,), (1, 2))), source="s", about=("a", "b")),
    "ternary about two": lambda: write(Ternary(1), source="s", about=("a", "b")),
    "about a word": lambda: write(Ternary(1), source="s", about="a"),
    "two reasons": lambda: write(Abstention("a"), source="s", reason="b"),
    "unknown kind": lambda: read(Feedback(value=1.0, kind="stars")),
    "content of a failure": lambda: read(Feedback(value=None, failure="timed out", kind="text")),
    "no content": lambda: read(Feedback(value=None, kind="edit")),
    "order of numbers": lambda: read(Feedback(value=None, kind="ranking", content={"order": [0, 1]})),
    "short span": lambda: read(Feedback(value=None, kind="spans", content={"spans": [[0, 1]]})),
    "value against marks": lambda: read(Feedback(value=0.9, kind="rubric", content={"marks": {"a": 0}})),
    "half a ternary": lambda: read(Feedback(value=0.5, kind="ternary")),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_what_no_judgement_can_mean_is_refused(make: Any) -> None:
    with pytest.raises(DataError, match="expected|skip it|give one"):
        make()


def test_a_judgement_written_elsewhere_is_read() -> None:
    """Judges need not know this room: value and breakdown alone say enough."""
    assert read(Feedback(value=-0.3, kind="pair")) == Pair(-1, 0.3)
    assert read(Feedback(value=0, kind="pair")) == Pair(0)
    assert read(Feedback(value=0.5, kind="rubric", breakdown={"a": 1.0, "b": 0.0})) == Rubric({"a": 1, "b": 0})
    assert read(Feedback(value=1)) == Ternary(1)


def test_what_counts_as_undecided() -> None:
    silent = [Ternary(0), Scalar(0.0), Abstention(), Rubric({"a": 0})]
    spoken = [Ternary(-1), Scalar(0.01), Pair(0), Rubric({"a": 1, "b": -1}), Text("hm", 0)]
    assert all(said_nothing(write(c, source="s")) for c in silent)
    assert not any(said_nothing(write(c, source="s")) for c in spoken)
    assert said_nothing(Feedback(value=None, failure="broke"))
