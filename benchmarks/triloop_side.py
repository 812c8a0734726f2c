"""Triloop on the task of the comparison: the loop that ``triloop run`` runs, with its store and its guards.

Each round samples, judges, gives credit, updates, asks every guard, and commits all rows to the run's store; every tenth
writes a checkpoint. Held-out evaluations and the canary are off, since the other side has none.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from blocks import Turns

from triloop import __version__
from triloop.bench import column_task as task
from triloop.bench.columns import settings, workshop
from triloop.bench.measuring import peak_bytes
from triloop.errors import Interrupted
from triloop.learn.algorithms import resolve
from triloop.loops.build import load_policy, set_threads
from triloop.loops.improve import improve
from triloop.loops.learning import policy_gradient
from triloop.loops.outcome import outcome_round
from triloop.loops.progress import Silent
from triloop.loops.state import LoopState, Workshop
from triloop.nn.tokenizer import Tokenizer
from triloop.records import Verdict


class TakeTurns(Silent):
    """Hands every round's figures over."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def round(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict]) -> None:
        figures = {
            k: metrics[k] for k in ("rollout_seconds", "judge_seconds", "learn_seconds", "watch_seconds", "tokens")
        }
        figures["reward"] = (metrics["reward"] + 1) / 2
        figures |= {k: metrics[k] for k in ("trained_share", "lr_scale")} | {"flat_share": metrics["zero_std_share"]}
        self.turns.round_done(figures)


def probe(shop: Workshop) -> float:
    """Log-probability (nats) of a few worked solutions: equal on both sides when the weights are."""
    encode = shop.policy.tokenizer.encode
    items = [(encode(p.prompt), encode(p.worked)) for p in task.problems(4, task.TRAIN_SEED)]
    return float(sum(x.sum() for x in shop.policy.logprobs(items)))


def fingerprint(shop: Workshop, round: int) -> int:
    """Of the prompts of a round, which the store names by their text."""
    return task.fingerprint(c.prompt_id for c in shop.run.completions(round) if c.index == 0)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--checkpoint", required=True, type=Path)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="auto")
    ap.add_argument("--fixed", action="store_true", help="every completion has 32 tokens")
    ap.add_argument("--reward", choices=("exact", "random"), default="exact")
    ap.add_argument("--lr", type=float, help="another learning rate than the comparison's")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--offset", type=int, default=0, help="problems of the stream to pass over")
    options = ap.parse_args()
    turns = Turns()
    banned = Tokenizer.from_directory(options.checkpoint).eos_ids if options.fixed else ()
    config = settings(str(options.checkpoint), threads=options.threads, precision=options.precision, banned=banned)
    rate = config.optim.lr if options.lr is None else options.lr
    config = dataclasses.replace(config, seed=options.seed, optim=dataclasses.replace(config.optim, lr=rate))
    set_threads(config.threads)
    policy = load_policy(config, resolve(config.algorithm))
    with tempfile.TemporaryDirectory() as folder:
        shop = workshop(
            config,
            policy,
            Path(folder) / "run",
            lottery=options.reward == "random",
            progress=TakeTurns(turns),
            interrupted=lambda: turns.over,
        )
        before = [p.detach().clone() for p in shop.policy.decoder.parameters()]
        turns.ready(
            {
                "probe": probe(shop),
                "versions": {"triloop": __version__, "torch": torch.__version__},
                "parameters": shop.policy.decoder.config.parameters,
                "precision": str(shop.policy.precision).removeprefix("torch."),
            }
        )
        try:
            begin = LoopState(cursor={"*": options.offset})
            state = improve(shop, begin, outcome_round(policy_gradient))
            raise RuntimeError(f"the loop ended by itself: {state.stopped}")
        except Interrupted:
            pass
        rows = sum(1 for _ in shop.run.rows(kind="completion"))
        rounds = len(shop.run.rounds())
        assert rows == rounds * task.PROMPTS * task.GROUP, f"{rows} completions stored in {rounds} rounds"
        asked = [fingerprint(shop, round) for round in shop.run.rounds()]
        shop.run.close()
    after = list(shop.policy.decoder.parameters())
    assert all(bool(p.isfinite().all()) for p in after), "Triloop's weights are not finite"
    moved = sum(float((a - b).abs().sum()) for a, b in zip(before, after, strict=True))
    turns.finish({"peak_memory_bytes": peak_bytes(), "moved": moved, "asked": asked})


if __name__ == "__main__":
    main()
