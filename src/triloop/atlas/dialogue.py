"""Rows on what users say: S067 critiques become refinements, S033 what a turn says or only its polarity, S057 love."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from triloop.atlas import lab
from triloop.atlas.fine_grained import Credit, Drawn, evenly, per_seed, rounds
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_skills import ASK, SKILLS
from triloop.learn.examples import Rated
from triloop.learn.objective_config import ObjectiveConfig
from triloop.policies.native import NativePolicy
from triloop.records import Prompt
from triloop.sources.attribute_asking import ATTRIBUTE_ASKING, OVERALL
from triloop.sources.lm_judge import YesNoJudge
from triloop.sources.reward_config import RewardConfig, RewardTraining
from triloop.sources.reward_examples import RewardRating
from triloop.sources.reward_model import RewardModel
from triloop.sources.users import (
    ATTRIBUTE_PHRASES,
    Persona,
    UserJudge,
    UserSimulator,
    attribute_situation,
    counter_metrics,
)

__all__ = ["DIALOGUE", "best_by", "blended", "refinements"]

UTILITY = "held-out utility"
Answers = Sequence[tuple[Prompt, str]]
Marks = NDArray[np.float64]


def refinements(
    policy: NativePolicy, drafts: Answers, said: Sequence[str], n: int, *, seed: int, temperature: float = 1.0
) -> list[list[str]]:
    """``n`` new versions of each draft, with what was said of it in hand: a skill of the base."""
    asked = [
        Prompt(
            id=f"{p.id}|{t}|{c}",
            env=p.env,
            text=SKILLS["revise"].prompt(request=p.text, response=t, critique=c),
        )
        for (p, t), c in zip(drafts, said, strict=True)
    ]
    sampling = replace(lab.SAMPLING, temperature=temperature)
    return [[c.text for c in group] for group in lab.sample(policy, asked, n, seed=seed, round=1, sampling=sampling)]


def best_by(judge: YesNoJudge, asked: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> list[str]:
    """Of each prompt's texts the one that the judge is surest of."""
    told = judge.differences([p for p, g in zip(asked, groups, strict=True) for _ in g], [t for g in groups for t in g])
    marks = iter(np.nan_to_num(told, nan=-np.inf).tolist())
    return [max(((next(marks), t) for t in group), key=lambda x: x[0])[1] for group in groups]


def _taught(context: Context, env: Attributes, written: Answers, seed: int, steps: int) -> NativePolicy:
    policy = lab.fresh(context.base)
    shown = lab.demonstrations(policy, [(p, t) for p, t in written if t])
    lab.learn(policy, shown, "sft", steps=steps, lr=5e-4, seed=seed)
    return policy


# ------------------------------------------------------------------ S067

DRAWN, WARM = 8, 1.5
"""Refinements of a draft, and their temperature: at 1 the base's are nearly all good."""


def _ilf(context: Context) -> Measured:
    env, steps, held = Attributes(), context.scaled(24), context.scaled(256)

    def one(seed: int) -> dict[str, float]:
        base = lab.fresh(context.base)
        judge = YesNoJudge(base, OVERALL, ATTRIBUTE_ASKING)
        asked = lab.prompts(env, context.scaled(192), seed=seed)
        drawn = lab.sample(base, asked, DRAWN + 1, seed=seed)
        first = [(p, g[0].text) for p, g in zip(asked, drawn, strict=True)]
        new = refinements(base, first, [env.critique(p, t) for p, t in first], DRAWN, seed=seed, temperature=WARM)
        others = [[c.text for c in g[1:]] for g in drawn]
        ways = {
            "selected": best_by(judge, asked, new),
            "random": [g[0] for g in new],
            "best_of_n": best_by(judge, asked, others),
        }
        found: dict[str, float] = {"base": lab.held_out(base, env, held, seed=seed).value}
        for name, texts in ways.items():
            written = list(zip(asked, texts, strict=True))
            found[f"text_{name}"] = statistics.fmean(env.utility(env.attributes(p, t)) for p, t in written)
            found[name] = lab.held_out(_taught(context, env, written, seed, steps), env, held, seed=seed).value
        return found

    found = per_seed(context, one)
    return Measured(
        baseline=[found["random"], found["best_of_n"], found["base"]],
        treatment=[found["selected"]] * 3,
        facts={name: round(statistics.fmean(v), 4) for name, v in found.items()},
    )


ILF = Row(
    id="S067",
    claim="Imitating refinements that were written with a critique in hand and then selected teaches more than imitating "
    "any refinement, and more than the best of as many plain samples by the same judge.",
    setup="0.46M policy, attribute world; 192 drafts, an exact critique of each, 8 refinements by the base's own skill at "
    "temperature 1.5, of which the base's own yes/no judgement selects; 24 supervised steps from the base",
    core="triloop run constitutional (its first phase), triloop.sources.lm_critic.PolicyReviser",
    contrasts=tuple(
        Contrast(metric=UTILITY, treatment="selected refinements", baseline=b, above=0.0, below=0.0)
        for b in ("random refinements", "best of 8 samples", "the base")
    ),
    run=_ilf,
    seeds=(1, 2, 3, 4),
    base="base:attributes",
    parts=("sources.lm_judge", "envs.attributes_skills", "learn.mixture"),
    changed_after_first_look="Experiment: 4 refinements at temperature 1 are 8 at 1.5, after a look at seed 0 (2026-11-21) "
    "in which nearly all were good and any taught as much (0.783 each; the texts themselves 0.89 and 0.85). Seed 0 is not "
    "among those recorded. Rule: as first written, but for the number of samples.",
)


