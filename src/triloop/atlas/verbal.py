"""Rows on what people say or choose instead of what they could write: S046 critique and refinement, S054 an instruction
within its scope, A04 comparisons instead of demonstrations."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from triloop import rng
from triloop.atlas import lab
from triloop.atlas.ai_feedback import cycled
from triloop.atlas.conditional import UTILITY, averages, imitated
from triloop.atlas.fine_grained import per_seed
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.atlas.rl import sweep
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_skills import ASK, CONDITION, SKILLS
from triloop.envs.conditioned import with_condition
from triloop.learn.examples import Demonstration, Example, Preference
from triloop.learn.objective_config import MixtureConfig, ObjectiveConfig
from triloop.loops.stages import CollectConfig, CycleConfig, ImitateConfig, PeopleConfig, RewardStageConfig
from triloop.policies.native import NativePolicy
from triloop.records import Completion, Prompt

__all__ = ["VERBAL_MORE", "beside", "in_scope"]


# ------------------------------------------------------------------ S046

FOLLOW = "{request} {answer} ; {critique} ; {request}"
"""The second turn of a dialogue: what was answered, what was said of it, and the request again."""


def beside(prompt: Prompt, answer: str, critique: str) -> Prompt:
    """The second turn as a prompt."""
    text = FOLLOW.format(request=prompt.text, answer=answer, critique=critique)
    return replace(prompt, id=f"{prompt.id}|{answer}|{critique}", text=text)


def _dress(context: Context) -> Measured:
    env = Attributes()

    def one(seed: int) -> dict[str, float]:
        base = lab.fresh(context.base)
        asked = lab.prompts(env, context.scaled(384), seed=seed)
        drawn = [(p, c) for p, g in zip(asked, lab.sample(base, asked, 2, seed=seed), strict=True) for c in g]
        found: dict[str, float] = {}
        for name, taught in _dressed(base, env, drawn, seed).items():
            policy = lab.fresh(context.base)
            lab.learn(policy, taught, "sft", steps=context.scaled(100), lr=5e-4, seed=seed)
            first, second = _turns(policy, env, context.scaled(384), seed)
            found |= {f"first_{name}": first, f"second_{name}": second, f"gain_{name}": second - first}
        return found

    found = per_seed(context, one)
    return Measured(
        baseline=[found["first_score"], found["gain_score"], found["gain_critique"]],
        treatment=[found["first_both"], found["gain_both"], found["gain_both"]],
        facts=averages(found),
    )


def _dressed(
    base: NativePolicy, env: Attributes, drawn: Sequence[tuple[Prompt, Completion]], seed: int
) -> dict[str, list[Demonstration]]:
    """Each sample under its score in a word, or under its critique; and what a person made of it after the critique."""
    someone = lab.person(env, seed=seed, skill=0.95)
    prompts, texts = [p for p, _ in drawn], [c.text for _, c in drawn]
    scores = [f.value or 0.0 for f in someone.judge(prompts, texts)]
    said = [str(f.content["critique"]) for f in someone.critique(prompts, texts)]
    edits = someone.revise(prompts, texts, said)

    def under(words: Sequence[str]) -> list[Demonstration]:
        return [
            imitated(base, with_condition(p, CONDITION, w), c)
            for (p, c), w in zip(drawn, words, strict=True)
            if c.tokens
        ]

    critiqued = under(said)
    refined = lab.demonstrations(
        base,
        [
            (beside(p, c.text, words), str(e.content["revised"]))
            for (p, c), words, e in zip(drawn, said, edits, strict=True)
            if words != "good"
        ],
    )
    words = ["good" if x > 1 / 3 else "bad" if x < -1 / 3 else "neutral" for x in scores]
    return {"score": under(words), "critique": critiqued, "both": [*critiqued, *refined]}


def _turns(policy: NativePolicy, env: Attributes, n: int, seed: int) -> tuple[float, float]:
    """Utility of answers that are asked to be good, and of those that follow a critique of the former."""
    asked = lab.prompts(env, n, seed=seed, split="eval")
    first = [g[0].text for g in lab.sample(policy, [with_condition(p, CONDITION, "good") for p in asked], 1, seed=seed)]
    told = [beside(p, t, env.critique(p, t)) for p, t in zip(asked, first, strict=True)]
    second = [g[0].text for g in lab.sample(policy, told, 1, seed=seed, round=2)]
    values = [[env.utility(env.attributes(p, t)) for p, t in zip(asked, turn, strict=True)] for turn in (first, second)]
    return statistics.fmean(values[0]), statistics.fmean(values[1])


DRESS = Row(
    id="S046",
    claim="Learning from critiques in words and from refinements makes the first answer better than conditioning on a "
    "score does, and lets the policy mend its answer when it is told what is wrong; without refinements it does not "
    "learn that.",
    setup="0.46M policy, attribute world; 384 prompts x 2 samples, 100 steps of 64: each sample behind its score as a "
    "word, behind its critique, or behind its critique beside second turns in which a person's revision follows the "
    "critique; then held-out answers that are asked to be good, and the answers after a critique of those",
    core="triloop run feedback-conditional; loops.assemble (edits); envs.conditioned",
    contrasts=(
        Contrast(
            metric=f"{UTILITY} of first answers",
            treatment="critiques and refinements",
            baseline="scores",
            above=0.0,
            below=0.0,
        ),
        Contrast(
            metric="gain of the second answer",
            treatment="critiques and refinements",
            baseline="scores",
            above=0.0,
            below=0.0,
        ),
        Contrast(
            metric="gain of the second answer",
            treatment="critiques and refinements",
            baseline="critiques",
            above=0.0,
            below=0.0,
        ),
    ),
    run=_dress,
    seeds=(0, 1, 2),
    base="base:attributes",
    parts=("envs.conditioned", "sources.annotators", "loops.study"),
)


# ------------------------------------------------------------------ S054

SCOPE = 3
"""Requests of so many facts are to be answered politely. Those of two are near the scope, all other tasks out of it."""
FEEDBACK = "not polite"


def in_scope(prompt: Prompt) -> bool:
    """Whether the feedback is about it."""
    return prompt.level == SCOPE


def _scoped(context: Context) -> Measured:
    env = Attributes()

    def one(seed: int) -> dict[str, float]:
        base = lab.fresh(context.base)
        asked = lab.prompts(env, context.scaled(768), seed=seed)
        pairs = _with_and_without(base, [p for p in asked if in_scope(p)], seed)
        near = [p for p in asked if not in_scope(p)][: context.scaled(384)]
        own = _own(base, [*near, *_other_tasks(env, context.scaled(192), seed=seed)], seed)
        dpo, sft = ObjectiveConfig(name="dpo", beta=0.1), ObjectiveConfig(name="sft")
        ways: dict[str, tuple[Sequence[Example], MixtureConfig, int]] = {
            "dpo": (pairs, MixtureConfig(pairs=dpo), 32),
            "c3po": ([*pairs, *own], MixtureConfig(pairs=dpo, demonstrations=sft), 64),
        }
        found = _kept_to_scope(base, base, env, context.scaled(400), seed)
        found = {f"{k}_base": v for k, v in found.items()}
        found["in_in_context"] = _polite_in_context(base, env, context.scaled(400), seed)
        for name, (examples, mixture, size) in ways.items():
            policy = lab.fresh(context.base)
            lab.learn(
                policy, examples, mixture, steps=context.scaled(120), batch=size, lr=6e-4, seed=seed, reference=base
            )
            seen = _kept_to_scope(policy, base, env, context.scaled(400), seed)
            found |= {f"{k}_{name}": v for k, v in seen.items()}
            found[f"change_{name}"] = abs(seen["near"] - found["near_base"])
        return found

    found = per_seed(context, one)
    return Measured(
        baseline=[found["change_dpo"], found["in_dpo"], found["in_in_context"]],
        treatment=[found["change_c3po"], found["in_c3po"], found["in_c3po"]],
        facts=averages(found),
    )


def _mending(p: Prompt, answer: str) -> Prompt:
    """The answer put before the policy once more, with the feedback: how its base follows an instruction."""
    text = SKILLS["revise"].prompt(request=p.text, response=answer, critique=FEEDBACK)
    return replace(p, id=f"{p.id}|{answer}|revise", text=text)


def _with_and_without(base: NativePolicy, asked: Sequence[Prompt], seed: int) -> list[Preference]:
    """What the base writes when the feedback is in its prompt, over what it wrote without."""
    plain = [g[0] for g in lab.sample(base, asked, 1, seed=seed)]
    told = [
        g[0] for g in lab.sample(base, [_mending(p, c.text) for p, c in zip(asked, plain, strict=True)], 1, seed=seed)
    ]
    return [
        Preference(prompt_tokens=a.prompt_tokens, first=b.tokens, second=a.tokens)
        for a, b in zip(plain, told, strict=True)
        if a.tokens and b.tokens and a.tokens != b.tokens
    ]


def _other_tasks(env: Attributes, n: int, *, seed: int, start: int = 30_000) -> list[Prompt]:
    """Questions about, and critiques of, a teacher's answers."""
    draws = rng.generator(seed, "other tasks", start)
    asked = lab.prompts(env, n, seed=seed, start=start)
    texts = [env.demonstration(p, draws, 0.4) for p in asked]
    forms = (ASK.replace("{principle}", "polite"), SKILLS["critique"].template)
    return [
        replace(p, id=f"{p.id}|task", text=forms[i % 2].format(request=p.text, response=t))
        for i, (p, t) in enumerate(zip(asked, texts, strict=True))
    ]


