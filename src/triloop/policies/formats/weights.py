"""What a decoder computes with, apart from how a file names and packs it: dense tensors and quantised linears."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from triloop.errors import ModelError
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.hf_io import tensors_sha256
from triloop.nn.hf_names import Part, hf_parts
from triloop.nn.lora import effective_state
from triloop.policies.formats.fixed import FixedHead, FixedLinear, QuantisedLinear, fixed_linears
from triloop.ternary.convert import linears
from triloop.ternary.head import Int8Head
from triloop.ternary.linear import TernaryLinear
from triloop.ternary.quantisers import Quantised

__all__ = ["HEAD", "Weights", "fixed_sha256", "plain_decoder", "rows_of", "weights_of"]

LINEARS = ("qkv", "out", "gate_up", "down")
HEAD = "head.weight"
"""The output head's parameter, where it is not the embedding's."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A decoder's weights. ``linears`` are those that are quantised, by our name (``layers.0.qkv``)."""

    config: DecoderConfig
    """With biases where a quantiser needs them."""
    state: Mapping[str, Tensor]
    """All other parameters by our name; adapters merged."""
    linears: Mapping[str, QuantisedLinear]
    head: Quantised | None = None
    """An int8 output head, a scale for each row. ``config`` says untied then: it is another matrix than the embedding."""

    @property
    def activations(self) -> str:
        """How inputs of the quantised linears are quantised: one word, or several with commas; none without any."""
        return ", ".join(sorted({linear.activations for linear in self.linears.values()})) or "none"

    def parts(self) -> dict[str, Part]:
        """Every Hugging Face tensor and the rows of the parameter that it is."""
        return hf_parts(self.config)

    def quantised(self, part: Part) -> Quantised | None:
        """The rows of a quantised weight; None where ``part`` is of another kind."""
        name, _, kind = part.param.rpartition(".")
        linear = self.linears.get(name)
        return rows_of(linear.weight, part.start, part.shape[0]) if linear is not None and kind == "weight" else None

    def dense(self, part: Part) -> Tensor:
        """The tensor itself; of a quantised weight, what its codes stand for. Biases that are missing are zeros."""
        found = self.quantised(part)
        if found is not None:
            return found.dense()
        if self.head is not None and part.param == HEAD:
            return self.head.dense()
        name, _, kind = part.param.rpartition(".")
        rows = slice(part.start, part.start + part.shape[0])
        linear = self.linears.get(name)
        if linear is not None:
            return torch.zeros(part.shape) if linear.bias is None else linear.bias[rows]
        if part.param not in self.state and kind == "bias":
            return torch.zeros(part.shape)
        return self.state[part.param][rows]


def plain_decoder(weights: Weights) -> Decoder:
    """A decoder of plain linears whose weights are what the codes stand for; activations are not quantised any more.

    Raises ModelError for linears with a norm of their own.
    """
    normed = next((name for name, linear in weights.linears.items() if linear.norm is not None), None)
    if normed is not None:
        raise ModelError(
            f"{normed} has an RMS norm of its own before the product (TernaryConfig(norm=True)), for which plain "
            "linears have no place. Export --format packed, or train without it."
        )
    dtype = weights.state["embed.weight"].dtype
    decoder = Decoder(weights.config).to(dtype)
    with torch.no_grad():
        own = dict(decoder.named_parameters())
        for part in weights.parts().values():
            own[part.param][part.start : part.start + part.shape[0]] = weights.dense(part).to(dtype)
    return decoder


def fixed_sha256(decoder: Decoder) -> str:
    """SHA-256 over names, shapes and bytes of all that a decoder read from packed weights computes with."""
    weights, digest = weights_of(decoder), hashlib.sha256()
    found: dict[str, tuple[Tensor | None, ...]] = {}
    for name, linear in weights.linears.items():
        w, x = linear.weight, (linear.input_scale, linear.input_zero)
        found[name] = (w.codes, w.scale, w.shift, linear.bias, linear.norm, *x)
    if weights.head is not None:
        found["head"] = (weights.head.codes, weights.head.scale)
    for name, tensors in found.items():
        for tensor in tensors:
            digest.update(f"{name}:{None if tensor is None else tuple(tensor.shape)}\n".encode())
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().data)
    digest.update(tensors_sha256(weights.state).encode())
    return digest.hexdigest()


