"""Rows on what steers a loop: A05 the anchor to a reference, A15 the difficulty, S104 the loop on its own right answers."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.atlas.rl import algorithm, arithmetic, each, sweep
from triloop.loops.config import CurriculumConfig, RunConfig

__all__ = ["ANCHOR", "FRONTIER", "REST_EM", "taught_further"]

PASS = "held-out pass@1"


# ------------------------------------------------------------------ A05


def _anchor(context: Context) -> Measured:
    judge = f"{Path(__file__).with_name('lenient.py')}:check"
    config = arithmetic(context, rounds=context.scaled(30), verifier=judge, reference_rows=64)
    free = algorithm("grpo", minibatches=2)
    held = {f"beta_{beta:g}": replace(free, kl_coef=beta, kl_estimator="k2") for beta in (0.1, BETA)}
    found = sweep(context, {name: replace(config, algorithm=a) for name, a in {"free": free, **held}.items()})
    return Measured(
        baseline=[[o.after for o in found["free"]]],
        treatment=[[o.after for o in found[f"beta_{BETA:g}"]]],
        facts={
            "base": round(statistics.fmean(o.before for o in found["free"]), 4),
            **{f"gold_{n}": round(statistics.fmean(o.after for o in found[n]), 4) for n in found},
            **{f"proxy_reward_{n}": round(statistics.fmean(each(o, "reward", last=4)), 4) for n, o in found.items()},
            **{f"kl_{n}": round(statistics.fmean(each(o, "kl", last=4)), 4) for n, o in found.items()},
        },
    )


BETA = 0.3
"""Reward for a nat, per token. A first look at 0.1 (three seeds) kept some of the real score and not all of the base's."""

ANCHOR = Row(
    id="A05",
    claim="Under a flawed judge, a KL anchor to the reference keeps the real score higher than none at as many updates.",
    setup="0.45M policy, chained arithmetic, a judge that also pays completions without an answer, 30 rounds of 16 prompts "
    f"x 8; GRPO with kl_coef {BETA:g} (k2 in the loss) against 0",
    core="triloop run planted --algorithm.kl-coef 0.3",
    contrasts=(
        Contrast(metric=f"{PASS} by the true judge", treatment="anchored", baseline="free", above=0.02, below=-0.02),
    ),
    run=_anchor,
    changed_after_first_look="Experiment: kl_coef was 0.1 over 40 rounds and is 0.3 over 30, after a look with three seeds "
    "(2026-11-21), in which 0.1 kept the real score above none (0.18 against 0.00) but below the base's 0.34; 0.1 is "
    "reported beside it. Rule: as first written.",
)


# ------------------------------------------------------------------ A15

HIGH = (5, 6)
"""Levels that count as high: the base was taught 3 and 4, and nothing that was tried here gets anywhere at 7 and 8."""


def _frontier(context: Context) -> Measured:
    config = arithmetic(
        context,
        rounds=1_000,
        token_budget=context.scaled(60_000),
        eval_n=context.scaled(256),
        algorithm=algorithm("grpo", minibatches=2),
    )
    levels = CurriculumConfig(kind="frontier", memory=0.5)
    found = sweep(
        context,
        {
            # all probability in the floor: every level equally often
            "uniform": replace(config, curriculum=replace(levels, floor=0.5)),
            "frontier": replace(config, curriculum=levels),
        },
        levels=HIGH,
    )
    high = {n: [statistics.fmean(o.extra.values()) for o in found[n]] for n in found}
    wasted = {n: each(o, "zero_std_share") for n, o in found.items()}
    return Measured(
        baseline=[wasted["uniform"], high["uniform"]],
        treatment=[wasted["frontier"], high["frontier"]],
        facts={
            "rounds": {n: [len(x.metrics) for x in o] for n, o in found.items()},
            **{f"high_{n}": round(statistics.fmean(v), 4) for n, v in high.items()},
            **{f"levels_3_4_{n}": round(statistics.fmean(o.after for o in found[n]), 4) for n in found},
        },
    )


