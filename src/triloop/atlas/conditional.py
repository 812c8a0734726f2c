"""Rows on feedback as a condition: S038 chains of hindsight, S001 feedback-conditional policies, S058 a condition that
a policy learns to ignore.

Words of feedback stand in the prompt and likelihood is all that is ever maximised; at test time the policy is asked for the
feedback that is wanted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from triloop import rng
from triloop.atlas import lab
from triloop.atlas.ai_feedback import cycled
from triloop.atlas.fine_grained import per_seed
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.atlas.rl import Outcome, sweep
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_language import SUBJECTS
from triloop.envs.attributes_skills import CONDITION
from triloop.envs.base import Env
from triloop.envs.conditioned import Conditioned, with_condition
from triloop.feedback.contents import Ranking
from triloop.feedback.kinds import read
from triloop.learn.examples import Demonstration, chain_of_hindsight
from triloop.learn.propensity import inverse_propensity
from triloop.loops.stages import CollectConfig, CycleConfig, ImitateConfig, PeopleConfig
from triloop.policies.native import NativePolicy
from triloop.records import Completion, Prompt

__all__ = ["CONDITIONAL", "UTILITY", "asked_for", "averages", "coded", "imitated", "topic"]

UTILITY = "held-out utility"
AFTER = "{request} {control} :"
"""Feedback behind the request, right before the answer that it is about."""


# ------------------------------------------------------------------ what the rows share


def asked_for(template: str, control: str) -> Callable[[Env], Env]:
    """The task with wished-for feedback in every prompt, for ``lab.held_out``."""
    return lambda env: Conditioned(env, template, control)


def imitated(policy: NativePolicy, prompt: Prompt, c: Completion, weight: float = 1.0) -> Demonstration:
    """A sample as what is to be written on a prompt, which may ask for more than the one that it was drawn on."""
    return Demonstration(prompt_tokens=policy.encode(prompt), tokens=c.tokens, mask=c.mask, weight=weight)


def averages(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Means over seeds, for the facts."""
    return {name: round(statistics.fmean(values), 4) for name, values in found.items()}


# ------------------------------------------------------------------ S038

Judged = tuple[Prompt, Completion, Completion]
"""A prompt, the answer that a person found worse, and the better one."""


READINGS = 10
"""Times that each text is read by the arms that learn from it, in a chain once in either place."""


