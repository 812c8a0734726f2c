"""Rows on what a reward model is told: S133 features of the domain, S179 margins; and what rows on reward models share.

On the attribute world: reward models on the weights of its base, simulated people, held-out pairs whose truth is known.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from triloop.atlas import lab
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.envs.attributes import Attributes, requested
from triloop.envs.attributes_language import ATTRIBUTES, COURTESY, FACTS, RUDE, WEIGHTS
from triloop.envs.attributes_skills import ASK
from triloop.feedback.simulate import Annotator, population
from triloop.learn.choices import OptimConfig
from triloop.loops.build import set_threads
from triloop.policies.native import NativePolicy
from triloop.records import Completion, Prompt
from triloop.sources.annotators import Person
from triloop.sources.attribute_asking import ATTRIBUTE_ASKING, RULES
from triloop.sources.judge import PairJudge
from triloop.sources.lm_judge import YesNoJudge
from triloop.sources.reward_config import RewardConfig, RewardTraining
from triloop.sources.reward_examples import RewardPair, pair_from
from triloop.sources.reward_features import NamedFeatures
from triloop.sources.reward_model import RewardModel
from triloop.sources.reward_trunk import learned_words, small_trunk

__all__ = [
    "ACCURACY",
    "COUNTED",
    "DOMAIN",
    "MARGIN",
    "READS",
    "Duel",
    "Group",
    "accuracy",
    "best_of",
    "compared",
    "counted",
    "duels",
    "led",
    "mean",
    "preferred_share",
    "read_model",
    "right",
    "texts_of_pairs",
    "true_pairs",
]

READS = RewardConfig(template=ASK.replace("{principle}", "overall"))
"""How a reward model of the attribute world reads: as the base was taught to judge."""
ACCURACY = "held-out pairs ordered as their true utilities"

Duel = tuple[Prompt, str, str]
"""A prompt and two answers to it."""
Group = tuple[Prompt, Sequence[Completion]]


# ------------------------------------------------------------------ what the rows share


def duels(policy: NativePolicy, env: Attributes, n: int, *, seed: int, split: str = "train") -> list[Duel]:
    """Two different answers of the policy to each of about ``n`` prompts."""
    asked = lab.prompts(env, n, seed=seed, split="eval" if split == "eval" else "train")
    groups = lab.sample(policy, asked, 2, seed=seed)
    return [(p, a.text, b.text) for p, (a, b) in zip(asked, groups, strict=True) if a.text != b.text]


def compared(judge: PairJudge, asked: Sequence[Duel]) -> list[RewardPair]:
    """What a judge of pairs teaches about these; what it fails on is left out."""
    told = judge.compare(*(list(column) for column in zip(*asked, strict=True)))
    found = (pair_from(*duel, f) for duel, f in zip(asked, told, strict=True))
    return [e for e in found if e is not None]


def true_pairs(env: Attributes, asked: Sequence[Duel]) -> list[RewardPair]:
    """The pairs whose true utilities differ, as gold orders them."""
    out = []
    for prompt, first, second in asked:
        a, b = (env.verify(prompt, text).value or 0.0 for text in (first, second))
        if a != b:
            out.append(RewardPair(prompt=prompt, first=first, second=second, p=float(a > b)))
    return out


def accuracy(model: RewardModel, pairs: Sequence[RewardPair]) -> float:
    """Share of decided pairs that the model orders as they are labelled; equal scores are half right."""
    return right(led(model, pairs), pairs)


def right(lead: Float[np.ndarray, " pairs"], pairs: Sequence[RewardPair]) -> float:
    """Share of the pairs whose lead of the first has the label's sign; no lead is half right."""
    return float(np.mean((np.sign(lead) * [1 if e.p > 0.5 else -1 for e in pairs] + 1) / 2))


def led(model: RewardModel, pairs: Sequence[RewardPair]) -> Float[np.ndarray, " pairs"]:
    """Score of the first less that of the second, nats."""
    n, prompts = len(pairs), [e.prompt for e in pairs]
    scores = model.score([*prompts, *prompts], [e.first for e in pairs] + [e.second for e in pairs])
    return scores[:n] - scores[n:]


