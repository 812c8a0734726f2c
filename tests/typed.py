"""The type checker of the tests: beartype, on every annotation that can be looked at while a test runs.

Two kinds cannot: names that are imported for the type checker alone, and protocols that were not made for ``isinstance``.
mypy holds those. A *shape* that cannot be looked at is a mistake, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.roar import BeartypeException

NUMBERS = BeartypeConf(is_pep484_tower=True)
"""An int will do where a float is asked for, as for mypy."""

F = TypeVar("F", bound=Callable[..., object])


def check(function: F) -> F:
    """``function`` with its arguments and its answer checked in every call."""
    for name, hint in function.__annotations__.items():
        if isinstance(hint, str) and "Tensor" in hint and "[" in hint:
            raise TypeError(
                f"{function.__module__}.{function.__qualname__}: {name}: {hint} names no type at run time; import it"
            )
        try:
            is_bearable(None, hint, conf=NUMBERS)
        except BeartypeException:
            function.__annotations__[name] = Any
    return beartype(conf=NUMBERS)(function)
