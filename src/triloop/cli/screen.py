"""Where the command line speaks: answers on standard output, everything else on standard error."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from triloop.errors import TriloopError

__all__ = ["Screen", "coloured", "json_flag", "jsonable", "visible"]


@dataclass
class Screen:
    """One command's output. With ``json`` exactly one object is printed on standard output, and nothing else there."""

    json: bool = False
    folder: Path | None = None
    """The run at hand: where the traceback of a defect is kept."""
    out: TextIO = field(default_factory=lambda: sys.stdout)
    answered: bool = False

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """With ``json``, whatever prints by accident (a recipe, a library) lands on standard error."""
        if not self.json:
            yield
            return
        with contextlib.redirect_stdout(sys.stderr):
            yield

    def say(self, text: str = "") -> None:
        """A line for people."""
        if not self.json:
            print(visible(text), file=self.out, flush=True)

    def note(self, text: str) -> None:
        """A remark on standard error, with ``--json`` too."""
        print(visible(text), file=sys.stderr, flush=True)

    def answer(self, value: Mapping[str, Any]) -> None:
        """The command's one JSON object."""
        if self.json and not self.answered:
            self.answered = True
            text = json.dumps(jsonable(value), ensure_ascii=False)
            # half a character, which no file can hold, is written as JSON writes it
            print(text.encode("utf-8", "backslashreplace").decode(), file=self.out, flush=True)

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table for people; plain columns where the output is no terminal."""
        if self.json:
            return
        if coloured(self.out):
            from rich import box
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text

            shown = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
            for name in head:
                shown.add_column(name)
            for row in rows:
                shown.add_row(*(Text(visible(cell)) for cell in row))
            Console(file=self.out).print(shown)
            return
        widths = [max([len(h), *(len(r[i]) for r in rows)]) for i, h in enumerate(head)]
        for line in ([title] if title else []) + [_columns(r, widths) for r in (head, *rows)]:
            self.say(line)

    def fail(self, error: TriloopError, **more: Any) -> int:
        """Say what went wrong and return the exit code that belongs to it."""
        self._red("error", str(error))
        told = {"type": type(error).__name__, "message": str(error)}
        self.answer({**more, "error": told, "exit_code": error.exit_code})
        return error.exit_code

    def defect(self, error: Exception) -> int:
        """An error that nobody foresaw: one line here, the traceback in a file."""
        text = "".join(traceback.format_exception(error))
        path = self._keep(text)
        where = f"the traceback is in {path}" if path else f"the traceback could not be kept:\n{text}"
        message = f"unexpected {type(error).__name__}: {error}; this is a defect of Triloop, please report it: {where}"
        self._red("error", message)
        self.answer({"error": {"type": type(error).__name__, "message": message}, "exit_code": 1})
        return 1

    def _red(self, word: str, text: str) -> None:
        text = visible(text)
        if coloured(sys.stderr):
            from rich.console import Console
            from rich.text import Text

            Console(stderr=True, soft_wrap=True).print(Text.assemble((f"{word}: ", "bold red"), text))
        else:
            print(f"{word}: {text}", file=sys.stderr, flush=True)

    def _keep(self, text: str) -> Path | None:
        name = f"triloop-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        folders = [Path(tempfile.gettempdir())]
        if self.folder is not None and self.folder.is_dir():
            folders.insert(0, self.folder)
        for folder in folders:
            with contextlib.suppress(OSError):
                (folder / name).write_text(text, encoding="utf-8")
                return folder / name
        return None


def json_flag(parser: argparse.ArgumentParser) -> None:
    """The flag that every command has."""
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else, on standard output")


def visible(text: str) -> str:
    """What a model, a file or a verifier wrote must not steer the terminal: signs that only do so are shown as \ufffd."""
    return "".join(c if c.isprintable() or c in "\n\t\u00a0" else "\ufffd" for c in text)


def coloured(stream: TextIO) -> bool:
    """Whether this stream is a terminal that wants colour (NO_COLOR, TERM=dumb)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def jsonable(value: Any) -> Any:
    """The same value as strict JSON holds it: what is not finite becomes null, a path its text."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _columns(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
