"""The compiled library: found, checked, and its functions by name.

It is built when the package is installed (``setup.py``); without a compiler the package installs all the same and
everything runs on torch's own operations, slower. The environment variable ``TRILOOP_KERNELS=off`` does without it.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "available",
    "describe",
    "function",
    "identity",
    "let_go",
    "pointer",
    "reuse_memory",
    "suffix",
    "ternary_level",
]

ABI = 9
"""Of ``csrc/kernels.cpp``; a library of another one is older or newer than this file."""

REBUILD = "build them with: python -m pip install -e . (needs a C++17 compiler such as g++)"


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The library and what it is, or None and why not."""
    if os.environ.get("TRILOOP_KERNELS", "").lower() in ("off", "0"):
        return None, "switched off by TRILOOP_KERNELS"
    found = sorted(Path(__file__).parent.glob("_native*.so"))
    if not found:
        return None, f"not built: sampling and learning are slower; {REBUILD}"
    try:
        library = ctypes.CDLL(str(found[-1]))  # after torch, whose OpenMP threads it uses
        abi = library.triloop_abi()
        library.triloop_level.restype = ctypes.c_char_p
        library.triloop_compiler.restype = ctypes.c_char_p
        library.triloop_ternary_level.restype = ctypes.c_char_p
        library.triloop_kernel.restype = ctypes.c_void_p
    except (OSError, AttributeError) as problem:
        return None, f"{found[-1].name} cannot be loaded ({problem}); {REBUILD}"
    if abi != ABI:
        return None, f"{found[-1].name} is of another version ({abi}, expected {ABI}); {REBUILD}"
    threads = "torch's threads" if library.triloop_threaded() else "one thread: no OpenMP runtime found"
    return library, f"{library.triloop_level().decode()}, {threads}; ternary {library.triloop_ternary_level().decode()}"


def available() -> bool:
    """Whether the compiled kernels can be used."""
    return _library()[0] is not None


def describe() -> str:
    """The instruction set in use, or why there is none: for ``triloop doctor`` and a run's description of its machine."""
    return _library()[1]


def ternary_level() -> str | None:
    """The instruction set of the ternary products, which all give the same bits; None without the library."""
    library = _library()[0]
    return None if library is None else library.triloop_ternary_level().decode()


def identity() -> str:
    """What results depend on to the last bit: the instruction set and the compiler, or ``none``."""
    library = _library()[0]
    return "none" if library is None else f"{library.triloop_level().decode()}, {library.triloop_compiler().decode()}"


def suffix(dtype: torch.dtype) -> str:
    """What follows a kernel's name for numbers of this type."""
    return {torch.float32: "", torch.bfloat16: ".bf16"}[dtype]


@functools.cache
def function(name: str, arguments: str) -> Callable[..., None]:
    """The kernel of this name. ``arguments``: one letter each, p pointer (an address or None), i integer, f float."""
    library = _library()[0]
    address = None if library is None else library.triloop_kernel(name.encode())
    if address is None:
        raise KeyError(f"no compiled kernel {name!r}")
    kinds: list[Any] = [{"p": ctypes.c_void_p, "i": ctypes.c_long, "f": ctypes.c_float}[a] for a in arguments]
    return ctypes.CFUNCTYPE(None, *kinds)(address)


def reuse_memory() -> bool:
    """Let this process keep up to 128 MB of freed memory at hand, where the C library's allocator can be told (glibc)."""
    library = _library()[0]
    return library is not None and bool(library.triloop_reuse_memory())


def let_go(x: Tensor) -> None:
    """Give the memory behind a contiguous tensor back to the system until it is written again; the address stays, the
    numbers are lost."""
    library = _library()[0]
    address = pointer(x)
    if library is not None and address is not None:
        library.triloop_let_go(ctypes.c_void_p(address), ctypes.c_size_t(x.nbytes))


def pointer(x: Tensor | None) -> int | None:
    """Address of a contiguous tensor's numbers on the processor."""
    if x is None:
        return None
    assert x.is_contiguous(), f"a kernel needs a contiguous tensor, not {tuple(x.shape)} with strides {x.stride()}"
    return x.data_ptr()
