"""Where a policy computes: the processor, or a GPU; and what makes a GPU give the same bits each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from triloop.errors import ConfigError

__all__ = ["describe_device", "exact", "pick_device"]

_WORKSPACE = ":4096:8"
"""What cuBLAS documents for products that come out alike each time."""


def pick_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, or ``auto``: a GPU where torch finds one. ConfigError for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device is cuda, and torch finds no GPU here; use --device cpu, or install torch for CUDA on a machine with one"
        )
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """``cpu``, or which GPU and which CUDA: what results depend on to the last bit."""
    if device.type != "cuda":
        return device.type
    return f"cuda ({torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda})"


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """What is computed in here comes out the same each time. On the processor it does so anyway; on a GPU sums would be
    taken in whatever order its threads arrive."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _WORKSPACE)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
