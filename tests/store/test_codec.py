from __future__ import annotations

import json
import math
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triloop.errors import StoreError
from triloop.records import Completion, Feedback, Prompt, Turn, Verdict
from triloop.store.codec import (
    Row,
    content_hash,
    decode_payload,
    encode,
    pack_floats,
    pack_ints,
    unpack_floats,
    unpack_ints,
)
from triloop.store.translate import (
    completion_row,
    feedback_row,
    prompt_row,
    to_completion,
    to_feedback,
    to_prompt,
    to_verdict,
    verdict_row,
)

finite = st.floats(allow_nan=False)
text = st.text(max_size=12)
name = st.text("abc/:0", min_size=1, max_size=8)
names = st.lists(name, max_size=3).map(tuple)
small = st.integers(-(2**60), 2**60)
json_values = st.recursive(
    st.none() | st.booleans() | small | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=4,
)
measured = st.dictionaries(text, finite, max_size=3)

prompts = st.builds(
    Prompt,
    id=name,
    text=text,
    env=text,
    answer=st.none() | text,
    level=small,
    meta=st.dictionaries(text, json_values, max_size=3),
    turns=st.lists(st.builds(Turn, role=text, text=text), max_size=3).map(tuple),
)
completions = st.builds(
    Completion,
    id=name,
    prompt_id=name,
    round=st.integers(0, 10**6),
    index=st.integers(0, 100),
    prompt_tokens=st.lists(st.integers(0, 2**20), max_size=5).map(tuple),
    tokens=st.lists(st.integers(0, 60000), max_size=5).map(tuple),
    logps=st.lists(finite | st.floats(width=32, allow_nan=False), max_size=5).map(tuple),
    mask=st.lists(st.booleans(), max_size=5).map(tuple),
    text=text,
    finish=st.sampled_from(["stop", "length", "interrupted"]),
    policy_version=st.integers(0, 10**6),
    parents=names,
)
feedbacks = st.builds(
    Feedback,
    value=st.none() | st.floats(-1, 1),
    reason=text,
    source=text,
    kind=text,
    confidence=finite,
    cost=finite,
    breakdown=measured,
    failure=st.none() | text,
)
verdicts = st.builds(
    Verdict,
    guard=name,
    round=st.integers(0, 10**6),
    value=st.sampled_from([-1, 0, 1]),
    reason=text,
    action=st.sampled_from(["none", "warn", "stop"]),
    measured=measured,
    samples=names,
)


def through_bytes(row: Row) -> Row:
    """The row as it comes back from the database."""
    held = encode(row)
    assert content_hash(row.kind, held.parents, held.payload) == held.hash
    payload = decode_payload(row.id, held.payload)
    return Row(id=row.id, round=row.round, kind=row.kind, payload=payload, parents=row.parents)


few = settings(max_examples=40, deadline=None)


@few
@given(prompts)
def test_prompt_comes_back(prompt: Prompt) -> None:
    assert to_prompt(through_bytes(prompt_row(prompt, 3))) == prompt


@few
@given(completions)
def test_completion_comes_back(completion: Completion) -> None:
    assert to_completion(through_bytes(completion_row(completion))) == completion


@few
@given(feedbacks)
def test_feedback_comes_back(feedback: Feedback) -> None:
    assert to_feedback(through_bytes(feedback_row(feedback, "1/p/0", 1))) == feedback


@few
@given(verdicts)
def test_verdict_comes_back(verdict: Verdict) -> None:
    assert to_verdict(through_bytes(verdict_row(verdict))) == verdict


@few
@given(st.lists(st.floats(), max_size=6))
def test_floats_come_back_bit_for_bit(values: list[float]) -> None:
    back = unpack_floats(pack_floats(values))
    assert list(map(repr, back)) == list(map(repr, values))


@pytest.mark.parametrize("values", [(), (0, 65535), (65536, 2**31 - 1), (-(2**31),), (-1,), (2**40, -(2**40))])
def test_ints_come_back(values: tuple[int, ...]) -> None:
    assert unpack_ints(pack_ints(values)) == values


def test_float32_takes_four_bytes_and_negative_zero_keeps_its_sign() -> None:
    assert pack_floats([-0.5, -0.0]).startswith("f4:")
    assert math.copysign(1, unpack_floats(pack_floats([-0.0]))[0]) == -1
    assert pack_floats([0.1]).startswith("f8:")


def test_long_payloads_are_compressed_and_hash_as_if_they_were_not() -> None:
    row = Row(id="a", round=0, kind="x", payload={"text": "word " * 1000})
    held = encode(row)
    assert len(held.payload) < 500
    raw = zlib.decompress(held.payload)
    assert content_hash("x", "[]", raw) == held.hash
    assert through_bytes(row).payload == row.payload


def test_the_hash_covers_content_and_neither_time_nor_round() -> None:
    def row(**changes: Any) -> Row:
        return Row(**{"id": "a", "round": 0, "kind": "x", "payload": {"v": 1}, **changes})

    base = encode(row()).hash
    assert encode(row(time=5.0)).hash == encode(row(round=7)).hash == base
    changed = [row(payload={"v": 2}), row(kind="y"), row(parents=("p",)), row(payload={"v": 1.0})]
    assert base not in {encode(r).hash for r in changed}
    assert encode(row(payload={"a": 1, "b": 2})).hash == encode(row(payload={"b": 2, "a": 1})).hash


@given(st.dictionaries(text, json_values, max_size=4))
def test_payloads_are_written_as_json_writes_them(payload: dict[str, Any]) -> None:
    """Hashes of stored rows depend on it."""
    raw = encode(Row(id="r", round=1, kind="k", payload=payload)).payload
    plain = json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()
    assert (raw if raw[:1] == b"{" else zlib.decompress(raw)) == plain


def test_a_payload_that_holds_itself_is_refused() -> None:
    payload: dict[str, Any] = {}
    payload["self"] = payload
    with pytest.raises(StoreError, match="'r'.*cannot be stored"):
        encode(Row(id="r", round=1, kind="k", payload=payload))
    assert encode(Row(id="r", round=1, kind="k", payload={"a": [1]})).payload == b'{"a":[1]}', "and harms no other"


def test_a_payload_that_is_not_json_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match=r"row 'bad' of kind 'x' cannot be stored.*A payload holds"):
        encode(Row(id="bad", round=0, kind="x", payload={"v": object()}))


@pytest.mark.parametrize("stored", [b"x\x9cgarbage", b"{broken"])
def test_damaged_bytes_name_the_row(stored: bytes) -> None:
    with pytest.raises(StoreError, match="row 'a' of the log is damaged"):
        decode_payload("a", stored)
