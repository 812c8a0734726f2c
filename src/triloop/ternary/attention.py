"""torch's multi-head attention with its projections as linears, so that they can be converted like any other.

``nn.MultiheadAttention`` keeps its three input projections as one bare parameter and hands the weight of ``out_proj`` to a
function: a layer put in its place would be passed over in silence. ``SplitAttention`` calls both as modules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triloop.errors import ConfigError

__all__ = ["SplitAttention"]


class SplitAttention(nn.Module):
    """What ``nn.MultiheadAttention`` computes, with ``in_proj`` (query, key and value in one) and ``out_proj`` as linears.

    Its ``forward`` takes the arguments with which torch's transformer layers call, and answers no attention weights.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        a = attention
        if not a._qkv_same_embed_dim or a.bias_k is not None or a.add_zero_attn:
            raise ConfigError(
                "attention with other widths for keys and values, bias_k or add_zero_attn is not converted; leave it "
                "out of `names`, or make it with kdim and vdim as embed_dim and without add_bias_kv and add_zero_attn"
            )
        self.num_heads, self.head_dim, self.dropout = a.num_heads, a.head_dim, a.dropout
        self.batch_first = a.batch_first
        # Torch's layers read these two: as they stand, the fused path that goes around the projections is not taken.
        self._qkv_same_embed_dim, self.in_proj_bias = False, None
        self.in_proj = _linear(a.in_proj_weight, a.in_proj_bias)
        self.out_proj = _linear(a.out_proj.weight, a.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """[batch, time, width] (or time first, as it was made) -> the same, and None in place of weights."""
        if need_weights:
            raise ConfigError("converted attention gives no attention weights; call it with need_weights=False")
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (self._heads(t, i) for i, t in enumerate(self._projected(query, key, value)))
        mask = _mask(attn_mask, key_padding_mask, q)
        mixed = F.scaled_dot_product_attention(
            q, k, v, mask, self.dropout if self.training else 0.0, is_causal=is_causal and mask is None
        )
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out if self.batch_first else out.transpose(0, 1), None

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """One call of ``in_proj`` for each different input, of which the parts that are wanted are kept."""
        seen: dict[int, Tensor] = {}
        for t in (query, key, value):
            if id(t) not in seen:
                seen[id(t)] = self.in_proj(t)
        return [seen[id(t)] for t in (query, key, value)]

    def _heads(self, joint: Tensor, which: int) -> Tensor:
        part = joint.chunk(3, dim=-1)[which]
        return part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    rows, columns = weight.shape
    made = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    made.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    if bias is not None:
        made.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
    return made


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks as numbers to add; true in a boolean one means not to look there."""
    total: Tensor | None = None
    if attn_mask is not None:
        total = _added(attn_mask, q)
        if total.ndim == 3:  # one for each row and head
            total = total.unflatten(0, (q.shape[0], q.shape[1]))
    if padding is not None:
        shut = _added(padding, q)[:, None, None, :]
        total = shut if total is None else total + shut
    return total


def _added(mask: Tensor, q: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(q.dtype)
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))
