"""Builds the compiled kernels when the package is installed; everything else stands in pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError, PlatformError

FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]

CSRC = Path("src/triloop/kernels/csrc")

FEWER: tuple[list[str], ...] = ([], ["-DTRILOOP_NO_AMX"], ["-DTRILOOP_PORTABLE"])
"""What is left out, in turn, where a compiler or assembler does not know the instructions."""


class Optional(build_ext):
    """No compiler, no kernels: the package installs all the same."""

    def build_extension(self, extension: Extension) -> None:
        problem: Exception | None = None
        for less in FEWER:
            extension.extra_compile_args = [*FLAGS, *less]
            try:
                super().build_extension(extension)
                return
            except (CompileError, LinkError, PlatformError, OSError) as why:
                problem = why
        print(
            f"triloop: the compiled kernels were not built ({problem}). Everything works without them, slower; "
            "install a C++17 compiler and install again to have them.",
            file=sys.stderr,
        )


setup(
    ext_modules=[
        Extension(
            "triloop.kernels._native",
            [str(CSRC / "kernels.cpp"), str(CSRC / "ternary.cpp")],
            depends=[str(f) for f in sorted(CSRC.iterdir())],
            extra_compile_args=FLAGS,
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": Optional},
)
