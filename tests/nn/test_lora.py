"""LoRA starts at the base model, trains nothing else, merges exactly, and is read by PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from triloop.errors import ModelError
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.lora import TARGETS, LoraLinear, add_lora, lora_modules, lora_state, merge_lora
from triloop.nn.peft_io import load_adapter, save_adapter

IDS = torch.arange(15).view(3, 5)


def decoder(**changes: Any) -> Decoder:
    shape: dict[str, Any] = {
        "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
        "head_dim": 4, "model_type": "qwen2", "qkv_bias": True,
    }  # fmt: skip
    return Decoder(DecoderConfig(**{**shape, **changes})).initialise(0, std=0.5)


def logits(model: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return model.logits_padded(IDS)


def trained(model: Decoder, seed: int = 5) -> Decoder:
    """``model`` with adapters that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in lora_modules(model).values():
        module.lora_b.data.normal_(0, 0.3, generator=generator)
    return model


def test_by_hand() -> None:
    base = torch.nn.Linear(2, 1, bias=False)
    base.weight.data = torch.tensor([[1.0, 1.0]])
    module = LoraLinear(base, rank=1, alpha=3.0)
    module.lora_a.data = torch.tensor([[1.0, -1.0]])
    module.lora_b.data = torch.tensor([[2.0]])
    x = torch.tensor([[5.0, 1.0]])
    assert module(x).item() == 6.0 + 3.0 * 2.0 * 4.0
    assert module.merged().tolist() == [[7.0, -5.0]]


def test_starts_at_the_base_and_only_adapters_train() -> None:
    model, plain = decoder(), decoder()
    adapters = add_lora(model, 3, 6.0)
    assert set(adapters) == {f"layers.{i}.{t}" for i in range(2) for t in TARGETS}
    assert torch.equal(logits(model), logits(plain))
    model.logits_padded(IDS).square().sum().backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    assert got == set(lora_state(model)) == {f"{n}.{p}" for n in adapters for p in ("lora_a", "lora_b")}
    for module in adapters.values():
        assert module.lora_b.grad is not None and module.lora_b.grad.abs().sum() > 0
        assert module.lora_a.grad is not None and module.lora_a.grad.abs().sum() == 0, "B is zero: A has no effect yet"


def test_merge_is_equal_and_leaves_a_plain_decoder() -> None:
    model = decoder()
    add_lora(model, 2, 4.0)
    with_adapters = logits(trained(model))
    assert (with_adapters - logits(decoder())).abs().max() > 1e-2
    names = set(dict(decoder().named_parameters()))
    assert merge_lora(model) is model and not lora_modules(model)
    assert set(dict(model.named_parameters())) == names and all(p.requires_grad for p in model.parameters())
    assert (logits(model) - with_adapters).abs().max() < 1e-5


def test_targets_rank_alpha_and_seed_matter() -> None:
    model = decoder()
    assert set(add_lora(model, 2, 4.0, ("down",))) == {"layers.0.down", "layers.1.down"}
    assert all(m.lora_a.shape == (2, 12) for m in lora_modules(model).values())
    a, b, c = decoder(), decoder(), decoder()
    first, second, other = (add_lora(m, 2, 4.0, seed=s) for m, s in ((a, 0), (b, 0), (c, 1)))
    assert all(torch.equal(first[n].lora_a, second[n].lora_a) for n in first)
    assert not torch.equal(first["layers.0.qkv"].lora_a, other["layers.0.qkv"].lora_a)
    assert first["layers.0.qkv"].scale == 2.0
    for bad in ({"rank": 0}, {"targets": ()}, {"targets": ("q_proj",)}):
        with pytest.raises(ModelError, match="rank >= 1 and targets"):
            add_lora(decoder(), **{"rank": 1, "alpha": 1.0, **bad})
    with pytest.raises(ModelError, match="already has"):
        add_lora(a, 2, 4.0)


def test_a_value_head_trains_beside_adapters() -> None:
    model = decoder()
    model.add_value_head()
    add_lora(model, 1, 1.0)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        *lora_state(model), "value_head.weight", "value_head.bias"
    }  # fmt: skip


