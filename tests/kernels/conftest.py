"""What several tests of kernels need."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest

from kernels.levels import CSRC, library_at


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels for processors that are not here: the same source with their instructions replaced by loops."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build the emulated kernels with")
    out = tmp_path_factory.mktemp("emulated") / "ternary.so"
    flags = ["-O2", "-std=c++17", "-fPIC", "-shared", "-DTRILOOP_EMULATE"]
    subprocess.run([compiler, *flags, str(CSRC / "ternary.cpp"), "-o", str(out)], check=True)
    return library_at(out)
