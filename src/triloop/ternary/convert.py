"""Networks into ternary ones and back, in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from triloop.errors import ConfigError
from triloop.ternary.activations import elastic_start
from triloop.ternary.attention import SplitAttention
from triloop.ternary.config import TernaryConfig
from triloop.ternary.linear import TernaryLinear

__all__ = ["NormedLinear", "calibrate", "dense", "linears", "set_blend", "ternarise"]

LAYERS = ("layers.*", "*.layers.*")
"""What is converted unless said otherwise: everything in the layers; embeddings, output head and value head are not."""


def ternarise(module: nn.Module, config: TernaryConfig, names: Sequence[str] = LAYERS) -> dict[str, TernaryLinear]:
    """Every ``nn.Linear`` of ``module`` whose name fits one of ``names`` becomes a TernaryLinear, in place; those by name.

    ``names`` are patterns with ``*`` over the names of ``named_modules``: ``("*",)`` takes all. Weights and biases stay
    the same parameters, so optimisers and ties live on; what is new (learned scales, norms) an optimiser must be given.
    ``nn.MultiheadAttention`` with a fitting name is split into ``in_proj`` and ``out_proj`` first. A module that stands in
    several places is converted once and stands in all of them. Raises ConfigError where nothing fits.
    """
    if isinstance(module, nn.Linear | nn.MultiheadAttention):
        raise ConfigError(
            f"a lone {type(module).__name__} has no parent to be replaced in; use TernaryLinear.of(linear, config)"
        )
    if config.head != "full":
        raise ConfigError(
            f"head {config.head} is of a policy's output head; use triloop.policies.ternary.ternarised, or put "
            "triloop.ternary.head.Int8Head in its place"
        )
    _split(module, names)
    found = _plain(module)
    chosen = {name: linear for name, linear in found.items() if _fits(name, names)}
    if not chosen:
        have = ", ".join([*found][:6]) or "none"
        raise ConfigError(
            f"no linear fits the names {tuple(names)}; this network has: {have}. Give patterns such as '*'."
        )
    made: dict[int, TernaryLinear] = {}
    for name, linear in chosen.items():
        if id(linear) not in made:
            made[id(linear)] = TernaryLinear.of(linear, config).train(linear.training)
        module.set_submodule(name, made[id(linear)])
    return {name: made[id(linear)] for name, linear in chosen.items()}


def _fits(name: str, names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in names)


def _plain(module: nn.Module) -> dict[str, nn.Linear]:
    """Linears by name, every name of one that stands in several places; those inside torch's attention are its own."""
    inside = tuple(f"{n}." for n, m in module.named_modules() if isinstance(m, nn.MultiheadAttention))
    return {
        name: m
        for name, m in module.named_modules(remove_duplicate=False)
        if isinstance(m, nn.Linear) and not name.startswith(inside)
    }


def _split(module: nn.Module, names: Sequence[str]) -> None:
    made: dict[int, SplitAttention] = {}
    for name, part in list(module.named_modules(remove_duplicate=False)):
        if isinstance(part, nn.MultiheadAttention) and (_fits(name, names) or _fits(f"{name}.out_proj", names)):
            if id(part) not in made:
                made[id(part)] = SplitAttention(part).train(part.training)
            module.set_submodule(name, made[id(part)])


def linears(module: nn.Module) -> dict[str, TernaryLinear]:
    """The converted linears by name, in order; empty when there are none."""
    return {name: m for name, m in module.named_modules() if isinstance(m, TernaryLinear)}


# -------------------------------------------------------------------- back


class NormedLinear(nn.Module):
    """A plain linear behind the RMS norm that a conversion had put before it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, norm_weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.norm_weight = nn.Parameter(norm_weight)
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """norm(x) weight^T + bias."""
        normed = F.rms_norm(x.float(), self.norm_weight.shape, self.norm_weight.float(), self.eps)
        return F.linear(normed.to(x.dtype), self.weight, self.bias)


def dense(module: nn.Module) -> nn.Module:
    """Each TernaryLinear becomes a plain linear that holds the dequantised weight and the fused bias; ``module``.

    Without quantised activations the answers stay the same to rounding; int8 or elastic ones are read exactly from then
    on. An extra norm stays, in a NormedLinear. Parts of a gradual schedule on the way stand where they are.
    """
    made: dict[int, nn.Module] = {}
    with torch.no_grad():
        for name, part in list(module.named_modules(remove_duplicate=False)):
            if isinstance(part, TernaryLinear):
                made.setdefault(id(part), _plain_of(part))
                module.set_submodule(name, made[id(part)])
    return module


def _plain_of(part: TernaryLinear) -> nn.Module:
    quantised, share, like = part.quantised(), part.share, part.weight
    weight = torch.lerp(like.float(), quantised.dense(), share).to(like.dtype)
    extra = None if quantised.bias is None else quantised.bias * share
    biases = [b.float() for b in (part.bias, extra) if b is not None]
    bias = sum(biases[1:], biases[0]).to(like.dtype) if biases else None
    if part.norm_weight is not None:
        return NormedLinear(weight, bias, part.norm_weight.detach().clone(), part.config.norm_eps)
    plain = nn.Linear(part.in_features, part.out_features, bias=bias is not None, device="meta")
    plain.weight = nn.Parameter(weight)
    if bias is not None:
        plain.bias = nn.Parameter(bias)
    return plain


# -------------------------------------------------------------------- while training


def set_blend(module: nn.Module, share: float | Mapping[str, float]) -> None:
    """Set how much of each gradual layer is quantised: one number from 0 to 1 for all, or one for each by name.

    Raises ConfigError for a number outside, for a name without a number and where nothing is gradual.
    """
    gradual = {name: m.blend for name, m in linears(module).items() if m.blend is not None}
    if not gradual:
        raise ConfigError("no layer here moves gradually; convert with TernaryConfig(gradual=True)")
    for name, blend in gradual.items():
        if isinstance(share, Mapping) and name not in share:
            raise ConfigError(f"no share for layer {name}; give one for each of {', '.join([*gradual][:4])}, ...")
        value = share[name] if isinstance(share, Mapping) else share
        if not 0 <= value <= 1:
            raise ConfigError(f"share {value} of {name} is not between 0 (as it was) and 1 (quantised)")
        blend.fill_(value)


@torch.no_grad()
def calibrate(module: nn.Module, run: Callable[[], Any]) -> None:
    """Start the scales of elastic activations at 2 mean |x| / sqrt(largest code) of what ``run()`` shows each layer."""
    layers = [m for m in linears(module).values() if m.input_scale is not None]
    if not layers:
        raise ConfigError("no layer here has elastic activations; convert with TernaryConfig(activations='elastic')")
    sizes: dict[int, list[float]] = {id(m): [] for m in layers}

    def look(part: nn.Module, seen: tuple[Any, ...]) -> None:
        assert isinstance(part, TernaryLinear)
        sizes[id(part)].append(float(part.normed(seen[0].reshape(-1, part.in_features)).abs().mean()))

    hooks = [m.register_forward_pre_hook(look) for m in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for m in layers:
        if sizes[id(m)] and m.input_scale is not None:
            mean = sum(sizes[id(m)]) / len(sizes[id(m)])
            m.input_scale.fill_(elastic_start(mean, m.config.activation_bits))
