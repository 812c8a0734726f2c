"""Rows on how people are asked: S070 one principle at a time, S128 a noisy simulation of them in their place."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from triloop.atlas import lab
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.atlas.rewards import ACCURACY, READS, Duel, compared, duels, led, mean, read_model, right, true_pairs
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_language import ATTRIBUTES, DISTRACTORS, WEIGHTS
from triloop.envs.attributes_skills import ASK
from triloop.feedback.simulate import population
from triloop.learn.examples import Demonstration, Example, Preference, Rated
from triloop.loops.build import set_threads
from triloop.records import Completion, Feedback, Prompt
from triloop.sources.annotators import Person
from triloop.sources.reward_config import RewardConfig, RewardTraining
from triloop.sources.reward_examples import RewardExample, RewardPair, RewardRating
from triloop.sources.reward_model import RewardModel

__all__ = ["PRINCIPLED", "SIMULATED", "spearman", "styled"]


# ------------------------------------------------------------------ S070

STYLE = 0.5
"""Utility that each distracting word seems to add, to a person who compares at a glance."""
BY_PRINCIPLE = RewardConfig(template=ASK.replace("; {principle} ?", "?"), answers=("yes", "no"))
"""Reads a response with the principle behind it; the score is log p(yes) - log p(no)."""


def _principled(context: Context) -> Measured:
    set_threads(1)
    env, found = Attributes(), list[dict[str, float]]()
    for seed in context.seeds:
        policy = lab.fresh(context.base)
        asked = duels(policy, env, context.scaled(420), seed=seed)
        glancing = lab.person(env, seed=seed, temperature=0.1, bias={"distractor": STYLE})
        whole = read_model(policy, compared(glancing, asked), seed=seed, config=replace(READS, answers=("yes", "no")))
        entailment = RewardModel.of(policy, BY_PRINCIPLE, training=RewardTraining(seed=seed, held_out=0.0))
        entailment.learn(_comments(env, asked, seed))
        held = true_pairs(env, duels(policy, env, context.scaled(300), seed=seed, split="eval"))
        swayed = [styled(e) for e in held]
        facts = {}
        for name, pairs in (("plain", held), ("styled", swayed)):
            facts[f"whole_{name}"] = right(led(whole, pairs), pairs)
            facts[f"principles_{name}"] = right(_composed(entailment, pairs), pairs)
        steered = [_on_attribute(env, held, name) for name in ATTRIBUTES]
        facts["whole_steered"] = statistics.fmean(right(led(whole, p), p) for p in steered if p)
        facts["principles_steered"] = statistics.fmean(
            right(led(entailment, _about(p, name)), p) for p, name in zip(steered, ATTRIBUTES, strict=True) if p
        )
        found.append(facts)
    by = {name: [f[name] for f in found] for name in found[0]}
    return Measured(
        baseline=[by["whole_styled"], by["whole_steered"], by["whole_plain"]],
        treatment=[by["principles_styled"], by["principles_steered"], by["principles_plain"]],
        facts={name: mean(values) for name, values in by.items()},
    )


def _comments(env: Attributes, asked: Sequence[Duel], seed: int) -> list[RewardExample]:
    """One principle of each answer, in turn, and the mark +1, 0 (partly) or -1 that a comment gives it."""
    judge = Person(env, lab.person(env, seed=seed, temperature=0.1, abstain=0.3).annotator, kind="rubric")
    out: list[RewardExample] = []
    for i, (prompt, *texts) in enumerate(asked):
        for k, (text, f) in enumerate(zip(texts, judge.judge([prompt] * 2, texts), strict=True)):
            name = ATTRIBUTES[(i + 3 * k) % len(ATTRIBUTES)]
            out.append(RewardRating(prompt=prompt, text=f"{text} ; {name}", value=f.breakdown[name]))
    return out


def _about(pairs: Sequence[RewardPair], principle: str) -> list[RewardPair]:
    return [replace(e, first=f"{e.first} ; {principle}", second=f"{e.second} ; {principle}") for e in pairs]


def _composed(model: RewardModel, pairs: Sequence[RewardPair]) -> Float[np.ndarray, " pairs"]:
    """Lead of the first when every principle's p(yes) counts as the utility weighs it: a composition never taught."""
    total = np.zeros(len(pairs))
    for name, weight in WEIGHTS.items():
        asked, n = _about(pairs, name), len(pairs)
        prompts = [e.prompt for e in asked]
        scores = model.score([*prompts, *prompts], [e.first for e in asked] + [e.second for e in asked])
        chance = 1.0 / (1.0 + np.exp(-scores))
        total += weight * (chance[:n] - chance[n:])
    return total


