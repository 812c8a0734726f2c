"""Rows on how a model labels: S092 ties and self-reference, A09 reasoning first, S127 what users would say next."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from triloop import rng
from triloop.atlas import lab
from triloop.atlas.ai_feedback import duels, leaning
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.atlas.recalled import DRAFTS, labelled
from triloop.envs.attributes import MEDIOCRE, Attributes
from triloop.envs.attributes_skills import compare
from triloop.feedback.kinds import write
from triloop.learn.examples import Preference
from triloop.learn.objective_config import ObjectiveConfig
from triloop.loops.assemble import continuation
from triloop.policies.native import NativePolicy
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
    "USERS",
    "dialogues",
    "duels_of_writers",
    "improved",
    "preferred",
    "writers",
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
    ways = {
        "forced": Comparing(orders="given", hard=True),
        "ternary": Comparing(orders="both", inconsistent="tie"),
    }
    judges = {n: PairwiseJudge(judge, OVERALL, ATTRIBUTE_ASKING, how) for n, how in ways.items()}
    known = [duels(context, seed, 384) for seed in context.seeds]
    told = {n: [_asked(j, x) for x in known] for n, j in judges.items()}
    after = {
        n: [improved(context, x, f, seed) for x, f, seed in zip(known, all, context.seeds, strict=True)]
        for n, all in told.items()
    }
    hit = {n: [_right(f, x) for f, x in zip(all, known, strict=True)] for n, all in told.items()}
    ties = [statistics.fmean(float(f.value == 0) for f in all) for all in told["ternary"]]
    found = [labelled(context, seed) for seed in context.seeds]
    by = {name: [f[name] for f in found] for name in found[0]}
    return Measured(
        baseline=[after["forced"], by["alone"]],
        treatment=[after["ternary"], by["referred"]],
        facts={
            **{f"utility_{n}": round(statistics.fmean(v), 4) for n, v in after.items()},
            **{f"right_{n}": round(statistics.fmean(v), 4) for n, v in (hit | by).items() if n != "remembered"},
            "share_of_ties": round(statistics.fmean(ties), 4),
            "own_answer_true": round(statistics.fmean(by["remembered"]), 4),
        },
    )


SELF_REFERENCE = Row(
    id="S092",
    claim="A pair on which a position-biased judge contradicts itself is better called a tie than decided by one order; "
    "and a judge that first answers itself, and looks at that, labels better.",
    setup="0.46M policy, attribute world. (1) The base as judge after 10 steps with a teacher who leans to the first "
    "place; 384 pairs of its answers, 16 steps of DPO with Davidson's ties. (2) Requests that do not say which facts they "
    "want: the base is taught three or four facts of each of 24 subjects, and to compare no further; it compares the "
    f"coverage of {DRAFTS} pairs of answers, by writers who know any share of the facts, alone or after noting them itself",
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
    seeds=(20, 21, 22, 23, 24, 25, 26, 27),
    base="base:attributes",
    changed_after_first_look="Experiment: a first set-up (2026-11-21, seeds 0 to 4; the leaning judge, one question, with "
    "and without its own answer) gave +0.109 in [0.093, 0.125] and -0.014 in [-0.026, -0.002]. There the request says "
    "what is wanted, the judge sees all of it, and its answer is no better than the candidates. So what is wanted now "
    "stands in no request, but in what the judge knows. Looks before: judges of arithmetic, taught in 200 to 600 steps "
    "to work out and to compare, stayed near chance with and without a solution at hand (0.47 to 0.54); judges taught "
    "the facts and, with and without them, to compare (seeds 50, 51 and 53; 60 to 180 steps) labelled no better for "
    "having the facts: 0.70 to 0.72 overall, 0.69 to 0.72 in coverage, 0.60 to 0.65 where counting facts does not help. "
    "Taught to compare no further, without and with its own answer: 0.74 and 0.73 overall, 0.65 and 0.67 in coverage "
    "(seed 52, two or three facts); 0.59 and 0.62 (seed 55, likewise); 0.58 and 0.66 (seed 54, three or four; and so it "
    "is now, in coverage). Eight other seeds. Rule: as first written.",
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
STANDARDS = (0.0, 0.4, 0.8)
"""Utility from which a user is content. One standard for all would tell nothing of two answers on the same side of it."""
USERS = tuple(Persona(name=f"{s:g}", pleased=s, love=0.3, explains=0.0, noise=0.1, patience=99) for s in STANDARDS)
"""Every tenth reaction is of the wrong polarity, whoever reacts; who is displeased says no more than that."""
READ, HEARD = 3_072, 72
"""Dialogues that are read, and steps of reading."""
COMPARED, LABELLED = 768, 384
"""Pairs of writers' answers on which labels are compared with the truth, and of the policy's own that DPO learns from."""
SHOWN = "judge {request} {response} ; overall ?"
"""How an answer stands before its follow-up, so that what the base knows of judging is at hand."""


def writers(prompts: Sequence[Prompt], seed: int, name: str) -> list[str]:
    """An answer to each prompt by a writer of his own, between an expert and one as careless as the base's teachers."""
    env, draw = Attributes(), rng.generator(seed, "atlas", "writers", name)
    care = [1.1 * float(u) for u in draw.random(len(prompts))]
    return [
        env.demonstration(p, draw, rates={k: c * v for k, v in MEDIOCRE.items()})
        for p, c in zip(prompts, care, strict=True)
    ]