def test_state_restores_adapters() -> None:
    model, again = decoder(), decoder()
    add_lora(model, 2, 4.0)
    trained(model)
    add_lora(again, 2, 4.0, seed=9)
    again.load_state_dict(lora_state(model), strict=False)
    assert torch.equal(logits(model), logits(again))


def test_bf16_adapters_keep_the_dtype() -> None:
    model = decoder().to(torch.bfloat16)
    add_lora(model, 2, 4.0)
    assert logits(trained(model)).dtype == torch.bfloat16
    assert merge_lora(model).dtype == torch.bfloat16


# ------------------------------------------------------------------ PEFT's form


@pytest.mark.parametrize("targets", [TARGETS, ("qkv",), ("gate_up", "out")])
def test_adapter_directory_round_trip(targets: tuple[str, ...], tmp_path: Path) -> None:
    model = decoder()
    add_lora(model, 3, 6.0, targets)
    save_adapter(tmp_path, trained(model), base="base")
    again = decoder()
    adapters = load_adapter(again, tmp_path)
    assert {m.rank for m in adapters.values()} == {3}, "equal A's are one A again"
    assert torch.allclose(logits(again), logits(model), atol=1e-6)
    assert not any(p.requires_grad for n, p in again.named_parameters() if "lora" not in n)


def test_adapter_computes_the_same_on_separate_modules(tmp_path: Path) -> None:
    """PEFT's arithmetic, W + (alpha / r) B A per module, on the merged weights' rows."""
    model = decoder()
    add_lora(model, 2, 6.0)
    save_adapter(tmp_path, trained(model), base="base")
    config, tensors = (
        json.loads((tmp_path / "adapter_config.json").read_text()),
        load_file(tmp_path / "adapter_model.safetensors"),
    )
    assert config["target_modules"] == sorted(f"{m}_proj" for m in ("q", "k", "v", "o", "gate", "up", "down"))
    delta = lora_modules(model)["layers.1.qkv"].delta()
    for module, rows in (("q_proj", slice(0, 16)), ("k_proj", slice(16, 24)), ("v_proj", slice(24, 32))):
        key = f"base_model.model.model.layers.1.self_attn.{module}"
        product = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
        assert torch.allclose(product * config["lora_alpha"] / config["r"], delta[rows], atol=1e-6)


def test_an_adapter_with_its_own_a_per_module(tmp_path: Path) -> None:
    """As PEFT trains them: q and v have different A's and k has none."""
    model = decoder()
    add_lora(model, 2, 6.0, ("qkv",))
    save_adapter(tmp_path, trained(model), base="base")
    path = tmp_path / "adapter_model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if "k_proj" not in k}
    for name in tensors:
        if "v_proj.lora_A" in name:
            tensors[name] = torch.flip(tensors[name], (0, 1)).contiguous()
    save_file(tensors, path)
    module = load_adapter(decoder(), tmp_path)["layers.0.qkv"]
    assert module.rank == 4 and module.scale == 3.0
    key = "base_model.model.model.layers.0.self_attn"
    q, v = (3.0 * tensors[f"{key}.{m}_proj.lora_B.weight"] @ tensors[f"{key}.{m}_proj.lora_A.weight"] for m in "qv")
    expected = torch.cat([q, torch.zeros(8, 8), v])
    assert torch.allclose(module.delta(), expected, atol=1e-6)


def test_adapters_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no LoRA adapters"):
        save_adapter(tmp_path, decoder(), base="base")
    with pytest.raises(ModelError, match="cannot read"):
        load_adapter(decoder(), tmp_path)
    model = decoder()
    add_lora(model, 2, 4.0)
    save_adapter(tmp_path, model, base="base")
    with pytest.raises(ModelError, match="already has"):
        load_adapter(model, tmp_path)
    with pytest.raises(ModelError, match="do not fit the base model"):
        load_adapter(decoder(hidden_size=12), tmp_path)
    with pytest.raises(ModelError, match=r"not for this decoder: base_model\.model\.model\.layers\.1"):
        load_adapter(decoder(num_layers=1), tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    with pytest.raises(ModelError, match="only plain LoRA.*use_dora=True"):
        load_adapter(decoder(), tmp_path)
