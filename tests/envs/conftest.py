"""Small files in the published forms, for the environments that read one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """``write(rows, name)``: a JSONL file of these rows in a folder of its own."""

    def write(rows: Sequence[Mapping[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path_factory.mktemp("files") / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def files(write: Write) -> dict[str, Path]:
    return {
        "gsm8k": write([{"question": f"{k} and {k}?", "answer": f"{k}+{k}\n#### {2 * k}"} for k in range(40)]),
        "math": write(
            [
                {"problem": f"Halve ${k}$ apples.", "level": f"Level {k % 5 + 1}", "answer": rf"\frac{{{k}}}{{2}}"}
                for k in range(41, 101, 2)
            ]
        ),
        "jsonl": write([{"prompt": f"Say {word} backwards.", "answer": word[::-1]} for word in _WORDS]),
    }


_WORDS = [f"{a}{b}{c}" for a in "bdfg" for b in "aeo" for c in "lmnp"]
