"""What a quantised network learns from the one it came from: pure functions, one number per token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["feature_cosine", "logits_kl"]


def logits_kl(
    student: Float[Tensor, "*tokens vocab"],
    teacher: Float[Tensor, "*tokens vocab"],
    *,
    temperature: float = 1.0,
    reverse: bool = False,
) -> Float[Tensor, "*tokens"]:
    """KL divergence of next-token distributions, per token, in nats times temperature^2 (Hinton et al., arXiv:1503.02531).

        forward  T^2 sum_v p_v (log p_v - log q_v)      reverse  T^2 sum_v q_v (log q_v - log p_v)
        p = softmax(teacher / T), q = softmax(student / T)

    The factor keeps the size of the gradient when T changes (their section 2). The teacher gets no gradient.
    """
    q = F.log_softmax(student.float() / temperature, dim=-1)
    p = F.log_softmax(teacher.detach().float() / temperature, dim=-1)
    first, second = (q, p) if reverse else (p, q)
    # A token that the first rules out, log 0, adds nothing; log 0 - log 0 would be NaN, in the gradient too.
    apart = torch.where(first == float("-inf"), 0.0, first - second)
    return (first.exp() * apart).sum(-1) * temperature**2


def feature_cosine(
    student: Float[Tensor, "*tokens width"], teacher: Float[Tensor, "*tokens width"], *, eps: float = 1e-8
) -> Float[Tensor, "*tokens"]:
    """1 - cos(student, teacher) of hidden features, per token: the outlier-friendly one of TernaryLLM (arXiv:2406.07177).

    In the mean square the few channels of great magnitude make nearly all of the loss; here their common factor drops out,
    and the gradient for a feature is bounded by 1 / |student|. Norms below ``eps`` count as ``eps``.
    """
    a, b = student.float(), teacher.detach().float()
    return 1 - F.cosine_similarity(a, b, dim=-1, eps=eps)
