"""Packed safetensors: a ternary policy in 1.6 bits a weight, exactly as it samples.

The format, version 1, is a directory:

``packed.json``
    ``format`` "triloop-packed", ``version`` 1, ``config`` (the words of a Hugging Face config.json), ``sha256`` of the
    tensor file, and ``linears``: for each quantised linear its ``shape`` [out, in], ``codes`` ("trits" or "int8"),
    ``group`` (inputs that share a scale, 0 when all do), ``activations`` (int8, int8-256, none, elastic),
    ``activation_bits`` and ``norm_eps``. Where the output head is int8, ``head``: its ``shape`` [vocab, hidden]; ``config``
    says untied then.
``packed.safetensors``
    For a linear NAME (``layers.3.qkv``: the rows of query, key and value heads; ``out``; ``gate_up``; ``down``)
    ``NAME.codes`` uint8 [out, ceil(in / 5)], five trits a byte as in ``triloop.kernels.trits`` (int8 [out, in] where a
    code is beyond -1, 0, 1), ``NAME.scale`` float32 [1 or out, groups], and where there are some ``NAME.shift`` of the
    same shape, ``NAME.bias`` [out], ``NAME.norm`` [in], ``NAME.input_scale`` and ``NAME.input_zero`` [1]. Of an int8
    head ``head.codes`` int8 [vocab, hidden], without -128, and ``head.scale`` float32 [vocab, 1]. All other parameters
    under their own names, float32 or float16.
the tokenizer's files
    As in a Hugging Face directory.

    y = sum_g scale[., g] (codes x_q)[g] + shift[., g] sum x_q[g] + bias,      x_q = quantised norm(x)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from triloop.errors import DataError, ModelError, StoreError, UsageError
from triloop.kernels.trits import from_trits, packed_length, to_trits
from triloop.nn.decoder import Decoder
from triloop.nn.hf_config import config_from_hf, config_to_hf
from triloop.nn.shards import Shards
from triloop.nn.tokenizer import Tokenizer, read_json
from triloop.policies.formats.fixed import FixedHead, FixedLinear, QuantisedLinear
from triloop.policies.formats.weights import HEAD, weights_of
from triloop.ternary.config import ACTIVATIONS
from triloop.ternary.quantisers import Quantised

__all__ = ["PackedReport", "is_packed", "load_packed", "save_packed"]

FORMAT, VERSION = "triloop-packed", 1
MANIFEST, TENSORS = "packed.json", "packed.safetensors"
_AGAIN = "The file is damaged or was changed; export the policy again or copy the whole directory."


@dataclass(frozen=True, kw_only=True)
class PackedReport:
    """What was written."""

    path: Path
    bytes: int
    """Size of the tensor file."""
    linear_bytes: int
    """Of the quantised linears: codes, scales, shifts and biases."""
    linear_weights: int

    @property
    def bits(self) -> float:
        """Bits of one weight of the quantised linears."""
        return 8 * self.linear_bytes / self.linear_weights


def is_packed(path: str | Path) -> bool:
    """Whether ``path`` is a directory of this format."""
    return (Path(path) / MANIFEST).is_file()


# -------------------------------------------------------------------- writing


def save_packed(
    path: str | Path, decoder: Decoder, tokenizer: Tokenizer, *, dense: torch.dtype = torch.float32
) -> PackedReport:
    """Write the policy into the folder ``path`` (made if absent), everything that is not quantised as ``dense``.

    Raises ModelError for a policy without quantised linears and where ``dense`` cannot hold a number, StoreError when the
    disk cannot take it. The manifest comes last: a directory without it is none of this format.
    """
    folder, weights = Path(path), weights_of(decoder)
    if not weights.linears:
        raise ModelError(
            "--format packed holds codes of quantised linears, and this policy's are in full precision. Export "
            "--format hf or gguf, or train a ternary policy (triloop.ternary)."
        )
    tensors = _dense(weights.state, dense)
    told: dict[str, dict[str, Any]] = {}
    size = 0
    for name, linear in weights.linears.items():
        own = _tensors(name, linear)
        told[name] = _told(linear)
        tensors |= own
        size += sum(t.nbytes for t in own.values())
    if weights.head is not None:
        tensors |= {"head.codes": weights.head.codes, "head.scale": weights.head.scale.contiguous()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / TENSORS, lambda temporary: save_file(tensors, temporary, metadata={"format": FORMAT}))
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "config": config_to_hf(weights.config),
            "sha256": _sha256(folder / TENSORS),
            "linears": told,
        }
        if weights.head is not None:
            manifest["head"] = {"shape": list(weights.head.codes.shape)}
        tokenizer.save(folder)
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        _replace(folder / MANIFEST, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write the model to {folder}: {error}. Free space or choose another place.") from error
    count = sum(linear.weight.codes.numel() for linear in weights.linears.values())
    written = (folder / TENSORS).stat().st_size
    return PackedReport(path=folder, bytes=written, linear_bytes=size, linear_weights=count)


def _dense(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    if dtype not in (torch.float32, torch.float16):
        raise UsageError(f"dense tensors as {dtype}; expected float32 or float16")
    made = {}
    for name, tensor in state.items():
        if name.startswith("value_head."):
            continue  # it does not sample
        made[name] = tensor.to(dtype).contiguous()
        if not bool(made[name].isfinite().all()):
            raise ModelError(f"{name} holds numbers beyond {dtype} ({tensor.abs().max():.3g}); write float32")
    return made


def _ternary(weight: Quantised) -> bool:
    return int(weight.codes.min()) >= -1 and int(weight.codes.max()) <= 1


def _told(linear: QuantisedLinear) -> dict[str, Any]:
    return {
        "shape": list(linear.weight.codes.shape),
        "codes": "trits" if _ternary(linear.weight) else "int8",
        "group": linear.weight.group,
        "activations": linear.activations,
        "activation_bits": linear.activation_bits,
        "norm_eps": linear.norm_eps,
    }


def _tensors(name: str, linear: QuantisedLinear) -> dict[str, Tensor]:
    weight = linear.weight
    found = {
        "codes": to_trits(weight.codes) if _ternary(weight) else weight.codes,
        "scale": weight.scale,
        "shift": weight.shift,
        "bias": linear.bias,
        "norm": linear.norm,
        "input_scale": linear.input_scale,
        "input_zero": linear.input_zero,
    }
    return {f"{name}.{part}": tensor.contiguous() for part, tensor in found.items() if tensor is not None}


def _replace(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -------------------------------------------------------------------- reading


def load_packed(path: str | Path) -> tuple[Decoder, Tokenizer]:
    """The policy as it sampled when it was written. Its linears are ``FixedLinear``: it cannot be trained.

    Raises ModelError naming file and tensor for anything that is not as the format says.
    """
    folder = Path(path)
    manifest = _manifest(folder)
    config = config_from_hf(manifest["config"], where=str(folder / MANIFEST))
    shards = Shards(folder, only=TENSORS)
    if _sha256(folder / TENSORS) != manifest["sha256"]:
        raise ModelError(
            f"{folder / TENSORS} is not the file that {MANIFEST} was written with (sha256 differs). {_AGAIN}"
        )
    reader = _Reader(folder, shards, manifest["linears"])
    decoder = Decoder.empty(config)
    expected = {n: tuple(p.shape) for n, p in decoder.named_parameters()}
    for name in manifest["linears"]:
        shape = expected.pop(f"{name}.weight", None)
        if shape is None:
            raise ModelError(f"{folder / MANIFEST}: the config has no linear {name}. {_AGAIN}")
        expected.pop(f"{name}.bias", None)
        decoder.set_submodule(name, FixedLinear(reader.linear(name, shape)))
    if "head" in manifest:
        decoder.head = FixedHead(reader.head(manifest["head"], expected.pop(HEAD, None)))
    decoder.load_state_dict({n: reader.dense(n, s) for n, s in expected.items()}, assign=True)
    reader.check_all_read()
    return decoder.requires_grad_(False), Tokenizer.from_directory(folder)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST)
    where = folder / MANIFEST
    if manifest.get("format") != FORMAT:
        raise ModelError(f"{where}: format is {manifest.get('format')!r}, expected {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise ModelError(
            f"{where}: version {manifest.get('version')!r} of the format; this program reads {VERSION}. Install a "
            "newer triloop, or export again."
        )
    for key, kind in (("config", dict), ("linears", dict), ("sha256", str)):
        if not isinstance(manifest.get(key), kind):
            raise ModelError(f"{where}: {key} is {manifest.get(key)!r}, expected a {kind.__name__}. {_AGAIN}")
    return manifest


class _Reader:
    """Tensors of the file, each checked and asked for once."""

    def __init__(self, folder: Path, shards: Shards, told: Mapping[str, Any]) -> None:
        self.where, self.shards, self.told = folder / TENSORS, shards, told
        self.left = set(shards.names)

    def dense(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._read(name, shape, (torch.float32, torch.float16)).float()

    def linear(self, name: str, shape: tuple[int, ...]) -> QuantisedLinear:
        told, rows = self._words(name, shape), shape[0]
        group = told["group"]
        groups = -(-shape[1] // group) if group else 1
        scale = self._numbers(f"{name}.scale", groups, rows)
        shift = self._numbers(f"{name}.shift", groups, rows) if f"{name}.shift" in self.left else None
        weight = Quantised(codes=self._codes(name, told["codes"], shape), scale=scale, shift=shift, group=group)
        return QuantisedLinear(
            weight=weight,
            bias=self._maybe(f"{name}.bias", rows),
            activations=told["activations"],
            activation_bits=told["activation_bits"],
            input_scale=self._maybe(f"{name}.input_scale", 1),
            input_zero=self._maybe(f"{name}.input_zero", 1),
            norm=self._maybe(f"{name}.norm", shape[1]),
            norm_eps=float(told["norm_eps"]),
        )

    def head(self, told: Any, shape: tuple[int, ...] | None) -> Quantised:
        if shape is None or told != {"shape": list(shape)}:
            raise ModelError(
                f"{self.where.with_name(MANIFEST)}: head is {told!r}, expected a config that is not tied and its shape "
                f"{None if shape is None else list(shape)}. {_AGAIN}"
            )
        codes = self._read("head.codes", shape, (torch.int8,))
        if int(codes.min()) < -127:
            raise ModelError(f"{self.where}: tensor head.codes holds a code -128. {_AGAIN}")
        return Quantised(codes=codes, scale=self._read("head.scale", (shape[0], 1), (torch.float32,)))

    def check_all_read(self) -> None:
        if self.left:
            raise ModelError(
                f"{self.where} holds tensors that {MANIFEST} does not name: {', '.join(sorted(self.left)[:4])}"
            )

    def _words(self, name: str, shape: tuple[int, ...]) -> Mapping[str, Any]:
        told = self.told[name]
        right = isinstance(told, dict) and told.get("shape") == list(shape) and told.get("codes") in ("trits", "int8")
        right = right and told.get("activations") in ACTIVATIONS and isinstance(told.get("norm_eps"), float)
        right = right and all(isinstance(told.get(k), int) and told[k] >= 0 for k in ("group", "activation_bits"))
        right = right and (told["activations"] != "int8-256" or told["group"] % 256 == 0)
        if not right:
            raise ModelError(
                f"{self.where.with_name(MANIFEST)}: linear {name} is {told!r}, expected shape {list(shape)}. {_AGAIN}"
            )
        return dict(told)

    def _codes(self, name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
        if kind == "int8":
            return self._read(f"{name}.codes", shape, (torch.int8,))
        packed = self._read(f"{name}.codes", (shape[0], packed_length(shape[1])), (torch.uint8,))
        try:
            return from_trits(packed, shape[1])
        except DataError as error:
            raise ModelError(f"{self.where}: tensor {name}.codes: {error}") from error

    def _numbers(self, name: str, groups: int, rows: int) -> Tensor:
        if name in self.left and self.shards.read(name).shape[:1] == (1,):
            rows = 1
        return self._read(name, (rows, groups), (torch.float32,))

    def _maybe(self, name: str, size: int) -> Tensor | None:
        return self._read(name, (size,), (torch.float32,)) if name in self.left else None

    def _read(self, name: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> Tensor:
        if name not in self.left:
            raise ModelError(f"{self.where} lacks tensor {name}. {_AGAIN}")
        self.left.remove(name)
        tensor = self.shards.read(name)
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
            raise ModelError(
                f"{self.where}: tensor {name} is {tensor.dtype} {list(tensor.shape)}, expected {dtypes[0]} "
                f"{list(shape)}. {_AGAIN}"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(f"{self.where}: tensor {name} holds numbers that are NaN or infinite. {_AGAIN}")
        return tensor.clone()  # never the file's own memory
