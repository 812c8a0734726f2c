"""Schemes on formulas: what feedback repairs, how fast EF21-W may go, TernGrad without bias, randomness by place alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from triloop.comms import smoothness
from triloop.comms.compressors import BestTernary, Compressor, Dense, ScaledSign, TopK
from triloop.comms.schemes import EF14, EF21, Direct, Place, Scheme, TernGrad, uniforms
from triloop.comms.simulate import Fleet, descend
from triloop.comms.trits import to_trits
from triloop.errors import ConfigError

A = torch.tensor([[-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0]])


def _beznosikov(x: torch.Tensor) -> torch.Tensor:
    """Gradients of <a_i, x>^2 + ||x||^2 / 4: Top-1 without feedback runs away. arXiv:2002.12410, example 1."""
    return 2.0 * (A @ x)[:, None] * A + x / 2


def _centres(x: torch.Tensor) -> torch.Tensor:
    """Gradients of ||x - b_i||^2 / 2: at the best x, the mean of the b_i, no worker's own gradient is 0."""
    b = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 8.0, 0.0, -1.0], [0.0, 0.0, -3.0, 0.0]])
    return x - b


def test_top_1_without_feedback_runs_away_and_ef21_arrives() -> None:
    start = torch.ones(3)
    top1 = TopK(share=1 / 3)
    away, steps = descend(_beznosikov, start, Fleet(scheme=Direct(compressor=top1), workers=3), 0.02, 1500)
    assert steps < 1500 and float(away.abs().max()) > 1e9
    worst = [float(2 * a @ a + 0.5) for a in A]
    gamma = smoothness.step_size(sum(worst) / 3, worst, top1.alpha(3))
    found, _ = descend(_beznosikov, start, Fleet(scheme=EF21(compressor=top1), workers=3), gamma, 3000)
    assert float(found.abs().max()) < 1e-6


@pytest.mark.parametrize("compressor", [TopK(share=0.25), ScaledSign(), BestTernary()], ids=repr)
def test_without_feedback_compressors_stop_short(compressor: Compressor) -> None:
    """The mean of b_i is reached with EF21 and EF14's small steps only roughly, without feedback not at all."""
    best = torch.tensor([1.0, 8.0, -3.0, -1.0]) / 3

    def off(scheme: Scheme, lr: float) -> float:
        found, _ = descend(_centres, torch.zeros(4), Fleet(scheme=scheme, workers=3), lr, 500)
        return float((found - best).norm())

    gamma = smoothness.step_size(1.0, [1.0] * 3, compressor.alpha(4))
    assert off(EF21(compressor=compressor), gamma) < 1e-4
    assert off(Direct(compressor=compressor), gamma) > 0.05


def test_the_exact_mean_and_lossless_feedback_agree() -> None:
    exact, _ = descend(_centres, torch.zeros(4), Fleet(scheme=Direct(), workers=3), 0.3, 20)
    for scheme in (
        EF21(compressor=Dense()),
        EF14(compressor=Dense()),
        EF21(compressor=Dense(), weights=(0.2, 0.3, 0.5)),
    ):
        found, _ = descend(_centres, torch.zeros(4), Fleet(scheme=scheme, workers=3), 0.3, 20)
        assert torch.allclose(found, exact, atol=1e-5)


def test_ef14_by_hand() -> None:
    """Top-1 of (3, 2) sends 3 and owes 2; of (3, 2) + (0, 2) it sends 4 and owes 3."""
    fleet = Fleet(scheme=EF14(compressor=TopK(share=0.5)), workers=1)
    x = torch.tensor([[3.0, 2.0]])
    assert fleet.exchange({"w": x})["w"].tolist() == [3.0, 0.0]
    assert fleet.exchange({"w": x})["w"].tolist() == [0.0, 4.0]
    assert fleet.own["w"]["error"].tolist() == [[3.0, 0.0]]


def test_ef21_by_hand() -> None:
    """Top-1 of (3, 2) - 0 is 3; then of (3, 2) - (3, 0) it is 2; then of (1, 2) - (3, 2) it is -2."""
    fleet = Fleet(scheme=EF21(compressor=TopK(share=0.5)), workers=1)
    said = [fleet.exchange({"w": torch.tensor([x])})["w"].tolist() for x in ([3.0, 2.0], [3.0, 2.0], [1.0, 2.0])]
    assert said == [[3.0, 0.0], [3.0, 2.0], [1.0, 2.0]]


# ------------------------------------------------------------------ step sizes


def test_xi_and_means_by_hand() -> None:
    assert smoothness.xi(1.0) == 0.0
    assert smoothness.xi(0.75) == pytest.approx(1.0)  # (1 + 1/2) / (3/4) - 1
    theta, beta = 1 - math.sqrt(0.9), 0.9 / (1 - math.sqrt(0.9))
    assert smoothness.xi(0.1) == pytest.approx(math.sqrt(beta / theta))  # as arXiv:2106.05203 writes it
    assert smoothness.arithmetic_mean([1, 7]) == 4 and smoothness.quadratic_mean([1, 7]) == 5
    assert smoothness.weights([1, 7]) == (0.125, 0.875)
    assert smoothness.step_size(4.0, [1, 7], 0.75) == pytest.approx(1 / 8)
    assert smoothness.step_size(4.0, [1, 7], 0.75, arithmetic=False) == pytest.approx(1 / 9)
    for wrong in (lambda: smoothness.xi(0.0), lambda: smoothness.weights([1.0, 0.0]), lambda: smoothness.weights([])):
        with pytest.raises(ConfigError):
            wrong()