def best_of(model: RewardModel, env: Attributes, groups: Sequence[Group]) -> float:
    """Mean true utility of the answer that the model scores highest in each group."""
    chosen = []
    for prompt, group in groups:
        scores = model.score([prompt] * len(group), [c.text for c in group])
        chosen.append(env.verify(prompt, group[int(np.argmax(scores))].text).value or 0.0)
    return statistics.fmean(chosen)


def read_model(
    policy: NativePolicy, pairs: Sequence[RewardPair], *, seed: int, config: RewardConfig = READS, **training: Any
) -> RewardModel:
    """A reward model on a copy of the policy, after learning from these pairs to the end.

    Nothing is held out to stop by unless it is asked for: a tenth of a few hundred noisy labels says too little, and is apt
    to stop before the first pass.
    """
    model = RewardModel.of(policy, config, training=RewardTraining(**{"seed": seed, "held_out": 0.0, **training}))
    model.learn(pairs)
    return model


def texts_of_pairs(pairs: Sequence[RewardPair]) -> list[tuple[Prompt, str]]:
    """Every text that is compared, with its prompt."""
    return [(e.prompt, text) for e in pairs for text in (e.first, e.second)]


def mean(values: Sequence[float]) -> float:
    """Rounded for the facts."""
    return round(statistics.fmean(values), 4)


# ------------------------------------------------------------------ S133

FEW, MANY = 100, 1_000


def _domain(context: Context) -> Measured:
    set_threads(1)
    env, found = Attributes(), list[dict[str, float]]()
    for seed in context.seeds:
        policy = lab.fresh(context.base)
        pairs = compared(lab.person(env, seed=seed, temperature=0.15),
                         duels(policy, env, context.scaled(1_100), seed=seed))[: context.scaled(MANY)]  # fmt: skip
        few = pairs[: max(16, context.scaled(FEW))]
        held = true_pairs(env, duels(policy, env, context.scaled(800), seed=seed, split="eval"))
        asked = lab.prompts(env, context.scaled(96), seed=seed, split="canary")
        groups = list(zip(asked, lab.sample(policy, asked, 8, seed=seed), strict=True))
        texts = texts_of_pairs([*few, *held]) + [(p, c.text) for p, group in groups for c in group]
        phi = _extracted(policy, texts)
        # what the extractor cannot read (empty texts, or such as look like a question to it) is compared by no model
        held = [e for e in held if all(phi[e.prompt.id, text] for text in (e.first, e.second))]
        groups = [(p, [c for c in group if phi[p.id, c.text]]) for p, group in groups]
        texts = [(p, text) for p, text in texts if phi[p.id, text]]
        seen = {(p.id, text): counted(p, text) for p, text in texts}
        models = {
            "features_few": _feature_model(few, seen, seed, COUNTED),
            "extracted_few": _feature_model(few, phi, seed),
            "text_few": read_model(policy, few, seed=seed, config=RewardConfig(), epochs=10),
            "text_many": read_model(policy, pairs, seed=seed, config=RewardConfig()),
        }
        found.append({name: accuracy(m, held) for name, m in models.items()}
                     | {f"best_{name}": best_of(m, env, groups) for name, m in models.items()})  # fmt: skip
    by = {name: [f[name] for f in found] for name in found[0]}
    return Measured(
        baseline=[by["text_few"], by["text_many"], by["best_text_few"]],
        treatment=[by["features_few"], by["features_few"], by["best_features_few"]],
        facts={name: mean(values) for name, values in by.items()},
    )


COUNTED = ("named", "added", "courteous", "rude", "words", "ended", "repeated")
"""Features of an answer that can be counted in its words."""


