"""A run small enough to be killed a dozen times in a test: a warmed-up decoder of some thousand weights that sorts.

Half of its first answers abstain and nearly all others are wrong: rewards differ from the first round on, so weights move.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from triloop.envs.charset import CHARS
from triloop.envs.sort import Sort
from triloop.guards.base import Watch
from triloop.guards.stack import GuardConfig
from triloop.learn.choices import AlgorithmConfig, OptimConfig
from triloop.loops import build
from triloop.loops.config import EnvConfig, RunConfig
from triloop.loops.supervised import supervised
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.tokenizer import char_tokenizer
from triloop.policies.native import NativePolicy
from triloop.policies.sampling import Sampling
from triloop.records import Verdict

LEVEL = 3
WILD = GuardConfig(hard_action="roll_back", max_rollbacks=2, preflight=False)
"""With ``alarms``: two rollbacks, then a stop."""


class Alarm:
    """A guard that is never content again from some round on."""

    name = "alarm"

    def __init__(self, since: int) -> None:
        self.since = since

    def check(self, watch: Watch) -> Verdict:
        bad = watch.round >= self.since
        action: Literal["stop", "none"] = "stop" if bad else "none"
        return Verdict(guard=self.name, round=watch.round, value=-1 if bad else 1, reason="as planned", action=action)


@contextmanager
def alarms(since: int = 4) -> Iterator[None]:
    """Runs that are started or resumed meanwhile have this one guard."""
    before = build.build_guards
    build.build_guards = lambda config: [Alarm(since)]
    try:
        yield
    finally:
        build.build_guards = before


def policy(steps: int = 12) -> NativePolicy:
    """A decoder after ``steps`` of supervised warm-up; the same one each time."""
    env, tokenizer, optim = Sort(), char_tokenizer(CHARS), OptimConfig(lr=1e-1, warmup_steps=0)
    shape = DecoderConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8,
        max_positions=64,
    )  # fmt: skip
    made = NativePolicy(Decoder(shape).initialise(0, std=0.1), tokenizer, optim=optim, entropy=False)
    prompts = env.prompts("train", 16, seed=1, level=LEVEL)
    texts = ["?" if i % 2 else str(p.answer) for i, p in enumerate(prompts)]
    shown = [(made.encode(p), (*tokenizer.encode(t), *tokenizer.eos_ids)) for p, t in zip(prompts, texts, strict=True)]
    return supervised(made, lambda step: shown, steps, optim)


def base(folder: Path) -> Path:
    """Its Hugging Face directory, in ``folder``."""
    policy().save_pretrained(folder / "base")
    return folder / "base"


def config(path: Path, **changes: Any) -> RunConfig:
    """Six rounds with all that a run can do in them."""
    settings = RunConfig(
        recipe="tiny",
        policy=str(path),
        env=EnvConfig(name="sort", level=LEVEL),
        algorithm=AlgorithmConfig(name="grpo"),
        optim=OptimConfig(lr=1e-2, warmup_steps=2),
        sampling=Sampling(max_tokens=5, slots=16),
        guards=GuardConfig(off=("collapse", "entropy", "kl", "fluency", "length", "spread", "diversity", "samples")),
        rounds=6,
        prompts_per_round=4,
        group_size=4,
        reference_rows=4,
        eval_n=12,
        eval_every=3,
        eval_mid_n=6,
        canary_n=6,
        canary_every=2,
        checkpoint_every=2,
        threads=1,
    )
    return dataclasses.replace(settings, **changes)


def one_thread() -> None:
    torch.set_num_threads(1)
