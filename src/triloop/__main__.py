"""``python -m triloop`` is the command ``triloop``."""

from __future__ import annotations

from triloop.cli.main import entry

__all__: list[str] = []

if __name__ == "__main__":
    entry()
