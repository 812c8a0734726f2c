"""TRL's GRPOTrainer on the task of the comparison. Run by ``versus_trl.py`` with the interpreter of TRL's own environment.

Task and clocks are Triloop's, read from its source; they need the standard library alone.

One AdamW step a round on 32 prompts x 8 completions, one micro-batch of 256. Nothing of TRL is replaced: three of its
methods are timed from outside. ``--attention`` and ``--bf16`` are its fast settings; the caller finds the best.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
import trl
from blocks import Turns
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from triloop.bench import column_task as task
from triloop.bench.measuring import peak_bytes


class Clocks:
    """Seconds and tokens of the round in progress."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def timed(self, name: str, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        t0 = time.perf_counter()
        result = work(*args, **options)
        self.figures[name] = self.figures.get(name, 0.0) + time.perf_counter() - t0
        return result

    def take(self) -> dict[str, float]:
        done, self.figures = self.figures, {}
        return done


class TimedTrainer(GRPOTrainer):
    """GRPOTrainer with clocks around generation, generation with scoring, and the whole of a training step."""

    clocks: Clocks

    def _generate(self, *args: Any, **options: Any) -> Any:
        result = self.clocks.timed("rollout_seconds", super()._generate, *args, **options)
        lengths = [len(ids) for ids in result[1]]
        assert len(lengths) == task.PROMPTS * task.GROUP, f"TRL generated {len(lengths)} completions"
        self.clocks.figures["tokens"] = float(sum(lengths))
        return result

    def _generate_and_score_completions(self, *args: Any, **options: Any) -> Any:
        return self.clocks.timed("scored_seconds", super()._generate_and_score_completions, *args, **options)

    def training_step(self, *args: Any, **options: Any) -> Any:
        return self.clocks.timed("step_seconds", super().training_step, *args, **options)


class Rewards:
    """What TRL calls to judge completions."""

    __name__ = "columns"

    def __init__(self, kind: str, clocks: Clocks) -> None:
        self.lottery = task.Lottery() if kind == "random" else None
        self.clocks = clocks
        self.asked: list[int] = []

    def __call__(self, prompts: list[str], completions: list[str], answer: list[str], **_: object) -> list[float]:
        self.asked.append(task.fingerprint(prompts[:: task.GROUP]))
        if self.lottery is None:
            wins = [task.is_right(c, a) for c, a in zip(completions, answer, strict=True)]
        else:
            wins = self.lottery.draw(len(completions))
        rewards = [float(w) for w in wins]
        self.clocks.figures["reward"] = sum(rewards) / len(rewards)
        self.clocks.figures["flat_share"] = task.flat_share(rewards)
        return rewards


class TakeTurns(TrainerCallback):
    """Hands every round's figures over, and stops when told to."""

    def __init__(self, turns: Turns, clocks: Clocks) -> None:
        self.turns, self.clocks = turns, clocks

    def on_step_end(self, args: object, state: object, control: Any, **_: object) -> Any:
        f = self.clocks.take()
        scored, step = f.pop("scored_seconds"), f.pop("step_seconds")
        self.turns.round_done({**f, "learn_seconds": step - scored})
        control.should_training_stop = self.turns.over
        return control


def settings(options: argparse.Namespace, folder: str) -> GRPOConfig:
    """The settings of the comparison; everything not named here is TRL's default."""
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=options.bf16,
        max_steps=100_000,
        seed=42 + options.seed,
        shuffle_dataset=options.offset is None,
        learning_rate=options.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        max_grad_norm=1.0,
        per_device_train_batch_size=task.PROMPTS * task.GROUP,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        num_generations=task.GROUP,
        num_iterations=1,
        max_completion_length=task.MAX_NEW,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        epsilon=0.2,
        loss_type="dapo",
        scale_rewards="group",
        generation_kwargs={"min_new_tokens": task.MAX_NEW} if options.fixed else None,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_steps=10_000,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
    )


def stream(offset: int | None) -> list[task.Problem]:
    """The problems: all of them, or round by round those that the other side draws from ``offset`` on."""
    every = task.problems(task.TRAIN_COUNT, task.TRAIN_SEED)
    if offset is None:
        return every
    return [p for drawn in task.rounds([*every[offset:], *every[:offset]]) for p in drawn]


@torch.no_grad()
def probe(model: Any, tokenizer: Any) -> float:
    """Log-probability (nats) of a few worked solutions: equal on both sides when the weights are."""
    total = 0.0
    for p in task.problems(4, task.TRAIN_SEED):
        head, whole = (tokenizer(t, return_tensors="pt").input_ids for t in (p.prompt, p.prompt + p.worked))
        logps = model(whole).logits[0].float().log_softmax(-1)
        for at in range(head.shape[1], whole.shape[1]):
            total += float(logps[at - 1, whole[0, at]])
    return total


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--checkpoint", required=True)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    ap.add_argument("--bf16", action="store_true")
    ap.add_argument("--fixed", action="store_true", help="every completion has 32 tokens")
    ap.add_argument("--reward", choices=("exact", "random"), default="exact")
    ap.add_argument("--lr", type=float, default=1e-5)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--offset", type=int, help="take the problems in order from this one on, as Triloop draws them")
    options = ap.parse_args()
    turns = Turns()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(
        options.checkpoint, dtype=torch.float32, attn_implementation=options.attention
    )
    likelihood = probe(model, tokenizer)
    clocks = Clocks()
    rewards = Rewards(options.reward, clocks)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TimedTrainer(
            model=model,
            reward_funcs=rewards,
            args=settings(options, folder),
            train_dataset=Dataset.from_list([{"prompt": p.prompt, "answer": p.answer} for p in stream(options.offset)]),
            processing_class=tokenizer,
            callbacks=[TakeTurns(turns, clocks)],
        )
        trainer.clocks = clocks
        before = [p.detach().clone() for p in model.parameters()]
        versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
        parameters = sum(p.numel() for p in model.parameters())
        turns.ready({"probe": likelihood, "versions": versions, "parameters": parameters})
        trainer.train()
    moved = sum(float((a - b).abs().sum()) for a, b in zip(before, model.parameters(), strict=True))
    assert all(bool(p.isfinite().all()) for p in model.parameters()), "TRL's weights are not finite"
    turns.finish({"peak_memory_bytes": peak_bytes(), "moved": moved, "asked": rewards.asked})


if __name__ == "__main__":
    main()
