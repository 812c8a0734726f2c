"""The recipes: functions that return a configuration. ``triloop run NAME`` picks one and overrides its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from triloop.guards.stack import GuardConfig
from triloop.learn.choices import AlgorithmConfig, OptimConfig
from triloop.loops.config import CurriculumConfig, EnvConfig, RunConfig
from triloop.policies.sampling import Sampling
from triloop.recipes import feedback, generations

__all__ = [
    "RECIPES",
    "Recipe",
    "arithmetic",
    "countdown",
    "countdown_ternary",
    "demo",
    "frontier",
    "gsm8k",
    "jsonl",
    "planted",
    "rest_em",
    "sort",
    "story_hack",
    "story_rules",
]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named starting point."""

    name: str
    summary: str
    """One line for ``triloop run --help``."""
    config: Callable[[], RunConfig]
    own: Callable[[], RunConfig] | None = None
    """Settings for a policy of one's own, where they differ: its task is then another, unless one is named."""


def arithmetic() -> RunConfig:
    """Chained arithmetic with an exact verifier, from a base that mostly blurts an answer out."""
    return RunConfig(
        recipe="arithmetic",
        policy="base:arithmetic",
        env=EnvConfig(name="arithmetic"),
        algorithm=AlgorithmConfig(name="dapo"),
        optim=OptimConfig(lr=2e-4, warmup_steps=5, schedule="linear", lr_floor=0.1),
        sampling=Sampling(max_tokens=28, slots=512),
        rounds=60,
        prompts_per_round=64,
        group_size=8,
        max_draws=1,
    )


def demo() -> RunConfig:
    """``arithmetic``, shorter, with held-out checks often enough for a curve."""
    return replace(arithmetic(), recipe="demo", rounds=40, eval_every=5, eval_mid_n=128)


def planted() -> RunConfig:
    """The demo's second act: a careless verifier. Preflight would refuse it, so it is switched off."""
    return replace(
        arithmetic(),
        recipe="planted",
        verifier=f"{Path(__file__).with_name('careless.py')}:check",
        guards=GuardConfig(preflight=False),
        rounds=40,
        eval_n=256,
        eval_every=0,
        canary_every=2,
    )


def countdown() -> RunConfig:
    """Countdown, from a base that gives up too early."""
    return RunConfig(
        recipe="countdown",
        policy="base:countdown",
        env=EnvConfig(name="countdown"),
        algorithm=AlgorithmConfig(name="dapo"),
        optim=OptimConfig(lr=3e-4, warmup_steps=5, schedule="linear", lr_floor=0.1),
        sampling=Sampling(max_tokens=96, slots=256),
        rounds=160,
        prompts_per_round=32,
        group_size=8,
        max_draws=1,
    )


def countdown_ternary() -> RunConfig:
    """The same task and budget for a policy of weights -1, 0 and 1, whose rollouts run on packed weights."""
    return replace(countdown(), recipe="countdown-ternary", policy="base:countdown-ternary")


def sort() -> RunConfig:
    """Sorting, from a base that slips."""
    return replace(
        arithmetic(),
        recipe="sort",
        policy="base:sort",
        env=EnvConfig(name="sort"),
        sampling=Sampling(max_tokens=16, slots=512),
    )


def frontier() -> RunConfig:
    """Arithmetic of 2 to 8 steps, at the frontier of ability."""
    return replace(arithmetic(), recipe="frontier", curriculum=CurriculumConfig(kind="frontier"))


def story_rules() -> RunConfig:
    """Stories under rules: partial credit, because all rules hold too rarely at first, and a short leash."""
    return RunConfig(
        recipe="story-rules",
        policy="",
        env=EnvConfig(name="story-rules"),
        algorithm=AlgorithmConfig(name="dapo", kl_coef=0.03),
        optim=OptimConfig(lr=5e-4, warmup_steps=10),
        sampling=Sampling(max_tokens=128, slots=192),
        rounds=50,
        prompts_per_round=24,
        group_size=8,
        partial_credit=True,
        max_draws=1,
        eval_n=256,
    )


def story_hack() -> RunConfig:
    """No leash either: what a careless judge pays for is all there is."""
    return replace(
        story_rules(),
        recipe="story-hack",
        env=EnvConfig(name="story-hack"),
        algorithm=AlgorithmConfig(name="dapo"),
        rounds=160,
    )


