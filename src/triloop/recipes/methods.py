"""What ``triloop compare`` can set side by side, each made into a run: algorithms, preference objectives, and baselines.

An algorithm is paid for every sample (loop ``outcome_rl`` or ``expert_iteration``). An objective learns from judgements
(loop ``generations``): sample, let the task judge, learn from just that, about once, many times over. All draw the same
prompts in the same order, as many at a time, and stop at the same number of generated tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, get_args

from triloop.envs.attributes import GOOD
from triloop.errors import UsageError
from triloop.learn.choices import AlgorithmConfig, AlgorithmName, OptimConfig, closest
from triloop.learn.objective_config import ObjectiveConfig
from triloop.loops.config import EnvConfig, RunConfig
from triloop.loops.stages import (
    CollectConfig,
    CycleConfig,
    ImitateConfig,
    Kind,
    OpposeConfig,
    PeopleConfig,
    PreferConfig,
    Source,
)
from triloop.policies.sampling import Sampling

__all__ = ["ALGORITHMS", "BASELINES", "OBJECTIVES", "Tuning", "check", "configured", "starting_point", "taught"]

_NO_LIMIT = 1_000_000
"""Rounds: the token budget ends a run, not this."""
_SHORTEST = 4
"""Tokens of a completion, on average over a run, below which a run of generations ends before its budget is spent."""
_BATCH = 64
_TAUGHT = 20_000
"""Demonstrations that the supervised baseline sees at least, several passes over few of them included."""
_MOST_PASSES = 8
_AT_ONCE = 2_048
"""Demonstrations that the teacher writes at a time."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a method is run unless told otherwise."""

    rate: float = 0.5
    """Learning rate as a multiple of the task's own (``starting_point``), constant over the run."""
    kinds: tuple[Kind, ...] = ()
    """What an objective asks the judge for; empty: the teacher's own answers against the policy's."""
    source: Source = "task"
    """Who judges. ``people`` are exact here: they say no more than the task knows, in forms that it does not speak."""
    passes: int = 1
    """Over what was collected, in each generation."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the algorithm or objective, where its own value does not suit many short rounds."""


_PAIR: tuple[Kind, ...] = ("pair",)
_SCALAR: tuple[Kind, ...] = ("scalar",)
_LESS = {"negative_weight": 0.05}
"""Of losses that push tokens down one by one: at their own weight of 1 they destroyed the policy within 60,000 tokens."""

# Rates from a look at the attribute world, whose own is 6e-4: 60,000 tokens, seed 0, 256 samples a round. Beside them
# stands held-out utility afterwards, from 0.19 before. One to seven settings were tried of each, most of those that
# failed at first, and seed 0 is one that compare uses too: good enough to cripple none, no evidence of which is best.
ALGORITHMS: Mapping[str, Tuning] = MappingProxyType(
    {name: Tuning(rate=1.0) for name in get_args(AlgorithmName)}
    # grpo, gspo, dapo 0.98 (half: 0.87), nft 0.97, rloo 0.95
    | {
        "ppo": Tuning(),  # at twice that it drifts off by round 9, and guards stop it
        # As its recipe has it; 0.88.
        "rest_em": Tuning(rate=1.0, settings={"minibatches": 16, "updates_per_round": 2, "positives_per_prompt": 4}),
    }
)
# Where a rating is due, a pair gives one to either side: against a fixed bar all ratings are good soon, and say nothing.
OBJECTIVES: Mapping[str, Tuning] = MappingProxyType(
    {
        "weighted_sft": Tuning(rate=1.0, kinds=_SCALAR),  # 0.96
        "unlikelihood": Tuning(kinds=_SCALAR, settings=_LESS),  # 0.88; of pairs 0.57
        "cringe": Tuning(kinds=_SCALAR, settings=_LESS),  # 0.87; of pairs 0.61
        "kto": Tuning(rate=1.0, kinds=_PAIR),  # 0.98; of scalars 0.93, of ternaries 0.73 at half
        "pmpo": Tuning(rate=1.0, kinds=_PAIR, settings={"beta": 0.1}),  # 0.87; with its own beta 0.5, 0.39 at half
        "pmpo_negative": Tuning(rate=1.0, kinds=_PAIR, settings={"beta": 1.1}),  # 0.29: bounded by its leash
        "span_pg": Tuning(kinds=("spans",), source="people", settings={"beta": 0.05}),  # 0.84
        "dpo": Tuning(rate=1.0, kinds=_PAIR),  # 0.99 (half: 0.94)
        "cdpo": Tuning(rate=1.0, kinds=_PAIR),
        "robust_dpo": Tuning(rate=1.0, kinds=_PAIR),
        "ipo": Tuning(rate=1.0, kinds=_PAIR),  # 0.99 (half: 0.96)
        "simpo": Tuning(kinds=_PAIR),  # 0.93
        "orpo": Tuning(kinds=_PAIR),  # 0.92
        "spin": Tuning(),
        "dpo_davidson": Tuning(rate=1.0, kinds=_PAIR),
        "dpo_rao_kupper": Tuning(rate=1.0, kinds=_PAIR),
        "pairwise_cringe": Tuning(kinds=_PAIR, settings=_LESS),  # 0.79
    }
)
BASELINES: Mapping[str, Tuning] = MappingProxyType(
    {"sft": Tuning(rate=0.8), "rejection": Tuning(kinds=_SCALAR)}  # rejection 0.86
)


