"""Rows on ternary networks of other shapes than a decoder's: S096; and what such rows share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triloop import rng
from triloop.atlas.frame import Context, Contrast, Measured, Row, means, transposed
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import ternarise

__all__ = [
    "ENOUGH",
    "SHAPES",
    "Data",
    "accuracy",
    "batches",
    "block",
    "documents",
    "fitted",
    "made",
    "reversed_text",
    "walks",
]

Data = tuple[Tensor, ...]
"""What a network is shown, and as the last one what it is to answer; -100 where nothing is asked."""


def made(seed: int, build: Callable[[], nn.Module], quantiser: str | None = None) -> nn.Module:
    """A network of its own random weights; with a quantiser every linear but ``head`` is ternary from the first step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    if quantiser is not None:
        ternarise(model, TernaryConfig(quantiser=quantiser), ("body.*", "*.body.*"))
    return model


def fitted(model: nn.Module, loss: Callable[[nn.Module, int], Tensor], steps: int, lr: float) -> nn.Module:
    """``steps`` updates of AdamW on ``loss(model, step)``; the rate rises over a tenth of them and falls to 0."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    warm = max(1, steps // 10)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warm) * (1 - step / steps)
        optimiser.zero_grad()
        loss(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


def batches(data: Data, n: int, seed: int) -> Callable[[int], list[Tensor]]:
    """``n`` random rows for each step."""

    def batch(step: int) -> list[Tensor]:
        rows = torch.from_numpy(rng.generator(seed, "batch", step).integers(0, len(data[0]), n))
        return [d[rows] for d in data]

    return batch


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """The share of answers asked for whose logit is the largest."""
    labels = data[-1]
    asked = labels != -100
    return float((model(*data[:-1]).argmax(dim=-1) == labels)[asked].double().mean())


# ------------------------------------------------------------------ three tasks

WORDS, TOPICS, LENGTH = 400, 20, 24
LETTERS, MASK, SPAN = 12, 12, 12
START, PHRASE = 12, 6


def documents(seed: int, n: int, part: str) -> Data:
    """Texts of ``LENGTH`` words of one topic each, as counts of words [n WORDS], and their topics [n]."""
    g = rng.generator(seed, "topics")
    topics = 0.35 * g.dirichlet([0.1] * WORDS, TOPICS) + 0.65 * g.dirichlet([1.0] * WORDS)
    g = rng.generator(seed, "documents", part)
    labels = g.integers(0, TOPICS, n)
    counts = g.multinomial(LENGTH, topics[labels])
    return torch.from_numpy(counts).float(), torch.from_numpy(labels)


def walks(seed: int, n: int, part: str) -> Data:
    """Texts of a language in which four letters may follow each, [n SPAN], some masked; the letters under the masks."""
    g = rng.generator(seed, "language")
    after = np.stack([g.permutation(LETTERS)[:4] for _ in range(LETTERS)])
    g = rng.generator(seed, "walks", part)
    text = np.empty((n, SPAN), dtype=np.int64)
    text[:, 0] = g.integers(0, LETTERS, n)
    for t in range(1, SPAN):
        text[:, t] = after[text[:, t - 1], g.choice(4, n, p=[0.55, 0.25, 0.15, 0.05])]
    hidden = g.random((n, SPAN)) < 0.125
    hidden[np.arange(n), g.integers(1, SPAN - 1, n)] = True
    return torch.from_numpy(np.where(hidden, MASK, text)), torch.from_numpy(np.where(hidden, text, -100))


def reversed_text(seed: int, n: int, part: str) -> Data:
    """Random letters [n PHRASE]; what was said so far of, and the whole of, the same backwards through a cipher."""
    cipher = rng.generator(seed, "cipher").permutation(LETTERS)
    source = rng.generator(seed, "phrases", part).integers(0, LETTERS, (n, PHRASE))
    target = cipher[source[:, ::-1]]
    said = np.concatenate([np.full((n, 1), START), target[:, :-1]], axis=1)
    return tuple(torch.from_numpy(x) for x in (source, said, target))


# ------------------------------------------------------------------ three shapes


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first = (nn.LayerNorm(WORDS), nn.Linear(WORDS, width), nn.ReLU())
        self.body = nn.Sequential(*first, nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width))
        self.head = nn.Linear(width, TOPICS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def block(kind: Any, width: int) -> Any:
    """One of torch's transformer layers, norms first, without dropout."""
    return kind(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)


class _Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(LETTERS + 1, width), nn.Parameter(torch.randn(SPAN, width))
        self.body = nn.Sequential(block(nn.TransformerEncoderLayer, width), nn.LayerNorm(width))
        self.head = nn.Linear(width, LETTERS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x) + self.place))


