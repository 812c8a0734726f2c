"""Recipes of the loop over mixed feedback: each a list of stages, and what differs from their usual settings."""

from __future__ import annotations

from triloop.learn.choices import AlgorithmConfig, OptimConfig
from triloop.learn.objective_config import ObjectiveConfig
from triloop.loops.config import EnvConfig, RunConfig
from triloop.loops.stages import (
    CollectConfig,
    CycleConfig,
    GateConfig,
    ImitateConfig,
    JudgeConfig,
    PeopleConfig,
    PreferConfig,
    ReviseConfig,
    RewardStageConfig,
)
from triloop.policies.sampling import Sampling

__all__ = [
    "READS",
    "attributes",
    "constitutional",
    "feedback_conditional",
    "iterative_dpo",
    "mixed",
    "online_ai_feedback",
    "rlhf",
    "rlhf_stories",
    "self_rewarding",
    "spin",
]

READS = "judge {request} {response} ; overall ?"
"""How the reward model reads: as the base was taught to judge (``envs.attributes_skills.ASK``), so that it looks from the
response to the request. Written out, because that module loads numpy and ``triloop run --help`` must not."""


def attributes(recipe: str, cycle: CycleConfig, **changes: object) -> RunConfig:
    """A run on the attribute world, whose quality nobody sees but those who are asked."""
    plain: dict[str, object] = {
        "recipe": recipe,
        "loop": "generations",
        "policy": "base:attributes",
        "env": EnvConfig(name="attributes"),
        "cycle": cycle,
        "algorithm": AlgorithmConfig(name="grpo", kl_coef=0.05),
        "optim": OptimConfig(lr=4e-4, warmup_steps=5),
        "sampling": Sampling(max_tokens=36, slots=512),
        "prompts_per_round": 32,
        "group_size": 8,
        "max_draws": 1,
        "eval_n": 512,
        "canary_every": 0,
    }
    return RunConfig(**{**plain, **changes})  # type: ignore[arg-type]  # RunConfig checks itself


def rlhf() -> RunConfig:
    """Demonstrations, comparisons, a reward model, RL against it; the reward model is refreshed in each generation.

    InstructGPT (arXiv:2203.02155), with the refresh of iterated RLHF (arXiv:2204.05862 section 4.5).
    """
    return attributes(
        "rlhf",
        CycleConfig(
            first=("imitate",),
            stages=("collect", "reward", "improve", "gate"),
            imitate=ImitateConfig(on="teacher", noise=0.3, examples=256, steps=30, lr=5e-4),
            collect=CollectConfig(prompts=512, samples=4, source="people", kinds=("pair",)),
            people=PeopleConfig(flip=0.1),
            reward=RewardStageConfig(template=READS, members=3, lr=5e-4),
            judge="reward",
        ),
        generations=2,
        rounds=12,
    )


def rlhf_stories() -> RunConfig:
    """The same for a story model of one's own: people compare stories by the rules that they keep, on a short leash.

    The comparisons before the first generation are there because a reward model that has seen too few leads astray; the
    generations are short because it is right only about stories like those that it has seen (docs/log.md).
    """
    return RunConfig(
        recipe="rlhf",
        loop="generations",
        policy="",
        env=EnvConfig(name="story-rules"),
        cycle=CycleConfig(
            first=("collect",) * 4,
            stages=("collect", "reward", "improve", "gate"),
            collect=CollectConfig(prompts=96, samples=4, source="people", kinds=("pair",)),
            people=PeopleConfig(flip=0.05, tie=0.01),
            reward=RewardStageConfig(epochs=1, pooled=4.0, history=2),
            judge="reward",
            gate=GateConfig(n=96),
        ),
        algorithm=AlgorithmConfig(name="dapo", kl_coef=0.1),
        optim=OptimConfig(lr=3e-4, warmup_steps=2),
        sampling=Sampling(max_tokens=128, slots=192),
        generations=6,
        rounds=5,
        prompts_per_round=24,
        group_size=8,
        max_draws=1,
        eval_n=256,
        canary_every=0,
    )


