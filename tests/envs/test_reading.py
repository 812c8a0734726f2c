"""Files that somebody else wrote: each fault names file and line, what was got and what was expected."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triloop.envs.reading import Row, read_jsonl, text_field
from triloop.errors import DataError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n\n", "the file is empty"),
        (b'{"a": 1}\n{"a": \n', r":2: not JSON at column \d+"),
        (b'{"a": 1}\nhello\n', r":2: not JSON at column 1 \(Expecting value\): 'hello'; expected one object"),
        (b'{"a": 1}\n\n[1]\n', ":3: got a JSON list; expected an object"),
        (b"3\n", ":1: got a JSON int"),
        (b'{"a": NaN}\n', ":1: cannot be used as JSON .NaN is not a JSON number"),
        (b'{"a": "\xff"}\n', ":1: byte 8 is not UTF-8"),
        (b'{"a": "\\ud800"}\n', ":1: cannot be used as JSON"),
        (b'{"a": 1}{"a": 2}\n', ":1: not JSON at column 9"),
        (b'{"a": "' + b"x" * 300 + b'"}\n', ":1: the line is longer than 200 bytes"),
        (b'{"a": ' + b"[" * 100 + b"\n", ":1: not JSON"),
        (b"{'a': 1}\n", ":1: not JSON at column 2"),
        (b"\x1f\x8b\x08\x00garbage\n", ":1: "),
    ],
)
def test_faults(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_jsonl(path, longest=200)
    assert str(path) in str(caught.value)


def test_deep_nesting_is_a_fault_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")
    with pytest.raises(DataError, match=":1: cannot be used as JSON"):
        read_jsonl(path)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="Is a directory"):
        read_jsonl(tmp_path)
    broken = tmp_path / "rows.jsonl.gz"
    broken.write_bytes(gzip.compress(b'{"a": 1}\n' * 50)[:-9])
    with pytest.raises(DataError, match="broken gzip"):
        read_jsonl(broken)
    broken.write_bytes(b'{"a": 1}\n')
    with pytest.raises(DataError, match="broken gzip"):
        read_jsonl(broken)


def test_good_files(tmp_path: Path) -> None:
    plain, packed = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.gz"
    content = '\ufeff{"a": "ä"}\r\n\n{"a": 2}'.encode()
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    assert [(r.where, r.data) for r in read_jsonl(plain)] == [(f"{plain}:1", {"a": "ä"}), (f"{plain}:3", {"a": 2})]
    assert [r.data for r in read_jsonl(packed)] == [{"a": "ä"}, {"a": 2}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "f:1: has nothing; expected a field 'prompt' or 'question'"),
        ({"text": "x", "id": 3}, "f:1: has id, text; expected a field"),
        ({"prompt": None}, "f:1: has prompt; expected a field"),
        ({"prompt": "  "}, "f:1: 'prompt' is empty"),
        ({"prompt": ["x"]}, "f:1: 'prompt' is list; expected text"),
        ({"prompt": True}, "f:1: 'prompt' is bool; expected text"),
    ],
)
def test_text_field(data: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        text_field(Row(where="f:1", data=data), "prompt", "question")
    assert text_field(Row(where="f:1", data={"question": 7}), "prompt", "question") == "7"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_any_bytes(content: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(content)
        file.flush()
        try:
            rows = read_jsonl(file.name)
        except DataError as error:
            message = str(error)
        else:
            message = rows[0].where
        assert message.startswith(file.name)
