"""How fast one optimiser step on 256 completions of 32 tokens is: forward, backward, clip, AdamW. Random weights."""

from __future__ import annotations

import math
import random
import tempfile
from pathlib import Path

import column_task as task
import torch
from measuring import arguments, median, note, peak_mb, repeat, report
from triloop_side import random_checkpoint

from triloop.learn.algorithms import resolve
from triloop.learn.build import build_batch
from triloop.learn.update import policy_loss
from triloop.loops.build import set_threads
from triloop.policies.native import NativePolicy, pick_precision
from triloop.records import Completion, Episode, Prompt

COMPLETIONS = task.PROMPTS * task.GROUP


def episodes(policy: NativePolicy, seed: int = 0) -> list[Episode]:
    """A round as the loop would hand it over: random tokens, rewards by lot."""
    draw, wins = random.Random(seed), task.Lottery(seed).draw(COMPLETIONS)
    found = []
    for i, problem in enumerate(p for p in task.problems(task.PROMPTS, seed) for _ in range(task.GROUP)):
        ids = tuple(policy.tokenizer.encode(problem.prompt))
        tokens = tuple(draw.randrange(4, 64) for _ in range(task.MAX_NEW))
        completion = Completion(
            id=f"1/{i}",
            prompt_id=str(i // task.GROUP),
            round=1,
            index=i % task.GROUP,
            prompt_tokens=ids,
            tokens=tokens,
            logps=(-math.log(64),) * len(tokens),
            mask=(True,) * len(tokens),
            text="",
            finish="length",
            policy_version=0,
        )
        prompt = Prompt(id=completion.prompt_id, text=problem.prompt)
        found.append(Episode(prompt=prompt, completion=completion, feedback=(), reward=1.0 if wins[i] else -1.0))
    return found


def step(policy: NativePolicy, rows: list[Episode]) -> dict[str, float]:
    """Credit and one optimiser step; asserts that every completion took part and that the numbers are finite."""
    algorithm = resolve("grpo")
    batch, figures = build_batch(rows, algorithm, max_tokens=task.MAX_NEW)
    assert batch is not None
    assert figures["trained_share"] == 1.0
    metrics = policy.forward_backward(batch, policy_loss(algorithm))
    metrics |= policy.optim_step(1e-5)
    assert metrics["tokens"] == COMPLETIONS * task.MAX_NEW, f"{metrics['tokens']} tokens trained"
    assert math.isfinite(metrics["loss"])
    assert math.isfinite(metrics["grad_norm"])
    assert metrics["grad_norm"] > 0
    return {"tokens": float(batch.token_count())}


def main() -> None:
    options = arguments(__doc__, sizes=("1m", "5m"), runs=5).parse_args()
    threads, precision = set_threads(options.threads), pick_precision(options.precision)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for micro in (16384, 2048):
                note(f"{size}, {micro} tokens at a time")
                path = random_checkpoint(Path(folder), size)
                policy = NativePolicy.load(path, precision=precision, micro_tokens=micro, entropy=False)
                given = episodes(policy)
                runs = repeat(lambda p=policy, e=given: step(p, e), options.runs)  # type: ignore[misc]
                rows.append(
                    {
                        "size": size,
                        "micro_tokens": micro,
                        "tokens/s": median([t / s for t, s in zip(runs["tokens"], runs["seconds"], strict=True)]),
                        "seconds": median(runs["seconds"]),
                        "fastest": min(runs["seconds"]),
                        "tokens": median(runs["tokens"]),
                        "peak MB so far": peak_mb(),
                        "others": median(runs["other_cores"]),
                    }
                )
    facts = {"threads": threads, "precision": str(precision).removeprefix("torch."), "torch": torch.__version__}
    report("step", rows, facts, as_json=options.json)


if __name__ == "__main__":
    main()
