"""Limits that may be tightened and not loosened: sizes, public names, what an import costs, what no file may contain."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

from reading import ROOT, Module, functions, lines_of_code, modules, tracked

LONGEST_FILE = 400
LONGEST_FUNCTION = 50
LONGEST_ORCHESTRATOR = 80

ORCHESTRATORS: frozenset[str] = frozenset()
"""Functions whose body reads as the algorithm, top to bottom, and would say less if cut. Without the docstring."""

every_module = pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)


@every_module
def test_file_length(module: Module) -> None:
    assert len(module.text.splitlines()) <= LONGEST_FILE, f"{module.name}: give part of it a module of its own"


@every_module
def test_function_length(module: Module) -> None:
    for name, node in functions(module):
        limit = LONGEST_ORCHESTRATOR if name in ORCHESTRATORS else LONGEST_FUNCTION
        assert lines_of_code(node) <= limit, f"{name}: {lines_of_code(node)} lines, at most {limit}"


def test_orchestrators_exist_and_need_their_place() -> None:
    long = {name for m in modules() for name, node in functions(m) if lines_of_code(node) > LONGEST_FUNCTION}
    assert long >= ORCHESTRATORS, f"no longer needed: {sorted(ORCHESTRATORS - long)}"


def _defined(tree: ast.Module) -> set[str]:
    """Public functions and classes that a module defines itself."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}


@every_module
def test_public_names_are_all(module: Module) -> None:
    if module.name.endswith("__main__"):
        return
    try:
        loaded = importlib.import_module(module.name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("triloop"):
            raise
        pytest.skip(f"an extra is not installed: {missing.name}")
    assert hasattr(loaded, "__all__"), f"{module.name} has no __all__"
    public = list(loaded.__all__)
    assert len(public) == len(set(public)), f"{module.name}.__all__ names something twice"
    missing_names = [name for name in public if not hasattr(loaded, name)]
    assert not missing_names, f"{module.name}.__all__ names what is not there: {missing_names}"
    unlisted = sorted(_defined(module.tree) - set(public))
    assert not unlisted, f"{module.name} defines public names outside __all__: {unlisted}"


def test_the_package_offers_what_it_lists() -> None:
    import triloop

    homes = vars(triloop)["_HOME"]
    assert set(triloop.__all__) == {*homes, "__version__"}
    typed = {
        alias.asname
        for node in ast.walk(ast.parse(inspect.getsource(triloop)))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert typed == set(homes), "the names for type checkers and the names for Python differ"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = triloop.nothing  # type: ignore[attr-defined]


HEAVY = ("torch", "numpy", "transformers", "datasets", "jaxtyping", "sympy", "pandas")


def _loaded_after(code: str) -> list[str]:
    """Which heavy packages a fresh interpreter has loaded after running ``code``."""
    report = f"import sys as s; print('LOADED', *[m for m in {HEAVY!r} if m in s.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("LOADED")[2].split()


def test_import_loads_nothing_heavy() -> None:
    assert _loaded_after("import triloop; triloop.Prompt; dir(triloop)") == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "from triloop.cli.main import main\n"
        f"try:\n    code = main({arguments!r})\nexcept SystemExit as stop:\n    code = stop.code\n"
        "assert not code, code"
    )
    assert _loaded_after(code) == []


# Written in two halves, so that this file does not contain what it looks for.
FORBIDDEN = (
    "/" + "work/",
    "/" + "root/",
    "/home" + "/runner",
    "pypi" + ".org",
    "python" + "hosted.org",
    "registry" + ".npmjs",
    "deb" + ".debian.org",
)
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".yaml",
    ".yml",
    ".sh",
    ".tsv",
    ".json",
    ".jsonl",
    ".html",
    ".css",
    ".js",
    ".txt",
    ".cfg",
    "",
}


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for path in tracked():
        if path.suffix not in TEXT or path.stat().st_size > 5_000_000:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word in text]
    assert not found, "\n".join(found)


BARE = {"ValueError", "RuntimeError", "KeyError", "FileNotFoundError"}
USER_FACING = {"cli", "recipes", "sources", "store", "report", "atlas"}


@every_module
def test_habits(module: Module) -> None:
    """No probing for attributes, no bare errors for users, no module-level ``global``."""
    wrong = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
            wrong.append(f"line {node.lineno}: hasattr; name what is expected in a protocol")
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            name = node.exc.func.id
            if name in {"Exception", "BaseException"} or (module.room in USER_FACING and name in BARE):
                wrong.append(f"line {node.lineno}: raise {name}; triloop.errors has one that says what to do")
        if isinstance(node, ast.Global):
            wrong.append(f"line {node.lineno}: global {', '.join(node.names)}")
    assert not wrong, f"{module.name}\n" + "\n".join(wrong)


def test_the_tests_mirror_the_code() -> None:
    """Each room with code has a folder of tests."""
    rooms = {m.room for m in modules() if not m.is_package and m.room and (ROOT / "src/triloop" / m.room).is_dir()}
    missing = sorted(room for room in rooms if not list((ROOT / "tests" / room).glob("test_*.py")))
    assert not missing, f"no tests/ROOM/test_*.py for: {missing}"


def test_warnings_are_errors(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("filterwarnings")[0] == "error"