def counted(prompt: Prompt, text: str) -> dict[str, float]:
    """Requested facts that are named, other facts, courteous, rude, all and repeated words; whether a full stop ends it."""
    words, asked = text.split(), requested(prompt)
    content = [w for w in words if w != ","]
    return {
        "named": float(len({*asked} & {*words})),
        "added": float(sum(w in FACTS and w not in asked for w in words)),
        "courteous": float(sum(w in COURTESY for w in words)),
        "rude": float(sum(w in RUDE for w in words)),
        "words": float(len(words)),
        "ended": float(words[-1:] == ["."]),
        "repeated": float(len(content) - len(set(content))),
    }


def _extracted(policy: NativePolicy, texts: Sequence[tuple[Prompt, str]]) -> dict[tuple[str, str], dict[str, float]]:
    """Six features of each text as a frozen model sees them: its own p(yes) for every attribute."""
    asked = list({(p.id, text): (p, text) for p, text in texts}.values())
    told = YesNoJudge(policy, RULES, ATTRIBUTE_ASKING).judge([p for p, _ in asked], [text for _, text in asked])
    return {(p.id, text): dict(f.breakdown) for (p, text), f in zip(asked, told, strict=True)}


def _feature_model(
    pairs: Sequence[RewardPair],
    phi: Mapping[tuple[str, str], Mapping[str, float]],
    seed: int,
    names: tuple[str, ...] = ATTRIBUTES,
) -> RewardModel:
    """A score that is linear in the features; the network beside them sees no more than a text's last word."""
    words = learned_words([text for _, text in texts_of_pairs(pairs)], 64)
    how = RewardTraining(optim=OptimConfig(lr=0.05, schedule="linear"), epochs=20, held_out=0.0, seed=seed)
    model = RewardModel(
        small_trunk(words, width=16, layers=1, positions=2, seed=seed),
        words,
        RewardConfig(train_trunk=False),
        features=NamedFeatures(lambda prompt, text: phi[prompt.id, text], names),
        training=how,
    )
    model.learn(pairs)
    return model


DOMAIN = Row(
    id="S133",
    claim="A reward model on a few features of the domain needs far fewer preferences than one on the text: it is better "
    f"from {FEW} pairs, and with {FEW} as good as the other with {MANY}.",
    setup=f"0.46M base of the attribute world, pairs of its own answers judged by a person with logistic noise of 0.15; "
    f"{len(COUNTED)} features that are counted in an answer's words (facts named and added, courteous and rude "
    "words, length, full stop, repeats); on the text, a reward model on the base's weights that learns to read its "
    "states; 800 held-out pairs, best of 8 on 96 prompts. Outside the rule: six features that the frozen base extracts, "
    "its p(yes) for each attribute",
    core="sources.reward_features.NamedFeatures in RewardModel(features=...)",
    contrasts=(
        Contrast(metric=ACCURACY, treatment=f"features, {FEW} pairs", baseline=f"text, {FEW}", above=0.0, below=0.0),
        Contrast(
            metric=ACCURACY, treatment=f"features, {FEW} pairs", baseline=f"text, {MANY}", above=-0.02, below=-0.02
        ),
        Contrast(
            metric="true utility of the best of 8",
            treatment=f"features, {FEW} pairs",
            baseline=f"text, {FEW}",
            above=0.0,
            below=0.0,
        ),
    ),
    run=_domain,
    seeds=(20, 21, 22, 23, 24),
    base="base:attributes",
    changed_after_first_look="Experiment: on the text, the reward model read in the base's own words for judging "
    "(`asked`), "
    "and does so outside the rule now, after looks (2026-11-21: three seeds at a tenth of the size, three other seeds at "
    "full size) in which it judged as well from 100 pairs as the features did (0.74 and 0.74, 0.71 and 0.72): a base "
    "that was taught to "
    "judge has the domain's knowledge already. The models on the text stopped by a tenth of their pairs, from 100 of "
    "them before "
    "the first pass; they learn to the end now (ten passes over 100 pairs). Equal scores are half right, not wrong. "
    "A first full run of five seeds found no verdict: the extractor refuses a text in a thousand (empty, or with a word of "
    "its own questions), and the features' model then gave no number; of it were seen five accuracies of the model on "
    "the text (0.59 to 0.67) and two of that on features (0.72, 0.73). Pairs with such a text are left out for all "
    "models. That first set-up, with the base's p(yes) as features, gave 0 (seeds 0 to 4): +0.114 in [0.063, 0.165], "
    "against 1,000 pairs -0.006 in [-0.032, 0.019], best of 8 +0.143 in [0.000, 0.285]; exact attributes as features "
    "judged 0.919, so that the extractor, wrong one time in seven, was the limit. The source's extractors are strong ones, "
    "and the miniature proposes computed features: now they are counted, on five other seeds, with no further look. Rule: "
    "as first written.",
    parts=("sources.reward_model", "sources.reward_features", "sources.lm_judge", "sources.annotators"),
)


