"""Does training in few bits work between real processes? Loss against bits sent, two workers over gloo, three seeds.

    python proofs/comms.py [--seeds 0 1 2] [--steps 200]

Two processes with PyTorch's DistributedDataParallel train a 0.06M decoder on solved problems of chained arithmetic, each on
its own batches, with the hooks of ``triloop.comms``. Writes docs/proof/comms.md, comms.json and comms.svg. The rule: every
scheme ends at a lower held-out loss than fp32 does with the same bits, in every seed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from triloop import rng
from triloop.atlas import lab
from triloop.comms.compressors import BestTernary, TopK
from triloop.comms.group import join
from triloop.comms.hooks import attach
from triloop.comms.schemes import EF21, Direct, Scheme, TernGrad
from triloop.envs.arithmetic import Arithmetic
from triloop.envs.charset import CHARS
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.report.svg import Chart, Line, draw

ROOT = Path(__file__).resolve().parents[1]
ARMS: dict[str, Scheme] = {
    "fp32": Direct(),
    "TernGrad": TernGrad(),
    "EF21, top 2 %": EF21(compressor=TopK(share=0.02)),
    "EF21, ternary": EF21(compressor=BestTernary()),
}
WORKERS, BATCH, LR = 2, 32, 3e-3
SHAPE = DecoderConfig(
    vocab_size=64, hidden_size=48, intermediate_size=128, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=24
)


def sentences(n: int, *, seed: int, start: int = 0) -> Tensor:
    """Problems of chained arithmetic with their solutions as character ids [n time], 0 beyond the end."""
    env = Arithmetic()
    asked = lab.prompts(env, n, seed=seed, start=start)
    texts = [p.text + env.right_answer(p) + "." for p in asked]
    ids = torch.zeros(len(texts), 48, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor([CHARS.index(c) + 1 for c in text])
    return ids[:, : int((ids != 0).sum(dim=1).max())]


class Words(torch.nn.Module):
    """A decoder whose forward is the loss, so that DDP sees the whole of it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.decoder = Decoder(SHAPE).initialise(seed)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Nats a character."""
        logits = self.decoder.logits_padded(ids[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)


@torch.no_grad()
def held_out(model: torch.nn.Module, test: torch.Tensor) -> float:
    return float(model(test))


def once(arm: str, seed: int, steps: int, group: Any) -> dict[str, Any]:
    """One training run, as one of its workers."""
    data, test = sentences(4096, seed=seed), sentences(256, seed=seed, start=500_000)
    model = DistributedDataParallel(Words(seed))
    link = attach(model, ARMS[arm], group, seed=seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=LR)
    points, seconds = [[0, 0, held_out(model.module, test)]], 0.0
    for step in range(steps):
        began = time.perf_counter()
        picked = rng.generator(seed, "batch", group.rank, step).integers(0, len(data), BATCH)
        with group.guarded(f"training {arm}, step {step}"):
            model(data[torch.from_numpy(picked)]).backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds += time.perf_counter() - began
        if step in (0, 1, 3, 7, 11) or (step + 1) % 20 == 0 or step + 1 == steps:
            points.append([step + 1, link.bits, held_out(model.module, test)])
    return {"arm": arm, "seed": seed, "points": points, "ms_a_step": round(1e3 * seconds / steps, 1)}


def worker(args: argparse.Namespace) -> None:
    """One of the processes: all arms and seeds, one after the other."""
    torch.set_num_threads(1)
    group = join(timeout=120, init_method=args.meeting, rank=args.rank, size=WORKERS)
    runs = []
    for seed in args.seeds:
        for arm in ARMS:
            runs.append(once(arm, seed, args.steps, group))
            if group.rank == 0:
                print(arm, seed, runs[-1]["points"][-1], f"{runs[-1]['ms_a_step']} ms a step", flush=True)
    if group.rank == 0:
        Path(args.result).write_text(json.dumps(runs))
    group.close()


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Starts both processes and waits for what they find."""
    with tempfile.TemporaryDirectory() as folder:
        common = [sys.executable, __file__, "--steps", str(args.steps), "--seeds", *map(str, args.seeds)]
        common += ["--meeting", f"file://{folder}/meeting", "--result", f"{folder}/runs.json"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        both = [subprocess.Popen([*common, "--rank", str(r)], env=env) for r in range(WORKERS)]
        codes = [p.wait() for p in both]
        if any(codes):
            raise SystemExit(f"the workers ended with {codes}")
        return json.loads(Path(folder, "runs.json").read_text())


def at_bits(points: Sequence[Sequence[float]], bits: float) -> float:
    """The loss of the last measurement at which no more bits were sent."""
    return next(loss for _, sent, loss in reversed(points) if sent <= bits)


def mean_and_half(values: Sequence[float]) -> str:
    """With the half width of the 95 % t-interval; three seeds."""
    t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values), 1.96)
    half = t * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.4f} ± {half:.4f}"


