"""Warmed-up checkpoints for the comparison with TRL: a fresh policy taught worked sums until one in four is right.

    python benchmarks/warm.py 5m 30m            into benchmarks/.checkpoints, where versus_trl.py looks

The sizes, task, batch, learning rates and stopping rule of the baseline's own warm-up, in fp32 and by our learner: on
a processor without bf16 products the baseline's script would take hours.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

from triloop.bench import column_task as task
from triloop.bench.model import random_checkpoint
from triloop.learn.batch import supervised_batch
from triloop.learn.choices import OptimConfig
from triloop.learn.update import supervised_loss
from triloop.loops.build import set_threads
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Prompt

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE / ".checkpoints"
LEARNING = {"1m": (2e-3, 128, 3000), "5m": (1e-3, 128, 1500), "30m": (6e-4, 64, 600)}
"""Learning rate, problems a step, most steps."""
TARGET, RAMP, HELD_OUT = 0.25, 50, 512


def pass_at_1(policy: NativePolicy, problems: list[task.Problem]) -> float:
    prompts = [Prompt(id=str(i), text=p.prompt) for i, p in enumerate(problems)]
    done = policy.sample(prompts, 1, Sampling(max_tokens=task.MAX_NEW), Tag(seed=7, round=0, purpose="eval"))
    return sum(task.is_right(c.text, p.answer) for c, p in zip(done, problems, strict=True)) / len(problems)


def warm(size: str, folder: Path) -> Path:
    """The checkpoint of this size, made if it is not there."""
    path = folder / f"{size}_d2"
    if (path / "warmup.json").exists():
        return path
    lr, batch, most = LEARNING[size]
    policy = NativePolicy.load(
        random_checkpoint(folder, size), optim=OptimConfig(lr=lr, betas=(0.9, 0.95)), entropy=False
    )
    encode, eos = policy.tokenizer.encode, policy.tokenizer.eos_ids[0]
    held, draw, right, step, start = task.problems(HELD_OUT, 12), random.Random(13), 0.0, 0, time.monotonic()
    while right < TARGET and step < most:
        step += 1
        problems = task.problems(batch, draw.getrandbits(60))
        rows = supervised_batch([encode(p.prompt) for p in problems], [[*encode(p.worked), eos] for p in problems])
        metrics = policy.forward_backward(rows, supervised_loss)
        policy.optim_step(lr * min(1.0, step / RAMP))
        if step % 25 == 0:
            right = pass_at_1(policy, held)
            seconds = time.monotonic() - start
            print(
                f"{size}: step {step}  loss {metrics['loss']:.3f}  pass@1 {right:.3f}  {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    policy.save_pretrained(path)
    about = {"size": size, "steps": step, "pass1": right, "sha256": policy.weights_sha256()}
    (path / "warmup.json").write_text(json.dumps(about) + "\n")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="+", choices=list(LEARNING))
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    set_threads(options.threads)
    for name in options.sizes:
        print(warm(name, options.out))
