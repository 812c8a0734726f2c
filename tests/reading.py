"""Reads the project's own source for the tests that hold its shape: one parse of each file, shared."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Module:
    name: str
    path: Path
    text: str
    tree: ast.Module
    is_package: bool

    @property
    def room(self) -> str:
        """The second part of the dotted name: ``nn`` of ``triloop.nn.decoder``; empty for ``triloop`` itself."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""


@lru_cache(maxsize=1)
def modules() -> tuple[Module, ...]:
    """Every module under src/triloop, by name."""
    found = []
    for path in sorted((SOURCE / "triloop").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        text = path.read_text(encoding="utf-8")
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name=name, path=path, text=text, tree=ast.parse(text, str(path)), is_package=is_package))
    return tuple(found)


def names() -> frozenset[str]:
    return frozenset(m.name for m in modules())


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import of this project, wherever it stands: top, function, or under TYPE_CHECKING.

    ``from triloop import rng`` is an import of ``triloop.rng``; ``from triloop.nn import Decoder`` one of ``triloop.nn``.
    """
    package = module.name if module.is_package else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "triloop")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *([base] if base else [])])
            if base.split(".")[0] != "triloop":
                continue
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in names() or base == "triloop" else base


def functions(module: Module) -> Iterator[tuple[str, Function]]:
    """(qualified name, node) of every function and method, nested ones included."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name, child
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, prefix)

    yield from walk(module.tree, f"{module.name}.")


def lines_of_code(node: Function) -> int:
    """Lines from ``def`` to the end, without the docstring: an equation in it is no reason to cut a function."""
    first = node.body[0]
    doc = 0
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        doc = (first.end_lineno or first.lineno) - first.lineno + 1
    return (node.end_lineno or node.lineno) - node.lineno + 1 - doc


def tracked() -> list[Path]:
    """Files that are, or are about to be, in the repository. Without git: everything that is not hidden."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        found = (p for p in ROOT.rglob("*") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts))
        return [p for p in found if p.is_file()]
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
