"""Recipes of the loop over mixed feedback that weigh sources against each other: users, people, judges, verifiers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from triloop.guards.stack import GuardConfig
from triloop.learn.choices import AlgorithmConfig, OptimConfig
from triloop.learn.objective_config import ObjectiveConfig
from triloop.loops.asked import JudgeConfig, PeopleConfig, RouteConfig, UsersConfig
from triloop.loops.config import CurriculumConfig, EnvConfig, RunConfig
from triloop.loops.stages import (
    CollectConfig,
    CycleConfig,
    GateConfig,
    InstructConfig,
    PreferConfig,
    RewardStageConfig,
)
from triloop.recipes.generations import READS, attributes

__all__ = ["densities", "hero", "learned_judge", "multi_domain", "routed_feedback", "user_reactions"]


def user_reactions() -> RunConfig:
    """Users react to what they get; a reward model learns from that, RL follows it, and counter-metrics are watched: what
    users love for nothing, and what they do not notice, must not grow or fall while their approval is learned.

    RL from user feedback, arXiv:2505.14946.
    """
    return attributes(
        "user-reactions",
        CycleConfig(
            stages=("collect", "reward", "improve", "gate"),
            collect=CollectConfig(prompts=512, samples=2, source="users", kinds=("scalar",)),
            users=UsersConfig(),
            reward=RewardStageConfig(template=READS, members=3, lr=5e-4),
            judge="reward",
            counters=("plain", "coverage", "clean"),
            gate=GateConfig(n=256),
        ),
        generations=2,
        rounds=12,
        guards=GuardConfig(hard_action="roll_back"),
    )


def routed_feedback() -> RunConfig:
    """A cheap judge says something of every sample; a budget buys people's word on the prompts that it doubts most: a
    critique, a revision or a comparison, as they are easy or hard. One mixture learns from all.

    Routing by difficulty: S009, arXiv:2310.06450.
    """
    return attributes(
        "routed-feedback",
        CycleConfig(
            stages=("collect", "prefer", "gate"),
            collect=CollectConfig(prompts=256, samples=4, source="routed"),
            ai=JudgeConfig(price=1e-4),
            people=PeopleConfig(price=1.0),
            route=RouteConfig(budget=128.0),
            prefer=PreferConfig(
                objective=ObjectiveConfig(name="dpo_davidson", beta=0.1),
                beside=("pmpo", "span_pg", "sft"),
                steps=16,
                lr=3e-4,
                reference="generation",
            ),
        ),
        generations=3,
    )


def multi_domain() -> RunConfig:
    """Three tasks of one policy: to answer, to say whether an answer is good, and which of two is better. RL from their
    verifiers practises whichever is moving.

    Learning progress as a bandit: Matiisen et al., arXiv:1707.00183.
    """
    return attributes(
        "multi-domain",
        CycleConfig(stages=("improve", "gate"), judge="task"),
        env=EnvConfig(name="attributes+attributes-ask+attributes-compare"),
        curriculum=CurriculumConfig(kind="progress", floor=0.15),
        algorithm=AlgorithmConfig(name="grpo", kl_coef=0.02),
        optim=OptimConfig(lr=4e-4, warmup_steps=5),
        generations=2,
        rounds=16,
        prompts_per_round=48,
    )


def hero() -> RunConfig:
    """A verifier that checks what can be checked, and a reward model that learned the rest from people: the verifier's word
    first, the reward model's shades within it.

    HERO, arXiv:2510.07242.
    """
    config = attributes(
        "hero",
        CycleConfig(
            stages=("collect", "reward", "improve", "gate"),
            collect=CollectConfig(prompts=256, samples=4, source="people", kinds=("pair",)),
            people=PeopleConfig(flip=0.1),
            reward=RewardStageConfig(template=READS, lr=5e-4),
            judge="hybrid",
        ),
        generations=2,
        rounds=12,
        # it does not see courtesy, brevity or grammar, which preflight's wrong answers lack
        guards=GuardConfig(preflight=False),
    )
    return dataclasses.replace(config, verifier=f"{Path(__file__).with_name('literal.py')}:check")


def densities() -> RunConfig:
    """Two reward models, each at its own density: one for the whole answer, taught by comparisons, and one for every word,
    taught by passages that people marked. PPO's value head credits both.

    Fine-grained RLHF, arXiv:2306.01693.
    """
    return attributes(
        "densities",
        CycleConfig(
            stages=("collect", "reward", "improve", "gate"),
            collect=CollectConfig(prompts=384, samples=4, source="people", kinds=("pair", "spans")),
            people=PeopleConfig(flip=0.1),
            reward=RewardStageConfig(template=READS, lr=5e-4, words=0.1),
            judge="reward",
        ),
        algorithm=AlgorithmConfig(name="ppo"),
        optim=OptimConfig(lr=3e-4, warmup_steps=5),
        generations=2,
        rounds=12,
    )


def learned_judge() -> RunConfig:
    """An AI judge whose principles are learned as well: in each generation a bandit tries sets of them on a few pairs that
    people compared, and the set that agrees best judges what the policy learns from.
    """
    return attributes(
        "learned-judge",
        CycleConfig(
            stages=("instruct", "collect", "prefer", "gate"),
            instruct=InstructConfig(prompts=96, tried=4),
            people=PeopleConfig(flip=0.05),
            collect=CollectConfig(prompts=256, samples=4, source="judge", kinds=("pair",)),
            prefer=PreferConfig(
                objective=ObjectiveConfig(name="dpo", beta=0.1), steps=12, lr=3e-4, reference="generation"
            ),
        ),
        generations=4,
    )
