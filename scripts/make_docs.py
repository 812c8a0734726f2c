"""Makes the pages that follow from the code. ``make docs`` writes them; ``--check`` says which are stale (exit code 1).

A page made here is never edited by hand: an equation stands once, in the docstring of the function that computes it.
"""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

from triloop.atlas.page import page as atlas_page
from triloop.learn import algorithms, combine, credit, likelihood, objectives, preferences, reduction, spans
from triloop.learn.algorithms import ALGORITHMS, Algorithm
from triloop.learn.objective_table import OBJECTIVES

ROOT = Path(__file__).resolve().parents[1]
LEARN_TESTS = ROOT / "tests" / "learn"
FUNCTIONS: dict[str, ModuleType] = {
    "Credit": credit,
    "Losses": objectives,
    "Reduction": reduction,
    "Likelihood": likelihood,
    "Preferences": preferences,
    "Spans": spans,
    "Several rewards": combine,
}

HEAD = """\
# Methods

<!-- Made by `make docs` from src/triloop/learn. Change the docstrings there, not this page. -->

Each method is a row of the table in `triloop.learn.algorithms`: who gets credit, which loss, how it is averaged, and
coefficients. `triloop compare` runs them at equal budget on the same problems.

## Symbols

| symbol | meaning |
| --- | --- |
| b, t | a completion of the batch (row), one of its tokens (column) |
| i, j | a prompt, one of the completions of its group |
| r_ij | reward of a completion, from a judgement in [-1, 1]; 0 is *abstained or cannot tell*, and counts |
| A_b, A_bt | advantage of a completion, of a token |
| logp, logp_old | log-probability of a token in nats, now and when it was sampled |
| r_bt, R_bt | probability ratio exp(logp - logp_old) |
| p, q in KL terms | the policy, the reference |
| l_bt | loss of a token, before averaging; zero where the policy did not choose the token |
| V, G | value head's estimate, return |

A judgement that failed is no reward: its completion enters no mean, no spread and no count.
"""


def pages() -> dict[Path, str]:
    """Every made page: path and text."""
    return {ROOT / "docs" / "methods.md": methods_page(), ROOT / "docs" / "atlas.md": atlas_page()}


def methods_page() -> str:
    notes = _notes()
    tests = list(_tests())
    parts = [HEAD, "## Methods at a glance\n", _glance(), ""]
    for name, algorithm in ALGORITHMS.items():
        parts.append(_method(name, algorithm, notes.get(name, ""), tests))
    parts += ["# Objectives on judgements\n", OBJECTIVES_HEAD, _objectives()]
    parts.append("# The functions\n\nLosses are pure, unreduced, and zero where the mask is false.\n")
    for title, module in FUNCTIONS.items():
        parts.append(f"## {title}\n")
        parts += [_function(f) for f in _public(module)]
    return "\n".join(parts).rstrip() + "\n"


OBJECTIVES_HEAD = """\
Learned from what was collected, not from a reward in the round: rows of `triloop.learn.objective_table`. A batch may hold
several kinds of examples, each with its own objective. `triloop compare dpo kto grpo --env attributes` runs them beside
the methods above.
"""


def _objectives() -> str:
    rows = ["| objective | learns from | reference | coefficients that it reads |", "| --- | --- | --- | --- |"]
    for name, o in OBJECTIVES.items():
        reads = ", ".join(f"`{r}`" for r in o.reads)
        rows.append(f"| {name} | {o.consumes} | {o.reference.replace('_', ' ')} | {reads} |")
    return "\n".join(rows) + "\n"


