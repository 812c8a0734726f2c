"""Data sets in and out: every form by hand, TRL's documented formats, real files, faults with their row."""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reading import ROOT
from triloop.errors import DataError, UsageError
from triloop.feedback.aggregate import ballot
from triloop.feedback.interchange import (
    ImportedItem,
    Labels,
    Reader,
    Settings,
    read_items,
    read_votes,
    write_items,
)
from triloop.feedback.interchange_columns import ALIASES
from triloop.feedback.interchange_export import EXPORTS, Export, values_of
from triloop.feedback.interchange_files import writing
from triloop.feedback.interchange_forms import FORMS
from triloop.feedback.interchange_records import from_json, make_prompt, make_response, to_json
from triloop.feedback.kinds import Edit, Pair, Ranking, Scalar, Steps, Ternary, Text, read, write
from triloop.records import Feedback, Prompt, Turn


def _file(folder: Path, rows: Iterable[Any], name: str = "data.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _one(folder: Path, row: Mapping[str, Any], **how: Any) -> tuple[str, ImportedItem]:
    reader = Reader(_file(folder, [row]), **how)
    (item,) = reader
    return reader.form, item


def _said(item: ImportedItem) -> list[Any]:
    return [read(f) for f in item.feedback]


USER, BLUE = {"role": "user", "content": "What colour is the sky?"}, {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}
ASKED = (Turn(role="user", text="What colour is the sky?"),)

# The forms of TRL's page on data set formats, standard and conversational.
TRL: dict[str, tuple[dict[str, Any], str, str, list[str], list[Any]]] = {
    "language modeling": ({"text": "The sky is blue."}, "sft", "", ["The sky is blue."], []),
    "messages": ({"messages": [USER, BLUE]}, "sft", "turns", ["It is blue."], []),
    "prompt only": ({"prompt": "The sky is"}, "prompts", "The sky is", [], []),
    "prompt only, messages": ({"prompt": [USER]}, "prompts", "turns", [], []),
    "prompt completion": ({"prompt": "The sky is", "completion": " blue."}, "sft", "The sky is", [" blue."], []),
    "prompt completion, messages": ({"prompt": [USER], "completion": [BLUE]}, "sft", "turns", ["It is blue."], []),
    "preference": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        "pairs",
        "The sky is",
        [" blue.", " green."],
        [Pair(1)],
    ),
    "preference, implicit": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        "pairs",
        "The sky is ",
        ["blue.", "green."],
        [Pair(1)],
    ),
    "preference, messages": (
        {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]},
        "pairs",
        "turns",
        ["It is blue.", "It is green."],
        [Pair(1)],
    ),
    "preference, implicit messages": (
        {"chosen": [USER, BLUE], "rejected": [USER, GREEN]},
        "pairs",
        "turns",
        ["It is blue.", "It is green."],
        [Pair(1)],
    ),
    "unpaired preference": (
        {"prompt": "The sky is", "completion": " blue.", "label": True},
        "labels",
        "The sky is",
        [" blue."],
        [Ternary(1)],
    ),
    "unpaired preference, messages": (
        {"prompt": [USER], "completion": [GREEN], "label": False},
        "labels",
        "turns",
        ["It is green."],
        [Ternary(-1)],
    ),
    "stepwise supervision": (
        {"prompt": "Which is larger?", "completions": ["9.8 is.", "9.11 is."], "labels": [True, False]},
        "steps",
        "Which is larger?",
        ["9.8 is.\n9.11 is."],
        [Steps((1, -1))],
    ),
}


@pytest.mark.parametrize("name", TRL)
def test_trl_formats(name: str, tmp_path: Path) -> None:
    row, form, prompt, responses, said = TRL[name]
    found, item = _one(tmp_path, row)
    assert found == form
    assert item.prompt.turns == (ASKED if prompt == "turns" else ())
    assert prompt in ("turns", item.prompt.text)
    assert [r.text for r in item.responses] == responses
    assert _said(item) == said
    if said and isinstance(said[0], Pair):
        assert item.feedback[0].about == tuple(r.id for r in item.responses)
    else:
        assert all(f.about == (item.responses[0].id,) for f in item.feedback)


