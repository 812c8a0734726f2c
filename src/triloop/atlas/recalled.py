"""A world in which a judge has to remember what is true: what is asked for stands in no request.

    prompt      tell fox                                         of the fox the judge was taught: red , den , nest
    answer      please note the fox is red , den , pond .        covers two of three

S092 needs it: where everything stands in the request, a judge's own answer tells it nothing that it does not see already.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace

from triloop import rng
from triloop.atlas import lab
from triloop.atlas.ai_feedback import right
from triloop.atlas.frame import Context
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_language import FACTS, SUBJECTS
from triloop.envs.attributes_skills import COMPARE
from triloop.policies.native import NativePolicy
from triloop.policies.sampling import Sampling
from triloop.records import Prompt
from triloop.sources.asking import Asking
from triloop.sources.attribute_asking import ATTRIBUTE_TEMPLATES
from triloop.sources.constitution import Principle
from triloop.sources.debias import KnownPair
from triloop.sources.lm_pairs import Comparing, PairwiseJudge

__all__ = ["COVERAGE", "DRAFTS", "RECALLING", "drafts", "knowing", "known", "labelled", "stated"]

COVERAGE = Principle(name="coverage", text="coverage", question="coverage")
WORLD = Attributes(weights={"coverage": 1.0})
RECALLING = Asking(
    templates=replace(
        ATTRIBUTE_TEMPLATES,
        answer="{request} :",
        referred="{request} {reference}",
        compare=COMPARE.replace("{request}", "{request} :"),
    )
)
"""The judge's own answer is a note of the facts, and a request with this note looks like one that says what it wants."""
DRAFTS = 640
"""Pairs of answers; some two in three differ in what they cover."""
World = Mapping[str, tuple[str, ...]]
"""What is true: subject -> facts."""


def known(seed: int) -> dict[str, tuple[str, ...]]:
    """One world: three or four facts of every subject."""
    draw = rng.generator(seed, "atlas", "known")
    return {
        s: tuple(FACTS[k] for k in draw.permutation(len(FACTS))[: 3 + int(draw.integers(2))].tolist()) for s in SUBJECTS
    }


def stated(world: World, subject: str) -> Prompt:
    """The request as it would say what it wants."""
    return WORLD.parse(f"tell {subject} {' '.join(world[subject])} :")


def drafts(context: Context, world: World, seed: int) -> list[KnownPair]:
    """Pairs of answers by two writers, each of whom knows any share of the facts; those that cover differently much."""
    draw, n = rng.generator(seed, "atlas", "drafts"), context.scaled(DRAFTS)
    asked, subjects = [], [SUBJECTS[i % len(SUBJECTS)] for i in range(n)]
    for i in range(2 * n):
        facts, knows = world[subjects[i // 2]], float(draw.random())
        wrong = iter([FACTS[k] for k in draw.permutation(len(FACTS)).tolist() if FACTS[k] not in facts])
        told = [f if draw.random() < knows else next(wrong) for f in facts]
        asked.append(replace(WORLD.parse(f"tell {subjects[i // 2]} {' '.join(told)} :"), id=f"draft:{i}"))
    texts = [g[0].text for g in lab.sample(lab.fresh(context.base), asked, 1, seed=seed)]
    found = []
    for a, b, subject in zip(texts[0::2], texts[1::2], subjects, strict=True):
        worth = [f.value or 0.0 for f in WORLD.gold([stated(world, subject)] * 2, [a, b])]
        prompt = Prompt(id=f"known:{subject}", text=f"tell {subject}")
        found.append(KnownPair(prompt=prompt, first=a, second=b, truth=worth[0] - worth[1]))
    return [x for x in found if x.truth]


def knowing(context: Context, world: World, seed: int) -> NativePolicy:
    """The base, taught every subject's facts, and nothing else."""
    judge = lab.fresh(context.base)
    facts = [(Prompt(id=f"own:{s}", text=f"tell {s} :"), " ".join(f)) for s, f in world.items()]
    lab.learn(judge, lab.demonstrations(judge, facts * 8), "sft", steps=context.scaled(60), lr=6e-4, seed=seed)
    return judge


def labelled(context: Context, seed: int) -> dict[str, float]:
    """Share of pairs labelled rightly ``alone`` and ``referred`` to its own answer, and how much of that answer is true."""
    world = known(seed)
    judge, pairs = knowing(context, world, seed), drafts(context, world, seed)
    own = Sampling(max_tokens=24, temperature=0.0)
    found = {}
    for name, reference in (("alone", None), ("referred", own)):
        how = Comparing(orders="both", inconsistent="average", reference=reference)
        found[name] = right(PairwiseJudge(judge, COVERAGE, RECALLING, how, sampler=judge), pairs)
    asked = [Prompt(id=f"own:{s}", text=f"tell {s} :") for s in SUBJECTS]
    notes = [set(g[0].text.split()) for g in lab.sample(judge, asked, 1, seed=seed, sampling=own)]
    found["remembered"] = statistics.fmean(
        len(n & {*world[s]}) / len(world[s]) for n, s in zip(notes, SUBJECTS, strict=True)
    )
    return found
