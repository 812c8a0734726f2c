"""Model directories: tied embeddings in every form, shards, value heads, digests; and each kind of damage told by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from triloop.errors import ModelError, StoreError
from triloop.nn import hf_io
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.hf_io import load_pretrained, save_pretrained, weights_sha256
from triloop.nn.hf_names import hf_parts
from triloop.nn.lora import add_lora, merge_lora
from triloop.nn.tokenizer import char_tokenizer

TOKENIZER = char_tokenizer("0123456789")
SHAPE: dict[str, Any] = {
    "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1,
    "head_dim": 4, "max_positions": 32,
}  # fmt: skip
IDS = torch.arange(14).view(2, 7)
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"


def decoder(**changes: Any) -> Decoder:
    return Decoder(DecoderConfig(**{**SHAPE, **changes})).initialise(0, std=0.5)


def saved(folder: Path, model: Decoder | None = None, **options: Any) -> Path:
    save_pretrained(folder, model or decoder(), TOKENIZER, **options)
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    tensors = load_file(folder / ONE)
    change(tensors)
    save_file(tensors, folder / ONE)
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))
    return folder


def same(a: Decoder, b: Decoder) -> bool:
    with torch.no_grad():
        return torch.equal(a.logits_padded(IDS), b.logits_padded(IDS))


def test_round_trip_and_parts_cover_every_parameter(tmp_path: Path) -> None:
    for i, changes in enumerate(
        ({}, {"tie_embeddings": False}, {"model_type": "qwen3", "qk_norm": True}, {"qkv_bias": True, "out_bias": True})
    ):
        model = decoder(**changes)
        covered = sum(torch.Size(p.shape).numel() for p in hf_parts(model.config).values())
        assert covered == sum(p.numel() for p in model.parameters()) == model.config.parameters
        again, tokenizer = load_pretrained(saved(tmp_path / str(i), model))
        assert same(model, again) and weights_sha256(model) == weights_sha256(again)
        assert tokenizer.encode("12") == TOKENIZER.encode("12")
        assert all(p.requires_grad and not p.is_meta for p in again.parameters())


def test_shards(tmp_path: Path) -> None:
    model = decoder()
    saved(tmp_path, model, max_shard_bytes=700)
    shards = sorted(p.name for p in tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 3 and not (tmp_path / ONE).exists()
    index = json.loads((tmp_path / INDEX).read_text())
    assert set(index["weight_map"]) == set(hf_parts(model.config)) and set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == 4 * model.config.parameters
    assert same(model, load_pretrained(tmp_path)[0])
    saved(tmp_path, model)
    assert not list(tmp_path.glob("model-*")) and not (tmp_path / INDEX).exists(), "an old save must not be read again"


def test_tied_embeddings_whichever_way_they_are_stored(tmp_path: Path) -> None:
    model = decoder()
    name, head = "model.embed_tokens.weight", "lm_head.weight"
    both = rewrite(saved(tmp_path / "both", model), lambda t: t.update({head: t[name].clone()}))
    only = rewrite(saved(tmp_path / "only", model), lambda t: t.update({head: t.pop(name)}))
    for folder in (both, only):
        again = load_pretrained(folder)[0]
        assert again.head is None and same(model, again)
    differ = rewrite(saved(tmp_path / "differ", model), lambda t: t.update({head: 2 * t[name]}))
    again = load_pretrained(differ)[0]
    assert again.head is not None and not again.config.tie_embeddings
    with torch.no_grad():
        assert torch.allclose(again.logits_padded(IDS), 2 * model.logits_padded(IDS), atol=1e-5)


def test_loaded_weights_do_not_share_memory_with_the_file(tmp_path: Path) -> None:
    model = load_pretrained(saved(tmp_path))[0]
    before = weights_sha256(model)
    with (tmp_path / ONE).open("r+b") as file:
        file.seek(-400, 2)
        file.write(b"\0" * 400)
    assert weights_sha256(model) == before


def test_old_rotary_buffers_are_passed_over(tmp_path: Path) -> None:
    rewrite(saved(tmp_path), lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    assert same(load_pretrained(tmp_path)[0], decoder())


def test_value_head_travels_beside_the_model(tmp_path: Path) -> None:
    model = decoder()
    plain = weights_sha256(model)
    model.add_value_head()
    assert model.value_head is not None
    torch.nn.init.constant_(model.value_head.weight, 0.25)
    again = load_pretrained(saved(tmp_path, model))[0]
    assert again.value_head is not None and torch.equal(again.value_head.weight, model.value_head.weight)
    assert weights_sha256(again) == weights_sha256(model) != plain
    saved(tmp_path, decoder())
    assert load_pretrained(tmp_path)[0].value_head is None


def test_digest_sees_values_names_and_types() -> None:
    model = decoder()
    first = weights_sha256(model)
    assert first == weights_sha256(decoder()) and len(first) == 64
    with torch.no_grad():
        model.layers[1].down.weight[0, 0] += 1e-6
    assert weights_sha256(model) != first
    assert weights_sha256(decoder().to(torch.bfloat16)) != first


def test_adapters_are_written_merged(tmp_path: Path) -> None:
    model = decoder()
    for module in add_lora(model, 2, 4.0).values():
        torch.nn.init.normal_(module.lora_b)
    digest = weights_sha256(model)
    again = load_pretrained(saved(tmp_path, model))[0]
    assert weights_sha256(again) == digest == weights_sha256(merge_lora(model))


def test_generation_config_names_the_ends(tmp_path: Path) -> None:
    saved(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 1], "temperature": 0.6}')
    model, tokenizer = load_pretrained(tmp_path)
    save_pretrained(tmp_path / "again", model, tokenizer)
    assert tokenizer.eos_ids == (2, 1)
    assert (tmp_path / "again" / "generation_config.json").read_text() == '{"eos_token_id": [2, 1], "temperature": 0.6}'


# ------------------------------------------------------------------ damage


def cut(folder: Path, name: str, size: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


def flip(folder: Path, name: str, at: int) -> None:
    raw = bytearray((folder / name).read_bytes())
    raw[at] ^= 0x80
    (folder / name).write_bytes(raw)


def to_bin(folder: Path) -> None:
    (folder / ONE).rename(folder / "pytorch_model.bin")


def to_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def header_says(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = (folder / ONE).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    (folder / ONE).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


DOWN = "model.layers.1.mlp.down_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), r"has no config\.json \(found: "),
    "adapter": (to_adapter, "LoRA adapter: give the base model"),
    "config cut": (lambda d: cut(d, "config.json", 40), r"config\.json is not JSON"),
    "no weights": (lambda d: (d / ONE).unlink(), "has no weights: neither"),
    "pickle": (to_bin, r"only as pickle \(pytorch_model\.bin\).*Convert once"),
    "empty": (lambda d: cut(d, ONE, 0), r"model\.safetensors is not a complete safetensors file \(0 bytes"),
    "header cut": (lambda d: cut(d, ONE, 100), "not a complete safetensors file"),
    "data cut": (lambda d: cut(d, ONE, 4000), "not a complete safetensors file"),
    "header bit": (lambda d: flip(d, ONE, 7), "not a complete safetensors file"),
    "json bit": (lambda d: flip(d, ONE, 9), "not a complete safetensors file"),
    "missing tensor": (lambda d: rewrite(d, lambda t: t.pop(DOWN)), rf"model\.safetensors.*Missing: {DOWN}\."),
    "extra tensor": (lambda d: rewrite(d, lambda t: t.update(odd=torch.ones(1))), r"Not expected: odd\."),
    "more layers": (lambda d: edit_config(d, num_hidden_layers=3), r"Missing: model\.layers\.2\..* and 5 more"),
    "untied": (lambda d: edit_config(d, tie_word_embeddings=False), r'lm_head.weight\..*"tie_word_embeddings": true'),
    "shape": (lambda d: edit_config(d, intermediate_size=10),
              r"gate_proj.weight has shape \[12, 8\], config.json asks for \[10, 8\]"),
    "nan": (lambda d: rewrite(d, lambda t: t[DOWN].view(-1)[3].fill_(torch.nan)), f"{DOWN} holds 1 values that are NaN"),
    "int": (lambda d: rewrite(d, lambda t: t.update({DOWN: t[DOWN].to(torch.int8)})), "is torch.int8, expected float32"),
    "dtype header": (lambda d: header_says(d, lambda h: h[DOWN].update(dtype="F64")), "not a complete safetensors file"),
    "tokenizer gone": (lambda d: (d / "tokenizer.json").unlink(), r"expected a tokenizer\.json"),
    "tokenizer large": (lambda d: char_tokenizer("0123456789abcdef").save(d), "tokenizer has 20 tokens.*only 16 rows"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told(kind: str, tmp_path: Path) -> None:
    harm, message = DAMAGE[kind]
    harm(saved(tmp_path))
    with pytest.raises(ModelError, match=message) as told:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(told.value), "the message names the place"


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere does not exist"):
        load_pretrained(tmp_path / "nowhere")


def test_damaged_shards(tmp_path: Path) -> None:
    saved(tmp_path, max_shard_bytes=700)
    index = json.loads((tmp_path / INDEX).read_text())
    shard = index["weight_map"][DOWN]
    whole = (tmp_path / shard).read_bytes()
    (tmp_path / shard).unlink()
    with pytest.raises(ModelError, match=rf"{shard} is not a complete safetensors file \(the file is missing\)"):
        load_pretrained(tmp_path)
    (tmp_path / shard).write_bytes(whole)
    index["weight_map"][DOWN] = sorted(set(index["weight_map"].values()))[0]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=f"lacks tensor {DOWN}"):
        load_pretrained(tmp_path)
    index["weight_map"][DOWN] = f"../{shard}"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match="expected a plain file name"):
        load_pretrained(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(ModelError, match="no weight_map"):
        load_pretrained(tmp_path)


def test_overflow_in_a_narrower_type_is_told(tmp_path: Path) -> None:
    rewrite(saved(tmp_path), lambda t: t[DOWN].view(-1)[0].fill_(1e6))
    load_pretrained(tmp_path, dtype=torch.bfloat16)
    with pytest.raises(ModelError, match=f"{DOWN} holds 1 values that are NaN or infinite in torch.float16"):
        load_pretrained(tmp_path, dtype=torch.float16)


def test_a_full_disk_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_io, "save_file", full)
    with pytest.raises(StoreError, match=r"No space left on device.*Free space"):
        saved(tmp_path, decoder(tie_embeddings=False))
    assert same(load_pretrained(tmp_path)[0], decoder()) and not list(tmp_path.glob(".*"))
