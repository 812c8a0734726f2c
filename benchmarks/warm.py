"""Warmed-up checkpoints of the comparison's task, for natural lengths: a policy has to learn to stop before it stops.

Plain supervised steps on worked problems until a quarter of held-out samples are right, as the published baseline does, or
until the time is over. Both sides start from what this writes; how good it is only has to be the same for both.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from triloop.bench import column_task as task
from triloop.bench.columns import Columns
from triloop.bench.measuring import note
from triloop.bench.model import config_of, tokenizer_of
from triloop.nn.decoder import Decoder, packing
from triloop.nn.hf_io import save_pretrained
from triloop.policies.native import NativePolicy, pick_precision
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling

ENOUGH = 0.25
SEED = 13
RATES = {"0.2m": 3e-3, "1m": 2e-3, "5m": 1e-3, "30m": 6e-4, "100m": 4e-4}
BATCH, RAMP, CHECK = 128, 50, 50


def warm(folder: Path, size: str, minutes: float) -> Path:
    """The checkpoint ``SIZE_d2`` in ``folder``, made in at most so many minutes when it is not there."""
    path = folder / f"{size}_d2"
    if (path / "warmup.json").exists():
        return path
    note(f"{size}: no warmed-up checkpoint; learning the task for up to {minutes:g} minutes")
    decoder, tokenizer = Decoder(config_of(size)).initialise(1234), tokenizer_of(64)
    optimiser = torch.optim.AdamW(
        decoder.parameters(), lr=RATES[size], betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    ramp = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / RAMP))
    precision, end, rate, step = pick_precision("auto"), time.monotonic() + 60 * minutes, 0.0, 0
    for step, batch in enumerate(_batches(tokenizer.encode, tokenizer.eos_ids[0])):
        if step % CHECK == 0 and step:
            rate = _right(NativePolicy(decoder, tokenizer, precision=precision))
            note(f"  step {step}: {rate:.0%} right")
        if rate >= ENOUGH or time.monotonic() > end:
            break
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = _loss(decoder, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        ramp.step()
        optimiser.zero_grad(set_to_none=True)
    rate = _right(NativePolicy(decoder, tokenizer, precision=precision))
    save_pretrained(path, decoder, tokenizer)
    (path / "warmup.json").write_text(json.dumps({"pass_at_1": rate, "steps": step}) + "\n")
    note(f"  {step} steps, {rate:.0%} right")
    return path


def success_rate(checkpoint: Path) -> float:
    """Share of samples that were right at the end of the warm-up; 1 where nothing says so."""
    try:
        found = json.loads((checkpoint / "warmup.json").read_text())
        return float(found.get("pass_at_1", found.get("pass1", 1.0)))  # the baseline's script says pass1
    except (OSError, ValueError, TypeError):
        return 1.0


def _batches(encode: Callable[[str], list[int]], eos: int) -> Iterator[list[tuple[list[int], int]]]:
    """Fresh problems: tokens, and how many of them are the prompt's."""
    for turn in itertools.count():
        rows = []
        for p in task.problems(BATCH, SEED + 1000 * turn):
            prompt = encode(p.prompt)
            rows.append(([*prompt, *encode(p.worked), eos], len(prompt)))
        yield rows


def _loss(decoder: Decoder, batch: list[tuple[list[int], int]]) -> torch.Tensor:
    """Cross-entropy (nats) of the completions' tokens."""
    ids = torch.tensor([t for tokens, _ in batch for t in tokens[:-1]])
    targets = torch.tensor([t for tokens, _ in batch for t in tokens[1:]])
    own = torch.tensor([i >= n for tokens, n in batch for i in range(1, len(tokens))])
    hidden = decoder.packed(ids, packing([len(tokens) - 1 for tokens, _ in batch]))
    return F.cross_entropy(decoder.logits(hidden[own]).float(), targets[own])


def _right(policy: NativePolicy) -> float:
    columns = Columns()
    prompts = columns.prompts("train", 256, seed=0, start=10_000)
    done = policy.sample(prompts, 1, Sampling(max_tokens=task.MAX_NEW), Tag(seed=0, round=0, purpose="eval"))
    return sum(columns.verify(p, c.text).value == 1 for p, c in zip(prompts, done, strict=True)) / len(prompts)
