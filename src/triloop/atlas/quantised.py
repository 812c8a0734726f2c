"""Rows on how weights become ternary: S013 Tequila, S014 an extra norm, S091 trained scale and shift, S002 statistics.

All start from a decoder of characters in full precision and go on with quantised weights while the rate falls to nothing.
"""

from __future__ import annotations

import copy

import torch

from triloop.atlas import text_lab as lab
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.nn.decoder import Decoder
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import dense, linears

__all__ = ["NORMED", "QUANTISED", "TEQUILA", "apart", "escaped"]

WIDTH = 64
_LOSS = "held-out loss, nats per character"


# ------------------------------------------------------------------ S013

BEFORE, TUNED = 300, 120
"""Updates in full precision, and with quantised weights."""


def escaped(before: Decoder, after: Decoder) -> float:
    """Share of the weights of code 0 before that have another code after."""
    zero = left = 0
    for name, part in linears(before).items():
        inside = part.quantised().codes == 0
        zero += int(inside.sum())
        left += int((inside & (linears(after)[name].quantised().codes != 0)).sum())
    return left / max(1, zero)


def apart(first: Decoder, second: Decoder) -> float:
    """Largest difference of two decoders' logits on held-out windows, as a share of the largest logit."""
    windows = lab.text().held[:20, :-1]
    a, b = first.logits_padded(windows).detach(), second.logits_padded(windows).detach()
    return float((a - b).abs().max() / a.abs().max())