def duels_of_writers(context: Context, seed: int, n: int) -> list[KnownPair]:
    """Pairs of answers by two writers, and how much better the first is."""
    env = Attributes()
    asked = lab.prompts(env, context.scaled(n), seed=seed)
    first, second = (writers(asked, seed, name) for name in ("first", "second"))
    worth = [[f.value or 0.0 for f in env.gold(asked, texts)] for texts in (first, second)]
    return [
        KnownPair(prompt=p, first=a, second=b, truth=u - v)
        for p, a, b, u, v in zip(asked, first, second, *worth, strict=True)
    ]


def dialogues(context: Context, seed: int) -> list[tuple[Prompt, str]]:
    """What users said to writers' answers: request with answer, and the words that followed."""
    env = Attributes()
    users = UserJudge(UserSimulator(attribute_situation(env), USERS, ATTRIBUTE_PHRASES, seed=seed))
    asked = lab.prompts(env, context.scaled(READ), seed=seed, start=10_000)
    texts = writers(asked, seed, "heard")
    said = users.react(asked, texts)
    shown = [" ".join(SHOWN.format(request=p.text, response=t).split()) for p, t in zip(asked, texts, strict=True)]
    return [(Prompt(id=text, text=text), r.words) for text, r in zip(shown, said, strict=True) if r.words]


def _follow_ups(context: Context) -> Measured:
    found: list[dict[str, float]] = []
    asking = Asking(templates=replace(ATTRIBUTE_TEMPLATES, follow=SHOWN))
    for seed in context.seeds:
        policy, listener = lab.fresh(context.base), lab.fresh(context.base)
        lessons = lab.demonstrations(listener, dialogues(context, seed))
        lab.learn(listener, lessons, "sft", steps=context.scaled(HEARD), lr=6e-4, seed=seed)
        known, own = duels_of_writers(context, seed, COMPARED), duels(context, seed, LABELLED)
        judge = FollowUpJudge(listener, THANKS, COMPLAINTS, asking)
        told, mined = _by_value(judge, known), _by_value(judge, own)
        untaught = _by_value(FollowUpJudge(policy, THANKS, COMPLAINTS, asking), known)
        found.append(
            {
                "taught": _right(told, known),
                "untaught": _right(untaught, known),
                "length": _right(_versus([(len(x.second.split()), len(x.first.split())) for x in known]), known),
                "likelihood": _right(_versus(_likelihoods(policy, known)), known),
                "before": lab.held_out(policy, Attributes(), context.scaled(512), seed=seed).value,
                "after": improved(context, own, mined, seed),
                "taught_on_own": _right(mined, own),
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
    setup=f"0.46M policy, attribute world; a copy of it reads {READ:,} short dialogues of simulated users of "
    f"{len(STANDARDS)} standards with writers of all kinds, from experts to one as careless as the base's teachers, one "
    f"reaction in ten of the wrong polarity ({HEARD} steps); labels compared on {COMPARED} pairs of two such writers; 16 "
    f"steps of DPO on {LABELLED} pairs of the base's own answers",
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
    seeds=tuple(range(40, 48)),
    base="base:attributes",
    changed_after_first_look="Experiment: 512 dialogues over 24 steps, the follow-up right behind the answer, are 2,048 "
    "over 60 with the base's judging words before it, after looks with one seed (2026-11-21) that labelled 0.57 "
    "of pairs rightly, likelihood 0.69. A first full result on seeds 0 to 4 (2026-11-21) missed the first margin by its "
    "interval alone: +0.091 in [0.046, 0.136] over length and likelihood, utility +0.314 in [0.285, 0.342], having read "
    "users +0.056 in [0.012, 0.099]. So labels are compared on 768 pairs in place of 384, and the copy reads 3,072 "
    "dialogues, each about as often; on five other seeds (20 to 24), after two looks (seeds 10 and 11) at other rates and "
    "steps: 0, +0.061 in [0.025, 0.098]; utility +0.272 in [0.191, 0.352], having read users +0.067 in [0.039, 0.094]. "
    "Looks at seeds 30 to 36 (users who explain, two words of complaint, users of several standards, up to 8,192 "
    "dialogues, other rates) led by -0.024 to 0.094: on two answers of one policy a listener of this size stays near "
    "0.74, whatever it reads. Benchmarks of preferences, on which the source measures, are of answers by writers of very "
    "different quality; so pairs and dialogues are such now, and only DPO learns from the policy's own answers. Looks at "
    "seeds 37 and 38, half as much read: +0.097 (seed 37), not having read 0.77 to 0.83. With thanks alone against no, "
    "not having read is as good (0.88, the base's own verdict); the phrases are as first written. Eight other seeds. "
    "Rule: as first written, thresholds too.",
    parts=("sources.lm_followups", "sources.users", "loops.study"),
)


LABELLERS = (SELF_REFERENCE, REASONED, FOLLOW_UPS)
"""The rows of this module."""
