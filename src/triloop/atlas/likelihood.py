"""Rows on what likelihood makes of good and bad examples: S062 pretraining on both, S060 one polarity alone."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from triloop import rng
from triloop.atlas import lab
from triloop.atlas.ai_feedback import cycled
from triloop.atlas.conditional import UTILITY, asked_for, averages
from triloop.atlas.fine_grained import per_seed
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.atlas.rl import sweep
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_skills import CONDITION
from triloop.envs.conditioned import with_condition
from triloop.feedback.simulate import Annotator
from triloop.learn.choices import OptimConfig
from triloop.learn.examples import Demonstration, Rated
from triloop.learn.likelihood import pmpo
from triloop.learn.objective_config import ObjectiveConfig
from triloop.loops.assemble import continuation
from triloop.loops.stages import CollectConfig, CycleConfig, ImitateConfig, PreferConfig
from triloop.nn.decoder import Decoder
from triloop.policies.native import NativePolicy
from triloop.records import Completion, Prompt
from triloop.sources.annotators import Person

__all__ = ["LIKELIHOOD", "corpus", "resting", "tabular", "untaught"]


# ------------------------------------------------------------------ S062

STEPS, COOL, RUDE = 1000, 125, 0.7
"""Optimiser steps of each arm, the last of them at a third of the rate, and the share of the corpus with a rude word."""
Corpus = Sequence[tuple[Prompt, str, bool]]
"""Prompt, text, and whether it is free of rude words."""


def untaught(base: str, *, seed: int, hidden: int = 64, layers: int = 2) -> NativePolicy:
    """A policy with a base's words, fewer parameters and no training."""
    like = lab.fresh(base)
    shape = dataclasses.replace(
        like.decoder.config,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_layers=layers,
        head_dim=hidden // like.decoder.config.num_heads,
    )
    return NativePolicy(Decoder(shape).initialise(seed), like.tokenizer, optim=OptimConfig(lr=3e-3), entropy=False)


def corpus(env: Attributes, n: int, *, seed: int, rude: float, start: int = 0) -> Corpus:
    """What a teacher wrote who is good at everything but manners."""
    draws = rng.generator(seed, "corpus", start)
    asked = lab.prompts(env, n, seed=seed, start=start)
    texts = [env.demonstration(p, draws, 0.1, rates={"clean": rude}) for p in asked]
    return [(p, t, env.attributes(p, t)["clean"] == 1) for p, t in zip(asked, texts, strict=True)]


def _pretraining(context: Context) -> Measured:
    env = Attributes()

    def one(seed: int) -> dict[str, float]:
        written = corpus(env, context.scaled(2048), seed=seed, rude=RUDE)
        clean = corpus(env, context.scaled(256), seed=seed, rude=0.0, start=50_000)
        found: dict[str, float] = {}
        for name, phases in _phases(untaught(context.base, seed=seed), written, context.scaled(STEPS)).items():
            policy = untaught(context.base, seed=seed)
            for k, (examples, n, lr) in enumerate(phases):
                lab.learn(policy, examples, "sft", steps=n, lr=lr, seed=seed, round=k)
            control = "good" if name in ("conditional", "late") else ""
            facts = _manners(policy, env, clean, control, n=context.scaled(384), seed=seed)
            found |= {f"{k}_{name}": v for k, v in facts.items()}
        return found

    found = per_seed(context, one)
    return Measured(
        baseline=[found["rude_mle"], found["nll_mle"], found["nll_filter"], found["rude_late"]],
        treatment=[
            found["rude_conditional"],
            found["nll_conditional"],
            found["nll_conditional"],
            found["rude_conditional"],
        ],
        facts=averages(found),
    )


Phases = Sequence[tuple[Sequence[Demonstration], int, float]]
"""What is imitated in turn, for how many steps, and at which rate."""


def _phases(policy: NativePolicy, written: Corpus, steps: int) -> dict[str, Phases]:
    """Ways to train on one corpus in as many steps."""
    plain = lab.demonstrations(policy, [(p, t) for p, t, _ in written])
    told = lab.demonstrations(policy, [(_told(p, "good" if good else "bad"), t) for p, t, good in written])
    kept = [e for e, (_, _, good) in zip(plain, written, strict=True) if good]
    late, cool = round(0.8 * steps), round(steps * COOL / STEPS)

    def cooled(examples: Sequence[Demonstration], n: int) -> Phases:
        phases = [(examples, n - cool, 3e-3), (examples, min(n, cool), 1e-3)]
        return [phase for phase in phases if phase[1] > 0]

    return {
        "mle": cooled(plain, steps),
        "filter": cooled(kept, steps),
        "conditional": cooled(told, steps),
        "late": [(plain, late, 3e-3), *cooled(told, steps - late)],
    }


