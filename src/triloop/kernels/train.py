"""A training pass's parts between the matrix products, as compiled kernels with their gradients (``csrc/train.inc``).

The residual stream and everything kept for the gradient are fp32; what goes into products and comes out of them has their
type, fp32 or bf16. ``usable`` decides, for all of them at once; where it says no, ``triloop.nn.fused`` has the plain
expressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triloop.kernels import native

__all__ = [
    "PRODUCTS",
    "AttentionShape",
    "AddNorm",
    "Attention",
    "SwiGLU",
    "TokenStatistics",
    "plan_walk",
    "prefix_tree",
    "product_type",
    "usable",
]

PRODUCTS = (torch.float32, torch.bfloat16)
"""Types that the kernels know."""


def product_type(x: Tensor) -> torch.dtype:
    """What ``nn.Linear`` answers in here: the type of autocast where that is on, else that of ``x``."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def usable(x: Tensor) -> bool:
    """Whether the kernels can run on these numbers, which are fp32 or the outcome of a product."""
    return x.device.type == "cpu" and x.dtype in PRODUCTS and product_type(x) in PRODUCTS and native.available()


def _threads() -> int:
    return torch.get_num_threads()


class AddNorm(torch.autograd.Function):
    """``(sum, rms_norm(sum) * weight)`` of ``sum = x + delta``; without a delta the sum is x.

    ``kind`` is the type of the second answer: that of the delta, or fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, kind: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        x, delta = x.contiguous(), None if delta is None else delta.contiguous()
        rows, width = x.shape
        total = x if delta is None else torch.empty_like(x)
        out, unit = torch.empty_like(x, dtype=kind), x.new_empty(rows)
        small = kind if delta is None else delta.dtype
        run = native.function("add_norm" + native.suffix(small), "pppfpppiiii")
        p, exact = native.pointer, int(kind == torch.float32)
        run(p(x), p(delta), p(weight), eps, p(total), p(out), p(unit), rows, width, exact, _threads())
        ctx.save_for_backward(total, unit, weight)
        ctx.small, ctx.exact, ctx.with_delta = small, exact, delta is not None
        ctx.set_materialize_grads(False)
        return x.view_as(x) if delta is None else total, out

    @staticmethod
    def backward(ctx: Any, to_sum: Tensor | None, to_out: Tensor | None) -> tuple[Any, ...]:
        total, unit, weight = ctx.saved_tensors
        if to_out is None:
            return to_sum, None if to_sum is None else to_sum.to(ctx.small), None, None, None
        rows, width = total.shape
        to_x = torch.empty_like(total)
        apart = ctx.with_delta and ctx.small != torch.float32
        to_delta = torch.empty_like(total, dtype=ctx.small) if apart else None
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[2] else None
        to_out, to_sum = to_out.contiguous(), None if to_sum is None else to_sum.contiguous()
        run = native.function("add_norm_back" + native.suffix(ctx.small), "ppppppppiiii")
        p = native.pointer
        given = (p(total), p(unit), p(weight), p(to_out), p(to_sum))
        run(*given, p(to_x), p(to_delta), p(to_weight), rows, width, ctx.exact, _threads())
        return to_x, (to_delta if apart else to_x) if ctx.with_delta else None, to_weight, None, None


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up of rows [gate | up]."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        run = native.function("swiglu" + native.suffix(gate_up.dtype), "ppiii")
        run(native.pointer(gate_up), native.pointer(out), rows, width, _threads())
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        both, grad = torch.empty_like(gate_up), grad.contiguous()
        run = native.function("swiglu_back" + native.suffix(gate_up.dtype), "pppiii")
        p = native.pointer
        run(p(gate_up), p(grad), p(both), grad.shape[0], grad.shape[1], _threads())
        return both


@dataclass(frozen=True)
class AttentionShape:
    """What does not change between calls of a layer."""

    heads: int
    kv_heads: int
    dim: int
    window: int = 0
    """Keys that a query sees, its own included; 0 for all."""
    eps: float = 1e-6
    """Of the norms of queries and keys."""


class Attention(torch.autograd.Function):
    """Causal attention of packed tokens: joint [tokens, (heads + 2 kv_heads) * dim] -> [tokens, heads * dim].

    ``walk`` is ``plan_walk``'s; ``positions`` are the tokens'; ``cosine`` and ``sine`` [positions, dim / 2] in fp32 rotate
    queries and keys unless None; the norms [dim] apply before.
    """

    @staticmethod
    def forward(
        ctx: Any,
        joint: Tensor,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
        walk: Tensor,
        positions: Tensor,
        cosine: Tensor | None,
        sine: Tensor | None,
        shape: AttentionShape,
    ) -> Tensor:
        joint = joint.contiguous()
        tokens, s = joint.shape[0], shape
        out, saved = joint.new_empty(tokens, s.heads * s.dim), torch.empty(tokens, s.heads, 2)
        run = native.function("attend" + native.suffix(joint.dtype), "pppppppfppiiiifi")
        p = native.pointer
        given = (p(joint), p(walk), p(positions), p(cosine), p(sine), p(query_norm), p(key_norm), s.eps)
        run(*given, p(out), p(saved), s.heads, s.kv_heads, s.dim, s.window, s.dim**-0.5, _threads())
        ctx.save_for_backward(joint, saved, walk, positions, cosine, sine, query_norm, key_norm)
        ctx.shape = shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        joint, saved, walk, positions, cosine, sine, query_norm, key_norm = ctx.saved_tensors
        grad, s, to_joint = grad.contiguous(), ctx.shape, torch.empty_like(joint)
        to_query_norm = None if query_norm is None else torch.empty_like(query_norm)
        to_key_norm = None if key_norm is None else torch.empty_like(key_norm)
        run = native.function("attend_back" + native.suffix(joint.dtype), "pppppppppfpppiiiifi")
        p = native.pointer
        given = (
            p(joint),
            p(grad),
            p(saved),
            p(walk),
            p(positions),
            p(cosine),
            p(sine),
            p(query_norm),
            p(key_norm),
            s.eps,
        )
        made = (p(to_joint), p(to_query_norm), p(to_key_norm))
        run(*given, *made, s.heads, s.kv_heads, s.dim, s.window, s.dim**-0.5, _threads())
        return to_joint, to_query_norm, to_key_norm, None, None, None, None, None


class TokenStatistics(torch.autograd.Function):
    """Log p of the targets at a temperature, and the entropy (None unless asked for), of logits [n, vocab]."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        logits, targets = logits.contiguous(), targets.contiguous()
        rows, vocab = logits.shape
        logps, mass = (logits.new_empty(rows, dtype=torch.float32) for _ in range(2))
        entropies = torch.empty_like(logps) if entropy else None
        run = native.function("token_stats" + native.suffix(logits.dtype), "ppfpppiii")
        p, ctx.sharp = native.pointer, 1.0 / temperature
        run(p(logits), p(targets), ctx.sharp, p(logps), p(entropies), p(mass), rows, vocab, _threads())
        ctx.save_for_backward(logits, targets, mass, entropies)
        ctx.set_materialize_grads(False)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, to_logps: Tensor | None, to_entropies: Tensor | None) -> tuple[Any, ...]:
        logits, targets, mass, entropies = ctx.saved_tensors
        rows, vocab = logits.shape
        out = torch.empty_like(logits)
        to_logps, to_entropies = (None if g is None else g.contiguous() for g in (to_logps, to_entropies))
        run = native.function("token_stats_back" + native.suffix(logits.dtype), "ppfpppppiii")
        p = native.pointer
        given = (p(logits), p(targets), ctx.sharp, p(mass), p(entropies), p(to_logps), p(to_entropies))
        run(*given, p(out), rows, vocab, _threads())
        return out, None, None, None


def prefix_tree(tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """ids, positions, slots, source and order (``nn.packing.prefix_tree``) of sequences end to end."""
    total, longest = len(tokens), int(lengths.max())
    ids, positions, slots, order = (torch.empty(total, dtype=torch.long) for _ in range(4))
    source, count = torch.empty(len(lengths) * longest, dtype=torch.long), torch.empty(1, dtype=torch.long)
    p = native.pointer
    given, made = (p(tokens), p(lengths)), (p(ids), p(positions), p(slots), p(source), p(order), p(count))
    native.function("prefix_tree", "ppppppppii")(*given, *made, len(lengths), longest)
    nodes = int(count)
    return ids[:nodes], positions[:nodes], slots[:nodes], source, order


def plan_walk(order: Tensor, lengths: Sequence[int], nodes: int) -> Tensor:
    """How attention walks these sequences (``csrc/tree.inc``); ``order`` names the packed token of each of theirs."""
    counts = torch.tensor(lengths)
    walk = torch.empty(16 + 5 * (len(counts) + 1) + 3 * len(order) + 2 * (nodes + 1), dtype=torch.int32)
    p = native.pointer
    native.function("plan_walk", "pppii")(p(order), p(counts), p(walk), len(counts), nodes)
    return walk
