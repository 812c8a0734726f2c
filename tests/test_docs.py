"""Pages made from code are what the code says now, and every link between the documents leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from reading import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_made_pages_are_up_to_date() -> None:
    """In a process of its own: the test's type checker wraps the functions whose docstrings are read."""
    command = [sys.executable, str(ROOT / "scripts" / "make_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    lost = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not lost, f"{path.name}: {lost}"


def test_readme_commands_are_targets() -> None:
    """The first block of commands is what scripts/stranger.sh runs: only make targets that exist."""
    block = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    commands = [line.split("#")[0].strip() for line in block[1].splitlines() if line.strip()]
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert commands
    assert [c for c in commands if c.removeprefix("make ") not in targets] == []


def test_the_extra_asks_for_the_transformers_that_the_code_needs() -> None:
    """``from_pretrained(dtype=...)`` came with transformers 4.56."""
    code = (ROOT / "src/triloop/policies/transformers_model.py").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (asked,) = [e.removeprefix("transformers>=") for e in extras["hf"] if e.startswith("transformers>=")]
    assert "dtype=torch" in code and tuple(map(int, asked.split("."))) >= (4, 56)
