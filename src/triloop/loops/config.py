"""What a run is. ``config.yaml`` of a run folder is one ``RunConfig``, and re-creates the run. Loads no numerics."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from triloop.errors import ConfigError
from triloop.guards.stack import GuardConfig
from triloop.learn.choices import AlgorithmConfig, OptimConfig
from triloop.loops.stages import CycleConfig, plan
from triloop.policies.sampling import Sampling
from triloop.ternary.config import ACTIVATIONS, HEADS, QUANTISERS

__all__ = ["CurriculumConfig", "EnvConfig", "RunConfig", "from_mapping", "to_mapping"]


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Which task, and how hard."""

    name: str = "arithmetic"
    """A world (arithmetic, attributes, attributes-ask, attributes-compare, countdown, sort, story-rules, story-hack),
    gsm8k, math, gym:TASK, or jsonl; several joined by +, such as arithmetic+sort, are one task whose levels they are."""
    level: int | None = None
    """Difficulty in the task's own units; none is the task's default mixture."""
    data: str | None = None
    """File of problems, for gsm8k, math and jsonl."""
    eval_data: str | None = None
    """File of held-out problems; without it they are split off by a hash of the problem."""


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """Which difficulty to train on, when the task has several."""

    kind: Literal["mixture", "frontier", "progress"] = "mixture"
    """``mixture`` is the task's default; ``frontier`` prefers levels solved about half the time (atlas A15); ``progress``
    those whose reward is changing fastest (atlas A49)."""
    floor: float = 0.05
    """Least probability of any level under ``frontier`` and ``progress``."""
    memory: float = 0.9
    """Weight of the past in the running pass rate of a level, per round."""

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 0.5:
            raise ConfigError(f"curriculum.floor is {self.floor}; expected 0 to 0.5")
        if not 0 <= self.memory < 1:
            raise ConfigError(f"curriculum.memory is {self.memory}; expected 0 or more and below 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, complete."""

    recipe: str = "custom"
    """Name of the recipe this came from."""
    loop: Literal["outcome_rl", "expert_iteration", "generations"] = "outcome_rl"
    """How judgements become weights: policy gradient, supervised steps on accepted samples, or the stages of ``cycle``."""
    policy: str = "base:arithmetic"
    """A Hugging Face directory, or ``base:NAME`` for a checkpoint that comes with Triloop."""
    backend: Literal["native", "transformers"] = "native"
    """Who runs the model: our decoder (Llama family), or transformers for other architectures (extra ``hf``)."""
    env: EnvConfig = field(default_factory=EnvConfig)
    verifier: str | None = None
    """Your own judge, ``FILE.py:FUNCTION``; none uses the task's."""
    verifier_timeout: float = 10.0
    """Seconds that one call of your verifier may take."""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sampling: Sampling = field(default_factory=Sampling)
    guards: GuardConfig = field(default_factory=GuardConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    cycle: CycleConfig = field(default_factory=CycleConfig)
    rounds: int = 100
    """Rounds of sample, judge, learn; under loop ``generations``, of each stage ``improve``."""
    generations: int = 1
    """How often the stages of ``cycle`` are gone through."""
    token_budget: int = 0
    """Stop after so many generated training tokens; 0 for no limit. Equal budgets make algorithms comparable."""
    prompts_per_round: int = 32
    """Problems that a round draws."""
    group_size: int = 8
    """Completions of each prompt."""
    abstain_value: float = 0.0
    """Reward of an abstention; answering pays when p(right) > (1 + value) / 2."""
    partial_credit: bool = False
    """A failing completion loses the share of the rules that it breaks instead of the whole: for judges that check
    several rules, all of which hold too rarely at first to learn from."""
    max_draws: int = 3
    """With dynamic sampling: how many times a round may draw prompts to fill its groups."""
    reference_rows: int = 32
    """Completions a round on which drift from the original is measured when the objective does not need it on all."""
    ternary: str = ""
    """Give a policy in full precision weights -1, 0 and 1 before the run, by this quantiser: absmean, twn and others of
    triloop.ternary.config; its weights train on behind the codes. Empty: as the policy comes."""
    ternary_activations: str = "int8"
    """With ``ternary``: int8 per token, int8-256 as llama.cpp computes tq1_0 and tq2_0, none, or elastic."""
    ternary_head: str = "full"
    """The output head of a ternary policy: int8 multiplies it in whole numbers, which pays where there are many tokens to
    choose from; full leaves it as it is."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank instead of the weights; 0 trains the weights."""
    eval_n: int = 512
    """Held-out prompts, one completion each, before and after the run."""
    eval_every: int = 10
    """Rounds between held-out checks in between; 0 for none."""
    eval_mid_n: int = 128
    """Held-out prompts of those checks."""
    canary_n: int = 128
    """Canary prompts on which training judge and gold judge are compared."""
    canary_every: int = 5
    """Rounds between canary checks; 0 for none."""
    checkpoint_every: int = 10
    """Rounds between checkpoints: what a killed run loses and replays."""
    seed: int = 0
    """Of every random number: problems, samples, order. Evaluation problems do not depend on training's."""
    threads: int = 0
    """Processor threads; 0 is one for policies below about 3M parameters, and all cores for others. Bit-exact resume needs
    the same number."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Of matrix products; weights and optimiser stay fp32. ``auto`` is bf16 where the device multiplies it natively."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where the policy computes. ``auto`` is a GPU where there is one; bit-exact resume needs the same."""
    pipeline: bool = False
    """Sample each round by the weights before the last update, while that update is made: off-policy by one step, which the
    learner corrects. Saves time where sampling and learning find a core each."""
    micro_tokens: int = 0
    """Tokens of one forward and backward pass: lower it to save memory. 0 is a number by the policy's size."""
    keep_mb: int = -1
    """Most megabytes of what sampling computes that wait for the learner, which would compute the same again: saves time,
    changes no result. -1 is a number by the policy's size, 0 keeps nothing."""

    def __post_init__(self) -> None:
        for name in (
            "rounds",
            "generations",
            "prompts_per_round",
            "group_size",
            "max_draws",
            "eval_n",
            "eval_mid_n",
            "canary_n",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("token_budget", "eval_every", "canary_every", "lora_rank", "threads", "reference_rows"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")
        self._check_ternary()
        if self.checkpoint_every < 1:
            raise ConfigError(f"checkpoint_every is {self.checkpoint_every}; expected at least 1")
        if not 0 < self.verifier_timeout < float("inf"):
            raise ConfigError(f"verifier_timeout is {self.verifier_timeout}; expected seconds above 0")
        if not -1 <= self.abstain_value <= 1:
            raise ConfigError(f"abstain_value is {self.abstain_value}; expected -1 to 1")
        if self.keep_mb < -1:
            raise ConfigError(f"keep_mb is {self.keep_mb}; expected megabytes, or -1 for a number by size")
        if self.micro_tokens and self.micro_tokens < 64:
            raise ConfigError(f"micro_tokens is {self.micro_tokens}; expected at least 64, or 0 for a number by size")
        if self.loop == "expert_iteration" and self.algorithm.name != "rest_em":
            raise ConfigError(
                f"algorithm.name is {self.algorithm.name!r}; loop expert_iteration learns from accepted samples alone: "
                "use rest_em"
            )
        if self.loop == "expert_iteration" and self.lora_rank:
            raise ConfigError(
                "loop expert_iteration begins each round at the original weights, which adapters cannot; set lora_rank to 0"
            )
        if self.loop == "generations" and not (self.cycle.first or self.cycle.stages):
            raise ConfigError("loop generations has no stages; name some with cycle.first and cycle.stages")
        if self.loop != "generations" and (self.cycle != CycleConfig() or self.generations > 1):
            raise ConfigError(f"generations and what is under cycle are for loop generations; this is loop {self.loop}")
        if self.loop == "generations" and self.pipeline:
            raise ConfigError("pipeline is on, but the stages of loop generations follow one another; set it to off")
        if self.sampling.temperature == 0:
            raise ConfigError("sampling.temperature is 0: greedy samples are all alike and teach nothing; use about 1")

    def _check_ternary(self) -> None:
        if self.ternary and (self.ternary not in QUANTISERS or self.backend != "native" or self.lora_rank):
            raise ConfigError(
                f"ternary is {self.ternary!r}; expected one of {', '.join(QUANTISERS)}, with backend native and lora_rank 0"
            )
        if self.ternary_activations != "int8" and (not self.ternary or self.ternary_activations not in ACTIVATIONS):
            known = ", ".join(ACTIVATIONS)
            raise ConfigError(
                f"ternary_activations is {self.ternary_activations!r}; expected one of {known}, and ternary beside it"
            )
        if self.ternary_head not in HEADS or (self.ternary_head != "full" and self.backend != "native"):
            raise ConfigError(
                f"ternary_head is {self.ternary_head!r}; expected one of {', '.join(HEADS)}, int8 with backend native"
            )

    @property
    def total_rounds(self) -> int:
        """Rounds of the whole run, of whatever stage."""
        staged = self.loop == "generations"
        return len(plan(self.cycle, self.generations, self.rounds)) if staged else self.rounds


def to_mapping(config: Any) -> dict[str, Any]:
    """A configuration as plain values for config.yaml."""
    return {
        f.name: to_mapping(v) if dataclasses.is_dataclass(v) else list(v) if isinstance(v, tuple) else v
        for f in dataclasses.fields(config)
        for v in [getattr(config, f.name)]
    }


def from_mapping(kind: type[Any], values: Mapping[str, Any], path: str = "") -> Any:
    """Build a configuration from plain values, strictly: an unknown key or a wrong type is an error that names the key."""
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    given: dict[str, Any] = {}
    for key, value in values.items():
        here = f"{path}{key}"
        if key not in known:
            raise ConfigError(f"unknown setting {here!r}; expected one of {', '.join(sorted(known))}")
        given[key] = _checked(hints[key], value, here)
    return kind(**given)


def _checked(hint: Any, value: Any, here: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{here} is {value!r}; expected a mapping of settings")
        return from_mapping(typing.cast("type[Any]", hint), value, f"{here}.")
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _checked(next(o for o in options if o is not type(None)), value, here)
    if origin is Literal:
        good = value in options
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            item = options[0]
            return tuple(_checked(item, v, f"{here}[{i}]") for i, v in enumerate(value))
        good = False
    elif hint is float:
        value = _number(value)
        good = isinstance(value, float)
    elif hint is int:
        good = isinstance(value, int) and not isinstance(value, bool)
    else:
        good = isinstance(value, hint) if isinstance(hint, type) else True
    if not good:
        wanted = " or ".join(map(str, options)) if origin is Literal else getattr(hint, "__name__", str(hint))
        raise ConfigError(f"{here} is {value!r}; expected {wanted}")
    return value


def _number(value: Any) -> Any:
    """``value`` as a float where it stands for one. YAML reads ``3e-4``, without a point, as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
