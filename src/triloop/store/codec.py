"""Rows of the log, and how the records of ``triloop.records`` become rows and come back unchanged.

A row's payload is JSON. Its hash covers kind, parents and payload, and nothing that differs between two equal runs: not
the time, and not the round, so that a prompt drawn again in a later round is the same row.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from array import array
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triloop.errors import StoreError

__all__ = [
    "NOT_IN_DIGEST",
    "Encoded",
    "Row",
    "content_hash",
    "decode_payload",
    "encode",
    "pack_floats",
    "pack_ints",
    "unpack_floats",
    "unpack_ints",
]

NOT_IN_DIGEST = ("event", "timing")
"""Kinds that tell of the machine and the day, and so may differ between two equal runs."""

_COMPRESS_FROM = 1024
"""Bytes of JSON. Below it compression costs more time than the disk it saves."""

_TYPES = {"f4": "f", "f8": "d", "u2": "H", "i4": "i", "i8": "q"}
"""Tags of packed numbers, and Python's own letters for these types."""

_quoted = json.encoder.encode_basestring_ascii


def _canonical_encoder() -> Callable[[Any], str]:
    """``JSONEncoder.encode`` with sorted keys and without blanks. That makes a new C encoder for each call, a third of the
    time that a row takes; this makes one."""
    plain = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return plain.encode
    encode = make(None, plain.default, _quoted, None, ":", ",", True, False, True)
    return lambda value: "".join(encode(value, 0))


_canonical = _canonical_encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fact of a run. ``payload`` holds JSON values: tuples come back as lists."""

    id: str
    round: int
    kind: str
    """``prompt``, ``completion``, ``feedback``, ``episode``, ``verdict``, ``metrics``, ``timing``, ``event``, ..."""
    payload: Mapping[str, Any]
    parents: tuple[str, ...] = ()
    """Identifiers of the rows that this one was made from."""
    time: float | None = None
    """Seconds since 1970; None is now."""
    state: str = "live"
    """``live``, or ``orphaned`` when a later row took its place. Set by the store, ignored when appended."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as the database holds it."""

    row: Row
    parents: str
    hash: str
    payload: bytes


def encode(row: Row) -> Encoded:
    """Raises StoreError for a payload that is not JSON."""
    try:
        text = _canonical(row.payload if type(row.payload) is dict else dict(row.payload))
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"row {row.id!r} of kind {row.kind!r} cannot be stored: {error}. "
            "A payload holds strings, numbers, booleans, None, lists and mappings of these"
        ) from error
    parents = f"[{','.join(map(_quoted, row.parents))}]"  # what _canonical gives for strings, in a third of the time
    raw = text.encode()
    stored = raw if len(raw) < _COMPRESS_FROM else zlib.compress(raw, 1)
    return Encoded(row, parents, _hash(row.kind, parents, raw), stored)


def content_hash(kind: str, parents: str, stored: bytes) -> str:
    """The hash that ``encode`` gave to a row, from what the database holds; raises zlib.error for damaged bytes."""
    return _hash(kind, parents, _raw(stored))


def _hash(kind: str, parents: str, raw: bytes) -> str:
    return hashlib.blake2b(f"{kind}\0{parents}\0".encode() + raw, digest_size=20).hexdigest()


def _raw(stored: bytes) -> bytes:
    # A JSON object starts with a brace, a zlib stream never does.
    return stored if stored[:1] == b"{" else zlib.decompress(stored)


def decode_payload(id: str, stored: bytes) -> dict[str, Any]:
    """Inverse of ``encode``'s payload; raises StoreError that names the row when the bytes are damaged."""
    try:
        payload: dict[str, Any] = json.loads(_raw(stored))
    except (zlib.error, ValueError) as error:
        raise StoreError(f"row {id!r} of the log is damaged ({error}); restore run.db from a backup") from error
    return payload


def pack_floats(values: Sequence[float]) -> str:
    """Floats as text that comes back bit for bit, 4 bytes each when all of them are exact in float32, else 8."""
    single = array("f", values)
    # NaN is unequal to itself and takes the 8-byte form; so does a float64 that float32 would round.
    return _pack("f4", single) if single.tolist() == list(values) else _pack("f8", array("d", values))


def unpack_floats(text: str) -> tuple[float, ...]:
    """Inverse of ``pack_floats``."""
    return tuple(_unpack(text))


def pack_ints(values: Sequence[int]) -> str:
    """Token ids as text: 2 bytes each when all fit, else 4 or 8. Several times faster and shorter than JSON numbers."""
    try:
        return _pack("u2", array("H", values))
    except OverflowError:
        small = max(map(abs, values)) < 2**31
        return _pack("i4", array("i", values)) if small else _pack("i8", array("q", values))


def unpack_ints(text: str) -> tuple[int, ...]:
    """Inverse of ``pack_ints``."""
    return tuple(_unpack(text))


def _pack(tag: str, values: array[Any]) -> str:
    if sys.byteorder == "big":
        values.byteswap()
    return f"{tag}:{b64encode(values).decode()}"


def _unpack(text: str) -> array[Any]:
    tag, _, packed = text.partition(":")
    values: array[Any] = array(_TYPES[tag])
    values.frombytes(b64decode(packed))
    if sys.byteorder == "big":
        values.byteswap()
    return values
