"""A policy as one GGUF file, which llama.cpp runs.

Ternary linears become TQ1_0 (1.6875 bits a weight: five trits a byte) or TQ2_0 (2.0625: two bits), blocks of 256 inputs
of one output with a scale in half precision. ``gguf.quants`` packs them: it takes the largest magnitude of a block as its
scale, which for codes -1, 0, 1 times one scale is that scale, so the codes come back as they were. Embeddings and output
head are F16 or F32 beside them, vectors F32. llama.cpp multiplies such blocks by activations rounded in blocks of 256 (its
Q8_K): what ``TernaryConfig(activations="int8-256")`` trains with. An int8 output head becomes a matrix apart from the
embedding: Q8_0 beside ternary linears, with its codes as they are and the row's scale, in half precision, in each block of
32; else the numbers that it stands for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from triloop.errors import ModelError, StoreError, UsageError
from triloop.nn.decoder import Decoder
from triloop.nn.hf_names import Part
from triloop.nn.tokenizer import Tokenizer
from triloop.policies.formats.gguf_shape import OWN, architecture, gguf_name, metadata, paired, rope_factors, rope_order
from triloop.policies.formats.gguf_vocab import FILES_KEY, JSON_KEY, Vocabulary, vocabulary
from triloop.policies.formats.weights import HEAD, Weights, weights_of
from triloop.ternary.quantisers import Quantised

__all__ = ["BLOCK", "RESTS", "TYPES", "GgufReport", "gguf_package", "write_gguf"]

BLOCK = 256
"""Weights that share a scale in TQ1_0 and TQ2_0."""

TYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "tq1_0": ("TQ1_0", 36), "tq2_0": ("TQ2_0", 37)}
"""--type -> name of the tensor type of linears, and GGUF's number for such a file."""

RESTS = ("f16", "f32")
"""What embeddings and output head can be."""

HEAD_BLOCK = 32
"""Weights that share a scale in Q8_0."""

HALF_RELATIVE = 2.0**-11
"""Largest relative error of rounding a normal number to half precision."""


@dataclass(frozen=True, kw_only=True)
class GgufReport:
    """What was written."""

    path: Path
    type: str
    architecture: str
    bytes: int
    """Size of the file."""
    linear_bytes: int
    """Of the linears of the layers alone, scales included."""
    linear_weights: int
    notes: tuple[str, ...]
    """Where llama.cpp can still compute something else than the policy does."""

    @property
    def bits(self) -> float:
        """Bits of one weight of the linears."""
        return 8 * self.linear_bytes / self.linear_weights


