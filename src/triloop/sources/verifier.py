"""A user's own verifier, ``my.py:check``, in a process of its own.

    def check(prompt: str, completion: str) -> float | int | bool | Feedback

+1 (or True) is right, -1 (or False) is wrong, 0 abstains; a number between them is a partial score. A verifier that names
a parameter ``answer``, ``meta`` or ``turns`` is given the prompt's; a third positional parameter of any other name is given
the answer. Whatever goes wrong in it (an exception, NaN, a wrong type, a crash, no end) fails that one sample with a
reason; a failure is never a score, and the other samples are judged all the same.

The process is a boundary against accidents, not against malice: it is the user's own code that runs there, and a
completion that it executes needs a sandbox besides. What the verifier starts in a new process group is not ended with it.
"""

from __future__ import annotations

import json
import math
import os
import select
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from triloop.errors import JudgeError, VerifierError
from triloop.records import Feedback, Prompt
from triloop.sources.verifier_worker import encode

__all__ = ["TIMED_OUT", "UserVerifier", "check_failures"]

TIMED_OUT = "timed out"
"""How the failure of a call that did not end begins."""

_BIGGEST_REPLY = 1 << 20
_TAIL = 2000
_TICK = 0.25
_BOOT = (
    "import sys; sys.path.append(sys.argv[1]); from triloop.sources.verifier_worker import main; "
    "sys.exit(main(sys.argv[2:]))"
)


class UserVerifier:
    """A verifier ``FILE.py:FUNCTION`` as a judge; a context manager that ends its process.

    Loading happens at once: a missing file, a syntax error, an absent function or one that cannot take
    (prompt, completion) raises ``VerifierError``. ``timeout`` and ``load_timeout`` are seconds of wall clock, per call and
    per import of the file. A batch with 3 timeouts in a row, or 8 in all, is given up: what is left of it fails unjudged.
    """

    def __init__(self, spec: str, *, timeout: float = 10.0, load_timeout: float = 120.0) -> None:
        if not timeout > 0 or not load_timeout > 0:
            raise VerifierError(f"a verifier's time limits are seconds above 0; got {timeout} and {load_timeout}")
        self._path, self._function = _parse(spec)
        self._timeout, self._load_timeout = timeout, load_timeout
        self.name = f"verifier:{self._path.name}:{self._function}"
        self._calls = 0
        self._worker = self._start()

    def __enter__(self) -> UserVerifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process. A later ``judge`` starts a new one."""
        self._end()

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One judgement per (prompt, text), in order. Never raises for what the verifier does."""
        results: list[Feedback] = []
        in_row = in_all = 0
        for prompt, text in zip(prompts, texts, strict=True):
            if in_row >= 3 or in_all >= 8:
                results.append(self._failed(f"not judged: {in_all} calls of this batch {TIMED_OUT}"))
                continue
            results.append(self._judge_one(prompt, text))
            late = (results[-1].failure or "").startswith(TIMED_OUT)
            in_all += late
            in_row = in_row + 1 if late else 0
        return results

    def _judge_one(self, prompt: Prompt, text: str) -> Feedback:
        self._calls += 1
        request = _request(self._calls, prompt, text)
        try:
            if not self._worker.alive():
                self._worker = self._start()
            reply = self._worker.ask(request, self._timeout)
        except VerifierError as error:  # the file was good at the start: it changed, or the machine is in trouble
            return self._failed(f"could not be started again: {error}")
        except _Gone as gone:
            self.close()
            return self._failed(str(gone))
        if reply.get("id") != self._calls:
            self.close()  # answers are out of step: nothing this process says can be attributed any more
            return self._failed("answered out of turn; it was started afresh")
        return _feedback(reply, self.name)

    def _failed(self, why: str) -> Feedback:
        return Feedback(value=None, failure=why, source=self.name)

    def _start(self) -> _Worker:
        """A fresh process with the verifier loaded, or VerifierError."""
        worker = _Worker(self._path, self._function)
        try:
            reply = worker.receive(self._load_timeout)
        except _Gone as gone:
            worker.end()
            raise VerifierError(f"cannot load the verifier {self._path}:{self._function}: {gone}") from None
        if "load_error" in reply:
            worker.end()
            raise VerifierError(
                f"cannot load the verifier {self._path}:{self._function}: {reply['load_error']}; "
                f"expected a file with a function {self._function}(prompt, completion)"
            )
        # runs at ``close``, or when nobody closed the verifier, with the object or the interpreter
        self._end = weakref.finalize(self, worker.end)
        return worker


