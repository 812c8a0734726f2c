"""How far the sampler's log-probabilities are from the learner's: the same weights, another way through them.

    python proofs/mismatch.py [--policies base:arithmetic base:countdown base:countdown-ternary]
                                [--completions 512]

The sampler decodes token by token from a cache, the learner runs whole sequences, and either may multiply in bf16. For each
pair the script samples, scores what was sampled, and writes mean and maximum of |log p - log p| per token, in nats, and the
share of tokens whose ratio would be clipped at 0.2. Writes docs/proof/mismatch.md and mismatch.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from triloop.envs.table import make
from triloop.kernels import native
from triloop.loops.build import policy_path, set_threads
from triloop.policies.native import NativePolicy, pick_precision
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling

ROOT = Path(__file__).resolve().parents[1]
PAIRS = (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32"))
"""Precision of the sampler's products, and of the learner's."""
GROUP = 8


def measure(name: str, sampler: str, learner: str, completions: int) -> dict[str, Any]:
    """Differences over the tokens of this many completions of training prompts."""
    path = policy_path(name)
    low, high = (NativePolicy.load(path, precision=pick_precision(p)) for p in (sampler, learner))
    env = make(name.removeprefix("base:").removesuffix("-ternary"))
    prompts = env.prompts("train", completions // GROUP, seed=0)
    done = low.sample(prompts, GROUP, Sampling(max_tokens=96, stop=tuple(env.stop)), Tag(seed=0, round=1))
    scored = high.logprobs([(c.prompt_tokens, c.tokens) for c in done])
    gap = np.abs(np.concatenate(scored) - np.concatenate([np.array(c.logps) for c in done]))
    return {
        "policy": name,
        "sampler": sampler,
        "learner": learner,
        "tokens": len(gap),
        "mean": float(gap.mean()),
        "max": float(gap.max()),
        "beyond_clip": float((gap > math.log(1.2)).mean()),
    }


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """The two files."""
    out.mkdir(parents=True, exist_ok=True)
    facts = {"date": datetime.date.today().isoformat(), "kernels": native.describe(), "rows": rows}
    (out / "mismatch.json").write_text(json.dumps(facts, indent=1) + "\n")
    lines = [
        "# Sampler against learner",
        "",
        "Written by `python proofs/mismatch.py`, whose text says what is compared.",
        "",
        f"- date: {facts['date']}",
        f"- kernels: {facts['kernels']}",
        "",
        "| policy | sampler | learner | tokens | mean, nats | max, nats | ratio beyond 1.2 |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        numbers = f"{r['tokens']:,} | {r['mean']:.2g} | {r['max']:.2g} | {r['beyond_clip']:.3%}"
        lines.append(f"| {r['policy']} | {r['sampler']} | {r['learner']} | {numbers} |")
    (out / "mismatch.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--policies", nargs="+", default=["base:arithmetic", "base:countdown", "base:countdown-ternary"]
    )
    parser.add_argument("--completions", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "proof")
    options = parser.parse_args()
    set_threads(options.threads)
    rows = []
    for name in options.policies:
        for sampler, learner in PAIRS:
            rows.append(measure(name, sampler, learner, options.completions))
            print(rows[-1], flush=True)
    write(options.out, rows)


if __name__ == "__main__":
    main()
