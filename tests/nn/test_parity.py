"""Logits equal transformers' in fp32 for each family, both ways through the disk; and a real model's greedy text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.hf_config import config_from_hf, config_to_hf
from triloop.nn.hf_io import load_pretrained, save_pretrained, weights_sha256
from triloop.nn.tokenizer import char_tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-untied-gqa": ("llama", {"tie_word_embeddings": False}),
    "llama-tied-mha": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 6, "rms_norm_eps": 1e-3}),
    "llama-rope-theta": ("llama", {"rope_theta": 500.0}),
    "llama-rope-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama-rope-llama3": ("llama", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16}}),
    "llama-rope-new": ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 50.0,
                                                     "original_max_position_embeddings": 16}}),
    "llama-rope-yarn": ("llama", {"rope_scaling": YARN}),
    "llama-rope-yarn-mscale": ("llama", {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3,
                                                          "beta_fast": 8, "beta_slow": 2, "truncate": False}}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-bias": ("qwen3", {"head_dim": 8, "attention_bias": True, "use_sliding_window": True, "sliding_window": 4,
                             "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 6}),
    "smollm3-nope": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "smollm3-interval": ("smollm3", {"no_rope_layer_interval": 2, "attention_bias": True, "mlp_bias": True}),
    "smollm3-window": ("smollm3", {"no_rope_layers": [1, 0, 0], "use_sliding_window": True, "sliding_window": 4}),
}  # fmt: skip


def reference(family: str, extra: dict[str, Any], seed: int = 0) -> Any:
    """A transformers model with weights wide enough that a wrong rotation, norm or mask shows."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(family, **{**TINY, **json.loads(json.dumps(extra))})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return model


def loaded(folder: Path) -> Any:
    """The directory as transformers reads it in fp32 (``.float()`` would keep rotation angles rounded to bf16)."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def some_ids(length: int = 23) -> torch.Tensor:
    return torch.randint(0, 40, (3, length), generator=torch.Generator().manual_seed(1))


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_reads_what_transformers_writes_and_back(name: str, tmp_path: Path) -> None:
    theirs = reference(*FAMILIES[name])
    theirs.save_pretrained(tmp_path / "theirs")
    char_tokenizer("0123456789").save(tmp_path / "theirs")
    decoder, tokenizer = load_pretrained(tmp_path / "theirs")
    ids = some_ids()
    with torch.no_grad():
        expected, ours = theirs(ids).logits, decoder.logits_padded(ids)
    assert gap(ours, expected) < 1e-4
    save_pretrained(tmp_path / "ours", decoder, tokenizer, max_shard_bytes=30_000)
    assert (tmp_path / "ours" / "model.safetensors.index.json").is_file()
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, expected)
    assert weights_sha256(load_pretrained(tmp_path / "ours")[0]) == weights_sha256(decoder)


@pytest.mark.parametrize("name", FAMILIES)
def test_config_survives_a_round_trip(name: str) -> None:
    family, extra = FAMILIES[name]
    raw = {"model_type": family, **TINY, **extra}
    first = config_from_hf(raw)
    second = config_from_hf(config_to_hf(first))
    for field in set(first.__dataclass_fields__) - {"extra"}:
        assert getattr(first, field) == getattr(second, field), field


def test_every_option_of_the_list_above_changes_the_logits(tmp_path: Path) -> None:
    """The parity test would pass with an ignored option if the option did nothing at this size."""
    plain = {"llama": "llama-untied-gqa", "mistral": "mistral-full", "qwen2": "qwen2", "smollm3": "smollm3-nope"}
    ids = some_ids()
    for name in ("llama-rope-theta", "llama-rope-linear", "llama-rope-llama3", "llama-rope-yarn", "mistral-window"):
        family, extra = FAMILIES[name]
        a, b = reference(family, extra), reference(*FAMILIES[plain[family]])
        with torch.no_grad():
            assert gap(a(ids).logits, b(ids).logits) > 1e-2, name


def test_bf16_directory(tmp_path: Path) -> None:
    theirs = reference("llama", {}).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    char_tokenizer("01").save(tmp_path)
    half, _ = load_pretrained(tmp_path, dtype=torch.bfloat16)
    wide, tokenizer = load_pretrained(tmp_path)
    assert half.dtype == torch.bfloat16 and wide.dtype == torch.float32
    assert half.inverse_frequency.dtype == torch.float32, "rotation angles lose positions in bf16"
    ids = some_ids()
    with torch.no_grad():
        scale = theirs(ids).logits.float().abs().max()
        assert gap(half.logits_padded(ids).float(), theirs(ids).logits.float()) < 0.05 * scale
        assert gap(wide.logits_padded(ids), loaded(tmp_path)(ids).logits) < 1e-4
    save_pretrained(tmp_path / "again", half, tokenizer)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"
    assert weights_sha256(load_pretrained(tmp_path / "again", dtype=torch.bfloat16)[0]) == weights_sha256(half)


def test_fp16_directory(tmp_path: Path) -> None:
    reference("qwen2", {}).to(torch.float16).save_pretrained(tmp_path)
    char_tokenizer("01").save(tmp_path)
    decoder, _ = load_pretrained(tmp_path)
    with torch.no_grad():
        assert gap(decoder.logits_padded(some_ids()), loaded(tmp_path)(some_ids()).logits) < 1e-4


def test_a_fresh_decoder_loads_in_transformers(tmp_path: Path) -> None:
    tokenizer = char_tokenizer("0123456789+-=")
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=24, intermediate_size=40, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=6, max_positions=32,
    )  # fmt: skip
    decoder = Decoder(config).initialise(0, std=0.5)
    save_pretrained(tmp_path, decoder, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([tokenizer.encode("12+3=15")])
    with torch.no_grad():
        assert gap(theirs(ids).logits, decoder.logits_padded(ids)) < 1e-4
    assert theirs.generation_config.eos_token_id == 2
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("12+3=15").input_ids == ids[0].tolist()


def test_stories260k(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    decoder, tokenizer = load_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(3, 512, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert gap(decoder.logits_padded(ids), theirs(ids).logits) < 1e-4
    expected = json.loads((folder / "expected_greedy.json").read_text())["expected_text"]
    tokens = [1]  # a lone BOS, then 200 tokens
    with torch.no_grad():
        while len(tokens) < 201 and tokens[-1] != 2:
            tokens.append(int(decoder.logits_padded(torch.tensor([tokens]))[0, -1].argmax()))
    assert tokenizer.decode(tokens) == expected
