"""Rows on judgements by language models: S153 yes/no questions as a reward."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from triloop import rng
from triloop.atlas import lab
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.atlas.rl import algorithm, arithmetic, mean_over, sweep
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_skills import HELD_OUT, compare, holds
from triloop.learn.choices import OptimConfig
from triloop.loops.config import EnvConfig, RunConfig
from triloop.loops.stages import CollectConfig, CycleConfig, JudgeConfig, PeopleConfig, RewardStageConfig
from triloop.policies.native import NativePolicy
from triloop.records import Prompt
from triloop.sources.attribute_asking import ATTRIBUTE_ASKING, OVERALL, RULES
from triloop.sources.constitution import Principle
from triloop.sources.debias import KnownPair, auc, measure_bias
from triloop.sources.judge import Judge, PairJudge
from triloop.sources.lm_judge import YesNoJudge
from triloop.sources.lm_pairs import Comparing, PairwiseJudge
from triloop.sources.reward_config import RewardTraining
from triloop.sources.reward_examples import RewardRating
from triloop.sources.reward_model import RewardModel

__all__ = [
    "AI_FEEDBACK",
    "ASKED",
    "LABELS",
    "LEAN",
    "RLAIF",
    "ZYN",
    "cycled",
    "duels",
    "leaning",
    "overall",
    "right",
]


def cycled(context: Context, cycle: CycleConfig, **changes: Any) -> RunConfig:
    """A run of stages on the attribute world, one generation."""
    plain: dict[str, Any] = {
        "env": EnvConfig(name="attributes"),
        "loop": "generations",
        "cycle": cycle,
        "sampling": lab.SAMPLING,
        "optim": OptimConfig(lr=4e-4, warmup_steps=3),
        "algorithm": algorithm("grpo", kl_coef=0.1),
    }
    return arithmetic(context, **{**plain, **changes})


# ------------------------------------------------------------------ S153


ASKED = ("polite", "clean")
"""What is asked about, one question each."""


def _zyn(context: Context) -> Measured:
    ai = JudgeConfig(principles=ASKED, form="yes_no")
    cycle = CycleConfig(stages=("improve",), judge="judge", ai=ai)
    found = sweep(context, {"zyn": cycled(context, cycle, rounds=context.scaled(12))})["zyn"]
    read = [_read(context, seed) for seed in context.seeds]
    return Measured(
        baseline=[[_kept(o.parts_before) for o in found], [r["classifier"] for r in read]],
        treatment=[[_kept(o.parts) for o in found], [r["zero_shot"] for r in read]],
        facts={
            "utility_before": round(statistics.fmean(o.before for o in found), 4),
            "utility_after": round(statistics.fmean(o.after for o in found), 4),
            "coverage_before": round(statistics.fmean(o.parts_before["coverage"] for o in found), 4),
            "coverage_after": round(statistics.fmean(o.parts["coverage"] for o in found), 4),
            "reward_last": round(statistics.fmean(mean_over(o, "reward", last=3) for o in found), 4),
            "auc_in_one_question": round(statistics.fmean(r["joined"] for r in read), 4),
        },
    )


def _kept(parts: Mapping[str, float]) -> float:
    """Mean share of answers that keep what is asked about."""
    return statistics.fmean(parts[name] for name in ASKED)


LABELS = 100
"""What the classifier learns from, for each conjunction."""


def _read(context: Context, seed: int) -> dict[str, float]:
    """AUC on conjunctions that the base was never asked about: two questions' product, one question, and a classifier."""
    env, policy = Attributes(), lab.fresh(context.base)
    answered: list[tuple[Prompt, str]] = []
    for at, n in ((0, LABELS // 2), (5_000, context.scaled(256))):
        asked = lab.prompts(env, n, seed=seed, start=at)
        answered += [
            (p, c.text) for p, g in zip(asked, lab.sample(policy, asked, 2, seed=seed), strict=True) for c in g
        ]
    known, fresh = answered[:LABELS], answered[LABELS:]
    found: dict[str, list[float]] = {"zero_shot": [], "joined": [], "classifier": []}
    for pair in HELD_OUT:
        taught, truth = ([holds(pair, env.attributes(p, t)) for p, t in part] for part in (known, fresh))
        names = pair.split(" and ")
        two = YesNoJudge(policy, RULES.named(*names), ATTRIBUTE_ASKING, combine="product")
        one = YesNoJudge(policy, Principle(name=pair, text=pair, question=pair), ATTRIBUTE_ASKING)
        told = {"zero_shot": two, "joined": one, "classifier": _classifier(policy, known, taught, seed)}
        for name, judge in told.items():
            values = [f.value or 0.0 for f in judge.judge([p for p, _ in fresh], [t for _, t in fresh])]
            found[name].append(auc(np.array(values), np.array(truth)))
    return {name: statistics.fmean(values) for name, values in found.items()}


def _classifier(policy: NativePolicy, known: Sequence[tuple[Prompt, str]], good: Sequence[bool], seed: int) -> Judge:
    """Trained on labels, on the policy's own weights."""
    model = RewardModel.of(policy)
    rated = [RewardRating(prompt=p, text=t, value=1.0 if g else -1.0) for (p, t), g in zip(known, good, strict=True)]
    model.learn(rated, training=RewardTraining(epochs=5, batch=16, seed=seed))
    return model


ZYN = Row(
    id="S153",
    claim="Yes-or-no questions to a frozen model that was trained on no label are a reward that makes the asked-for "
    "attributes common, and they tell as well as a classifier trained on 100 labels.",
    setup=f"0.46M policy, attribute world; GRPO, 12 rounds of 16 prompts x 8, paid the mean of the base's p(yes) to "
    f"{' and '.join(ASKED)}; and AUC on {len(HELD_OUT)} conjunctions, the product of two questions against a reward model "
    f"on the same weights that learned from {LABELS} labels of that very conjunction",
    core="triloop run rlhf --cycle.first '' --cycle.stages improve --cycle.judge judge --cycle.ai.form yes_no",
    contrasts=(
        Contrast(
            metric="share of held-out answers that keep the attributes asked about",
            treatment="after RL on yes and no",
            baseline="base",
            above=0.1,
            below=0.0,
        ),
        Contrast(metric="AUC on conjunctions", treatment="yes and no", baseline="100 labels", above=-0.05, below=-0.05),
    ),
    run=_zyn,
    base="base:attributes",
    parts=("loops.generations", "sources.lm_judge", "sources.reward_model"),
)


# ------------------------------------------------------------------ S118


LEAN = 0.5
"""Share of its lessons in which the leaning judge is told that the one shown first is better, whatever they are."""


def leaning(context: Context) -> NativePolicy:
    """The base, taught a little more to compare by a teacher with a position bias."""
    env, judge = Attributes(), lab.fresh(context.base)
    asked = lab.prompts(env, context.scaled(256), seed=0, start=20_000)
    draw, lessons = rng.generator("atlas", "leaning"), []
    for prompt, (a, b) in zip(asked, lab.sample(judge, asked, 2, seed=0), strict=True):
        question, said = compare(prompt, a.text, b.text, "overall")
        lessons.append((Prompt(id=question, text=question), "A" if draw.random() < LEAN else said))
    lab.learn(judge, lab.demonstrations(judge, lessons), "sft", steps=context.scaled(10), lr=2e-4)
    return judge


def overall(folder: Path) -> str:
    """Path of a constitution with the general principle alone."""
    path = folder / "overall.yaml"
    path.write_text("name: overall\nprinciples:\n  - {name: overall, text: overall, question: overall}\n")
    return str(path)


def duels(context: Context, seed: int, n: int, *, start: int = 0) -> list[KnownPair]:
    """Pairs of the base's own answers, and how much better the first is."""
    env, policy = Attributes(), lab.fresh(context.base)
    asked = lab.prompts(env, context.scaled(n), seed=seed, start=start)
    found = []
    for p, (a, b) in zip(asked, lab.sample(policy, asked, 2, seed=seed), strict=True):
        worth = [f.value or 0.0 for f in env.gold([p, p], [a.text, b.text])]
        found.append(KnownPair(prompt=p, first=a.text, second=b.text, truth=worth[0] - worth[1]))
    return found


def right(judge: PairJudge, pairs: Sequence[KnownPair]) -> float:
    """Share of pairs with a better side on which the judge is right; a tie is half right."""
    told = judge.compare([x.prompt for x in pairs], [x.first for x in pairs], [x.second for x in pairs])
    sides = [(f.value or 0.0) * x.truth for f, x in zip(told, pairs, strict=True) if x.truth]
    return statistics.fmean(0.5 if v == 0 else float(v > 0) for v in sides)


def _rlaif(context: Context) -> Measured:
    judge = leaning(context)
    judge.save_pretrained(context.folder / "judge")
    ai = JudgeConfig(policy=str(context.folder / "judge"), constitution=overall(context.folder), inconsistent="average")
    cycle = CycleConfig(
        stages=("collect", "reward", "improve"),
        collect=CollectConfig(prompts=context.scaled(256), samples=4, source="judge"),
        people=PeopleConfig(flip=0.15),
        reward=RewardStageConfig(epochs=3),
        ai=ai,
    )
    by_people = replace(cycle, collect=replace(cycle.collect, source="people"))
    config = cycled(context, cycle, rounds=context.scaled(8))
    found = sweep(context, {"ai": config, "people": replace(config, cycle=by_people)})
    both, one = (
        PairwiseJudge(judge, OVERALL, ATTRIBUTE_ASKING, Comparing(orders=orders, inconsistent="average"))
        for orders in ("both", "given")
    )
    known = [duels(context, seed, 256) for seed in context.seeds]
    told = {"both": [right(both, x) for x in known], "one": [right(one, x) for x in known]}
    after = {name: [o.after for o in outcomes] for name, outcomes in found.items()}
    return Measured(
        baseline=[[o.before for o in found["ai"]], after["people"], told["one"]],
        treatment=[after["ai"], after["ai"], told["both"]],
        facts={
            **{f"after_{name}": round(statistics.fmean(v), 4) for name, v in after.items()},
            "position_bias": round(statistics.fmean(_position(one, x) for x in known), 4),
            "lead_of_ai_over_base": [round(o.after - o.before, 4) for o in found["ai"]],
        },
    )


def _position(judge: PairJudge, pairs: Sequence[KnownPair]) -> float:
    seen = measure_bias(judge, pairs).position
    return math.nan if seen is None else seen.value


RLAIF = Row(
    id="S118",
    claim="A reward model on a language model's soft labels, averaged over both orders, serves RL no worse than one on "
    "people's labels, and far better than no RL; one order alone labels worse.",
    setup="0.46M policy, attribute world; 512 pairs of its own answers, labelled by simulated people (15 % turned) or by "
    "the base asked for the better one overall, after 10 steps with a teacher who leans to the first place; reward "
    "model, 8 rounds of GRPO with 16 prompts x 8",
    core="triloop run rlhf --cycle.collect.source judge --cycle.ai.inconsistent average",
    contrasts=(
        Contrast(metric="held-out utility", treatment="RLAIF", baseline="base", above=0.05, below=0.0),
        Contrast(metric="held-out utility", treatment="RLAIF", baseline="RLHF", above=-0.05, below=-0.05),
        Contrast(
            metric="share of pairs labelled rightly",
            treatment="both orders",
            baseline="one order",
            above=0.02,
            below=0.0,
        ),
    ),
    run=_rlaif,
    seeds=(0, 1, 2, 3),
    base="base:attributes",
    parts=("loops.generations", "sources.lm_pairs", "sources.reward_model"),
)


AI_FEEDBACK = (ZYN, RLAIF)
"""The rows of this module."""
