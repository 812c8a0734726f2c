"""Does it pay to learn from several kinds of feedback at once, and does it cost to drop the zeros?

    python proofs/mixed.py [--seeds 0 1 2 3 4]

The attribute world, its base, simulated people who overlook a fifth of what there is to see, are unsure near the bar and
say the opposite of what they mean one time in ten. Each of ``GENERATIONS`` generations samples the policy, buys ``LABELS``
judgements and takes ``STEPS`` steps on these; a critique, an edit, a comparison and a mark are one label each.

Two rules, fixed before the run; rates and people were tried on seeds 100 and above alone.
1: A policy that learns from marks of +1, 0 and -1, pairs with ties, written critiques and edits in the same batches, a
quarter of the labels each, is better than each policy that spends all its labels on one of these kinds: the interval over
held-out problems and seeds, paired, lies above 0. Each kind has the objective and the rate that suited it best.
2: With marks and pairs from people who call a third of all differences none, keeping the zeros (a tie is learned as
a tie, an unsure mark holds the policy where it is) is better than dropping them: the same judgements, the same number of
steps, the interval above 0.
Writes docs/proof/mixed.md and mixed.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from triloop import stats
from triloop.atlas.lab import fresh, held_out, learn, prompts, sample
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_language import CLAUSES
from triloop.feedback.simulate import Annotator
from triloop.learn.examples import Example, Preference, Rated
from triloop.learn.objective_config import MixtureConfig, ObjectiveConfig
from triloop.loops.assemble import Pool, examples
from triloop.records import Completion, Episode, Feedback, Prompt
from triloop.sources.annotators import Person

ROOT = Path(__file__).resolve().parents[1]
GENERATIONS, LABELS, STEPS, BATCH, HELD_OUT = 4, 384, 16, 64, 512
CLEAR = {"temperature": 0.1, "flip": 0.1, "tie": 0.1, "abstain": 0.1, "skill": 0.8}
WIDELY = False
REFERENCE = "generation"
UNSURE = {**CLEAR, "tie": 0.3, "abstain": 0.3}
"""People: see ``triloop.feedback.simulate.Annotator``."""
OBJECTIVES = {
    "marks": ("rated", ObjectiveConfig(name="pmpo")),
    "pairs": ("pairs", ObjectiveConfig(name="dpo_davidson")),
    "critiques": ("spans", ObjectiveConfig(name="span_pg")),
    "edits": ("demonstrations", ObjectiveConfig(name="sft")),
}
"""Kind -> what it is learned from as, and by which objective, alone and in the mixture."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to spend the labels."""

    kinds: tuple[str, ...]
    lr: float
    people: str = "clear"
    zeros: bool = True
    """Whether ties and unsure marks are learned from."""
    beside: tuple[tuple[str, float], ...] = ()
    """Coefficients of kinds in the mixture that are not 1."""


ARMS = {
    "mixed": Arm(kinds=("marks", "pairs", "critiques", "edits"), lr=3e-4),
    "marks": Arm(kinds=("marks",), lr=3e-4),
    "pairs": Arm(kinds=("pairs",), lr=3e-4),
    "critiques": Arm(kinds=("critiques",), lr=3e-4),
    "edits": Arm(kinds=("edits",), lr=3e-4),
    "zeros kept": Arm(kinds=("marks", "pairs"), lr=3e-4, people="unsure"),
    "zeros dropped": Arm(kinds=("marks", "pairs"), lr=3e-4, people="unsure", zeros=False),
}


def crowd(env: Attributes, arm: Arm, seed: int) -> list[Person]:
    """Four people who share the work."""
    traits: dict[str, Any] = CLEAR if arm.people == "clear" else UNSURE
    who = (Annotator(name=str(i), weights=dict(env.weights), seed=1000 * seed + i, **traits) for i in range(4))
    return [Person(env, one, kind="ternary") for one in who]


def ask(person: Person, kind: str, prompt: Prompt, group: Sequence[Completion]) -> list[Episode]:
    """One label about the group: about its first, or about both where they are compared."""
    first, texts = group[0], [c.text for c in group]
    if kind == "pairs":
        (said,) = person.compare([prompt], texts[:1], texts[1:])
    elif kind == "critiques":
        (said,) = person.critique([prompt], texts)
    elif kind == "edits":
        (said,) = person.revise([prompt], texts, [""])
    else:
        (said,) = person.judge([prompt], texts)
    told = Feedback(
        value=said.value,
        kind=said.kind,
        content=said.content,
        source=said.source,
        about=tuple(c.id for c in group),
    )
    return [
        Episode(prompt=prompt, completion=c, feedback=(told,) if c is first else (), reward=None) for c in group
    ]


def generation(arm: Arm, policy: Any, env: Attributes, seed: int, round: int) -> list[Episode]:
    """What one generation buys: the same requests for every arm."""
    people = crowd(env, arm, seed)
    asked = prompts(env, LABELS, seed=seed, start=LABELS * round)
    found: list[Episode] = []
    for k, kind in enumerate(arm.kinds):
        mine = asked[k :: len(arm.kinds)]
        groups = sample(policy, mine, 2 if kind == "pairs" else 1, seed=seed, round=round + 1)
        for i, (prompt, group) in enumerate(zip(mine, groups, strict=True)):
            found += ask(people[i % len(people)], kind, prompt, group)
    return found


def once(name: str, seed: int) -> dict[str, Any]:
    """One run of an arm: held-out utility by problem, and what it bought."""
    arm, env, start = ARMS[name], Attributes(), time.process_time()
    policy = fresh()
    reference = policy.frozen()  # of the start, or of the generation
    given = dict(arm.beside)
    configs = {
        consumes: replace(o, coefficient=given.get(kind, 1.0))
        for kind, (consumes, o) in ((k, OBJECTIVES[k]) for k in arm.kinds)
    }
    labels = zeros = 0
    curve = []
    for round in range(GENERATIONS):
        pool = Pool(generation(arm, policy, env, seed, round), policy, CLAUSES)
        told = [f for e in pool.episodes for f in e.feedback]
        labels, zeros = labels + len(told), zeros + sum(f.value == 0 for f in told)
        reference = policy.frozen() if REFERENCE == "generation" else reference
        found: list[Example] = [e for consumes in configs for e in examples(pool, consumes, widely=WIDELY)]
        if not arm.zeros:
            found = [e for e in found if not undecided(e)]
        learn(
            policy,
            found,
            MixtureConfig(**configs),
            steps=STEPS,
            batch=BATCH,
            lr=arm.lr,
            seed=seed,
            round=round + 1,
            reference=reference,
        )
        curve.append(held_out(policy, env, HELD_OUT, seed=seed))
    scores = {e.prompt.id: float(e.reward or 0.0) for e in curve[-1].episodes}
    return {
        "arm": name,
        "seed": seed,
        "curve": [round_(e.value) for e in curve],
        "attributes": {k: round_(v) for k, v in curve[-1].summary().get("breakdown", {}).items()},  # type: ignore[attr-defined]
        "labels": labels,
        "zeros": round_(zeros / labels),
        "seconds": round_(time.process_time() - start, 1),
        "scores": scores,
    }


def undecided(example: Example) -> bool:
    """Whether a tie or an unsure mark is behind it."""
    return isinstance(example, Preference) and example.tie or isinstance(example, Rated) and example.value == 0


def round_(x: float, digits: int = 4) -> float:
    return round(float(x), digits)
