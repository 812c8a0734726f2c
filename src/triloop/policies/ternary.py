"""Ternary policies as directories: latent weights under their usual names, and how they are quantised beside them.

``config.json`` says under ``quantization_config`` what the layers' linears become; what a quantiser learns besides weights
lies in ``ternary.safetensors``. Other programs do not know that ``quant_method`` and refuse the directory rather than
compute with weights that are not the policy's: ``triloop export`` writes forms for them.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from triloop.errors import ConfigError, ModelError
from triloop.nn.decoder import Decoder
from triloop.nn.hf_config import LATENT
from triloop.nn.hf_io import load_pretrained, save_pretrained, tensors_sha256, weights_sha256, write_tensors
from triloop.nn.hf_names import hf_parts
from triloop.nn.lora import lora_modules
from triloop.nn.shards import Shards
from triloop.nn.tokenizer import Tokenizer
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import linears, ternarise
from triloop.ternary.head import Int8Head

__all__ = ["int8_headed", "load_directory", "save_directory", "sha256", "ternarised", "twin"]

EXTRA = "ternary.safetensors"
"""What a quantiser learns, extra norms and the place in a gradual schedule; absent where there is none of it."""

_KEY = "quantization_config"


def ternarised(decoder: Decoder, config: TernaryConfig) -> Decoder:
    """``decoder``, in place, with quantised linears in its layers and the head that is asked for; its config says so.

    Raises ConfigError for one that has adapters or is ternary already.
    """
    if lora_modules(decoder):
        raise ConfigError("a policy with LoRA adapters cannot become ternary; merge the adapters first (lora_rank 0)")
    if linears(decoder):
        raise ConfigError("this policy is ternary already; start from one in full precision, or leave the setting away")
    ternarise(decoder, dataclasses.replace(config, head="full"))
    _tell(decoder, {"quant_method": LATENT, **dataclasses.asdict(config), "head": "full"})
    return int8_headed(decoder) if config.head == "int8" else decoder


def int8_headed(decoder: Decoder) -> Decoder:
    """A ternary ``decoder``, in place, with an int8 output head; its config says so. One that has it stays as it is.

    Raises ConfigError for one that is not ternary, or that holds codes alone.
    """
    if isinstance(decoder.head, Int8Head):
        return decoder
    told = decoder.config.extra.get(_KEY)
    if not linears(decoder) or not isinstance(told, Mapping):
        raise ConfigError("an int8 head belongs to a ternary policy that learns; make the policy ternary as well")
    decoder.head = Int8Head(decoder.embed if decoder.head is None else decoder.head)
    _tell(decoder, {**told, "head": "int8"})
    return decoder


def _tell(decoder: Decoder, told: Mapping[str, Any]) -> None:
    # An extra that names no model_type would not be written.
    extra = {**decoder.config.extra, "model_type": decoder.config.model_type, _KEY: told}
    decoder.config = dataclasses.replace(decoder.config, extra=extra)


def twin(decoder: Decoder) -> Decoder:
    """A copy that shares nothing, with adapters' places and quantised linears as they are."""
    return copy.deepcopy(decoder)


def load_directory(path: str | Path) -> tuple[Decoder, Tokenizer]:
    """A Hugging Face directory, in full precision or of a ternary policy. Raises ModelError as ``load_pretrained`` does."""
    folder = Path(path)
    decoder, tokenizer = load_pretrained(folder, latent=True)
    told = decoder.config.extra.get(_KEY)
    if isinstance(told, Mapping):
        ternarised(decoder, _settings(told, folder / "config.json"))
        _read_extra(decoder, folder)
    return decoder, tokenizer


def save_directory(path: str | Path, decoder: Decoder, tokenizer: Tokenizer) -> None:
    """Write ``decoder`` so that ``load_directory`` gives it back. Raises StoreError when the disk cannot take it."""
    folder = Path(path)
    save_pretrained(folder, decoder, tokenizer)
    more = _extra(decoder)
    if more:
        write_tensors(folder / EXTRA, more)
    else:
        (folder / EXTRA).unlink(missing_ok=True)


def sha256(decoder: Decoder) -> str:
    """Of all that a policy computes with: the weights, and what its quantisers learn."""
    more, weights = _extra(decoder), weights_sha256(decoder)
    return hashlib.sha256(f"{weights} {tensors_sha256(more)}".encode()).hexdigest() if more else weights


def _extra(decoder: Decoder) -> dict[str, Tensor]:
    usual = {part.param for part in hf_parts(decoder.config).values()}
    return {
        f"{name}.{key}": tensor.detach()
        for name, linear in linears(decoder).items()
        for key, tensor in linear.state_dict().items()
        if f"{name}.{key}" not in usual
    }


def _settings(told: Mapping[str, Any], where: Path) -> TernaryConfig:
    known = {f.name for f in dataclasses.fields(TernaryConfig)}
    given = {k: v for k, v in told.items() if k != "quant_method"}
    strange = sorted(set(given) - known)
    if strange:
        raise ModelError(
            f"{where}: {_KEY} has {', '.join(strange)}, which this version does not know; install a newer one"
        )
    try:
        return TernaryConfig(**given)
    except (ConfigError, TypeError) as error:
        raise ModelError(f"{where}: {_KEY}: {error}") from error


def _read_extra(decoder: Decoder, folder: Path) -> None:
    wanted, path = _extra(decoder), folder / EXTRA
    if not wanted:
        return
    if not path.is_file():
        raise ModelError(
            f"{path} is missing: it holds what the quantiser learned ({len(wanted)} tensors). Copy it again."
        )
    shards, state = Shards(folder, only=EXTRA), decoder.state_dict()
    if shards.names != set(wanted):
        other = sorted(shards.names ^ set(wanted))
        raise ModelError(
            f"{path}: {other[0]} does not fit config.json's {_KEY}. The files belong to different policies."
        )
    for name, target in wanted.items():
        tensor = shards.read(name)
        if tensor.shape != target.shape or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ModelError(
                f"{path}: {name} is {tuple(tensor.shape)} of {tensor.dtype}; expected {math.prod(target.shape)} finite "
                f"numbers of shape {tuple(target.shape)}. Copy the file again."
            )
        state[name].copy_(tensor)
