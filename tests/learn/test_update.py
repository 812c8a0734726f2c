from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from triloop.errors import ConfigError
from triloop.learn.algorithms import Algorithm, resolve
from triloop.learn.batch import Batch, TokenOutputs, supervised_batch
from triloop.learn.build import build_batch
from triloop.learn.reduction import sequence_mean, token_mean
from triloop.learn.update import add_sums, policy_loss, summarise, supervised_loss
from triloop.records import Episode

Make = Callable[..., list[Episode]]
MASK = torch.tensor([[True, True, False], [True, True, True]])


def small_batch(advantage: Tensor | None = None) -> Batch:
    made = supervised_batch([[1], [1]], [[5, 6], [7, 8, 9]])
    return replace(made, advantage=torch.where(MASK, 1.0, 0.0) if advantage is None else advantage)


def losses(algorithm: Algorithm, batch: Batch, logp: Tensor, **heads: Tensor) -> tuple[float, dict[str, float]]:
    total, sums = policy_loss(algorithm)(TokenOutputs(logp=logp, **heads), batch, batch.denominators)
    return float(total), summarise(sums)


def test_terms_by_hand() -> None:
    """logp = -1 where the old was 0 and the reference -1.5: ratio 1/e; KL per token k3 = e^-0.5 - 1 + 0.5."""
    batch = replace(small_batch(), logp_ref=torch.full((2, 3), -1.5))
    algorithm = resolve("dapo", kl_coef=0.1, entropy_coef=0.01)
    got, figures = losses(algorithm, batch, torch.full((2, 3), -1.0), entropy=torch.full((2, 3), 2.0))
    k3 = math.exp(-0.5) - 0.5
    assert got == pytest.approx(-math.exp(-1) + 0.1 * k3 - 0.02)
    assert figures["kl"] == pytest.approx(k3)
    assert figures["entropy"] == pytest.approx(2.0)
    assert figures["ratio_max"] == pytest.approx(1.0), "padding has ratio 1 and nothing lies above"
    assert figures["approx_kl"] == pytest.approx(math.exp(-1) - 1 + 1)
    assert figures["clip_share"] == 0, "a good token that fell is free to rise"
    assert figures["tokens"] == 5


def test_clip_share_counts_the_side_that_is_held() -> None:
    batch = small_batch(torch.where(MASK, -1.0, 0.0))
    _, figures = losses(resolve("grpo"), batch, torch.tensor([[-1.0, 0.0, 0.0], [-1.0, 0.5, 0.0]]))
    assert figures["clip_share"] == pytest.approx(2 / 5)
    assert figures["ratio_max"] == pytest.approx(math.exp(0.5))


def test_value_term() -> None:
    batch = replace(small_batch(), returns=torch.ones(2, 3), values_old=torch.zeros(2, 3))
    algorithm = resolve("ppo", value_clip=0.0, value_coef=0.5)
    plain, _ = losses(resolve("ppo", value_coef=0.0), batch, torch.zeros(2, 3), values=torch.zeros(2, 3))
    got, figures = losses(algorithm, batch, torch.zeros(2, 3), values=torch.full((2, 3), 0.5))
    assert got - plain == pytest.approx(0.5 * 0.125)
    assert figures["value_loss"] == pytest.approx(0.125)


def test_importance_weight_multiplies_the_surrogate() -> None:
    batch = replace(small_batch(), weight=torch.full((2, 3), 2.0))
    got, _ = losses(resolve("dapo"), batch, torch.zeros(2, 3))
    assert got == pytest.approx(-2.0)


def test_masked_nan_reaches_no_gradient() -> None:
    batch = replace(small_batch(), logp_ref=torch.where(MASK, -1.0, math.nan))
    logp = torch.where(MASK, -1.0, math.nan).requires_grad_()
    entropy = torch.where(MASK, 1.0, math.nan)
    algorithm = resolve("gspo", kl_coef=0.1, entropy_coef=0.1)
    outputs = TokenOutputs(logp=logp, entropy=entropy)
    total, sums = policy_loss(algorithm)(outputs, batch, batch.denominators)
    total.backward()
    assert logp.grad is not None
    assert logp.grad.isfinite().all()
    assert all(math.isfinite(v) for v in summarise(sums).values())


def test_missing_outputs_are_named() -> None:
    batch, logp = small_batch(), torch.zeros(2, 3)
    for algorithm, says in [
        (resolve("grpo", kl_coef=0.1), "no reference"),
        (resolve("grpo", entropy_coef=0.1), "no entropy"),
        (resolve("ppo"), "no values"),
    ]:
        with pytest.raises(ConfigError, match=says):
            losses(algorithm, batch, logp)


def test_grpo_is_dapo_at_equal_clips_and_lengths(make_episodes: Make) -> None:
    grpo, dapo = resolve("grpo"), resolve("dapo", clip_high=0.2, dynamic_sampling=False)
    batch, _ = build_batch(make_episodes([[1, -1, 0]]), grpo, max_tokens=8)
    assert batch is not None
    logp = torch.randn(len(batch), 3, generator=torch.Generator().manual_seed(0))
    assert losses(grpo, batch, logp)[0] == pytest.approx(losses(dapo, batch, logp)[0], abs=1e-6)
    assert grpo == replace(dapo, reduction=sequence_mean)
    assert dapo.reduction is token_mean


def test_supervised_loss_by_hand() -> None:
    batch = small_batch()
    logp = torch.tensor([[-1.0, -2.0, math.nan], [-3.0, -4.0, -5.0]], requires_grad=True)
    total, sums = supervised_loss(TokenOutputs(logp=logp), batch, batch.denominators)
    total.backward()
    assert total.item() == pytest.approx(3.0)
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, torch.where(MASK, -0.2, 0.0))
    assert summarise(sums) == pytest.approx({"loss": 3.0, "nll": 3.0, "tokens": 5})


def test_sums_add_and_the_largest_ratio_stays() -> None:
    a = {"tokens": torch.tensor(2), "entropy": torch.tensor(3.0), "ratio_max": torch.tensor(1.5)}
    b = {"tokens": torch.tensor(4), "entropy": torch.tensor(6.0), "ratio_max": torch.tensor(1.2)}
    joint = summarise(add_sums(add_sums({}, a), b))
    assert joint == pytest.approx({"tokens": 6, "entropy": 1.5, "ratio_max": 1.5})
