"""The loss of a batch as the algorithm's record says it, with metrics that add up over micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from triloop.errors import ConfigError
from triloop.learn import objectives
from triloop.learn.algorithms import Algorithm, clipped
from triloop.learn.batch import Batch, TokenOutputs
from triloop.learn.reduction import Denominators, token_mean

__all__ = ["LossFn", "Sums", "add_sums", "policy_loss", "summarise", "supervised_loss"]

Sums = dict[str, Tensor]
"""Scalars without gradient. Each is a sum over tokens, except ``ratio_max``; ``add_sums`` knows. A name with a slash is a
sum over what ``name:n`` counts, or stands as it is without one."""

LossFn = Callable[[TokenOutputs, Any, Denominators], tuple[Tensor, Sums]]
"""Loss of these rows, already divided by the denominators of the whole batch: losses of micro-batches add up.

The second argument is the ``TokenBatch`` that the outputs belong to, of the kind that this loss reads."""


def policy_loss(algorithm: Algorithm) -> LossFn:
    """The loss that this algorithm minimises.

        L = R[ w l ] + kl_coef R[ KL_k ] - entropy_coef R[ H ] + value_coef R[ l_V ]

    l is the surrogate, w the batch's importance weight (1 without one), R the algorithm's reduction; the KL term stands
    here only when ``kl_in`` is ``loss``, the value term only with a value head.
    """

    def loss(outputs: TokenOutputs, batch: Batch, denominators: Denominators) -> tuple[Tensor, Sums]:
        losses = algorithm.surrogate(outputs.logp, batch, algorithm)
        if batch.weight is not None:
            losses = losses * batch.weight
        if algorithm.needs_reference and algorithm.kl_in == "loss":
            reference = _present(batch.logp_ref, "the batch holds no reference log-probabilities (kl_coef > 0)")
            losses = losses + algorithm.kl_coef * algorithm.kl(outputs.logp, reference, batch.mask)
        if algorithm.needs_entropy:
            entropy = _present(outputs.entropy, "the forward pass gave no entropy (entropy_coef > 0)")
            losses = losses + algorithm.entropy_coef * objectives.entropy_bonus(entropy, batch.mask)
        sums: Sums = {}
        if algorithm.needs_values:
            error = _value_error(algorithm, outputs, batch)
            sums["value_loss"] = torch.where(batch.mask, error, 0.0).sum().detach()
            losses = losses + algorithm.value_coef * error
        total = algorithm.reduction(losses, batch.mask, denominators)
        return total, sums | {"loss": total.detach()} | _policy_sums(algorithm, outputs, batch)

    return loss


def supervised_loss(outputs: TokenOutputs, batch: Batch, denominators: Denominators) -> tuple[Tensor, Sums]:
    """Mean negative log-likelihood per token, nats. A ``LossFn`` itself."""
    losses = objectives.negative_log_likelihood(outputs.logp, batch.mask)
    total = token_mean(losses, batch.mask, denominators)
    return total, {"loss": total.detach(), "nll": losses.detach().sum(), "tokens": batch.mask.sum()}


def _value_error(algorithm: Algorithm, outputs: TokenOutputs, batch: Batch) -> Tensor:
    values = _present(outputs.values, "the forward pass gave no values; this algorithm trains a value head")
    returns = _present(batch.returns, "the batch holds no returns; this algorithm trains a value head")
    old = _present(batch.values_old, "the batch holds no old values; this algorithm trains a value head")
    return objectives.value_loss(values, returns, old, batch.mask, clip=algorithm.value_clip)


def _present(x: Tensor | None, otherwise: str) -> Tensor:
    if x is None:
        raise ConfigError(f"{otherwise}. Pass them to build_batch, or the heads to the policy")
    return x


@torch.no_grad()
def _policy_sums(algorithm: Algorithm, outputs: TokenOutputs, batch: Batch) -> Sums:
    """Figures of the policy under this update, as sums over tokens."""
    mask = batch.mask
    of_ratio = objectives.sequence_log_ratio if algorithm.ratio == "sequence" else objectives.token_log_ratio
    log_ratio = of_ratio(outputs.logp, batch.logp_old, mask)
    sums = {
        "tokens": mask.sum(),
        "approx_kl": objectives.kl_k3(batch.logp_old, outputs.logp, mask).sum(),
        "ratio_max": log_ratio.max().exp() if log_ratio.numel() else log_ratio.new_ones(()),
    }
    if algorithm.surrogate is clipped:
        clip = {"clip_low": algorithm.clip_low, "clip_high": algorithm.clip_high}
        sums["clip_share"] = objectives.clip_active(log_ratio, batch.advantage, mask, **clip).sum()
    if outputs.entropy is not None:
        sums["entropy"] = torch.where(mask, outputs.entropy, 0.0).sum()
    if batch.logp_ref is not None:
        sums["kl"] = objectives.kl_k3(outputs.logp, batch.logp_ref, mask).sum()
    return sums


def add_sums(total: Mapping[str, Tensor], part: Mapping[str, Tensor]) -> Sums:
    """Metrics of two micro-batches together: sums add, ``ratio_max`` is the larger. Starts from an empty mapping."""
    joint = dict(total)
    for name, value in part.items():
        if name not in joint:
            joint[name] = value
        elif name == "ratio_max":
            joint[name] = torch.maximum(joint[name], value)
        else:
            joint[name] = joint[name] + value
    return joint


def summarise(total: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics of a whole batch as plain floats: means per trained token; ``loss`` and ``ratio_max`` as they are.

    approx_kl: KL(old || now) of this update, k3, nats. kl: KL(now || reference), k3, nats. clip_share: tokens whose
    gradient the clip took. Rows that were left out for having no gradient are in none of these. ``kind/figure`` is a
    mean over its own count, if it has one.
    """
    tokens = max(1.0, float(total.get("tokens", 1.0)))
    as_they_are = {"loss", "ratio_max", "tokens"}

    def mean(name: str) -> float:
        if "/" in name:
            return float(total[name]) / max(1.0, float(total.get(f"{name}:n", 1.0)))
        return float(total[name]) if name in as_they_are else float(total[name]) / tokens

    return {name: mean(name) for name in total if not name.endswith(":n")}
