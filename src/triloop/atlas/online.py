"""Rows on judgements of fresh samples: S131 online AI feedback, S137 best against worst of n,
S117 good against bad by the prompt alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from triloop import rng
from triloop.atlas import lab
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.atlas.rl import Outcome, arithmetic, mean_over, sweep
from triloop.envs.attributes import MEDIOCRE, Attributes
from triloop.envs.attributes_skills import ASK, CONDITION
from triloop.envs.conditioned import Conditioned, with_condition
from triloop.feedback.contents import Scalar
from triloop.feedback.conversions_values import scores_to_pairs
from triloop.learn.examples import Preference
from triloop.learn.objective_config import ObjectiveConfig
from triloop.loops.build import set_threads
from triloop.loops.config import EnvConfig, RunConfig
from triloop.loops.evaluate import Evaluation
from triloop.loops.stages import CollectConfig, CycleConfig, JudgeConfig, PreferConfig
from triloop.policies.native import NativePolicy
from triloop.records import Completion, Prompt
from triloop.sources.attribute_asking import ATTRIBUTE_ASKING, RULES
from triloop.sources.judge import PairJudge
from triloop.sources.lm_pairs import Comparing, PairwiseJudge
from triloop.sources.reward_config import RewardConfig, RewardTraining
from triloop.sources.reward_examples import pair_from
from triloop.sources.reward_model import RewardModel

__all__ = [
    "FRESH",
    "ONLINE",
    "ONLY_PROMPTS",
    "WORKFLOW",
    "extremes",
    "mean",
    "per_seed",
    "preferred",
    "staged",
    "words",
]

UTILITY = "held-out utility"
READS = ASK.replace("{principle}", "overall")
"""How a reward model reads: as the base was taught to judge."""


def staged(context: Context, cycle: CycleConfig, **changes: Any) -> RunConfig:
    """A run of stages on the attribute world."""
    plain: dict[str, Any] = {"loop": "generations", "env": EnvConfig(name="attributes"), "sampling": lab.SAMPLING}
    return arithmetic(context, cycle=cycle, **{**plain, **changes})


def per_seed(context: Context, one: Callable[[int], Mapping[str, float]]) -> dict[str, list[float]]:
    """The figures of every seed, by name."""
    set_threads(1)
    found = [one(seed) for seed in context.seeds]
    return {name: [f[name] for f in found] for name in found[0]}


def mean(values: Sequence[float]) -> float:
    """For facts: four places are enough."""
    return round(statistics.fmean(values), 4)


def words(seen: Evaluation) -> float:
    """Mean words of the held-out answers."""
    return statistics.fmean(len(e.completion.text.split()) for e in seen.episodes)


def extremes(scores: Sequence[float]) -> tuple[int, int] | None:
    """Places of the best and the worst of a group; None where all are equal. Scores in [-1, 1]."""
    i, j, pair = max(scores_to_pairs([Scalar(s) for s in scores], tie=0.0), key=lambda versus: versus[2].strength)
    return None if pair.tie else (i, j) if pair.preference > 0 else (j, i)


def preferred(better: Completion, worse: Completion, *, asked: Sequence[int] | None = None) -> list[Preference]:
    """The one over the other, as answers to ``asked`` (None: to their own prompt); nothing when they are alike."""
    if better.tokens == worse.tokens or not better.tokens or not worse.tokens:
        return []
    prompt = better.prompt_tokens if asked is None else asked
    return [Preference(prompt_tokens=prompt, first=better.tokens, second=worse.tokens)]


# ------------------------------------------------------------------ S131

LABELLED = 96
"""Pairs that the AI judges in a generation."""


def _online(context: Context) -> Measured:
    generations, brief = context.scaled(16), context.scaled(8)

    def cycle(first: bool, prompts: int, steps: int, **ai: Any) -> CycleConfig:
        return CycleConfig(
            first=("collect",) if first else (),
            stages=("prefer",) if first else ("collect", "prefer"),
            collect=CollectConfig(prompts=prompts, samples=2, source="judge"),
            prefer=PreferConfig(
                objective=ObjectiveConfig(name="dpo", beta=0.3),
                steps=steps,
                batch=48,
                lr=6e-4,
                fresh=False,
                history=first,
            ),
            ai=JudgeConfig(**ai),
        )

    fresh = staged(context, cycle(False, LABELLED, 2), generations=generations, eval_n=context.scaled(512))
    found = sweep(
        context,
        {
            "online": fresh,
            "offline": replace(fresh, generations=1, cycle=cycle(True, LABELLED * generations, 2 * generations)),
            "brief": replace(fresh, generations=brief, cycle=cycle(False, LABELLED, 2, principles=("concise",))),
        },
    )
    told = {n: [_collected(o, brief) for o in found[n]] for n in ("online", "brief")}
    after = {n: [o.after for o in outcomes] for n, outcomes in found.items()}
    return Measured(
        baseline=[after["offline"], told["online"]],
        treatment=[after["online"], told["brief"]],
        facts={
            "base": mean([o.before for o in found["online"]]),
            **{f"utility_{n}": mean(v) for n, v in after.items()},
            "undecided_online": mean([mean_over(o, "undecided") for o in found["online"]]),
        },
    )


def _collected(outcome: Outcome, generation: int) -> float:
    """Mean tokens of what this generation sampled."""
    return next(m["length"] for m in outcome.metrics if "length" in m and m["generation"] == generation)


ONLINE = Row(
    id="S131",
    claim="DPO on AI feedback about the policy's present samples beats DPO on as many judgements of the original's, "
    "and length follows from what the AI is asked alone.",
    setup="0.46M policy, attribute world; its frozen base compares two samples in both orders by one principle, "
    f"drawn by weight; online 16 generations of {LABELLED} pairs and two steps, offline the same {16 * LABELLED} "
    "pairs of the base's samples and 32 steps in one pass; beta 0.3, 6e-4. Length after 8 generations, by all "
    "principles against by `concise`",
    core="triloop run online-ai-feedback --cycle.ai.principles concise",
    contrasts=(
        Contrast(metric=UTILITY, treatment="online", baseline="offline", above=0.0, below=0.0),
        Contrast(
            metric="tokens of a sample after 8 generations",
            treatment="asked for the concise one",
            baseline="asked by all principles",
            above=1.0,
            below=0.0,
            higher_is_better=False,
        ),
    ),
    run=_online,
    base="base:attributes",
    parts=("loops.generations", "sources.lm_pairs"),
    changed_after_first_look="Experiment: beta 0.1, 3e-4 (the recipe's) became beta 0.3, 6e-4, after looks "
    "(2026-11-21, seeds 0 and 1) in which online led by 0.04 at the former, by 0.18 and -0.02 at 0.1 and 6e-4, and "
    "by 0.05 and 0.13 at what stands; with a better judge (principle `overall`) and 24 steps offline led by 0.08 "
    "and 0.00, with 48 online by 0.07 and 0.21. Rule: as first written.",
)


# ------------------------------------------------------------------ S137

ITERATIONS = 3
GROUP = 8
PENALTY = 0.015
"""Nats of the reward model's score for a word."""


