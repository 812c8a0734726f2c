"""One decoder for the Llama family: Llama, Qwen2, Qwen3, Mistral, SmolLM shapes.

Three ways through the same weights:

- ``packed``  training and scoring: one [tokens, hidden] matrix without padding or repetition outside attention;
- ``prefill`` prompts, right-padded, into a key-value cache;
- ``decode``  one token for every row of a cache.

Projections that read the same input are one matrix (``qkv``, ``gate_up``): fewer, larger products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from triloop.errors import ModelError
from triloop.kernels import train
from triloop.nn.fused import Linear, add_norm, linear, rms_norm, rotated, swiglu
from triloop.nn.lean import Embedding
from triloop.nn.packing import Packing, gathered, packing, spread
from triloop.nn.rope import rope_frequencies

__all__ = [
    "COMPILED",
    "Answer",
    "Decoder",
    "DecoderConfig",
    "KVCache",
    "Layer",
    "Packing",
    "Projection",
    "RMSNorm",
    "multiplied",
    "packing",
]

Projection = Literal["qkv", "out", "gate_up", "down"]
"""The matrices of a layer, by their names in it."""

COMPILED = 2048
"""Longest sequences, in tokens, that the compiled attention takes; torch's takes longer ones.

Forward and backward in fp32 on one core of an AMD Milan (AVX2), torch's time as a multiple of the kernel's, for 8192
tokens of unshared sequences and heads of 32 | 64: length 64 1.8 | 2.1, 512 2.5 | 2.1, 1024 1.7 | 1.4, 2048 1.4 | 1.1,
4096 1.2 | 0.9. In bf16, which that processor emulates, and with shared beginnings torch's is slower still.
"""

Answer = Callable[[int, Projection, nn.Module, Tensor], Tensor]
"""(index of a layer, one of its projections, that module, what it reads [tokens, in]) -> what it answers [tokens, out]."""


def multiplied(index: int, name: Projection, module: nn.Module, x: Tensor) -> Tensor:
    """What the module says."""
    answer: Tensor = module(x)
    return answer


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder, in the words of Hugging Face configs."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    max_positions: int = 2048
    tie_embeddings: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMS norm of each query and key head before rotation (Qwen3)."""
    sliding_window: int | None = None
    """Keys further back than this are not seen, in the layers of ``sliding_layers``."""
    sliding_layers: tuple[int, ...] = ()
    nope_layers: tuple[int, ...] = ()
    """Layers without rotary embedding (SmolLM3)."""
    model_type: str = "llama"
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The config.json this came from, kept so that writing loses nothing."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ModelError(f"head_dim {self.head_dim} is odd; rotary embedding needs an even one")

    @property
    def qkv_size(self) -> int:
        """Numbers that ``qkv`` answers: queries, keys and values of all heads."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def parameters(self) -> int:
        """Number of weights, biases and norms included."""
        h, d, qkv = self.hidden_size, self.head_dim, self.qkv_size
        layer = h * qkv + self.num_heads * d * h + 3 * h * self.intermediate_size + 2 * h
        layer += qkv * self.qkv_bias + h * self.out_bias + (2 * self.intermediate_size + h) * self.mlp_bias
        layer += 2 * d * self.qk_norm
        return self.num_layers * layer + self.vocab_size * h * (1 if self.tie_embeddings else 2) + h


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32 (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return rms_norm(x, self.weight, self.eps)
        return self.weight.to(x.dtype) * F.rms_norm(x.float(), (x.shape[-1],), None, self.eps).to(x.dtype)


class KVCache:
    """Keys and values of ``rows`` sequences of up to ``length`` positions; rows are reused as sequences finish.

    Keys are stored [rows, kv_heads, head_dim, length] so that a decode step reads them as a matrix without a copy.
    ``bias`` [rows, length] is 0 where a row has a key and -inf where it has none.
    """

    def __init__(self, config: DecoderConfig, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        heads, dim = config.num_kv_heads, config.head_dim
        self.length = length
        self.keys = [
            torch.zeros(rows, heads, dim, length, dtype=dtype, device=device) for _ in range(config.num_layers)
        ]
        self.values = [
            torch.zeros(rows, heads, length, dim, dtype=dtype, device=device) for _ in range(config.num_layers)
        ]
        self.bias = torch.full((rows, length), float("-inf"), dtype=dtype, device=device)
        self.every_row = torch.arange(rows, device=device)

    @property
    def rows(self) -> int:
        return self.bias.shape[0]

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop every row but these, in this order."""
        self.keys = [k.index_select(0, rows) for k in self.keys]
        self.values = [v.index_select(0, rows) for v in self.values]
        self.bias = self.bias.index_select(0, rows)
        self.every_row = self.every_row[: len(rows)]

    def place(self, rows: Int[Tensor, " new"], source: Int[Tensor, " new"], prompts: KVCache) -> None:
        """Copy prompt ``source[i]`` of ``prompts`` into row ``rows[i]``."""
        self.bias[rows] = float("-inf")
        self._take(rows, source, prompts, prompts.length)

    def fork(self, rows: Int[Tensor, " new"], source: Int[Tensor, " new"], span: int) -> None:
        """Copy the first ``span`` positions of row ``source[i]``, all that it has, into row ``rows[i]``. None is both."""
        self.bias[rows] = float("-inf")
        self._take(rows, source, self, span)

    def _take(self, rows: Tensor, source: Tensor, other: KVCache, span: int) -> None:
        for mine, theirs in zip(self.keys, other.keys, strict=True):
            mine[rows, :, :, :span] = theirs[..., :span].index_select(0, source)
        for mine, theirs in zip(self.values, other.values, strict=True):
            mine[rows, :, :span] = theirs[:, :, :span].index_select(0, source)
        self.bias[rows, :span] = other.bias[:, :span].index_select(0, source)