def styled(pair: RewardPair) -> RewardPair:
    """The pair with two distracting words, of no worth and no harm, in the worse answer."""
    worse = pair.second if pair.p > 0.5 else pair.first
    free = [w for w in DISTRACTORS if w not in worse.split()][:2]
    words = worse.split()
    worse = " ".join([*words[:1], *free, *words[1:]])
    return replace(pair, second=worse) if pair.p > 0.5 else replace(pair, first=worse)


def _on_attribute(env: Attributes, pairs: Sequence[RewardPair], name: str) -> list[RewardPair]:
    """The pairs that differ in this attribute, as it alone orders them."""
    out = []
    for e in pairs:
        a, b = (env.attributes(e.prompt, text)[name] for text in (e.first, e.second))
        if a != b:
            out.append(replace(e, p=float(a > b)))
    return out


PRINCIPLED = Row(
    id="S070",
    claim="A reward model that learns from comments, one principle at a time with yes, partly or no, is harder to "
    "sway by style "
    "than a Bradley-Terry model of preferences on as many answers, follows the principle that it is asked for, and "
    "judges "
    "plain pairs no worse.",
    setup="0.46M base of the attribute world, 420 pairs of answers; Bradley-Terry learns which one a person "
    "prefers at a glance, "
    f"to whom a distracting word adds {STYLE:g} of utility; the other learns one mark an answer, of one principle "
    "in turn; both "
    "start from the base's own yes or no. 300 held-out pairs, plain and with two distracting words in the worse answer",
    core="RewardConfig(template='judge {request} {response} ?', answers=('yes', 'no')) with the principle behind "
    "the response",
    contrasts=(
        Contrast(
            metric="pairs ordered rightly, distracting words in the worse answer",
            treatment="by principles",
            baseline="Bradley-Terry",
            above=0.05,
            below=0.0,
        ),
        Contrast(
            metric="pairs ordered as one attribute orders them, mean over attributes",
            treatment="by the principle asked for",
            baseline="Bradley-Terry",
            above=0.05,
            below=0.0,
        ),
        Contrast(metric=ACCURACY, treatment="by principles", baseline="Bradley-Terry", above=-0.02, below=-0.02),
    ),
    run=_principled,
    base="base:attributes",
    changed_after_first_look="Experiment: there were four seeds and there are five, and the reward models stopped by a "
    "tenth of "
    "what they learned from; they learn to the end now, after a first full result (2026-11-21) in which the sway was "
    "uneven "
    "(Bradley-Terry 0.682 0.760 0.412 0.538 against 0.789 0.788 0.730 0.729 by principles): +0.161, -0.036 to 0.359, "
    "undecided; the other two contrasts held (+0.237, 0.215 to 0.259; +0.046, 0.019 to 0.072). Rule: as first written, "
    "but for "
    "the number of seeds.",
    parts=("sources.reward_model", "sources.annotators"),
)


# ------------------------------------------------------------------ S128

CROWD, RANDOM_FLIPS = 13, 0.25
LABELLED, TRIED = 320, 512
"""Prompts with two comparisons each, and held-out prompts with one."""


def _simulated(context: Context) -> Measured:
    set_threads(1)
    env, found = Attributes(), list[dict[str, float]]()
    for seed in context.seeds:
        people = population(CROWD, weights=WEIGHTS, seed=seed, spread=0.5)
        noisy = [Person(env, replace(a, flip=RANDOM_FLIPS)) for a in people]
        one = [lab.person(env, seed=seed, temperature=0.1)]
        worlds = {"truth": (one, one), "simulation": (noisy, [Person(env, a) for a in people])}
        rates = {name: _win_rates(context, env, *world, seed) for name, world in worlds.items()}
        methods = list(rates["truth"])
        truth, simulation = ([rates[w][m] for m in methods] for w in ("truth", "simulation"))
        found.append(
            {"spearman": spearman(np.array(truth), np.array(simulation))}
            | {f"{w}_{m}": rates[w][m] for w in rates for m in methods}
        )
    by = {name: [f[name] for f in found] for name in found[0]}
    return Measured(
        baseline=[[0.5] * len(found)],
        treatment=[by["spearman"]],
        facts={name: mean(values) for name, values in by.items()},
    )


class _Crowd:
    """People of whom each comparison is put to one, in turn."""

    def __init__(self, people: Sequence[Person]) -> None:
        self._people, self.name = people, "crowd"

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        rows = enumerate(zip(prompts, firsts, seconds, strict=True))
        """One judgement each."""
        return [self._people[i % len(self._people)].compare([p], [a], [b])[0] for i, (p, a, b) in rows]


