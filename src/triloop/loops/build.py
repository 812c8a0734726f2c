"""From a configuration to the parts of a run. Everything from outside is checked here, before anything starts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triloop import __version__
from triloop.envs.base import Env
from triloop.envs.table import make
from triloop.errors import ConfigError, ModelError
from triloop.feedback.interchange_records import ImportedItem, to_json
from triloop.guards.base import Guard
from triloop.guards.stack import build as build_guards
from triloop.kernels import native
from triloop.learn.algorithms import Algorithm, resolve
from triloop.loops.ahead import Ahead
from triloop.loops.champion import Champion
from triloop.loops.checks import check_cycle, check_task
from triloop.loops.config import EnvConfig, RunConfig
from triloop.loops.crew import Crew, constitution_of
from triloop.loops.generations import staged
from triloop.loops.instructions import Instructions
from triloop.loops.learning import expert_iteration, policy_gradient
from triloop.loops.outcome import Learn, outcome_round
from triloop.loops.played import Play
from triloop.loops.progress import Progress
from triloop.loops.recorded import usable
from triloop.loops.state import Part, Workshop
from triloop.policies.devices import describe_device, pick_device
from triloop.policies.native import NativePolicy, pick_precision
from triloop.policies.protocol import Policy
from triloop.records import Prompt
from triloop.sources.judge import EnvJudge, Judge, JudgedBy
from triloop.sources.reward_config import RewardConfig
from triloop.sources.reward_ensemble import RewardEnsemble
from triloop.sources.reward_model import RewardModel
from triloop.sources.verifier import UserVerifier
from triloop.store.run import Run
from triloop.ternary.config import TernaryConfig

__all__ = [
    "Parts",
    "describe_machine",
    "hands",
    "judging",
    "load_policy",
    "make_env",
    "parts",
    "policy_path",
    "set_threads",
    "workshop",
]

_LEARN: Mapping[str, Learn] = {"outcome_rl": policy_gradient, "expert_iteration": expert_iteration}
_SMALL_BYTES = 12_000_000
_OLD_SAMPLES_CAP = 2.0
"""Of the importance weight of samples that are one step old, where the algorithm has no ratio of its own."""
_WITHOUT_GOLD = ("jsonl",)
_FLUENT_ENVS = ("story-rules", "story-hack")


def policy_path(name: str) -> Path:
    """The directory of a policy: a path, or ``base:NAME`` for a checkpoint that comes with Triloop."""
    if not name:
        raise ModelError(
            "this recipe needs a policy: add --policy DIR, a Hugging Face directory of a causal language model"
        )
    if not name.startswith("base:"):
        return Path(name)
    folder = Path(str(files("triloop") / "bases"))
    path = folder / name.removeprefix("base:")
    if not (path / "config.json").exists():
        known = sorted(p.parent.name for p in folder.glob("*/config.json"))
        raise ModelError(
            f"policy {name!r} does not exist; choose one of {', '.join('base:' + k for k in known) or 'none'}, "
            "or a directory"
        )
    return path


def set_threads(wanted: int, policy: str = "", *, shared_by: int = 1) -> int:
    """Fix the number of processor threads, of each of those that share the cores, and return it; see to the memory.

    0 is one thread for a small ``policy`` (a name or directory) and all that this process may use for any other. One
    product of a small model takes microseconds; a second thread saves little of that, and while another process holds
    its core, everybody waits for it at the end of each product: forty times slower, measured (docs/log.md).
    """
    threads = wanted or (1 if policy and _is_small(policy) else max(1, _available() // shared_by))
    torch.set_num_threads(threads)
    native.reuse_memory()
    return threads


def hands(config: RunConfig) -> int:
    """How many share the cores: with ``pipeline`` the sampler and the learner."""
    return 2 if config.pipeline else 1


def _is_small(policy: str) -> bool:
    """Whether the weights are fewer than about 3M in fp32, by the size of their files."""
    try:
        sizes = [f.stat().st_size for f in policy_path(policy).glob("*.safetensors")]
    except OSError:
        return False
    return bool(sizes) and sum(sizes) < _SMALL_BYTES


def _available() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def describe_machine(threads: int, precision: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What bit-exact resume depends on, besides the policy that the run began with."""
    return {
        "threads": threads,
        "precision": str(precision).removeprefix("torch."),
        "triloop": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": native.identity(),
        "mkl_cbwr": os.environ.get("MKL_CBWR", ""),
        "device": describe_device(device),
    }