def gguf_package() -> Any:
    """The ``gguf`` package. Raises UsageError when it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise UsageError("GGUF files need the package gguf: pip install 'triloop[gguf]'") from error
    return gguf


def write_gguf(
    path: str | Path,
    decoder: Decoder,
    tokenizer: Tokenizer,
    *,
    type: str = "f16",
    rest: str | None = None,
    name: str = "triloop",
) -> GgufReport:
    """Write the policy to ``path``; the file is complete or absent.

    ``rest`` is the type of embeddings and output head; None: f32 beside f32, f16 beside all others.
    Raises UsageError for an unknown type, and ModelError naming the reason where llama.cpp could not compute the same.
    """
    gguf = gguf_package()
    if type not in TYPES:
        raise UsageError(f"--type is {type!r}; expected one of {', '.join(TYPES)}")
    if rest not in (None, *RESTS):
        raise UsageError(f"--rest is {rest!r}; expected one of {', '.join(RESTS)}")
    rest = rest or ("f32" if type == "f32" else "f16")
    weights, target = weights_of(decoder), Path(path)
    arch = architecture(weights.config)
    words = vocabulary(tokenizer, weights.config.vocab_size)
    tensors = list(_tensors(weights, arch, type, rest))
    if target.is_dir():
        raise UsageError(f"{target} is a folder; --out names the file to write, as model.gguf")
    temporary = target.with_name(f".{target.name}.tmp")
    writer = gguf.GGUFWriter(temporary, arch)
    writer.add_name(name)
    writer.add_file_type(TYPES[type][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in metadata(weights.config, arch).items():
        put = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[value.__class__]
        put(f"{arch}.{key}", value)
    c = weights.config
    writer.add_string(OWN, json.dumps({"model_type": c.model_type, "rope_scaling": dict(c.rope_scaling or {}) or None}))
    _add_vocabulary(writer, words, tokenizer)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(gguf, writer, tensors)
        os.replace(temporary, target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error}. Free space or choose another place.") from error
    finally:
        temporary.unlink(missing_ok=True)
    in_layers = [t for t in tensors if t.linear]
    return GgufReport(
        path=target,
        type=type,
        architecture=arch,
        bytes=target.stat().st_size,
        linear_bytes=sum(t.bytes for t in in_layers),
        linear_weights=sum(t.shape[0] * t.shape[1] for t in in_layers),
        notes=(*words.notes, *_notes(weights, type, rest)),
    )


def _notes(weights: Weights, type: str, rest: str) -> Iterator[str]:
    packed = type.startswith("tq")
    if weights.linears and weights.activations != ("int8-256" if packed else "none"):
        ours = {"int8": "int8 per token", "int8-256": "int8 per token and 256 inputs", "none": "not quantised"}
        theirs = "to int8 in blocks of 256 inputs" if packed else "not at all"
        here = ours.get(weights.activations, weights.activations)
        yield f"inputs of quantised linears are {here} here; llama.cpp quantises them {theirs}"
    elif packed and rest == "f16":
        yield "embeddings and output head are in half precision; with --rest f32 llama.cpp computes what the policy does"
    if weights.head is not None:
        found = _head_kind(weights.head, type)
        theirs = "in blocks of 32 inputs" if found == "Q8_0" else "not at all"
        yield f"the int8 output head is written as {found}; llama.cpp quantises its inputs {theirs}, the policy per token"
    if "value_head.weight" in weights.state:
        yield "the value head is not written"


# -------------------------------------------------------------------- tensors


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    type: str
    bytes: int
    linear: bool
    data: Callable[[], NDArray[Any]]
    """Made when it is written: a file may be larger than what fits twice into memory."""


def _tensors(weights: Weights, arch: str, type: str, rest: str) -> Iterator[_Tensor]:
    """Every tensor of the file, checked but not yet converted."""
    _check(weights, type)
    factors = rope_factors(weights.config)
    if factors is not None:
        yield _tensor("rope_freqs.weight", tuple(factors.shape), "F32", False, lambda: factors.numpy())
    for name, part in weights.parts().items():
        ours, linear = gguf_name(name), ".layers." in name and len(part.shape) == 2
        order = _order(weights, arch, name)
        packed = weights.quantised(part) if type.startswith("tq") else None
        if packed is not None:
            yield _tensor(ours, part.shape, TYPES[type][0], True, _packer(ours, packed, order, TYPES[type][0]))
            continue
        if weights.head is not None and part.param == HEAD and _head_kind(weights.head, type) == "Q8_0":
            yield _tensor(ours, part.shape, "Q8_0", False, partial(_blocks_of_32, weights.head))
            continue
        kind = "F32" if len(part.shape) == 1 else TYPES[type if linear else rest][0]
        yield _tensor(ours, part.shape, kind, linear, _converter(ours, weights, part, order, kind))


def _tensor(name: str, shape: tuple[int, ...], kind: str, linear: bool, data: Callable[[], NDArray[Any]]) -> _Tensor:
    gguf = gguf_package()
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    count = 1
    for n in shape:
        count *= n
    return _Tensor(name=name, shape=shape, type=kind, bytes=count // block * size, linear=linear, data=data)


def _check(weights: Weights, type: str) -> None:
    normed = next((name for name, linear in weights.linears.items() if linear.norm is not None), None)
    if normed is not None:
        raise ModelError(
            f"{normed} has an RMS norm of its own before the product (TernaryConfig(norm=True)), for which llama.cpp's "
            "graphs have no place. Export --format packed, or train without it."
        )
    if not type.startswith("tq"):
        return
    if not weights.linears:
        raise ModelError(
            f"--type {type} holds weights -1, 0, 1 times a scale, and this policy's linears are in full precision. "
            "Export it as f16, or train a ternary policy (triloop.ternary) and export that."
        )
    plain = [
        n for n in weights.state if n.endswith(".weight") and n.split(".")[-2] in ("qkv", "out", "gate_up", "down")
    ]
    if plain:
        raise ModelError(f"--type {type}: {plain[0]} is in full precision while others are ternary; export as f16")
    for name, linear in weights.linears.items():
        _check_linear(name, linear.weight, type)


def _check_linear(name: str, weight: Quantised, type: str) -> None:
    width = weight.codes.shape[1]
    if width % BLOCK:
        raise ModelError(
            f"{name} has {width} inputs, which is no multiple of {BLOCK}, the block of {type}. Export as f16, or train "
            f"a policy whose hidden and intermediate sizes are multiples of {BLOCK}."
        )
    if int(weight.codes.min()) < -1 or int(weight.codes.max()) > 1:
        raise ModelError(f"{name} has codes beyond -1, 0 and 1, which {type} cannot hold; export as f16")
    if weight.shift is not None and bool((weight.shift != 0).any()):
        raise ModelError(
            f"{name} adds a shift to its codes (quantiser dual), and {type} has a scale only. Export --format packed, "
            "or as f16."
        )
    if weight.scale.shape[1] > 1 and weight.group % BLOCK:
        raise ModelError(
            f"{name} has a scale for every {weight.group} inputs, and {type} one for {BLOCK}: only groups that are "
            f"multiples of {BLOCK} fit. Export --format packed, or as f16."
        )
    scale = weight.scale
    if not _half(scale):
        raise ModelError(
            f"{name} has scales from {scale.abs().min():.3g} to {scale.abs().max():.3g}, beyond half precision, in "
            f"which {type} holds them. Export as f32."
        )


def _half(scale: torch.Tensor) -> bool:
    """Whether half precision holds these numbers with its full number of digits."""
    return not bool(((scale.half().float() - scale).abs() > HALF_RELATIVE * scale.abs()).any())


def _head_kind(head: Quantised, type: str) -> str:
    """The tensor type of an int8 output head."""
    if type == "f32":
        return "F32"
    exact = type.startswith("tq") and not head.codes.shape[1] % HEAD_BLOCK and _half(head.scale)
    return "Q8_0" if exact else "F16"


def _blocks_of_32(head: Quantised) -> NDArray[Any]:
    """Q8_0: the scale as half precision, then 32 codes. The package's own packer would take each block's largest magnitude
    as its scale, and round the codes again."""
    rows, width = head.codes.shape
    block = np.dtype([("scale", "<f2"), ("codes", "i1", (HEAD_BLOCK,))])
    made = np.empty((rows, width // HEAD_BLOCK), block)
    made["scale"] = head.scale.half().numpy()
    made["codes"] = head.codes.numpy().reshape(rows, -1, HEAD_BLOCK)
    return made.view(np.uint8)


def _order(weights: Weights, arch: str, name: str) -> torch.Tensor | None:
    """Places of rows of queries and keys (and their biases), where the architecture wants them paired."""
    c = weights.config
    heads = c.num_heads if ".q_proj." in name else c.num_kv_heads if ".k_proj." in name else 0
    return rope_order(heads, c.head_dim) if heads and paired(arch) else None


def _converter(
    name: str, weights: Weights, part: Part, order: torch.Tensor | None, kind: str
) -> Callable[[], NDArray[Any]]:
    def convert() -> NDArray[Any]:
        tensor = weights.dense(part).float()
        tensor = tensor if order is None else tensor[order]
        if kind == "F16" and bool((tensor.abs() > torch.finfo(torch.float16).max).any()):
            raise ModelError(f"{name} holds numbers beyond half precision ({tensor.abs().max():.3g}); export as f32")
        return tensor.numpy().astype(np.float16 if kind == "F16" else np.float32)

    return convert


def _packer(name: str, weight: Quantised, order: torch.Tensor | None, kind: str) -> Callable[[], NDArray[Any]]:
    def pack() -> NDArray[Any]:
        gguf = gguf_package()
        dense = weight.dense() if order is None else weight.dense()[order]
        data: NDArray[Any] = gguf.quants.quantize(dense.numpy(), gguf.GGMLQuantizationType[kind])
        return data

    return pack


# -------------------------------------------------------------------- the file


_PLAIN: dict[str, Any] = {"F32": np.float32, "F16": np.float16}


def _write(gguf: Any, writer: Any, tensors: list[_Tensor]) -> None:
    kinds = gguf.GGMLQuantizationType
    for t in tensors:
        shape = gguf.quant_shape_to_byte_shape(t.shape, kinds[t.type]) if t.type not in _PLAIN else t.shape
        dtype = _PLAIN.get(t.type, np.uint8)
        raw = kinds[t.type] if dtype is np.uint8 else None
        writer.add_tensor_info(t.name, shape, np.dtype(dtype), t.bytes, raw_dtype=raw)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for t in tensors:
            writer.write_tensor_data(t.data())
    finally:
        writer.close()


def _add_vocabulary(writer: Any, words: Vocabulary, tokenizer: Tokenizer) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(list(words.tokens))
    writer.add_token_types(list(words.kinds))
    if words.model == "llama":
        writer.add_token_scores(list(words.scores))
    else:
        writer.add_token_merges(list(words.merges))
    writer.add_add_space_prefix(words.add_space_prefix)
    writer.add_add_bos_token(words.add_bos)
    writer.add_add_eos_token(words.add_eos)
    adders = {"bos": writer.add_bos_token_id, "unk": writer.add_unk_token_id, "pad": writer.add_pad_token_id}
    for role, i in words.special.items():
        adders[role](i)
    for add, i in zip(
        (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), words.ends, strict=False
    ):
        add(i)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
    # Every file of the tokenizer, so that reading the file gives back the very same one.
    files = {name: content.decode("utf-8") for name, content in tokenizer.files.items() if _is_text(content)}
    writer.add_string(JSON_KEY, files.pop("tokenizer.json"))
    writer.add_string(FILES_KEY, json.dumps(files))


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
