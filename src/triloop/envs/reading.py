"""Reading JSONL that somebody else wrote: every fault names file and line, what was got, and what was expected."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from triloop.errors import DataError

__all__ = ["LONGEST_LINE", "Row", "read_jsonl", "text_field"]

LONGEST_LINE = 4 * 2**20
"""Bytes. A longer line is refused before it is read whole: it is a wrong file more often than a long prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a JSONL file."""

    where: str
    """``file:line``, to begin every message about this row."""
    data: Mapping[str, Any]


def read_jsonl(path: str | Path, *, longest: int = LONGEST_LINE) -> list[Row]:
    """All rows of a ``.jsonl`` or ``.jsonl.gz`` file, blank lines skipped.

    DataError when the file is missing, unreadable, empty, a broken gzip, not UTF-8, has a line longer than ``longest``
    bytes, or a line that is not one JSON object of plain text and finite numbers.
    """
    path = Path(path)
    try:
        rows = [_row(f"{path}:{number}", line, longest) for number, line in _lines(path, longest) if line.strip()]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken gzip file ({error}); write it again or pass it uncompressed") from error
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be read ({why}); expected a JSONL file, one JSON object a line") from error
    if not rows:
        raise DataError(f"{path}: the file is empty; expected at least one JSON object, one a line")
    return rows


def text_field(row: Row, *names: str) -> str:
    """The text under the first of ``names`` that the row has; a number is taken as it is written.

    DataError when none of the names is there, or when it is neither text nor a number, or empty.
    """
    name = next((n for n in names if row.data.get(n) is not None), None)
    wanted = " or ".join(repr(n) for n in names)
    if name is None:
        has = ", ".join(sorted(map(str, row.data))[:8]) or "nothing"
        raise DataError(f"{row.where}: has {has}; expected a field {wanted}")
    value = row.data[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{row.where}: {name!r} is {type(value).__name__}; expected text")
    text = str(value)
    if not text.strip():
        raise DataError(f"{row.where}: {name!r} is empty; expected text")
    return text


def _lines(path: Path, longest: int) -> Iterator[tuple[int, bytes]]:
    with _open(path) as file:
        number = 0
        # One byte more than allowed is enough to know that a line is too long, however long it is.
        while line := file.readline(longest + 1):
            number += 1
            yield number, line
            if len(line) > longest:
                return


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))
    return path.open("rb")


def _row(where: str, line: bytes, longest: int) -> Row:
    if len(line) > longest:
        raise DataError(f"{where}: the line is longer than {longest:,} bytes; expected one JSON object a line")
    try:
        text = line.decode("utf-8-sig" if where.endswith(":1") else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    try:
        data = json.loads(text, parse_constant=_no_constant)
        json.dumps(data, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        got = text.strip()[:60]
        raise DataError(
            f"{where}: not JSON at column {error.colno} ({error.msg}): {got!r}; expected one object"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: cannot be used as JSON ({str(error)[:120]}); expected one plain object") from error
    if not isinstance(data, dict):
        raise DataError(f"{where}: got a JSON {type(data).__name__}; expected an object with named fields")
    return Row(where=where, data=data)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
