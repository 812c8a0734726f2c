"""Rows out of files, one at a time, and rows into files, wholly or not at all.

Read: JSONL and JSON (``.gz`` too), Parquet, Arrow, a folder that ``datasets`` saved, a folder of such files. Parquet and
Arrow need ``pyarrow``, an extra.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from triloop.errors import DataError, StoreError, UsageError

__all__ = ["LONGEST_LINE", "RawRow", "raw_rows", "writing"]

LONGEST_LINE = 64 * 2**20
"""Bytes. A longer line is refused before it is read whole."""

_JSON = (".jsonl", ".ndjson", ".json")
_READABLE = "JSONL, JSON (.gz too), Parquet, Arrow, or a folder saved by datasets"
_ABOUT = ("dataset_info", "import.json")
"""Files that tell of the data and hold none."""

_BATCH = 256
"""Rows that are decoded at a time from a column format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """One row as it was found."""

    where: str
    """``file:row``, rows counted from 1, to begin every message about it."""
    data: Any = None
    fault: str = ""
    """Why the row cannot be read; empty when it can."""


def raw_rows(path: Path, split: str | None = None) -> Iterator[RawRow]:
    """All rows of a file or folder, in order. ``DataError`` when it cannot be read or has no row at all."""
    found = False
    for file in _files(path, split):
        for row in _rows_of(file):
            found = True
            yield row
    if not found:
        raise DataError(f"{path}: there is no row in it; expected at least one")


