"""What ``triloop run`` can be given: a recipe's name, a configuration file, a run's folder, or a function of one's own."""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triloop.errors import ConfigError, RunFolderError, UsageError
from triloop.loops.config import RunConfig, from_mapping, to_mapping

__all__ = ["fresh_folder", "load"]


def load(target: str | None, settings: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration that ``target`` names. Raises UsageError or ConfigError, saying what can be given.

    ``settings`` are those that will replace its own: a recipe may have others ready for a policy of one's own.
    """
    from triloop.recipes.table import RECIPES

    if target is None:
        return RunConfig()
    if target in RECIPES:
        recipe, given = RECIPES[target], settings or {}
        own = recipe.own is not None and not str(given.get("policy", "base:")).startswith("base:")
        return recipe.own() if own and recipe.own is not None and "env.name" not in given else recipe.config()
    path = Path(target)
    if path.is_dir() and (path / "config.yaml").is_file():
        return _file(path / "config.yaml")
    if path.suffix in (".yaml", ".yml"):
        return _file(path)
    file, colon, function = target.rpartition(":")
    if colon and file.endswith(".py"):
        return _function(Path(file), function)
    near = difflib.get_close_matches(target, RECIPES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(
        f"unknown recipe {target!r}: {hint}choose one of {', '.join(RECIPES)}; or give a configuration FILE.yaml, "
        "or FILE.py:FUNCTION that returns a RunConfig"
    )


def fresh_folder(recipe: str) -> Path:
    """``runs/RECIPE-DATE-TIME``, with a number where that is taken."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", recipe).strip("-.") or "run"
    path = first = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    again = 2
    while path.exists():
        path, again = first.with_name(f"{first.name}-{again}"), again + 1
    return path


def _file(path: Path) -> RunConfig:
    """A YAML file; what it leaves out is taken from the recipe that it names, or from the defaults."""
    import yaml

    from triloop.recipes.table import RECIPES

    try:
        values = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give a configuration file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds {type(values).__name__}; expected a mapping of settings, such as 'rounds: 50'")
    recipe = str(values.get("recipe", ""))
    base = RECIPES[recipe].config() if recipe in RECIPES else RunConfig()
    try:
        config: RunConfig = from_mapping(RunConfig, _merged(to_mapping(base), values))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def _merged(base: Mapping[str, Any], over: Mapping[Any, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(str(key))
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merged(inner, value)
        merged[str(key)] = value
    return merged


def _function(path: Path, name: str) -> RunConfig:
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give FILE.py:FUNCTION, where FUNCTION returns a RunConfig")
    spec = importlib.util.spec_from_file_location(f"_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything
        raise UsageError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    made = vars(module).get(name)
    if not callable(made):
        raise UsageError(f"{path} has no function {name!r}; it must return a RunConfig")
    try:
        config = made()
    except Exception as error:  # a user's function may raise anything
        if isinstance(error, RunFolderError | ConfigError):
            raise
        raise UsageError(f"{path}:{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(config, RunConfig):
        raise UsageError(f"{path}:{name} returned {type(config).__name__}; expected a triloop.loops.config.RunConfig")
    return config