def _processor() -> str:
    """Its name: the same instruction sets on another processor may still sum in another order."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def load_policy(config: RunConfig, algorithm: Algorithm | None = None) -> Policy:
    """The policy that the configuration names, ready to sample and learn."""
    path, device = policy_path(config.policy), pick_device(config.device)
    settings: dict[str, Any] = {
        "device": device,
        "optim": config.optim,
        "precision": pick_precision(config.precision, device),
        "micro_tokens": config.micro_tokens,
        "keep_bytes": config.keep_mb if config.keep_mb < 0 else config.keep_mb << 20,
        "temperature": config.sampling.temperature,
        "entropy": algorithm is not None and algorithm.needs_entropy,
    }
    policy: Policy
    if config.backend == "transformers":
        from triloop.policies.transformers_backend import load_transformers

        policy = load_transformers(path, **settings)
    else:
        policy = native_policy = NativePolicy.load(path, **settings)
        if config.ternary:
            settings_of = TernaryConfig(
                quantiser=config.ternary, activations=config.ternary_activations, head=config.ternary_head
            )
            native_policy.ternarise(settings_of)
        elif config.ternary_head == "int8":
            native_policy.use_int8_head()
    if algorithm is not None and algorithm.needs_values:
        policy.add_value_head()
    return policy


def make_env(config: EnvConfig, scorer: Policy | None = None) -> Env:
    """The task. ``scorer`` is the original model, for tasks that judge fluency."""
    options: dict[str, Any] = {}
    if config.name in _FLUENT_ENVS and scorer is not None:
        options["fluency"] = _fluency(scorer)
    if config.data is not None:
        options["path"] = config.data
    if config.eval_data is not None:
        options["eval_path"] = config.eval_data
    env = make(config.name, **options)
    if config.level is not None and config.level not in env.levels:
        raise ConfigError(f"env.level is {config.level}; {env.name} has levels {', '.join(map(str, env.levels))}")
    return env


def _fluency(scorer: Policy) -> Callable[[Sequence[tuple[str, str]]], list[float]]:
    """Mean log-probability (nats per token) of continuations under the original model."""

    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        items = []
        for prompt, text in pairs:
            head = scorer.encode(Prompt(id="", text=prompt))
            whole = scorer.encode(Prompt(id="", text=prompt + text))
            items.append((whole[: len(head)], whole[len(head) :]))
        out = []
        for (_, tokens), logps in zip(items, scorer.logprobs(items), strict=True):
            out.append(float(logps.mean()) if len(tokens) else float("-inf"))
        return out

    return score


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a configuration names, loaded and checked. Nothing is written yet."""

    config: RunConfig
    policy: Policy
    reference: Policy
    env: Env
    judge: Judge
    algorithm: Algorithm
    guards: Sequence[Guard]
    machine: Mapping[str, Any]
    """What bit-exact resume depends on: for the run's record."""
    recorded: Sequence[ImportedItem] = ()
    """Judgements of others that the run learns from."""


@contextmanager
def judging(config: RunConfig, env: Env) -> Iterator[tuple[Env, Judge]]:
    """The task and who judges it while learning. A verifier of one's own replaces the task's judge; the task's gold stays
    the second opinion, except where the task has none but a comparison with a recorded answer.
    """
    if config.verifier is None:
        yield env, EnvJudge(env)
        return
    with UserVerifier(config.verifier, timeout=config.verifier_timeout) as judge:
        yield (JudgedBy(env, judge) if config.env.name in _WITHOUT_GOLD else env), judge