@contextmanager
def writing(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that takes rows; the file appears under its name when all are written, else nothing of it remains.

    ``.jsonl`` and ``.jsonl.gz`` are written row by row, ``.parquet`` from memory. ``UsageError`` for another name or one
    that is taken; ``StoreError`` when the disk does not take it.
    """
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise UsageError(f"{path} names no format; expected .jsonl, .jsonl.gz or .parquet")
    if path.exists():
        raise UsageError(f"{path} is there already; choose another name with --out, or remove it first")
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hidden.open("wb") as file:
            with _parquet_writer(file) if path.suffix == ".parquet" else _jsonl_writer(file, path) as put:
                yield put
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise StoreError(
            f"{path} could not be written ({why}); free space or choose another place with --out"
        ) from error
    finally:
        hidden.unlink(missing_ok=True)


def _files(path: Path, split: str | None) -> list[Path]:
    """The files of a data set in the order they are read."""
    if not path.exists():
        raise DataError(f"{path}: there is no such file; expected {_READABLE}")
    if not path.is_dir():
        return [path]
    if (path / "dataset_dict.json").is_file():
        path = _split(path, json.loads((path / "dataset_dict.json").read_text("utf-8")).get("splits", []), split)
    if (path / "state.json").is_file():
        listed = json.loads((path / "state.json").read_text("utf-8")).get("_data_files", [])
        return [path / entry["filename"] for entry in listed]
    found = sorted(p for p in path.rglob("*") if p.is_file() and _format(p) and not p.name.startswith((".", *_ABOUT)))
    chosen = [p for p in found if split is None or p.name.startswith(split) or p.parent.name == split]
    if not chosen:
        also = f" of split {split!r}" if split else ""
        raise DataError(f"{path}: this folder has no data file{also}; expected {_READABLE}")
    return chosen


def _split(path: Path, splits: list[str], split: str | None) -> Path:
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        got = "none was named" if split is None else f"{split!r} is not one of them"
        raise DataError(f"{path}: this data set has the splits {', '.join(splits)} and {got}; choose one with --split")
    return path / split


def _format(path: Path) -> str:
    """``json``, ``parquet``, ``arrow``, or nothing."""
    name = path.name.removesuffix(".gz")
    if name.endswith(_JSON):
        return "json"
    return next((kind for kind in ("parquet", "arrow") if path.suffix == f".{kind}"), "")


def _rows_of(path: Path) -> Iterator[RawRow]:
    kind = _format(path)
    if not kind:
        raise DataError(f"{path}: the name ends in {path.suffix or 'nothing'}; expected {_READABLE}")
    try:
        yield from _json_rows(path) if kind == "json" else _table_rows(path, kind)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken gzip file ({error}); write it again or pass it uncompressed") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); expected {_READABLE}") from error


def _json_rows(path: Path) -> Iterator[RawRow]:
    with _open(path) as file:
        head = file.peek(64)[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
        if path.name.removesuffix(".gz").endswith(".json") and head.startswith(b"["):
            yield from _array(path, file.read())
            return
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                why = f"the line is longer than {LONGEST_LINE:,} bytes"
                raise DataError(f"{path}:{number}: {why}; expected one object a line")
            if line.strip():
                yield _decoded(f"{path}:{number}", line)


def _open(path: Path) -> io.BufferedReader:
    if path.suffix == ".gz":
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(path, "rb")))
    return path.open("rb")


def _decoded(where: str, line: bytes) -> RawRow:
    try:
        data = json.loads(line.decode("utf-8-sig"), parse_constant=_no_constant)
        if b"\\ud" in line.lower():
            json.dumps(data, ensure_ascii=False).encode()  # half a character is nothing that a tokenizer could read
        if not isinstance(data, dict | list):
            return RawRow(where=where, fault=f"got a JSON {type(data).__name__}; expected an object with named columns")
        return RawRow(where=where, data=data)
    except UnicodeDecodeError as error:
        return RawRow(where=where, fault=f"byte {error.start + 1} is not UTF-8; save the file as UTF-8")
    except json.JSONDecodeError as error:
        got = line[:60].decode("utf-8", "replace").strip()
        return RawRow(
            where=where, fault=f"not JSON at column {error.colno} ({error.msg}): {got!r}; expected one object"
        )
    except (ValueError, RecursionError) as error:
        return RawRow(where=where, fault=f"cannot be used as JSON ({str(error)[:120]}); expected one plain object")


def _array(path: Path, raw: bytes) -> Iterator[RawRow]:
    whole = _decoded(f"{path}:1", raw)
    if whole.fault:
        raise DataError(f"{path}: {whole.fault.replace('expected one object', 'expected a list of objects')}")
    for number, data in enumerate(whole.data, start=1):
        where = f"{path}:{number}"
        ok = isinstance(data, dict | list)
        fault = "" if ok else f"got a JSON {type(data).__name__}; expected an object with named columns"
        yield RawRow(where=where, data=data if ok else None, fault=fault)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(f"{what} needs pyarrow; pip install 'triloop[data]', or use .jsonl") from error
    return pyarrow


def _table_rows(path: Path, kind: str) -> Iterator[RawRow]:
    arrow = _pyarrow(f"reading {path.name}")
    number = 0
    try:
        for batch in arrow.parquet.ParquetFile(path).iter_batches(_BATCH) if kind == "parquet" else _arrow(arrow, path):
            for data in batch.to_pylist():
                number += 1
                yield RawRow(where=f"{path}:{number}", data=data)
    except arrow.ArrowInvalid as error:
        raise DataError(f"{path}: no sound {kind} file ({str(error)[:120]}); write it again") from error


def _arrow(arrow: Any, path: Path) -> Iterator[Any]:
    """Batches of a stream, which is what datasets saves, or of an Arrow file."""
    with arrow.memory_map(str(path)) as source:
        try:
            stream = arrow.ipc.open_stream(source)
        except arrow.ArrowInvalid:
            file = arrow.ipc.open_file(source)
            stream = (file.get_batch(k) for k in range(file.num_record_batches))
        for batch in stream:
            for start in range(0, batch.num_rows, _BATCH):
                yield batch.slice(start, _BATCH)


@contextmanager
def _jsonl_writer(file: BinaryIO, path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    # No name and no time in the gzip header: equal rows give equal bytes.
    out = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if path.suffix == ".gz" else file

    def put(row: Mapping[str, Any]) -> None:
        out.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    yield put
    if out is not file:
        out.close()


@contextmanager
def _parquet_writer(file: BinaryIO) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    arrow = _pyarrow("writing Parquet")
    rows: list[dict[str, Any]] = []
    yield lambda row: rows.append(dict(row))
    try:
        arrow.parquet.write_table(arrow.Table.from_pylist(rows), file)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
        raise DataError(f"these rows do not fit one table ({str(error)[:120]}); export them as .jsonl") from error
