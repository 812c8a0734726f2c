"""GGUF files as our decoder: llama, qwen2, qwen3 and smollm3 of any tensor type that ``gguf.quants`` can open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triloop.errors import ModelError
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.hf_names import hf_parts
from triloop.nn.tokenizer import Tokenizer, parse_json
from triloop.policies.formats.gguf_file import gguf_package
from triloop.policies.formats.gguf_shape import OWN, gguf_name, paired, rope_order
from triloop.policies.formats.gguf_words import tokenizer_of

__all__ = ["Gguf", "read_gguf"]

ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3")
_AGAIN = "The file is damaged or cut short; export or copy it again."


class Gguf:
    """A file's keys and tensors. Every fault of the file is a ModelError that names it."""

    def __init__(self, path: str | Path) -> None:
        self.path, self.gguf = Path(path), gguf_package()
        if not self.path.is_file():
            raise ModelError(f"{self.path} does not exist; expected a .gguf file")
        try:
            reader = self.gguf.GGUFReader(self.path)
            self.keys: dict[str, Any] = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        except (ValueError, KeyError, IndexError, TypeError, OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{self.path} is no complete GGUF file ({error}). {_AGAIN}") from error
        self.tensors: dict[str, Any] = {t.name: t for t in reader.tensors}
        self.architecture = str(self.keys.get("general.architecture"))

    def key(self, name: str, default: Any = None) -> Any:
        """A key of the architecture; ModelError where it is missing and has no default."""
        value = self.keys.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise ModelError(f"{self.path}: key {self.architecture}.{name} is missing. {_AGAIN}")
        return value

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor in fp32, dequantised."""
        found = self.tensors.get(name)
        if found is None:
            raise ModelError(f"{self.path} lacks tensor {name}. {_AGAIN}")
        got = tuple(int(n) for n in reversed(found.shape.tolist()))
        if got != shape:
            raise ModelError(f"{self.path}: tensor {name} has shape {list(got)}, expected {list(shape)}. {_AGAIN}")
        try:
            data = self.gguf.quants.dequantize(found.data, found.tensor_type)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path}: tensor {name} is {found.tensor_type.name}, which cannot be opened"
            ) from error
        tensor = torch.from_numpy(np.array(data, dtype=np.float32)).reshape(shape)
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{self.path}: tensor {name} holds numbers that are NaN or infinite. {_AGAIN}")
        return tensor


def read_gguf(path: str | Path) -> tuple[Decoder, Tokenizer]:
    """A decoder with plain linears in fp32, quantised ones dequantised, and the tokenizer.

    Raises ModelError for an architecture, a tokenizer or a rotary scaling that we do not have, and for faults of the file.
    """
    file = Gguf(path)
    if file.architecture not in ARCHITECTURES:
        raise ModelError(
            f"{file.path}: architecture {file.architecture!r} is not supported; expected one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    config = _config(file)
    decoder = Decoder(config)
    own = dict(decoder.named_parameters())
    unread = set(file.tensors) - {"rope_freqs.weight"}
    with torch.no_grad():
        for name, part in hf_parts(config).items():
            theirs = gguf_name(name)
            tensor = file.tensor(theirs, part.shape)
            heads = config.num_heads if ".q_proj." in name else config.num_kv_heads if ".k_proj." in name else 0
            if heads and paired(file.architecture):
                tensor = torch.empty_like(tensor).index_copy_(0, rope_order(heads, config.head_dim), tensor)
            own[part.param][part.start : part.start + part.shape[0]] = tensor
            unread.discard(theirs)
    if unread:
        raise ModelError(
            f"{file.path} holds tensors that {file.architecture} has no place for here: {', '.join(sorted(unread)[:4])}"
        )
    return decoder, tokenizer_of(file.keys, str(file.path))


def _config(file: Gguf) -> DecoderConfig:
    found, own = _from_keys(file), file.keys.get(OWN)
    if own is not None:
        said = parse_json(str(own).encode(), f"{file.path}: {OWN}")
        return replace(found, model_type=str(said.get("model_type")), rope_scaling=said.get("rope_scaling"))
    if "rope_freqs.weight" in file.tensors:
        raise ModelError(
            f"{file.path} scales rotary frequencies one by one (rope_freqs.weight), and only the model's config.json "
            "has the rule. Import its Hugging Face directory instead."
        )
    return found


def _from_keys(file: Gguf) -> DecoderConfig:
    heads, hidden = int(file.key("attention.head_count")), int(file.key("embedding_length"))
    layers, dim = int(file.key("block_count")), int(file.key("attention.key_length", hidden // heads))
    if int(file.key("rope.dimension_count", dim)) != dim:
        raise ModelError(
            f"{file.path}: only part of each head is turned (rope.dimension_count), which is not supported"
        )
    has = {kind: f"blk.0.{kind}.bias" in file.tensors for kind in ("attn_q", "attn_output", "ffn_down")}
    every = tuple(i for i in range(layers) if (i + 1) % 4 == 0)
    return DecoderConfig(
        vocab_size=len(file.keys.get("tokenizer.ggml.tokens") or ()) or int(file.key("vocab_size")),
        hidden_size=hidden,
        intermediate_size=int(file.key("feed_forward_length")),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=int(file.key("attention.head_count_kv", heads)),
        head_dim=dim,
        norm_eps=_short(file.key("attention.layer_norm_rms_epsilon")),
        rope_theta=_short(file.key("rope.freq_base", 10000.0)),
        rope_scaling=_scaling(file),
        max_positions=int(file.key("context_length")),
        tie_embeddings="output.weight" not in file.tensors,
        qkv_bias=has["attn_q"],
        out_bias=has["attn_output"],
        mlp_bias=has["ffn_down"],
        qk_norm=file.architecture == "qwen3",
        nope_layers=every if file.architecture == "smollm3" else (),
        model_type=file.architecture,
    )


def _short(value: float) -> float:
    """The shortest decimal that is this number in fp32: 1e-5, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def _scaling(file: Gguf) -> Mapping[str, Any] | None:
    kind = file.key("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": _short(file.key("rope.scaling.factor"))}
    if kind != "yarn":
        raise ModelError(f"{file.path}: rotary scaling {kind!r} is not supported; expected none, linear or yarn")
    factor = _short(file.key("rope.scaling.factor"))
    original = int(file.key("rope.scaling.original_context_length", file.key("context_length")))
    scale = float(file.key("rope.scaling.attn_factor", 1.0)) * (0.1 * np.log(factor) + 1.0 if factor > 1 else 1.0)
    found = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": scale,
    }
    betas = {
        name: file.keys.get(f"{file.architecture}.rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")
    }
    return found | {name: float(value) for name, value in betas.items() if value is not None}