def check_failures(feedback: Sequence[Feedback], *, max_failure_share: float = 0.5) -> None:
    """Raise ``JudgeError`` when more than this share of a batch failed: the judge is broken, not the samples."""
    failures = [f for f in feedback if f.failed]
    if len(failures) > max_failure_share * len(feedback):
        first = failures[0]
        raise JudgeError(
            f"{len(failures)} of {len(feedback)} judgements of {first.source or 'the judge'} failed (allowed: "
            f"{max_failure_share:.0%}); the first: {first.failure}. Nothing was learnt from this batch; repair the "
            f"judge and resume the run"
        )


class _Gone(Exception):
    """The child died, hung or spoke nonsense; the message is the sample's failure."""


class _Worker:
    """One child process and the three pipes to it: requests, replies, and whatever it prints."""

    def __init__(self, path: Path, function: str) -> None:
        request_in, self._requests = os.pipe()
        self._replies, reply_out = os.pipe()
        self._printed, printed_out = os.pipe()
        root = str(Path(__file__).resolve().parents[2])
        argv = [root, str(os.getpid()), str(path), function, str(request_in), str(reply_out)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, *argv],
            stdin=subprocess.DEVNULL,
            stdout=printed_out,
            stderr=printed_out,
            pass_fds=(request_in, reply_out),
            start_new_session=True,  # a Ctrl-C in the terminal is the parent's business
            env={**os.environ, "PYTHONHASHSEED": "0"},  # a verifier that walks a set repeats itself after a resume
        )
        for descriptor in (request_in, reply_out, printed_out):
            os.close(descriptor)
        os.set_blocking(self._requests, False)
        os.set_blocking(self._printed, False)
        self._buffer = b""
        self._tail = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._replies, selectors.EVENT_READ)
        self._selector.register(self._printed, selectors.EVENT_READ)
        self._open = True

    def alive(self) -> bool:
        return self._open and self._process.poll() is None

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Send one request and wait for its reply; raises _Gone."""
        deadline = time.monotonic() + timeout
        self._send(request, timeout, deadline)
        return self.receive(timeout, deadline)

    def receive(self, timeout: float, deadline: float | None = None) -> dict[str, Any]:
        """The next frame. What the child prints meanwhile is drained, so that it never blocks on it."""
        deadline = time.monotonic() + timeout if deadline is None else deadline
        while (frame := self._frame()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _Gone(f"{TIMED_OUT} after {timeout:g} s")
            ready = self._selector.select(min(left, _TICK))
            if not ready and self._process.poll() is not None:
                raise _Gone(self._epitaph())  # dead, though a process it started holds its pipes open
            for key, _ in ready:
                if key.fd == self._printed:
                    self._drain()
                    continue
                part = os.read(self._replies, 1 << 16)
                if not part:
                    raise _Gone(self._epitaph())
                self._buffer += part
        return frame

    def end(self) -> None:
        """Kill the process and its group, and close the pipes. Safe to call twice."""
        if not self._open:
            return
        self._open = False
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()
        self._selector.close()
        for descriptor in (self._requests, self._replies, self._printed):
            os.close(descriptor)

    def _send(self, request: Mapping[str, Any], timeout: float, deadline: float) -> None:
        """Write a frame to a child that may not be reading."""
        data = memoryview(encode(request))
        while data:
            try:
                data = data[os.write(self._requests, data) :]
            except BlockingIOError:
                if not select.select([], [self._requests], [], max(0.0, deadline - time.monotonic()))[1]:
                    raise _Gone(f"{TIMED_OUT} after {timeout:g} s without reading its request") from None
            except BrokenPipeError:
                raise _Gone(self._epitaph()) from None

    def _frame(self) -> dict[str, Any] | None:
        if len(self._buffer) < 4:
            return None
        size = int.from_bytes(self._buffer[:4], "big")
        if size > _BIGGEST_REPLY:
            raise _Gone("wrote garbage on the reply pipe")
        if len(self._buffer) < 4 + size:
            return None
        body, self._buffer = self._buffer[4 : 4 + size], self._buffer[4 + size :]
        try:
            frame = json.loads(body)
        except ValueError:
            frame = None
        if not isinstance(frame, dict):
            raise _Gone("wrote garbage on the reply pipe")
        return frame

    def _drain(self) -> None:
        try:
            part = os.read(self._printed, 1 << 16)
        except BlockingIOError:
            return
        if not part:
            self._selector.unregister(self._printed)
        self._tail = (self._tail + part)[-_TAIL:]

    def _epitaph(self) -> str:
        """How the child ended, with the last line that it printed."""
        try:
            code = self._process.wait(1.0)
            how = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with code {code}"
        except subprocess.TimeoutExpired:
            how = "it closed the reply pipe"
        self._drain()
        lines = "".join(c for c in self._tail.decode("utf-8", "replace") if c.isprintable() or c == "\n").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        return how + (f"; last printed: {lines[-1][:200]}" if lines else "")


def _parse(spec: str) -> tuple[Path, str]:
    file, colon, function = spec.rpartition(":")
    if not colon or not file.endswith(".py") or not function.isidentifier():
        raise VerifierError(f"a verifier is named FILE.py:FUNCTION, such as my.py:check; got {spec!r}")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise VerifierError(
            f"no verifier file {path}; expected a Python file that defines {function}(prompt, completion)"
        )
    return path, function


def _request(number: int, prompt: Prompt, text: str) -> dict[str, Any]:
    shown = "\n".join(f"{t.role}: {t.text}" for t in prompt.turns) if prompt.turns else prompt.text
    turns = [{"role": t.role, "text": t.text} for t in prompt.turns]
    return {
        "id": number,
        "prompt": shown,
        "completion": text,
        "answer": prompt.answer,
        "meta": dict(prompt.meta),
        "turns": turns,
    }


def _feedback(reply: Mapping[str, Any], source: str) -> Feedback:
    """What a reply means. The child shares its process with the verifier, so nothing in it is trusted."""
    given = reply.get("feedback", reply)
    if not isinstance(given, dict):
        return Feedback(value=None, failure="wrote garbage on the reply pipe", source=source)
    value, failure = given.get("value"), given.get("failure")
    if "wrong_type" in given:
        failure = (
            f"returned {given['wrong_type']} ({given.get('shown')}); expected a number in [-1, 1], a bool or Feedback"
        )
    elif failure is None and value is None:
        failure = "returned Feedback without a value and without a failure"
    elif failure is None and not _number(value, -1.0, 1.0):
        failure = f"returned {value}; expected a number in [-1, 1]: +1 right, -1 wrong, 0 cannot tell"
    elif failure is None and not (
        _number(given.get("confidence", 1.0), 0.0, 1.0)
        and _number(given.get("cost", 0.0), 0.0, math.inf)
        and all(_number(part, -math.inf, math.inf) for part in given.get("breakdown", {}).values())
    ):
        failure = "returned Feedback whose confidence, cost or breakdown is no finite number in its range"
    if failure is not None:
        return Feedback(value=None, failure=str(failure), reason=str(given.get("reason") or ""), source=source)
    assert value is not None
    kind = "ternary" if value in (-1.0, 0.0, 1.0) else "scalar"
    return Feedback(
        value=float(value),
        reason=str(given.get("reason") or ""),
        source=source,
        kind=str(given.get("kind") or kind),
        confidence=float(given.get("confidence", 1.0)),
        cost=float(given.get("cost", 0.0)),
        breakdown=dict(given.get("breakdown", {})),
    )


def _number(value: object, low: float, high: float) -> bool:
    """A finite number within [low, high]; NaN is in no range, and infinity only bounds one."""
    return isinstance(value, int | float) and math.isfinite(value) and low <= value <= high