def _uneven(workers: int) -> tuple[list[float], torch.Tensor, torch.Tensor]:
    """Quadratics x' diag(h_i) x / 2 - b_i x: one worker is far stiffer than the others. Constants, h and b."""
    g = torch.Generator().manual_seed(0)
    h = 0.5 + 0.5 * torch.rand(workers, 10, generator=g)
    h[0] *= 50.0
    return h.amax(dim=1).tolist(), h, torch.randn(workers, 10, generator=g)


def _steps(scheme: Scheme, gamma: float, h: torch.Tensor, b: torch.Tensor) -> tuple[int, torch.Tensor]:
    fleet = Fleet(scheme=scheme, workers=len(h))
    first = float(b.mean(dim=0).square().sum())
    x, steps = descend(
        lambda x: h * x - b,
        torch.zeros(10),
        fleet,
        gamma,
        20_000,
        enough=lambda x, g: float(g.square().sum()) < 1e-6 * first,
    )
    return steps, x


def test_ef21_w_takes_the_arithmetic_means_step() -> None:
    """With one stiff worker of twenty L_QM is three times L_AM. The larger step is safe, and saves its part of the steps;
    EF21-W and EF21 take the same path, since Top-1 of a multiple is the multiple of Top-1."""
    constants, h, b = _uneven(20)
    top1 = TopK(share=0.1)
    whole = float(h.mean(dim=0).max())
    low, high = (smoothness.step_size(whole, constants, 0.1, arithmetic=a) for a in (False, True))
    assert high > 2.5 * low
    slow, _ = _steps(EF21(compressor=top1), low, h, b)
    fast, x = _steps(EF21(compressor=top1), high, h, b)
    weighted, x_w = _steps(EF21(compressor=top1, weights=smoothness.weights(constants)), high, h, b)
    assert fast < 20_000 and slow / fast == pytest.approx(high / low, rel=0.15)
    assert abs(weighted - fast) <= 0.02 * fast and torch.allclose(x, x_w, atol=1e-3)


def test_weights_must_fit() -> None:
    with pytest.raises(ConfigError, match="summing to 1"):
        EF21(compressor=Dense(), weights=(0.5, 0.6))
    with pytest.raises(ConfigError, match="2 weights for 3 workers"):
        Fleet(scheme=EF21(compressor=Dense(), weights=(0.5, 0.5)), workers=3).exchange({"w": torch.ones(3, 2)})


# ------------------------------------------------------------------ TernGrad


def test_terngrad_shares_one_scale_and_has_no_bias() -> None:
    """Two workers, scale 4 of the second: over all four outcomes of the first number, weighted by their chance, the mean
    is the mean of both."""
    g = torch.tensor([[1.0], [4.0]])
    scheme = TernGrad(clip=None)
    assert scheme.offered(g).tolist() == [[1.0], [4.0]]
    agreed = scheme.offered(g).amax(dim=0)
    place = Place(seed=0, step=0, layer="w", ranks=(0, 1), workers=2)
    expected = 0.0
    for first, second in itertools.product((0, 1), repeat=2):
        chance = (1 / 4 if first else 3 / 4) * (1.0 if second else 0.0)
        messages = to_trits(torch.tensor([[first], [second]], dtype=torch.int8))
        found, _ = scheme.receive(place, messages, 1, agreed, {})
        expected += chance * float(found[0])
    assert expected == 2.5


def test_terngrad_averages_to_the_gradient() -> None:
    g = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    fleet = Fleet(scheme=TernGrad(clip=None), workers=3)
    draws = torch.stack([fleet.exchange({"w": g})["w"] for _ in range(1000)])
    spread = draws.std(dim=0) / math.sqrt(1000)
    assert ((draws.mean(dim=0) - g.mean(dim=0)).abs() / spread).max() < 4.5
    assert fleet.bits == 1000 * (80 + 32)  # fifty trits in ten bytes, and the scale


def test_terngrad_is_unbiased_no_more_where_it_clips() -> None:
    g = torch.zeros(1, 100)
    g[0, 0] = 1.0
    fleet = Fleet(scheme=TernGrad(clip=2.5), workers=1)
    assert fleet.exchange({"w": g})["w"][0].item() == pytest.approx(0.25)  # 2.5 sigma, with sigma 0.1
    with pytest.raises(ConfigError, match="above 0, or None"):
        TernGrad(clip=0.0)


def test_numbers_depend_on_place_alone() -> None:
    def place(**other: object) -> Place:
        return Place(**{"seed": 0, "step": 1, "layer": "a", "ranks": (0, 1), "workers": 4, **other})  # type: ignore[arg-type]

    both = uniforms(place(), 8)
    assert torch.equal(both[1:], uniforms(place(ranks=(1,)), 8))
    for other in ({"seed": 1}, {"step": 2}, {"layer": "b"}, {"ranks": (2, 3)}):
        assert not (uniforms(place(**other), 8) == both).any()
