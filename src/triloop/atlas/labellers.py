"""Rows on how a model labels: S092 ties and self-reference, A09 reasoning first, S127 what users would say next."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from triloop import rng
from triloop.atlas import lab
from triloop.atlas.ai_feedback import duels, leaning
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.envs.attributes import MEDIOCRE, Attributes
from triloop.envs.attributes_skills import compare
from triloop.feedback.kinds import write
from triloop.learn.examples import Preference
from triloop.learn.objective_config import ObjectiveConfig
from triloop.loops.assemble import continuation
from triloop.policies.native import NativePolicy
from triloop.policies.sampling import Sampling
from triloop.records import Feedback, Prompt
from triloop.sources.asking import Asking
from triloop.sources.attribute_asking import ATTRIBUTE_ASKING, ATTRIBUTE_REASONING, ATTRIBUTE_TEMPLATES, OVERALL
from triloop.sources.constitution import Principle
from triloop.sources.debias import KnownPair
from triloop.sources.lm_followups import FollowUpJudge
from triloop.sources.lm_pairs import Comparing, PairwiseJudge, pair_of
from triloop.sources.users import ATTRIBUTE_PHRASES, Persona, UserJudge, UserSimulator, attribute_situation

__all__ = [
    "FOLLOW_UPS",
    "LABELLERS",
    "REASONED",
    "SELF_REFERENCE",
    "SHOWN",
    "USER",
    "dialogues",
    "improved",
    "preferred",
]


def preferred(policy: NativePolicy, pairs: Sequence[KnownPair], told: Sequence[Feedback]) -> list[Preference]:
    """Pairs as a judge labelled them: only who is better, or a tie."""
    found = []
    for x, f in zip(pairs, told, strict=True):
        tokens = [continuation(policy, x.prompt, text) for text in (x.first, x.second)]
        if f.value is not None and tokens[0] != tokens[1]:
            p = 0.5 if f.value == 0 else float(f.value > 0)
            head = policy.encode(x.prompt)
            found.append(Preference(prompt_tokens=head, first=tokens[0], second=tokens[1], p=p, tie=f.value == 0))
    return found


def improved(context: Context, pairs: Sequence[KnownPair], told: Sequence[Feedback], seed: int) -> float:
    """Held-out utility after 16 steps of DPO (ties by Davidson) on these labels."""
    policy, reference = lab.fresh(context.base), lab.fresh(context.base)
    how = ObjectiveConfig(name="dpo_davidson", beta=0.1)
    steps = context.scaled(16)
    lab.learn(policy, preferred(policy, pairs, told), how, steps=steps, seed=seed, reference=reference)
    return lab.held_out(policy, Attributes(), context.scaled(512), seed=seed).value


def _asked(judge: PairwiseJudge, pairs: Sequence[KnownPair]) -> list[Feedback]:
    return judge.compare([x.prompt for x in pairs], [x.first for x in pairs], [x.second for x in pairs])


def _right(told: Sequence[Feedback], pairs: Sequence[KnownPair]) -> float:
    """Share of pairs with a better side on which the label is right; a tie is half right."""
    sides = [(f.value or 0.0) * x.truth for f, x in zip(told, pairs, strict=True) if x.truth]
    return statistics.fmean(0.5 if v == 0 else float(v > 0) for v in sides)


# ------------------------------------------------------------------ S092


def _self_reference(context: Context) -> Measured:
    judge = leaning(context)
    own = Sampling(max_tokens=36, temperature=0.0)
    ways = {
        "forced": Comparing(orders="given", hard=True),
        "ternary": Comparing(orders="both", inconsistent="tie"),
        "both": Comparing(orders="both", inconsistent="average"),
        "referred": Comparing(orders="both", inconsistent="average", reference=own),
    }
    judges = {n: PairwiseJudge(judge, OVERALL, ATTRIBUTE_ASKING, how, sampler=judge) for n, how in ways.items()}
    known = [duels(context, seed, 384) for seed in context.seeds]
    told = {n: [_asked(j, x) for x in known] for n, j in judges.items()}
    after = {
        n: [improved(context, x, f, seed) for x, f, seed in zip(known, told[n], context.seeds, strict=True)]
        for n in ("forced", "ternary", "both")
    }
    hit = {n: [_right(f, x) for f, x in zip(all, known, strict=True)] for n, all in told.items()}
    ties = [statistics.fmean(float(f.value == 0) for f in all) for all in told["ternary"]]
    return Measured(
        baseline=[after["forced"], hit["both"]],
        treatment=[after["ternary"], hit["referred"]],
        facts={
            **{f"utility_{n}": round(statistics.fmean(v), 4) for n, v in after.items()},
            **{f"right_{n}": round(statistics.fmean(v), 4) for n, v in hit.items()},
            "share_of_ties": round(statistics.fmean(ties), 4),
        },
    )


SELF_REFERENCE = Row(
    id="S092",
    claim="A pair on which a position-biased judge contradicts itself is better called a tie than decided by one order; "
    "and a judge that first answers itself, and looks at that, labels better.",
    setup="0.46M policy, attribute world, the base as judge after 10 steps with a teacher who leans to the first place; "
    "384 pairs of the base's answers, 16 steps of DPO with Davidson's ties; labels of both orders averaged, with and "
    "without the judge's own answer in the question",
    core="triloop.sources.lm_pairs.Comparing(orders, inconsistent, reference); --cycle.ai.both-orders",
    contrasts=(
        Contrast(
            metric="held-out utility after DPO",
            treatment="ties where orders disagree",
            baseline="one order decides",
            above=0.0,
            below=0.0,
        ),
        Contrast(
            metric="share of pairs labelled rightly",
            treatment="with its own answer",
            baseline="without",
            above=0.0,
            below=0.0,
        ),
    ),
    run=_self_reference,
    base="base:attributes",
    changed_after_first_look="Rule: as first written; nothing of the experiment either. Tried with "
    "one seed (2026-11-21): the base without a "
    "lean (0.72 with its own answer, 0.75 without), and judges of chained arithmetic, taught in 200 steps, which stayed at "
    "chance with and without it. Tried since, after the recorded result: a judge of 64 units and three layers taught from "
    "nothing to solve such chains, to compare two results at once, and to compare them with a solution at hand, in 600 "
    "steps of 96: it solves 0.11 and compares 0.51 with its own answer and without. What it lacks is the comparison "
    "itself: in 200 steps a model of two layers does not even find which of two digits is a third (0.47).",
    parts=("sources.lm_pairs", "loops.study"),
)


# ------------------------------------------------------------------ A09


JUDGED, LESSONS, TAUGHT = 4, 2_000, 120
"""Facts of the requests that are judged, lessons of either kind, and steps of 64 on them."""
_COVERAGE = Principle(name="coverage", text="coverage", question="coverage")


def _taught_judge(context: Context, env: Attributes, seed: int) -> NativePolicy:
    """The base, taught further to compare coverage by a teacher without error: as often at once as with findings first."""
    judge, draw, lessons = lab.fresh(context.base), rng.generator(seed, "atlas", "reasoned"), []
    for i, prompt in enumerate(lab.prompts(env, context.scaled(2 * LESSONS), seed=seed, start=20_000)):
        rates = [{k: 1.1 * float(draw.random()) * v for k, v in MEDIOCRE.items()} for _ in range(2)]
        first, second = (env.demonstration(prompt, draw, rates=r) for r in rates)
        question, said = compare(prompt, first, second, "coverage", reason=i % 2 == 1)
        lessons.append((Prompt(id=question, text=question), said))
    shown = lab.demonstrations(judge, lessons)
    lab.learn(judge, shown, "sft", steps=context.scaled(TAUGHT), lr=6e-4, seed=seed)
    return judge


def _covered(context: Context, env: Attributes, seed: int) -> list[KnownPair]:
    """Pairs of the base's answers that differ in how many of the requested facts they name."""
    asked = lab.prompts(env, context.scaled(448), seed=seed)
    found = []
    for p, group in zip(asked, lab.sample(lab.fresh(context.base), asked, 2, seed=seed), strict=True):
        a, b = (env.attributes(p, c.text)["coverage"] for c in group)
        found.append(KnownPair(prompt=p, first=group[0].text, second=group[1].text, truth=a - b))
    return [x for x in found if x.truth]


