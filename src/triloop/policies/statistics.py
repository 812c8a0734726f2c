"""What the distribution over the next token says: of the token that came, of its own entropy, of the other tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from triloop.kernels import train

__all__ = ["WHOLE", "other_tokens", "token_statistics"]

WHOLE = 1 << 24
"""Most logits that are held at once: 64 MB in fp32, and a few times that while their gradient is taken."""


def token_statistics(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "n width"],
    targets: Int[Tensor, " n"],
    *,
    vocab_size: int,
    temperature: float,
    entropy: bool,
    whole: int = WHOLE,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Log p of the targets and entropy of the distribution they come from (0 when not asked for), in nats and fp32.

    ``logits_of`` maps hidden states to logits. The matrix [n, vocab] is never whole when it would be large: it is made in
    slices, and again, slice by slice, for the gradient.
    """
    slice_of = partial(_slice, logits_of, temperature=temperature, entropy=entropy)
    rows = max(1, whole // vocab_size)
    if len(targets) <= rows:
        return slice_of(hidden, targets)
    parts = [
        checkpoint(slice_of, h, t, use_reentrant=False, preserve_rng_state=False)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat([logps for logps, _ in parts]), torch.cat([entropies for _, entropies in parts])


def other_tokens(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "n width"],
    targets: Int[Tensor, " n"],
    *,
    vocab_size: int,
    count: int,
    temperature: float,
    whole: int = WHOLE,
) -> Float[Tensor, "n rank"]:
    """Log p of the ``count`` most likely tokens other than the target, likeliest first, in nats and fp32, differentiable.

    Fewer columns when the vocabulary has fewer other tokens. The logits are made in slices, as above.
    """

    def slice_of(h: Tensor, t: Tensor) -> Tensor:
        logits = logits_of(h).float()
        if temperature not in (0.0, 1.0):
            logits = logits / temperature
        others = logits.scatter(1, t[:, None], float("-inf"))
        best = others.topk(min(count, logits.shape[1] - 1), dim=1).values
        return best - logits.logsumexp(dim=1, keepdim=True)

    size = max(1, whole // vocab_size)
    pairs = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(slice_of, h, t, use_reentrant=False, preserve_rng_state=False) for h, t in pairs])


def _slice(
    logits_of: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, *, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor]:
    logits = logits_of(hidden)
    if train.usable(logits):
        logps, entropies = train.TokenStatistics.apply(logits, targets, temperature or 1.0, entropy)
        return logps, torch.zeros_like(logps) if entropies is None else entropies
    logits = logits.float()
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    all_logps = torch.log_softmax(logits, dim=-1)
    logps = all_logps.gather(1, targets[:, None])[:, 0]
    entropies = -(all_logps.exp() * all_logps).sum(-1) if entropy else torch.zeros_like(logps)
    return logps, entropies
