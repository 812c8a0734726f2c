"""How a contender is measured in turns: the parent says how many rounds, the contender runs them and reports each.

A contender is a process of its own. It waits for a line on standard input, ``go N`` or ``end``, runs N rounds, and writes
one JSON line on its real standard output; whatever its libraries print goes to standard error. While one contender
runs, the other sleeps in ``readline``, so both are measured in alternating blocks on the same machine in the same minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from triloop.bench.measuring import Others

SOURCE = Path(__file__).resolve().parents[1] / "src"
"""Where a contender of another environment finds what both sides share."""


class Turns:
    """The contender's end."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.over = False
        self._rounds: list[dict[str, float]] = []
        self._wanted = 0
        self._others = Others()
        self._since = self._cpu = 0.0

    def ready(self, facts: Mapping[str, Any]) -> None:
        """Everything is loaded: say so and wait for the first turn."""
        self._say({"ready": dict(facts)})
        self._wait()

    def round_done(self, figures: Mapping[str, float]) -> None:
        """One round is over; its wall time runs from the end of the one before. May wait for the next turn."""
        clocks = {"seconds": time.perf_counter() - self._since, "cpu_seconds": time.process_time() - self._cpu}
        self._rounds.append({**figures, **clocks})
        if len(self._rounds) == self._wanted:
            self._say({"rounds": self._rounds, "other_cores": self._others.cores()})
            self._wait()
        self._since, self._cpu = time.perf_counter(), time.process_time()

    def finish(self, facts: Mapping[str, Any]) -> None:
        self._say({"finished": dict(facts)})

    def _wait(self) -> None:
        words = sys.stdin.readline().split()
        self.over = words[:1] != ["go"]
        self._rounds, self._wanted = [], 0 if self.over else int(words[1])
        self._others.restart()
        self._since, self._cpu = time.perf_counter(), time.process_time()

    def _say(self, message: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


class Contender:
    """The parent's end: starts the process and takes turns with it."""

    def __init__(self, name: str, command: Sequence[str], threads: int, log: Path) -> None:
        self.name, self.log = name, log
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
        env |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        with log.open("w") as err:
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, env=env, text=True
            )
        self.facts: dict[str, Any] = self._read("ready")

    def go(self, rounds: int) -> dict[str, Any]:
        """Let it run; the rounds' figures and the cores that others used meanwhile."""
        self._write(f"go {rounds}")
        answer = self._read()
        assert len(answer["rounds"]) == rounds, f"{self.name} ran {len(answer['rounds'])} rounds of {rounds}"
        return answer

    def end(self) -> dict[str, Any]:
        self._write("end")
        facts = self._read("finished")
        self._process.wait(timeout=120)
        return facts

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """One line there, one line back: for a contender that takes no turns."""
        self._write(json.dumps(question))
        return self._read()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def __enter__(self) -> Contender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self, key: str | None = None) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{self.name} died; the end of what it said:\n{tail}")
        message = json.loads(line)
        return message if key is None else message[key]
