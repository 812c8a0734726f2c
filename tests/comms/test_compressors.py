"""Compressors: messages by hand, sizes as sent, the bound of each and the vectors that reach it, no bias in TernGrad's."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triloop.comms.compressors import (
    BestTernary,
    Compressor,
    Dense,
    ScaledSign,
    TopK,
    best_ternary,
    clipped,
    largest_magnitude,
    ternarised,
)
from triloop.errors import ConfigError, DataError

EVERY: list[Compressor] = [Dense(), TopK(share=0.02), TopK(share=0.3), TopK(share=1.0), ScaledSign(), BestTernary()]
every = pytest.mark.parametrize("compressor", EVERY, ids=repr)


def _through(compressor: Compressor, x: torch.Tensor) -> torch.Tensor:
    return compressor.decode(compressor.encode(x), x.shape[1])


def _kept(compressor: Compressor, x: torch.Tensor) -> float:
    """1 - ||C(x) - x||^2 / ||x||^2 of one row."""
    lost = (_through(compressor, x).double() - x.double()).square().sum()
    return float(1.0 - lost / x.double().square().sum())


def test_top_k_by_hand() -> None:
    x = torch.tensor([[0.5, -3.0, 0.1, 2.0, -0.2], [1.0, 0.0, 0.0, -4.0, 2.0]])
    assert _through(TopK(share=0.4), x).tolist() == [[0, -3.0, 0, 2.0, 0], [0, 0, 0, -4.0, 2.0]]


def test_scaled_sign_by_hand() -> None:
    x = torch.tensor([[1.0, -2.0, 0.0, 5.0]])  # mean magnitude 2; sign(0) = 1
    assert _through(ScaledSign(), x).tolist() == [[2.0, -2.0, 2.0, 2.0]]


def test_best_ternary_by_hand() -> None:
    # S^2 / k of magnitudes 5, 4, 1: 25, 81 / 2, 100 / 3: the first two, scale 4.5
    codes, scale = best_ternary(torch.tensor([[4.0, -1.0, -5.0]]))
    assert codes.tolist() == [[1, 0, -1]] and scale.tolist() == [4.5]


def test_best_ternary_is_the_best_of_all() -> None:
    g = torch.Generator().manual_seed(0)
    tables = torch.tensor(list(itertools.product((-1, 0, 1), repeat=6)), dtype=torch.float64)
    for _ in range(50):
        x = torch.randn(1, 6, generator=g).double() ** 3
        fit = (tables @ x[0]) ** 2 / tables.square().sum(dim=1).clamp(
            min=1
        )  # the best scale of each code is a projection
        assert _kept(BestTernary(), x.float()) == pytest.approx(float(fit.max() / x.square().sum()), abs=1e-6)


@every
@pytest.mark.parametrize("n", [0, 1, 4, 5, 7, 8, 9, 31, 100])
def test_bits_are_what_is_sent(compressor: Compressor, n: int) -> None:
    message = compressor.encode(torch.randn(3, n))
    assert message.dtype == torch.uint8
    assert compressor.bits(n) == 8 * message.shape[1]
    assert compressor.decode(message, n).shape == (3, n)


def test_sizes_by_hand() -> None:
    n = 1000
    assert Dense().bits(n) == 32_000
    assert TopK(share=0.01).bits(n) == 10 * (32 + 32)  # indices are shorter than a map of 1000 bits
    assert TopK(share=0.1).bits(n) == 100 * 32 + 1000  # and longer here
    assert ScaledSign().bits(n) == 32 + 1000
    assert BestTernary().bits(n) == 32 + 1600


@every
@given(st.integers(1, 60), st.integers(0, 2**31), st.sampled_from([0.3, 1.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_contractive(compressor: Compressor, n: int, seed: int, power: float) -> None:
    """Heavy tails and light ones: never below the alpha that it names."""
    x = torch.randn(1, n, generator=torch.Generator().manual_seed(seed))
    x = x.sign() * x.abs() ** power + 1e-3
    assert _kept(compressor, x) >= compressor.alpha(n) - 1e-5


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_alpha_is_reached(n: int) -> None:
    """The bounds are no looser than they must be: each compressor's worst vector."""
    one_hot = torch.zeros(1, n)
    one_hot[0, n // 2] = 3.0
    assert _kept(ScaledSign(), one_hot) == pytest.approx(ScaledSign().alpha(n), abs=1e-6)
    assert _kept(TopK(share=0.3), torch.ones(1, n)) == pytest.approx(TopK(share=0.3).alpha(n), abs=1e-6)
    count = torch.arange(n + 1, dtype=torch.float64)
    worst = count.sqrt().diff()[None].float()
    assert _kept(BestTernary(), worst) == pytest.approx(BestTernary().alpha(n), abs=1e-6)


def test_alpha_of_a_million() -> None:
    n = 1_000_000
    assert BestTernary().alpha(n) == pytest.approx(4 / (math.log(n) + 4.0), rel=0.01)
    assert TopK(share=0.1).count(30) == 3 and TopK(share=0.1).count(31) == 4 and TopK(share=1e-9).count(30) == 1


@every
def test_zeros_stay_zero_and_rows_apart(compressor: Compressor) -> None:
    x = torch.randn(4, 33)
    x[2] = 0.0
    alone = torch.cat([_through(compressor, row[None]) for row in x])
    assert torch.equal(_through(compressor, x), alone)
    assert not _through(compressor, x)[2].any()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_wrong_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="expected above 0 and at most 1"):
        TopK(share=share)