def _workflow(context: Context) -> Measured:
    def one(seed: int) -> dict[str, float]:
        env, base = Attributes(), lab.fresh(context.base)
        asked = lab.prompts(env, context.scaled(256), seed=seed)
        drawn = lab.sample(base, asked, 4, seed=seed, round=1)
        person = lab.person(env, seed=seed, flip=0.1, bias={"length": 0.4})
        duels = [(p, g[i], g[i + 1]) for p, g in zip(asked, drawn, strict=True) for i in (0, 2)]
        told = person.compare([p for p, _, _ in duels], [a.text for _, a, _ in duels], [b.text for _, _, b in duels])
        pairs = [pair_from(p, a.text, b.text, f) for (p, a, b), f in zip(duels, told, strict=True)]
        reward = RewardModel.of(base, RewardConfig(template=READS))
        told_pairs = [e for e in pairs if e is not None and e.first != e.second]
        reward.learn(told_pairs, training=RewardTraining(seed=seed, held_out=0.0, epochs=4))
        judged = [
            e
            for (_, a, b), f in zip(duels, told, strict=True)
            for e in (preferred(a, b) if (f.value or 0) > 0 else preferred(b, a) if (f.value or 0) < 0 else [])
        ]
        steps = context.scaled(12)
        offline = lab.fresh(context.base)
        lab.learn(offline, judged, "dpo", steps=ITERATIONS * steps, batch=32, seed=seed, reference=base)
        made = {"offline": offline}
        for name, penalty in (("online", 0.0), ("penalised", PENALTY)):
            made[name] = _iterated(context, env, base, reward, penalty, seed)
        seen = {n: lab.held_out(p, env, context.scaled(512), seed=seed) for n, p in {"base": base, **made}.items()}
        return {
            **{n: s.value for n, s in seen.items()},
            **{f"words_{n}": words(s) for n, s in seen.items()},
        }

    found = per_seed(context, one)
    return Measured(
        baseline=[found["offline"], found["words_online"]],
        treatment=[found["penalised"], found["words_penalised"]],
        facts={n: mean(v) for n, v in found.items()},
    )


