"""Features of a prompt and a text, for the part of a reward that is linear in what is known of the domain.

    score = w . features(prompt, text) + network(prompt, text)

A feature extractor is an immutable record: ``fitted`` gives one that knows the statistics of some texts (how rare each word
is, the mean and spread of each number). S133 (arXiv:2402.15473) shows what such features save in preference data.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from triloop.errors import ConfigError, ModelError
from triloop.records import Prompt

__all__ = ["Features", "HashedNgrams", "Joined", "NamedFeatures", "SparseRows", "join_features"]

State = dict[str, Any]
"""Arrays and plain values by name."""


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Rows of features: row ``i`` holds ``values[k]`` at ``columns[k]`` for k in ``starts[i] .. starts[i + 1] - 1``."""

    columns: NDArray[np.int64]
    values: NDArray[np.float32]
    starts: NDArray[np.int64]
    """One more than there are rows."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Rows that have no features, and why."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, i: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Columns and values of one row."""
        part = slice(int(self.starts[i]), int(self.starts[i + 1]))
        return self.columns[part], self.values[part]


class Features(Protocol):
    """Turns texts into rows of ``size`` numbers, most of them 0."""

    @property
    def size(self) -> int: ...

    def fitted(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Features:
        """The same with statistics of these texts; itself when it has some already."""
        ...

    def rows(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> SparseRows:
        """One row per (prompt, text), in order. What goes wrong with one is that row's failure, not an exception."""
        ...

    def state(self) -> State:
        """What ``fitted`` found."""
        ...

    def restored(self, state: Mapping[str, Any]) -> Features:
        """The same with what ``state`` gave. ModelError for the state of another extractor."""
        ...


_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


@dataclass(frozen=True)
class HashedNgrams:
    """Words and their n-grams in ``2 ** bits`` hashed columns, weighted by rarity, each row of length 1.

        tf(g) (ln((1 + N) / (1 + df(g))) + 1),  signed by the hash so that collisions cancel on average

    Signed hashing: Weinberger et al. 2009 (arXiv:0902.2206). The rarity is that of the column, over the fitted texts.
    """

    bits: int = 15
    longest: int = 2
    """Words of the longest n-gram."""
    of: Literal["text", "both"] = "text"
    """``both``: of the prompt and the text as one."""
    rarity: NDArray[np.float32] | None = None
    """Factor of each column, once fitted."""

    def __post_init__(self) -> None:
        if not 4 <= self.bits <= 24 or self.longest < 1 or self.of not in ("text", "both"):
            raise ConfigError(
                f"hashed n-grams of bits={self.bits}, longest={self.longest}, of={self.of!r}; expected 4 to 24 bits, "
                "longest of at least 1, and of 'text' or 'both'"
            )

    @property
    def size(self) -> int:
        return 1 << self.bits

    def fitted(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> HashedNgrams:
        if self.rarity is not None:
            return self
        found = np.zeros(self.size)
        for prompt, text in zip(prompts, texts, strict=True):
            found[list(self._counts(prompt, text))] += 1
        return replace(self, rarity=(np.log((1 + len(texts)) / (1 + found)) + 1).astype(np.float32))

    def rows(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> SparseRows:
        columns: list[NDArray[np.int64]] = []
        values: list[NDArray[np.float32]] = []
        for prompt, text in zip(prompts, texts, strict=True):
            counts = self._counts(prompt, text)
            at = np.fromiter(counts, np.int64, len(counts))
            x = np.fromiter(counts.values(), np.float32, len(counts))
            if self.rarity is not None:
                x = x * self.rarity[at]
            length = float(np.sqrt((x * x).sum()))
            columns.append(at)
            values.append(x / length if length > 0 else x)
        return _packed(columns, values)

    def state(self) -> State:
        return {"kind": "ngrams", "bits": self.bits, "longest": self.longest, "of": self.of, "rarity": self.rarity}

    def restored(self, state: Mapping[str, Any]) -> HashedNgrams:
        mine = self.state()
        if any(state.get(k) != mine[k] for k in ("kind", "bits", "longest", "of")):
            raise _foreign("hashed n-grams", {k: v for k, v in state.items() if k != "rarity"})
        return replace(self, rarity=state["rarity"])

    def _counts(self, prompt: Prompt, text: str) -> dict[int, float]:
        """Signed counts by column."""
        whole = text if self.of == "text" else f"{_shown(prompt)} {text}"
        words = _WORD.findall(whole.lower())
        out: dict[int, float] = {}
        for n in range(1, self.longest + 1):
            for k in range(len(words) - n + 1):
                code = zlib.crc32(" ".join(words[k : k + n]).encode("utf-8", "replace"))
                column = code & (self.size - 1)
                out[column] = out.get(column, 0.0) + (1.0 if code >> 31 else -1.0)
        return out


@dataclass(frozen=True)
class NamedFeatures:
    """Numbers that the caller computes, standardised: minus the mean, over the standard deviation of the fitted texts.

    ``function(prompt, text)`` gives a finite number for each of ``names``; where it raises or gives anything else, that row
    fails with the reason.
    """

    function: Callable[[Prompt, str], Mapping[str, float]]
    names: tuple[str, ...]
    scale: float = 1.0
    """Standard deviation that they are given: beside others, how much is expected of them."""
    mean: NDArray[np.float64] | None = None
    spread: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ConfigError(f"features are named {self.names}; expected at least one name, each once")

    @property
    def size(self) -> int:
        return len(self.names)

    def fitted(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> NamedFeatures:
        if self.mean is not None:
            return self
        table, failures = self._table(prompts, texts)
        good = table[[i for i in range(len(table)) if i not in failures]]
        if not len(good):
            why = next(iter(failures.values()), "there are no texts")
            raise ConfigError(f"no text has features, so their mean is unknown: {why}")
        spread = good.std(axis=0)
        return replace(self, mean=good.mean(axis=0), spread=np.where(spread > 0, spread, 1.0))

    def rows(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> SparseRows:
        table, failures = self._table(prompts, texts)
        if self.mean is not None and self.spread is not None:
            table = self.scale * (table - self.mean) / self.spread
        n = len(table)
        columns = np.tile(np.arange(self.size), n)
        starts = np.arange(n + 1) * self.size
        return SparseRows(columns, table.astype(np.float32).ravel(), starts, failures)

    def state(self) -> State:
        return {
            "kind": "named",
            "names": list(self.names),
            "scale": self.scale,
            "mean": self.mean,
            "spread": self.spread,
        }

    def restored(self, state: Mapping[str, Any]) -> NamedFeatures:
        mine = self.state()
        if any(state.get(k) != mine[k] for k in ("kind", "names", "scale")):
            raise _foreign(f"features {', '.join(self.names)}", {k: state.get(k) for k in ("kind", "names", "scale")})
        return replace(self, mean=state["mean"], spread=state["spread"])

    def _table(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> tuple[NDArray[np.float64], dict[int, str]]:
        table, failures = np.zeros((len(texts), self.size)), dict[int, str]()
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            try:
                found = self.function(prompt, text)
                table[i] = [float(found[name]) for name in self.names]
            except Exception as error:  # noqa: BLE001 - the caller's own code: whatever it raises fails this one text
                failures[i] = f"features: {type(error).__name__}: {error}"
            else:
                if not np.isfinite(table[i]).all():
                    odd = next(n for n, x in zip(self.names, table[i], strict=True) if not math.isfinite(x))
                    failures[i] = f"features: {odd} is {found[odd]}; expected a finite number"
            if i in failures:
                table[i] = 0.0
        return table, failures


@dataclass(frozen=True)
class Joined:
    """Several extractors side by side."""

    parts: tuple[Features, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def fitted(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Joined:
        return Joined(tuple(part.fitted(prompts, texts) for part in self.parts))

    def rows(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> SparseRows:
        found = [part.rows(prompts, texts) for part in self.parts]
        offsets = np.cumsum([0, *(part.size for part in self.parts)])
        columns, values = [], []
        for i in range(len(texts)):
            picked = [rows.row(i) for rows in found]
            columns.append(np.concatenate([c + o for (c, _), o in zip(picked, offsets[:-1], strict=True)]))
            values.append(np.concatenate([v for _, v in picked]))
        failures = {i: why for rows in reversed(found) for i, why in rows.failures.items()}
        return replace(_packed(columns, values), failures=failures)

    def state(self) -> State:
        return {"kind": "joined", "parts": [part.state() for part in self.parts]}

    def restored(self, state: Mapping[str, Any]) -> Joined:
        if state.get("kind") != "joined" or len(state["parts"]) != len(self.parts):
            raise _foreign(f"{len(self.parts)} extractors side by side", {"kind": state.get("kind")})
        return Joined(tuple(part.restored(s) for part, s in zip(self.parts, state["parts"], strict=True)))


def join_features(*parts: Features) -> Features:
    """These extractors as one."""
    return parts[0] if len(parts) == 1 else Joined(parts)


def _packed(columns: Sequence[NDArray[np.int64]], values: Sequence[NDArray[np.float32]]) -> SparseRows:
    starts = np.concatenate([[0], np.cumsum([len(c) for c in columns])]).astype(np.int64)
    if not columns:
        return SparseRows(np.zeros(0, np.int64), np.zeros(0, np.float32), starts)
    return SparseRows(np.concatenate(columns), np.concatenate(values).astype(np.float32), starts)


def _shown(prompt: Prompt) -> str:
    return "\n".join(turn.text for turn in prompt.turns) if prompt.turns else prompt.text


def _foreign(mine: str, theirs: Mapping[str, Any]) -> ModelError:
    return ModelError(
        f"the saved features are {dict(theirs)}, and this reward model has {mine}; build it as it was saved"
    )