def test_damaged_top_k_messages_are_refused() -> None:
    few, many = TopK(share=0.01), TopK(share=0.5)
    message = few.encode(torch.randn(1, 100))
    message[0, 4:8] = 255
    with pytest.raises(DataError, match="outside 0 to 99"):
        few.decode(message, 100)
    message = many.encode(torch.randn(1, 100))
    message[0, -1] ^= 0xF0
    message[0, -2] = 255
    with pytest.raises(DataError, match="expected 50"):
        many.decode(message, 100)


# ------------------------------------------------------------------ TernGrad


def test_clipping_by_hand() -> None:
    # sigma = sqrt((9 + 1 + 1 + 1) / 4) = sqrt 3; one sigma clips the 3 alone
    g = torch.tensor([[3.0, -1.0, 1.0, 1.0]])
    assert clipped(g, 1.0).tolist() == [[pytest.approx(math.sqrt(3.0)), -1.0, 1.0, 1.0]]
    assert clipped(-g, 1.0)[0, 0].item() == pytest.approx(-math.sqrt(3.0))
    assert torch.equal(clipped(g, 2.5), g) and torch.equal(clipped(g, None), g)


def test_a_layer_of_one_number_is_not_clipped_away() -> None:
    assert clipped(torch.tensor([[0.7]]), 2.5).tolist() == [[pytest.approx(0.7)]]


def test_rounding_has_no_bias() -> None:
    """Every outcome once: with |g| / s in eighths, eight equally likely numbers decide all there is to decide."""
    g = torch.tensor([0.0, 0.25, -0.5, 0.75, -1.0, 1.0, 2.0, -1.75])
    even = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    codes = ternarised(g.repeat(8, 1), torch.full((8,), 2.0), even[:, None].expand(8, 8).contiguous())
    assert set(codes.flatten().tolist()) == {-1, 0, 1}
    assert torch.equal(2.0 * codes.float().mean(dim=0), g)


def test_scale_zero_gives_zeros() -> None:
    assert not ternarised(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, 4, dtype=torch.float64)).any()
    assert largest_magnitude(torch.tensor([[1.0, -3.0]])).tolist() == [3.0]
    assert largest_magnitude(torch.zeros(2, 0)).tolist() == [0.0, 0.0]