# ------------------------------------------------------------------ S179

PEOPLE, JUDGES, WIDEST, TASTES = 64, 8, 3.0, 1.2
"""People whose shares are the truth, synthetic judgements of a pair, the margin of a unanimous one (nats), and how far
tastes lie apart (see ``population``)."""
TAUGHT = 120
"""Pairs that a reward model learns from."""


def _margin(context: Context) -> Measured:
    set_threads(1)
    env, found = Attributes(), list[dict[str, float]]()
    for seed in context.seeds:
        policy = lab.fresh(context.base)
        people = population(PEOPLE, weights=WEIGHTS, seed=seed, personas={"careful": 1.0}, spread=TASTES)
        said = _one_each(env, people, duels(policy, env, context.scaled(TAUGHT), seed=seed))
        share = _synthetic(env, said, seed)
        agreed = [s if e.p > 0.5 else 1.0 - s for s, e in zip(share, said, strict=True)]
        taught = {
            "binary": said,
            "margin": [replace(e, margin=WIDEST * max(0.0, 2 * a - 1)) for a, e in zip(agreed, said, strict=True)],
        }
        held = true_pairs(env, duels(policy, env, context.scaled(1_000), seed=seed, split="eval"))
        truth = preferred_share(env, people, held)
        split = np.abs(truth - 0.5) < SPLIT
        phi = {(p.id, text): env.attributes(p, text) for p, text in texts_of_pairs([*said, *held])}
        facts: dict[str, float] = {
            "split_share": float(split.mean()),
            "judged_share": _correlation(np.array(share) - 0.5, preferred_share(env, people, said)),
        }
        for name, pairs in taught.items():
            told = led(_feature_model(pairs, phi, seed), held)
            facts[f"{name}_split"] = _correlation(told[split], truth[split])
            facts[f"{name}_all"] = _correlation(told, truth)
            facts[f"{name}_agreed"] = float(((told > 0) == (truth > 0.5))[~split].mean())
        found.append(facts)
    by = {name: [f[name] for f in found] for name in found[0]}
    return Measured(
        baseline=[by["binary_split"], by["binary_agreed"]],
        treatment=[by["margin_split"], by["margin_agreed"]],
        facts={name: mean(values) for name, values in by.items()},
    )


SPLIT = 0.3
"""A pair on which 20 to 80 % of the people prefer the first is a matter of taste."""


def _one_each(env: Attributes, people: Sequence[Annotator], asked: Sequence[Duel]) -> list[RewardPair]:
    """Every pair compared by one person of the population, in turn; who sees no difference says nothing."""
    out: list[RewardPair] = []
    for i, duel in enumerate(asked):
        out += compared(Person(env, people[i % len(people)]), [duel])
    return [e for e in out if not e.tie]


