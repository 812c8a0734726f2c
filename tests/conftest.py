"""What all tests share. Shapes and types are checked in every call: the hook must stand before the first import."""

from __future__ import annotations

import os
from pathlib import Path

# One thread: the figures of a test must not depend on the machine, and small matrices gain nothing from more.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jaxtyping
import pytest

ROOT = Path(__file__).resolve().parents[1]


def _modules_with_shapes() -> list[str]:
    """Modules that name a shape; the others have none to check, and run at full speed."""
    source = ROOT / "src"
    named = [p for p in (source / "triloop").rglob("*.py") if "from jaxtyping import" in p.read_text(encoding="utf-8")]
    return [".".join(p.relative_to(source).with_suffix("").parts).removesuffix(".__init__") for p in named]


jaxtyping.install_import_hook(_modules_with_shapes(), "typed.check")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """A test that sets torch's thread count does not set it for the next one."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Recorded data beside the repository (models, graded solutions); a test that needs it is skipped without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no recorded data: {folder.name} is not beside the repository")
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A path for a new run; nothing stands there yet."""
    return tmp_path / "run"
