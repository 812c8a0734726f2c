"""Weight quantisers as pure functions: a matrix -> integer codes, scales, and for some a shift or a bias.

    w_hat[o, i] = scale[o, g(i)] codes[o, i] + shift[o, g(i)],      y = w_hat x + bias

Everything is computed in fp32 whatever the weight's type. What shares a scale is a *cell*: the rules below see a matrix
[cells, n] whose rows are the cells; cutting a weight into cells and joining the answers is done once, for all of them.
How a gradient passes them is in ``triloop.ternary.gradients``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from triloop.errors import ConfigError
from triloop.ternary.config import TernaryConfig

__all__ = ["FLOOR", "Quantised", "clipping", "initial", "quantise", "spread", "steps"]

FLOOR = 1e-5
"""The smallest scale: a matrix of zeros must not divide by zero."""
HALF_MOST = 65_504.0
"""The largest number in half precision."""

Cells = tuple[Tensor, Tensor, Tensor | None]
"""Codes [cells, n] (whole numbers in fp32), scale [cells, 1], shift [cells, 1] or None."""


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A quantised weight."""

    codes: Int8[Tensor, "out in"]
    scale: Float[Tensor, "rows groups"]
    """rows: 1 or out. groups: 1, or one for every ``group`` inputs, the last of them maybe smaller."""
    shift: Float[Tensor, "rows groups"] | None = None
    bias: Float[Tensor, " out"] | None = None
    """What the weights of code 0 add to the output (Tequila)."""
    group: int = 0

    def dense(self) -> Float[Tensor, "out in"]:
        """The matrix that the codes stand for, in fp32."""
        columns = self.codes.shape[1]
        w = self.codes * spread(self.scale, self.group, columns)
        return w if self.shift is None else w.add_(spread(self.shift, self.group, columns))


def spread(number: Float[Tensor, "rows groups"], group: int, columns: int) -> Float[Tensor, "rows wide"]:
    """One number for each group -> one for each column, or one column where all share it."""
    return number if number.shape[1] == 1 else number.repeat_interleave(group, 1)[:, :columns]


def quantise(
    w: Float[Tensor, "out in"],
    config: TernaryConfig,
    learned: Mapping[str, Float[Tensor, "rows groups"]] = MappingProxyType({}),
) -> Quantised:
    """Codes and scales of ``w``. ``learned``: the trained numbers of quantisers that have some, as ``initial`` names them.

    Raises ConfigError when one is missing.
    """
    missing = [name for name in config.kind.learned if name not in learned]
    if missing:
        raise ConfigError(
            f"the quantiser {config.quantiser} learns {', '.join(missing)}, and got none; start from initial(w, config)"
        )
    w = w.detach().float()
    parts, group = _cut(w, config), config.group
    given = [_cut_numbers(learned[name].detach(), parts) for name in config.kind.learned]
    rule = _RULES[config.quantiser]
    done = [rule(part, *(g[i] for g in given)) for i, part in enumerate(parts)]
    codes = _join([d[0] for d in done], w).to(torch.int8)
    rows = 1 if config.shared_by == "tensor" else w.shape[0]
    shifts = [d[2] for d in done if d[2] is not None]
    scale = torch.cat([d[1].view(rows, -1) for d in done], 1)
    if config.activations == "int8-256":  # what llama.cpp reads from TQ1_0 and TQ2_0
        scale = scale.clamp(-HALF_MOST, HALF_MOST).half().float()
    return Quantised(
        codes=codes,
        scale=scale,
        shift=torch.cat([s.view(rows, -1) for s in shifts], 1) if shifts else None,
        bias=config.dead_zone * (w * (codes == 0)).sum(1) if config.kind.bias else None,
        group=group,
    )


