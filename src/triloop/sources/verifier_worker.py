"""The child process that holds a user's verifier: reads a request, calls the function, writes what it returned.

Requests and replies are frames on two pipes of their own (4 bytes of length, big-endian, then JSON), so nothing that the
verifier prints can be mistaken for a judgement. The child judges nothing itself: it describes what came back, and the
parent decides what that means. It ends when the request pipe closes, and on Linux when its parent dies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import os
import reprlib
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from triloop.records import Feedback

__all__ = ["OPTIONAL", "encode", "main", "read_frame", "write_frame"]

OPTIONAL = ("answer", "meta", "turns")
"""What a verifier may ask for by naming it as a parameter, besides prompt and completion."""

_SHOWN = 200
_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Serve one verifier: ``argv`` is parent pid, file, function, request descriptor, reply descriptor."""
    parent, file, function, requests, replies = int(argv[0]), argv[1], argv[2], int(argv[3]), int(argv[4])
    _die_with(parent)
    own = os.getpid()
    try:
        check, wanted = _load(Path(file), function)
    except BaseException as error:  # noqa: BLE001 - a module may do anything at import, sys.exit included
        write_frame(replies, {"load_error": _told(error, file)})
        return 1
    write_frame(replies, {"ready": True})
    while (request := read_frame(requests)) is not None:
        reply = _answer(check, wanted, request, file)
        if os.getpid() != own:
            os._exit(0)  # the verifier forked and its child came back here: one judgement is enough
        write_frame(replies, {"id": request["id"], **reply})
    return 0


def read_frame(descriptor: int) -> dict[str, Any] | None:
    """One frame, or None at the end of the pipe."""
    header = _exactly(descriptor, 4)
    body = _exactly(descriptor, int.from_bytes(header, "big")) if header else None
    return None if body is None else json.loads(body)


def encode(frame: Mapping[str, Any]) -> bytes:
    """A frame's bytes. ASCII only, so that lone surrogates of a broken text survive the way."""
    body = json.dumps(frame, default=str).encode("ascii")
    return len(body).to_bytes(4, "big") + body


def write_frame(descriptor: int, frame: Mapping[str, Any]) -> None:
    """Write one frame whole to a blocking descriptor."""
    data = memoryview(encode(frame))
    while data:
        data = data[os.write(descriptor, data) :]


def _exactly(descriptor: int, count: int) -> bytes | None:
    parts: list[bytes] = []
    while count:
        part = os.read(descriptor, min(count, 1 << 16))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _die_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies; elsewhere the closing pipe has to do."""
    with contextlib.suppress(Exception):  # no libc, no prctl: a hanging verifier then outlives a killed parent
        import ctypes

        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _load(path: Path, function: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The function, and the optional arguments to pass it by position (``answer``) or by name."""
    sys.path.insert(0, str(path.parent))  # its neighbours can be imported, as if it were run as a script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    if function not in vars(module):
        names = sorted(n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__)
        raise LookupError(f"{path.name} has no {function!r}; its functions: {', '.join(names) or 'none'}")
    check = vars(module)[function]
    if not callable(check):
        raise TypeError(f"{function!r} is a {type(check).__name__}, not a function")
    if inspect.iscoroutinefunction(check):
        raise TypeError(f"{function!r} is async; a verifier is a plain function")
    return check, _wanted(check, function)


def _wanted(check: Callable[..., Any], name: str) -> tuple[str, ...]:
    """Which of OPTIONAL to pass; ``"*answer"`` where the third positional parameter has a name of the user's own."""
    try:
        parameters = list(inspect.signature(check).parameters.values())
    except ValueError:  # some builtins tell no signature
        return ()
    kinds = inspect.Parameter
    positional = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    starred = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
    if len(positional) < 2 and not starred:
        raise TypeError(f"{name}{inspect.signature(check)} must take (prompt, completion)")
    rest = positional[2:] + [p for p in parameters if p.kind is kinds.KEYWORD_ONLY]
    wanted = [p.name for p in rest if p.name in OPTIONAL and p.kind is not kinds.POSITIONAL_ONLY]
    unknown = [p for p in rest if p.name not in wanted and p.default is kinds.empty]
    if unknown and unknown[0] is rest[0] and unknown[0].kind is not kinds.KEYWORD_ONLY and "answer" not in wanted:
        wanted.insert(0, "*answer")
        unknown = unknown[1:]
    if unknown:
        raise TypeError(
            f"{name}{inspect.signature(check)} needs {unknown[0].name!r}, which nobody gives; a verifier takes "
            f"(prompt, completion) and, if it names them, {', '.join(OPTIONAL)}"
        )
    if any(p.kind is kinds.VAR_KEYWORD for p in parameters):
        wanted += [o for o in OPTIONAL if o not in wanted and not (o == "answer" and "*answer" in wanted)]
    return tuple(wanted)


def _answer(
    check: Callable[..., Any], wanted: tuple[str, ...], request: Mapping[str, Any], file: str
) -> dict[str, Any]:
    """Call the verifier and describe what it did. Everything it may raise is data here."""
    positional = [request["answer"]] if "*answer" in wanted else []
    named = {name: request[name] for name in wanted if name != "*answer"}
    try:
        return _described(check(request["prompt"], request["completion"], *positional, **named))
    except BaseException as error:  # noqa: BLE001 - sys.exit and KeyboardInterrupt fail this one call as well
        return {"failure": _told(error, file)}


def _described(result: Any) -> dict[str, Any]:
    """JSON that says what came back, without judging it."""
    if isinstance(result, Feedback):
        record = {name: getattr(result, name) for name in ("reason", "kind", "failure")}
        texts = {name: None if text is None else str(text)[:2000] for name, text in record.items()}
        parts = {str(name): float(part) for name, part in result.breakdown.items()}
        value = None if result.value is None else float(result.value)
        numbers = {"confidence": float(result.confidence), "cost": float(result.cost)}
        return {"feedback": {**texts, **numbers, "value": value, "breakdown": parts}}
    if type(result).__name__ in ("bool", "bool_"):  # numpy's own is neither a bool nor a number
        return {"value": 1.0 if result else -1.0}
    if isinstance(result, Real):
        return {"value": float(result)}
    return {"wrong_type": type(result).__name__, "shown": _brief(result)}


def _brief(result: Any) -> str:
    """Its ``repr``, cut on the way: a huge text is not copied whole to show its beginning."""
    cut = reprlib.Repr()
    cut.maxstring = _SHOWN
    return cut.repr(result)[:_SHOWN]


def _told(error: BaseException, file: str) -> str:
    """``ZeroDivisionError: division by zero (my.py line 7)``: the last line of the user's file that was running."""
    try:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except Exception:  # noqa: BLE001 - an exception whose __str__ raises
        what = type(error).__name__
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    if isinstance(error, SyntaxError) and error.lineno is not None:
        lines = [error.lineno]
        what = f"SyntaxError: {error.msg}"
    return what[:_SHOWN] + (f" ({Path(file).name} line {lines[-1]})" if lines else "")