def _told(p: Prompt, control: str) -> Prompt:
    return with_condition(p, CONDITION, control) if control else p


def _manners(
    policy: NativePolicy, env: Attributes, clean: Corpus, control: str, *, n: int, seed: int
) -> dict[str, float]:
    """How rude it is, how much of what was asked it says, and nats a token of clean texts that it has not seen."""
    asked = asked_for(CONDITION, control) if control else lambda env: env
    gold = [e.feedback[0].breakdown for e in lab.held_out(policy, env, n, seed=seed, asked=asked).episodes]
    rows = [(policy.encode(_told(p, control)), continuation(policy, p, t)) for p, t, _ in clean]
    return {
        "rude": statistics.fmean(1 - g["clean"] for g in gold),
        "coverage": statistics.fmean(g["coverage"] for g in gold),
        "nll": -statistics.fmean(float(x.mean()) for x in policy.logprobs(rows)),
    }


_SHARE, _NATS = "share of held-out answers with a rude word", "nats a token of unseen clean texts"

PRETRAINING = Row(
    id="S062",
    claim="Pretrained with good and bad marked, and asked for good, a policy is far less rude than one pretrained on "
    "everything alike, predicts clean text as well as that one and better than one that saw clean text alone, and is "
    "less rude than when the marks come only at the end.",
    setup=f"0.12M policy from scratch, 2048 texts of the attribute world by a teacher who is rude in {RUDE:.0%} of "
    f"them, {STEPS} steps of 64 at 3e-3, the last {COOL} at 1e-3: all texts (MLE), clean ones alone, all behind "
    f"`good ;` or `bad ;`, or {round(0.8 * STEPS)} steps of MLE and then the rest with the marks",
    core="triloop.envs.conditioned.with_condition and the objective sft",
    contrasts=(
        Contrast(metric=_SHARE, treatment="conditional", baseline="MLE", above=0.1, below=0.0, higher_is_better=False),
        Contrast(
            metric=_NATS, treatment="conditional", baseline="MLE", above=-0.02, below=-0.02, higher_is_better=False
        ),
        Contrast(
            metric=_NATS, treatment="conditional", baseline="filtering", above=0.0, below=0.0, higher_is_better=False
        ),
        Contrast(
            metric=_SHARE,
            treatment="conditional",
            baseline="marks at the end",
            above=0.0,
            below=0.0,
            higher_is_better=False,
        ),
    ),
    run=_pretraining,
    seeds=(21, 22, 23, 24, 25),
    base="base:attributes",
    parts=("nn.decoder", "loops.study", "envs.conditioned"),
    changed_after_first_look="Experiment, after a look with one seed (2026-11-21): the last phase had a third of the "
    "rate and now has that of the others; unlikelihood (rude 0.23, 1.76 nats) was left out. A first set-up gave 0 twice: "
    "with 300 steps and three seeds (rude 0.07 against 0.63 of MLE and 0.40 of late marks [-0.00, 0.67], nats 1.31 "
    "against 1.34 [-0.13, 0.20]), and with 200 steps and seeds 0 to 5, where three contrasts held and filtering "
    "predicted as well (1.42 against 1.44 nats [-0.12, 0.07]). In 200 steps nothing had learned the task yet (a tenth of "
    "what was asked for was said), so that less data cost filtering nothing, and a constant rate made nats swing between "
    "seeds. A second set-up, 400 steps with a lower rate at the end for every arm alike, seeds 11 to 16, gave -1: rude "
    "0.04 against 0.65 of MLE and 0.33 of late marks, 1.76 nats of filtering against 1.22, but MLE had 1.12 (-0.10 [-0.18, "
    "-0.03]). All were then in the middle of learning to say what is asked for (0.31 of it MLE, 0.14 conditional), which "
    "marks delay; the paper compares policies that have learned. So this third one has 2048 texts and 1000 steps. Looks "
    "at seed 10: 1.04 nats against 1.09 of MLE and 2.09 of filtering (1024 texts, 500 steps), 0.86 against 0.98 and 2.13 "
    "(2048 and 1000, where all say three quarters of what is asked). Rule: first written with rudeness and nats against "
    "MLE alone; the third and fourth contrasts were added after the first look, so the verdict can only have become "
    "stricter; unchanged since.",
)