def _win_rates(
    context: Context, env: Attributes, teachers: Sequence[Person], judges: Sequence[Person], seed: int
) -> dict[str, float]:
    """Each method taught by the comparisons of these teachers, and its win rate over the base by these judges."""
    base, judge = lab.fresh(context.base), _Crowd(judges)
    asked = lab.prompts(env, context.scaled(LABELLED), seed=seed)
    groups = lab.sample(base, asked, 4, seed=seed)
    twos = [(p, g[i], g[i + 1]) for p, g in zip(asked, groups, strict=True) for i in (0, 2)]
    told = _Crowd(teachers).compare([p for p, _, _ in twos], [a.text for _, a, _ in twos], [b.text for _, _, b in twos])
    decided = [(p, a, b, f.value) for (p, a, b), f in zip(twos, told, strict=True) if f.value]
    pairs = [RewardPair(prompt=p, first=a.text, second=b.text, p=float(v > 0)) for p, a, b, v in decided]
    reward = read_model(base, pairs, seed=seed)
    tried = lab.prompts(env, context.scaled(TRIED), seed=seed, split="eval")
    ours = [g[0].text for g in lab.sample(base, tried, 1, seed=seed, round=2)]

    def won(texts: Sequence[str]) -> float:
        return statistics.fmean((1 + np.sign(f.value or 0.0)) / 2 for f in judge.compare(tried, texts, ours))

    def taught(examples: Sequence[Example], objective: str) -> float:
        policy = lab.fresh(context.base)
        steps = context.scaled(20)
        lab.learn(policy, examples, objective, steps=steps, seed=seed, reference=base)
        return won([g[0].text for g in lab.sample(policy, tried, 1, seed=seed, round=3)])

    sides = [(c, v if c is a else -v) for _, a, b, v in decided for c in (a, b)]
    imitated = [Demonstration(prompt_tokens=c.prompt_tokens, tokens=c.tokens) for c in _best(reward, asked, groups)]
    rated = [Rated(prompt_tokens=c.prompt_tokens, tokens=c.tokens, value=float(np.sign(v))) for c, v in sides]
    chosen = {n: _best(reward, tried, lab.sample(base, tried, n, seed=seed, round=4)) for n in (2, 8)}
    return {
        "base": won([g[0].text for g in lab.sample(base, tried, 1, seed=seed, round=3)]),
        **{f"best_of_{n}": won([c.text for c in best]) for n, best in chosen.items()},
        "imitation": taught(imitated, "sft"),
        "dpo": taught([_preferred(a, b, v) for _, a, b, v in decided], "dpo"),
        "kto": taught(rated, "kto"),
    }


def _best(model: RewardModel, asked: Sequence[Prompt], groups: Sequence[Sequence[Completion]]) -> list[Completion]:
    """Of each group the completion that the reward model scores highest."""
    flat = [(p, c) for p, group in zip(asked, groups, strict=True) for c in group]
    scores = iter(model.score([p for p, _ in flat], [c.text for _, c in flat]).tolist())
    return [max(((next(scores), k, c) for k, c in enumerate(group)))[2] for group in groups]


def _preferred(a: Completion, b: Completion, value: float) -> Preference:
    return Preference(prompt_tokens=a.prompt_tokens, first=a.tokens, second=b.tokens, p=float(value > 0))


def spearman(a: Float[np.ndarray, " items"], b: Float[np.ndarray, " items"]) -> float:
    """Correlation of ranks; equal values share the mean of their ranks."""
    ranks = [(x[:, None] > x[None, :]).sum(axis=1) + ((x[:, None] == x[None, :]).sum(axis=1) + 1) / 2 for x in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else 0.0


SIMULATED = Row(
    id="S128",
    claim="Methods that learn from a crowd of simulated annotators with a quarter of random flips, and are "
    "compared by it, come "
    "out in the order in which they come out when taught and compared by who is to be simulated.",
    setup=f"0.46M base of the attribute world; six methods from {2 * LABELLED} comparisons: the base, best of 2 and of 8, "
    "and imitation of the "
    "best of 4 by a reward model, DPO, KTO; the truth is one person with a little noise, the simulation "
    f"{CROWD} people of ten kinds and different tastes, who teach with {RANDOM_FLIPS:.0%} of flips and compare methods "
    f"without; win rates over the base on {TRIED} held-out prompts",
    core="feedback.simulate.population, sources.annotators.Person",
    contrasts=(
        Contrast(
            metric="Spearman's correlation of six methods' win rates",
            treatment="simulation with the truth",
            baseline="the bar 0.5",
            above=0.0,
            below=0.0,
        ),
    ),
    run=_simulated,
    seeds=(5, 6, 7, 8, 9, 10),
    base="base:attributes",
    changed_after_first_look="Experiment: methods were also compared by people who flip a quarter, on 256 prompts; the "
    "paper's evaluation has no flips, and 512 prompts tell win rates apart that 256 do not. There were 320 comparisons to "
    "learn from, 14 steps, and five seeds that are not among these. First full result (2026-11-21, seeds 0 to 4): "
    "correlation 0.385, 0.115 below the bar, -0.593 to 0.364. Rule: as first written.",
    parts=("feedback.simulate.population", "sources.annotators", "sources.reward_model", "loops.study.fit"),
)
