"""Counter-metrics: what must not get worse while pay rises. Shares in [0, 1], 1 is best; nobody learns from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from triloop import stats
from triloop.envs.base import Env
from triloop.records import Episode, Feedback
from triloop.sources.users import Persona

__all__ = ["by_prompt", "changed", "counted", "known_counters", "mean_counters"]

_PLAIN = "plain"
"""Whether a text does without charming words, of which users approve for nothing."""


def known_counters(env: Env) -> set[str]:
    """Names of what can be counted on this task: the parts of its gold's judgements, and ``plain``."""
    prompts = env.prompts("canary", 1, seed=0)
    gold = env.gold(prompts, [env.right_answer(p) or "" for p in prompts])
    return {_PLAIN, *(name for f in gold for name in f.breakdown)}


def counted(names: Sequence[str], gold: Sequence[Feedback], texts: Sequence[str]) -> dict[str, list[float | None]]:
    """Each counter-metric of each text, None where gold failed to measure it."""
    charms = set(Persona().charms)
    plain = [float(charms.isdisjoint(text.split())) for text in texts]
    return {name: plain if name == _PLAIN else [f.breakdown.get(name) for f in gold] for name in names}  # type: ignore[misc]


def mean_counters(names: Sequence[str], env: Env, episodes: Sequence[Episode]) -> dict[str, float]:
    """``counter_NAME`` of a round's samples, as the guards read it; a name that nothing was measured of is left out."""
    if not names or not episodes:
        return {}
    texts = [e.completion.text for e in episodes]
    found = counted(names, env.gold([e.prompt for e in episodes], texts), texts)
    seen = {name: [v for v in values if v is not None] for name, values in found.items()}
    return {f"counter_{name}": sum(values) / len(values) for name, values in seen.items() if values}


def by_prompt(names: Sequence[str], episodes: Sequence[Episode]) -> dict[str, dict[str, float]]:
    """Each counter-metric by prompt, of samples that gold has judged already."""
    found = counted(names, [e.feedback[0] for e in episodes], [e.completion.text for e in episodes])
    ids = [e.prompt.id for e in episodes]
    return {name: {id: v for id, v in zip(ids, values, strict=True) if v is not None} for name, values in found.items()}


def changed(before: Mapping[str, float], now: Mapping[str, float], *, seed: int) -> stats.Interval:
    """The change on the prompts that both have, with its 95 % interval."""
    both = [prompt for prompt in before if prompt in now]
    return stats.paired_difference([now[p] for p in both], [before[p] for p in both], seed=seed)
