"""Row S132: a reward with three values, on facts of which half are known.

A fact is a sign and a letter that belongs to it. The base has read half of the facts as they are, and of the
others a different letter each time; it sometimes says that it does not know. Nothing that is learned of one fact helps with
another, except to know when one does not know: which is what is measured, on facts that no feedback touches.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

from triloop import rng
from triloop.atlas.bases import Pairs, TinyBase, cached, described
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.atlas.rl import Outcome, algorithm, arithmetic, sweep
from triloop.envs.charset import ABSTAIN
from triloop.learn.credit import abstention_threshold, ternary_reward
from triloop.loops.config import EnvConfig
from triloop.policies.sampling import Sampling

__all__ = ["TRUTH", "Fact", "facts", "threshold_errors"]

ANSWERS = "abcdefghij"
COUNT = 1_000
NAMES = "".join(chr(0x4E00 + i) for i in range(COUNT))
"""One sign each, and so one token: what the base knows of a name is in its embedding."""
KNOWN, UNKNOWN = 1, 0
DOUBT = 0.1
"""Share of a lesson that answers *I do not know*, about whomever."""

BASE = TinyBase(
    name="facts",
    recipe=described({"count": COUNT, "answers": ANSWERS, "doubt": DOUBT, "version": 3}),
    chars=f"{ANSWERS}={ABSTAIN}{NAMES}",
    hidden=48,
    layers=2,
    steps=800,
    lr=6e-3,
)

Fact = tuple[str, str, int]
"""Name, answer, and whether the base is to know it (level)."""


def facts() -> list[Fact]:
    """The world: every other fact is known."""
    g = rng.generator("atlas", "facts")
    answers = g.integers(0, len(ANSWERS), COUNT).tolist()
    return [(NAMES[i], ANSWERS[a], KNOWN if i % 2 else UNKNOWN) for i, a in enumerate(answers)]


def _lessons() -> Pairs:
    """Every name equally often: a known one with its answer, an unknown one with any, and a little doubt about both."""
    world = facts()

    def lesson(step: int) -> list[tuple[str, str]]:
        g = rng.generator("atlas", "lesson", step)
        pairs = []
        for i, guess, u in zip(
            g.integers(0, COUNT, 256).tolist(),
            g.integers(0, len(ANSWERS), 256).tolist(),
            g.random(256).tolist(),
            strict=True,
        ):
            name, answer, level = world[i]
            said = answer if level == KNOWN else ANSWERS[guess]
            pairs.append((f"{name}=", ABSTAIN if u < DOUBT else said))
        return pairs

    return lesson


def _files(folder: Path) -> tuple[str, str]:
    """The facts that are trained on and those that are held out, as the JSONL environment reads them."""
    world = facts()
    cut = COUNT * 6 // 10
    paths = folder / "facts-train.jsonl", folder / "facts-eval.jsonl"
    for path, part in zip(paths, (world[:cut], world[cut:]), strict=True):
        rows = [{"prompt": f"{name}=", "answer": answer, "level": level} for name, answer, level in part]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(paths[0]), str(paths[1])


def threshold_errors() -> float:
    """Share of a grid of chances p and abstention values v where "answer when p > (1 + v) / 2" is not the better choice."""
    wrong = grid = 0
    for v in (x / 10 for x in range(-10, 11)):
        for p in (x / 100 for x in range(1, 100)):
            answering = p * ternary_reward(1, v) + (1 - p) * ternary_reward(-1, v)
            if abs(answering - ternary_reward(0, v)) > 1e-9:  # at the threshold itself both are right
                grid += 1
                wrong += (answering > ternary_reward(0, v)) != (p > abstention_threshold(v))
    return wrong / grid


def _truth(context: Context) -> Measured:
    train, held_out = _files(context.folder)
    base = BASE if context.share >= 1 else replace(BASE, steps=context.scaled(BASE.steps))
    config = arithmetic(
        replace(context, base=str(cached(base, _lessons()))),
        env=EnvConfig(name="jsonl", data=train, eval_data=held_out),
        sampling=Sampling(max_tokens=3, slots=512),
        rounds=context.scaled(60),
        prompts_per_round=32,
        algorithm=algorithm("grpo"),
    )
    found = sweep(
        context,
        {name: replace(config, abstain_value=v) for name, v in (("binary", -1.0), ("ternary", 0.0), ("half", 0.5))},
    )
    wrong = {n: [_share(o, -1) for o in found[n]] for n in found}
    known = {n: [o.by_level[KNOWN][1] for o in found[n]] for n in found}
    n = len(context.seeds)
    return Measured(
        baseline=[wrong["binary"], known["binary"], [0.001] * n],
        treatment=[wrong["ternary"], known["ternary"], [threshold_errors()] * n],
        facts={
            "answered_right_known": _means(known),
            "answered_wrong": _means(wrong),
            **{
                f"abstained_{name}": {
                    k: round(statistics.fmean(o.by_level[level][0] for o in outcomes), 4) for k, level in LEVELS
                }
                for name, outcomes in found.items()
            },
        },
    )


LEVELS = (("known", KNOWN), ("unknown", UNKNOWN))


def _share(outcome: Outcome, value: int) -> float:
    """Share of this judgement over known and unknown facts alike."""
    return statistics.fmean(shares[value] for shares in outcome.by_level.values())


def _means(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.fmean(v), 4) for name, v in values.items()}


TRUTH = Row(
    id="S132",
    claim="With +1 right, 0 abstained, -1 wrong a policy hallucinates far less than with right or wrong alone, and still "
    "says what it knows.",
    setup="0.1M policy, 1,000 facts of which it knows half, GRPO, 60 rounds of 32 prompts x 8; binary means that "
    "an abstention costs as much as an error; measured on 400 facts that are not trained on; that answering pays "
    "when p > (1 + v) / 2 is checked on a grid",
    core="triloop run jsonl --abstain-value 0",
    contrasts=(
        Contrast(
            metric="share of wrong answers on held-out facts",
            treatment="ternary",
            baseline="binary",
            above=0.1,
            below=0.0,
            higher_is_better=False,
        ),
        Contrast(
            metric="known facts answered rightly", treatment="ternary", baseline="binary", above=-0.05, below=-0.05
        ),
        Contrast(
            metric="grid points where p > (1 + v) / 2 is not the better choice",
            treatment="threshold",
            baseline="tolerance 0.001",
            above=0.0,
            below=0.0,
            higher_is_better=False,
        ),
    ),
    run=_truth,
    changed_after_first_look="Experiment: the base was taught for 500 steps and is for 800, after a look (2026-11-21) in "
    "which it knew its half by 0.94 only and the second contrast was undecided (-0.051). Rule: as first written.",
)