def _reasoned(context: Context) -> Measured:
    env, how = Attributes(mixture=(JUDGED,)), Comparing(orders="both", inconsistent="average")
    hit: dict[str, list[float]] = {"at_once": [], "reasoned": []}
    for seed in context.seeds:
        judge, known = _taught_judge(context, env, seed), _covered(context, env, seed)
        for name, asking in (("at_once", ATTRIBUTE_ASKING), ("reasoned", ATTRIBUTE_REASONING)):
            asked = PairwiseJudge(judge, _COVERAGE, asking, how, sampler=judge)
            hit[name].append(_right(_asked(asked, known), known))
    return Measured(
        baseline=[hit["at_once"]],
        treatment=[hit["reasoned"]],
        facts={name: round(statistics.fmean(values), 4) for name, values in hit.items()},
    )


REASONED = Row(
    id="A09",
    claim="A judge that writes down what it finds before its verdict agrees with the truth more often than one that "
    "answers at once.",
    setup=f"0.46M policy, attribute world, requests of {JUDGED} facts: the base, taught further to compare how many of "
    f"them two answers name ({TAUGHT} steps of 64 on {LESSONS:,} lessons at once and {LESSONS:,} with findings, fact by "
    "fact, no errors), compares some 300 pairs of the base's answers, in both orders with soft labels, at once and "
    "findings first",
    core="triloop run online-ai-feedback --cycle.ai.reasoning true",
    contrasts=(
        Contrast(
            metric="share of pairs labelled rightly",
            treatment="findings first",
            baseline="at once",
            above=0.0,
            below=0.0,
        ),
    ),
    run=_reasoned,
    seeds=(20, 21, 22, 23),
    base="base:attributes",
    changed_after_first_look="A first set-up (the base as it is, 320 pairs compared overall, seeds 0 to 4) gave -1 "
    "(2026-11-21): -0.021 in [-0.036, -0.006], at once 0.769. Tried besides, with one seed: coverage alone; four sampled "
    "findings averaged; judges taught for 40 more steps, with and without findings; none was right more often with "
    "findings. The base had one lesson with findings to seven without, and they name faults and not facts; so judges are "
    "taught both ways alike now, and longer, where findings count what the verdict needs. A look at seed 10 gave 0.75 at "
    "once and 0.73 with findings after 120 steps (0.766 and 0.737 before, 0.756 and 0.732 after 180); it is recorded all "
    "the same, on four other seeds. Rule: as first written.",
    parts=("sources.lm_pairs", "loops.study"),
)


