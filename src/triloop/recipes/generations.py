"""Recipes of the loop over mixed feedback: each a list of stages, and what differs from their usual settings."""

from __future__ import annotations

from triloop.envs.attributes_skills import ASK
from triloop.learn.choices import AlgorithmConfig, OptimConfig
from triloop.loops.config import EnvConfig, RunConfig
from triloop.loops.stages import (
    CollectConfig,
    CycleConfig,
    ImitateConfig,
    PeopleConfig,
    RewardStageConfig,
)
from triloop.policies.sampling import Sampling

__all__ = ["rlhf"]


_READS = ASK.replace("{principle}", "overall")
"""How the reward model reads: as the base was taught to judge, so that it looks from the response to the request."""


def _attributes(recipe: str, cycle: CycleConfig, **changes: object) -> RunConfig:
    """A run on the attribute world, whose quality nobody sees but the people asked."""
    plain: dict[str, object] = {
        "recipe": recipe,
        "loop": "generations",
        "policy": "base:attributes",
        "env": EnvConfig(name="attributes"),
        "cycle": cycle,
        "algorithm": AlgorithmConfig(name="grpo", kl_coef=0.02),
        "optim": OptimConfig(lr=5e-4, warmup_steps=5),
        "sampling": Sampling(max_tokens=36, slots=512),
        "rounds": 20,
        "prompts_per_round": 32,
        "group_size": 8,
        "max_draws": 1,
        "eval_n": 512,
        "canary_every": 0,
        "checkpoint_every": 10,
    }
    return RunConfig(**{**plain, **changes})  # type: ignore[arg-type]  # RunConfig checks itself


def rlhf() -> RunConfig:
    """Demonstrations, comparisons, a reward model, RL against it; the reward model is refreshed in each generation."""
    return _attributes(
        "rlhf",
        CycleConfig(
            first=("imitate",),
            stages=("collect", "reward", "improve", "gate"),
            imitate=ImitateConfig(on="teacher", noise=0.3, examples=256, steps=30, lr=5e-4),
            collect=CollectConfig(prompts=512, samples=4, source="people", kinds=("pair",)),
            people=PeopleConfig(number=1, flip=0.1),
            reward=RewardStageConfig(template=_READS),
            judge="reward",
        ),
        generations=3,
        rounds=15,
    )