def constitutional() -> RunConfig:
    """Both phases: the policy criticises and revises its own answers by principles and imitates the revisions; then a judge
    compares by principles, a reward model learns from that, and RL follows it. Nobody labels anything.

    Bai et al. 2022, arXiv:2212.08073.
    """
    return attributes(
        "constitutional",
        CycleConfig(
            first=("revise", "imitate"),
            stages=("collect", "reward", "improve", "gate"),
            revise=ReviseConfig(prompts=512, times=2, source="judge"),
            imitate=ImitateConfig(on="edits", steps=40, lr=4e-4),
            collect=CollectConfig(prompts=384, samples=4, source="judge", kinds=("pair",)),
            ai=JudgeConfig(),
            reward=RewardStageConfig(template=READS),
            judge="reward",
        ),
        rounds=12,
    )


def online_ai_feedback() -> RunConfig:
    """Every generation: two samples a prompt, an AI judge says which is better, one small DPO stage on just these.

    OAIF, arXiv:2402.04792.
    """
    return attributes(
        "online-ai-feedback",
        CycleConfig(
            stages=("collect", "prefer"),
            collect=CollectConfig(prompts=96, samples=4, source="judge", kinds=("pair",)),
            prefer=PreferConfig(
                objective=ObjectiveConfig(name="dpo", beta=0.1), steps=3, batch=64, lr=3e-4, fresh=False
            ),
        ),
        generations=30,
        eval_every=0,
    )


def iterative_dpo() -> RunConfig:
    """DPO in a few large generations on people's pairs, ties learned as ties, each measured from the one before.

    Iterative DPO (arXiv:2312.16682); ties after Davidson (1970).
    """
    return attributes(
        "iterative-dpo",
        CycleConfig(
            stages=("collect", "prefer", "gate"),
            collect=CollectConfig(prompts=256, samples=4, source="people", kinds=("pair",)),
            prefer=PreferConfig(
                objective=ObjectiveConfig(name="dpo_davidson", beta=0.1), steps=16, lr=3e-4, reference="generation"
            ),
        ),
        generations=4,
    )


def self_rewarding() -> RunConfig:
    """The policy judges its own samples and learns from that; people's gate is the anchor that keeps it honest.

    Self-rewarding language models, arXiv:2401.10020.
    """
    return attributes(
        "self-rewarding",
        CycleConfig(
            stages=("collect", "prefer", "gate"),
            collect=CollectConfig(prompts=256, samples=4, source="self", kinds=("pair",)),
            prefer=PreferConfig(
                objective=ObjectiveConfig(name="dpo", beta=0.1), steps=12, lr=2e-4, reference="generation"
            ),
        ),
        generations=3,
    )


def spin() -> RunConfig:
    """Self-play: a teacher's demonstrations against the policy's own answers to the same requests, generation after
    generation, until it cannot tell them apart. SPIN, arXiv:2401.01335.
    """
    return attributes(
        "spin",
        CycleConfig(
            stages=("oppose", "prefer"),
            prefer=PreferConfig(
                objective=ObjectiveConfig(name="spin", beta=0.1), steps=20, lr=3e-4, reference="generation"
            ),
        ),
        generations=3,
    )


def feedback_conditional() -> RunConfig:
    """Feedback as a condition, not as a number: every sample is imitated under the words that were said of it, and the
    policy is then asked for ``good``. Offline first, then on samples that were asked to be good.

    Feedback-conditional policy, arXiv:2509.22638.
    """
    return attributes(
        "feedback-conditional",
        CycleConfig(
            stages=("collect", "imitate"),
            collect=CollectConfig(prompts=192, samples=8, source="people", kinds=("text",), condition="good"),
            imitate=ImitateConfig(on="feedback", keep=1.0, steps=40, lr=5e-4, history=4),
            people=PeopleConfig(flip=0.0),
            condition="good",
        ),
        generations=4,
    )


def mixed() -> RunConfig:
    """Numbers, pairs with ties, written critique and edits, a quarter of the prompts each, learned from in one batch."""
    return attributes(
        "mixed",
        CycleConfig(
            stages=("collect", "prefer", "gate"),
            collect=CollectConfig(prompts=256, samples=4, source="people", kinds=("ternary", "pair", "text", "edit")),
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