def initial(w: Float[Tensor, "out in"], config: TernaryConfig) -> dict[str, Float[Tensor, "rows groups"]]:
    """Where the trained numbers start: the papers' statistics of ``w``. Empty for quantisers that learn none.

    dual: the scale of TWN around the mean, and the mean (arXiv:2406.07177). ParetoQ: mean |w| for 1 bit, max |w| for 1.58
    and 2, max |w| over the largest code for 3 and 4 (arXiv:2502.02631 and its published code).
    """
    w = w.detach().float()
    rows = 1 if config.shared_by == "tensor" else w.shape[0]
    found = [_start(part, config) for part in _cut(w, config)]
    return {name: torch.cat([f[name].view(rows, -1) for f in found], 1) for name in config.kind.learned}


def _start(cells: Tensor, config: TernaryConfig) -> dict[str, Tensor]:
    if config.quantiser == "dual":
        mean = cells.mean(1, keepdim=True)
        return {"scale": _twn(cells - mean)[1], "shift": mean}
    if not config.kind.learned:
        return {}
    largest = cells.abs().amax(1, keepdim=True)
    if config.quantiser == "paretoq-1":
        largest = cells.abs().mean(1, keepdim=True)
    elif config.quantiser in ("paretoq-3", "paretoq-4"):
        largest = largest / config.kind.codes[-1]
    return {"scale": largest.clamp_min(FLOOR)}


# -------------------------------------------------------------------- cells


def _cut(w: Tensor, config: TernaryConfig) -> list[Tensor]:
    """Matrices [cells, n]: one, or two where the last group of each row is smaller than the others."""
    if config.shared_by == "tensor":
        return [w.reshape(1, -1)]
    if config.shared_by == "channel":
        return [w]
    whole = w.shape[1] // config.group * config.group
    parts = [w[:, :whole].reshape(-1, config.group)] if whole else []
    return [*parts, w[:, whole:]] if whole < w.shape[1] else parts


def _cut_numbers(number: Tensor, parts: list[Tensor]) -> list[Tensor]:
    """One number for each cell, [cells, 1], cut as ``_cut`` cut the weight."""
    if len(parts) == 1:
        return [number.float().reshape(-1, 1)]
    return [number[:, :-1].float().reshape(-1, 1), number[:, -1:].float()]


def _join(parts: list[Tensor], like: Tensor) -> Tensor:
    rows = like.shape[0]
    return torch.cat([p.reshape(rows, -1) for p in parts], 1) if len(parts) > 1 else parts[0].reshape(like.shape)


# -------------------------------------------------------------------- rules


def _absmean(cells: Tensor) -> Cells:
    """codes = round(clip(w / s, -1, 1)), s = mean |w|; halves round to even (BitNet b1.58, arXiv:2402.17764 eq. 1-3)."""
    return _rounded(cells, cells.abs().mean(1, keepdim=True))


def _absmedian(cells: Tensor) -> Cells:
    """The same with s = median |w|, the lower one of an even number (Nielsen et al., arXiv:2411.05882)."""
    return _rounded(cells, cells.abs().median(1, keepdim=True).values)


def _statistics(cells: Tensor) -> Cells:
    """codes = round(clip((w - m) / s, -1, 1)), m = mean w, s = 4/3 mean |w - m| (Liu et al., arXiv:2306.01841 eq. 4-5).

    For weights spread evenly over [-a, a] s is 2a/3: each code takes a third of them, which is the most that a ternary code
    can tell, and codes * s keeps their magnitude, mean |s codes| = 4a/9 against a/2. The mean is not added back.
    """
    centred = cells - cells.mean(1, keepdim=True)
    return _rounded(centred, 4 / 3 * centred.abs().mean(1, keepdim=True))


def _rounded(cells: Tensor, scale: Tensor) -> Cells:
    scale = scale.clamp_min(FLOOR)
    return (cells / scale).round_().clamp_(-1, 1), scale, None


