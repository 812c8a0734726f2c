"""Architecture, names and metadata of a decoder in GGUF, and back.

llama.cpp's llama graph turns neighbouring pairs (2i, 2i + 1) of a head by the rotary angle; Hugging Face weights, and ours,
turn (i, i + dim/2). Query and key rows are therefore put into another order for that architecture, not for Qwen's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from triloop.errors import ModelError
from triloop.nn.decoder import DecoderConfig
from triloop.nn.rope import rope_frequencies

__all__ = ["OWN", "architecture", "gguf_name", "metadata", "paired", "rope_factors", "rope_order"]

_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
OWN = "triloop.config"
"""Key of what GGUF has no words for: model_type, and the parameters of the rotary scaling."""
_NOPE_EVERY = 4
"""llama.cpp's smollm3 leaves the rotary embedding out of every fourth layer, whatever the file says."""


def gguf_name(name: str) -> str:
    """``model.layers.3.self_attn.q_proj.weight`` -> ``blk.3.attn_q.weight``."""
    if name in _WHOLE:
        return _WHOLE[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_BLOCK[module]}.{kind}"


def paired(architecture: str) -> bool:
    """Whether llama.cpp turns neighbouring pairs in this architecture, so that query and key rows change places."""
    return architecture in ("llama", "smollm3")


def rope_order(heads: int, dim: int) -> Int[Tensor, " rows"]:
    """Row that llama.cpp's llama wants at each place: i and i + dim/2 of a head side by side."""
    return torch.arange(heads * dim).view(heads, 2, dim // 2).transpose(1, 2).reshape(-1)


def architecture(config: DecoderConfig) -> str:
    """The architecture of llama.cpp that computes what ``config`` says. Raises ModelError when there is none."""
    c = config
    if c.sliding_window is not None and c.sliding_layers and c.sliding_window < c.max_positions:
        raise ModelError(
            f"attention sees {c.sliding_window} of {c.max_positions} positions (sliding_window), which llama.cpp's "
            "llama and qwen graphs ignore; its text would differ. Export --format hf."
        )
    if c.nope_layers:
        expected = tuple(i for i in range(c.num_layers) if (i + 1) % _NOPE_EVERY == 0)
        if c.nope_layers != expected or c.qk_norm or c.qkv_bias or c.out_bias or c.mlp_bias:
            raise ModelError(
                f"layers without rotary embedding are {c.nope_layers}; llama.cpp's smollm3 leaves it out of every "
                f"{_NOPE_EVERY}th layer, without biases or query norms. Export --format hf."
            )
        return "smollm3"
    if c.qk_norm:
        if c.qkv_bias or c.out_bias or c.mlp_bias:
            raise ModelError(
                "norms of queries and keys stand together with biases; llama.cpp's qwen3 has none. Export --format "
                "hf, or train with a quantiser that adds no bias."
            )
        return "qwen3"
    plain_qwen = c.num_heads * c.head_dim == c.hidden_size and c.qkv_bias and not (c.out_bias or c.mlp_bias)
    # Any other mixture is a Llama to llama.cpp: its graph takes optional biases and heads of any size.
    return "qwen2" if c.model_type == "qwen2" and plain_qwen else "llama"


def metadata(config: DecoderConfig, architecture: str) -> dict[str, int | float | str]:
    """Keys without their ``architecture.`` prefix. Integers are uint32 in the file, floats float32."""
    c = config
    found: dict[str, int | float | str] = {
        "vocab_size": c.vocab_size,
        "context_length": c.max_positions,
        "embedding_length": c.hidden_size,
        "block_count": c.num_layers,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_heads,
        "attention.head_count_kv": c.num_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": float(c.norm_eps),
        "rope.dimension_count": c.head_dim,
        "rope.freq_base": float(c.rope_theta),
    }
    kind = _kind(c.rope_scaling)
    if kind == "llama3" and architecture != "llama":
        raise ModelError(f"rope scaling 'llama3' under {architecture}: llama.cpp reads its factors for llama only")
    if kind in ("linear", "yarn"):
        scaling = dict(c.rope_scaling or {})
        factor = float(scaling.get("factor", 1.0))
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": factor}
        if kind == "yarn":
            found |= _yarn(c, scaling, factor)
    return found


def rope_factors(config: DecoderConfig) -> Tensor | None:
    """What llama.cpp divides each frequency by (tensor ``rope_freqs.weight``) for Llama 3.1's scaling; else None."""
    if _kind(config.rope_scaling) != "llama3":
        return None
    plain, _ = rope_frequencies(config.head_dim, config.rope_theta, None, config.max_positions)
    scaled, _ = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling, config.max_positions)
    return plain / scaled


def _kind(scaling: Mapping[str, Any] | None) -> str:
    return str((scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default")


def _yarn(config: DecoderConfig, scaling: Mapping[str, Any], factor: float) -> dict[str, int | float | str]:
    if not scaling.get("truncate", True):
        raise ModelError("YaRN with truncate false: llama.cpp always rounds the range of its ramp. Export --format hf.")
    _, scale = rope_frequencies(config.head_dim, config.rope_theta, scaling, config.max_positions)
    found: dict[str, int | float | str] = {
        "rope.scaling.original_context_length": int(
            scaling.get("original_max_position_embeddings") or config.max_positions
        ),
        # llama.cpp multiplies what stands here by 0.1 ln(factor) + 1 itself.
        "rope.scaling.attn_factor": scale / (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0),
    }
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if scaling.get(ours):
            found[f"rope.scaling.{theirs}"] = float(scaling[ours])
    return found
