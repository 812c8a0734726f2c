"""MATH: competition problems; the final answer, in LaTeX, is compared with the reference by math-verify (extra ``math``).

Rows have ``problem``, ``answer`` and ``level`` (``Level 3``). Hendrycks et al. 2021, arXiv:2103.03874. An answer that is
the reference letter for letter is accepted without math-verify; every other question goes to its own process, which is
killed and replaced when it takes too long.

Only a marked answer counts, and an expression copied from the problem does not: math-verify finds "Simplify
$\\sqrt{242}$" equal to $11\\sqrt{2}$, and would pay for the echo of 25 of 500 problems.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import selectors
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, final

from triloop.envs.charset import ABSTAIN
from triloop.envs.dataset import DatasetEnv, problem_id
from triloop.envs.numeric import boxed, final_answer, read_number
from triloop.envs.reading import Row, read_jsonl, text_field
from triloop.errors import ConfigError
from triloop.records import Feedback, Prompt, Turn

__all__ = ["Math"]

_LONGEST = 20_000
"""Characters; of a longer text the end is read, where the answer stands."""
_START_SECONDS = 60.0


@final
class Math(DatasetEnv):
    """Competition problems, level 1 to 5."""

    name = "math"
    stop: tuple[str, ...] = ("\nProblem:",)

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        eval_path: str | Path | None = None,
        chat: bool = False,
        max_tokens: int = 768,
        timeout: float = 5.0,
    ) -> None:
        """As ``Gsm8k``; ``timeout`` in seconds is for one comparison. ConfigError when math-verify is not installed."""
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("math: math-verify is not installed; install it with: pip install 'triloop[math]'")
        if timeout <= 0:
            raise ConfigError(f"math: timeout is {timeout}; expected a number of seconds above 0")
        self.chat, self.max_tokens = chat, max_tokens
        self._grader = _Grader(timeout)
        super().__init__(read_jsonl(path) if path else None, read_jsonl(eval_path) if eval_path else None)

    def read(self, row: Row) -> Prompt:
        problem = text_field(row, "problem", "question", "prompt")
        answer = text_field(row, "answer", "final", "ground_truth")
        level = re.search(r"[1-9]", str(row.data.get("level", "")))
        return Prompt(
            id=problem_id(self.name, problem),
            text=f"Problem: {problem}\nSolution:",
            env=self.name,
            answer=(boxed(answer) or answer).strip(),
            level=int(level[0]) if level else 0,
            turns=(Turn(role="user", text=f"{problem}\nPut the final answer in \\boxed{{}}."),) if self.chat else (),
        )

    def verify(self, prompt: Prompt, text: str) -> Feedback:
        source, answer = f"env:{self.name}", str(prompt.answer)
        text = text[-_LONGEST:]
        found = final_answer(text)
        if text.strip() == ABSTAIN or (found is not None and found.text == ABSTAIN):
            return Feedback(value=0, reason="abstained", source=source)
        if found is None or found.by == "last number":
            reason = "no answer is marked: expected \\boxed{...} or 'the answer is ...'" if text.strip() else "empty"
            return Feedback(value=-1, reason=reason, source=source)
        given = _plain(found.text)
        if given == _plain(answer):
            return Feedback(value=1, reason="right, letter for letter", source=source)
        if read_number(found.text) is None and given and given in _plain(prompt.text):
            return Feedback(value=-1, reason=f"{found.text[:60]!r} is copied from the problem", source=source)
        reply = self._grader.ask(answer, f"\\boxed{{{found.text}}}" if found.by == "boxed" else found.text)
        if isinstance(reply, bool):
            reason = "right, by math-verify" if reply else f"{found.text[:60]!r} is not {answer} by math-verify"
            return Feedback(value=1 if reply else -1, reason=reason, source=source)
        if reply is None:
            return Feedback(value=-1, reason=f"math-verify cannot read {found.text[:60]!r}", source=source)
        return Feedback(value=None, source=source, failure=f"math-verify: {reply}")

    def right_answer(self, prompt: Prompt) -> str:
        return f" It follows that the answer is $\\boxed{{{prompt.answer}}}$."

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        right = str(prompt.answer)
        return [
            "",
            prompt.text,
            f"It is ${right}$.",
            "\\boxed{}",
            f"\\boxed{{{right} + 7919}}",
            "It is \\boxed{-987654321}.",
        ]


def _plain(latex: str) -> str:
    """LaTeX without what never changes its meaning: white space, dollar signs, size and style of fractions."""
    return (
        re.sub(r"\s|\$|\\left|\\right|\\,|\\!", "", latex).replace("dfrac", "frac").replace("tfrac", "frac").rstrip(".")
    )


class _Grader:
    """math-verify in a child process, started at the first question and replaced whenever it had to be killed."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def ask(self, reference: str, text: str) -> bool | str | None:
        """Whether both are equal; None when no answer can be read in the text; the reason, as text, of a failure."""
        with self._lock:
            try:
                child = self._running()
                assert child.stdin is not None
                child.stdin.write(json.dumps([reference, text]) + "\n")
                child.stdin.flush()
                reply = self._reply(child, self._timeout)
            except (OSError, EOFError, ValueError) as error:
                self.close()
                return f"its process ended ({type(error).__name__}: {error})"
        return str(reply["error"]) if isinstance(reply, dict) else reply

    def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            _end(self._child)
            self._child = None

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            # -P: else this folder comes first on the child's path, and our math.py would hide Python's own.
            script = str(Path(__file__).with_name("math_child.py"))
            self._child = subprocess.Popen(
                [sys.executable, "-P", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
            weakref.finalize(self, _end, self._child)
            self._reply(self._child, _START_SECONDS)
        return self._child

    def _reply(self, child: subprocess.Popen[str], seconds: float) -> Any:
        assert child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise EOFError(f"no reply within {seconds:g} s")
        line = child.stdout.readline()
        if not line:
            raise EOFError("it stopped")
        return json.loads(line)


def _end(child: subprocess.Popen[str]) -> None:
    """Kill and reap; doing it twice does no harm."""
    if child.poll() is None:
        child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