class _Translator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(LETTERS + 1, width)
        self.read_at, self.write_at = (nn.Parameter(torch.randn(PHRASE, width)) for _ in range(2))
        encoder, decoder = block(nn.TransformerEncoderLayer, width), block(nn.TransformerDecoderLayer, width)
        self.body = nn.ModuleList([encoder, nn.LayerNorm(width), decoder, nn.LayerNorm(width)])
        self.head = nn.Linear(width, LETTERS)

    def forward(self, source: Tensor, said: Tensor) -> Tensor:
        encoder, between, decoder, end = self.body
        read = between(encoder(self.embed(source) + self.read_at))
        ahead = torch.ones(PHRASE, PHRASE, dtype=torch.bool).triu(1)
        return self.head(end(decoder(self.embed(said) + self.write_at, read, tgt_mask=ahead)))


@dataclass(frozen=True, kw_only=True)
class _Shape:
    build: Callable[[int], nn.Module]
    data: Callable[[int, int, str], Data]
    wide: int
    steps: int
    rate: float


SHAPES: Mapping[str, _Shape] = {
    "perceptron": _Shape(build=_Perceptron, data=documents, wide=128, steps=300, rate=3e-3),
    "encoder": _Shape(build=_Encoder, data=walks, wide=64, steps=300, rate=1e-2),
    "encoder-decoder": _Shape(build=_Translator, data=reversed_text, wide=64, steps=200, rate=1e-2),
}


# ------------------------------------------------------------------ S096

NARROW, TEXTS, ENOUGH_MARGIN = 8, 20_000, 0.02


def _learned(shape: _Shape, width: int, quantiser: str | None, data: tuple[Data, Data], seed: int, steps: int) -> float:
    """Held-out accuracy after training."""
    batch = batches(data[0], 64, seed)

    def loss(model: nn.Module, step: int) -> Tensor:
        *shown, labels = batch(step)
        return F.cross_entropy(model(*shown).flatten(0, -2), labels.flatten())

    model = made(seed, lambda: shape.build(width), quantiser)
    return accuracy(fitted(model, loss, steps, shape.rate), data[1])


def _enough(context: Context) -> Measured:
    found = list[dict[str, float]]()
    for seed in context.seeds:
        f, gaps = dict[str, float](), dict[str, list[float]]({"narrow": [], "wide": []})
        for name, shape in SHAPES.items():
            data = shape.data(seed, TEXTS, "train"), shape.data(seed, 4000, "held out")
            steps = context.scaled(shape.steps)
            for label, width in (("narrow", NARROW), ("wide", shape.wide)):
                full, few = (_learned(shape, width, q, data, seed, steps) for q in (None, "absmean"))
                f |= {f"{name} {label} fp32": full, f"{name} {label} absmean": few}
                gaps[label].append(full - few)
            if name == "perceptron":
                f[f"{name} wide absmedian"] = _learned(shape, shape.wide, "absmedian", data, seed, steps)
        found.append(f | {f"{label} gap": statistics.fmean(lost) for label, lost in gaps.items()})
    by = transposed(found)
    return Measured(
        baseline=[*(by[f"{name} wide fp32"] for name in SHAPES), by["narrow gap"]],
        treatment=[*(by[f"{name} wide absmean"] for name in SHAPES), by["wide gap"]],
        facts=means(by, digits=4),
    )


ENOUGH = Row(
    id="S096",
    claim="Trained with ternary weights and int8 activations from the first step, perceptrons, encoders and "
    "encoder-decoders come as far as in fp32 once they are wide enough; what they lose shrinks with width.",
    setup=f"topics of texts from counts of words (perceptron of two layers, {NARROW} and 128 wide), masked letters of a "
    f"Markov language (encoder of one layer, {NARROW} and 64), reversed text through a cipher (encoder-decoder of one "
    f"layer each, {NARROW} and 64); 200 to 300 updates of AdamW at one rate for both; embeddings and heads in fp32",
    core="triloop.ternary.convert.ternarise(model, TernaryConfig(quantiser='absmean'), names)",
    contrasts=(
        *(
            Contrast(
                metric=f"held-out accuracy, {name}, {shape.wide} wide",
                treatment="ternary",
                baseline="fp32",
                above=-ENOUGH_MARGIN,
                below=-ENOUGH_MARGIN,
            )
            for name, shape in SHAPES.items()
        ),
        Contrast(
            metric="accuracy lost to ternary weights, mean of the three",
            treatment="wide",
            baseline=f"{NARROW} wide",
            above=0.0,
            below=0.0,
            higher_is_better=False,
        ),
    ),
    run=_enough,
    seeds=(0, 1, 2, 3, 4),
    changed_after_first_look="Experiment: tasks made smaller and rates chosen (of 0.003 and 0.01, the better one of "
    "fp32) with seeds 100 to 103 (2026-11-21), since with 24 letters 200 to 400 steps taught the encoder nothing (accuracy "
    "0.23 in fp32). Seen in those looks: -0.001 to -0.006, -0.005 to -0.010 and 0.000 when wide, -0.02 to -0.41 when 8 "
    "wide. Rule: as first written.",
    parts=("ternary.convert", "ternary.attention"),
)
