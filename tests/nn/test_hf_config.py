"""What config.json may say, what it means when it says nothing, and what is refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from triloop.errors import ModelError
from triloop.nn.decoder import DecoderConfig
from triloop.nn.hf_config import FAMILIES, config_from_hf, config_to_hf

BARE: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 10, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 4,
    "num_attention_heads": 4,
}  # fmt: skip


def read(**changes: Any) -> DecoderConfig:
    return config_from_hf({**BARE, **changes}, where="x/config.json")


def test_silence_means_what_the_family_says() -> None:
    llama = read()
    assert (llama.num_kv_heads, llama.head_dim, llama.norm_eps, llama.rope_theta) == (4, 4, 1e-6, 10000.0)
    assert not (llama.tie_embeddings or llama.qkv_bias or llama.out_bias or llama.mlp_bias or llama.qk_norm)
    assert llama.sliding_window is None and llama.nope_layers == () and llama.max_positions == 2048
    mistral = read(model_type="mistral", num_attention_heads=8, hidden_size=32)
    assert (mistral.num_kv_heads, mistral.sliding_window, mistral.sliding_layers) == (8, 4096, (0, 1, 2, 3))
    qwen2 = read(model_type="qwen2", num_key_value_heads=2, sliding_window=8)
    assert qwen2.qkv_bias and not qwen2.out_bias and qwen2.sliding_window is None
    qwen3 = read(model_type="qwen3", num_key_value_heads=2)
    assert qwen3.qk_norm and qwen3.head_dim == 128 and not qwen3.qkv_bias
    smollm3 = read(model_type="smollm3")
    assert smollm3.tie_embeddings and smollm3.rope_theta == 2e6 and smollm3.nope_layers == (3,)
    assert read(num_key_value_heads=None, head_dim=None).num_kv_heads == 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(name).to_dict()
    needed = {k: theirs[k] for k in BARE if k != "model_type"}
    assert dataclasses.replace(config_from_hf({"model_type": name, **needed}), extra={}) == dataclasses.replace(
        config_from_hf(theirs), extra={}
    )


def test_old_and_new_rope_are_one() -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = read(rope_theta=500.0, rope_scaling={"type": "llama3", **llama3})
    new = read(rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, **llama3})
    assert (
        (old.rope_theta, old.rope_scaling)
        == (new.rope_theta, new.rope_scaling)
        == (500.0, {"rope_type": "llama3", **llama3})
    )
    assert read(rope_scaling=None, rope_parameters={"rope_type": "default", "rope_theta": 7.0}).rope_scaling is None
    yarn = read(rope_scaling={"rope_type": "yarn", "original_max_position_embeddings": 512}).rope_scaling
    assert yarn is not None and yarn["factor"] == 4.0, "the ratio of the two context lengths"
    assert "rope_parameters" in config_to_hf(new) and "rope_theta" not in config_to_hf(new)
    assert "rope_parameters" not in config_to_hf(old) and config_to_hf(old)["rope_theta"] == 500.0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]},
     "architecture Gemma3ForCausalLM: use --backend transformers"),
    ({"model_type": None}, "model_type None: use --backend transformers"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification: use --backend transformers"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"quantization_config": {"bits": 4}}, "quantised"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not .*--backend transformers"),
    ({"rope_scaling": {"type": "longrope"}}, "rope type 'longrope'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "needs numbers for low_freq_factor, high_freq_factor"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "per layer type"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ({"rope_theta": "big"}, "'rope_theta' is 'big'"),
    ({"model_type": "qwen2", "num_key_value_heads": 2, "layer_types": ["sliding_attention"] * 4}, "no sliding_window"),
    ({"model_type": "qwen3", "num_key_value_heads": 2, "layer_types": ["full_attention"]}, "expected 4 entries"),
    ({"model_type": "qwen3", "num_key_value_heads": 2, "layer_types": ["chunked_attention"] * 4}, "each full_attention or"),
    ({"model_type": "mistral", "num_key_value_heads": 2, "layer_types": ["full_attention", "sliding_attention"]}, "mixed"),
    ({"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": "4k"}, "'sliding_window' is '4k'"),
    ({"model_type": "smollm3", "no_rope_layers": [1]}, "at least 4 entries"),
    ({"hidden_size": 0}, "'hidden_size' is 0, expected a positive integer"),
    ({"vocab_size": "many"}, "x/config.json: field 'vocab_size' is 'many'"),
    ({"num_hidden_layers": None}, "'num_hidden_layers' is None"),
    ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1000000000, expected at most 10,000"),
    ({"rms_norm_eps": "small"}, "a positive number"),
    ({"attention_bias": "yes"}, "true or false"),
    ({"num_key_value_heads": 3}, "not a multiple"),
    ({"head_dim": 5}, "odd"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(**changes)


def test_writing_keeps_what_is_not_ours() -> None:
    raw = config_to_hf(read(initializer_range=0.3, use_cache=True, attention_dropout=0.1))
    assert (raw["initializer_range"], raw["attention_dropout"]) == (0.3, 0.1)
    assert raw["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"qk_norm": True}, "qk_norm"), ({"qkv_bias": True}, "qkv_bias"), ({"nope_layers": (1,)}, "nope_layers"),
     ({"sliding_window": 4, "sliding_layers": (0,)}, "sliding_window")],
)  # fmt: skip
def test_a_family_that_cannot_say_it(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError, match=f"a llama config.json cannot say {field}"):
        config_to_hf(dataclasses.replace(read(), **changes))
    with pytest.raises(ModelError, match="model_type 'gpt2' cannot be written"):
        config_to_hf(dataclasses.replace(read(), model_type="gpt2"))