class Layer(nn.Module):
    """Attention and gated MLP, each behind a norm and a residual."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        c = config
        self.heads, self.kv_heads, self.dim = c.num_heads, c.num_kv_heads, c.head_dim
        self.rotary = index not in c.nope_layers
        self.window = c.sliding_window if index in c.sliding_layers else None
        self.shape = train.AttentionShape(c.num_heads, c.num_kv_heads, c.head_dim, self.window or 0, c.norm_eps)
        self.norm1 = RMSNorm(c.hidden_size, c.norm_eps)
        self.qkv = Linear(c.hidden_size, c.qkv_size, bias=c.qkv_bias)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None
        self.out = Linear(c.num_heads * c.head_dim, c.hidden_size, bias=c.out_bias)
        self.norm2 = RMSNorm(c.hidden_size, c.norm_eps)
        self.gate_up = Linear(c.hidden_size, 2 * c.intermediate_size, bias=c.mlp_bias)
        self.down = Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(self.norm2(x))))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys together [n, heads + kv_heads, dim], and values [n, kv_heads, dim]."""
        return self.turned(self.qkv(self.norm1(x)), cos, sin)

    def turned(self, joint: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """The same from what ``qkv`` answers."""
        parts = joint.view(joint.shape[0], -1, self.dim)
        qk, v = parts.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, : self.heads]), self.k_norm(qk[:, self.heads :])), dim=1)
        return (rotated(qk, cos, sin) if self.rotary else qk), v