# ------------------------------------------------------------------ S060


def tabular(
    accepted: Float[Tensor, " arms"],
    rejected: Float[Tensor, " arms"],
    reference: Float[Tensor, " arms"],
    *,
    alpha: float,
    beta: float,
    steps: int = 300,
) -> Float[Tensor, " arms"]:
    """Probabilities of a softmax after descent on PMPO's expected loss: the library's, at each arm, weighed by how
    often accepted answers, rejected answers and the reference choose it."""
    logits = reference.log().clone().requires_grad_()
    optimiser = torch.optim.LBFGS([logits], max_iter=steps, tolerance_grad=1e-9, line_search_fn="strong_wolfe")
    ones, whole = torch.ones_like(reference), torch.ones(len(reference), 1, dtype=torch.bool)
    parts = ((accepted, 1, 0.0), (rejected, -1, 0.0), (reference, 0, beta))

    def loss() -> Tensor:
        optimiser.zero_grad()
        logp, ref = logits.log_softmax(0)[:, None], reference.log()[:, None]
        each = [(w * pmpo(logp, ref, v * ones, whole, alpha=alpha, beta=held)[:, 0]).sum() for w, v, held in parts]
        total = torch.stack(each).sum()
        total.backward()
        return total

    optimiser.step(loss)
    return logits.detach().softmax(0)


def resting(
    accepted: Float[Tensor, " arms"],
    rejected: Float[Tensor, " arms"],
    reference: Float[Tensor, " arms"],
    *,
    alpha: float,
    beta: float,
) -> Float[Tensor, " arms"]:
    """Where it comes to rest: p = (beta p_ref - (1 - alpha) D_r + alpha D_a) / (beta + 2 alpha - 1), where that is above 0.

    arXiv:2410.04166, from setting the gradient with respect to the logits to 0."""
    return (beta * reference - (1 - alpha) * rejected + alpha * accepted) / (beta + 2 * alpha - 1)


ARMS = 9
SETTINGS = {"positives": (1.0, 0.5), "both": (0.5, 2.0), "negatives": (0.0, 4.0)}
"""alpha and beta on the table, where no arm falls to 0."""


def _table(seed: int) -> dict[str, float]:
    """How far descent ends from the closed form, what is earned there, and for how many arms a looser hold
    on negatives alone gives none."""
    right = torch.from_numpy(rng.generator(seed, "arms").random(ARMS)).double()
    reference = torch.full((ARMS,), 1 / ARMS, dtype=torch.double)
    accepted, rejected = right / right.sum(), (1 - right) / (1 - right).sum()
    found: dict[str, float] = {"reward_reference": float(reference @ right)}
    far = 0.0
    for name, (alpha, beta) in SETTINGS.items():
        p = tabular(accepted, rejected, reference, alpha=alpha, beta=beta)
        far = max(far, float((p - resting(accepted, rejected, reference, alpha=alpha, beta=beta)).abs().max()))
        found[f"reward_{name}"] = float(p @ right)
    loose = resting(accepted, rejected, reference, alpha=0.0, beta=1.5)
    return {**found, "distance": far, "arms_without_rest_at_beta_1.5": float((loose < 0).sum())}


def _marked(env: Attributes, asked: Sequence[Prompt], drawn: Sequence[Sequence[Completion]], seed: int) -> list[Rated]:
    """Each sample with +1, 0 or -1 by a person who errs one time in ten."""
    someone = Annotator(name="marker", weights=env.weights, flip=0.1, bar=0.2, abstain=0.1, seed=seed)
    judge = Person(env, someone, kind="ternary")
    flat = [(p, c) for p, g in zip(asked, drawn, strict=True) for c in g if c.tokens]
    told = judge.judge([p for p, _ in flat], [c.text for _, c in flat])
    return [
        Rated(prompt_tokens=c.prompt_tokens, tokens=c.tokens, mask=c.mask, value=f.value or 0.0)
        for (_, c), f in zip(flat, told, strict=True)
    ]


