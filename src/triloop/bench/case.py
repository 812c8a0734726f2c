"""What a measurement is asked for, and how its answer is to be read. Standard library only: ``--help`` reads this."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from triloop.errors import UsageError
from triloop.ternary.config import HEADS, QUANTISERS

__all__ = ["DEFINITION", "GROUP", "NAMES", "POSITIONS", "PROMPT", "SIZES", "Case", "Name", "Size"]

Name = Literal["rollout", "train", "loop"]

NAMES = {
    "rollout": "--batch completions of --length new tokens, groups of 8 sharing a prompt of 8 tokens",
    "train": "one optimiser step on that many completions",
    "loop": "whole rounds on sums worked column by column: rollout, judge, learn, guards, store",
}

DEFINITION = """\
Weights are random and made on the fly; the end-of-sequence token is banned, so that every completion has its full length.
Figures are medians of the runs after one that is not counted. other_cores says how many cores other processes used
meanwhile: above 0.1 the figures are not clean.

products_seconds is the time of matrix products alone: of our own (fp32, kernels.panels) as measured in the runs, of
torch's by computing those of one run again in the same order at the same shapes. rest_seconds is everything else, attention
included, which has kernels of its own: what would remain, on the same cores, if products cost nothing. products_share is
their share of the measured seconds.

roofline_share is floor / measured seconds. The floor is the larger of two:
- products: matrix-product FLOPs of the work (prompts once a group, one decode step for every new token but the last,
  attention and output head counted, embeddings not, backward twice the forward pass) over the rate of the model's own qkv
  and MLP up-projections, weighted by their FLOPs, measured in the same run, precision and threads, at as many rows as the
  work has (the batch in decoding, the pass's tokens, at most 2048, in learning);
  With --ternary the rate of decoding is that of the packed kernels, for the output head as well, which they do not
  multiply; learning multiplies in full precision;
- memory: bytes of weights (two bits each where packed, a byte in an int8 head) and of keys and values, read and written
  once a step, over the read
  bandwidth measured in the same run on as many bytes as a step goes through (at most 256 MiB), so that what fits into a
  cache counts as cached."""

PROMPT = 8
"""Tokens of a prompt, but for the loop, whose prompts are problems."""
GROUP = 8
"""Completions of a prompt."""
POSITIONS = 4096
"""Longest sequence of the models."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The shape of a model: as many key-value heads as heads, tied embeddings."""

    hidden: int
    layers: int
    heads: int
    mlp: int


SIZES: dict[str, Size] = {
    "0.2m": Size(hidden=64, layers=4, heads=2, mlp=192),
    "1m": Size(hidden=128, layers=5, heads=4, mlp=384),
    "5m": Size(hidden=256, layers=6, heads=8, mlp=768),
    "30m": Size(hidden=512, layers=9, heads=8, mlp=1536),
    "100m": Size(hidden=768, layers=12, heads=12, mlp=2560),
    "700m": Size(hidden=1536, layers=24, heads=16, mlp=4096),
}
"""By number of parameters, roughly."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement. Raises UsageError for what cannot be measured."""

    name: str
    size: str = "1m"
    batch: int = 256
    """Completions in flight, in the step, or of a round."""
    length: int = 32
    """New tokens of each."""
    vocab: int = 64
    threads: int = 0
    """Processor threads; 0 is one or all cores, whichever multiplies faster at the moment."""
    precision: str = "auto"
    ternary: str = ""
    """A quantiser of the linears' weights; empty: full precision."""
    ternary_head: str = "full"
    """Of the output head: full or int8, with ``ternary`` only."""
    device: str = "cpu"
    repeats: int = 0
    """Runs after the one that is not counted; 0 is up to three, as many as about ten seconds allow."""

    def __post_init__(self) -> None:
        _known("benchmark", self.name, NAMES)
        _known("--size", self.size, SIZES)
        _known("--precision", self.precision, ("auto", "fp32", "bf16"))
        _known("--device", self.device, ("cpu", "cuda"))
        if self.ternary:
            _known("--ternary", self.ternary, [name for name, q in QUANTISERS.items() if q.packable])
        _known("--ternary-head", self.ternary_head, HEADS)
        if self.ternary_head != "full" and not self.ternary:
            raise UsageError(f"--ternary-head {self.ternary_head} is of ternary models; give --ternary as well")
        for name, low, high in (
            ("batch", 1, 1 << 20),
            ("length", 1, POSITIONS - PROMPT),
            ("vocab", 64, 1 << 18),
            ("threads", 0, 1024),
            ("repeats", 0, 10_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                why = f"; the models have {POSITIONS} positions, {PROMPT} for the prompt" if name == "length" else ""
                raise UsageError(f"--{name} is {value}; expected {low} to {high}{why}")
        if self.batch % self.group or (self.name != "rollout" and self.batch % GROUP):
            least = "" if self.name != "rollout" else f", or less than {GROUP}"
            raise UsageError(f"--batch is {self.batch}; expected a multiple of {GROUP}, the size of a group{least}")

    @property
    def group(self) -> int:
        """Completions of a prompt."""
        return min(GROUP, self.batch)

    @property
    def shape(self) -> Size:
        """Of the model."""
        return SIZES[self.size]


def _known(what: str, value: str, choices: Iterable[str]) -> None:
    names = list(choices)
    if value not in names:
        near = difflib.get_close_matches(value, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        said = f"{what} is {value!r}" if what.startswith("--") else f"no {what} {value!r}"
        raise UsageError(f"{said}; expected one of {', '.join(names)}{hint}")
