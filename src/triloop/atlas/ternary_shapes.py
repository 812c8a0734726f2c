"""Rows on ternary networks of other shapes than a decoder's: S096 perceptrons, encoders, encoder-decoders; S006 two towers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triloop import rng
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import linears, ternarise

__all__ = ["accuracy", "documents", "fitted", "made", "means", "reversed_text", "transposed", "walks"]


def transposed(found: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Records of seeds -> lists by name."""
    return {name: [f[name] for f in found] for name in found[0]}


def means(by: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Their means, for a row's facts."""
    return {name: float(f"{statistics.fmean(values):.4g}") for name, values in by.items()}


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


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of labels, -100 aside, whose logit is the largest."""
    asked = labels != -100
    return float((logits.argmax(dim=-1) == labels)[asked].double().mean())


# ------------------------------------------------------------------ three tasks

WORDS, TOPICS, LENGTH = 400, 20, 24


def documents(seed: int, n: int, part: str) -> tuple[Tensor, Tensor]:
    """Texts of ``LENGTH`` words of one topic each, as counts of words [n WORDS], and their topics [n]."""
    g = rng.generator(seed, "topics")
    topics = g.dirichlet([0.1] * WORDS, TOPICS) * 0.35 + g.dirichlet([1.0] * WORDS) * 0.65
    g = rng.generator(seed, "documents", part)
    labels = g.integers(0, TOPICS, n)
    counts = np.stack([g.multinomial(LENGTH, topics[t]) for t in labels])
    return torch.from_numpy(counts).float(), torch.from_numpy(labels).long()


LETTERS, SPAN, MASK = 12, 12, 12


def walks(seed: int, n: int, part: str) -> tuple[Tensor, Tensor]:
    """Texts of a language in which four letters may follow each, [n SPAN] with an eighth masked; labels -100 elsewhere."""
    g = rng.generator(seed, "language")
    after = np.stack([g.permutation(LETTERS)[:4] for _ in range(LETTERS)])
    g = rng.generator(seed, "walks", part)
    text = np.empty((n, SPAN), dtype=np.int64)
    text[:, 0] = g.integers(0, LETTERS, n)
    for t in range(1, SPAN):
        text[:, t] = after[text[:, t - 1], g.choice(4, n, p=[0.55, 0.25, 0.15, 0.05])]
    hidden = g.random((n, SPAN)) < 0.125
    hidden[np.arange(n), g.integers(1, SPAN - 1, n)] = True
    shown = np.where(hidden, MASK, text)
    return torch.from_numpy(shown), torch.from_numpy(np.where(hidden, text, -100))


PHRASE, START = 6, 12


def reversed_text(seed: int, n: int, part: str) -> tuple[Tensor, Tensor]:
    """Random letters [n PHRASE], and the same backwards through a cipher, [n PHRASE + 1] behind a start."""
    cipher = rng.generator(seed, "cipher").permutation(LETTERS)
    source = rng.generator(seed, "phrases", part).integers(0, LETTERS, (n, PHRASE))
    target = np.concatenate([np.full((n, 1), START), cipher[source[:, ::-1]]], axis=1)
    return torch.from_numpy(source), torch.from_numpy(target)


# ------------------------------------------------------------------ three shapes


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.LayerNorm(WORDS), nn.Linear(WORDS, width), nn.ReLU(), nn.LayerNorm(width), nn.Linear(width, width)]
        self.body = nn.Sequential(*layers, nn.ReLU(), nn.LayerNorm(width))
        self.head = nn.Linear(width, TOPICS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _layer(kind: Any, width: int) -> Any:
    return kind(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)


class _Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(LETTERS + 1, width), nn.Parameter(torch.randn(SPAN, width))
        self.body = nn.TransformerEncoder(
            _layer(nn.TransformerEncoderLayer, width), 1, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, LETTERS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x) + self.place))


class _Translator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(LETTERS + 1, width)
        self.place, self.said = (nn.Parameter(torch.randn(PHRASE, width)) for _ in range(2))
        self.body = nn.ModuleDict(
            {
                "read": _layer(nn.TransformerEncoderLayer, width),
                "between": nn.LayerNorm(width),
                "write": _layer(nn.TransformerDecoderLayer, width),
                "end": nn.LayerNorm(width),
            }
        )
        self.head = nn.Linear(width, LETTERS)

    def forward(self, source: Tensor, said: Tensor) -> Tensor:
        read = self.body["between"](self.body["read"](self.embed(source) + self.place))
        ahead = torch.ones(PHRASE, PHRASE, dtype=torch.bool).triu(1)
        x = self.body["write"](self.embed(said) + self.said, read, tgt_mask=ahead)
        return self.head(self.body["end"](x))