OTHERS: dict[str, tuple[dict[str, Any], str, list[str], list[Any]]] = {
    "sharegpt pair": (
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        "pairs",
        ["Hello", "No"],
        [Pair(1)],
    ),
    "alpaca": ({"instruction": "Add", "input": "1 2", "output": "3"}, "sft", ["3"], []),
    "strength": (
        {"prompt": "p", "chosen": "a", "rejected": "b", "strength": 0.25},
        "pairs",
        ["a", "b"],
        [Pair(1, 0.25)],
    ),
    "own tie": ({"prompt": "p", "chosen": "a", "rejected": "b", "tie": True}, "pairs", ["a", "b"], [Pair(0)]),
    "arena": (
        {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "model_b", "judge": "x"},
        "compared",
        ["a", "b"],
        [Pair(-1)],
    ),
    "several votes on a pair": (
        {"prompt": "p", "response_a": "a", "response_b": "b", "votes": ["a", "tie", "B>A"], "workers": [7, 8, 9]},
        "compared",
        ["a", "b"],
        [Pair(1), Pair(0), Pair(-1)],
    ),
    "several labels in a row": (
        {"prompt": "p", "completion": "a", "labels": [1, 0, -1]},
        "votes",
        ["a"],
        [Ternary(1), Ternary(0), Ternary(-1)],
    ),
    "vote with text": (
        {"item": 4, "worker": "anna", "label": "good", "prompt": "p", "response": "a"},
        "votes",
        ["a"],
        [Ternary(1)],
    ),
    "vote without text": ({"item": 4, "worker": "anna", "label": -1}, "votes", [], [Ternary(-1)]),
    "vote on a pair": ({"pair_id": 4, "worker": 1, "label": "A=B"}, "votes", [], [Pair(0)]),
    "ranks with a tie": (
        {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]},
        "rankings",
        ["a", "b", "c"],
        [Ranking(((1,), (0, 2)))],
    ),
    "order": (
        {"prompt": "p", "responses": ["a", "b", "c"], "order": [2, [0, 1]]},
        "rankings",
        ["a", "b", "c"],
        [Ranking(((2,), (0, 1)))],
    ),
    "scores": (
        {"prompt": "p", "responses": ["a", "b"], "scores": [0.5, -1]},
        "rankings",
        ["a", "b"],
        [Scalar(0.5), Scalar(-1.0)],
    ),
    "critique": (
        {"question": "p", "answer": "a", "feedback": "too long"},
        "critiques",
        ["a"],
        [Text("too long")],
    ),
    "critique with a label": (
        {"question": "p", "answer": "a", "critique": "too long", "score": -0.5, "annotator": "x"},
        "critiques",
        ["a"],
        [Text("too long", -1), Scalar(-0.5)],
    ),
    "edit": (
        {"prompt": "p", "original": "a", "revised": "b", "critique": "bad a"},
        "edits",
        ["a", "b"],
        [Text("bad a"), Edit("b")],
    ),
    "scalar": ({"prompt": "p", "completion": "a", "reward": 0.25}, "labels", ["a"], [Scalar(0.25)]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_forms(name: str, tmp_path: Path) -> None:
    row, form, responses, said = OTHERS[name]
    found, item = _one(tmp_path, row)
    assert found == form
    assert [r.text for r in item.responses] == responses
    assert _said(item) == said
    # and what was read survives Triloop's own form
    assert from_json(json.loads(json.dumps(to_json(item)))) == item


def test_who_judged_and_what(tmp_path: Path) -> None:
    _, item = _one(tmp_path, OTHERS["several votes on a pair"][0])
    assert [f.source for f in item.feedback] == ["person:7", "person:8", "person:9"]
    _, item = _one(tmp_path, OTHERS["arena"][0])
    assert item.feedback[0].source == "judge:x"
    _, item = _one(tmp_path, OTHERS["vote without text"][0])
    assert item.feedback[0].about == (item.prompt.id,) == ("data:4",)
    _, item = _one(tmp_path, OTHERS["vote on a pair"][0])
    assert item.feedback[0].about == ("data:4/a", "data:4/b")
    _, item = _one(tmp_path, OTHERS["alpaca"][0])
    assert item.prompt.text == "Add\n\n1 2"
    _, item = _one(tmp_path, {**OTHERS["scalar"][0], "consent": "research", "confidence": 0.5})
    assert (item.feedback[0].source, item.feedback[0].consent) == ("data:data.jsonl", "research")
    assert item.feedback[0].confidence == 0.5


def test_every_form_and_column_is_reached() -> None:
    needed = {name for form in FORMS.values() for columns in form.needs for name in columns}
    assert needed <= ALIASES.keys()
    assert {form for _, form, *_ in [*TRL.values(), *OTHERS.values()]} == FORMS.keys() - {"triloop", "orders"}


def test_the_page_lists_every_form() -> None:
    page = (ROOT / "docs" / "feedback.md").read_text(encoding="utf-8")
    assert [name for name in (*FORMS, *EXPORTS) if f"| `{name}` |" not in page] == []


def test_equal_texts_have_equal_identifiers(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": t, "label": v} for t, v in (("a", True), ("b", False), ("a", True))]
    items = list(read_items(_file(tmp_path, rows)))
    assert items[0].prompt == items[1].prompt
    assert items[0].responses == items[2].responses != items[1].responses


LABELS: list[tuple[Labels, Any, Any]] = [
    (Labels(), "Yes", Ternary(1)),
    (Labels(), "cannot tell", Ternary(0)),
    (Labels(scheme="binary"), 0, Ternary(-1)),
    (Labels(scheme="binary"), "1", Ternary(1)),
    (Labels(scheme="ternary"), 0, Ternary(0)),
    (Labels(scheme="scalar"), 1, Scalar(1.0)),
    (Labels(scale=(1, 5)), 4, Scalar(0.5)),
    (Labels(words={"p": 0, "x": -1, "r": -0.5}), "P", Ternary(0)),
    (Labels(words={"p": 0, "x": -1, "r": -0.5}), "r", Scalar(-0.5)),
    (Labels(words={"3": 1}), 3, Ternary(1)),
]


@pytest.mark.parametrize(("labels", "label", "said"), LABELS)
def test_labels_by_hand(labels: Labels, label: Any, said: Any) -> None:
    assert labels.judgement(label) == said


def test_zero_and_one_alone_are_not_guessed(tmp_path: Path) -> None:
    """A 0 that means bad and a 0 that means cannot tell train in opposite directions."""
    path = _file(tmp_path, [{"prompt": "p", "completion": str(k), "label": k % 2} for k in range(4)])
    with pytest.raises(DataError, match="--labels binary"):
        Reader(path)
    for scheme, value in (("binary", -1.0), ("ternary", 0.0)):
        items = list(Reader(path, settings=Settings(labels=Labels(scheme=scheme))))  # type: ignore[arg-type]
        assert [i.feedback[0].value for i in items] == [value, 1.0, value, 1.0]
    ternary = _file(tmp_path, [{"prompt": "p", "completion": str(k), "label": k} for k in (0, 1, -1)])
    assert [i.feedback[0].value for i in read_items(ternary)] == [0.0, 1.0, -1.0]


def test_one_kind_for_a_column_of_numbers(tmp_path: Path) -> None:
    path = _file(tmp_path, [{"prompt": "p", "completion": str(k), "score": k} for k in (1, 0.5, 0, -1)])
    assert [f.kind for i in read_items(path) for f in i.feedback] == ["scalar"] * 4


FAULTS: dict[str, tuple[Any, str]] = {
    "not JSON": ('{"prompt": ', "not JSON at column"),
    "NaN": ('{"prompt": "p", "completion": "c", "label": NaN}', "NaN is not a JSON number"),
    "half a character": ('{"prompt": "\\ud800"}', "surrogates not allowed"),
    "no object": ("3", "expected an object"),
    "list": ([1, 2], "--names"),
    "missing": ({"prompt": "p", "label": True}, "has label, prompt; expected a column completion or response"),
    "null": ({"prompt": "p", "completion": None, "label": True}, "expected a column completion"),
    "number for a text": ({"prompt": "p", "completion": True, "label": True}, "is bool; expected text"),
    "label": ({"prompt": "p", "completion": "c", "label": "meh"}, "--words meh=1"),
    "range": ({"prompt": "p", "completion": "c", "label": 7}, "--scale LOW,HIGH"),
    "role": ({"prompt": [{"role": "king", "content": "x"}], "completion": "c", "label": 1}, "expected role"),
    "order": ({"prompt": [USER], "completion": [USER], "label": 1}, "expected the assistant's"),
    "confidence": ({"prompt": "p", "completion": "c", "label": 1, "confidence": 3}, "confidence is 3"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_its_row(name: str, tmp_path: Path) -> None:
    row, message = FAULTS[name]
    good = {"prompt": "p", "completion": "c", "label": True}
    path = _file(tmp_path, [good, "", row, good])
    with pytest.raises(DataError, match=rf"data\.jsonl:3: .*{re.escape(message)}.*--skip"):
        list(Reader(path))
    reader = Reader(path, skip=True)
    assert len(list(reader)) == 2
    assert reader.skipped == 1 and message in reader.faults[0]


def test_faults_of_other_forms(tmp_path: Path) -> None:
    for row, message in (
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "the same text"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "strength": 2}, "strength of a pair is 2"),
        ({"chosen": [BLUE], "rejected": [GREEN]}, "expected a prompt column"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [1]}, "1 entries for 2 responses"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": ["x", "y"]}, "expected a number for each"),
        ({"prompt": "p", "responses": ["a", "b"], "order": [0, 0]}, "each position"),
        ({"prompt": "p", "response_a": "a", "response_b": "b", "winner": "c"}, "expected a, b, tie"),
        ({"prompt": "p", "completion": "a", "labels": [1, -1], "workers": ["x"]}, "one worker each"),
        ({"messages": [USER], "label": True}, "expected the assistant's"),
        ({"worker": 1, "label": 1}, "expected a column item"),
        ({"height": 3, "width": 4}, "the columns are height, width"),
        ({"triloop": 2}, "expected 1"),
        ({"triloop": 1, "prompt": {"id": "p"}}, "lacks text"),
        ({"triloop": 1, "prompt": {"id": "p", "text": "t"}, "feedback": [{"value": "1"}]}, "expected a number"),
        (
            {"triloop": 1, "prompt": {"id": "p", "text": "t"}, "feedback": [{"value": None, "kind": "edit"}]},
            "'revised'",
        ),
    ):
        with pytest.raises(DataError, match=message):
            list(Reader(_file(tmp_path, [row])))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "table.csv").write_text("a,b\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "p"}\n')[:-4])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    for name, message in {
        "missing.jsonl": "no such file",
        "empty.jsonl": "no row in it",
        "table.csv": "ends in .csv; expected JSONL",
        "folder": "no data file",
        "broken.jsonl.gz": "broken gzip",
        "broken.parquet": "no sound parquet file",
        "latin.jsonl": "latin.jsonl:1: byte 13 is not UTF-8",
    }.items():
        with pytest.raises(DataError, match=message):
            list(Reader(tmp_path / name))
    with pytest.raises(UsageError, match="the form is 'pears'"):
        Reader(_file(tmp_path, [{"prompt": "p"}]), form="pears")
    with pytest.raises(UsageError, match="no column 'colour'"):
        Reader(_file(tmp_path, [{"prompt": "p"}]), settings=Settings(columns={"colour": "c"}))


def test_own_names_of_columns(tmp_path: Path) -> None:
    row = {"Frage": "p", "completion": "c", "stars": 2, "label": "ignored"}
    named = Settings(columns={"prompt": "Frage", "label": "stars"}, labels=Labels(scale=(1, 5)), source="people")
    reader = Reader(_file(tmp_path, [row]), settings=named)
    (item,) = reader
    assert item.prompt.text == "p" and _said(item) == [Scalar(-0.5)] and item.feedback[0].source == "people"
    assert reader.ignored == ()
    reader = Reader(_file(tmp_path, [{"prompt": "p", "completion": "c", "source": "web"}]))
    assert reader.ignored == ("source",)


TEXTS = st.text(max_size=8)
ITEMS = st.builds(
    lambda text, turns, answers, value, time: _made(text, turns, answers, value, time),
    TEXTS,
    st.lists(st.builds(Turn, role=st.sampled_from(("user", "system")), text=TEXTS), max_size=2),
    st.lists(TEXTS, max_size=3, unique=True),
    st.floats(-1, 1),
    st.none() | st.floats(0, 1e9),
)


def _made(text: str, turns: list[Turn], answers: list[str], value: float, time: float | None) -> ImportedItem:
    prompt = make_prompt(text, turns, answer=text or None)
    responses = tuple(make_response(prompt, answer) for answer in answers)
    said = [
        write(Scalar(value), source="s", about=(r.id,), time=time, breakdown={"a": value}, parents=("x",))
        for r in responses
    ]
    broke = Feedback(value=None, failure="raised", source="judge", cost=0.5)
    return ImportedItem(prompt=prompt, responses=responses, feedback=(*said, broke))


@settings(max_examples=60, deadline=None)
@given(st.lists(ITEMS, min_size=1, max_size=4))
def test_own_form_is_exact(items: list[ImportedItem]) -> None:
    assert [from_json(json.loads(json.dumps(to_json(item)))) for item in items] == items


@pytest.mark.parametrize("name", ["items.jsonl", "items.jsonl.gz"])
def test_own_files_are_exact(name: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [row for row, *_ in OTHERS.values()]
    items = [_one(tmp_path, row)[1] for row in rows] + [_made("\u2028 é\n", [], ["a"], 0.1, 3.0)]
    rich = Prompt(id="env:1", text="p", env="env", level=3, meta={"n": [1, 2]}, answer="7")
    items.append(ImportedItem(prompt=rich))
    counts = write_items(tmp_path / name, items)
    assert counts.items == len(items) and counts.failed == 1 and counts.feedback["pair"] == 8
    assert list(read_items(tmp_path / name)) == items
    write_items(tmp_path / f"again-{name}", read_items(tmp_path / name))
    assert (tmp_path / f"again-{name}").read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_nothing_half_written_remains(name: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ZeroDivisionError), writing(tmp_path / name) as put:
        put({"a": 1})
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with writing(tmp_path / name) as put:
        put({"a": 1})
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(UsageError, match="there already"), writing(tmp_path / name):
        pass
    with pytest.raises(UsageError, match="names no format"), writing(tmp_path / "out.txt"):
        pass


def test_parquet_and_saved_data_sets_read_the_same(tmp_path: Path) -> None:
    """Messages, null columns and more rows than one batch."""
    pytest.importorskip("pyarrow")
    rows: list[dict[str, Any]] = [
        {"prompt": [USER], "completion": [{"role": "assistant", "content": str(k)}], "label": k % 3 - 1, "unused": None}
        for k in range(600)
    ]
    wanted = list(read_items(_file(tmp_path, rows)))
    with writing(tmp_path / "rows.parquet") as put:
        for row in rows:
            put(row)
    found = list(Reader(tmp_path / "rows.parquet"))
    assert [(i.prompt, i.responses, _said(i)) for i in found] == [(i.prompt, i.responses, _said(i)) for i in wanted]
    assert found[599].where.endswith("rows.parquet:600")


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "p", "chosen": str(k), "rejected": "x"} for k in range(5)]
    both = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:2])}
    )
    both.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(DataError, match="the splits train, test and none was named"):
        Reader(tmp_path / "set")
    with pytest.raises(DataError, match="'dev' is not one of them"):
        Reader(tmp_path / "set", split="dev")
    assert [len(list(Reader(tmp_path / "set", split=s))) for s in ("train", "test")] == [5, 2]
    assert len(list(Reader(tmp_path / "set" / "train"))) == 5


