"""config.json <-> DecoderConfig, for the families that share the Llama shape.

Fields that a config.json leaves out mean what the family's own class in transformers says, so the families' defaults
stand here as data. Whatever would change the logits and is not understood is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from triloop.errors import ModelError
from triloop.nn.decoder import DecoderConfig

__all__ = ["FAMILIES", "LATENT", "Family", "config_from_hf", "config_to_hf"]

LATENT = "triloop-ternary"
"""``quant_method`` of a directory whose weights are the latent ones of a ternary policy (triloop.policies.ternary)."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What one model_type takes for granted."""

    architecture: str
    rope_theta: float = 10000.0
    max_positions: int
    kv_heads: int | None = None
    """None: as many as query heads."""
    head_dim: int | None = None
    """None: hidden size / heads."""
    tied: bool = False
    qkv_bias: bool = False
    """Biases on queries, keys and values whatever the config says."""
    may_bias_attention: bool = False
    """Reads ``attention_bias``."""
    may_bias_mlp: bool = False
    """Reads ``mlp_bias``."""
    qk_norm: bool = False
    window: int | None = None
    """Default of ``sliding_window``."""
    window_is_optional: bool = True
    """The window counts only with ``use_sliding_window``, in the layers of ``layer_types``."""
    nope: bool = False
    """Reads ``no_rope_layers``."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family(architecture="LlamaForCausalLM", max_positions=2048, may_bias_attention=True, may_bias_mlp=True),
    "mistral": Family(
        architecture="MistralForCausalLM", max_positions=131072, kv_heads=8, window=4096, window_is_optional=False
    ),
    "qwen2": Family(architecture="Qwen2ForCausalLM", max_positions=32768, kv_heads=32, qkv_bias=True, window=4096),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        max_positions=32768,
        kv_heads=32,
        head_dim=128,
        may_bias_attention=True,
        qk_norm=True,
        window=4096,
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM",
        rope_theta=2_000_000.0,
        max_positions=32768,
        kv_heads=4,
        tied=True,
        may_bias_attention=True,
        may_bias_mlp=True,
        nope=True,
    ),
}
ROPE_NEEDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
}
_OTHER = "Use --backend transformers (extra 'hf'), which runs any architecture."
MOST_LAYERS = 10_000
"""Of a model that exists; a corrupt file must not make us build for hours what its weights cannot fill."""


def config_from_hf(raw: Mapping[str, Any], *, where: str = "config.json", latent: bool = False) -> DecoderConfig:
    """Read a config.json. Raises ModelError, naming ``where``, for what the native decoder cannot run exactly.

    ``latent``: weights of which a ternary policy's codes are made are welcome.
    """
    name, family = _family(raw, where)
    _check_unquantised(raw, where, latent)
    read = _Reader(raw, where)
    heads, hidden, layers = (read.size(f) for f in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    if layers > MOST_LAYERS:
        raise read.error("num_hidden_layers", layers, f"at most {MOST_LAYERS:,}")
    max_positions = read.size("max_position_embeddings", family.max_positions)
    window, windowed = _window(read, family, layers)
    theta, scaling = _rope(read, family, max_positions)
    attention_bias = family.may_bias_attention and read.flag("attention_bias")
    mlp_bias = family.may_bias_mlp and read.flag("mlp_bias")
    return DecoderConfig(
        vocab_size=read.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.size("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=read.size("num_key_value_heads", family.kv_heads or heads, null=heads),
        head_dim=read.size("head_dim", family.head_dim or hidden // heads, null=hidden // heads),
        norm_eps=read.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_positions=max_positions,
        tie_embeddings=read.flag("tie_word_embeddings", family.tied),
        qkv_bias=family.qkv_bias or attention_bias,
        out_bias=attention_bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm,
        sliding_window=window,
        sliding_layers=windowed,
        nope_layers=_nope(read, layers) if family.nope else (),
        model_type=name,
        extra=dict(raw),
    )


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of ``config``: what it was read from, with every field that the decoder knows set from it.

    Raises ModelError when the family named by ``model_type`` has no way to say it (a Llama with QK norm, for one).
    """
    if config.model_type not in FAMILIES:
        raise ModelError(f"model_type {config.model_type!r} cannot be written; known are {', '.join(FAMILIES)}")
    family = FAMILIES[config.model_type]
    raw = dict(config.extra) if config.extra.get("model_type") == config.model_type else {}
    raw.update(
        architectures=[family.architecture],
        model_type=config.model_type,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        hidden_act="silu",
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=config.tie_embeddings,
    )
    if family.may_bias_attention:
        raw["attention_bias"] = config.out_bias
    if family.may_bias_mlp:
        raw["mlp_bias"] = config.mlp_bias
    if family.nope:
        raw["no_rope_layers"] = [int(i not in config.nope_layers) for i in range(config.num_layers)]
    _write_rope(raw, config)
    _write_window(raw, config, family)
    _check_says_the_same(raw, config)
    return raw


