"""Hugging Face model directories: read with every tensor accounted for, written so that transformers agrees."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from triloop.errors import ModelError, StoreError
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.hf_config import config_from_hf, config_to_hf
from triloop.nn.hf_names import Part, hf_parts
from triloop.nn.lora import effective_state
from triloop.nn.shards import Shards
from triloop.nn.tokenizer import Tokenizer, read_json

__all__ = ["load_pretrained", "save_pretrained", "save_tensors", "tensors_sha256", "weights_sha256", "write_tensors"]

VALUE_HEAD = "value_head.safetensors"
"""Beside the model, where transformers does not look."""
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64"}


def load_pretrained(
    path: str | Path, *, dtype: torch.dtype = torch.float32, latent: bool = False
) -> tuple[Decoder, Tokenizer]:
    """Read a Hugging Face directory: config.json, one or several safetensors, tokenizer.json.

    ``latent``: of a ternary policy, take the weights that its codes are made from; without, such a one is refused.
    Weights of any floating type are converted to ``dtype``. Raises ModelError for anything missing, left over,
    mis-shaped, corrupt or not finite, naming file and tensor.
    """
    folder = Path(path)
    _check_folder(folder)
    config = config_from_hf(read_json(folder / "config.json"), where=str(folder / "config.json"), latent=latent)
    shards = Shards(folder)
    config = _settle_tying(config, shards)
    state = _fused_state(config, shards, dtype)
    decoder = _build(config, state)
    if (folder / VALUE_HEAD).is_file():
        _load_value_head(decoder, folder)
    tokenizer = Tokenizer.from_directory(folder)
    _check_vocabulary(config, tokenizer)
    return decoder, tokenizer


def save_pretrained(
    path: str | Path, decoder: Decoder, tokenizer: Tokenizer, *, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Write config.json, generation_config.json, safetensors and the tokenizer's files into ``path`` (made if absent).

    Adapters are merged into what is written. Weights keep the decoder's dtype. Raises StoreError when the disk cannot
    take it; each file is complete or absent.
    """
    head = None if decoder.value_head is None else decoder.value_head.state_dict()
    save_tensors(
        path, _hf_tensors(decoder), config_to_hf(decoder.config), tokenizer, max_shard_bytes=max_shard_bytes, head=head
    )


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    max_shard_bytes: int = 5_000_000_000,
    head: Mapping[str, Tensor] | None = None,
) -> None:
    """``save_pretrained`` of tensors under their Hugging Face names, a config.json, and a value head if there is one.

    The config is given the tokenizer's special ids and the dtype of the embedding.
    """
    folder, ids = Path(path), _special_ids(tokenizer)
    said = {k: v for k, v in config.items() if k != "torch_dtype"} | {"dtype": _NAMES[tensors[EMBED].dtype]}
    said |= {k: v for k, v in ids.items() if k not in said}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = _write_weights(folder, tensors, max_shard_bytes)
        _write_json(folder / "config.json", said)
        _write_json(folder / "generation_config.json", ids)
        tokenizer.save(folder)  # with its own generation_config.json, where it came with one
        if head is not None:
            written.add(VALUE_HEAD)
            write_tensors(folder / VALUE_HEAD, head)
        _remove_stale(folder, written)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write the model to {folder}: {error}. Free space or choose another place.") from error


def weights_sha256(decoder: Decoder) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors under their Hugging Face names, sorted by name.

    Equal for decoders that compute alike whatever the file layout; adapters count merged, a value head counts too.
    """
    tensors = _hf_tensors(decoder)
    if decoder.value_head is not None:
        tensors |= {f"value_head.{k}": v for k, v in decoder.value_head.state_dict().items()}
    return tensors_sha256(tensors)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of these tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{_NAMES[tensor.dtype]}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()


# -------------------------------------------------------------------- reading


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError(f"model directory {folder} does not exist; give the path of a Hugging Face directory")
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        hint = "It holds a LoRA adapter: give the base model and load the adapter onto it." if adapter else (
            "Give the directory that config.json lies in."
        )  # fmt: skip
        raise ModelError(f"{folder} has no config.json (found: {found}). {hint}")


def _settle_tying(config: DecoderConfig, shards: Shards) -> DecoderConfig:
    """Tied embeddings may be stored once under either name or twice; unequal twins are not tied, as in transformers."""
    if not config.tie_embeddings or EMBED not in shards.names or HEAD not in shards.names:
        return config
    if torch.equal(shards.read(EMBED), shards.read(HEAD)):
        return config
    return dataclasses.replace(config, tie_embeddings=False)


def _fused_state(config: DecoderConfig, shards: Shards, dtype: torch.dtype) -> dict[str, Tensor]:
    """The decoder's parameters, each filled from the tensors that are its rows."""
    parts = hf_parts(config)
    alias = {EMBED: HEAD} if config.tie_embeddings and EMBED not in shards.names else {}
    leftover = shards.names - {alias.get(n, n) for n in parts}
    leftover -= {n for n in leftover if n.endswith("rotary_emb.inv_freq")}  # recomputed; old files carry it
    leftover -= {HEAD} if config.tie_embeddings else set()
    missing = [alias.get(n, n) for n in parts if alias.get(n, n) not in shards.names]
    if missing or leftover:
        raise ModelError(_mismatch(config, shards, missing, sorted(leftover)))
    rows: dict[str, int] = {}
    for part in parts.values():
        rows[part.param] = max(rows.get(part.param, 0), part.start + part.shape[0])
    state = {p.param: torch.empty(rows[p.param], *p.shape[1:], dtype=dtype) for p in parts.values()}
    for name, part in parts.items():
        _fill(state[part.param][part.start : part.start + part.shape[0]], shards, alias.get(name, name), part)
    return state


