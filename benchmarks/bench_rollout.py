"""How fast completions are generated: rows in flight, fixed and natural length. Random weights, 64 tokens vocabulary."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import column_task as task
import torch
from measuring import arguments, median, note, repeat, report
from triloop_side import Columns, random_checkpoint

from triloop.loops.build import set_threads
from triloop.policies.native import NativePolicy, pick_precision
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling

PROMPTS = 64
SLOTS = (64, 256, 512)


def rollout(policy: NativePolicy, sampling: Sampling, seed: int) -> dict[str, float]:
    """One rollout of 64 prompts x 8; asserts that what came back is what was asked for."""
    prompts = Columns().prompts("train", PROMPTS, seed=0)
    done = policy.sample(prompts, task.GROUP, sampling, Tag(seed=seed, round=1))
    tokens = sum(len(c.tokens) for c in done)
    assert len(done) == PROMPTS * task.GROUP
    assert all(len(c.tokens) == len(c.logps) for c in done)
    assert all(math.isfinite(p) and p <= 0 for c in done for p in c.logps), "a log-probability is not one"
    if sampling.banned_tokens:
        assert tokens == len(done) * sampling.max_tokens, f"{tokens} tokens"
    return {"tokens": float(tokens)}


def main() -> None:
    options = arguments(__doc__, sizes=("1m", "5m"), runs=5).parse_args()
    threads, precision = set_threads(options.threads), pick_precision(options.precision)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            policy = NativePolicy.load(random_checkpoint(Path(folder), size), precision=precision)
            cases = [(slots, True) for slots in SLOTS] + [(256, False)]
            for slots, fixed in cases:
                note(f"{size}, {slots} rows in flight, {'fixed' if fixed else 'natural'} length")
                banned = policy.tokenizer.eos_ids if fixed else ()
                sampling = Sampling(max_tokens=task.MAX_NEW, slots=slots, banned_tokens=banned)
                seeds = iter(range(10_000))
                runs = repeat(lambda p=policy, s=sampling, n=seeds: rollout(p, s, next(n)), options.runs)  # type: ignore[misc]
                rows.append(
                    {
                        "size": size,
                        "rows": slots,
                        "length": "fixed" if fixed else "natural",
                        "tokens/s": median([t / s for t, s in zip(runs["tokens"], runs["seconds"], strict=True)]),
                        "seconds": median(runs["seconds"]),
                        "fastest": min(runs["seconds"]),
                        "tokens": median(runs["tokens"]),
                        "others": median(runs["other_cores"]),
                    }
                )
    facts = {"threads": threads, "precision": str(precision).removeprefix("torch."), "torch": torch.__version__}
    report("rollout", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
