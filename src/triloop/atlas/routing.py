"""Rows on which feedback is asked for, and of whom: A68 people, a judge or a verifier; S009 which kind by difficulty."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from triloop import rng
from triloop.atlas import lab
from triloop.atlas.dialogue import refinements
from triloop.atlas.fine_grained import UTILITY, Drawn, per_seed
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.envs.arithmetic import Arithmetic
from triloop.envs.attributes import GOOD, Attributes
from triloop.envs.attributes_language import ATTRIBUTES
from triloop.feedback.calibration import isotonic
from triloop.feedback.cascade import Rung, Tally, ask_next, settled, tally
from triloop.feedback.kinds import Abstention, Ternary, write
from triloop.feedback.routing import BY_DIFFICULTY, Offer, Question, by_difficulty
from triloop.feedback.simulate import Annotator, valued
from triloop.learn.examples import Example, Preference
from triloop.learn.objective_config import MixtureConfig, ObjectiveConfig
from triloop.policies.native import NativePolicy
from triloop.records import Feedback, Prompt
from triloop.refine.directed import Advise, Attempt, search, synthesised
from triloop.sources.attribute_asking import ATTRIBUTE_ASKING, OVERALL
from triloop.sources.lm_judge import YesNoJudge

__all__ = ["ROUTING", "Asked", "ellipsoid", "judged", "rosenbrock", "run_cascade", "slope", "waves"]

Vector = NDArray[np.float64]

# ------------------------------------------------------------------ A68

PEOPLE, JUDGE, CHECK = 1.0, 0.02, 0.001
"""Prices of a judgement."""
ERRS = 0.03
"""How often a person says the opposite of what is true."""
STAKES = 10.0
"""What a wrong label costs, in judgements of a person."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A stream of questions: what is true of each, and what each source would say, were it asked."""

    truth: Sequence[float]
    check: Sequence[Feedback]
    judge: Sequence[Feedback]
    people: Sequence[Feedback]


def run_cascade(asked: Asked, stakes: float) -> Tally:
    """Verifier; the judge where that abstains; a person where that is worth the price, if an error costs ``stakes``."""
    cascade = [
        Rung(offer=Offer(source=name, price=price, accuracy=1 - ERRS), accept_at=sure)
        for name, price, sure in (("check", CHECK, 0.0), ("judge", JUDGE, 1.0), ("people", PEOPLE, 0.0))
    ]
    final = []
    for i, words in enumerate(zip(asked.check, asked.judge, asked.people, strict=True)):
        said: list[Feedback] = []
        question = Question(id=str(i), stakes=stakes)
        while ask_next(cascade, said, question=question) is not None:
            said.append(words[len(said)])
        final.append(settled(cascade, said))
    return tally(final, asked.truth)


def _texts(policy: NativePolicy, env: Attributes, n: int, seed: int, start: int) -> list[tuple[Prompt, str]]:
    """Answers of the base, of which a few attributes are mended, so that good and bad ones are about as many."""
    asked = lab.prompts(env, n, seed=seed, start=start)
    made = []
    for p, (c,) in zip(asked, lab.sample(policy, asked, 1, seed=seed, round=start + 1), strict=True):
        mended = rng.generator(seed, "mended", p.id).random(len(ATTRIBUTES)) < 0.5
        made.append((p, env.revise(p, c.text, {a for a, m in zip(ATTRIBUTES, mended, strict=True) if m})))
    return made


