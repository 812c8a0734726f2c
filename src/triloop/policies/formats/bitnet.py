"""A ternary policy as transformers' BitNet: a Llama or Qwen directory whose linears are ``BitLinear``.

transformers keeps a weight as uint8 [out / 4, in]: row r holds the codes of rows r, r + out/4, r + out/2 and
r + 3 out/4, two bits each from the lowest, code + 1. It computes y = (codes x_q) / (s_x weight_scale) with
x_q = round(x s_x) in int8 per token by the largest magnitude, s_x = 127 / max(max |x|, 1e-5): our integer product, with
one scale for a matrix, of which it wants the inverse. Its output head is no BitLinear: an int8 head is written as the
numbers that its codes stand for, and reads inputs in full precision there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int8, UInt8
from torch import Tensor

from triloop.errors import ModelError
from triloop.nn.decoder import Decoder
from triloop.nn.hf_config import config_to_hf
from triloop.nn.hf_io import save_tensors
from triloop.nn.tokenizer import Tokenizer
from triloop.policies.formats.weights import Weights, weights_of
from triloop.ternary.quantisers import Quantised

__all__ = ["save_bitnet", "two_bits"]

ROWS = 4
"""Rows of a weight that share a row of bytes."""


def two_bits(codes: Int8[Tensor, "out in"]) -> UInt8[Tensor, "quarter in"]:
    """Codes -1, 0, 1 as transformers packs them; ``out`` is a multiple of 4."""
    quarters = (codes + 1).to(torch.uint8).view(ROWS, -1, codes.shape[1])
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def save_bitnet(path: str | Path, decoder: Decoder, tokenizer: Tokenizer) -> int:
    """Write a directory that transformers loads with int8 activations and the policy's codes; bytes of its tensors.

    Raises ModelError naming the linear and the reason where transformers' BitLinear could not compute the same.
    """
    weights = weights_of(decoder)
    if not weights.linears:
        raise ModelError(
            "the BitNet form holds codes of quantised linears, and this policy's are in full precision. Export "
            "--format hf, or train a ternary policy (triloop.ternary)."
        )
    for name, linear in weights.linears.items():
        if linear.activations != "int8":
            raise ModelError(
                f"{name} takes activations {linear.activations}, and BitLinear quantises them to int8 per token. "
                "Export --format hf or packed."
            )
        if linear.norm is not None:
            raise ModelError(f"{name} has an RMS norm of its own before the product; export --format packed")
    tensors: dict[str, Tensor] = {}
    for name, part in weights.parts().items():
        found = weights.quantised(part)
        if found is None:
            tensors[name] = weights.dense(part)
            continue
        _check(name, found)
        tensors[name] = two_bits(found.codes)
        tensors[f"{name}_scale"] = 1 / found.scale[:1, 0]
    save_tensors(path, tensors, _config(weights), tokenizer)
    return sum(t.nbytes for t in tensors.values())


def _check(name: str, weight: Quantised) -> None:
    if bool((weight.scale != weight.scale[0, 0]).any()):
        raise ModelError(
            f"{name} has {weight.scale.numel()} scales, and BitLinear one for a matrix. Export --format packed, or "
            "--format hf for plain linears; quantisers with granularity 'tensor' fit."
        )
    if weight.shift is not None:
        raise ModelError(
            f"{name} adds a shift to its codes (quantiser dual), for which BitLinear has no place; export packed"
        )
    if int(weight.codes.min()) < -1 or int(weight.codes.max()) > 1:
        raise ModelError(f"{name} has codes beyond -1, 0 and 1; export --format packed")
    if weight.codes.shape[0] % ROWS:
        raise ModelError(
            f"{name} has {weight.codes.shape[0]} outputs, no multiple of {ROWS}, which BitLinear packs together"
        )


def _config(weights: Weights) -> dict[str, Any]:
    return config_to_hf(weights.config) | {
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "bitlinear",
            "quantization_mode": "offline",
            "use_rms_norm": False,
            "modules_to_not_convert": ["lm_head"],
        }
    }
