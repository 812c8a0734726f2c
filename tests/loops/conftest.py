"""One tiny base and one finished tiny run, shared by the tests of the loops. Tests copy the run before they change it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loops import tiny
from triloop.loops.run import start


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder and summary of a run that came to its end."""
    tiny.one_thread()
    out = tmp_path_factory.mktemp("runs") / "finished"
    return out, start(tiny.config(base), out)


@pytest.fixture
def copied(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Callable[[], Path]:
    """A copy of the finished run to work on."""

    def copy() -> Path:
        return Path(shutil.copytree(finished[0], tmp_path / "copy"))

    return copy
