"""A constitution: named principles that judges, critics and revisers go by, from a YAML file.

    name: house rules
    principles:
      - name: polite                        # required, unique
        text: The response is polite.       # required: what a comparison goes by
        question: Is the response polite?   # asked by yes/no judges; default: made from the text
        wanted: yes                         # the good answer to the question; default yes
        critique: ...                       # what a critic is told to look for; default: the text
        revision: ...                       # what a reviser is told to reach; default: the text
        weight: 1.0                         # how often it is drawn, and how much it counts in a mean

Everything beyond ``name`` and ``text`` may be left out. Bai et al. 2022 (arXiv:2212.08073) draw one principle per item.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from triloop import rng
from triloop.errors import DataError

__all__ = ["Constitution", "Principle", "as_constitution", "parse_constitution", "read_constitution"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Principle:
    """One rule, in the words that each kind of source needs."""

    name: str
    text: str
    """What a comparison goes by."""
    question: str = ""
    """Asked by yes/no judges; empty: made from the text."""
    wanted: bool = True
    """Whether "yes" is the good answer to the question."""
    critique: str = ""
    """What a critic is told to look for; empty: the text."""
    revision: str = ""
    """What a reviser is told to reach; empty: the text."""
    weight: float = 1.0
    """How often it is drawn, and how much it counts in a mean."""

    @property
    def asked(self) -> str:
        """The question of a yes/no judge."""
        return self.question or f"Does the response keep to this principle: {self.text}"

    @property
    def sought(self) -> str:
        """What a critic looks for."""
        return self.critique or self.text

    @property
    def aim(self) -> str:
        """What a reviser works towards."""
        return self.revision or self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Constitution:
    """Principles with distinct names and positive weights."""

    name: str
    principles: tuple[Principle, ...]

    def __post_init__(self) -> None:
        if not self.principles:
            raise DataError(f"constitution {self.name!r} has no principles; give at least one")
        names = [p.name for p in self.principles]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise DataError(
                f"constitution {self.name!r} names {', '.join(twice)} twice; each principle needs its own name"
            )
        for p in self.principles:
            if not p.name.strip() or not p.text.strip():
                raise DataError(
                    f"constitution {self.name!r}: a principle needs a name and a text; got {p.name!r}, {p.text!r}"
                )
            if not (math.isfinite(p.weight) and p.weight > 0):
                raise DataError(f"principle {p.name!r} has weight {p.weight}; expected a finite number above 0")

    def draw(self, *path: int | str) -> Principle:
        """One principle, each as often as its weight says: a pure function of ``path``, such as (seed, prompt id)."""
        edges = list(accumulate(p.weight for p in self.principles))
        at = rng.generator("principle", *path).random() * edges[-1]
        return next(p for p, edge in zip(self.principles, edges, strict=True) if at < edge)

    def named(self, *names: str) -> Constitution:
        """Only these principles, in this order. Raises DataError for a name that it lacks."""
        known = {p.name: p for p in self.principles}
        lost = [n for n in names if n not in known]
        if lost:
            raise DataError(f"constitution {self.name!r} has no principle {lost[0]!r}; it has {', '.join(known)}")
        return Constitution(name=self.name, principles=tuple(known[n] for n in names))


def as_constitution(given: Constitution | Principle) -> Constitution:
    """One principle as a constitution of its own name."""
    return Constitution(name=given.name, principles=(given,)) if isinstance(given, Principle) else given


def read_constitution(path: str | Path) -> Constitution:
    """From a YAML file. Raises DataError, naming the file and the entry, for whatever is wrong with it."""
    try:
        raw = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the constitution {path}: {error}. Give the path of a YAML file.") from error
    return parse_constitution(raw, where=Path(path).name)


def parse_constitution(text: str, *, where: str = "constitution") -> Constitution:
    """From YAML text; ``where`` names it in errors and is its name when the file gives none."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{where} is not YAML: {error}") from error
    _expect(data, Mapping, where, "a mapping with `principles`")
    _only(data, {"name", "principles"}, where)
    entries = data.get("principles")
    _expect(entries, Sequence, f"{where}: principles", "a list of entries with `name` and `text`")
    principles = tuple(_principle(entry, f"{where}, principle {i}") for i, entry in enumerate(entries, start=1))
    try:
        return Constitution(name=str(data.get("name") or where), principles=principles)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


_TEXTS = ("name", "text", "question", "critique", "revision")


def _principle(entry: Any, where: str) -> Principle:
    _expect(entry, Mapping, where, "a mapping with `name` and `text`")
    _only(entry, {*_TEXTS, "wanted", "weight"}, where)
    for key in ("name", "text"):
        if key not in entry:
            raise DataError(f"{where} has no `{key}`; every principle needs a name and a text")
    for key in _TEXTS:
        _expect(entry.get(key, ""), str, f"{where}: {key}", "a text (quote it when it looks like a number or a bool)")
    _expect(entry.get("wanted", True), bool, f"{where}: wanted", "yes or no")
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise DataError(f"{where}: weight is {weight!r}; expected a number above 0")
    texts = {key: entry[key].strip() for key in _TEXTS if key in entry}
    return Principle(**texts, wanted=entry.get("wanted", True), weight=float(weight))


def _expect(value: object, kind: type, where: str, wanted: str) -> None:
    if not isinstance(value, kind) or (kind is Sequence and isinstance(value, str)):
        raise DataError(f"{where} is {type(value).__name__}: {str(value)[:60]!r}; expected {wanted}")


def _only(entry: Mapping[str, Any], known: set[str], where: str) -> None:
    odd = sorted(str(k) for k in entry if k not in known)
    if odd:
        raise DataError(f"{where} has {', '.join(odd)}; known are {', '.join(sorted(known))}")
