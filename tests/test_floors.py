"""Imports point down only. DESIGN's floors, held by reading every import, lazy and type-only ones included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from reading import Module, imports, modules

FLOORS: dict[int, tuple[str, ...]] = {
    8: ("", "__main__"),  # the package's own face: loads anything, on demand
    7: ("cli",),  # `triloop report` writes the page
    6: ("web", "report", "bench"),
    5: ("recipes", "atlas"),
    4: ("loops", "refine", "scale"),
    3: ("sources", "guards", "memory", "online"),
    2: ("policies", "envs", "store"),
    1: ("feedback", "nn", "ternary", "comms", "learn"),  # learn knows no policy: it is tensors in, a loss out
    0: ("records", "rng", "errors", "stats", "kernels"),
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}

ALLOWED: frozenset[tuple[str, str]] = frozenset()
"""(importing module, imported module) arrows that stand against the rule, each with its reason beside it."""


def _wrong(module: Module, line: int, target: str) -> str | None:
    """Why this arrow is wrong, or None."""
    room = target.split(".")[1] if "." in target else ""
    if target == "triloop.__version__" or (module.name, target) in ALLOWED:
        return None
    here, there = FLOOR_OF[module.room], FLOOR_OF.get(room)
    where = f"{module.path.name}:{line} {module.name} -> {target}"
    if there is None:
        return f"{where}: {room!r} stands on no floor; add it to FLOORS"
    if there > here:
        return f"{where}: up from floor {here} to floor {there}"
    # Floor 0 is one room of its modules; elsewhere neighbours on a floor do not know each other.
    if there == here and here not in (0, 7) and room != module.room:
        return f"{where}: sideways on floor {here}"
    return None


def test_every_module_stands_on_a_floor() -> None:
    assert {m.room for m in modules()} <= FLOOR_OF.keys()


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_imports_point_down(module: Module) -> None:
    wrong = [reason for line, target in imports(module) if (reason := _wrong(module, line, target))]
    assert not wrong, "\n".join(dict.fromkeys(wrong))


def test_exceptions_are_still_needed() -> None:
    arrows = {(m.name, target) for m in modules() for _, target in imports(m)}
    assert arrows >= ALLOWED, f"no longer needed: {sorted(ALLOWED - arrows)}"


def test_a_function_level_import_is_seen() -> None:
    """The reader itself: a lazy import upwards inside a function is an arrow like any other."""
    text = "def f():\n    from triloop.cli import main\n    return main\n"
    module = Module(name="triloop.nn.low", path=Path("low.py"), text=text, tree=ast.parse(text), is_package=False)
    (line, target), *_ = imports(module)
    assert "up from floor 1 to floor 7" in (_wrong(module, line, target) or "")