def _one_polarity(context: Context) -> Measured:
    env = Attributes()

    def one(seed: int) -> dict[str, float]:
        base = lab.fresh(context.base)
        asked = lab.prompts(env, context.scaled(512), seed=seed)
        drawn = lab.sample(base, asked, 4, seed=seed)
        rated = _marked(env, asked, drawn, seed)
        ways = {
            "positives": ([e for e in rated if e.value >= 0], ObjectiveConfig(name="pmpo", alpha=1.0, beta=0.5)),
            "negatives": ([e for e in rated if e.value <= 0], ObjectiveConfig(name="pmpo_negative", beta=2.0)),
            "negatives_loose": ([e for e in rated if e.value <= 0], ObjectiveConfig(name="pmpo_negative", beta=0.25)),
            "both": (rated, ObjectiveConfig(name="pmpo")),
        }
        found = {"base": lab.held_out(base, env, context.scaled(512), seed=seed).value}
        for name, (examples, objective) in ways.items():
            policy = lab.fresh(context.base)
            lab.learn(policy, examples, objective, steps=context.scaled(60), lr=5e-4, seed=seed, reference=base)
            found[name] = lab.held_out(policy, env, context.scaled(512), seed=seed).value
        return found | {f"table_{k}": v for k, v in _table(seed).items()}

    found = per_seed(context, one)
    exact = [0.0] * len(context.seeds)
    return Measured(
        baseline=[found["base"], found["base"], found["base"], exact],
        treatment=[found["positives"], found["negatives"], found["both"], found["table_distance"]],
        facts=averages(found),
    )


POLARITY = Row(
    id="S060",
    claim="PMPO learns from accepted answers alone, from rejected ones alone, and from both, unpaired; on a table it "
    "comes to rest where its closed form says.",
    setup="0.46M policy, attribute world; 512 prompts x 4 samples of the base, each marked +1, 0 or -1 by a person "
    "who errs one time in ten; 60 steps of 64 on the accepted (alpha 1, beta 0.5), the rejected (alpha 0, beta 2) or "
    "all (0.5, 0.5), a 0 holding in each; and descent over 9 arms with the same loss in expectation",
    core="the objectives pmpo and pmpo_negative (triloop.learn.objective_table)",
    contrasts=(
        Contrast(metric=UTILITY, treatment="positives alone", baseline="base", above=0.0, below=0.0),
        Contrast(metric=UTILITY, treatment="negatives alone", baseline="base", above=0.0, below=0.0),
        Contrast(metric=UTILITY, treatment="both", baseline="base", above=0.0, below=0.0),
        Contrast(
            metric="largest difference of a probability from the closed form",
            treatment="descent",
            baseline="closed form",
            above=-1e-3,
            below=-1e-3,
            higher_is_better=False,
        ),
    ),
    run=_one_polarity,
    seeds=(0, 1, 2),
    base="base:attributes",
    parts=("learn.likelihood", "learn.objective_table", "sources.annotators", "loops.study"),
    changed_after_first_look="Experiment, after a look at the table alone (2026-11-21): beta was 1 with both and 3 with "
    "negatives, where the closed form gives one of three tables a probability below 0 and descent ends 0.03 away; it is "
    "2 and 4. Of the policy a tenth of the row had been run with one seed, which changed nothing. Rule: as first written.",
)


# ------------------------------------------------------------------ S028


GATED = ObjectiveConfig(name="pairwise_cringe", negative_weight=0.1, margin=10.0, gate_temperature=10.0)
"""Pairwise CRINGE with the paper's gate and fewer negatives than the library's own."""
RATES = {"cringe": 2e-3, "dpo": 5e-4, "sft": 1e-3}
"""Each method's learning rate: the best of a grid on a seed that is not among the row's, and inside the grid."""


