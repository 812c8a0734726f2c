"""Triloop on the task of the comparison: the loop that ``triloop run`` runs, with its store and its guards.

Each round samples, judges, gives credit, updates, asks every guard, and commits all rows to the run's store; every tenth
writes a checkpoint. Held-out evaluations and the canary are off, since the other side has none.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import column_task as task
import torch
from blocks import Turns
from measuring import peak_mb

from triloop import __version__
from triloop.envs.base import Split, World
from triloop.errors import Interrupted
from triloop.guards.stack import GuardConfig, build
from triloop.learn.algorithms import resolve
from triloop.learn.choices import AlgorithmConfig, OptimConfig
from triloop.loops.build import describe_machine, load_policy, set_threads
from triloop.loops.config import RunConfig, to_mapping
from triloop.loops.improve import improve
from triloop.loops.learning import policy_gradient
from triloop.loops.progress import Silent
from triloop.loops.state import LoopState, Workshop
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.hf_io import save_pretrained
from triloop.nn.tokenizer import char_tokenizer
from triloop.policies.sampling import Sampling
from triloop.records import Feedback, Prompt, Verdict
from triloop.sources.judge import EnvJudge, Judge
from triloop.store.run import Run

CHARS = "0123456789+-*/=#,;:()<>[] ._abcdefghijklmnopqrstuvwxyz"


@final
class Columns(World):
    """Column-wise sums and differences as an environment."""

    name = "columns"
    max_tokens = task.MAX_NEW

    def __init__(self) -> None:
        self._problems = task.problems(task.TRAIN_COUNT, task.TRAIN_SEED)

    def prompts(self, split: Split, n: int, *, seed: int, start: int = 0, level: int | None = None) -> list[Prompt]:
        every = self._problems
        found = (every[i % len(every)] for i in range(start, start + n))
        return [Prompt(id=p.prompt, text=p.prompt, answer=p.answer, meta={"worked": p.worked}) for p in found]

    def verify(self, prompt: Prompt, text: str) -> Feedback:
        right = task.is_right(text, prompt.answer or "")
        return Feedback(value=1 if right else -1, reason="right" if right else "wrong", source="env:columns")

    def right_answer(self, prompt: Prompt) -> str:
        return str(prompt.meta["worked"])

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        return ["", prompt.text, f"#{prompt.answer}0"]


@final
class LotteryJudge:
    """Rewards by lot: every group has spread, no group can be left out."""

    name = "lottery"

    def __init__(self) -> None:
        self._lottery = task.Lottery()

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        return [Feedback(value=1 if win else -1, source=self.name) for win in self._lottery.draw(len(texts))]


def random_checkpoint(folder: Path, size: str) -> Path:
    """A decoder of this size with fresh weights, as a Hugging Face directory that both sides read."""
    path = folder / f"{size}_random"
    if not (path / "config.json").exists():
        s = task.SIZES[size]
        tokenizer = char_tokenizer(CHARS + "ABCDEF")
        config = DecoderConfig(
            vocab_size=64,
            hidden_size=s["hidden"],
            intermediate_size=s["mlp"],
            num_layers=s["layers"],
            num_heads=s["heads"],
            num_kv_heads=s["heads"],
            head_dim=s["hidden"] // s["heads"],
            max_positions=128,
        )
        save_pretrained(path, Decoder(config).initialise(1234), tokenizer)
    return path


def settings(checkpoint: Path, *, threads: int, precision: str, fixed: bool, eos: tuple[int, ...]) -> RunConfig:
    """The settings of the comparison; everything not named here is Triloop's default."""
    return RunConfig(
        recipe="versus",
        policy=str(checkpoint),
        algorithm=AlgorithmConfig(name="dapo", clip_high=0.2, dynamic_sampling=False),
        optim=OptimConfig(lr=1e-5, betas=(0.9, 0.999), warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0),
        sampling=Sampling(max_tokens=task.MAX_NEW, banned_tokens=eos if fixed else ()),
        guards=GuardConfig(pair_stops=False),
        rounds=100_000,
        prompts_per_round=task.PROMPTS,
        group_size=task.GROUP,
        eval_every=0,
        canary_every=0,
        threads=threads,
        precision=precision,  # type: ignore[arg-type]
    )


class TakeTurns(Silent):
    """Hands every round's figures over."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def round(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict]) -> None:
        figures = {
            k: metrics[k] for k in ("rollout_seconds", "judge_seconds", "learn_seconds", "watch_seconds", "tokens")
        }
        figures["reward"] = (metrics["reward"] + 1) / 2
        figures |= {"flat_share": metrics["zero_std_share"], "trained_share": metrics["trained_share"]}
        self.turns.round_done(figures)


def workshop(config: RunConfig, run_folder: Path, *, lottery: bool, progress: Any, interrupted: Any) -> Workshop:
    """The parts of a run, as ``triloop.loops.build.workshop`` puts them together, on this benchmark's own task."""
    threads = set_threads(config.threads)
    algorithm = resolve(config.algorithm)
    policy = load_policy(config, algorithm)
    env = Columns()
    judge: Judge = LotteryJudge() if lottery else EnvJudge(env)
    environment = describe_machine(threads, str(policy.precision).removeprefix("torch."))
    return Workshop(
        config=config,
        policy=policy,
        reference=policy.frozen(),
        env=env,
        judge=judge,
        algorithm=algorithm,
        guards=build(config.guards),
        run=Run.create(run_folder, to_mapping(config), environment),
        progress=progress,
        interrupted=interrupted,
    )


def probe(shop: Workshop) -> float:
    """Log-probability (nats) of a few worked solutions: equal on both sides when the weights are."""
    encode = shop.policy.tokenizer.encode
    items = [(encode(p.prompt), encode(p.worked)) for p in task.problems(4, task.TRAIN_SEED)]
    return float(sum(x.sum() for x in shop.policy.logprobs(items)))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--checkpoint", required=True, type=Path)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="auto")
    ap.add_argument("--fixed", action="store_true", help="every completion has 32 tokens")
    ap.add_argument("--reward", choices=("exact", "random"), default="exact")
    options = ap.parse_args()
    turns = Turns()
    from triloop.nn.tokenizer import Tokenizer

    eos = Tokenizer.from_directory(options.checkpoint).eos_ids
    config = settings(
        options.checkpoint, threads=options.threads, precision=options.precision, fixed=options.fixed, eos=eos
    )
    with tempfile.TemporaryDirectory() as folder:
        shop = workshop(
            config,
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
            state = improve(shop, LoopState(), policy_gradient)
            raise RuntimeError(f"the loop ended by itself: {state.stopped}")
        except Interrupted:
            pass
        rows = sum(1 for _ in shop.run.rows(kind="completion"))
        rounds = len(shop.run.rounds())
        assert rows == rounds * task.PROMPTS * task.GROUP, f"{rows} completions stored in {rounds} rounds"
        shop.run.close()
    after = list(shop.policy.decoder.parameters())
    assert all(bool(p.isfinite().all()) for p in after), "Triloop's weights are not finite"
    moved = sum(float((a - b).abs().sum()) for a, b in zip(before, after, strict=True))
    turns.finish({"peak_mb": peak_mb(), "moved": moved})


if __name__ == "__main__":
    main()