def _glance() -> str:
    rows = ["| method | credit | loss | averaged by |", "| --- | --- | --- | --- |"]
    for name, a in ALGORITHMS.items():
        cells = (_link(f) for f in (_credit(a), _loss(a), _unwrap(a.reduction)))
        rows.append(f"| [{name}](#method-{name}) | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _method(name: str, algorithm: Algorithm, note: str, tests: list[tuple[str, str]]) -> str:
    uses = (_credit(algorithm), _loss(algorithm), _unwrap(algorithm.reduction))
    named = [test for test, source in tests if re.search(rf"['\"]{name}['\"]", source)]
    checks = [test for test, source in tests if any(re.search(rf"\b{f.__name__}\b", source) for f in uses)]
    lines = [
        f"## Method {name}\n",
        f"**Source, and where we differ.** {note}\n" if note else "",
        "**Equations.**\n",
        *(f"```text\n{f.__name__}: {_doc(f)}\n```\n" for f in uses),
        f"**Its own coefficients.** {_settings(algorithm)}\n",
        f"**Reproduce.** `triloop run countdown --algorithm.name {name}`, or `resolve({name!r})` in Python.\n",
        "**Checked by.** " + (", ".join(f"`{t}`" for t in (named or checks)[:8]) or "no test names it yet") + "\n",
    ]
    return "\n".join(line for line in lines if line)


def _settings(algorithm: Algorithm) -> str:
    """Coefficients that are not ``Algorithm``'s own defaults."""
    plain = {f.name: f.default for f in fields(Algorithm)}
    skip = {"advantage", "surrogate", "reduction"}
    changed = [
        f"`{k}={getattr(algorithm, k)!r}`" for k, v in plain.items() if k not in skip and getattr(algorithm, k) != v
    ]
    if isinstance(algorithm.advantage, functools.partial):
        changed += [f"`{k}={v!r}` of the credit" for k, v in algorithm.advantage.keywords.items()]
    return ", ".join(changed) + "." if changed else "None."


def _unwrap(function: Callable[..., object]) -> Callable[..., object]:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def _credit(algorithm: Algorithm) -> Callable[..., object]:
    return credit.gae if algorithm.advantage is None else _unwrap(algorithm.advantage)


def _loss(algorithm: Algorithm) -> Callable[..., object]:
    """The objective that the algorithm's surrogate calls, read off its source."""
    named = re.findall(r"objectives\.(\w+)", inspect.getsource(_unwrap(algorithm.surrogate)))
    if len(named) > 1:
        named = [n for n in named if n.startswith("sequence") == (algorithm.ratio == "sequence")]
    return _unwrap(getattr(objectives, named[0]))


def _public(module: ModuleType) -> list[Callable[..., object]]:
    return [_unwrap(f) for n in module.__all__ if inspect.isfunction(f := getattr(module, n))]


def _link(function: Callable[..., object]) -> str:
    return f"[{function.__name__}](#{function.__name__})"


def _doc(function: Callable[..., object]) -> str:
    return inspect.getdoc(function) or ""


def _function(function: Callable[..., object]) -> str:
    where = f"triloop.learn.{function.__module__.rpartition('.')[2]}"
    return f"### {function.__name__}\n\n`{where}.{function.__name__}`\n\n```text\n{_doc(function)}\n```\n"


def _notes() -> dict[str, str]:
    """The comment above each row of the table: its paper, and where we differ from it."""
    notes: dict[str, str] = {}
    pending: list[str] = []
    for line in inspect.getsource(algorithms).splitlines():
        text = line.strip()
        if text.startswith("# "):
            pending.append(text[2:])
        elif row := re.match(r'"(\w+)": ', text):
            notes[row[1]] = " ".join(pending)
            pending = []
        else:
            pending = []
    return notes


def _tests() -> Iterator[tuple[str, str]]:
    """(``tests/learn/test_x.py::test_y``, source) of the learn room's tests."""
    for path in sorted(LEARN_TESTS.glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                place = path.relative_to(ROOT).as_posix()
                yield f"{place}::{node.name}", ast.get_source_segment(text, node) or ""


def stale() -> list[Path]:
    """Pages whose text on disk is not what the code says now."""
    return [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    if parser.parse_args(argv).check:
        for path in stale():
            print(f"stale: {path.relative_to(ROOT)}; run `make docs`")
        return int(bool(stale()))
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"made {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
