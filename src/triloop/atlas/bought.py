"""Rows on which feedback to buy: S074 how many dimensions and how fine, S168 feedback on references, used again."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from triloop.atlas import lab
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.envs.attributes import Attributes, requested
from triloop.envs.attributes_language import SUBJECTS, WEIGHTS, blamed
from triloop.feedback.contents import Rubric, Text
from triloop.feedback.conversions_values import rubric_to_scalar
from triloop.feedback.kinds import read
from triloop.feedback.simulate import Annotator
from triloop.learn.examples import Demonstration, Preference
from triloop.policies.native import NativePolicy
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Feedback, Prompt
from triloop.sources.annotators import JudgedKind, Person
from triloop.sources.attribute_asking import ATTRIBUTE_TEMPLATES, RULES
from triloop.sources.lm_critic import PolicyReviser, Writing

__all__ = [
    "BOUGHT",
    "DIMENSIONS",
    "LOOKS",
    "REFERENCES",
    "REUSED",
    "Group",
    "Value",
    "lost",
    "synthetic",
]


# ------------------------------------------------------------------ S074

LOOKS = 0.75
"""Chance that a judge really looks at what is asked, be it a whole answer, one dimension of it, or one fault."""
Group = tuple[Prompt, list[Completion]]
Value = Callable[[Feedback, Prompt], float]


def _judges(seed: int) -> dict[str, tuple[Person, Value]]:
    """Configurations of feedback: who says it, and how it becomes a number."""

    def who(kind: JudgedKind, weights: dict[str, float]) -> Person:
        return Person(Attributes(), Annotator(name=kind, weights=weights, skill=LOOKS, seed=seed), kind=kind)

    every = dict(WEIGHTS)
    return {
        "whole": (who("scalar", every), _number),
        "one": (who("rubric", {"coverage": 1.0}), _number),
        "several": (who("rubric", every), _weighed),
        "fine": (who("text", every), _fault_by_fault),
    }


def _number(f: Feedback, _: Prompt) -> float:
    return f.value or 0.0


def _weighed(f: Feedback, _: Prompt) -> float:
    content = read(f)
    assert isinstance(content, Rubric)
    return rubric_to_scalar(content, weights=WEIGHTS).value


def lost(critique: str, requested: int) -> float:
    """Weight of the faults that a critique names: of each attribute once, and of coverage the share of facts that are
    missing."""
    named = [name for clause in critique.split(" ; ") for name in blamed(clause)]
    missing = min(1.0, named.count("coverage") / requested)
    return WEIGHTS["coverage"] * missing + sum(WEIGHTS[name] for name in set(named) - {"coverage"})


def _fault_by_fault(f: Feedback, prompt: Prompt) -> float:
    content = read(f)
    assert isinstance(content, Text)
    return 0.0 if content.sign == 1 else -lost(content.critique, len(requested(prompt)))


def _best_and_worst(groups: Sequence[Group], judge: Person, value: Value) -> list[Group]:
    """Of each group the best and the worst by these numbers, where they differ."""
    found = []
    for prompt, group in groups:
        scores = [value(f, prompt) for f in judge.judge([prompt] * len(group), [c.text for c in group])]
        high, low = scores.index(max(scores)), scores.index(min(scores))
        if scores[high] > scores[low] and group[high].tokens != group[low].tokens:
            found.append((prompt, [group[high], group[low]]))
    return found


def _after(context: Context, chosen: Sequence[Group], seed: int, *, objective: str = "dpo") -> float:
    """Held-out utility after 16 steps on what was chosen: on pairs, or on the better ones alone."""
    policy, reference = lab.fresh(context.base), lab.fresh(context.base)
    taught: list[Preference | Demonstration] = [
        Preference(prompt_tokens=a.prompt_tokens, first=a.tokens, second=b.tokens)
        if objective == "dpo"
        else Demonstration(prompt_tokens=a.prompt_tokens, tokens=a.tokens)
        for _, (a, b) in chosen
    ]
    lab.learn(policy, taught, objective, steps=context.scaled(16), seed=seed, reference=reference)
    return lab.held_out(policy, Attributes(), context.scaled(512), seed=seed).value


def _dimensions(context: Context) -> Measured:
    found: list[dict[str, float]] = []
    for seed in context.seeds:
        policy = lab.fresh(context.base)
        asked = lab.prompts(Attributes(), context.scaled(320), seed=seed)
        groups = list(zip(asked, lab.sample(policy, asked, 4, seed=seed), strict=True))
        chosen = {name: _best_and_worst(groups, *judge) for name, judge in _judges(seed).items()}
        after = {name: _after(context, pairs, seed) for name, pairs in chosen.items()}
        after["fine_sft"] = _after(context, chosen["fine"], seed, objective="sft")
        found.append(after)
    by = {name: [f[name] for f in found] for name in found[0]}
    return Measured(
        baseline=[by["whole"], by["one"], by["several"], by["fine_sft"]],
        treatment=[by["fine"]] * 4,
        facts={name: round(statistics.fmean(values), 4) for name, values in by.items()},
    )


_UTILITY = "held-out utility"
DIMENSIONS = Row(
    id="S074",
    claim="Feedback in several dimensions, fault by fault, teaches more than a mark for the whole or for one dimension, "
    "and no less than a mark for each; and DPO makes more of it than imitating the best.",
    setup=f"0.46M policy, attribute world; 320 requests x 4 answers, judged by people who really look at what is asked "
    f"with chance {LOOKS:g}: one number, a mark for coverage, a mark for each of six attributes, or a critique; best "
    "against worst of each group, 16 steps of DPO",
    core="triloop run mixed --cycle.collect.kinds text; triloop.sources.annotators.Person",
    contrasts=(
        Contrast(metric=_UTILITY, treatment="fault by fault", baseline="the whole", above=0.0, below=0.0),
        Contrast(metric=_UTILITY, treatment="fault by fault", baseline="one dimension", above=0.0, below=0.0),
        Contrast(metric=_UTILITY, treatment="fault by fault", baseline="each dimension", above=-0.05, below=-0.05),
        Contrast(metric=_UTILITY, treatment="fault by fault, DPO", baseline="imitating the best", above=0.0, below=0.0),
    ),
    run=_dimensions,
    base="base:attributes",
    changed_after_first_look="Experiment: a critique counted by its number of faults, and counts by the weight of what "
    "they fault, as the marks do, after a look with one seed (2026-11-21): utility 0.595, then 0.652, against 0.659 with "
    "one number. Rule: as first written.",
    parts=("sources.annotators", "feedback.conversions", "loops.study"),
)


# ------------------------------------------------------------------ S168

REUSED = 8
"""Synthetic requests that share the feedback on one reference."""


def synthetic(reference: Prompt) -> list[Prompt]:
    """Requests like a reference's: the same facts of other subjects."""
    others = [s for s in SUBJECTS if s != reference.meta["subject"]]
    return [Attributes().parse(f"tell {s} {' '.join(requested(reference))} :") for s in others[:REUSED]]