def _hindsight(context: Context) -> Measured:
    env = Attributes()

    def one(seed: int) -> dict[str, float]:
        base = lab.fresh(context.base)
        pairs = _pairs(base, env, context.scaled(640), seed)
        ways: dict[str, list[Demonstration]] = {
            "sft": [imitated(base, p, better) for p, _, better in pairs],
            "single": [
                imitated(base, with_condition(p, AFTER, said), c)
                for p, worse, better in pairs
                for said, c in (("bad", worse), ("good", better))
            ],
            "chain": [_chain(base, pair, seed, hidden=0.15, turned=t) for pair in pairs for t in (False, True)],
        }
        found: dict[str, float] = {}
        for name, taught in ways.items():
            policy = lab.fresh(context.base)
            steps = max(1, READINGS * len(taught) // 64)
            lab.learn(policy, taught, "sft", steps=steps, lr=1e-3, seed=seed)
            found |= {f"{k}_{name}": v for k, v in _hindsight_scores(context, policy, env, pairs, name, seed).items()}
        return found

    found = per_seed(context, one)
    return Measured(
        baseline=[found["good_sft"], found["good_single"]],
        treatment=[found["good_chain"], found["good_chain"]],
        facts=averages(found),
    )


def _pairs(base: NativePolicy, env: Attributes, n: int, seed: int) -> list[Judged]:
    """The last and the first of four samples of each prompt, as a person with noisy eyes ranks them."""
    judge = lab.person(env, seed=seed, temperature=0.1)
    asked = lab.prompts(env, n, seed=seed)
    groups = lab.sample(base, asked, 4, seed=seed)
    told = judge.rank(asked, [[c.text for c in g] for g in groups])
    ordered = [(p, g, list(content.order)) for p, g, f in zip(asked, groups, told, strict=True)
               if isinstance(content := read(f), Ranking)]  # fmt: skip
    pairs = [(p, g[order[-1][0]], g[order[0][0]]) for p, g, order in ordered if len(order) > 1]
    return [(p, worse, better) for p, worse, better in pairs if worse.tokens and better.tokens]


def _chain(policy: NativePolicy, pair: Judged, seed: int, *, hidden: float, turned: bool) -> Demonstration:
    """Both answers behind the feedback on each, the worse first, or the better if ``turned``."""
    prompt, worse, better = pair
    said = {word: policy.tokenizer.encode(f"{word} :", add_special=False) for word in ("bad", "good")}
    chain = [(said["bad"], worse.tokens), (said["good"], better.tokens)]
    return chain_of_hindsight(
        policy.encode(prompt), chain[::-1] if turned else chain, learn="all", hidden=hidden, seed=seed
    )


def _hindsight_scores(
    context: Context, policy: NativePolicy, env: Attributes, pairs: Sequence[Judged], name: str, seed: int
) -> dict[str, float]:
    n = context.scaled(384)
    if name == "sft":
        return {"good": lab.held_out(policy, env, n, seed=seed).value}
    scores = {
        said: lab.held_out(policy, env, n, seed=seed, asked=asked_for(AFTER, said)).value for said in ("good", "bad")
    }
    copied = [
        (
            (
                *policy.encode(with_condition(p, AFTER, "bad")),
                *worse.tokens,
                *policy.tokenizer.encode("good :", add_special=False),
            ),
            worse.tokens,
        )
        for p, worse, _ in pairs[:64]
    ]
    return {**scores, "copy_logp": statistics.fmean(float(x.mean()) for x in policy.logprobs(copied))}


HINDSIGHT = Row(
    id="S038",
    claim="Imitating chains of a worse and a better answer, each behind the feedback on it, and asking for good, "
    "beats imitating winners and imitating each answer alone under its feedback.",
    setup="0.46M policy, attribute world; 640 prompts x 4 samples of the base, ranked by a person with noisy eyes; "
    f"every text read {READINGS} times in batches of 64 at 1e-3: the first of each four alone, the first and the last "
    "each behind `good :` or `bad :`, or chains of both in both orders with 15 % of the earlier one's tokens hidden",
    core="triloop.learn.examples.chain_of_hindsight",
    contrasts=(
        Contrast(metric=UTILITY, treatment="chains, asked for good", baseline="SFT on winners", above=0.0, below=0.0),
        Contrast(
            metric=f"{UTILITY}, asked for good", treatment="chains", baseline="single conditioned", above=0.0, below=0.0
        ),
    ),
    run=_hindsight,
    seeds=(3, 4, 5),
    base="base:attributes",
    parts=("learn.examples", "sources.annotators", "envs.conditioned", "loops.study"),
    changed_after_first_look="A first set-up (2026-11-21, 384 prompts, 120 steps for every arm, each pair in one order, "
    "seeds 0 to 2) gave -1: -0.14 [-0.16, -0.12] against SFT, -0.10 [-0.14, -0.06] against single conditioned, and the "
    "steering from bad to good was 0.26 weaker. There a chain's first place, the only one that is asked for, got half the "
    "steps' worth of what the other arms gave to it, and texts were read 20 times. Now every text stands in a chain's "
    "first place as often as the other arms read it, over more prompts; steering, which the paper does not compare, is "
    "left to the facts. Before the first set-up, looks with one seed: pairs of two samples and 60 steps of 32 chains at "
    "5e-4 taught no arm to heed the words (0.19 against 0.39 of SFT); best and worst of four and 120 steps at 1e-3 gave "
    "0.36 against 0.52 and 0.48; without hidden tokens it was as good (0.36), and no arm came to copy. "
    "Rule: without the steering.",
)


# ------------------------------------------------------------------ S001


def _verbal(context: Context) -> Measured:
    n = context.scaled(160)
    collect = CollectConfig(prompts=n, samples=4, source="people", kinds=("text",), condition="good")
    imitate = ImitateConfig(on="feedback", keep=1.0, steps=context.scaled(40), lr=5e-4, history=4)
    online = CycleConfig(
        stages=("collect", "imitate"),
        collect=collect,
        imitate=imitate,
        people=PeopleConfig(flip=0.0),
        condition="good",
        condition_template=CONDITION,
    )
    at_once = replace(imitate, steps=4 * imitate.steps)
    offline = replace(online, collect=replace(collect, prompts=4 * n), imitate=at_once)
    winners = replace(
        offline, collect=replace(offline.collect, kinds=("scalar",)), imitate=replace(at_once, on="best"), condition=""
    )
    found = sweep(
        context,
        {
            "online": cycled(context, online, generations=4),
            "offline": cycled(context, offline),
            "winners": cycled(context, winners),
        },
    )
    after = {name: [o.after for o in outcomes] for name, outcomes in found.items()}
    return Measured(
        baseline=[after["offline"], after["winners"]],
        treatment=[after["online"], after["online"]],
        facts={
            "base": round(statistics.fmean(o.before for o in found["online"]), 4),
            **averages(after),
            **_kept(found),
        },
    )


def _kept(found: Mapping[str, Sequence[Outcome]]) -> dict[str, object]:
    """Mean attributes at the end."""
    return {
        f"attributes_{name}": {k: round(statistics.fmean(o.parts[k] for o in outcomes), 3) for k in outcomes[0].parts}
        for name, outcomes in found.items()
    }


VERBAL = Row(
    id="S001",
    claim="Imitating its own answers under the critique that each got, a policy asked for `good` improves without any "
    "scalar; bootstrapping online goes further than offline, and than imitating the best of each group.",
    setup="0.46M policy, attribute world; 640 prompts x 4 samples and 160 steps in each arm: one generation (offline) "
    "or four in which later samples are asked to be good (online); beside them SFT on the best of each group by the "
    "true score",
    core="triloop run feedback-conditional",
    contrasts=(
        Contrast(metric=UTILITY, treatment="online", baseline="offline", above=0.0, below=0.0),
        Contrast(metric=UTILITY, treatment="online", baseline="SFT on the best of each four", above=0.0, below=0.0),
    ),
    run=_verbal,
    seeds=(0, 1, 2),
    base="base:attributes",
    parts=("loops.generations", "loops.assemble", "envs.conditioned", "sources.annotators"),
)


# ------------------------------------------------------------------ S058

AGREE = 0.95
"""Share of the texts whose code is the one that goes with their topic."""
CODES = {"good": 1.0, "bad": 0.0}
"""Code -> what ``clean`` is to be."""
Coded = tuple[Prompt, str, str]
"""A request, its code, and a text that keeps to the code."""


def topic(prompt: Prompt) -> int:
    """0 or 1: half of the animals each."""
    return int(SUBJECTS.index(prompt.meta["subject"]) < len(SUBJECTS) // 2)


def coded(env: Attributes, n: int, *, seed: int) -> list[Coded]:
    """Texts whose code is nearly always the one of their topic."""
    draws = rng.generator(seed, "coded")
    out: list[Coded] = []
    for p in lab.prompts(env, n, seed=seed):
        agrees = bool(draws.random() < AGREE)
        code = "good" if (topic(p) == 1) == agrees else "bad"
        out.append((p, code, env.demonstration(p, draws, 0.2, rates={"clean": 1 - CODES[code]})))
    return out


def _controllable(context: Context) -> Measured:
    env = Attributes()
    steps = context.scaled(40)

    def one(seed: int) -> dict[str, float]:
        written = coded(env, context.scaled(768), seed=seed)
        taught = _under_codes(lab.fresh(context.base), written)
        weights = inverse_propensity([c for _, c, _ in written], [topic(p) for p, _, _ in written])

        def trained(examples: Sequence[Demonstration]) -> NativePolicy:
            policy = lab.fresh(context.base)
            lab.learn(policy, examples, "sft", steps=steps, lr=5e-4, seed=seed)
            return policy

        plain = trained(taught)
        other = [(p, "bad" if c == "good" else "good") for p, c, _ in written]
        drawn = lab.sample(plain, [with_condition(p, CONDITION, c) for p, c in other], 1, seed=seed)
        made = [(p, c, g[0].text) for (p, c), g in zip(other, drawn, strict=True)]
        kept = [x for x in made if env.attributes(x[0], x[2])["clean"] == CODES[x[1]] and x[2]]
        policies = {
            "plain": plain,
            "ips": trained([replace(e, weight=w) for e, w in zip(taught, weights, strict=True)]),
            "unfiltered": trained([*taught, *_under_codes(plain, made)]),
            "fast": trained([*taught, *_under_codes(plain, kept)]),
        }
        found = {"kept": len(kept) / len(made)}
        for name, policy in policies.items():
            obeyed, quality = _obedience(policy, env, context.scaled(768), seed)
            found |= {f"obeyed_{name}": obeyed, f"fluent_{name}": quality}
        return found

    found = per_seed(context, one)
    return Measured(
        baseline=[found["obeyed_plain"], found["obeyed_ips"], found["obeyed_unfiltered"]],
        treatment=[found["obeyed_fast"]] * 3,
        facts=averages(found),
    )


def _under_codes(policy: NativePolicy, written: Sequence[Coded]) -> list[Demonstration]:
    return lab.demonstrations(policy, [(with_condition(p, CONDITION, code), text) for p, code, text in written])


def _obedience(policy: NativePolicy, env: Attributes, n: int, seed: int) -> tuple[float, float]:
    """On codes that hardly ever went with their topic: share of answers that keep to the code, and mean fluency."""
    asked = [(p, "bad" if topic(p) else "good") for p in lab.prompts(env, n, seed=seed, split="eval")]
    drawn = lab.sample(policy, [with_condition(p, CONDITION, c) for p, c in asked], 1, seed=seed)
    seen = [env.attributes(p, g[0].text) for (p, _), g in zip(asked, drawn, strict=True)]
    obeyed = [a["clean"] == CODES[c] for a, (_, c) in zip(seen, asked, strict=True)]
    return statistics.fmean(obeyed), statistics.fmean(a["fluent"] for a in seen)


_OBEYED = "share of answers that keep to a code that is rare for their topic"

CONTROLLABLE = Row(
    id="S058",
    claim="Where a control code goes with the topic, a policy follows the topic; retraining on its own counterfactual "
    "answers, kept where a classifier finds the code in them, makes it follow the code, more than inverse propensity "
    "weights and more than keeping all of them.",
    setup="0.46M policy, attribute world; 768 texts by a teacher behind `good ;` (no rude word) or `bad ;` (a rude "
    f"word), {AGREE:.0%} of them the code of their topic (half of the animals each); 40 steps of 64 in each arm",
    core="triloop.learn.propensity.inverse_propensity; triloop.envs.conditioned.with_condition",
    contrasts=(
        Contrast(metric=_OBEYED, treatment="FAST", baseline="plain", above=0.0, below=0.0),
        Contrast(metric=_OBEYED, treatment="FAST", baseline="IPS", above=0.0, below=0.0),
        Contrast(metric=_OBEYED, treatment="FAST", baseline="unfiltered", above=0.0, below=0.0),
    ),
    run=_controllable,
    seeds=(0, 1, 2, 3),
    base="base:attributes",
    parts=("learn.propensity", "envs.conditioned", "loops.study"),
    changed_after_first_look="Experiment, after a look with one seed (2026-11-21; FAST 0.86, plain 0.77, IPS 0.82, "
    "unfiltered 0.76): held-out requests were 384 and are 768, seeds were three and are four. Rule: as first written.",
)


CONDITIONAL = (HINDSIGHT, VERBAL, CONTROLLABLE)
"""The rows of this module."""