def _twn(cells: Tensor) -> Cells:
    """codes = sign(w) where |w| > 0.7 mean |w|; scale = mean |w| over those (Li et al., arXiv:1605.04711 eq. 5-6).

    The scale is the best one for these codes in the mean square; the threshold is near the best for normal weights.
    """
    size = cells.abs()
    kept = size > 0.7 * size.mean(1, keepdim=True)
    scale = (size * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(1)
    return cells.sign() * kept, scale.clamp_min(FLOOR), None


def _dead_zone(cells: Tensor) -> Cells:
    """codes = sign(w) where |w| >= s / 2, s = mean |w|: the rest is the dead zone (Tequila, arXiv:2509.23809)."""
    scale = cells.abs().mean(1, keepdim=True).clamp_min(FLOOR)
    return cells.sign() * (cells.abs() >= scale / 2), scale, None


def _dual(cells: Tensor, scale: Tensor, shift: Tensor) -> Cells:
    """Codes of TWN around the mean; scale and shift are trained (TernaryLLM, arXiv:2406.07177)."""
    return _twn(cells - cells.mean(1, keepdim=True))[0], scale, shift


def _binary(cells: Tensor) -> Cells:
    """codes = sign(w), 0 counting as positive; scale = mean |w|, the best one (XNOR-Net, arXiv:1603.05279 eq. 4-6)."""
    return _sign(cells), cells.abs().mean(1, keepdim=True).clamp_min(FLOOR), None


def _elastic_binary(cells: Tensor, scale: Tensor) -> Cells:
    """codes = sign(w), the scale trained (ParetoQ, arXiv:2502.02631, 1 bit)."""
    return _sign(cells), scale.clamp_min(FLOOR), None


def _stretched(name: str) -> Callable[[Tensor, Tensor], Cells]:
    """Stretched elastic quantisation: k levels that lie evenly around 0 and share [-a, a] equally (ParetoQ eq. 4).

        w_hat = a (round(clip(w / a, -0.99, 0.99) k / 2 - h) + h) / (k / 2),   h = 1/2 for even k, else 0

    For k = 3 the codes are -1, 0, 1 and the unit 2a/3; for k = 4 they are -3, -1, 1, 3 and the unit a/4.
    """
    shift, code_step = (0.0, 1.0) if name == "paretoq-1.58" else (0.5, 2.0)

    def rule(cells: Tensor, scale: Tensor) -> Cells:
        scale = scale.clamp_min(FLOOR)
        low, high = clipping(name)
        half = steps(name) / code_step
        codes = ((cells / scale).clamp_(low, high) * half - shift).round_().add_(shift).mul_(code_step)
        return codes, scale / steps(name), None

    return rule


def _learned_step(name: str) -> Callable[[Tensor, Tensor], Cells]:
    """codes = round(clip(w / s, -2^(b-1), 2^(b-1) - 1)), the step s trained (LSQ, arXiv:1902.08153 eq. 1-2)."""

    def rule(cells: Tensor, scale: Tensor) -> Cells:
        scale = scale.clamp_min(FLOOR)
        return (cells / scale).clamp_(*clipping(name)).round_(), scale, None

    return rule


def _sign(cells: Tensor) -> Tensor:
    return torch.where(cells >= 0, 1.0, -1.0)


def steps(name: str) -> float:
    """How many units of a code make the trained scale: unit = scale / steps."""
    return {"paretoq-1.58": 1.5, "paretoq-2": 4.0}.get(name, 1.0)


def clipping(name: str) -> tuple[float, float]:
    """Where w / scale is clipped, for quantisers with a trained scale; outside, a weight gets no gradient."""
    return {
        "paretoq-1": (-1.0, 1.0),
        "paretoq-1.58": (-0.99, 0.99),
        "paretoq-2": (-0.99, 0.99),
        "paretoq-3": (-4.0, 3.0),
        "paretoq-4": (-8.0, 7.0),
    }[name]


_RULES: Mapping[str, Callable[..., Cells]] = MappingProxyType(
    {
        "absmean": _absmean,
        "absmedian": _absmedian,
        "statistics": _statistics,
        "twn": _twn,
        "dead-zone": _dead_zone,
        "dual": _dual,
        "binary": _binary,
        "paretoq-1": _elastic_binary,
        "paretoq-1.58": _stretched("paretoq-1.58"),
        "paretoq-2": _stretched("paretoq-2"),
        "paretoq-3": _learned_step("paretoq-3"),
        "paretoq-4": _learned_step("paretoq-4"),
    }
)
