"""Kernels of one level of the processor, whichever the library would choose."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triloop.kernels import native, ternary

__all__ = ["CSRC", "EMULATED", "REAL", "library_at", "library_with", "run_at", "use"]

CSRC = Path(ternary.__file__).parent / "csrc"
REAL = ("portable", "avx2", "avxvnni", "vnni", "amx", "neon")
EMULATED = ("avxvnni", "neon", "vnni", "amx")


def run_at(level: str, code: str) -> None:
    """Run this in a Python whose kernels are those of TRILOOP_CPU=level, with torch and the tests' packages at hand."""
    path = f"import sys, torch; sys.path[:0] = {[str(Path(__file__).parents[1]), *sys.path]!r}\n"
    subprocess.run([sys.executable, "-c", path + code], env=os.environ | {"TRILOOP_CPU": level}, check=True)


def use(monkeypatch: pytest.MonkeyPatch, library: ctypes.CDLL, level: str) -> None:
    """Let the products call the kernels of this level."""
    library.triloop_ternary.restype = ctypes.c_void_p
    kinds: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_long}

    def function(name: str, arguments: str) -> Callable[..., None]:
        address = library.triloop_ternary(level.encode(), name.encode())
        assert address
        return ctypes.CFUNCTYPE(None, *[kinds[a] for a in arguments])(address)

    monkeypatch.setattr(native, "function", function)


def library_at(path: Path) -> ctypes.CDLL:
    """A library that was built for tests."""
    library = ctypes.CDLL(str(path))
    library.triloop_ternary.restype = ctypes.c_void_p
    return library


def library_with(level: str, kernel: str) -> ctypes.CDLL:
    """The package's library; the test is skipped where it has no such kernel of this level."""
    library = native._library()[0]
    assert library is not None
    library.triloop_ternary.restype = ctypes.c_void_p
    if not library.triloop_ternary(level.encode(), kernel.encode()):
        pytest.skip(f"this processor or library has no level {level}")
    return library