def _cringe(context: Context) -> Measured:
    collect = CollectConfig(prompts=context.scaled(160), samples=4, source="people", kinds=("pair",))
    steps = context.scaled(20)

    def preferring(objective: ObjectiveConfig, lr: float) -> CycleConfig:
        prefer = PreferConfig(objective=objective, reference="generation", steps=steps, lr=lr)
        return CycleConfig(stages=("collect", "prefer"), collect=collect, prefer=prefer)

    imitate = ImitateConfig(on="best", steps=steps, lr=RATES["sft"])
    cycles = {
        "cringe": preferring(GATED, RATES["cringe"]),
        "dpo": preferring(ObjectiveConfig(name="dpo"), RATES["dpo"]),
        "sft": CycleConfig(stages=("collect", "imitate"), collect=collect, imitate=imitate),
    }
    ran = {"generations": 3, "eval_every": 1, "eval_mid_n": context.scaled(384)}
    found = sweep(context, {name: cycled(context, cycle, **ran) for name, cycle in cycles.items()})
    after = {name: [o.after for o in outcomes] for name, outcomes in found.items()}
    first = {name: [next(m["eval_value"] for m in o.metrics if "eval_value" in m) for o in outcomes]
             for name, outcomes in found.items()}  # fmt: skip
    return Measured(
        baseline=[after["dpo"], after["sft"], first["cringe"]],
        treatment=[after["cringe"], after["cringe"], after["cringe"]],
        facts={
            "base": round(statistics.fmean(o.before for o in found["dpo"]), 4),
            **{f"after_{k}": v for k, v in averages(after).items()},
            **{f"first_generation_{k}": v for k, v in averages(first).items()},
        },
    )


CRINGE = Row(
    id="S028",
    claim="Pairwise CRINGE beats DPO and SFT on winners from as many pairs, and its third iteration beats its first.",
    setup="0.46M policy, attribute world; 3 generations of 160 prompts x 4 samples, compared in pairs by a person who "
    "errs one time in ten, and 20 steps of 64 each; DPO (beta 0.1) measured from the generation before; CRINGE with "
    f"negatives at {GATED.negative_weight:g} and the paper's gate, open up to a lead of 10 nats and 10 wide; each method "
    f"at its best learning rate of a grid on another seed: CRINGE {RATES['cringe']:g}, DPO {RATES['dpo']:g}, SFT "
    f"{RATES['sft']:g}",
    core="triloop run iterative-dpo --cycle.prefer.objective.name pairwise_cringe",
    contrasts=(
        Contrast(metric=UTILITY, treatment="pairwise CRINGE", baseline="DPO", above=0.0, below=0.0),
        Contrast(metric=UTILITY, treatment="pairwise CRINGE", baseline="SFT on winners", above=0.0, below=0.0),
        Contrast(metric=UTILITY, treatment="third generation", baseline="first generation", above=0.0, below=0.0),
    ),
    run=_cringe,
    seeds=(61, 62, 63, 64),
    base="base:attributes",
    parts=("loops.generations", "learn.preferences", "learn.likelihood", "sources.annotators"),
    changed_after_first_look="A first set-up gave -1 twice (2026-11-21, seeds 0 to 2, all methods at 3e-4): with the "
    "library's own weight of negatives (1) and gate (10 nats, 10 wide) CRINGE fell below the base (-0.04 against 0.89 of "
    "DPO and 0.43 of SFT); with negatives at 0.1 and a gate around 0 nats, 3 wide, the best of four pairs tried for one "
    "generation, it had 0.59, and 0.16 [0.03, 0.29] more than SFT, but -0.30 [-0.43, -0.17] less than DPO. Likelihood and "
    "its opposite are slower than DPO's ratio, so a second set-up had 1e-3 for all, after looks at seed 10 (CRINGE with "
    "five gates and weights 0.43 to 0.66, DPO 0.89, SFT 0.45), and gave -1 as well (seeds 3 to 6): CRINGE 0.598, -0.186 "
    "[-0.262, -0.110] against DPO and +0.180 [0.062, 0.299] against SFT. One rate for all is nobody's best, so in this "
    "third one each method has its best of a grid on seed 50 (third generation). DPO at 2e-4, 5e-4, 1e-3, 2e-3: 0.834, "
    "0.937, 0.823, 0.579. CRINGE at 5e-4, 1e-3, 2e-3, 4e-3: with negatives at 0.03 0.644, 0.698, 0.681, 0.638, at 0.1 "
    "0.592, 0.673, 0.725, 0.554, at 0.3 (without 4e-3) 0.312, 0.473, 0.430; at 0.1 with a gate around 0 nats, 3 wide, "
    "0.564 at 1e-3 and 0.554 at 2e-3. SFT at 5e-4, 1e-3, 2e-3: 0.411, 0.467, 0.415. Recorded on four seeds that nobody "
    "had looked at. Rule: as first written, but for the number of seeds.",
)


LIKELIHOOD = (PRETRAINING, POLARITY, CRINGE)
"""The rows of this module."""
