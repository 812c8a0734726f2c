from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def memory() -> Path | None:
    """A filesystem in memory, or None for the usual place: the store waits for the disk at every commit, tests need not."""
    return _MEMORY if os.access(_MEMORY, os.W_OK) else None


@pytest.fixture
def tmp_path(memory: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
