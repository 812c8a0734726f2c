"""Rows on what steers a loop: A05 the anchor to a reference, A15 the difficulty, S104 the loop on its own right answers."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.atlas.rl import algorithm, arithmetic, each, sweep
from triloop.loops.config import CurriculumConfig

__all__ = ["ANCHOR", "FRONTIER", "REST_EM"]

PASS = "held-out pass@1"


# ------------------------------------------------------------------ A05


def _anchor(context: Context) -> Measured:
    judge = f"{Path(__file__).with_name('lenient.py')}:check"
    config = arithmetic(context, rounds=context.scaled(40), verifier=judge, reference_rows=64)
    free = algorithm("grpo", minibatches=2)
    found = sweep(
        context,
        {
            "free": replace(config, algorithm=free),
            "anchored": replace(config, algorithm=replace(free, kl_coef=BETA, kl_estimator="k2")),
        },
    )
    return Measured(
        baseline=[[o.after for o in found["free"]]],
        treatment=[[o.after for o in found["anchored"]]],
        facts={
            "base": round(statistics.fmean(o.before for o in found["free"]), 4),
            **{f"proxy_reward_{n}": round(statistics.fmean(each(o, "reward", last=4)), 4) for n, o in found.items()},
            **{f"kl_{n}": round(statistics.fmean(each(o, "kl", last=4)), 4) for n, o in found.items()},
        },
    )


BETA = 0.1
"""Nats to reward, per token: the paper's middle value."""

ANCHOR = Row(
    id="A05",
    claim="Under a flawed judge, a KL anchor to the reference keeps the real score higher than none at as many updates.",
    setup="0.45M policy, chained arithmetic, a judge that also pays completions without an answer, 40 rounds of 16 prompts x 8; "
    f"GRPO with kl_coef {BETA:g} (k2 in the loss) against 0",
    core="triloop run planted --algorithm.kl-coef 0.1",
    contrasts=(
        Contrast(metric=f"{PASS} by the true judge", treatment="anchored", baseline="free", above=0.02, below=-0.02),
    ),
    run=_anchor,
)


# ------------------------------------------------------------------ A15

HIGH = (6, 7, 8)
"""Levels that count as high: the base was taught 3 and 4."""


def _frontier(context: Context) -> Measured:
    config = arithmetic(
        context,
        rounds=1_000,
        token_budget=context.scaled(60_000),
        checkpoint_every=1,  # the last round is wanted, and a token budget does not say beforehand which that is
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
    claim="Training at the frontier of ability wastes fewer groups than uniform difficulty and is better at high levels for the same tokens.",
    setup="0.45M policy, chained arithmetic of 2 to 8 operations (the base was taught 3 and 4), GRPO, 60,000 generated tokens",
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
)


# ------------------------------------------------------------------ S104


def _rest_em(context: Context) -> Measured:
    steps: dict[str, Any] = {"minibatches": 8, "updates_per_round": 2, "positives_per_prompt": 4}
    config = arithmetic(
        context, rounds=3, prompts_per_round=context.scaled(128), algorithm=algorithm("rest_em", **steps)
    )
    found = sweep(
        context,
        {"from_base": replace(config, loop="expert_iteration"), "from_last": replace(config, loop="outcome_rl")},
    )
    restarted, kept = found["from_base"], found["from_last"]
    return Measured(
        baseline=[[o.before for o in restarted]],
        treatment=[[o.after for o in restarted]],
        facts={
            "from_base": [o.after for o in restarted],
            "from_last": [o.after for o in kept],
            "accepted_by_round": [
                round(statistics.fmean(o.metrics[i]["success_share"] for o in restarted), 4) for i in range(3)
            ],
        },
    )


REST_EM = Row(
    id="S104",
    claim="Three rounds of fine-tuning the base on its own verified samples beat the base that was fine-tuned on demonstrations.",
    setup="0.45M policy, chained arithmetic, 3 rounds of 128 prompts x 8, at most 4 right answers of a prompt kept, 16 steps from the base "
    "each round; going on from the last weights instead is reported beside it",
    core="triloop run rest-em",
    contrasts=(
        Contrast(metric=PASS, treatment="3 rounds of ReST-EM", baseline="the supervised base", above=0.05, below=0.0),
    ),
    run=_rest_em,
)
