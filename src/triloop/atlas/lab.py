"""What the rows on mixed feedback share: a fresh copy of the base, samples of it, steps on examples, a held-out score.

No rollout, trainer or evaluator of its own: these are the library's, put together in a line or two each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from triloop.envs.attributes import Attributes
from triloop.envs.base import Env, Split
from triloop.feedback.simulate import Annotator
from triloop.learn.choices import OptimConfig
from triloop.learn.examples import Demonstration, Example
from triloop.learn.mixture import Mixture, resolve_mixture
from triloop.learn.objective_config import MixtureConfig, ObjectiveConfig
from triloop.loops.assemble import continuation
from triloop.loops.build import policy_path
from triloop.loops.evaluate import Evaluation, evaluate
from triloop.loops.stages import StepsConfig
from triloop.loops.study import fit
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Prompt
from triloop.sources.annotators import Attributed, Person

__all__ = ["SAMPLING", "demonstrations", "fresh", "held_out", "learn", "person", "prompts", "sample"]

SAMPLING = Sampling(max_tokens=36, slots=512)
"""Of the attribute world."""


def fresh(base: str = "base:attributes", **settings: Any) -> NativePolicy:
    """A policy of one's own on a base's weights."""
    return NativePolicy.load(policy_path(base), **{"optim": OptimConfig(lr=5e-4), **settings})


def prompts(
    env: Env, n: int, *, seed: int, start: int = 0, split: Split = "train", level: int | None = None
) -> list[Prompt]:
    """``n`` different problems of a split."""
    return list({p.id: p for p in env.prompts(split, n, seed=seed, start=start, level=level)}.values())


def sample(
    policy: NativePolicy, asked: Sequence[Prompt], n: int, *, seed: int, round: int = 1, sampling: Sampling = SAMPLING
) -> list[list[Completion]]:
    """``n`` completions of each prompt, by prompt."""
    flat = policy.sample(asked, n, sampling, Tag(seed=seed, round=round, purpose="collect"))
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def learn(
    policy: NativePolicy,
    examples: Sequence[Example],
    objective: str | ObjectiveConfig | MixtureConfig | Mixture,
    *,
    steps: int,
    batch: int = 64,
    lr: float = 3e-4,
    seed: int = 0,
    round: int = 0,
    reference: NativePolicy | None = None,
) -> dict[str, float]:
    """Optimiser steps on examples, from a fresh schedule; the optimiser goes on. See ``loops.study.fit``."""
    mixture = objective if isinstance(objective, Mixture) else resolve_mixture(objective)
    how = StepsConfig(steps=steps, batch=batch, lr=lr)
    return fit(policy, examples, mixture, how, seed=seed, round=round, reference=reference)


def held_out(
    policy: NativePolicy,
    env: Env,
    n: int,
    *,
    seed: int = 0,
    sampling: Sampling = SAMPLING,
    asked: Callable[[Env], Env] = lambda env: env,
) -> Evaluation:
    """Gold on held-out problems, one sample each; ``asked`` may wrap the task, to put words before each request."""
    return evaluate(policy, asked(env), n, sampling, Tag(seed=seed, round=0, purpose="eval"))


def demonstrations(
    policy: NativePolicy, written: Sequence[tuple[Prompt, str]], *, weight: float = 1.0
) -> list[Demonstration]:
    """Texts to imitate."""
    return [
        Demonstration(prompt_tokens=policy.encode(p), tokens=continuation(policy, p, text), weight=weight)
        for p, text in written
    ]


def person(env: Attributed, *, seed: int = 0, **traits: Any) -> Person:
    """A simulated person who wants what the attribute world's gold wants, but for ``traits`` (see ``Annotator``)."""
    weights = dict(env.weights) if isinstance(env, Attributes) else {"utility": 1.0}
    return Person(env, Annotator(**{"name": f"person-{seed}", "weights": weights, "seed": seed, **traits}))