FRONTIER = Row(
    id="A15",
    claim="Difficulty at the frontier of ability wastes fewer groups than uniform difficulty, and for the same tokens gets "
    "further at high levels.",
    setup="0.45M policy, chained arithmetic of 2 to 8 operations (the base was taught 3 and 4), GRPO, 60,000 tokens",
    core="triloop run frontier",
    contrasts=(
        Contrast(
            metric="share of groups without spread",
            treatment="frontier",
            baseline="uniform",
            above=0.02,
            below=0.0,
            higher_is_better=False,
        ),
        Contrast(
            metric=f"pass@1 at levels {HIGH[0]} to {HIGH[-1]}",
            treatment="frontier",
            baseline="uniform",
            above=0.0,
            below=0.0,
        ),
    ),
    run=_frontier,
    changed_after_first_look="Rule: the second contrast was pass@1 at levels 6 to 8 and is pass@1 at levels 5 to 6, after "
    "a look (2026-11-21) in which neither way got anywhere at the former (0.06). Its thresholds are the same numbers, on "
    "another metric. The first contrast, and what is trained: as first written.",
)


# ------------------------------------------------------------------ S104


STEPS = 16
"""Optimiser steps of a round."""


def _rest_em(context: Context) -> Measured:
    steps: dict[str, Any] = {"minibatches": STEPS // 2, "updates_per_round": 2, "positives_per_prompt": 4}
    config = arithmetic(
        context, rounds=3, prompts_per_round=context.scaled(128), algorithm=algorithm("rest_em", **steps)
    )
    found = sweep(
        context,
        {"from_base": replace(config, loop="expert_iteration"), "from_last": replace(config, loop="outcome_rl")},
    )
    restarted, kept = found["from_base"], found["from_last"]
    taught = [taught_further(replace(config, seed=seed), context.scaled(3 * STEPS)) for seed in context.seeds]
    return Measured(
        baseline=[[o.before for o in restarted], taught],
        treatment=[[o.after for o in restarted]] * 2,
        facts={
            "from_base": [round(o.after, 4) for o in restarted],
            "from_last": [round(o.after, 4) for o in kept],
            "accepted_by_round": [
                round(statistics.fmean(o.metrics[i]["success_share"] for o in restarted), 4) for i in range(3)
            ],
        },
    )


TEACHER = {"noise": 0.01, "hasty": 0.66, "guess": 0.85, "forget": 0.06}
"""Whom the base learned from last: ``habits`` in its base.json."""


def taught_further(config: RunConfig, steps: int) -> float:
    """Held-out score of the base after as many more steps on its teacher's demonstrations as ReST-EM takes on its own."""
    from triloop import rng
    from triloop.envs.arithmetic import Arithmetic
    from triloop.loops.build import load_policy, set_threads
    from triloop.loops.evaluate import evaluate
    from triloop.loops.supervised import Demonstration, supervised
    from triloop.policies.protocol import Tag

    set_threads(config.threads)
    policy, world = load_policy(config), Arithmetic()
    end = policy.tokenizer.eos_ids[0]

    def batch(step: int) -> list[Demonstration]:
        g = rng.generator(config.seed, "atlas", "teacher", step)
        prompts = world.prompts("train", 64, seed=config.seed, start=step * 64)
        texts = [world.demonstration(p, g, **TEACHER) for p in prompts]
        return [(policy.encode(p), [*policy.tokenizer.encode(t), end]) for p, t in zip(prompts, texts, strict=True)]

    supervised(policy, batch, steps, config.optim)
    tag = Tag(seed=config.seed, round=0, purpose="eval")
    return evaluate(policy, world, config.eval_n, config.sampling, tag).value


REST_EM = Row(
    id="S104",
    claim="Three rounds of fine-tuning the base on its own verified samples beat more fine-tuning on demonstrations.",
    setup="0.45M policy, chained arithmetic, 3 rounds of 128 prompts x 8, at most 4 right answers of a prompt kept, "
    "16 steps from the base each round; beside it as many steps on the teacher's demonstrations, and, outside "
    "the rule, going on from the last weights",
    core="triloop run rest-em",
    contrasts=(
        Contrast(metric=PASS, treatment="3 rounds of ReST-EM", baseline="the supervised base", above=0.05, below=0.0),
        Contrast(metric=PASS, treatment="3 rounds of ReST-EM", baseline="48 more steps taught", above=0.05, below=0.0),
    ),
    run=_rest_em,
    changed_after_first_look="Rule: the second contrast (against 48 more steps taught), and with it the claim, were added "
    "to the first on 2026-11-21, eight minutes after it and before anything was recorded (whether after a look is not "
    "known); the verdict, the lowest of both, can only have become stricter. The first contrast: as first written.",
)
