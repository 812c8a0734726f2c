"""LoRA adapters on disk in PEFT's form: adapter_config.json and adapter_model.safetensors.

PEFT knows one A and one B per Hugging Face module. Writing splits the rows of a fused B and repeats A. Reading stacks
the modules' own A's and puts their B's on a block diagonal, which is exact for any adapter at the sum of their ranks,
and falls back to the shared A where the A's are equal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from triloop.errors import ModelError, StoreError
from triloop.nn.decoder import Decoder
from triloop.nn.hf_names import linear_parts
from triloop.nn.lora import LoraLinear, lora_modules
from triloop.nn.shards import Shards
from triloop.nn.tokenizer import read_json

__all__ = ["load_adapter", "save_adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_UNSUPPORTED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")


def save_adapter(path: str | Path, decoder: Decoder, *, base: str) -> None:
    """Write the adapters of ``decoder`` so that ``PeftModel.from_pretrained(base_model, path)`` computes the same.

    ``base`` is the path or name of the base model, recorded in adapter_config.json. Raises ModelError when the decoder
    has no adapters or adapters of different ranks, StoreError when the disk cannot take it.
    """
    adapters = lora_modules(decoder)
    if not adapters:
        raise ModelError("the decoder has no LoRA adapters; call add_lora first, or save the whole model")
    shapes = {(m.rank, m.alpha) for m in adapters.values()}
    if len(shapes) > 1:
        raise ModelError(f"adapters differ in (rank, alpha): {sorted(shapes)}; merge them and save the whole model")
    ((rank, alpha),) = shapes
    parts = linear_parts(decoder.config)
    tensors: dict[str, Tensor] = {}
    for name, module in adapters.items():
        layer, linear = name.rsplit(".", 1)
        rows = module.lora_b.detach().split([size for _, size in parts[linear]])
        for (theirs, _), b in zip(parts[linear], rows, strict=True):
            tensors[f"{_prefix(layer, theirs)}.lora_A.weight"] = module.lora_a.detach().cpu().clone()
            tensors[f"{_prefix(layer, theirs)}.lora_B.weight"] = b.cpu().clone()
    used = {n.rsplit(".", 1)[1] for n in adapters}
    modules = sorted(m.rsplit(".", 1)[1] for linear in used for m, _ in parts[linear])
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(_config(rank, alpha, modules, base), indent=2, sort_keys=True) + "\n")
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"cannot write the adapter to {folder}: {error}. Free space or choose another place."
        ) from error


def load_adapter(decoder: Decoder, path: str | Path) -> dict[str, LoraLinear]:
    """Put a PEFT adapter onto ``decoder`` in place, frozen base included; the adapters by name.

    Raises ModelError for an adapter of another kind, for another architecture or shape, or a damaged file.
    """
    folder = Path(path)
    config = read_json(folder / CONFIG)
    odd = [k for k in _UNSUPPORTED if config.get(k)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or odd:
        what = ", ".join(f"{k}={config[k]!r}" for k in ("peft_type", "bias", *odd) if k in config)
        raise ModelError(
            f"{folder / CONFIG}: only plain LoRA without biases can be read, got {what}. Merge it with PEFT."
        )
    if lora_modules(decoder):
        raise ModelError("the decoder already has LoRA adapters; merge_lora them first")
    shards = Shards(folder, only=WEIGHTS)
    left = set(shards.names)
    scale = float(config["lora_alpha"]) / int(config["r"])
    decoder.requires_grad_(False)
    for i in range(decoder.config.num_layers):
        for linear, modules in linear_parts(decoder.config).items():
            found = [_pair(shards, _prefix(f"layers.{i}", m), left) for m, _ in modules]
            if any(pair is not None for pair in found):
                _install(decoder, f"layers.{i}.{linear}", found, [rows for _, rows in modules], scale)
    if left or not lora_modules(decoder):
        raise ModelError(
            f"{folder / WEIGHTS}: not for this decoder: {', '.join(sorted(left)[:4]) or 'no adapter tensors'}."
        )
    return lora_modules(decoder)


def _prefix(layer: str, module: str) -> str:
    return f"base_model.model.model.{layer}.{module}"


def _config(rank: int, alpha: float, modules: list[str], base: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _pair(shards: Shards, prefix: str, left: set[str]) -> tuple[Tensor, Tensor] | None:
    names = [f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"]
    if not left.issuperset(names):
        return None
    left.difference_update(names)
    a, b = (shards.read(n).clone() for n in names)
    return a, b


def _install(
    decoder: Decoder, name: str, found: list[tuple[Tensor, Tensor] | None], rows: list[int], scale: float
) -> None:
    base = decoder.get_submodule(name)
    assert isinstance(base, nn.Linear)
    pairs = [p for p in found if p is not None]
    for (a, b), size in ((p, r) for p, r in zip(found, rows, strict=True) if p is not None):
        if a.shape[1] != base.in_features or b.shape[0] != size or a.shape[0] != b.shape[1]:
            raise ModelError(f"adapter of {name}: A {list(a.shape)}, B {list(b.shape)} do not fit the base model.")
    shared = len(pairs) == len(found) and all(torch.equal(pairs[0][0], a) for a, _ in pairs)
    a = pairs[0][0] if shared else torch.cat([a for a, _ in pairs])
    b = torch.cat([b for _, b in pairs]) if shared else _block_diagonal(found, rows)
    module = LoraLinear(base, a.shape[0], scale * a.shape[0])
    module.lora_a.data.copy_(a)
    module.lora_b.data.copy_(b)
    decoder.set_submodule(name, module)


def _block_diagonal(found: list[tuple[Tensor, Tensor] | None], rows: list[int]) -> Tensor:
    """B of the stacked adapter: each module's B in its own rows and columns; no columns for modules without one."""
    return torch.block_diag(*[torch.zeros(size, 0) if p is None else p[1] for p, size in zip(found, rows, strict=True)])
