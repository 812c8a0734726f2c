"""Train the base checkpoints of the small worlds from the worlds' own teachers.

    python scripts/train_bases.py [--only NAME] [--steps N] [--out DIR] [--threads N]

Everything that decides the result stands in BASES: the same seed, torch and thread count give the same bytes. Each
checkpoint is a Hugging Face directory with a ``base.json`` in it: settings, held-out figures, SHA-256 of the weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import base_figures
import numpy as np
import torch

from triloop import rng
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_language import WORDS
from triloop.envs.attributes_skills import lessons
from triloop.envs.charset import CHARS
from triloop.envs.table import make
from triloop.envs.world import TextWorld
from triloop.learn.choices import OptimConfig
from triloop.loops.evaluate import evaluate
from triloop.loops.supervised import Demonstration, supervised
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.hf_io import load_pretrained
from triloop.nn.tokenizer import Tokenizer, char_tokenizer, word_tokenizer
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Prompt
from triloop.ternary.config import TernaryConfig

HERE = Path(__file__).resolve().parents[1] / "src" / "triloop" / "bases"


@dataclass(frozen=True, kw_only=True)
class Base:
    """How one checkpoint is made."""

    world: str
    hidden: int
    layers: int
    heads: int = 4
    mlp: int
    steps: int
    batch: int
    teacher: dict[str, Any]
    """Arguments of the world's teacher, such as how often it slips."""
    habits_from: float = 1.0
    """Share of the steps after which ``habits`` set in: first the policy learns how, then it learns bad habits."""
    habits: dict[str, Any] = field(default_factory=dict)
    """Arguments of the teacher from then on, besides those above."""
    lr: float = 2e-3
    seed: int = 1
    start: str = ""
    """The base whose weights it begins with; empty: fresh ones."""
    ternary: TernaryConfig | None = None
    """How the layers' weights are quantised, from the first step on."""


@dataclass(frozen=True, kw_only=True)
class School:
    """How a world's teachers speak: in what words, and what they show of a batch of prompts."""

    tokenizer: Tokenizer
    lessons: Callable[..., Sequence[tuple[str, str]]]
    """(prompts, random numbers, **manner) -> (prompt text, completion text), of one kind or of several."""
    figures: Callable[[NativePolicy], Mapping[str, object]] = lambda policy: {}
    """What to measure besides the score of held-out answers."""


def school(world: TextWorld) -> School:
    """The school of a world: characters and answers, unless it has more to teach."""
    if isinstance(world, Attributes):
        return School(
            tokenizer=word_tokenizer(WORDS),
            lessons=partial(lessons, world),
            figures=partial(base_figures.attributes, world),
        )

    def answers(prompts: Sequence[Prompt], teacher: np.random.Generator, **manner: Any) -> list[tuple[str, str]]:
        return [(p.text, world.demonstration(p, teacher, **manner)) for p in prompts]

    return School(tokenizer=char_tokenizer(CHARS), lessons=answers)


BASES = {
    # Careful at first; then two in three answers are blurted out, and some are left out.
    "arithmetic": Base(
        world="arithmetic", hidden=96, layers=4, mlp=256, steps=3000, batch=128, teacher={"noise": 0.01}, seed=0,
        habits_from=0.8, habits={"hasty": 0.66, "guess": 0.85, "forget": 0.06},
    ),
    # Searches on after a failure at first; then gives up after most.
    "countdown": Base(
        world="countdown", hidden=128, layers=4, mlp=384, steps=2000, batch=64, teacher={"noise": 0.05},
        habits_from=0.8, habits={"noise": 0.7},
    ),
    # That one with weights -1, 0 and 1 times a scale for each output, and activations of eight bits; taught again.
    "countdown-ternary": Base(
        world="countdown", hidden=128, layers=4, mlp=384, steps=500, batch=64, teacher={"noise": 0.05},
        habits_from=0.7, habits={"noise": 0.7}, start="countdown", ternary=TernaryConfig(granularity="channel"),
    ),
    # Answers well and knows all skills at first; then answers carelessly, and errs in 15 % of what it is asked.
    "attributes": Base(
        world="attributes", hidden=96, layers=4, mlp=256, steps=2400, batch=64, lr=3e-3,
        teacher={"unreliable": 0.0, "careless": 0.3}, habits_from=0.8, habits={"unreliable": 0.15, "careless": 1.0},
    ),
    "sort": Base(world="sort", hidden=64, layers=3, mlp=192, steps=900, batch=128, teacher={"noise": 0.08}),
}  # fmt: skip


def train(base: Base, out: Path, steps: int) -> dict[str, object]:
    """Train one base and write it to ``out``; returns what base.json holds."""
    world = make(base.world)
    assert isinstance(world, TextWorld)
    taught = school(world)
    tokenizer = taught.tokenizer
    config = DecoderConfig(
        vocab_size=-(-tokenizer.vocab_size // 16) * 16,
        hidden_size=base.hidden,
        intermediate_size=base.mlp,
        num_layers=base.layers,
        num_heads=base.heads,
        num_kv_heads=base.heads,
        head_dim=base.hidden // base.heads,
        max_positions=256,
        norm_eps=1e-6,
    )
    optim = OptimConfig(
        lr=base.lr, warmup_steps=50, schedule="cosine", lr_floor=0.1, betas=(0.9, 0.95), weight_decay=0.01
    )
    decoder = Decoder(config).initialise(base.seed) if not base.start else load_pretrained(HERE / base.start)[0]
    policy = NativePolicy(decoder, tokenizer, optim=optim, entropy=False)
    if base.ternary is not None:
        policy.ternarise(base.ternary)
    eos = list(tokenizer.eos_ids[:1])

    def batch(step: int) -> list[Demonstration]:
        teacher = rng.generator(base.seed, "teacher", base.world, step)
        manner = {**base.teacher, **(base.habits if step >= base.habits_from * steps else {})}
        prompts = world.prompts("train", base.batch, seed=base.seed, start=step * base.batch)
        shown = taught.lessons(prompts, teacher, **manner)
        return [(tokenizer.encode(prompt), tokenizer.encode(text) + eos) for prompt, text in shown]

    begun = time.perf_counter()

    def seen(step: int, loss: float) -> None:
        if step % 100 == 0 or step == steps:
            print(
                f"{base.world}: step {step}/{steps} loss {loss:.3f} {time.perf_counter() - begun:.0f} s",
                file=sys.stderr,
            )

    supervised(policy, batch, steps, optim, seen=seen)
    figures: dict[str, object] = {}
    for temperature in (1.0, 0.3):
        sampling = Sampling(max_tokens=world.max_tokens, temperature=temperature, slots=512)
        result = evaluate(policy, world, 1024, sampling, Tag(seed=0, round=0, purpose="eval"))
        figures[f"{result.metric} at temperature {temperature}"] = result.summary()
    figures |= taught.figures(policy)
    policy.save_pretrained(out)
    facts: dict[str, object] = {
        "settings": {**dataclasses.asdict(base), "steps": steps},
        "parameters": config.parameters,
        "held_out": figures,
        "weights_sha256": policy.weights_sha256(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    (out / "base.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(BASES), help="train this one")
    parser.add_argument("--steps", type=int, help="other than the table says (a quick look)")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--threads", type=int, default=1, help="1 gives the bytes that are committed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in [args.only] if args.only else BASES:
        facts = train(BASES[name], args.out / name, args.steps or BASES[name].steps)
        print(json.dumps({name: facts["held_out"]}))


if __name__ == "__main__":
    main()