# ------------------------------------------------------------------ S127

THANKS, COMPLAINTS = ("thanks", "amazing thanks"), ("no",)
"""What content users say next, and what others do."""
USER = Persona(name="plain", pleased=0.2, noise=0.2, explains=0.0, patience=99)
"""Every fifth reaction is of the wrong polarity; who is displeased says no more than that."""
READ, HEARD = 3_072, 72
"""Dialogues that are read, and steps of reading."""
COMPARED, LABELLED = 768, 384
"""Pairs on which labels are compared with the truth, and those of them that DPO learns from."""
SHOWN = "judge {request} {response} ; overall ?"
"""How an answer stands before its follow-up, so that what the base knows of judging is at hand."""


def dialogues(context: Context, policy: NativePolicy, seed: int) -> list[tuple[Prompt, str]]:
    """What users said to the policy's answers: request with answer, and the words that followed."""
    env = Attributes()
    users = UserJudge(UserSimulator(attribute_situation(env), (USER,), ATTRIBUTE_PHRASES, seed=seed))
    asked = lab.prompts(env, context.scaled(READ), seed=seed, start=10_000)
    texts = [g[0].text for g in lab.sample(policy, asked, 1, seed=seed)]
    said = users.react(asked, texts)
    shown = [" ".join(SHOWN.format(request=p.text, response=t).split()) for p, t in zip(asked, texts, strict=True)]
    return [(Prompt(id=text, text=text), r.words) for text, r in zip(shown, said, strict=True) if r.words]


