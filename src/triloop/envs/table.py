"""The one table from names to environments: a stored run re-creates its task from a name and options."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from triloop.envs.arithmetic import Arithmetic
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_judging import AttributeJudging
from triloop.envs.countdown import Countdown
from triloop.envs.domains import Domains
from triloop.envs.gsm8k import Gsm8k
from triloop.envs.gym import Gym
from triloop.envs.jsonl import Jsonl
from triloop.envs.math import Math
from triloop.envs.scoring import RowEnv
from triloop.envs.sort import Sort
from triloop.envs.story import StoryRules
from triloop.errors import ConfigError

__all__ = ["ENVS", "make"]

ENVS: Mapping[str, Callable[..., RowEnv]] = MappingProxyType(
    {
        "arithmetic": Arithmetic,
        "attributes": Attributes,
        "attributes-ask": partial(AttributeJudging, "ask"),
        "attributes-compare": partial(AttributeJudging, "compare"),
        "countdown": Countdown,
        "gsm8k": Gsm8k,
        "jsonl": Jsonl,
        "math": Math,
        "sort": Sort,
        "story-hack": partial(StoryRules, careless=True),
        "story-rules": StoryRules,
    }
)
"""Besides these there is ``gym:TASK`` for every task of reasoning-gym."""


def make(name: str, **options: Any) -> RowEnv:
    """The environment of this name. A list among the options stands for a tuple, as it does in a YAML file.

    Names joined by ``+`` are several tasks as one (``envs.domains``), each with its own defaults.
    ConfigError for an unknown name (listing all, and the nearest) and for options that it does not take.
    """
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if name.startswith("gym:"):
        return Gym(name.removeprefix("gym:"), **options)
    if "+" in name:
        if plain:
            raise ConfigError(f"{name}: several tasks take no options; got {', '.join(sorted(plain))}")
        return Domains([make(part) for part in name.split("+")])
    if name not in ENVS:
        near = difflib.get_close_matches(name, ENVS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"unknown environment {name!r}: {hint}choose one of {', '.join(ENVS)}, gym:TASK, or join some by +"
        )
    allowed = [p for p in inspect.signature(ENVS[name]).parameters if not (p == "careless" and name == "story-hack")]
    strange = sorted(set(plain) - set(allowed))
    if strange:
        raise ConfigError(f"{name}: unknown option {', '.join(strange)}; it takes {', '.join(allowed) or 'none'}")
    return ENVS[name](**plain)