def gsm8k() -> RunConfig:
    """Grade-school problems, with settings for a pre-trained model of some size."""
    return RunConfig(
        recipe="gsm8k",
        policy="",
        env=EnvConfig(name="gsm8k"),
        optim=OptimConfig(lr=1e-6, warmup_steps=10),
        sampling=Sampling(max_tokens=512, slots=64),
        prompts_per_round=16,
        eval_n=128,
        precision="auto",
    )


def jsonl() -> RunConfig:
    """Problems of your own."""
    return replace(gsm8k(), recipe="jsonl", env=EnvConfig(name="jsonl"))


def rest_em() -> RunConfig:
    """ReST-EM on countdown: three rounds, each from the base again."""
    return replace(
        countdown(),
        recipe="rest-em",
        loop="expert_iteration",
        algorithm=AlgorithmConfig(name="rest_em", minibatches=16, updates_per_round=2, positives_per_prompt=4),
        rounds=3,
        prompts_per_round=512,
        eval_every=1,
        checkpoint_every=1,
    )


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        r.name: r
        for r in (
            Recipe(name="demo", summary="chained arithmetic from a hasty base, and a planted hack caught", config=demo),
            Recipe(name="arithmetic", summary="chained arithmetic with an exact verifier", config=arithmetic),
            Recipe(
                name="countdown",
                summary="reach a target with given numbers: search and check in writing",
                config=countdown,
            ),
            Recipe(
                name="countdown-ternary",
                summary="countdown by a policy of weights -1, 0 and 1, sampled from packed weights",
                config=countdown_ternary,
            ),
            Recipe(name="sort", summary="sort letters and digits", config=sort),
            Recipe(
                name="frontier",
                summary="arithmetic of 2 to 8 steps, difficulty at the frontier of ability",
                config=frontier,
            ),
            Recipe(name="rest-em", summary="expert iteration (ReST-EM) on countdown", config=rest_em),
            Recipe(
                name="story-rules", summary="real text under checkable rules; needs --policy DIR", config=story_rules
            ),
            Recipe(
                name="story-hack",
                summary="the same with a careless judge, which the guards must catch; needs --policy DIR",
                config=story_hack,
            ),
            Recipe(
                name="rlhf",
                summary="people compare, a reward model learns from them, RL follows it; twice",
                config=generations.rlhf,
                own=generations.rlhf_stories,
            ),
            Recipe(
                name="constitutional",
                summary="self-critique and revision by principles, then RL from AI feedback",
                config=generations.constitutional,
            ),
            Recipe(
                name="online-ai-feedback",
                summary="DPO on fresh pairs that an AI judge compares",
                config=generations.online_ai_feedback,
            ),
            Recipe(
                name="iterative-dpo",
                summary="DPO with ties in a few generations, each gated",
                config=generations.iterative_dpo,
            ),
            Recipe(
                name="self-rewarding",
                summary="the policy judges its own samples, and learns from that",
                config=generations.self_rewarding,
            ),
            Recipe(name="spin", summary="self-play against a teacher's demonstrations", config=generations.spin),
            Recipe(
                name="feedback-conditional",
                summary="imitate every sample under the critique that it got; ask for good ones",
                config=generations.feedback_conditional,
            ),
            Recipe(
                name="mixed",
                summary="+1/0/-1, pairs with ties, critiques and edits in the same batches",
                config=generations.mixed,
            ),
            Recipe(
                name="user-reactions",
                summary="RL from users' reactions, with counter-metrics that must not fall",
                config=feedback.user_reactions,
            ),
            Recipe(
                name="routed-feedback",
                summary="a budget buys people's word where a cheap judge is unsure, the kind by difficulty",
                config=feedback.routed_feedback,
            ),
            Recipe(
                name="multi-domain",
                summary="to answer and to judge at once, each practised where progress is",
                config=feedback.multi_domain,
            ),
            Recipe(
                name="hero",
                summary="a verifier's word first, a reward model's shades within it",
                config=feedback.hero,
            ),
            Recipe(
                name="densities",
                summary="PPO on a reward model for the whole and one for every word",
                config=feedback.densities,
            ),
            Recipe(
                name="learned-judge",
                summary="a bandit learns by which principles an AI judge agrees with people",
                config=feedback.learned_judge,
            ),
            Recipe(name="planted", summary="arithmetic with a verifier that pays what it cannot read", config=planted),
            Recipe(
                name="gsm8k", summary="grade-school word problems; needs --policy DIR and --data FILE", config=gsm8k
            ),
            Recipe(
                name="jsonl",
                summary="your own problems; needs --policy DIR and --data FILE, and --verifier if you have one",
                config=jsonl,
            ),
        )
    }
)
"""Every recipe by name, in the order in which they are listed."""