def _synthetic(env: Attributes, pairs: Sequence[RewardPair], seed: int) -> list[float]:
    """Share of the synthetic judgements for the first: of hasty people whom nobody else knows, each with tastes of their
    own."""
    prompts, firsts, seconds = [e.prompt for e in pairs], [e.first for e in pairs], [e.second for e in pairs]
    judges = population(JUDGES, weights=WEIGHTS, seed=seed + 7919, personas={"hasty": 1.0}, spread=TASTES)
    told = []
    for judge in judges:
        said = Person(env, judge).compare(prompts, firsts, seconds)
        told.append([0.5 if f.value is None else (1 + np.sign(f.value)) / 2 for f in said])
    return [float(x) for x in np.mean(told, axis=0)]


def preferred_share(
    env: Attributes, people: Sequence[Annotator], pairs: Sequence[RewardPair]
) -> Float[np.ndarray, " pairs"]:
    """Chance that one of these people, drawn at random, prefers the first of each pair, ties left out of account."""
    traits = np.array([[env.attributes(e.prompt, t)[a] for a in WEIGHTS] for e in pairs for t in (e.first, e.second)])
    tastes = np.array([[a.weights[name] for name in WEIGHTS] for a in people])
    lead = 2.0 * (traits[0::2] - traits[1::2]) @ (tastes / tastes.sum(axis=1, keepdims=True)).T
    return (1.0 / (1.0 + np.exp(-lead / [a.temperature for a in people]))).mean(axis=1)


def _correlation(a: Float[np.ndarray, " pairs"], b: Float[np.ndarray, " pairs"]) -> float:
    """Pearson's of a lead with a share, each pair counted in both orders; 0 where one of them is always even."""
    b = b - 0.5
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


MARGIN = Row(
    id="S179",
    claim="A margin from how far synthetic judgements agree makes the reward model's lead follow the share of "
    "people who "
    "prefer an answer where tastes differ, and costs nothing where they do not.",
    setup=f"answers of the 0.46M base of the attribute world, {TAUGHT} pairs each judged by one of {PEOPLE} people of "
    f"different tastes; {JUDGES} synthetic judgements of a pair are by hasty personas (simulated, logistic noise 0.4, one "
    f"in seven at random); margin {WIDEST:g} (2 agreement - 1), at least 0; reward models linear in the exact attributes "
    "of a text; 1000 held-out pairs, split where 20 to 80 % of the people prefer the first",
    core="RewardPair(margin=...) learned by sources.reward_model.RewardModel",
    contrasts=(
        Contrast(
            metric="correlation of the lead with the people's share, on split pairs",
            treatment="margin",
            baseline="binary labels",
            above=0.0,
            below=0.0,
        ),
        Contrast(
            metric="pairs ordered as the majority, where people agree",
            treatment="margin",
            baseline="binary labels",
            above=-0.02,
            below=-0.02,
        ),
    ),
    run=_margin,
    base="base:attributes",
    seeds=(5, 6, 7, 8, 9),
    changed_after_first_look="A first set-up (420 pairs, the base as synthetic judge under principles drawn anew, reward "
    "models of 0.46M that read text; seeds 0 to 4) gave 0 (2026-11-21): +0.045 [-0.049, 0.138] on split pairs, +0.035 "
    "[-0.069, 0.138] on the others; with a stop by a tenth of the pairs it had been +0.028 [-0.075, 0.132]. Two things "
    "were ours and not the paper's: the base's judgements agreed with the majority less often than one label did (0.66 "
    "against 0.85 of pairs), and the reward models read so badly that with either loss their lead hardly went with the "
    "share (0.14). With twice the pairs and two models a seed (seed 10) it was 0.099 against 0.124; with the judges "
    "below instead of the base and 420 pairs 0.076 against 0.136: in models that read so badly the margin does nothing. "
    "Here the judges are simulated personas (right with the majority on 0.81 of pairs), and the reward models see the "
    "attributes, as a large model would. Looks at seeds 10 to 12: 0.77, 0.80, 0.74 against 0.74, 0.78, 0.71 on split "
    "pairs, from 120 pairs; 0.83 against 0.81 from 200 (seed 10). The recorded seeds were never looked at. Rule: as "
    "first written.",
    parts=("feedback.simulate.population", "sources.reward_features", "sources.reward_model"),
)