def _fill(target: Tensor, shards: Shards, name: str, part: Part) -> None:
    tensor = shards.read(name)
    if tuple(tensor.shape) != part.shape:
        raise ModelError(
            f"{shards.file(name)}: tensor {name} has shape {list(tensor.shape)}, config.json asks for "
            f"{list(part.shape)}. Weights and config.json belong to different models."
        )
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise ModelError(
            f"{shards.file(name)}: tensor {name} is {tensor.dtype}, expected float32, bfloat16 or float16. "
            "Give the unquantised model."
        )
    target.copy_(tensor)  # a copy, never the file's own memory: a checkpoint may be replaced while it is in use
    if not torch.isfinite(target).all():
        bad = int((~torch.isfinite(target)).sum())
        raise ModelError(
            f"{shards.file(name)}: tensor {name} holds {bad} values that are NaN or infinite in {target.dtype}. "
            "The file is damaged or its training diverged; take an earlier checkpoint or download it again."
        )


def _mismatch(config: DecoderConfig, shards: Shards, missing: list[str], leftover: list[str]) -> str:
    def some(names: list[str]) -> str:
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    said = [f"{shards.label}: the tensors do not fit config.json ({config.model_type}, {config.num_layers} layers)."]
    if missing:
        said.append(f"Missing: {some(missing)}.")
    if leftover:
        said.append(f"Not expected: {some(leftover)}.")
    if missing == [HEAD]:
        said.append('If input and output embeddings are shared, config.json must say "tie_word_embeddings": true.')
    return " ".join(said)


def _build(config: DecoderConfig, state: Mapping[str, Tensor]) -> Decoder:
    """A decoder that owns ``state``, without spending time on initial weights."""
    decoder = Decoder.empty(config)
    decoder.load_state_dict(dict(state), assign=True)
    return decoder


def _load_value_head(decoder: Decoder, folder: Path) -> None:
    shards = Shards(folder, only=VALUE_HEAD)
    decoder.add_value_head()
    assert decoder.value_head is not None
    decoder.value_head.to(decoder.dtype)
    for name, parameter in decoder.value_head.named_parameters():
        if name not in shards.names:
            raise ModelError(f"{folder / VALUE_HEAD} lacks tensor {name}; delete the file to start a new value head.")
        _fill(parameter.data, shards, name, Part(param=name, start=0, shape=tuple(parameter.shape)))


def _check_vocabulary(config: DecoderConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.base_vocab_size > config.vocab_size:
        raise ModelError(
            f"{tokenizer.path}: the tokenizer has {tokenizer.base_vocab_size} tokens, the model's embedding only "
            f"{config.vocab_size} rows. tokenizer.json and the weights belong to different models."
        )


# -------------------------------------------------------------------- writing


def _hf_tensors(decoder: Decoder) -> dict[str, Tensor]:
    """Views of the weights under their Hugging Face names."""
    state = effective_state(decoder)
    return {
        name: state[part.param][part.start : part.start + part.shape[0]]
        for name, part in hf_parts(decoder.config).items()
    }


def _special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    ends = tokenizer.eos_ids
    eos = (list(ends) if len(ends) > 1 else ends[0]) if ends else None
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos, "pad_token_id": tokenizer.pad_id}


def _groups(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """Consecutive tensors of at most ``limit`` bytes together; a tensor larger than that stands alone."""
    group: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if group and size + tensor.nbytes > limit:
            yield group
            group, size = {}, 0
        group[name] = tensor
        size += tensor.nbytes
    yield group


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], limit: int) -> set[str]:
    """Write one file, or numbered shards with their index; the names written."""
    groups = list(_groups(tensors, limit))
    if len(groups) == 1:
        write_tensors(folder / "model.safetensors", groups[0])
        return {"model.safetensors"}
    where: dict[str, str] = {}
    for i, group in enumerate(groups, start=1):
        shard = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        write_tensors(folder / shard, group)
        where |= dict.fromkeys(group, shard)
    total = {"total_size": sum(t.nbytes for t in tensors.values())}
    _write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": where})
    return {"model.safetensors.index.json", *where.values()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file, complete or absent."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file({k: v.detach().cpu().clone() for k, v in tensors.items()}, temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_stale(folder: Path, written: set[str]) -> None:
    """Weights of an earlier save into the same directory would be read in place of, or beside, the new ones."""
    for pattern in ("model*.safetensors", "model.safetensors.index.json", VALUE_HEAD):
        for old in folder.glob(pattern):
            if old.name not in written:
                old.unlink()
