"""The codec of five trits a byte, under the room's own name: one codec for messages and for weight files."""

from __future__ import annotations

from triloop.kernels.trits import HIGHEST, PER_BYTE, from_trits, packed_length, to_trits

__all__ = ["HIGHEST", "PER_BYTE", "from_trits", "packed_length", "to_trits"]