# -------------------------------------------------------------------- reading


class _Reader:
    """Typed access to a config.json; every complaint names file and field."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw, self.where = raw, where

    def size(self, field: str, default: int | None = None, *, null: int | None = None) -> int:
        """A positive integer; ``default`` when absent, ``null`` when the file says null."""
        value = self.raw.get(field, default)
        value = null if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(field, value, "a positive integer")
        return value

    def number(self, field: str, default: float) -> float:
        value = self.raw.get(field, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise self.error(field, value, "a positive number")
        return float(value)

    def flag(self, field: str, default: bool = False) -> bool:
        value = self.raw.get(field, default)
        if not isinstance(value, bool | None):
            raise self.error(field, value, "true or false")
        return bool(value)

    def error(self, field: str, got: Any, expected: str) -> ModelError:
        return ModelError(f"{self.where}: field {field!r} is {got!r}, expected {expected}.")


def _family(raw: Mapping[str, Any], where: str) -> tuple[str, Family]:
    name = raw.get("model_type")
    listed = raw.get("architectures")
    architectures = listed if isinstance(listed, list) else []
    if not isinstance(name, str) or name not in FAMILIES:
        shown = ", ".join(map(str, architectures)) or f"model_type {name!r}"
        raise ModelError(
            f"{where}: architecture {shown}: use --backend transformers (extra 'hf'). "
            f"The native decoder reads {', '.join(f.architecture for f in FAMILIES.values())}."
        )
    family = FAMILIES[name]
    if architectures and family.architecture not in architectures:
        raise ModelError(
            f"{where}: architecture {', '.join(map(str, architectures))}: use --backend transformers; "
            f"the native decoder reads {family.architecture} for model_type {name!r}."
        )
    act = raw.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise ModelError(f"{where}: hidden_act {act!r}; the native decoder has only 'silu'. {_OTHER}")
    return name, family


def _check_unquantised(raw: Mapping[str, Any], where: str, latent: bool) -> None:
    how = raw.get("quantization_config")
    kind = how.get("quant_method") if isinstance(how, Mapping) else None
    if kind == LATENT and not latent:
        raise ModelError(
            f"{where}: this is a ternary policy, which can sample and learn but not serve here; give a model in full "
            "precision, or export this one with: triloop export DIR --format hf --out DIR"
        )
    if how and kind != LATENT:
        raise ModelError(
            f"{where}: the weights are quantised (quantization_config); give the unquantised model, in float32, "
            "bfloat16 or float16."
        )


def _rope(read: _Reader, family: Family, max_positions: int) -> tuple[float, dict[str, Any] | None]:
    """Base and extension from ``rope_theta`` + ``rope_scaling`` (transformers 4) or ``rope_parameters`` (5)."""
    given = read.raw.get("rope_scaling") or read.raw.get("rope_parameters") or {}
    if not isinstance(given, Mapping) or any(isinstance(v, Mapping) for v in given.values()):
        raise ModelError(f"{read.where}: rope parameters per layer type are not supported natively. {_OTHER}")
    scaling = {k: v for k, v in given.items() if k not in ("type", "rope_type", "rope_theta") and v is not None}
    theta = given.get("rope_theta") or read.raw.get("rope_theta") or family.rope_theta
    if not isinstance(theta, int | float):
        raise read.error("rope_theta", theta, "a positive number")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ROPE_NEEDS:
        raise ModelError(
            f"{read.where}: rope type {kind!r} is not supported natively (only {', '.join(ROPE_NEEDS)}). {_OTHER}"
        )
    for partial in (scaling.pop("partial_rotary_factor", 1.0), read.raw.get("partial_rotary_factor")):
        if partial not in (None, 1.0):
            raise ModelError(f"{read.where}: partial_rotary_factor {partial} is not supported natively. {_OTHER}")
    lacking = [k for k in ROPE_NEEDS[kind] if not isinstance(scaling.get(k), int | float)]
    if lacking:
        raise ModelError(
            f"{read.where}: rope type {kind!r} needs numbers for {', '.join(lacking)}; got {dict(given)!r}."
        )
    if kind == "default":
        return float(theta), None
    if kind in ("llama3", "yarn"):
        own = read.raw.get("original_max_position_embeddings")
        original = own or scaling.get("original_max_position_embeddings") or max_positions
        scaling["original_max_position_embeddings"] = original
        scaling.setdefault("factor", max_positions / original)
    return float(theta), {"rope_type": kind, **scaling}


def _window(read: _Reader, family: Family, layers: int) -> tuple[int | None, tuple[int, ...]]:
    """Size of the attention window and the layers that have one."""
    if family.window is None and not family.nope:
        return None, ()  # Llama reads none of these fields
    size = read.raw.get("sliding_window", family.window)
    if family.window_is_optional and not read.flag("use_sliding_window"):
        size = None
    if size is not None and (not isinstance(size, int) or size < 1):
        raise read.error("sliding_window", size, "a positive integer or null")
    if not family.window_is_optional:
        if len(set(read.raw.get("layer_types") or ())) > 1:
            raise ModelError(f"{read.where}: mixed layer_types under model_type 'mistral'. {_OTHER}")
        return size, () if size is None else tuple(range(layers))
    chosen = _sliding_layers(read, family, layers, size)
    if chosen and size is None:
        raise ModelError(f"{read.where}: layer_types asks for sliding attention, but no sliding_window is in use.")
    return (size, chosen) if chosen else (None, ())


def _sliding_layers(read: _Reader, family: Family, layers: int, size: int | None) -> tuple[int, ...]:
    types = read.raw.get("layer_types")
    if types is not None:
        known = {"full_attention", "sliding_attention"}
        if not isinstance(types, list) or len(types) != layers or not known.issuperset(types):
            raise read.error("layer_types", types, f"{layers} entries, each full_attention or sliding_attention")
        return tuple(i for i, t in enumerate(types) if t == "sliding_attention")
    if size is None:
        return ()
    if family.nope:
        return _nope(read, layers)
    return tuple(range(int(read.raw.get("max_window_layers", 28)), layers))


def _nope(read: _Reader, layers: int) -> tuple[int, ...]:
    """Layers without rotary embedding: where ``no_rope_layers`` holds 0 (its entries mean *has rope*)."""
    flags = read.raw.get("no_rope_layers")
    if flags is None:
        interval = read.size("no_rope_layer_interval", 4)
        return tuple(i for i in range(layers) if (i + 1) % interval == 0)
    if not isinstance(flags, list) or len(flags) < layers:
        raise read.error("no_rope_layers", flags, f"at least {layers} entries of 0 or 1")
    return tuple(i for i in range(layers) if not flags[i])


# -------------------------------------------------------------------- writing


def _write_rope(raw: dict[str, Any], config: DecoderConfig) -> None:
    new_style = "rope_parameters" in raw
    for field in ("rope_parameters", "rope_scaling", "rope_theta"):
        raw.pop(field, None)
    scaling = dict(config.rope_scaling) if config.rope_scaling else None
    if new_style:
        raw["rope_parameters"] = {"rope_type": "default", **(scaling or {}), "rope_theta": config.rope_theta}
    else:  # every version of transformers reads this form
        raw.update(rope_theta=config.rope_theta, rope_scaling=scaling)


def _write_window(raw: dict[str, Any], config: DecoderConfig, family: Family) -> None:
    if family.window is None and not family.nope:
        return
    if family.window_is_optional:
        if config.sliding_window is None and not raw.get("use_sliding_window"):
            if raw.get("layer_types"):
                raw["layer_types"] = ["full_attention"] * config.num_layers
            return
        raw["use_sliding_window"] = config.sliding_window is not None
        sliding = set(config.sliding_layers)
        names = ("full_attention", "sliding_attention")
        raw["layer_types"] = [names[i in sliding] for i in range(config.num_layers)]
    raw["sliding_window"] = config.sliding_window


def _check_says_the_same(raw: dict[str, Any], config: DecoderConfig) -> None:
    again = config_from_hf(raw, where="the config to be written", latent=True)
    for field in fields(DecoderConfig):
        got, wanted = getattr(again, field.name), getattr(config, field.name)
        if field.name not in ("extra", "rope_scaling") and got != wanted:
            raise ModelError(
                f"a {config.model_type} config.json cannot say {field.name}={wanted!r} (it would read back {got!r}); "
                f"choose another model_type of {', '.join(FAMILIES)}."
            )