def test_a_folder_of_files_and_a_json_list(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, n in (("train-0.jsonl", 2), ("train-1.jsonl", 1), ("test-0.jsonl", 4)):
        _file(tmp_path / "data", [{"prompt": f"{name} {k}"} for k in range(n)], name)
    assert len(list(Reader(tmp_path, split="train"))) == 3
    assert len(list(Reader(tmp_path))) == 7
    (tmp_path / "all.json").write_text(json.dumps([{"prompt": "a"}, 3, {"prompt": "b"}], indent=1))
    reader = Reader(tmp_path / "all.json", skip=True)
    assert [i.prompt.text for i in reader] == ["a", "b"] and "all.json:2" in reader.faults[0]


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(UsageError, match=r"triloop\[data\]"):
        Reader(tmp_path / "x.parquet")
    with pytest.raises(UsageError, match=r"triloop\[data\]"), writing(tmp_path / "y.parquet") as put:
        put({})
    assert not (tmp_path / "y.parquet").exists()


# ---------------------------------------------------------------------- export


def _group(values: list[float | None], pairs: list[tuple[int, int, int]] = []) -> ImportedItem:  # noqa: B006
    prompt = make_prompt("p")
    responses = tuple(make_response(prompt, f"r{k}") for k in range(len(values)))
    said = [
        write(Scalar(v), source="s", about=(r.id,)) for r, v in zip(responses, values, strict=True) if v is not None
    ]
    said += [write(Pair(p), source="s", about=(responses[i].id, responses[j].id)) for i, j, p in pairs]  # type: ignore[arg-type]
    return ImportedItem(prompt=prompt, responses=responses, feedback=tuple(said))


def test_pairs_of_values_by_hand() -> None:
    group = _group([0.5, -0.5, 0.45, None])
    (row,) = Export().pairs(group)
    assert row == {"prompt": "p", "chosen": "r0", "rejected": "r1", "strength": 0.5}
    every = [(r["chosen"], r["rejected"]) for r in Export(pairing="all").pairs(group)]
    assert every == [("r0", "r1"), ("r0", "r2"), ("r2", "r1")]
    how = Export(pairing="all", tie=0.1)
    assert [(r["chosen"], r["rejected"]) for r in how.pairs(group)] == [("r0", "r1"), ("r2", "r1")]
    assert how.left_out["ties"] == 1
    kept = list(Export(pairing="all", tie=0.1, ties="keep").pairs(group))
    assert [(r["tie"], r["strength"]) for r in kept] == [(False, 0.5), (True, 0.0), (False, 0.475)]


def test_pairs_that_were_given_come_first() -> None:
    """The judge who compared r0 and r1 is believed over their values; edits and rankings are pairs too."""
    assert [r["chosen"] for r in Export().pairs(_group([0.5, -0.5], [(0, 1, -1)]))] == ["r1"]
    group = _group([None, None])
    edit = write(Edit("better"), source="s", about=(group.responses[0].id,))
    ranking = write(Ranking(((1,), (0,))), source="s", about=tuple(r.id for r in group.responses))
    rows = list(Export().pairs(ImportedItem(prompt=group.prompt, responses=group.responses, feedback=(edit, ranking))))
    assert [(r["chosen"], r["rejected"]) for r in rows] == [("better", "r0"), ("r1", "r0")]


def test_labels_and_demonstrations_by_hand() -> None:
    group = _group([0.9, 0.3, 0.1, -0.8, None])
    how = Export()
    assert [r["label"] for r in how.ternary(group)] == [1, 1, 0, -1]
    assert how.left_out["no number was said of it"] == 1
    assert [r["label"] for r in Export().labels(group)] == [True, True, False]
    assert [r["completion"] for r in Export().sft(group)] == ["r0"]
    assert [r["completion"] for r in Export(choice="accepted").sft(group)] == ["r0", "r1"]
    assert list(Export().sft(_group([-0.5, 0.0]))) == []
    assert [r["completion"] for r in Export().sft(_group([None, None], [(0, 1, -1)]))] == ["r1"]
    shown = ImportedItem(prompt=group.prompt, responses=group.responses[:2])
    assert [r["completion"] for r in Export().sft(shown)] == ["r0", "r1"]  # nobody judged: demonstrations


def test_values_weigh_confidence_and_leave_failures_out() -> None:
    group = _group([None])
    said = (
        write(Ternary(1), source="a", confidence=0.75),
        write(Ternary(-1), source="b", confidence=0.25),
        Feedback(value=None, failure="raised"),
    )
    item = ImportedItem(prompt=group.prompt, responses=group.responses, feedback=said)
    assert values_of(item) == {group.responses[0].id: 0.5}


@pytest.mark.parametrize("form", ["pairs", "ternary", "sft"])
@pytest.mark.parametrize("chat", [False, True], ids=["text", "messages"])
def test_what_is_exported_is_read_again(form: str, chat: bool, tmp_path: Path) -> None:
    item = _group([1.0, -1.0, 0.0])
    if chat:
        prompt = make_prompt(turns=ASKED)
        old = [
            write(read(f), source="s", about=(make_response(prompt, f"r{k}").id,)) for k, f in enumerate(item.feedback)
        ]
        responses = tuple(make_response(prompt, f"r{k}") for k in range(3))
        item = ImportedItem(prompt=prompt, responses=responses, feedback=tuple(old))
    rows = list(EXPORTS[form](Export(), item))
    again = list(Reader(_file(tmp_path, rows)))
    assert all(i.prompt == item.prompt for i in again)
    assert {r for i in again for r in i.responses} <= set(item.responses)
    if form == "ternary":
        assert {i.responses[0].id: i.feedback[0].value for i in again} == values_of(item)
    if form == "pairs":
        assert _said(again[0]) == [Pair(1, 1.0)]


# ---------------------------------------------------------------------- real files


def test_hh_rlhf(shared: Path) -> None:
    """The common dialogue is the prompt, and nothing of either text is lost."""
    path = shared / "hh_rlhf" / "harmless_base_test_1500.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    reader = Reader(path)
    items = list(reader)
    assert reader.form == "pairs" and len(items) == 1500
    for item, row in zip(items, rows, strict=True):
        assert item.prompt.text.endswith("\n\nAssistant:")
        assert [item.prompt.text + r.text for r in item.responses] == [row["chosen"], row["rejected"]]


def test_pairs_and_labels(shared: Path) -> None:
    pairs = list(Reader(shared / "pairs_and_labels" / "dpo_en_demo.jsonl.gz"))
    assert len(pairs) == 300 and all(i.prompt.turns[-1].role == "user" for i in pairs)
    assert sum(i.prompt.turns[0].role == "system" for i in pairs) == 80
    labels = list(Reader(shared / "pairs_and_labels" / "kto_en_demo.jsonl.gz"))
    assert sorted(i.feedback[0].value or 0 for i in labels) == [-1.0] * 150 + [1.0] * 150


def test_crowds(shared: Path) -> None:
    path = shared / "crowds" / "hitspam_mturk.labels.jsonl.gz"
    names = ("worker", "item", "label")
    with pytest.raises(DataError, match="--names worker,item,label"):
        Reader(path)
    votes = list(read_votes(path, names=names))
    cast = ballot(votes)
    assert len(votes) == 28354 and set(cast.labels) == {"YES", "NO"}
    items = [item for _, item in zip(range(200), Reader(path, names=names), strict=False)]
    said = [(i.feedback[0].source, i.feedback[0].about[0], i.feedback[0].value) for i in items]
    assert said == [(f"person:{w}", f"data:{i}", 1.0 if v == "YES" else -1.0) for w, i, v in votes[:200]]
    with pytest.raises(DataError, match=r"copyright.labels.jsonl.gz:1: .*--words broken=1"):
        list(Reader(shared / "crowds" / "copyright.labels.jsonl.gz", names=names))


def test_judgebench_votes(shared: Path) -> None:
    """Both orders, as shown; a judge that says A>B both times has contradicted itself."""
    reader = Reader(shared / "judgebench_votes" / "votes_gpt4o_pairs.jsonl.gz")
    items = list(reader)
    assert reader.form == "orders" and len(items) == 2100
    assert {i.prompt.answer for i in items} == {"A>B", "B>A"}
    assert all(i.feedback[0].about == i.feedback[1].about[::-1] for i in items)
    both = [(i.feedback[0].value, i.feedback[1].value) for i in items]
    assert (both.count((1.0, 1.0)), both.count((-1.0, -1.0)), both.count((0.0, 0.0))) == (58, 22, 5)