@contextmanager
def parts(config: RunConfig) -> Iterator[Parts]:
    """All parts of a run but its folder, so that a wrong setting leaves no folder behind. Raises UsageError."""
    threads = set_threads(config.threads, config.policy, shared_by=hands(config))
    if config.loop == "generations":
        check_cycle(config)
    algorithm = _corrected(resolve(config.algorithm), config.pipeline)
    policy = load_policy(config, algorithm)
    reference = policy.frozen()
    machine = {
        **describe_machine(threads, policy.precision, policy.device),
        "policy_sha256": reference.weights_sha256(),
    }
    if config.lora_rank:
        policy.add_lora(config.lora_rank, alpha=2.0 * config.lora_rank)
    env = make_env(config.env, reference)
    old: Sequence[ImportedItem] = ()
    if config.loop == "generations":
        check_task(config, env)
        old = usable(config, env)
    if old:
        said = json.dumps([to_json(item) for item in old], ensure_ascii=False)
        machine["recorded_sha256"] = hashlib.sha256(said.encode()).hexdigest()
    sampling = config.sampling
    if env.stop and not sampling.stop:
        config = dataclasses.replace(config, sampling=dataclasses.replace(sampling, stop=tuple(env.stop)))
    with judging(config, env) as (env, judge):
        yield Parts(
            config=config,
            policy=policy,
            reference=reference,
            env=env,
            judge=judge,
            algorithm=algorithm,
            guards=build_guards(config.guards),
            machine=machine,
            recorded=old,
        )


def workshop(made: Parts, run: Run, progress: Progress, interrupted: Callable[[], bool]) -> Workshop:
    """The parts with the folder that the run is kept in, and whoever watches it."""
    play, changing, judge = _play(made)
    return Workshop(
        config=made.config,
        policy=made.policy,
        reference=made.reference,
        env=made.env,
        judge=judge,
        algorithm=made.algorithm,
        guards=made.guards,
        run=run,
        progress=progress,
        interrupted=interrupted,
        play=play,
        parts=changing,
    )


def _corrected(algorithm: Algorithm, pipeline: bool) -> Algorithm:
    """With truncated importance sampling where samples are one step old and nothing else would weigh them."""
    if not pipeline or algorithm.takes_old_samples or algorithm.importance_cap > 0:
        return algorithm
    return dataclasses.replace(algorithm, importance_cap=_OLD_SAMPLES_CAP)


def _play(made: Parts) -> tuple[Play, Mapping[str, Part], Judge]:
    """What a round is, what it changes besides the policy, and who pays in it."""
    if made.config.loop == "generations":
        crew = _crew(made)
        return staged(crew), crew.parts, crew.payer
    learn = _LEARN[made.config.loop]
    if not made.config.pipeline:
        return outcome_round(learn), {}, made.judge
    on_gpu = made.policy.device.type == "cuda"
    ahead = Ahead(made.policy, overlaps=on_gpu or hands(made.config) * torch.get_num_threads() <= _available())
    return outcome_round(learn, ahead), {"ahead": ahead}, made.judge


def _instructions(made: Parts) -> Instructions:
    """The sets of principles that are tried, as the settings name them. ConfigError for a principle that does not exist."""
    cycle = made.config.cycle
    known = constitution_of(cycle.ai, made.env)
    return Instructions.of([p.name for p in known.principles], cycle.instruct.sets, memory=cycle.instruct.memory)


def _crew(made: Parts) -> Crew:
    """Who judges in a run of stages. The reward model starts from the weights that the policy starts from."""

    def load(path: str | Path) -> Policy:
        return load_policy(dataclasses.replace(made.config, policy=str(path)))

    stages = (*made.config.cycle.first, *made.config.cycle.stages)
    reward = words = None
    if "reward" in stages:
        if not isinstance(made.reference, NativePolicy):
            raise ConfigError("a reward model needs backend native; got transformers")
        how = made.config.cycle.reward
        form, trunk = RewardConfig(ties=how.ties, template=how.template, pooled=how.pooled), made.reference
        reward = RewardEnsemble.build(lambda seed: RewardModel.of(trunk, form), how.members, k=how.caution)
        if how.words:
            words = RewardModel.of(trunk, RewardConfig(token_level=True), name="words")
    return Crew(
        config=made.config,
        env=made.env,
        task=made.judge,
        policy=made.policy,
        start=made.reference,
        load=load,
        champion=Champion(made.reference, load),
        reward=reward,
        words=words,
        instructions=_instructions(made) if "instruct" in stages else None,
        recorded=made.recorded,
    )