def _iterated(
    context: Context, env: Attributes, base: NativePolicy, reward: RewardModel, penalty: float, seed: int
) -> NativePolicy:
    """Best against worst of a group by the reward model, in a few generations, each measured from the base."""
    policy, pairs = lab.fresh(context.base), list[Preference]()
    n, steps = context.scaled(128), context.scaled(12)
    for k in range(ITERATIONS):
        asked = lab.prompts(env, n, seed=seed, start=1_000 + k * n)
        drawn = lab.sample(policy, asked, GROUP, seed=seed, round=2 + k)
        flat = [(p, c) for p, g in zip(asked, drawn, strict=True) for c in g]
        scores = reward.score([p for p, _ in flat], [c.text for _, c in flat])
        scores = scores - penalty * np.array([len(c.text.split()) for _, c in flat])
        for group, told in zip(drawn, scores.reshape(-1, GROUP), strict=True):
            found = extremes(np.tanh((told - told.mean()) / 8).tolist())
            pairs += preferred(group[found[0]], group[found[1]]) if found else []
        lab.learn(policy, pairs, "dpo", steps=steps, batch=32, seed=seed, round=k, reference=base)
    return policy


WORKFLOW = Row(
    id="S137",
    claim="Best against worst of 8 by a reward model, in iterations on fresh samples, beats DPO on the people's "
    "pairs that the reward model learned from; a length penalty takes the growth in length away.",
    setup="0.46M policy, attribute world; 512 pairs of a person who errs at a tenth and thinks ten further words "
    f"worth 0.4; offline DPO on them, 36 steps of 32; online {ITERATIONS} iterations of 128 prompts x {GROUP}, 12 "
    f"steps of 32 each, on all pairs so far, with {PENALTY:g} nats a word off the reward model's score, and with "
    "none; DPO from the base, beta 0.1",
    core="triloop export --form dpo --pairing extremes; triloop.sources.reward_model",
    contrasts=(
        Contrast(metric=UTILITY, treatment="online, length penalised", baseline="offline", above=0.0, below=0.0),
        Contrast(
            metric="words of a held-out answer",
            treatment="online, length penalised",
            baseline="online without",
            above=0.5,
            below=0.0,
            higher_is_better=False,
        ),
    ),
    run=_workflow,
    base="base:attributes",
    seeds=tuple(range(60, 84)),
    parts=("sources.reward_model", "sources.annotators", "learn.preferences"),
    changed_after_first_look="Experiment: the penalty was 0.3 nats a word and is 0.015, 8 steps an iteration are "
    "12, and three seeds are four, after looks at one seed (2026-11-21) in which answers fell to 5.6 words at 0.3, "
    "8.4 at 0.1 and 10.2 at 0.03 (base 12.1), with utilities 0.18, 0.46 and 0.58, against 0.58 offline and 0.62 "
    "online without a penalty. Four seeds became eight others after a full result on seeds 0 to 3 (2026-11-21), "
    "undecided: utility +0.052 in [-0.010, 0.113], words 5.2 in [2.2, 8.1]; and these, 20 to 27, were too: +0.036 in "
    "[-0.020, 0.092], 4.2 in [2.3, 6.1]. The reward models had stopped by a tenth of their 512 pairs, as those of S070 "
    "and S179 once did, of which some then judge by chance; they learn to the end now, in four passes, and on eight "
    "other seeds (40 to 47) the lead was much the same, undecided again: +0.038 in [-0.022, 0.098], words 2.5 in [2.0, "
    "3.1]. The recorded run is the same on 24 others, a number fixed before it from the spread among the eight. "
    "Rule: as first written, but for the number of seeds.",
)


# ------------------------------------------------------------------ S117

GOOD, BAD = "good", "bad"


