"""transformers' BitNet directories as policies: codes and scales as they are, which sample and score and do not learn.

Each linear of a layer is a ``BitLinear`` there, with a scale of its own; ours hold queries, keys and values in one matrix,
and gate and up in another: their rows get the scale of the part that they come from. See ``bitnet`` for the form.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from triloop.errors import ModelError
from triloop.nn.decoder import Decoder
from triloop.nn.hf_config import config_from_hf
from triloop.nn.hf_io import assembled
from triloop.nn.hf_names import hf_parts
from triloop.nn.shards import Shards
from triloop.nn.tokenizer import Tokenizer, read_json
from triloop.policies.formats.fixed import FixedLinear, QuantisedLinear
from triloop.policies.formats.weights import LINEARS
from triloop.ternary.quantisers import Quantised

__all__ = ["from_quarters", "is_bitnet", "load_bitnet"]

_KEY, _SCALE = "quantization_config", "_scale"
_SETTINGS = {"linear_class": "bitlinear", "quantization_mode": "offline", "use_rms_norm": False}
"""What is read, and what a directory that does not say means."""


def is_bitnet(path: str | Path) -> bool:
    """Whether ``path`` is a directory whose config.json names BitNet's quantisation."""
    config = Path(path) / "config.json"
    how = read_json(config).get(_KEY) if config.is_file() else None
    return isinstance(how, Mapping) and how.get("quant_method") == "bitnet"


def from_quarters(packed: UInt8[Tensor, "quarter in"]) -> Int8[Tensor, "out in"]:
    """The codes of rows that ``bitnet.two_bits`` packed; 2 where the bits hold a 3, which is no code."""
    return torch.cat([(packed >> 2 * i & 3) for i in range(4)]).to(torch.int8) - 1


def load_bitnet(path: str | Path) -> tuple[Decoder, Tokenizer]:
    """The policy of such a directory; its linears are ``FixedLinear``.

    Raises ModelError, naming file and tensor, for other kinds of BitLinear and for what ``load_pretrained`` refuses.
    """
    folder = Path(path)
    where = folder / "config.json"
    raw = read_json(where)
    _check_settings(raw[_KEY], where)
    config = config_from_hf({k: v for k, v in raw.items() if k != _KEY}, where=str(where))
    tensors = _Unpacked(Shards(folder))
    decoder, tokenizer = assembled(folder, config, tensors, torch.float32)
    scales: dict[str, list[Tensor]] = {}
    for name, part in hf_parts(decoder.config).items():
        if part.param.split(".")[-2] in LINEARS and part.param.endswith(".weight"):
            scales.setdefault(part.param, []).append(tensors.scale(name).expand(part.shape[0]))
    for param, rows in scales.items():
        _fix(decoder, param.rpartition(".")[0], torch.cat(rows))
    return decoder.requires_grad_(False), tokenizer


def _check_settings(how: Mapping[str, Any], where: Path) -> None:
    for key, read in _SETTINGS.items():
        if how.get(key, read) != read:
            raise ModelError(
                f"{where}: {_KEY} has {key} {how[key]!r}; packed weights of BitLinear are read, with {key} {read!r}. Use "
                "--backend transformers, which runs any of its kinds."
            )


def _fix(decoder: Decoder, name: str, scale: Float[Tensor, " out"]) -> None:
    linear = decoder.get_submodule(name)
    weight, bias = linear.weight, linear.bias
    assert isinstance(weight, Tensor)
    same = bool((scale == scale[0]).all())
    codes = Quantised(codes=weight.detach().to(torch.int8), scale=scale[:1].view(1, 1) if same else scale.view(-1, 1))
    own = bias.detach().clone() if isinstance(bias, Tensor) else None
    decoder.set_submodule(name, FixedLinear(QuantisedLinear(weight=codes, bias=own)))


class _Unpacked:
    """The tensors of a directory with packed weights as their codes, in fp32, and without their scales."""

    def __init__(self, shards: Shards) -> None:
        self.shards, self.label = shards, shards.label
        self.names = {n for n in shards.names if not (n.endswith(_SCALE) and n.removesuffix(_SCALE) in shards.names)}

    def file(self, name: str) -> Path:
        return self.shards.file(name)

    def read(self, name: str) -> Tensor:
        tensor = self.shards.read(name)
        if tensor.dtype != torch.uint8 or tensor.ndim != 2:
            return tensor
        codes = from_quarters(tensor)
        if codes.numel() and int(codes.max()) > 1:
            raise ModelError(
                f"{self.file(name)}: tensor {name} holds the digit 3, which is no code. Copy the file again."
            )
        return codes.float()

    def scale(self, name: str) -> Float[Tensor, " 1"]:
        """What a code of the packed weight ``name`` counts: transformers stores the inverse."""
        key = name + _SCALE
        if key not in self.shards.names or self.shards.read(name).dtype != torch.uint8:
            raise ModelError(
                f"{self.file(name)}: {name} is not packed with a scale beside it, while config.json says that it is "
                "BitNet's. All linears of the layers must be."
            )
        inverse = self.shards.read(key)
        if inverse.numel() != 1 or not inverse.is_floating_point() or not 0 < float(inverse) < float("inf"):
            raise ModelError(f"{self.file(key)}: tensor {key} is {inverse}, expected one positive number")
        return 1 / inverse.float().reshape(1)
