"""Calls of kernels on memory that stays where it is, and programs: lists of them that run without coming back to Python.

A decoding step of a small policy is some sixty calls of a few dozen microseconds each. Called one by one, Python takes up
to a tenth of the step, and two threads wait for each other after every call. In a program each thread makes all calls for
its share of the rows; the threads wait for each other once, at the end.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from triloop.kernels import native

__all__ = ["Call", "Count", "Place", "Program"]

Count = int | ctypes.c_long
"""How many rows a call is for: a number, or one that is looked up whenever the call is made."""


class Place(NamedTuple):
    """Memory that somebody else keeps."""

    address: int
    line: int
    """Bytes from one row's numbers to the next's."""

    @classmethod
    def of(cls, x: Tensor) -> Place:
        """Where this tensor lies."""
        return cls(x.data_ptr(), x.stride(0) * x.itemsize)


Argument = Tensor | Place | Count | float | None

KINDS = {"r": "p", "n": "i", "t": "i"}
"""What is special in a list of calls, and what it is to a kernel."""

VALUE, ROWS, THREADS = range(3)  # csrc/calls.h, as is
MOST_ARGUMENTS = 24


@dataclass(frozen=True, eq=False)
class Call:
    """A kernel and its arguments. Tensors among them live as long as the call.

    ``kinds`` has a letter for each argument: p memory, r memory with a line for each row, n the number of rows, i and f
    numbers, t how many threads share the work.
    """

    name: str
    kinds: str
    arguments: tuple[Argument, ...]
    """Without the number of threads."""

    def __call__(self) -> None:
        self._call()

    @cached_property
    def _call(self) -> Callable[[], object]:
        plain = "".join(KINDS.get(k, k) for k in self.kinds)
        return partial(native.function(self.name, plain), *map(_plain, self._given))

    @property
    def _given(self) -> list[Argument]:
        rest = iter(self.arguments)
        return [torch.get_num_threads() if k == "t" else next(rest) for k in self.kinds]

    def encoded(self) -> list[int]:
        """As ``csrc/calls.h`` reads it."""
        assert len(self.kinds) <= MOST_ARGUMENTS
        code = [native.runner(self.name), len(self.kinds)]
        for kind, x in zip(self.kinds, self._given, strict=True):
            code += _encoded(kind, x)
        return code


def _plain(x: Argument) -> object:
    if isinstance(x, Tensor):
        return native.pointer(x)
    return x.address if isinstance(x, Place) else x


def _encoded(kind: str, x: Argument) -> tuple[int, int, int]:
    if kind in "nt":
        return ROWS if kind == "n" else THREADS, 0, 0
    if kind == "f":
        assert isinstance(x, int | float)
        return VALUE, int(np.float32(x).view(np.int32)), 0
    if isinstance(x, Tensor):
        assert x.is_contiguous(), f"{tuple(x.shape)} with strides {x.stride()}"
        x = Place.of(x)
    if isinstance(x, Place):
        return VALUE, x.address, x.line if kind == "r" else 0
    assert x is None or isinstance(x, int)
    return VALUE, x or 0, 0


class Program:
    """Calls one after the other, for any number of rows."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = tuple(calls)  # and the memory behind them
        self._code = np.array([n for c in calls for n in c.encoded()], np.int64)

    def __call__(self, rows: int, *, apart: bool) -> None:
        """``apart``: each thread makes all calls for rows of its own, which must not look at each other's numbers; else the
        threads share out every call."""
        threads = torch.get_num_threads()
        native.run(self._code.ctypes.data, len(self.calls), rows, threads if apart else 1, threads)
