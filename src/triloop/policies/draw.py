"""From logits to tokens: one uniform number a row, by inversion of the cumulative distribution."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triloop.kernels import native
from triloop.policies.sampling import Sampling

__all__ = ["draw"]


def draw(
    logits: Float[Tensor, "rows vocab"],
    uniform: Float[Tensor, " rows"],
    sampling: Sampling,
    allowed: Bool[Tensor, "#rows vocab"] | None = None,
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Tokens and their log-probabilities (nats). ``allowed`` must leave every row at least one token.

    The log-probability is that of the full softmax at the sampling temperature (at temperature 0: of the softmax at 1),
    before masks, top-k, top-p and min-p: the distribution whose gradient the learner takes.
    """
    plain = sampling.min_p == 0 and sampling.top_p == 1 and sampling.top_k == 0
    if plain and logits.device.type == "cpu" and logits.dtype == torch.float32 and native.available():
        sharp = 1.0 / sampling.temperature if sampling.temperature else 0.0
        return _compiled(logits.contiguous(), uniform.contiguous(), sharp, allowed)
    logps = torch.log_softmax(logits.float() / (sampling.temperature or 1.0), dim=-1)
    permitted = logps if allowed is None else logps.masked_fill(~allowed, float("-inf"))
    if sampling.temperature == 0:
        token = permitted.argmax(dim=-1)
    else:
        # Allowed tokens may all be so unlikely that their exp is 0: normalise again where there is a mask.
        weight = _truncate(permitted.exp() if allowed is None else permitted.softmax(dim=-1), sampling)
        cumulative = weight.cumsum(dim=-1)
        # A number that rounded up to 1 would point past the last token.
        threshold = uniform.clamp(max=1 - 2**-24)[:, None] * cumulative[:, -1:]
        token = (cumulative <= threshold).sum(dim=-1).clamp_(max=logits.shape[-1] - 1)
    return token, logps.gather(1, token[:, None])[:, 0]


def _compiled(
    logits: Tensor, uniform: Tensor, sharp: float, allowed: Tensor | None
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """The same in one pass, without truncation."""
    rows, vocab = logits.shape
    tokens, logps = torch.empty(rows, dtype=torch.long), torch.empty(rows)
    mask = None if allowed is None else allowed.expand(-1, vocab).contiguous()
    stride = vocab if mask is not None and len(mask) == rows else 0
    ins, outs = (logits, uniform, mask), (tokens, logps)
    native.function("draw", "pppifppiii")(
        *map(native.pointer, ins), stride, sharp, *map(native.pointer, outs), rows, vocab, torch.get_num_threads()
    )
    return tokens, logps


def _truncate(probability: Float[Tensor, "rows vocab"], s: Sampling) -> Float[Tensor, "rows vocab"]:
    """Zero for the tokens that min-p, top-p and top-k leave out; what is left does not sum to 1."""
    if s.min_p > 0:
        probability = probability * (probability >= s.min_p * probability.amax(-1, keepdim=True))
    if s.top_k == 0 and s.top_p == 1:
        return probability
    ordered, order = probability.sort(dim=-1, descending=True, stable=True)
    if s.top_p < 1:
        # A token stays while the mass before it has not reached top_p: the likeliest always stays.
        before = ordered.cumsum(-1) - ordered
        ordered = ordered * (before < s.top_p * ordered.sum(-1, keepdim=True))
    if s.top_k > 0:
        ordered = torch.cat((ordered[:, : s.top_k], torch.zeros_like(ordered[:, s.top_k :])), dim=-1)
    return torch.zeros_like(probability).scatter_(1, order, ordered)