def _revised(policy: NativePolicy, written: Sequence[tuple[Prompt, str]], said: Sequence[str], seed: int) -> list[str]:
    """The answers after one revision by the policy, as the critiques have it; one that fails stays as it was."""
    writing = Writing(templates=ATTRIBUTE_TEMPLATES, sampling=Sampling(max_tokens=44), seed=seed)
    edits = PolicyReviser(policy, RULES, writing).revise([p for p, _ in written], [t for _, t in written], said)
    return [t if f.failed else str(f.content["revised"]) for (_, t), f in zip(written, edits, strict=True)]


def _taught(context: Context, written: Sequence[tuple[Prompt, str]], seed: int) -> float:
    policy = lab.fresh(context.base)
    lessons = lab.demonstrations(policy, written)
    lab.learn(policy, lessons, "sft", steps=context.scaled(24), lr=4e-4, seed=seed)
    return lab.held_out(policy, Attributes(), context.scaled(512), seed=seed).value


def _references(context: Context) -> Measured:
    env, found = Attributes(), list[dict[str, float]]()
    for seed in context.seeds:
        policy, person = lab.fresh(context.base), lab.person(env, seed=seed)
        references = lab.prompts(env, context.scaled(48), seed=seed, start=40_000)
        groups = lab.sample(policy, references, 4, seed=seed, round=2)
        worst = [min((c.text for c in g), key=lambda t: env.gold([p], [t])[0].value or 0.0)
                 for p, g in zip(references, groups, strict=True)]  # fmt: skip
        once = [str(f.content["critique"]) for f in person.critique(references, worst)]
        asked = [p for r in references for p in synthetic(r)]
        written = [(p, g[0].text) for p, g in zip(asked, lab.sample(policy, asked, 1, seed=seed), strict=True)]
        each = [str(f.content["critique"]) for f in person.critique(asked, [t for _, t in written])]
        again = _revised(policy, written, [c for c in once for _ in range(REUSED)], seed)
        alone = _revised(policy, written, each, seed)
        found.append(
            {
                "none": _taught(context, written, seed),
                "reference": _taught(context, list(zip(asked, again, strict=True)), seed),
                "sample_as_many_calls": _taught(context, list(zip(asked, alone, strict=True))[::REUSED], seed),
                "sample_each": _taught(context, list(zip(asked, alone, strict=True)), seed),
                "references_alone": _taught(context, [(p, env.right_answer(p)) for p in references], seed),
            }
        )
    by = {name: [f[name] for f in found] for name in found[0]}
    return Measured(
        baseline=[by["none"], by["sample_as_many_calls"]],
        treatment=[by["reference"], by["reference"]],
        facts={name: round(statistics.fmean(values), 4) for name, values in by.items()}
        | {"calls": 48, "calls_sample_each": 48 * REUSED},
    )


REFERENCES = Row(
    id="S168",
    claim="Feedback on a few references, used again for what is made from them, teaches more than none, and no less than "
    "as many critiques of single samples.",
    setup="0.46M policy, attribute world; 48 reference requests, of each one critique by a person, who sees the worst of "
    f"the base's four answers; {REUSED} synthetic requests from each, answered by the base and revised with that critique; "
    "24 supervised steps; against revising with a critique of each answer, of as many answers as there were calls",
    core="triloop run constitutional; triloop.sources.lm_critic.PolicyReviser",
    contrasts=(
        Contrast(metric=_UTILITY, treatment="critiques of references", baseline="no feedback", above=0.05, below=0.0),
        Contrast(
            metric=_UTILITY,
            treatment="critiques of references",
            baseline="as many critiques of samples",
            above=-0.05,
            below=-0.05,
        ),
    ),
    run=_references,
    seeds=(0, 1, 2, 3),
    base="base:attributes",
    changed_after_first_look="Experiment: a reference's critique was of an empty answer and is of the base's worst of "
    "four, after a look with one seed (2026-11-21): 0.51 and 0.57, against 0.62 with as many critiques of samples. Rule: "
    "written after that look, and before the others.",
    parts=("sources.annotators", "sources.lm_critic", "loops.study"),
)


BOUGHT = (DIMENSIONS, REFERENCES)
"""The rows of this module."""
