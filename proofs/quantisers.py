"""Weight quantisers on real text: at equal updates from one checkpoint, and at equal bytes.

    python proofs/quantisers.py [--seeds 0 1 2] [--pretrain 450] [--tune 150]

Characters of GSM8K's problems and worked answers (MIT): 2,000 to learn from, 200 others to be judged on. Decoders of two
layers and at most 0.3 million parameters, int8 activations wherever weights are quantised, AdamW. Everything gets the
same updates of the same batches: ``pretrain`` in full precision at a constant rate, then ``tune`` with quantised weights
while the rate falls to nothing; what is called full precision stays so, and what is called from scratch is quantised
throughout.

Equal updates: one checkpoint for each seed, all quantisers per channel. Equal bytes: for each number of bits the width and
the inner width are chosen so that codes, scales and all else in 16 bits come to the same number of bytes.

The rule, fixed before the run: a claim says that one loss is below another. It holds where the 95 % interval of Student's t
over the seeds' differences lies below 0, it is contradicted where it lies above, and it is undecided otherwise; with three
seeds that is a strict rule. Writes docs/proof/quantisers.md and quantisers.json.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gzip
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from triloop.atlas.text_lab import moved
from triloop.loops.build import describe_machine, set_threads
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.ternary.config import QUANTISERS, TernaryConfig
from triloop.ternary.convert import ternarise

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "gsm8k"
TIME, ROWS, RATE, WARM = 128, 8, 5e-3, 20
BYTES = 50_000
LAYERS, HEADS = 2, 4
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t at 97.5 % for this many seeds."""
WIDTHS: Mapping[str, int] = {"1": 96, "1.58": 80, "2": 72, "3": 64, "4": 56, "16": 32}
"""Width for each number of bits; the inner width takes up the rest of the bytes."""
SAME = ("absmean", "absmedian", "statistics", "twn", "dead-zone", "dual", "paretoq-1.58", "binary")
"""Of equal updates: all per channel."""
STORED = {"1": 1.0, "1.58": 1.6, "2": 2.0, "3": 3.0, "4": 4.0, "16": 16.0}
"""Bits in a file; ternary codes lie five to a byte."""

CLAIMS = (
    ("Tequila's dead-zone bias beats absmean (S013)", "same: dead-zone", "same: absmean"),
    ("statistics with isometry scale beat absmean (S002)", "same: statistics", "same: absmean"),
    ("ternary beats binary at equal updates (S002)", "same: statistics", "same: binary"),
    ("trained scale and shift beat fixed ones of the same codes (S091)", "same: dual", "same: twn"),
    ("stretched elastic ternary beats absmean (S023)", "same: paretoq-1.58", "same: absmean"),
    ("the mean beats the median as scale (S096)", "same: absmean", "same: absmedian"),
    ("full precision beats the best ternary at equal parameters (S160)", "same: full precision", "same: best ternary"),
    ("1.58 bits beat 4 at equal bytes (S023)", "bytes: 1.58", "bytes: 4"),
    ("2 bits beat 4 at equal bytes (S023)", "bytes: 2", "bytes: 4"),
    ("3 bits beat 4 at equal bytes (S023)", "bytes: 3", "bytes: 4"),
    ("1.58 bits beat 1 at equal bytes (S023)", "bytes: 1.58", "bytes: 1"),
    ("1.58 bits beat 16 at equal bytes, from a checkpoint (S079)", "bytes: 1.58", "bytes: 16"),
    ("1.58 bits beat 16 at equal bytes, from scratch (S079)", "bytes: 1.58 from scratch", "bytes: 16"),
)
"""(what is claimed, the lower loss, the higher loss)."""


# -------------------------------------------------------------------- text and shapes


def text() -> tuple[Tensor, list[Tensor], int]:
    """Characters to learn from, held-out documents, and how many different characters there are."""

    def read(name: str) -> list[str]:
        with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
            return [f"{row['question']}\n{row['answer']}\n\n" for row in map(json.loads, file)]

    learn, judge = read("train_2000.jsonl.gz"), read("test_500.jsonl.gz")[:200]
    known = sorted(set("".join(learn)))
    number = {c: i for i, c in enumerate(known)}
    rare = number[" "]  # a character that training never saw
    encode = [torch.tensor([number.get(c, rare) for c in document[: TIME + 1]]) for document in judge]
    return torch.tensor([number[c] for c in "".join(learn)]), [d for d in encode if len(d) == TIME + 1], len(known)


