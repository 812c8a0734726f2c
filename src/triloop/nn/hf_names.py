"""Which rows of which fused parameter each Hugging Face tensor is."""

from __future__ import annotations

from dataclasses import dataclass

from triloop.nn.decoder import DecoderConfig

__all__ = ["Part", "hf_parts", "linear_parts"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows ``start .. start + shape[0] - 1`` of the decoder's parameter ``param``."""

    param: str
    start: int
    shape: tuple[int, ...]


def linear_parts(config: DecoderConfig) -> dict[str, tuple[tuple[str, int], ...]]:
    """For each linear of a layer, the Hugging Face modules it fuses and their output sizes, in row order."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    width = config.intermediate_size
    return {
        "qkv": (("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)),
        "out": (("self_attn.o_proj", config.hidden_size),),
        "gate_up": (("mlp.gate_proj", width), ("mlp.up_proj", width)),
        "down": (("mlp.down_proj", config.hidden_size),),
    }


def hf_parts(config: DecoderConfig) -> dict[str, Part]:
    """Every tensor that a directory of this config holds, in file order."""
    c, hidden = config, config.hidden_size
    inputs = {"qkv": hidden, "out": c.num_heads * c.head_dim, "gate_up": hidden, "down": c.intermediate_size}
    biased = {"qkv": c.qkv_bias, "out": c.out_bias, "gate_up": c.mlp_bias, "down": c.mlp_bias}
    norms = {"input_layernorm": ("norm1", hidden), "post_attention_layernorm": ("norm2", hidden)}
    if c.qk_norm:
        norms |= {f"self_attn.{n}": (n, c.head_dim) for n in ("q_norm", "k_norm")}
    parts = {"model.embed_tokens.weight": Part(param="embed.weight", start=0, shape=(c.vocab_size, hidden))}
    for i in range(c.num_layers):
        theirs, ours = f"model.layers.{i}", f"layers.{i}"
        for linear, modules in linear_parts(c).items():
            start = 0
            for module, rows in modules:
                key = f"{theirs}.{module}"
                parts[f"{key}.weight"] = Part(
                    param=f"{ours}.{linear}.weight", start=start, shape=(rows, inputs[linear])
                )
                if biased[linear]:
                    parts[f"{key}.bias"] = Part(param=f"{ours}.{linear}.bias", start=start, shape=(rows,))
                start += rows
        for norm, (name, size) in norms.items():
            parts[f"{theirs}.{norm}.weight"] = Part(param=f"{ours}.{name}.weight", start=0, shape=(size,))
    parts["model.norm.weight"] = Part(param="norm.weight", start=0, shape=(hidden,))
    if not c.tie_embeddings:
        parts["lm_head.weight"] = Part(param="head.weight", start=0, shape=(c.vocab_size, hidden))
    return parts
