"""Data sets in and out: whatever form their rows have, as ``ImportedItem``, and Triloop's own JSONL, exact both ways.

``Reader`` streams a file and knows what form it found; ``read_items`` is the plain generator; ``read_votes`` gives crowd
labels as (worker, item, label), which ``triloop.feedback.aggregate.ballot`` takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, final

from triloop.errors import DataError, UsageError
from triloop.feedback.interchange_columns import ALIASES, Columns, Settings
from triloop.feedback.interchange_files import RawRow, raw_rows, writing
from triloop.feedback.interchange_forms import FORMS, detect
from triloop.feedback.interchange_labels import Labels, settle
from triloop.feedback.interchange_records import ImportedItem, Response, to_json

__all__ = [
    "Counts",
    "ImportedItem",
    "Labels",
    "Reader",
    "Response",
    "Settings",
    "read_items",
    "read_votes",
    "write_items",
]

_HEAD = 1000
"""Rows that are looked at before the first is read: the form and the meaning of labels are settled by them."""

_KEPT = 20
"""Faults whose text is kept; all are counted."""


@dataclass
class Counts:
    """What went by."""

    items: int = 0
    responses: int = 0
    demonstrations: int = 0
    """Responses of items that nobody judged."""
    feedback: Counter[str] = field(default_factory=Counter)
    """Judgements by kind."""
    failed: int = 0
    sources: set[str] = field(default_factory=set)

    def add(self, item: ImportedItem) -> None:
        """Count one item."""
        self.items += 1
        self.responses += len(item.responses)
        self.demonstrations += 0 if item.feedback else len(item.responses)
        self.feedback.update(f.kind for f in item.feedback)
        self.failed += sum(f.failed for f in item.feedback)
        self.sources.update(f.source for f in item.feedback)


@final
class Reader:
    """The items of a file or folder, in order, one at a time. Iterate once, or again to read it again.

    ``form`` and ``settings.labels`` are settled when it is made. A malformed row raises ``DataError`` with its number; with
    ``skip`` it is counted in ``skipped``, and the first few are in ``faults``.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        form: str = "auto",
        settings: Settings | None = None,
        names: Sequence[str] = (),
        split: str | None = None,
        skip: bool = False,
    ) -> None:
        """``names`` are the columns of rows that are lists. ``DataError`` for a file that cannot be read or understood."""
        self.path, self._names, self._split, self._skip = Path(path), tuple(names), split, skip
        settings = settings or Settings()
        _check(form, settings.columns)
        settings = replace(settings, source=settings.source or f"data:{self.path.name}")
        head = [row for row in islice(raw_rows(self.path, split), _HEAD) if not self._faulty(row)]
        found = [row for row in map(self._named, head) if row is not None]
        seen = {name: row[name] for row in reversed(found) for name in row if row[name] is not None}
        if not seen:
            first = next(iter(raw_rows(self.path, split)))
            raise DataError(f"{first.where}: {first.fault or self._misnamed(first.data)}")
        whole = Columns(seen, settings)
        try:
            self.form = detect(whole) if form == "auto" else form
            rows = [Columns(row, settings) for row in found]
            values = [v for row in rows for column in FORMS[self.form].labels for v in _labels(row, column)]
            self.settings = replace(settings, labels=settle(settings.labels, values))
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error
        known = {whole.name(ours) for ours in ALIASES} | {"triloop", "prompt", "responses", "feedback"}
        self.ignored = tuple(sorted(str(name) for name in seen.keys() - known)) if self.form != "triloop" else ()
        self.skipped = 0
        self.faults: list[str] = []

    def __iter__(self) -> Iterator[ImportedItem]:
        self.skipped, self.faults = 0, []
        read = FORMS[self.form].read
        for raw in raw_rows(self.path, self._split):
            try:
                if raw.fault:
                    raise DataError(raw.fault)
                data = self._named(raw)
                if data is None:
                    raise DataError(self._misnamed(raw.data))
                item = read(Columns(data, self.settings))
            except DataError as error:
                self._fault(f"{raw.where}: {error}", error)
                continue
            yield replace(item, where=raw.where)

    def _fault(self, told: str, error: DataError) -> None:
        if not self._skip:
            raise DataError(f"{told}; mend the row, or leave such rows out with --skip") from error
        self.skipped += 1
        if len(self.faults) < _KEPT:
            self.faults.append(told)

    def _faulty(self, row: RawRow) -> bool:
        return bool(row.fault)

    def _named(self, row: RawRow) -> Mapping[str, Any] | None:
        """The row by column names; None for a list that the given names do not fit."""
        if isinstance(row.data, Mapping):
            return row.data
        fits = self._names and isinstance(row.data, list) and len(row.data) == len(self._names)
        return dict(zip(self._names, row.data, strict=True)) if fits else None

    def _misnamed(self, data: Any) -> str:
        named = f"; --names has {len(self._names)}" if self._names else ""
        return f"the row is a list of {len(data)}{named}; expected a name for each column: --names worker,item,label"


def read_items(path: Path | str, *, form: str = "auto", settings: Settings | None = None) -> Iterator[ImportedItem]:
    """The items of a file or folder; see ``Reader``."""
    return iter(Reader(path, form=form, settings=settings))


def write_items(path: Path | str, items: Iterable[ImportedItem]) -> Counts:
    """Triloop's own JSONL, wholly or not at all; ``read_items`` gives the same items back."""
    counts = Counts()
    with writing(Path(path)) as put:
        for item in items:
            counts.add(item)
            put(to_json(item))
        if not counts.items:
            raise DataError(f"there is no item to write to {path}; expected at least one sound row")
    return counts


def read_votes(
    path: Path | str, *, names: Sequence[str] = (), settings: Settings | None = None
) -> Iterator[tuple[str, str, Any]]:
    """(worker, item, label) of each row, the label as it stands there: a class needs no place between -1 and +1."""
    settings = settings or Settings()
    for raw in raw_rows(Path(path)):
        data = dict(zip(names, raw.data, strict=False)) if isinstance(raw.data, list) else raw.data
        if raw.fault or not isinstance(data, Mapping):
            raise DataError(f"{raw.where}: {raw.fault or 'got no row with named columns'}")
        row = Columns(data, settings)
        try:
            yield row.text("worker"), row.text("item"), row.get("label")
        except DataError as error:
            raise DataError(f"{raw.where}: {error}") from error


def _labels(row: Columns, column: str) -> Iterable[Any]:
    value = row.get(column, None)
    if isinstance(value, list):
        inner = [[v for k, v in x.items() if k in ALIASES["label"]] if isinstance(x, Mapping) else [x] for x in value]
        return chain.from_iterable(inner)
    return () if value is None else (value,)


def _check(form: str, columns: Mapping[str, str]) -> None:
    if form != "auto" and form not in FORMS:
        raise UsageError(f"the form is {form!r}; expected auto or one of {', '.join(FORMS)}")
    for ours in columns:
        if ours not in ALIASES:
            raise UsageError(f"there is no column {ours!r} to be named; expected one of {', '.join(ALIASES)}")
