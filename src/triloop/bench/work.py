"""How much arithmetic and memory traffic a rollout or a training step cannot do without, counted from the model's shape.

FLOPs are those of matrix products, two for each multiply-add: projections, attention (causal: the token at position ``p``
meets ``p + 1`` keys) and the output head. Embedding, norms, activations, rotation, softmax and sampling are not counted.
Work that completions of one prompt share, the prompt itself, is counted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triloop.nn.decoder import DecoderConfig

__all__ = ["Samples", "Work", "attention_flops", "decoding", "head_flops", "learning", "prefill", "token_flops"]

_FP32 = 4
_PACKED = 0.25
_ADAMW_BYTES = 7 * _FP32
"""Of one weight: parameter, gradient and both moments read, parameter and moments written."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Completions of ``length`` tokens, ``group`` of each prompt."""

    prompts: Sequence[int]
    """Length of each prompt in tokens."""
    group: int
    length: int

    @property
    def count(self) -> int:
        return len(self.prompts) * self.group

    @property
    def tokens(self) -> int:
        """Generated ones."""
        return self.count * self.length


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of matrix products, and bytes of weights, keys and values that pass through the processor."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(flops=self.flops + other.flops, bytes=self.bytes + other.bytes)


def token_flops(c: DecoderConfig) -> int:
    """Projections of all layers for one token: qkv, out, gate and up, down."""
    mixed = c.num_heads * c.head_dim
    return 2 * c.num_layers * c.hidden_size * (c.qkv_size + mixed + 3 * c.intermediate_size)


def head_flops(c: DecoderConfig) -> int:
    """The logits of one token."""
    return 2 * c.hidden_size * c.vocab_size


def attention_flops(c: DecoderConfig, first: int, end: int) -> int:
    """Scores and mixing for the tokens at positions ``first`` to ``end - 1`` of one sequence, in all layers."""
    return 4 * c.num_heads * c.head_dim * c.num_layers * (_triangle(end) - _triangle(first))


def prefill(c: DecoderConfig, s: Samples, itemsize: int, packed: bool = False, head: int = 0) -> Work:
    """Every prompt once; logits after its last token. ``packed``: projections' weights take two bits. ``head``: bytes of a
    weight of the output head, 0 for ``itemsize``."""
    flops = sum(p * token_flops(c) + attention_flops(c, 0, p) + head_flops(c) for p in s.prompts)
    return Work(flops=flops, bytes=_weight_bytes(c, itemsize, packed, head) + itemsize * sum(s.prompts) * _kv(c))


def decoding(c: DecoderConfig, s: Samples, itemsize: int, packed: bool = False, head: int = 0) -> Work:
    """A step for each token but the last, which nobody continues. Each step reads all weights, and each row its keys and
    values."""
    steps = s.length - 1
    each = steps * (token_flops(c) + head_flops(c))
    flops = s.group * sum(each + attention_flops(c, p, p + steps) for p in s.prompts)
    # The token at position p reads p earlier entries and its own, which it writes as well.
    entries = s.group * sum(_triangle(p + steps) - _triangle(p) + steps for p in s.prompts)
    return Work(flops=flops, bytes=steps * _weight_bytes(c, itemsize, packed, head) + itemsize * entries * _kv(c))


def learning(c: DecoderConfig, s: Samples, itemsize: int, passes: int = 1, kept: int = 0) -> Work:
    """One optimiser step in ``passes`` micro-batches: forward, backward at twice its FLOPs, AdamW. Logits only where a
    completion's token is predicted; its last token predicts nothing. The projections of ``kept`` tokens were computed in
    sampling and are not computed again. Activations are not counted among the bytes."""
    steps = s.length - 1
    own = steps * token_flops(c) + s.length * head_flops(c)
    forward = sum(
        p * token_flops(c) + attention_flops(c, 0, p) + s.group * (own + attention_flops(c, p, p + steps))
        for p in s.prompts
    )
    per_pass = _weights(c) * (2 * itemsize + _FP32)  # read forward and backward, gradient written
    return Work(flops=3 * forward - kept * token_flops(c), bytes=passes * per_pass + c.parameters * _ADAMW_BYTES)


def _weights(c: DecoderConfig) -> int:
    """Numbers in the matrices that a step reads."""
    return (token_flops(c) + head_flops(c)) // 2


def _weight_bytes(c: DecoderConfig, itemsize: int, packed: bool, head: int) -> float:
    """Bytes of the matrices that a step reads."""
    return token_flops(c) / 2 * (_PACKED if packed else itemsize) + head_flops(c) / 2 * (head or itemsize)


def _kv(c: DecoderConfig) -> int:
    """Numbers that a position keeps."""
    return 2 * c.num_layers * c.num_kv_heads * c.head_dim


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
