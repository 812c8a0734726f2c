"""Counter-based randomness: every random number is a pure function of what it is for.

Nothing here holds state. A sample's numbers depend on (run seed, round, prompt id, sample index, position) alone, so
they do not change with batch order, number of workers, or a resume half way.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["generator", "key", "uniforms"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(*parts: int | str) -> int:
    """A 64-bit key from a path of names and numbers, e.g. ``key(seed, "sample", round, prompt_id, index)``.

    Parts are tagged and length-prefixed: ``key("a", "b") != key("ab")`` and ``key(1) != key("1")``.
    """
    path = b""
    for part in parts:
        raw = str(part).encode()
        path += (b"s" if isinstance(part, str) else b"i") + len(raw).to_bytes(4, "little") + raw
    return int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "little")


def generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator (Philox) whose stream is a function of the path alone."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


def uniforms(keys: NDArray[np.uint64], start: int, count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1): row ``i`` holds positions ``start .. start+count-1`` of the stream ``keys[i]``.

    SplitMix64 (Steele, Lea and Flood 2014) as a counter-based generator: the finaliser of ``key + (position+1)*golden``,
    top 53 bits. Shape [len(keys), count].
    """
    position = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = keys.astype(np.uint64)[:, None] + position[None, :] * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
