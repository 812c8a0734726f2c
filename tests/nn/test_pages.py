"""Rows read what they wrote, whatever they share with others."""

from __future__ import annotations

import random

import numpy as np
import pytest

from triloop.nn.pages import Pages


class Book:
    """A cache that remembers which number was written where, and what each row should read."""

    def __init__(self, rows: int, length: int, size: int) -> None:
        self.pages = Pages(rows, length, size)
        self.memory = np.full((self.pages.total, size), -1)
        self.rows: dict[int, list[int]] = {}

    def start(self, fresh: dict[int, list[int]]) -> None:
        self.pages.start(np.array(list(fresh)), np.array([len(x) for x in fresh.values()]))
        for row, numbers in fresh.items():
            for at, number in enumerate(numbers):
                self._write(row, at, number)
        self.rows |= fresh

    def arrange(self, sources: list[int]) -> None:
        lengths = [len(self.rows[s]) for s in sources]
        into, old = self.pages.arrange(np.array(sources), np.array(lengths))
        assert not set(into.tolist()) & set(old.tolist())
        self.memory[into] = self.memory[old]
        self.rows = {row: list(self.rows[s]) for row, s in enumerate(sources)}

    def append(self, numbers: list[int], free: set[int]) -> None:
        self.pages.reach(np.array([0 if r in free else len(self.rows[r]) for r in range(len(numbers))]))
        for row, number in enumerate(numbers):
            if row not in free:
                self._write(row, len(self.rows[row]), number)
                self.rows[row].append(number)

    def check(self, free: set[int]) -> None:
        for row, numbers in self.rows.items():
            if row not in free:
                table, size = self.pages.table[row].numpy(), self.pages.size
                assert [int(self.memory[table[at // size], at % size]) for at in range(len(numbers))] == numbers

    def _write(self, row: int, at: int, number: int) -> None:
        size = self.pages.size
        self.memory[int(self.pages.table[row, at // size]), at % size] = number


def test_worked_by_hand() -> None:
    pages = Pages(3, 40, 16)
    assert (pages.width, pages.total) == (3, 9)
    pages.start(np.array([0, 1]), np.array([17, 16]))
    assert pages.table[:2].tolist() == [[0, 1, 0], [2, 0, 0]]
    into, old = pages.arrange(np.array([0, 0, 1]), np.array([17, 17, 16]))
    assert (into.tolist(), old.tolist()) == ([3], [1]), "one position of the second page is filled: it is copied"
    assert pages.table.tolist() == [[0, 1, 0], [0, 3, 0], [2, 0, 0]]
    pages.reach(np.array([17, 17, 16]))
    assert pages.table[2, :2].tolist() == [2, 4], "a full page is followed by a fresh one"
    into, old = pages.arrange(np.array([2, 1]), np.array([17, 18]))
    assert len(into) == 0 and pages.table[:2, :2].tolist() == [[2, 4], [0, 3]], "rows move without a copy"
    pages.start(np.array([2]), np.array([1]))
    assert pages.table[2, 0] == 1, "the lowest page that nobody holds"


def test_a_full_page_is_never_copied() -> None:
    pages = Pages(4, 32, 16)
    pages.start(np.array([0]), np.array([16]))
    into, _ = pages.arrange(np.array([0, 0, 0, 0]), np.array([16] * 4))
    assert len(into) == 0
    pages.reach(np.array([16] * 4))
    assert pages.table.tolist() == [[0, 1], [0, 2], [0, 3], [0, 4]]


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("seed", range(8))
def test_rows_read_what_they_wrote(seed: int, size: int) -> None:
    draw = random.Random(seed)
    rows, length = draw.choice([1, 2, 5, 33]), draw.choice([16, 40, 100])
    book, counter = Book(rows, length, size), iter(range(10**6))
    for _ in range(3):
        book.pages.clear()
        book.rows = {}
        fresh = draw.sample(range(rows), draw.randint(1, rows))
        book.start({r: [next(counter) for _ in range(draw.randint(1, length // 2))] for r in fresh})
        free: set[int] = set()
        for _ in range(length // 2):
            alive = sorted(set(book.rows) - free)
            if not alive:
                break
            if draw.random() < 0.6:
                book.arrange(sorted(draw.choices(alive, k=draw.randint(1, rows))))
                free = set()
            else:
                book.arrange(draw.sample(alive, len(alive)))
                free = set()
            count = max(book.rows) + 1
            book.append([next(counter) for _ in range(count)], free)
            book.check(free)
            gone = {r for r in book.rows if draw.random() < 0.1 or len(book.rows[r]) >= length}
            free |= gone
            if gone and draw.random() < 0.5:  # others take their places before anything else happens
                book.start({r: [next(counter) for _ in range(draw.randint(1, length // 2))] for r in gone})
                free -= gone
                book.check(free)