COLOURS = ("#1f6feb", "#c2410c", "#15803d", "#7e22ce")


def plot(runs: Sequence[dict[str, Any]]) -> str:
    """Mean held-out loss against log10 of the bits that a worker has sent, with the range of the seeds."""
    lines = []
    for tone, arm in enumerate(ARMS, start=1):
        mine = [r["points"][1:] for r in runs if r["arm"] == arm]  # nothing is sent before the first
        at = list(zip(*mine, strict=True))
        xs = [math.log10(p[0][1]) for p in at]
        losses = [[q[2] for q in p] for p in at]
        lines.append(
            Line(
                label=arm,
                points=[(x, statistics.fmean(v)) for x, v in zip(xs, losses, strict=True)],
                tone=tone,
                band=[(x, min(v), max(v)) for x, v in zip(xs, losses, strict=True)],
            )
        )
    svg = draw(Chart(title="held-out nats a character against log10 bits sent", lines=lines, size=(720.0, 360.0)))
    style = "".join(
        f".curve.t{i}{{stroke:{c};fill:none;stroke-width:2}}.band.t{i}{{fill:{c};opacity:.2}}.hover.t{i}{{fill:transparent}}"
        for i, c in enumerate(COLOURS, start=1)
    )
    style += "text{font:11px sans-serif;fill:#666}.rule,.zero{stroke:#ccc;stroke-width:.5}"
    legend = "".join(
        f'<text x="700" y="{30 + 16 * i}" text-anchor="end" style="fill:{COLOURS[i]};font-size:13px">{arm}</text>'
        for i, arm in enumerate(ARMS)
    )
    legend += '<text x="360" y="338" text-anchor="middle">log10 of the bits that each worker has sent</text>'
    legend += '<text x="8" y="12">held-out nats a character</text>'
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace("round ", "log10 bits ")
    head, _, rest = svg.partition(">")
    return f'{head}><style>{style}</style><rect width="720" height="360" fill="#fff"/>{legend}{rest}\n'


def page(facts: dict[str, Any]) -> str:
    """The results as Markdown."""
    runs, steps = facts["runs"], facts["steps"]
    lines = [
        "# Training in few bits",
        "",
        f"Made by `python proofs/comms.py` on {facts['date']}, {facts['machine']}. Two processes over gloo, one thread "
        f"each; 0.06M decoder, chained arithmetic character by character, {BATCH} sentences a worker, {steps} steps of "
        f"Adam at {LR:g}; seeds {', '.join(map(str, facts['seeds']))}, 95 % t-intervals.",
        "",
        "![held-out loss against bits sent](comms.svg)",
        "",
        "| scheme | bits a parameter and step | megabits a worker | held-out nats a character | fp32 with as many bits "
        "| ms a step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    full = {r["seed"]: r["points"] for r in runs if r["arm"] == "fp32"}
    n = full[facts["seeds"][0]][-1][1] / steps / 32
    for arm in ARMS:
        mine = [r for r in runs if r["arm"] == arm]
        bits = mine[0]["points"][-1][1]
        ends = [r["points"][-1][2] for r in mine]
        equal = [at_bits(full[r["seed"]], bits) for r in mine]
        shown = "–" if arm == "fp32" else mean_and_half(equal)
        speed = statistics.fmean(r["ms_a_step"] for r in mine)
        lines.append(
            f"| {arm} | {bits / steps / n:.2f} | {bits / 1e6:.1f} | {mean_and_half(ends)} | {shown} | {speed:.0f} |"
        )
    lines += [
        "",
        "Bits are those of a worker's own messages and of the scales that it offers, counted once. On one machine the "
        "wire costs nothing, so what a step takes is what packing costs; the bits are what a slow network would carry.",
        "",
        "A worker that is killed ends the other one within two time-outs and four seconds, with the lost one's rank: "
        "`tests/comms/test_hooks.py`, which does it to real processes.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "proof")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meeting", help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        worker(args)
        return 0
    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "steps": args.steps,
        "seeds": args.seeds,
        "runs": measured(args),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "comms.json").write_text(json.dumps(facts) + "\n")
    (args.out / "comms.svg").write_text(plot(facts["runs"]))
    (args.out / "comms.md").write_text(page(facts))
    full = {r["seed"]: r["points"] for r in facts["runs"] if r["arm"] == "fp32"}
    others = [r for r in facts["runs"] if r["arm"] != "fp32"]
    return int(any(r["points"][-1][2] >= at_bits(full[r["seed"]], r["points"][-1][1]) for r in others))


if __name__ == "__main__":
    raise SystemExit(main())
