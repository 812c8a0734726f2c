"""Rotary position embedding (Su et al., arXiv:2104.09864) with the published length extensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from triloop.errors import ModelError

__all__ = ["rope_frequencies", "rotate"]


def rope_frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None, max_positions: int
) -> tuple[Float[Tensor, " half"], float]:
    """Inverse frequencies [head_dim / 2] in radians per position, and the factor that multiplies cos and sin.

    ``scaling`` is the ``rope_scaling`` entry of a Hugging Face config: types ``default``, ``linear`` (arXiv:2306.15595),
    ``llama3`` (Llama 3.1 model code) and ``yarn`` (arXiv:2309.00071).
    """
    inverse = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    kind = str((scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default")
    if scaling is None or kind == "default":
        return inverse, 1.0
    factor = float(scaling.get("factor", 1.0))
    original = int(scaling.get("original_max_position_embeddings") or max_positions)
    if kind == "linear":
        return inverse / factor, 1.0
    if kind == "llama3":
        return _llama3(inverse, factor, original, scaling), 1.0
    if kind == "yarn":
        return _yarn(inverse, head_dim, theta, factor, original, scaling)
    raise ModelError(
        f"rope type {kind!r} is not supported; use one of default, linear, llama3, yarn, or the hf backend"
    )


def _llama3(inverse: Tensor, factor: float, original: int, scaling: Mapping[str, Any]) -> Tensor:
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    wavelength = 2 * math.pi / inverse
    smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * inverse / factor + smooth * inverse


def _yarn(
    inverse: Tensor, head_dim: int, theta: float, factor: float, original: int, scaling: Mapping[str, Any]
) -> tuple[Tensor, float]:
    fast, slow = float(scaling.get("beta_fast") or 32), float(scaling.get("beta_slow") or 1)

    def dimension(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(fast), dimension(slow)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return inverse / factor * ramp + inverse * (1 - ramp), _yarn_temperature(factor, scaling)


def _yarn_temperature(factor: float, scaling: Mapping[str, Any]) -> float:
    """sqrt(1/t) of YaRN eq. 22: 0.1 ln(factor) + 1, or the ratio of two such terms where ``mscale`` names both."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def term(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return term(float(scaling["mscale"])) / term(float(scaling["mscale_all_dim"]))
    return term(1.0)


def rotate(
    x: Float[Tensor, "*batch heads dim"], cos: Float[Tensor, "*batch 1 dim"], sin: Float[Tensor, "*batch 1 dim"]
) -> Float[Tensor, "*batch heads dim"]:
    """Rotate pairs (i, i + dim/2), the convention of Hugging Face weights; ``sin`` carries the sign of the first half."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return torch.addcmul(x * cos, swapped, sin)