def shape(bits: str, vocabulary: int) -> DecoderConfig:
    """The decoder of ``BYTES`` bytes whose linears take this many bits."""
    width = WIDTHS[bits]
    spent = 2 * (vocabulary * width + (2 * LAYERS + 1) * width)
    each = STORED[bits] / 8  # bytes of a code; the layer has 5 width + 2 inner outputs with a scale
    scale = 0 if bits == "16" else 2
    inner = round(((BYTES - spent) / LAYERS - 4 * width**2 * each - 5 * width * scale) / (3 * width * each + 2 * scale))
    return DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_layers=LAYERS,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=width // HEADS,
        max_positions=TIME,
    )


def size(decoder: Decoder, bits: str) -> tuple[int, int]:
    """(bytes, parameters in the linears); a scale for each output is 2 bytes."""
    inner = [p for n, p in decoder.named_parameters() if n.startswith("layers.") and p.ndim == 2]
    rest = sum(p.numel() for n, p in decoder.named_parameters() if not (n.startswith("layers.") and p.ndim == 2))
    scales = 0 if bits == "16" else sum(len(p) for p in inner)
    count = sum(p.numel() for p in inner)
    return math.ceil(count * STORED[bits] / 8) + 2 * (rest + scales), count


# -------------------------------------------------------------------- training


def batches(learn: Tensor, seed: int, first: int, count: int) -> Tensor:
    """Updates ``first`` to ``first + count`` of a seed: [count, rows, time + 1]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    at = torch.randint(0, len(learn) - TIME, (first + count, ROWS), generator=generator)[first:]
    return learn[at[..., None] + torch.arange(TIME + 1)]


def train(decoder: Decoder, data: Tensor, *, falling: bool, warm: int = 0) -> None:
    """One update for each batch; a new optimiser, as a run that starts from a checkpoint has."""
    optimiser = torch.optim.AdamW(decoder.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    for step, batch in enumerate(data):
        rate = RATE * (1 - step / len(data)) if falling else RATE * min(1.0, (step + 1) / max(warm, 1))
        for group in optimiser.param_groups:
            group["lr"] = rate
        logits = decoder.logits_padded(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)


@torch.no_grad()
def judge(decoder: Decoder, documents: Sequence[Tensor]) -> float:
    """Mean loss in nats per character."""
    total = 0.0
    for i in range(0, len(documents), 50):
        batch = torch.stack(list(documents[i : i + 50]))
        logits = decoder.logits_padded(batch[:, :-1])
        total += float(F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())) * len(batch)
    return total / len(documents)


# -------------------------------------------------------------------- the runs


class Run:
    """One seed's runs: what they share is trained once."""

    def __init__(self, seed: int, pretrain: int, tune: int) -> None:
        self.seed = seed
        self.learn, self.documents, self.vocabulary = text()
        data = batches(self.learn, seed, 0, pretrain + tune)
        self.early, self.late = data[:pretrain], data[pretrain:]
        self.loss: dict[str, float] = {}
        self.facts: dict[str, dict[str, float]] = {}

    def checkpoint(self, bits: str) -> Decoder:
        decoder = Decoder(shape(bits, self.vocabulary)).initialise(self.seed, std=0.05)
        train(decoder, self.early, falling=False, warm=WARM)
        return decoder

    def tune(self, name: str, start: Decoder, config: TernaryConfig | None, bits: str = "") -> None:
        began = time.process_time()
        decoder = copy.deepcopy(start)
        facts: dict[str, float] = {}
        if bits:
            facts["bytes"], facts["parameters"] = size(decoder, bits)
        if config is not None:
            ternarise(decoder, config)
            facts["before"] = judge(decoder, self.documents)
        train(decoder, self.late, falling=True)
        self.loss[name] = judge(decoder, self.documents)
        if config is not None:
            facts["moved"] = moved(decoder, start)
        self.facts[name] = {**facts, "seconds": time.process_time() - began}
        print(self.seed, name, round(self.loss[name], 4), self.facts[name], flush=True)

    def everything(self) -> None:
        for bits in WIDTHS:
            start = self.checkpoint(bits)
            config = None if bits == "16" else TernaryConfig(quantiser=f"paretoq-{bits}")
            self.tune(f"bytes: {bits}", start, config, bits)
            if bits == "1.58":
                self.equal_updates(start)
                self.from_scratch()

    def equal_updates(self, start: Decoder) -> None:
        self.tune("same: full precision", start, None)
        for name in SAME:
            self.tune(f"same: {name}", start, TernaryConfig(quantiser=name, granularity="channel"))
        ternary = [f"same: {n}" for n in SAME if len(QUANTISERS[n].codes) == 3]
        self.loss["same: best ternary"] = min(self.loss[n] for n in ternary)

    def from_scratch(self) -> None:
        decoder = Decoder(shape("1.58", self.vocabulary)).initialise(self.seed, std=0.05)
        ternarise(decoder, TernaryConfig(granularity="channel"))
        train(decoder, self.early, falling=False, warm=WARM)
        train(decoder, self.late, falling=True)
        self.loss["bytes: 1.58 from scratch"] = judge(decoder, self.documents)
        print(self.seed, "from scratch", self.loss["bytes: 1.58 from scratch"], flush=True)