def _follow_ups(context: Context) -> Measured:
    found: list[dict[str, float]] = []
    asking = Asking(templates=replace(ATTRIBUTE_TEMPLATES, follow=SHOWN))
    for seed in context.seeds:
        policy, listener = lab.fresh(context.base), lab.fresh(context.base)
        lessons = lab.demonstrations(listener, dialogues(context, policy, seed))
        lab.learn(listener, lessons, "sft", steps=context.scaled(HEARD), lr=6e-4, seed=seed)
        known = duels(context, seed, COMPARED)
        few = context.scaled(LABELLED)
        told = _by_value(FollowUpJudge(listener, THANKS, COMPLAINTS, asking), known)
        untaught = _by_value(FollowUpJudge(policy, THANKS, COMPLAINTS, asking), known)
        found.append(
            {
                "taught": _right(told, known),
                "untaught": _right(untaught, known),
                "length": _right(_versus([(len(x.second.split()), len(x.first.split())) for x in known]), known),
                "likelihood": _right(_versus(_likelihoods(policy, known)), known),
                "before": lab.held_out(policy, Attributes(), context.scaled(512), seed=seed).value,
                "after": improved(context, known[:few], told[:few], seed),
            }
        )
    by = {name: [f[name] for f in found] for name in found[0]}
    best = [max(x["length"], x["likelihood"]) for x in found]
    return Measured(
        baseline=[best, by["before"], by["untaught"]],
        treatment=[by["taught"], by["after"], by["taught"]],
        facts={name: round(statistics.fmean(values), 4) for name, values in by.items()},
    )


def _by_value(judge: FollowUpJudge, pairs: Sequence[KnownPair]) -> list[Feedback]:
    n, prompts = len(pairs), [x.prompt for x in pairs]
    r = judge.likelihoods([*prompts, *prompts], [x.first for x in pairs] + [x.second for x in pairs])
    return _versus(list(zip(r[:n], r[n:], strict=True)))


def _versus(values: Sequence[tuple[float, float]]) -> list[Feedback]:
    """The higher number is better."""
    return [write(pair_of(float((a > b) - (a < b)), hard=True), source="numbers") for a, b in values]


def _likelihoods(policy: NativePolicy, pairs: Sequence[KnownPair]) -> list[tuple[float, float]]:
    """Mean log-probability a token of either answer."""
    rows = [(policy.encode(x.prompt), continuation(policy, x.prompt, t)) for x in pairs for t in (x.first, x.second)]
    mean = [float(x.mean()) for x in policy.logprobs(rows)]
    return list(zip(mean[0::2], mean[1::2], strict=True))


FOLLOW_UPS = Row(
    id="S127",
    claim="How likely thanks are, against a complaint, after an answer tells good answers from bad ones better than length "
    "or likelihood; it tells more once the model has read users; and DPO on it raises quality.",
    setup=f"0.46M policy, attribute world; a copy of it reads {READ:,} short dialogues with simulated users, one reaction "
    f"in five of the wrong polarity ({HEARD} steps); {COMPARED} pairs of the base's answers labelled by follow-ups, 16 "
    f"steps of DPO on {LABELLED} of them",
    core="triloop.sources.lm_followups.FollowUpJudge",
    contrasts=(
        Contrast(
            metric="share of pairs labelled rightly",
            treatment="follow-ups",
            baseline="the better of shorter and likelier",
            above=0.05,
            below=0.0,
        ),
        Contrast(metric="held-out utility", treatment="DPO on follow-ups", baseline="base", above=0.05, below=0.0),
        Contrast(
            metric="share of pairs labelled rightly",
            treatment="having read users",
            baseline="not having",
            above=0.0,
            below=0.0,
        ),
    ),
    run=_follow_ups,
    seeds=(20, 21, 22, 23, 24),
    base="base:attributes",
    changed_after_first_look="Experiment: 512 dialogues over 24 steps, the follow-up right behind the answer, are 2,048 "
    "over 60 with the base's judging words before it, after looks with one seed (2026-11-21) that labelled 0.57 "
    "of pairs rightly, likelihood 0.69. A first full result on seeds 0 to 4 (2026-11-21) missed the first margin by its "
    "interval alone: +0.091 in [0.046, 0.136] over length and likelihood, utility +0.314 in [0.285, 0.342], having read "
    "users +0.056 in [0.012, 0.099]. So labels are compared on 768 pairs in place of 384, and the copy reads 3,072 "
    "dialogues, each about as often; on five other seeds, after two looks (seeds 10 and 11) at other rates and steps. "
    "Rule: as first written, thresholds too.",
    parts=("sources.lm_followups", "sources.users", "loops.study"),
)


LABELLERS = (SELF_REFERENCE, REASONED, FOLLOW_UPS)
"""The rows of this module."""