def _stream(context: Context, seed: int) -> Asked:
    """As many answers of the attribute world, which no verifier reads, as results of arithmetic, which one does."""
    n, env, sums = context.scaled(400), Attributes(), Arithmetic()
    policy, person = lab.fresh(context.base), Annotator(name="person", flip=ERRS, seed=seed)
    judge = YesNoJudge(policy, OVERALL, ATTRIBUTE_ASKING)

    def people(ids: Sequence[str], truth: Sequence[float]) -> list[Feedback]:
        items = [valued(id, t) for id, t in zip(ids, truth, strict=True)]
        return [write(Ternary(person.ternary(item)), source="people", cost=PEOPLE) for item in items]

    known, new = (_texts(policy, env, n, seed, start) for start in (0, 5_000))
    old_truth, truth = (
        [1.0 if env.utility(env.attributes(*x)) > GOOD else -1.0 for x in some] for some in (known, new)
    )
    before, after = (np.nan_to_num(judge.differences([p for p, _ in x], [t for _, t in x])) for x in (known, new))
    labels = [(f.value or 0) > 0 for f in people([p.id for p, _ in known], old_truth)]  # calibrated on what people say
    chances = isotonic(before, np.array(labels))(after).tolist()
    sure = [write(Ternary(1 if p > 0.5 else -1), source="judge", confidence=max(p, 1 - p), cost=JUDGE) for p in chances]
    asked = sums.prompts("train", n, seed=seed)
    wrong = (rng.generator(seed, "wrong").random(n) < 0.5).tolist()
    given = [sums.wrong_answers(p)[-1] if w else sums.right_answer(p) for p, w in zip(asked, wrong, strict=True)]
    checked = [replace(f, source="check", cost=CHECK) for f in sums.judge(asked, given)]
    whole = [*truth, *(-1.0 if w else 1.0 for w in wrong)]
    return Asked(
        truth=whole,
        check=[*(write(Abstention("nothing to check"), source="check", cost=CHECK) for _ in new), *checked],
        judge=[*sure, *(write(Abstention("not its trade"), source="judge", cost=JUDGE) for _ in asked)],
        people=people([*(p.id for p, _ in new), *(f"{i} {p.id}" for i, p in enumerate(asked))], whole),
    )


def _mixed_at_random(asked: Asked, cost: float, seed: int) -> float:
    """Error where the judge or the verifier speaks, but of a random share a person, so that the mean cost is ``cost``."""
    machine = run_cascade(replace(asked, people=asked.judge), 0.0)
    share = (cost - machine.cost / machine.questions) / PEOPLE
    chosen = rng.generator(seed, "share").random(len(asked.truth)) < share
    final = [
        p if c else v if v.value else j
        for c, v, j, p in zip(chosen.tolist(), asked.check, asked.judge, asked.people, strict=True)
    ]
    return 1 - tally(final, asked.truth).accuracy


def _dial(context: Context) -> Measured:
    def one(seed: int) -> dict[str, float]:
        asked = _stream(context, seed)
        n = len(asked.truth)
        found = {"error_people": 1 - tally(asked.people, asked.truth).accuracy}
        for name, at in (("machines", 0.0), ("cascade", STAKES), ("careful", 3 * STAKES)):
            done = run_cascade(asked, at)
            found |= {f"error_{name}": 1 - done.accuracy, f"cost_{name}": done.cost / n / PEOPLE}
            found[f"share_of_people_{name}"] = done.share.get("people", 0.0)
        return {**found, "error_random": _mixed_at_random(asked, found["cost_cascade"], seed)}

    found = per_seed(context, one)
    half = [0.5] * len(context.seeds)
    return Measured(
        baseline=[found["error_people"], half, found["error_random"]],
        treatment=[found["error_cascade"], found["cost_cascade"], found["error_cascade"]],
        facts={name: round(statistics.fmean(v), 4) for name, v in found.items()},
    )


DIAL = Row(
    id="A68",
    claim="Asked in turn, a verifier, a calibrated judge and a person err no more than people alone, for less than half "
    "of the price; and less than if people were asked at random as often.",
    setup="400 answers of the 0.46M base in the attribute world (half of the defects mended), 400 results of arithmetic; "
    "prices 0.001, 0.02 and 1; people err on 3 %; the judge is the base itself, asked yes or no and calibrated on 400 "
    f"others labelled by people (not priced); a wrong label costs {STAKES:g}, so a person is asked below a confidence of "
    f"{1 - ERRS - PEOPLE / STAKES:g}",
    core="triloop.feedback.cascade",
    contrasts=(
        Contrast(
            metric="share of wrong labels",
            treatment="cascade",
            baseline="people alone",
            above=-0.02,
            below=-0.02,
            higher_is_better=False,
        ),
        Contrast(
            metric="price a question, people's being 1",
            treatment="cascade",
            baseline="a half",
            above=0.0,
            below=0.0,
            higher_is_better=False,
        ),
        Contrast(
            metric="share of wrong labels at equal price",
            treatment="cascade",
            baseline="people at random",
            above=0.0,
            below=0.0,
            higher_is_better=False,
        ),
    ),
    run=_dial,
    seeds=(3, 4, 5, 6, 7, 8),
    changed_after_first_look="Experiment: people were asked below a confidence of 0.97 and are where it is worth their "
    f"price ({1 - ERRS - PEOPLE / STAKES:g}), after a look at seeds 0 to 2 (2026-11-21), in which the price was undecided "
    "(0.44 of people's, and 0.22 since). These seeds are not among those recorded. Rule: as first written.",
    base="base:attributes",
    parts=("feedback.cascade", "feedback.calibration", "sources.lm_judge"),
)


