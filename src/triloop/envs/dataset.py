"""What environments over a file share: rows become prompts, prompts are split by problem and drawn without repeats."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import final

import numpy as np

from triloop import rng
from triloop.envs.base import Split, World, split_of
from triloop.envs.reading import Row
from triloop.errors import ConfigError, DataError
from triloop.records import Prompt

__all__ = ["DatasetEnv", "problem_id", "splits"]

_SPLITS: tuple[Split, ...] = ("train", "eval", "canary")


class DatasetEnv(World):
    """Prompts from rows; a subclass says how a row is read (``read``) and how an answer is judged (``verify``)."""

    def __init__(self, rows: Sequence[Row] | None, held_out: Sequence[Row] | None = None) -> None:
        """``rows`` None makes an environment that can judge but has no prompts of its own.

        ``held_out`` rows, when given, are the evaluation split, and their problems leave the others.
        DataError when one problem stands there with two answers, or when a split would be empty.
        """
        self._splits: dict[Split, list[Prompt]] | None = None
        if rows is None:
            return
        held = self._distinct(held_out or ())
        self._splits = splits([p for i, p in self._distinct(rows).items() if i not in held], list(held.values()))
        self.levels = tuple(sorted({p.level for part in self._splits.values() for p in part}))

    @abstractmethod
    def read(self, row: Row) -> Prompt:
        """The prompt that a row is. DataError, beginning with ``row.where``, when it is none."""

    @final
    def prompts(self, split: Split, n: int, *, seed: int, start: int = 0, level: int | None = None) -> list[Prompt]:
        """A seeded shuffle of the split, then another: no prompt comes twice before all have come once."""
        if self._splits is None:
            raise ConfigError(f"{self.name}: got no file to draw prompts from; pass path=FILE.jsonl")
        pool = [p for p in self._splits[split] if level is None or p.level == level]
        if not pool:
            raise ConfigError(
                f"{self.name}: split {split!r} has no prompt of level {level}; levels are {list(self.levels)}. "
                "Choose another, or a file with at least 3 problems"
            )
        orders: dict[int, list[int]] = {}
        chosen = []
        for i in range(start, start + n):
            lap, place = divmod(i, len(pool))
            if lap not in orders:
                stream = rng.generator(seed, "env", self.name, split, level or 0, lap)
                orders[lap] = np.asarray(stream.permutation(len(pool))).tolist()
            chosen.append(pool[orders[lap][place]])
        return chosen

    def _distinct(self, rows: Iterable[Row]) -> dict[str, Prompt]:
        """Prompts by id, in order; a repeated row is kept once, a contradicted one is refused."""
        seen: dict[str, tuple[Prompt, str]] = {}
        for row in rows:
            prompt = self.read(row)
            first, where = seen.setdefault(prompt.id, (prompt, row.where))
            if first.answer != prompt.answer:
                raise DataError(
                    f"{row.where}: the same prompt as {where}, but answer {prompt.answer!r} where that has "
                    f"{first.answer!r}; remove one of them"
                )
        return {name: prompt for name, (prompt, _) in seen.items()}


def splits(prompts: Sequence[Prompt], held_out: Sequence[Prompt] = ()) -> dict[Split, list[Prompt]]:
    """Prompts by split, disjoint: by the hash of each problem, so that a row added to a file moves no other.

    In a file so small that a split came out empty, the problems with the smallest hash move into it from train (or the
    other way round); with fewer than three problems some split stays empty.
    """
    parts: dict[Split, list[Prompt]] = {split: [] for split in _SPLITS}
    for prompt in prompts:
        split = split_of(prompt.id)
        parts["canary" if split == "canary" else "train" if held_out else split].append(prompt)
    if held_out:
        parts["eval"] = list(held_out)
    for split in _SPLITS:
        giver = max((s for s in _SPLITS if not (held_out and s == "eval")), key=lambda s: len(parts[s]))
        if not parts[split] and len(parts[giver]) > 1:
            moved = min(parts[giver], key=lambda p: rng.key("split", p.id))
            parts[giver].remove(moved)
            parts[split].append(moved)
    return parts


def problem_id(name: str, *parts: str) -> str:
    """Identifier of a problem: a hash of its text, white space normalised."""
    return f"{name}:{rng.key(*(' '.join(part.split()) for part in parts)):016x}"