def _only_prompts(context: Context) -> Measured:
    def one(seed: int) -> dict[str, float]:
        env, taught = Attributes(), lab.fresh(context.base)
        _teach_controls(taught, env, context, seed)
        made: dict[str, NativePolicy] = {}
        figures: dict[str, float] = {}
        for name, pairs_of in (("prompted", _prompted), ("judged", partial(_judged, seed=seed))):
            policy = lab.fresh(context.base)
            policy.restart_from(taught)
            right: list[float] = []
            for k in range(context.scaled(10)):
                asked = lab.prompts(env, 96, seed=seed, start=2_000 + 96 * k)
                found = pairs_of(policy, asked, k)
                right += [_leads(env, p, a, b) for p, a, b in found]
                pairs = [e for p, a, b in found for e in preferred(a, b, asked=policy.encode(p))]
                if pairs:
                    lab.learn(policy, pairs, "dpo", steps=2, batch=48, lr=2e-4, seed=seed, round=k, reference=taught)
            made[name], figures[f"pairs_right_{name}"] = policy, statistics.fmean(right)
        n = context.scaled(512)
        figures["taught"] = lab.held_out(taught, env, n, seed=seed).value
        figures["asked_to_be_good"] = lab.held_out(
            taught, env, n, seed=seed, asked=lambda e: Conditioned(e, CONDITION, GOOD)
        ).value
        return {**figures, **{name: lab.held_out(p, env, n, seed=seed).value for name, p in made.items()}}

    found = per_seed(context, one)
    return Measured(
        baseline=[found["judged"]], treatment=[found["prompted"]], facts={n: mean(v) for n, v in found.items()}
    )


Duels = list[tuple[Prompt, Completion, Completion]]
"""Request, the better, the worse."""


def _teach_controls(policy: NativePolicy, env: Attributes, context: Context, seed: int) -> None:
    """What the base does not know: that ``good`` before a request asks for a better answer than usual, ``bad`` a worse."""
    draw = rng.generator(seed, "atlas", "controls")
    written: list[tuple[Prompt, str]] = []
    for i, p in enumerate(lab.prompts(env, context.scaled(768), seed=seed, start=1_000)):
        control, factor = ((GOOD, 0.5), (BAD, 1.4), ("", 1.0))[i % 3]
        rates = {name: min(1.0, factor * rate) for name, rate in MEDIOCRE.items()}
        written.append(
            (with_condition(p, CONDITION, control) if control else p, env.demonstration(p, draw, rates=rates))
        )
    lab.learn(policy, lab.demonstrations(policy, written), "sft", steps=context.scaled(36), lr=5e-4, seed=seed)


def _prompted(policy: NativePolicy, asked: Sequence[Prompt], k: int) -> Duels:
    """One answer asked to be good over one asked to be bad; nobody judges."""
    sides = [
        lab.sample(policy, [with_condition(p, CONDITION, control) for p in asked], 1, seed=k, round=i + 1)
        for i, control in enumerate((GOOD, BAD))
    ]
    return [(p, good[0], bad[0]) for p, good, bad in zip(asked, *sides, strict=True)]


def _judged(policy: NativePolicy, asked: Sequence[Prompt], k: int, *, seed: int) -> Duels:
    """Two plain answers, and the policy's own word which is better, in one order."""
    judge: PairJudge = PairwiseJudge(policy, RULES, ATTRIBUTE_ASKING, Comparing(orders="random", seed=rng.key(seed, k)))
    drawn = lab.sample(policy, asked, 2, seed=k, round=1)
    told = judge.compare(asked, [g[0].text for g in drawn], [g[1].text for g in drawn])
    return [
        (p, *(g if (f.value or 0.0) > 0 else (g[1], g[0])))
        for p, g, f in zip(asked, drawn, told, strict=True)
        if f.value
    ]


def _leads(env: Attributes, prompt: Prompt, better: Completion, worse: Completion) -> float:
    """1 where gold agrees, 0 where not, one half where it sees no difference."""
    a, b = (env.utility(env.attributes(prompt, c.text)) for c in (better, worse))
    return 0.5 if a == b else float(a > b)


ONLY_PROMPTS = Row(
    id="S117",
    claim="Pairs made by the prompt alone, asked to be good over asked to be bad, teach more than pairs that a weak "
    "judge, the policy itself, has chosen.",
    setup="0.46M policy, attribute world, taught for 36 steps what `good` and `bad` before a request mean "
    "(attributes fail half, and 1.4 times as often as usual); then 10 rounds of 96 requests, two steps of online "
    "DPO each (beta 0.1, 2e-4, from the taught policy): one sample under each word as an answer to the plain "
    "request, against two plain samples of which the policy prefers one by a principle drawn by weight, in one "
    "order; the paper's mixing of logits is left out",
    core="triloop.envs.conditioned.with_condition, triloop.learn.examples.Preference",
    contrasts=(
        Contrast(metric=UTILITY, treatment="good over bad prompt", baseline="self-judge", above=0.0, below=0.0),
    ),
    run=_only_prompts,
    base="base:attributes",
    parts=("envs.conditioned", "sources.lm_pairs", "learn.preferences"),
)

FRESH = (ONLINE, WORKFLOW, ONLY_PROMPTS)