# ------------------------------------------------------------------ S142

Function = Callable[[Vector], float]
_START = 4.0


def rosenbrock(x: Vector) -> float:
    """sum 5 (x_i+1 - x_i^2)^2 + (1 - x_i)^2, negative: a bent valley; 0 at (1, ..., 1) is best."""
    return -float((5 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())


def ellipsoid(x: Vector) -> float:
    """sum 30^(i / (d - 1)) (x_i - 1)^2, negative: some coordinates matter thirty times as much."""
    return -float((30 ** np.linspace(0, 1, len(x)) * (x - 1) ** 2).sum())


def waves(x: Vector) -> float:
    """sum (x_i - 1)^2 + 2 (1 - cos(3 (x_i - 1))), negative: many hills on a hill."""
    return -float(((x - 1) ** 2 + 2 * (1 - np.cos(3 * (x - 1)))).sum())


def slope(f: Function, x: Vector, eps: float = 1e-5) -> Vector:
    """Central differences."""
    steps = np.eye(len(x)) * eps
    return np.array([(f(x + e) - f(x - e)) / (2 * eps) for e in steps])


def _advisers(f: Function) -> dict[str, Advise | None]:
    def true_sign(_: Sequence[Attempt], best: Attempt) -> Vector:
        return np.sign(slope(f, best.point))

    return {"score": None, "synthesised": synthesised, "sign": true_sign}


def _regret(f: Function, coordinates: int, advise: Advise | None, n: int, g: np.random.Generator) -> float:
    """log10 of what is lacking after n attempts, over what was at the start; 1e-6 at least."""
    start = 1 + _START * np.where(g.random(coordinates) < 0.5, -1.0, 1.0) * g.uniform(0.5, 1.0, coordinates)
    tried = search(f, start, advise, n, rng=g)
    return math.log10(max(1e-6, max(a.score for a in tried) / tried[0].score))


def _directions(context: Context) -> Measured:
    starts, n = context.scaled(60), 40

    def one(seed: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for f in (rosenbrock, ellipsoid, waves):
            for name, advise in _advisers(f).items():
                draws = (rng.generator(seed, "directions", f.__name__, i) for i in range(starts))
                found[f"{f.__name__}_{name}"] = statistics.fmean(_regret(f, 4, advise, n, g) for g in draws)
        for name in ("score", "synthesised", "sign"):
            found[name] = statistics.fmean(v for k, v in found.items() if k.endswith(f"_{name}"))
        return found

    found = per_seed(context, one)
    return Measured(
        baseline=[found["score"], found["score"], found["synthesised"]],
        treatment=[found["sign"], found["synthesised"], found["sign"]],
        facts={name: round(statistics.fmean(v), 4) for name, v in found.items()},
    )


_LACKING = "log10 of the share of the start's regret that is left"
DIRECTIONS = Row(
    id="S142",
    claim="An optimiser that is told which way to change each coordinate gets further in as many attempts than one that is "
    "told the score alone; a direction made up from past attempts and their scores lies between.",
    setup="no language model: proposals around the best point so far, by what is said of it; three functions of four "
    "coordinates (a bent valley, an ill-scaled bowl, waves), 60 starts each, 40 attempts",
    core="triloop.refine.directed",
    contrasts=tuple(
        Contrast(metric=_LACKING, treatment=a, baseline=b, above=0.0, below=0.0, higher_is_better=False)
        for a, b in (("true signs", "score"), ("signs from the past", "score"), ("true signs", "signs from the past"))
    ),
    run=_directions,
    base="base:attributes",
    parts=("refine.directed",),
)


# ------------------------------------------------------------------ S009

BUDGET, EACH = 300, 4
"""Judgements, and samples of a request by which its difficulty is known."""


def judged(
    policy: NativePolicy, env: Attributes, kind: str, asked: Sequence[Prompt], drawn: Drawn
) -> Sequence[Example]:
    """One judgement of this kind a request: a critique of the first sample, by which the policy revises it itself; its
    revision; or which of two is better."""
    person = lab.person(env)
    if kind == "text":
        drafts = [(p, group[0].text) for p, group in zip(asked, drawn, strict=True)]
        revised_by = refinements(policy, drafts, [env.critique(p, t) for p, t in drafts], 1, seed=0)
        return lab.demonstrations(policy, [(p, t) for p, (t,) in zip(asked, revised_by, strict=True) if t])
    if kind == "edit":
        revised = [(p, env.revise(p, group[0].text)) for p, group in zip(asked, drawn, strict=True)]
        return lab.demonstrations(policy, revised)
    told = person.compare(asked, [g[0].text for g in drawn], [g[1].text for g in drawn])
    return [
        Preference(prompt_tokens=a.prompt_tokens, first=a.tokens, second=b.tokens, p=0.5 + (f.value or 0.0) / 2)
        for (a, b, *_), f in zip(drawn, told, strict=True)
        if a.tokens and b.tokens and f.value
    ]


LEARN_ALL = MixtureConfig(
    demonstrations=ObjectiveConfig(name="sft"),
    pairs=ObjectiveConfig(name="dpo", beta=0.1),
    normalise="examples",
)


def _by_difficulty(context: Context) -> Measured:
    env, steps, held = Attributes(mixture=(1, 2, 3, 4)), context.scaled(20), context.scaled(512)

    def one(seed: int) -> dict[str, float]:
        base = lab.fresh(context.base)
        asked = lab.prompts(env, context.scaled(BUDGET), seed=seed)
        drawn = lab.sample(base, asked, EACH, seed=seed)
        worth = [
            statistics.fmean(env.utility(env.attributes(p, c.text)) for c in g)
            for p, g in zip(asked, drawn, strict=True)
        ]
        questions = [Question(id=p.id, difficulty=(1 - w) / 2) for p, w in zip(asked, worth, strict=True)]
        routes: dict[str, Mapping[str, str]] = {
            "routed": by_difficulty(questions, seed=seed),
            "reversed": by_difficulty(questions, BY_DIFFICULTY[::-1], seed=seed),
            **{kind: dict.fromkeys((p.id for p in asked), kind) for kind in BY_DIFFICULTY},
        }
        found = {"base": lab.held_out(base, env, held, seed=seed).value}
        for name, route in routes.items():
            examples: list[Example] = []
            for kind in BY_DIFFICULTY:
                mine = [i for i, p in enumerate(asked) if route[p.id] == kind]
                examples += judged(base, env, kind, [asked[i] for i in mine], [drawn[i] for i in mine]) if mine else []
            policy = lab.fresh(context.base)
            lab.learn(policy, examples, LEARN_ALL, steps=steps, lr=5e-4, seed=seed, reference=base)
            found[name] = lab.held_out(policy, env, held, seed=seed).value
        return found

    found = per_seed(context, one)
    best = max(BY_DIFFICULTY, key=lambda kind: statistics.fmean(found[kind]))
    return Measured(
        baseline=[found[best]],
        treatment=[found["routed"]],
        facts={"best_kind": best, **{name: round(statistics.fmean(v), 4) for name, v in found.items()}},
    )


DIVERSE = Row(
    id="S009",
    claim="Critiques where a request is easy, revisions where it is of middling difficulty and comparisons where it is "
    "hard teach more than as many judgements of the best single kind.",
    setup="0.46M policy, attribute world with one to four facts; 300 exact judgements, one a request; difficulty is the "
    "mean utility of 4 samples; by critiques the policy revises its answers itself, and imitates them; revisions are "
    "imitated, comparisons go to DPO; 20 steps. Outside the rule: the reverse routes",
    core="triloop.feedback.routing.by_difficulty and triloop run mixed",
    contrasts=(Contrast(metric=UTILITY, treatment="routed", baseline="best single kind", above=0.0, below=0.0),),
    run=_by_difficulty,
    seeds=(20, 21, 22, 23, 24, 25),
    base="base:attributes",
    parts=("feedback.routing", "learn.mixture", "envs.attributes_skills"),
    changed_after_first_look="A first set-up (critiques became marked passages; seeds 1 to 4, 256 held-out requests) gave "
    "-1 (2026-11-21): over the best single kind, revisions, +0.013 in [-0.024, 0.050]; over the reverse -0.041 in [-0.077, "
    "-0.006] (routed 0.714, reverse 0.756, revisions 0.701, comparisons 0.679, critiques 0.671). The reverse is not in the "
    "source's claim: it is left out of the rule and stands among the facts. A passage marked good in an easy answer "
    "teaches little; in the source critiques become refined answers, and so they do now, by the policy's own revision, "
    "which is what makes them enough where it is nearly right. 512 held-out requests, six other seeds, no look before. "
    "Rule: without the reverse.",
)

ROUTING: tuple[Row, ...] = (DIAL, DIRECTIONS, DIVERSE)