# -------------------------------------------------------------------- the page


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of Student's t."""
    n, mean = len(values), sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1)) / math.sqrt(n)
    return mean, mean - T_95[n] * spread, mean + T_95[n] * spread


def verdicts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    found = []
    for claim, low, high in CLAIMS:
        mean, below, above = interval([r.loss[low] - r.loss[high] for r in runs])
        verdict = "holds" if above < 0 else "contradicted" if below > 0 else "undecided"
        found.append({"claim": claim, "difference": mean, "low": below, "high": above, "verdict": verdict})
    return found


def rows(runs: Sequence[Run], kind: str) -> list[dict[str, Any]]:
    found = []
    for name in (n for n in runs[0].loss if n.startswith(kind)):
        mean, low, high = interval([r.loss[name] for r in runs])
        facts = {k: sum(r.facts[name][k] for r in runs) / len(runs) for k in runs[0].facts.get(name, {})}
        found.append({"name": name.removeprefix(kind), "loss": mean, "low": low, "high": high, **facts})
    return sorted(found, key=lambda row: row["loss"])


def number(row: Mapping[str, Any], key: str, form: str) -> str:
    return format(row[key], form) if key in row else ""


def write(out: Path, runs: Sequence[Run], options: argparse.Namespace) -> None:
    """The two files."""
    out.mkdir(parents=True, exist_ok=True)
    known = describe_machine(1, torch.float32, torch.device("cpu"))
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{known['processor']}, {known['cpu_capability']}, one thread; torch {known['torch']}",
        "seeds": options.seeds,
        "pretrain": options.pretrain,
        "tune": options.tune,
        "cpu_seconds": time.process_time(),
        "claims": verdicts(runs),
        "same": rows(runs, "same: "),
        "bytes": rows(runs, "bytes: "),
        "losses": {str(r.seed): r.loss for r in runs},
    }
    (out / "quantisers.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / "quantisers.md").write_text("\n".join(page(facts)) + "\n")


def page(facts: Mapping[str, Any]) -> list[str]:
    lines = [
        "# Weight quantisers",
        "",
        "Written by `python proofs/quantisers.py`, whose text says what is measured and by which rule.",
        "",
        f"- date: {facts['date']}",
        f"- machine: {facts['machine']}",
        f"- seeds {facts['seeds']}, {facts['pretrain']} updates in full precision and {facts['tune']} quantised, of "
        f"{ROWS * TIME:,} characters; {facts['cpu_seconds']:.0f} CPU seconds in all",
        "- loss: nats per character of 200 held-out documents' beginnings; intervals: Student's t over seeds, 95 %",
        "",
        "| claim | difference of losses | 95 % | verdict |",
        "| --- | ---: | --- | --- |",
    ]
    lines += [
        f"| {c['claim']} | {c['difference']:+.4f} | {c['low']:+.4f} to {c['high']:+.4f} | {c['verdict']} |"
        for c in facts["claims"]
    ]
    lines += ["", "## Equal updates, one checkpoint, per channel", ""]
    lines += ["| quantiser | loss | 95 % | before tuning | weights moved |", "| --- | ---: | --- | ---: | ---: |"]
    for r in facts["same"]:
        more = f"{number(r, 'before', '.3f')} | {number(r, 'moved', '.3f')}"
        lines.append(f"| {r['name']} | {r['loss']:.4f} | {r['low']:.4f} to {r['high']:.4f} | {more} |")
    lines += ["", "## Equal bytes", ""]
    lines += [
        "| bits | loss | 95 % | bytes | parameters in linears | before tuning | weights moved |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for r in facts["bytes"]:
        more = f"{number(r, 'bytes', ',.0f')} | {number(r, 'parameters', ',.0f')}"
        more += f" | {number(r, 'before', '.3f')} | {number(r, 'moved', '.3f')}"
        lines.append(f"| {r['name']} | {r['loss']:.4f} | {r['low']:.4f} to {r['high']:.4f} | {more} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pretrain", type=int, default=450)
    parser.add_argument("--tune", type=int, default=150)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "proof")
    options = parser.parse_args()
    set_threads(1)
    runs = [Run(seed, options.pretrain, options.tune) for seed in options.seeds]
    for run in runs:
        run.everything()
    write(options.out, runs, options)


if __name__ == "__main__":
    main()