class Decoder(nn.Module):
    """Embedding, layers, final norm, output head (tied or not), and optionally a value head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, i) for i in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head: nn.Module | None = None
        if not config.tie_embeddings:
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.value_head: nn.Linear | None = None
        # Not a buffer: rounded to bf16 with the weights, angles of far positions would be off by whole turns.
        with torch.device("cpu"):
            self.inverse_frequency, self.rope_scale = rope_frequencies(
                config.head_dim, config.rope_theta, config.rope_scaling, config.max_positions
            )

    @classmethod
    def empty(cls, config: DecoderConfig) -> Decoder:
        """Without memory for weights, which ``load_state_dict(..., assign=True)`` brings."""
        with torch.device("meta"):
            return cls(config)

    def initialise(self, seed: int, std: float = 0.02) -> Decoder:
        """Fresh weights: normal(0, std); projections back into the residual stream scaled by 1/sqrt(2 layers)."""
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.ndim < 2:
                    p.fill_(0.0 if name.endswith("bias") else 1.0)
                    continue
                deep = name.endswith(("out.weight", "down.weight"))
                p.normal_(0.0, std / (2 * self.config.num_layers) ** 0.5 if deep else std, generator=g)
        return self

    def add_value_head(self) -> None:
        """One linear value per position, starting at zero."""
        self.value_head = nn.Linear(self.config.hidden_size, 1, device=self.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @property
    def blocks(self) -> list[Layer]:
        """``layers`` as what they are: a ModuleList knows only modules."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    @property
    def output_weight(self) -> Float[Tensor, "vocab hidden"]:
        # A tied head that multiplies in a way of its own has no weight.
        own = None if self.head is None else self.head.weight
        return own if isinstance(own, Tensor) else self.embed.weight

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def _angles(self, positions: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """cos and signed sin [n, 1, head_dim], in the decoder's dtype."""
        angle = positions[:, None].float() * self.inverse_frequency.to(positions.device)[None, :]
        cos, sin = angle.cos() * self.rope_scale, angle.sin() * self.rope_scale
        return (
            torch.cat((cos, cos), dim=-1)[:, None].to(self.dtype),
            torch.cat((-sin, sin), dim=-1)[:, None].to(self.dtype),
        )

    def turns(self, length: int) -> tuple[Float[Tensor, "length half"], Float[Tensor, "length half"]]:
        """cos and sin of every position below ``length``, in fp32: the tables that compiled kernels rotate by."""
        angle = torch.arange(length).float()[:, None] * self.inverse_frequency[None, :]
        return angle.cos() * self.rope_scale, angle.sin() * self.rope_scale

    def logits(self, hidden: Float[Tensor, "n hidden"]) -> Float[Tensor, "n vocab"]:
        if self.head is None or isinstance(self.head, nn.Linear):
            return linear(hidden, self.output_weight)
        return self.head(hidden)

    def packed(
        self, ids: Int[Tensor, " tokens"], where: Packing, answer: Answer = multiplied
    ) -> Float[Tensor, "total hidden"]:
        """Hidden states after the final norm, one for each token of the sequences laid end to end. Differentiable.
        ``answer`` says what the layers' projections answer."""
        x: Tensor = self.embed(ids)
        attend, delta = self._attention(x, where), None
        for i, layer in enumerate(self.blocks):
            x, normed = add_norm(x, delta, layer.norm1.weight, layer.norm1.eps)
            joint = answer(i, "qkv", layer.qkv, normed)
            mixed = answer(i, "out", layer.out, attend(layer, joint))
            x, normed = add_norm(x, mixed, layer.norm2.weight, layer.norm2.eps)
            delta = answer(i, "down", layer.down, swiglu(answer(i, "gate_up", layer.gate_up, normed)))
        _, last = add_norm(x, delta, self.norm.weight, self.norm.eps, exact=True)
        return last if where.order is None else last.index_select(0, where.order)

    def _attention(self, x: Tensor, where: Packing) -> Callable[[Layer, Tensor], Tensor]:
        """From what a layer's ``qkv`` answers to what its ``out`` reads."""
        if not train.usable(x) or where.longest > COMPILED:
            cos, sin = self._angles(where.positions)
            return lambda layer, joint: _attend_packed(layer, *layer.turned(joint, cos, sin), where)
        return partial(_attend_compiled, where, *self.turns(where.longest))

    def logits_padded(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        """Logits of right-padded sequences; what padding says is meaningless."""
        batch, time = ids.shape
        hidden = self.packed(ids.reshape(-1), packing([time] * batch, ids.device))
        return self.logits(hidden).view(batch, time, -1)

    @torch.no_grad()
    def prefill(
        self, ids: Int[Tensor, "prompts time"], lengths: Int[Tensor, " prompts"]
    ) -> tuple[Float[Tensor, "prompts vocab"], KVCache]:
        """Right-padded prompts -> logits after the last token of each, and their cache."""
        prompts, time = ids.shape
        cache = KVCache(self.config, prompts, time, self.dtype, self.device)
        seen = torch.arange(time, device=ids.device)[None, :] < lengths[:, None]
        cache.bias.masked_fill_(seen, 0.0)

        where = packing([time] * prompts, ids.device)
        x = self.embed(ids.reshape(-1))
        cos, sin = self._angles(where.positions)
        for i, layer in enumerate(self.blocks):
            qk, v = layer.project(x, cos, sin)
            keys = qk[:, layer.heads :].reshape(prompts, time, layer.kv_heads, layer.dim)
            cache.keys[i].copy_(keys.permute(0, 2, 3, 1))
            cache.values[i].copy_(v.reshape(prompts, time, layer.kv_heads, layer.dim).transpose(1, 2))
            x = x + layer.out(_attend_packed(layer, qk, v, where))
            x = x + layer.mlp(x)
        last = torch.arange(prompts, device=ids.device) * time + lengths - 1
        return self.logits(self.norm(x.index_select(0, last))), cache

    @torch.no_grad()
    def decode(
        self, tokens: Int[Tensor, " rows"], positions: Int[Tensor, " rows"], cache: KVCache, span: int
    ) -> Float[Tensor, "rows vocab"]:
        """One step for the cache's first rows: writes position ``positions[r]`` of row r, returns the next logits.

        ``span`` is the largest position in use plus one: attention reads no further.
        """
        count = len(tokens)
        rows = cache.every_row[:count]
        cache.bias[rows, positions] = 0.0
        bias = cache.bias[:count, None, None, :span]
        cos, sin = self._angles(positions)
        x = self.embed(tokens)
        for i, layer in enumerate(self.blocks):
            qk, v = layer.project(x, cos, sin)
            cache.keys[i][rows, :, :, positions] = qk[:, layer.heads :]
            cache.values[i][rows, :, positions] = v
            query = qk[:, : layer.heads].reshape(-1, layer.kv_heads, layer.heads // layer.kv_heads, layer.dim)
            scores = torch.matmul(query * layer.dim**-0.5, cache.keys[i][:count, ..., :span]).add_(bias)
            if layer.window is not None:
                old = torch.arange(span, device=positions.device)[None, :] <= (positions - layer.window)[:, None]
                scores.masked_fill_(old[:, None, None, :], float("-inf"))
            mixed = torch.matmul(scores.softmax(-1), cache.values[i][:count, :, :span])
            x = x + layer.out(mixed.reshape(x.shape[0], -1))
            x = x + layer.mlp(x)
        return self.logits(self.norm(x))


def _attend_compiled(where: Packing, cosine: Tensor, sine: Tensor, layer: Layer, joint: Tensor) -> Tensor:
    """``_attend_packed`` by a compiled kernel, which turns, shares and masks by itself."""
    norms = (None, None) if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)
    query_norm, key_norm = (None if n is None else n.weight.float() for n in norms)
    angles = (cosine, sine) if layer.rotary else (None, None)
    return train.Attention.apply(joint, query_norm, key_norm, where.walk, where.positions, *angles, layer.shape)


def _attend_packed(layer: Layer, qk: Tensor, v: Tensor, where: Packing) -> Float[Tensor, "tokens mixed"]:
    """Causal attention within each sequence. Padding sits after the last real key, so the causal mask is enough."""
    batch, time = len(where.lengths), where.longest
    joint = spread(torch.cat((qk, v), dim=1).reshape(qk.shape[0], -1), where)
    padded = joint.view(batch, time, -1, layer.dim).transpose(1, 2)
    q, k, w = padded.split((layer.heads, layer.kv_heads, layer.kv_heads), dim=1)
    mask = _window_mask(time, layer.window, q.device) if layer.window is not None and layer.window < time else None
    mixed = F.scaled_dot_product_attention(
        q, k, w, attn_mask=mask, is_causal=mask is None, enable_gqa=layer.heads != layer.kv_heads
    )
    return gathered(mixed.transpose(1, 2).reshape(batch * time, -1), where)


def _window_mask(time: int, window: int, device: torch.device) -> Bool[Tensor, "time time"]:
    i = torch.arange(time, device=device)
    distance = i[:, None] - i[None, :]
    return (distance >= 0) & (distance < window)