def rows_of(weight: Quantised, start: int, count: int) -> Quantised:
    """``count`` outputs of a quantised weight from ``start`` on; a scale for all stays one for all."""
    rows = slice(start, start + count)

    def cut(number: Tensor | None) -> Tensor | None:
        return number if number is None or number.shape[0] == 1 else number[rows]

    scale = cut(weight.scale)
    assert scale is not None
    return Quantised(codes=weight.codes[rows], scale=scale, shift=cut(weight.shift), group=weight.group)


def weights_of(decoder: Decoder) -> Weights:
    """The weights with which ``decoder`` samples, on the CPU and without gradients.

    Raises ModelError where a layer is still on its way from full precision, and where something else than the linears of
    the layers was quantised.
    """
    found: dict[str, TernaryLinear | FixedLinear] = {**linears(decoder), **fixed_linears(decoder)}
    other = [name for name in found if name.rpartition(".")[2] not in LINEARS or not name.startswith("layers.")]
    if other:
        raise ModelError(
            f"{', '.join(other[:3])}: only the linears of the layers can be written quantised; embeddings and the "
            "output head stay in full precision. Convert with the default names."
        )
    with torch.no_grad():
        quantised = {name: _quantised(name, linear) for name, linear in found.items()}
        head = _head(decoder)
    own = tuple(f"{name}." for name in (*found, *(["head"] if head else [])))
    state = {k: v.detach().cpu() for k, v in effective_state(decoder).items() if not k.startswith(own)}
    config = _written(decoder.config, quantised)
    config = config if head is None else replace(config, tie_embeddings=False)
    return Weights(config=config, state=state, linears=quantised, head=head)


def _head(decoder: Decoder) -> Quantised | None:
    if isinstance(decoder.head, FixedHead):
        return decoder.head.quantised
    if isinstance(decoder.head, Int8Head):
        codes, scale = decoder.head.codes()
        return Quantised(codes=codes.cpu(), scale=scale.cpu()[:, None])
    return None


def _quantised(name: str, linear: TernaryLinear | FixedLinear) -> QuantisedLinear:
    if isinstance(linear, FixedLinear):
        return linear.linear
    if linear.share < 1:
        raise ModelError(
            f"{name} stands at {linear.share:.3g} of its gradual schedule, so its weight is not of codes yet; train on "
            "to the end of the schedule, then export."
        )
    weight, scale = linear.quantised(), _plain(linear.quantised().scale)
    assert scale is not None
    return QuantisedLinear(
        weight=Quantised(codes=weight.codes.cpu(), scale=scale, shift=_plain(weight.shift), group=weight.group),
        bias=_plain(linear.fused_bias()),
        activations=linear.config.activations,
        activation_bits=linear.config.activation_bits,
        input_scale=_plain(linear.input_scale),
        input_zero=_plain(linear.input_zero),
        norm=_plain(linear.norm_weight),
        norm_eps=linear.config.norm_eps,
    )


def _plain(number: Tensor | None) -> Tensor | None:
    return None if number is None else number.detach().float().cpu().clone()


def _written(config: DecoderConfig, quantised: Mapping[str, QuantisedLinear]) -> DecoderConfig:
    # What a ternary policy's own directory says of its latent weights is not true of what is written here.
    extra = {key: value for key, value in config.extra.items() if key != "quantization_config"}
    biased = {name.rpartition(".")[2] for name, linear in quantised.items() if linear.bias is not None}
    return replace(
        config,
        extra=extra,
        qkv_bias=config.qkv_bias or "qkv" in biased,
        out_bias=config.out_bias or "out" in biased,
        mlp_bias=config.mlp_bias or bool(biased & {"gate_up", "down"}),
    )