def _own(base: NativePolicy, asked: Sequence[Prompt], seed: int) -> list[Demonstration]:
    """What the base itself answers, to be kept."""
    return [
        imitated(base, p, g[0])
        for p, g in zip(asked, lab.sample(base, asked, 1, seed=seed, round=2), strict=True)
        if g[0].tokens
    ]


def _kept_to_scope(policy: NativePolicy, base: NativePolicy, env: Attributes, n: int, seed: int) -> dict[str, float]:
    """Share of polite answers in scope and near it, and nats a token by which the base's answers to other tasks are "
    "lost."""
    asked = lab.prompts(env, n, seed=seed, split="eval")
    found = {}
    for name, group in (("in", [p for p in asked if in_scope(p)]), ("near", [p for p in asked if not in_scope(p)])):
        texts = [g[0].text for g in lab.sample(policy, group, 1, seed=seed)]
        found[name] = statistics.fmean(env.attributes(p, t)["polite"] for p, t in zip(group, texts, strict=True))
    others = _other_tasks(env, max(8, n // 4), seed=seed, start=60_000)
    rows = [(c.prompt_tokens, c.tokens) for g in lab.sample(base, others, 1, seed=seed) for c in g if c.tokens]
    lost = zip(base.logprobs(rows), policy.logprobs(rows), strict=True)
    return {**found, "lost": statistics.fmean(float((a - b).mean()) for a, b in lost)}


def _polite_in_context(base: NativePolicy, env: Attributes, n: int, seed: int) -> float:
    """Adherence when the feedback stands in the prompt at test time."""
    asked = [p for p in lab.prompts(env, n, seed=seed, split="eval") if in_scope(p)]
    plain = [g[0].text for g in lab.sample(base, asked, 1, seed=seed)]
    told = lab.sample(base, [_mending(p, t) for p, t in zip(asked, plain, strict=True)], 1, seed=seed)
    return statistics.fmean(env.attributes(p, g[0].text)["polite"] for p, g in zip(asked, told, strict=True))


_POLITE = "share of polite answers to requests of three facts"

SCOPED = Row(
    id="S054",
    claim="Preferring what feedback in the prompt made of its answers, within the scope, while imitating its own "
    "answers elsewhere (C3PO), a policy follows the feedback about as well as with it in context and as preference "
    "learning alone, and changes far less near the scope.",
    setup="0.46M policy, attribute world; `not polite`, meant for requests of three facts; pairs of the base's answer "
    "revised under that feedback and its first answer; 120 steps at 6e-4 of DPO on 32 pairs, or of DPO on pairs "
    "beside SFT on its own answers to requests of two facts and to other tasks, 64 examples a step",
    core="triloop run mixed (cycle.prefer.beside); learn.mixture",
    contrasts=(
        Contrast(
            metric="change of the share of polite answers to requests of two facts",
            treatment="C3PO",
            baseline="DPO alone",
            above=0.05,
            below=0.0,
            higher_is_better=False,
        ),
        Contrast(metric=_POLITE, treatment="C3PO", baseline="DPO alone", above=-0.1, below=-0.1),
        Contrast(metric=_POLITE, treatment="C3PO", baseline="the feedback in context", above=-0.1, below=-0.1),
    ),
    run=_scoped,
    seeds=(0, 1, 2),
    base="base:attributes",
    parts=("learn.mixture", "loops.study", "envs.attributes_skills"),
    changed_after_first_look="Experiment, after three looks with one seed (2026-11-21): the scope was six of 24 "
    "animals, which C3PO did not tell from the others in 40 steps at 3e-4 (0.62 polite within, 0.61 without) nor in "
    "120 at 6e-4 (0.56 and 0.56; DPO alone 1.00 and 1.00). By the number of facts it did (1.00 and 0.34; the base "
    "0.33). Rule: its metrics name the other scope; thresholds as first written.",
)


# ------------------------------------------------------------------ A04

DEMONSTRATIONS, FASTER = 120, 5
"""Demonstrations that fit into the annotator's time, and comparisons that fit into the time of one."""
CARELESS = 0.5
"""How often each attribute fails in what the annotator writes."""


def _compared(context: Context) -> Measured:
    n = context.scaled(DEMONSTRATIONS)
    shown = ImitateConfig(on="teacher", noise=CARELESS, examples=n, steps=context.scaled(40), lr=5e-4)
    chosen = CycleConfig(
        stages=("collect", "reward", "improve"),
        collect=CollectConfig(prompts=n * FASTER // 2, samples=4, source="people", kinds=("pair",)),
        people=PeopleConfig(flip=0.15),
        reward=RewardStageConfig(template=ASK.replace("{principle}", "overall")),
        judge="reward",
    )
    found = sweep(
        context,
        {
            "demonstrations": cycled(context, CycleConfig(stages=("imitate",), imitate=shown)),
            "comparisons": cycled(context, chosen, rounds=context.scaled(12)),
        },
    )
    after = {name: [o.after for o in outcomes] for name, outcomes in found.items()}
    levels = [_written(context.scaled(512), seed) for seed in context.seeds]
    return Measured(
        baseline=[after["demonstrations"], levels],
        treatment=[after["comparisons"], after["comparisons"]],
        facts={
            "base": round(statistics.fmean(o.before for o in found["comparisons"]), 4),
            "annotators_demonstrations": round(statistics.fmean(levels), 4),
            **averages(after),
        },
    )


def _written(n: int, seed: int) -> float:
    """Mean utility of what the annotator writes."""
    env, draws = Attributes(), rng.generator(seed, "annotator's level")
    asked = lab.prompts(env, n, seed=seed)
    return statistics.fmean(env.utility(env.attributes(p, env.demonstration(p, draws, CARELESS))) for p in asked)


COMPARED = Row(
    id="A04",
    claim="For the same time of an annotator who writes no better than the policy's better answers, comparisons that "
    "are wrong one time in seven bring the policy further than imitating demonstrations, and beyond the annotator's "
    "own level.",
    setup=f"0.46M policy, attribute world; {DEMONSTRATIONS} demonstrations in which each attribute fails every other "
    f"time, imitated for 40 steps, or {FASTER * DEMONSTRATIONS} comparisons (15 % turned round), a reward model on "
    "them and 12 rounds of GRPO",
    core="triloop run rlhf",
    contrasts=(
        Contrast(metric=UTILITY, treatment="comparisons", baseline="demonstrations", above=0.0, below=0.0),
        Contrast(metric=UTILITY, treatment="comparisons", baseline="what the annotator writes", above=0.0, below=0.0),
    ),
    run=_compared,
    seeds=(0, 1, 2),
    base="base:attributes",
    parts=("loops.generations", "sources.reward_model", "sources.annotators"),
)


VERBAL_MORE = (DRESS, SCOPED, COMPARED)
"""The rows of this module."""