def check(method: str) -> None:
    """Raise UsageError for what is no method, naming all that are."""
    known = (*ALGORITHMS, *OBJECTIVES, *BASELINES)
    if method in known:
        return
    why = "trains a reward model, which answers nothing" if method.startswith("reward_") else "is no method"
    raise UsageError(
        f"{method!r} {why}{closest(method, known)}. Algorithms: {', '.join(ALGORITHMS)}. Objectives on judgements: "
        f"{', '.join(OBJECTIVES)}. Baselines, beside the others anyway: {', '.join(BASELINES)}"
    )


def starting_point(env: str, recipes: Mapping[str, Any], *, scheduled: bool = False) -> RunConfig:
    """The task's recipe, without what it tuned for its own algorithm; else the defaults.

    The token budget ends a run; only where it is ``scheduled``, for a length that the caller gives, does the rate fall.
    """
    if env in recipes:
        base: RunConfig = recipes[env].config()
    elif env == "attributes":
        sampling = Sampling(max_tokens=36, slots=512)
        optim = OptimConfig(lr=6e-4, warmup_steps=5)
        base = RunConfig(policy="base:attributes", env=EnvConfig(name=env), optim=optim, sampling=sampling, max_draws=1)
    else:
        base = RunConfig(env=EnvConfig(name=env))
    optim = base.optim if scheduled else dataclasses.replace(base.optim, schedule="constant")
    return dataclasses.replace(
        base, recipe=f"compare-{env}", algorithm=AlgorithmConfig(), optim=optim, rounds=_NO_LIMIT, eval_every=0
    )


def configured(method: str, base: RunConfig, lr: float | None = None) -> RunConfig:
    """``base``, whose task, prompts, seed and token budget hold for all, as a run of this method.

    ``lr`` replaces the method's own rate. The supervised baseline is ``taught``.
    """
    check(method)
    tuning = {**ALGORITHMS, **OBJECTIVES, **BASELINES}[method]
    lr = tuning.rate * base.optim.lr if lr is None else lr
    if method in ALGORITHMS:
        return _algorithm(method, tuning, base, lr)
    n, m = base.prompts_per_round, base.group_size
    collect = CollectConfig(prompts=n, samples=m, source=tuning.source, kinds=tuning.kinds)
    if method == "rejection":
        steps = max(1, n // _BATCH)
        imitate = ImitateConfig(on="best", steps=steps, batch=_BATCH, lr=lr, fresh=False)
        return _cycle(base, CycleConfig(stages=("collect", "imitate"), collect=collect, imitate=imitate))
    judged = n * m // (2 if tuning.kinds == _PAIR else 1)
    prefer = PreferConfig(
        objective=ObjectiveConfig(name=method, **tuning.settings),  # type: ignore[arg-type]  # checked by itself
        steps=max(1, tuning.passes * judged // _BATCH),
        batch=_BATCH,
        lr=lr,
        fresh=False,
    )
    exact = PeopleConfig(flip=0.0, tie=0.0, price=0.0)
    if tuning.kinds:
        return _cycle(base, CycleConfig(stages=("collect", "prefer"), collect=collect, prefer=prefer, people=exact))
    oppose = OpposeConfig(prompts=n * m)
    return _cycle(base, CycleConfig(stages=("oppose", "prefer"), oppose=oppose, prefer=prefer))


def taught(base: RunConfig, labels: int, lr: float | None = None) -> RunConfig:
    """Supervised on the critic's level: ``labels`` demonstrations by the task's own teacher, who never errs.

    One pass over many, up to eight over few. It generates nothing, so it has no budget of tokens.
    """
    rounds = -(-labels // _AT_ONCE)
    passes = max(1, min(_MOST_PASSES, _TAUGHT // max(1, labels)))
    each = max(1, labels // rounds)
    imitate = ImitateConfig(
        on="teacher",
        examples=each,
        rounds=rounds,
        steps=max(1, passes * each // _BATCH),
        batch=_BATCH,
        lr=BASELINES["sft"].rate * base.optim.lr if lr is None else lr,
    )
    whole = dataclasses.replace(_cycle(base, CycleConfig(stages=("imitate",), imitate=imitate)), token_budget=0)
    return dataclasses.replace(whole, generations=1)


def _algorithm(method: str, tuning: Tuning, base: RunConfig, lr: float) -> RunConfig:
    settings = dict(tuning.settings)
    if base.env.name == "attributes" and method in ("nft", "rest_em"):
        settings["success_above"] = GOOD  # nearly everything is worth more than nothing there
    algorithm = AlgorithmConfig(name=method, **settings)  # type: ignore[arg-type]  # checked by itself
    optim = dataclasses.replace(base.optim, lr=lr)
    changed = dataclasses.replace(base, algorithm=algorithm, optim=optim)
    if method != "rest_em":
        return changed
    # Each of its rounds begins at the base again, so it wants few and large ones: about three.
    sampled = base.token_budget // max(1, base.sampling.max_tokens // 2)
    prompts = max(base.prompts_per_round, sampled // (3 * base.group_size))
    return dataclasses.replace(changed, loop="expert_iteration", prompts_per_round=prompts)


def _cycle(base: RunConfig, cycle: CycleConfig) -> RunConfig:
    """So many generations that the budget is spent before they are."""
    each = cycle.oppose.prompts if "oppose" in cycle.stages else cycle.collect.prompts * cycle.collect.samples
    most = base.token_budget // (_SHORTEST * each) + 1 if base.token_budget else base.generations
    cycle = dataclasses.replace(cycle, judge="task")
    return dataclasses.replace(
        base, loop="generations", cycle=cycle, generations=most, rounds=1, canary_every=0, pipeline=False
    )
