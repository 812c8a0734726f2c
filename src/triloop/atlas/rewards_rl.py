"""Rows on learning from a judge that is not the truth: S069 principles, S081 a verifier and a reward model, A19 either."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from triloop import rng
from triloop.atlas import lab
from triloop.atlas.densities import DENSITY
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.atlas.rewards import DOMAIN, MARGIN, compared, duels, mean, read_model
from triloop.atlas.rewards_more import DOUBT, POOL
from triloop.atlas.rewards_people import PRINCIPLED, SIMULATED
from triloop.atlas.rl import Outcome, algorithm, arithmetic, sweep
from triloop.envs.arithmetic import Arithmetic
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_language import ATTRIBUTES
from triloop.learn.choices import OptimConfig
from triloop.loops.build import parts, workshop
from triloop.loops.config import EnvConfig, RunConfig, to_mapping
from triloop.loops.improve import improve
from triloop.loops.progress import Silent
from triloop.loops.stages import CollectConfig, CycleConfig, JudgeConfig, RewardStageConfig
from triloop.loops.state import LoopState
from triloop.records import Feedback, Prompt
from triloop.sources.hybrid import HybridJudge
from triloop.sources.judge import EnvJudge, Judge
from triloop.sources.preflight import preflight
from triloop.sources.reward_model import RewardModel
from triloop.sources.verifier import UserVerifier
from triloop.store.run import Run

__all__ = ["HYBRID", "REWARDS", "RLVR", "SPECIFIC", "Forgetful", "judged_run"]


def _attributes(context: Context, **changes: object) -> RunConfig:
    """A short run on the attribute world."""
    plain: dict[str, object] = {
        "env": EnvConfig(name="attributes"),
        "sampling": lab.SAMPLING,
        "algorithm": algorithm("grpo", kl_coef=0.03, minibatches=2),
        "optim": OptimConfig(lr=4e-4, warmup_steps=5),
        "eval_n": context.scaled(384),
    }
    return arithmetic(context, **{**plain, **changes})


# ------------------------------------------------------------------ S069

NAMED = ("polite", "clean", "concise")
OTHERS = tuple(name for name in ATTRIBUTES if name not in NAMED)
GENERAL = "name: general\nprinciples:\n  - {name: overall, text: overall, question: overall}\n"


def _specific(context: Context) -> Measured:
    general = context.folder / "general.yaml"
    general.write_text(GENERAL)
    judges = {"general": JudgeConfig(constitution=str(general)), "specific": JudgeConfig(principles=NAMED)}
    cycle = CycleConfig(stages=("improve",), judge="judge")
    config = _attributes(context, loop="generations", cycle=cycle, rounds=context.scaled(16))
    found = sweep(context, {name: replace(config, cycle=replace(cycle, ai=ai)) for name, ai in judges.items()})
    named = {n: [_kept(o.parts, NAMED) for o in found[n]] for n in found}
    others = {n: [_kept(o.parts, OTHERS) for o in found[n]] for n in found}
    before = found["general"][0].parts_before
    return Measured(
        baseline=[named["general"], others["specific"]],
        treatment=[named["specific"], others["general"]],
        facts={
            "base": {name: round(x, 4) for name, x in before.items()},
            **{n: {a: mean([o.parts[a] for o in outcomes]) for a in ATTRIBUTES} for n, outcomes in found.items()},
            **{f"utility_{n}": mean([o.after for o in outcomes]) for n, outcomes in found.items()},
        },
    )


def _kept(parts: Mapping[str, float], names: Sequence[str]) -> float:
    return statistics.fmean(parts[name] for name in names)


SPECIFIC = Row(
    id="S069",
    claim="Specific principles give the better control of what they name, and one general principle carries over "
    "better to "
    "what nobody named.",
    setup="0.46M base of the attribute world, GRPO for 16 rounds of 16 prompts x 8 against the base as judge, "
    "which is asked "
    f"about {', '.join(NAMED)} or only about `overall`; measured on 384 held-out prompts by the true attributes. "
    "One size of "
    "model: how the size matters is not in it",
    core="triloop run constitutional --cycle.ai.principles, --cycle.ai.constitution FILE.yaml",
    contrasts=(
        Contrast(
            metric="the three named attributes, mean", treatment="specific", baseline="general", above=0.0, below=0.0
        ),
        Contrast(
            metric="the three attributes that are not named, mean",
            treatment="general",
            baseline="specific",
            above=0.0,
            below=0.0,
        ),
    ),
    run=_specific,
    seeds=(0, 1, 2, 3),
    base="base:attributes",
    parts=("loops.generations", "sources.lm_judge", "sources.constitution"),
)


# ------------------------------------------------------------------ S081

MISSED, FLATTERY = 0.4, 0.6


class Forgetful:
    """A verifier that accepts what names every fact and no other and is not rude, but knows no answer to some prompts."""

    def __init__(self, env: Attributes, missed: float) -> None:
        self._env, self._missed, self.name = env, missed, "forgetful"

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """+1 or -1."""
        return [
            Feedback(value=self._word(p, t), source=self.name, kind="ternary")
            for p, t in zip(prompts, texts, strict=True)
        ]

    def _word(self, prompt: Prompt, text: str) -> float:
        known = rng.key("missed", prompt.id) / 2**64 >= self._missed
        seen = self._env.attributes(prompt, text)
        return 1.0 if known and min(seen["coverage"], seen["grounded"], seen["clean"]) == 1 else -1.0


def _hybrid(context: Context) -> Measured:
    env, after = Attributes(), dict[str, list[float]]()
    verifier = Forgetful(env, MISSED)
    for seed in context.seeds:
        config = _attributes(context, rounds=context.scaled(18), seed=seed)
        reward = _flattered(context, env, seed)
        judges: dict[str, Judge] = {
            "verifier": verifier,
            "reward_model": reward,
            "stratified": HybridJudge(verifier, reward),
        }
        for name, judge in judges.items():
            value = judged_run(config, judge, context.folder / f"{name}-{seed}")
            after.setdefault(name, []).append(value)
    rest = ("verifier", "reward_model")
    return Measured(
        baseline=[after[name] for name in rest],
        treatment=[after["stratified"]] * len(rest),
        facts={name: mean(values) for name, values in after.items()},
    )


def judged_run(config: RunConfig, judge: Judge, folder: Path) -> float:
    """Held-out gold after the library's own loop with this judge in the place of the task's."""
    with parts(config) as made, Run.create(folder, to_mapping(config), made.machine) as run:
        shop = workshop(replace(made, judge=judge), run, Silent(), lambda: False)
        improve(shop, LoopState(), shop.play)
        value = lab.held_out(made.policy, made.env, config.eval_n, seed=config.seed).value  # type: ignore[arg-type]
    shutil.rmtree(folder, ignore_errors=True)
    return value


def _flattered(context: Context, env: Attributes, seed: int) -> RewardModel:
    """A reward model taught by somebody to whom a distracting word adds a great deal."""
    policy = lab.fresh(context.base)
    person = lab.person(env, seed=seed, temperature=0.15, bias={"distractor": FLATTERY})
    pairs = compared(person, duels(policy, env, context.scaled(300), seed=seed))
    return read_model(policy, pairs, seed=seed, held_out=0.1)


HYBRID = Row(
    id="S081",
    claim="A verifier of low recall and an exploitable reward model do better together, the verifier's word first "
    "and the "
    "reward model's shades within it, than either alone.",
    setup="0.46M base of the attribute world, GRPO for 18 rounds of 16 prompts x 8; the verifier accepts what "
    "names all facts "
    f"asked for, no other, and is not rude, but knows no answer to {MISSED:.0%} of the prompts; the reward model "
    "learned 300 "
    f"pairs of somebody to whom a distracting word adds {FLATTERY:g} of utility. True utility on 384 held-out "
    "prompts. The "
    "weights of prompts by their spread are not in it",
    core="sources.hybrid.HybridJudge, learn.combine.stratified",
    contrasts=tuple(
        Contrast(metric="held-out true utility", treatment="stratified", baseline=name, above=0.0, below=0.0)
        for name in ("verifier alone", "reward model alone")
    ),
    run=_hybrid,
    seeds=(4, 5, 6, 7, 8),
    base="base:attributes",
    changed_after_first_look="Experiment: 12 rounds and three seeds became 18 and four after a look at one other seed "
    "(2026-11-21), in which the reward model alone was hacked already (0.66) and the sum (0.84) stood beside the strata "
    "(0.84): the sum is said to be hacked late in training. A first set-up (2026-11-21, seeds 0 to 3) had a third "
    "contrast, with the sum of the two, and gave 0 by it alone: +0.19 [0.06, 0.32] over the verifier, +0.37 [0.17, 0.57] "
    "over the reward model, +0.01 [-0.05, 0.07] over the sum. The paper claims the first two; the third was ours, and is "
    "dropped from the rule, so that the sum stays undecided here. Seeds are five others, of which none had been looked "
    "at; nothing else was changed. "
    "Rule: without the third contrast.",
    parts=("sources.hybrid", "learn.combine", "sources.reward_model", "loops.improve"),
)


# ------------------------------------------------------------------ A19

BUGGY = f"{Path(__file__).with_name('lenient.py')}:check"


def _verifiable(context: Context) -> Measured:
    rounds = context.scaled(16)
    config = arithmetic(
        context,
        rounds=rounds,
        canary_every=1,
        canary_n=128,
        eval_n=context.scaled(384),
        algorithm=algorithm("grpo", minibatches=2),
    )
    learned = CycleConfig(
        stages=("collect", "reward", "improve"),
        collect=CollectConfig(prompts=context.scaled(128), samples=8, source="task", kinds=("pair",)),
        reward=RewardStageConfig(ties="bradley_terry"),
        judge="reward",
    )
    found = sweep(
        context,
        {
            "exact": config,
            "learned": replace(config, loop="generations", cycle=learned),
            "buggy": replace(config, verifier=BUGGY),
        },
    )
    gaps = {n: [_gap(o) for o in found[n]] for n in found}
    caught = [_caught(seed) for seed in context.seeds]
    return Measured(
        baseline=[
            gaps["exact"],
            gaps["exact"],
            [o.after for o in found["learned"]],
            [o.after for o in found["buggy"]],
            [0.5] * len(caught),
        ],
        treatment=[
            gaps["learned"],
            gaps["buggy"],
            [o.after for o in found["exact"]],
            [o.after for o in found["exact"]],
            caught,
        ],
        facts={
            "base": mean([o.before for o in found["exact"]]),
            **{f"after_{n}": mean([o.after for o in outcomes]) for n, outcomes in found.items()},
            **{f"gap_{n}": mean(values) for n, values in gaps.items()},
            **{f"gap_first_{n}": mean([_gap(o, first=True) for o in outcomes]) for n, outcomes in found.items()},
        },
    )


def _gap(outcome: Outcome, *, first: bool = False) -> float:
    """Share of canary samples that the training judge passes less the share that are right, mean of three rounds."""
    seen = [m["canary_proxy"] - m["canary_gold"] for m in outcome.metrics if "canary_gold" in m]
    return statistics.fmean(seen[:3] if first else seen[-3:])


def _caught(seed: int) -> float:
    """1 where the check before training stops the buggy verifier and lets the exact one pass."""
    env = Arithmetic()
    with UserVerifier(BUGGY) as judge:
        stopped = any(v.value < 0 and v.action == "stop" for v in preflight(env, judge, seed=seed))
    passed = not any(v.value < 0 for v in preflight(env, EnvJudge(env), seed=seed))
    return float(stopped and passed)


RLVR = Row(
    id="A19",
    claim="An exact verifier leaves nothing to hack: a reward model in its place, or a bug in it, opens a gap "
    "between what is "
    "paid and what is right, and ends lower; and a few mutated answers show the bug before training.",
    setup="0.45M policy, chained arithmetic, GRPO for 16 rounds of 16 prompts x 8 paid by the exact verifier, by a "
    "reward model "
    "of 512 of its comparisons, and by a verifier that takes a missing answer for a right one; gap on 128 canary "
    "prompts, "
    "mean of the last three rounds",
    core="triloop run arithmetic; sources.preflight",
    contrasts=(
        Contrast(metric="proxy less gold", treatment="reward model", baseline="exact", above=0.05, below=0.0),
        Contrast(metric="proxy less gold", treatment="buggy", baseline="exact", above=0.05, below=0.0),
        Contrast(metric="held-out pass@1", treatment="exact", baseline="reward model", above=0.0, below=0.0),
        Contrast(metric="held-out pass@1", treatment="exact", baseline="buggy", above=0.0, below=0.0),
        Contrast(
            metric="buggy verifier stopped before training, exact one not",
            treatment="preflight",
            baseline="half of the time",
            above=0.0,
            below=0.0,
        ),
    ),
    run=_verifiable,
    seeds=(0, 1, 2),
    parts=("loops.outcome", "loops.generations", "sources.preflight", "loops.measure.canary"),
)

REWARDS = (DOMAIN, MARGIN, DENSITY, DOUBT, POOL, SIMULATED, PRINCIPLED, SPECIFIC, HYBRID, RLVR)