# ------------------------------------------------------------------ S033


SHORT, LONG = 1, 4
"""Facts of the requests in the dialogues, and of those that are longer than any of them."""


def _often(policy: NativePolicy, env: Attributes, n: int, seed: int) -> float:
    """Mean utility of about ``n`` samples on held-out requests: of as many different ones as there are, equally often."""
    asked = lab.prompts(env, n, seed=seed, split="eval")
    drawn = lab.sample(policy, asked, max(1, n // len(asked)), seed=seed, round=0)
    return statistics.fmean(
        env.utility(env.attributes(p, c.text)) for p, g in zip(asked, drawn, strict=True) for c in g
    )


def _turns(context: Context) -> Measured:
    env, steps, held = Attributes(mixture=(SHORT,)), context.scaled(24), context.scaled(1024)

    def one(seed: int) -> dict[str, float]:
        base = lab.fresh(context.base)
        asked = lab.prompts(env, context.scaled(320), seed=seed)
        drawn = [(g[0], g[1]) for g in lab.sample(base, asked, 2, seed=seed)]
        who = Persona(explains=0.9, noise=0.1)
        users = UserSimulator(attribute_situation(env), (who,), ATTRIBUTE_PHRASES, seed=seed)
        said = UserJudge(users).react(asked, [c.text for c, _ in drawn])
        wrong = [i for i, r in enumerate(said) if r.mood == "correct"]
        drafts = [(asked[i], said[i].text) for i in wrong]
        new = refinements(base, drafts, [said[i].words for i in wrong], 1, seed=seed)
        content = _taught(context, env, [(asked[i], t) for i, (t,) in zip(wrong, new, strict=True)], seed, steps)
        again = _taught(context, env, [(asked[i], drawn[i][1].text) for i in wrong], seed, steps)
        polarity = lab.fresh(context.base)
        rated = [
            Rated(prompt_tokens=c.prompt_tokens, tokens=c.tokens, value=float(r.sign))
            for (c, _), r in zip(drawn, said, strict=True)
            if c.tokens
        ]
        kto = ObjectiveConfig(name="kto", balance=True)
        lab.learn(polarity, rated, kto, steps=steps, lr=5e-4, seed=seed, reference=base)
        found = {"corrections": len(wrong) / len(asked)}
        for name, policy in (("base", base), ("content", content), ("again", again), ("polarity", polarity)):
            for level, word in ((SHORT, "short"), (LONG, "long")):
                found[f"{name}_{word}"] = _often(policy, Attributes(mixture=(level,)), held, seed)
        return found

    found = per_seed(context, one)
    lead = {w: [a - b for a, b in zip(found[f"content_{w}"], found[f"polarity_{w}"], strict=True)] for w in _LENGTHS}
    return Measured(
        baseline=[found["polarity_short"], found["again_short"], lead["long"]],
        treatment=[found["content_short"], found["content_short"], lead["short"]],
        facts={name: round(statistics.fmean(v), 4) for name, v in found.items()},
    )


_LENGTHS = ("short", "long")
TURNS = Row(
    id="S033",
    claim="What users say in their next turn teaches more than its polarity, on short requests, and more than answering "
    "anew without it; on longer requests than those of the dialogues the lead is smaller.",
    setup="0.46M policy, attribute world; 320 draws of requests of one fact, an answer each, users who correct it in words "
    "(a tenth of reactions the wrong way); the base refines the corrected answers by these words, 24 supervised steps; or "
    "KTO on the polarity, or the base's second samples; measured at one and at four facts, some 1000 samples each",
    core="triloop.sources.users.Dialogues; triloop.loops.assemble for what each kind of feedback becomes",
    contrasts=(
        Contrast(metric=f"{UTILITY}, short", treatment="content", baseline="polarity", above=0.0, below=0.0),
        Contrast(metric=f"{UTILITY}, short", treatment="content", baseline="answered anew", above=0.0, below=0.0),
        Contrast(metric="lead of content over polarity", treatment="short", baseline="long", above=0.0, below=0.0),
    ),
    run=_turns,
    seeds=(20, 21, 22, 23, 24, 25),
    base="base:attributes",
    parts=("sources.users", "learn.likelihood", "envs.attributes_skills"),
    changed_after_first_look="Experiment: a full run on seeds 1 to 4 (2026-11-21) left the third contrast undecided (0.034 "
    "in [-0.003, 0.071]; the others 0.155 and 0.474, both above 0), and so did six others (11 to 16: 0.021 in "
    "[-0.028, 0.071]; 0.145 and 0.463). Dialogues were of one or two facts there, and two facts were called short: long "
    "requests were hardly longer, and 256 of a kind left the lead uncertain by as much as it could change. Now dialogues "
    "and short requests have one fact, and 1024 of a kind are measured; six other seeds, no look before. Rule: as first "
    "written.",
)


# ------------------------------------------------------------------ S057

LOVERS = Persona(pleased=0.5, love=0.4, charm=0.6)
"""Pleased users may love an answer; a charming word is loved more often, whatever else is said."""


def _love_model(base: NativePolicy, env: Attributes, users: UserSimulator, n: int, seed: int) -> RewardModel:
    """P[Love]: taught by what users did with ``n`` answers of the base."""
    asked = lab.prompts(env, n, seed=seed, start=50_000)
    texts = [g[0].text for g in lab.sample(base, asked, 1, seed=seed, round=9_000)]
    loved = [r.mood == "love" for r in UserJudge(users).react(asked, texts)]
    how = RewardTraining(epochs=3, seed=seed)
    config = RewardConfig(template=ASK.replace("{principle}", "overall"))
    model = RewardModel.of(base, config, training=how, name="love")
    model.learn(
        [RewardRating(prompt=p, text=t, value=2.0 * x - 1) for p, t, x in zip(asked, texts, loved, strict=True)]
    )
    return model


def blended(love: Marks, utility: Marks, weight: float) -> Marks:
    """``weight`` times love, in the spread of the utility, and the rest of the weight to the utility."""
    scaled = love * (utility.std() + 1e-6) / (love.std() + 1e-6)
    return np.asarray(weight * scaled + (1 - weight) * utility)


def _paid(model: RewardModel, env: Attributes, weight: float) -> Credit:
    """P[Love] and the utility, blended, as one reward a text."""

    def credit(asked: Sequence[Prompt], drawn: Drawn) -> list[Rated]:
        flat = [(p, c.text) for p, g in zip(asked, drawn, strict=True) for c in g]
        love = np.nan_to_num(model.score([p for p, _ in flat], [t for _, t in flat]))
        help_ = np.array([env.utility(env.attributes(p, t)) for p, t in flat])
        rewards = iter(blended(love, help_, weight).tolist())
        return evenly(drawn, [[next(rewards) for _ in g] for g in drawn])

    return credit


def _love(context: Context) -> Measured:
    env, n, held = Attributes(), context.scaled(20), context.scaled(512)

    def one(seed: int) -> dict[str, float]:
        users = UserSimulator(attribute_situation(env), (LOVERS,), ATTRIBUTE_PHRASES, seed=seed)
        model = _love_model(lab.fresh(context.base), env, users, context.scaled(512), seed)
        asked = lab.prompts(env, held, seed=seed, split="eval")
        found: dict[str, float] = {}
        for weight in (0.0, 0.5, 1.0):
            policy = lab.fresh(context.base)
            rounds(policy, env, n, _paid(model, env, weight), lr=5e-4, seed=seed)
            texts = [g[0].text for g in lab.sample(policy, asked, 1, seed=seed, round=0)]
            figures = counter_metrics(UserJudge(users, round=1).react(asked, texts))
            found |= {f"{name}_{weight:g}": figures[name] for name in ("love", "quality", "charm")}
            found[f"predicted_{weight:g}"] = float(np.nanmean(model.score(asked, texts)))
        return found

    found = per_seed(context, one)
    return Measured(
        baseline=[found["love_0"], found["quality_1"], found["charm_0"]],
        treatment=[found["love_0.5"], found["quality_0.5"], found["charm_1"]],
        facts={name: round(statistics.fmean(v), 4) for name, v in found.items()},
    )


LOVE = Row(
    id="S057",
    claim="Paid in part for predicted love, a policy is loved more by users; paid for it alone, it is loved for charming "
    "words and helps less, which the counter-metrics show.",
    setup="0.46M policy, attribute world; users love a good answer by 0.4 and any with a charming word by 0.6; P[Love] "
    "learned from reactions to 512 answers of the base; 20 rounds of 16 requests x 4 on P[Love] at weight 0, 0.5 and 1, "
    "the rest to the exact utility; measured by users' reactions to 512 held-out answers",
    core="triloop.sources.users.counter_metrics and UserJudge",
    contrasts=(
        Contrast(metric="share of love", treatment="weight 0.5", baseline="weight 0", above=0.0, below=0.0),
        Contrast(metric="true quality", treatment="weight 0.5", baseline="weight 1", above=0.02, below=0.0),
        Contrast(metric="share of charming words", treatment="weight 1", baseline="weight 0", above=0.1, below=0.0),
    ),
    run=_love,
    seeds=(1, 2, 3, 4),
    base="base:attributes",
    parts=("sources.users", "sources.reward_model", "learn.spans"),
)

DIALOGUE: tuple[Row, ...] = (ILF, TURNS, LOVE)
