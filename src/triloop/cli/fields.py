"""Every field of ``RunConfig`` is a flag: ``optim.lr`` is ``--optim.lr``, ``group_size`` is ``--group-size``."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import shutil
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from triloop.errors import UsageError
from triloop.loops.config import RunConfig, from_mapping, to_mapping

__all__ = ["ALIASES", "Setting", "apply", "closest", "help_text", "settings", "take"]

ALIASES: Mapping[str, str] = {
    "--env": "env.name",
    "--data": "env.data",
    "--level": "env.level",
    "--algorithm": "algorithm.name",
    "--lr": "optim.lr",
}
"""Short names of the flags that are used most."""

_NOT_FLAGS = ("recipe",)
_SWITCH = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of the configuration."""

    path: str
    hint: Any
    doc: str

    @property
    def flag(self) -> str:
        """As it is written on the command line."""
        return "--" + self.path.replace("_", "-")


def settings(kind: type[Any] = RunConfig, prefix: str = "") -> list[Setting]:
    """All fields, those of components included, in the order in which they are defined."""
    hints, docs = typing.get_type_hints(kind), _docs(kind)
    found: list[Setting] = []
    for f in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[f.name]):
            found += settings(hints[f.name], f"{prefix}{f.name}.")
        elif prefix + f.name not in _NOT_FLAGS:
            found.append(Setting(path=prefix + f.name, hint=hints[f.name], doc=docs.get(f.name, "")))
    return found


def take(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Split off the flags that are settings. Returns values by path, and the words that are none of ours.

    Raises UsageError for a value of the wrong form.
    """
    known = {s.flag: s for s in settings()}
    by_path = {s.path: s for s in known.values()}
    known |= {alias: by_path[path] for alias, path in ALIASES.items()}
    values: dict[str, Any] = {}
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        flag, equals, inline = word.partition("=")
        setting = known.get(flag.replace("_", "-")) if flag.startswith("--") else None
        if setting is None:
            rest.append(word)
        elif equals:
            _put(values, setting, flag, inline)
        elif left and not left[0].startswith("--"):
            _put(values, setting, flag, left.pop(0))
        elif _choices(setting.hint)[0] is bool:
            values[setting.path] = True
        else:
            raise UsageError(f"{flag} needs a value: {_kind(setting.hint)}. {setting.doc}")
    return values, rest


def apply(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The configuration with these settings in place of its own. Raises ConfigError for one out of its bounds."""
    plain = to_mapping(config)
    for path, value in values.items():
        *parents, name = path.split(".")
        place = plain
        for parent in parents:
            place = place[parent]
        place[name] = value
    changed: RunConfig = from_mapping(RunConfig, plain)
    return changed


def closest(word: str, choices: Sequence[str]) -> str:
    """`` Did you mean X?`` for the nearest of ``choices``, or nothing."""
    flag = word.partition("=")[0].replace("_", "-")
    near = difflib.get_close_matches(flag, choices, n=1, cutoff=0.6)
    if not near:  # --lr-floor for --optim.lr-floor: the last part says it
        near = [c for c in choices if c.rpartition(".")[2] == flag.lstrip("-").rpartition(".")[2]][:1]
    return f" Did you mean {near[0]}?" if near else ""


def help_text(config: RunConfig) -> str:
    """Every setting with its value in ``config`` and its meaning, grouped by component."""
    width = max(60, min(110, shutil.get_terminal_size().columns)) - 2
    aliases = {path: alias for alias, path in ALIASES.items()}
    lines: list[str] = []
    group = None
    for s in sorted(settings(), key=lambda s: "." in s.path):
        head = s.path.rpartition(".")[0] or "run"
        if head != group:
            lines += ["", f"{head}:"]
            group = head
        short = f", {aliases[s.path]}" if s.path in aliases else ""
        lines.append(f"  {s.flag}{short} {_kind(s.hint)}  [{_shown(_value(config, s.path))}]")
        lines += textwrap.wrap(s.doc.replace("``", ""), width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:])


def _put(values: dict[str, Any], setting: Setting, flag: str, text: str) -> None:
    """A flag given twice replaces its value, except where it fills a list of words: there it adds one."""
    value = _parsed(setting.hint, text, flag)
    if isinstance(value, tuple) and setting.path in values and str in typing.get_args(setting.hint):
        value = (*values[setting.path], *value)
    values[setting.path] = value


def _parsed(hint: Any, text: str, flag: str) -> Any:
    kind, optional = _choices(hint)
    if optional and text.lower() == "none":
        return None
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        if text not in options:
            raise UsageError(f"{flag} is {text!r}; expected {_kind(hint)}.{closest(text, [str(o) for o in options])}")
        return text
    if typing.get_origin(kind) is tuple:
        parts = [text.replace("\\n", "\n")] if options[0] is str else [p for p in text.split(",") if p]
        return tuple(_parsed(options[0], part, flag) for part in parts)
    try:
        if kind is bool:
            return _SWITCH[text.lower()]
        return text if kind is str else kind(text)
    except (ValueError, KeyError):
        raise UsageError(f"{flag} is {text!r}; expected {_kind(hint)}") from None


def _choices(hint: Any) -> tuple[Any, bool]:
    """The type without ``None``, and whether None is allowed."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        rest = [o for o in typing.get_args(hint) if o is not type(None)]
        return rest[0], len(rest) < len(typing.get_args(hint))
    return hint, False


def _kind(hint: Any) -> str:
    """A type in words: ``a whole number``, ``mixture|frontier``."""
    kind, optional = _choices(hint)
    options = typing.get_args(kind)
    words = {int: "a whole number", float: "a number", bool: "on|off", str: "text"}
    if typing.get_origin(kind) is Literal:
        said = "|".join(map(str, options))
    elif typing.get_origin(kind) is tuple:
        said = "text, may be given again" if options[0] is str else f"{_kind(options[0])}, more with commas"
    else:
        said = words.get(kind, str(kind))
    return f"{said}, or none" if optional else said


def _docs(kind: type[Any]) -> dict[str, str]:
    """The docstring under each field, those that it inherits included."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    found: dict[str, str] = {}
    for base in kind.__bases__:
        found |= _docs(base) if dataclasses.is_dataclass(base) else {}
    if isinstance(body, ast.ClassDef):
        for item, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(item, ast.AnnAssign)
                and isinstance(item.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[item.target.id] = " ".join(str(after.value.value).split())
    return found


def _value(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(repr(v) if isinstance(v, str) else str(v) for v in value) or "none"
    return "none" if value is None else str(value)
