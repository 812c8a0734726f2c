"""What flows back through each quantiser: by hand, and against differences of the function it stands for."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from triloop.ternary import activations
from triloop.ternary.config import QUANTISERS, TernaryConfig
from triloop.ternary.gradients import trained
from triloop.ternary.quantisers import clipping, initial, quantise, spread, steps

EVERY = tuple(QUANTISERS)
ELASTIC = tuple(n for n in EVERY if n.startswith("paretoq"))
SHARED: tuple[dict[str, object], ...] = (
    {"granularity": "tensor"},
    {"granularity": "channel"},
    {"granularity": "group", "group": 3},
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaves(w: torch.Tensor, config: TernaryConfig) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return w.clone().requires_grad_(), {k: v.clone().requires_grad_() for k, v in initial(w, config).items()}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shared", SHARED)
def test_forward_is_exactly_what_the_codes_stand_for(name: str, shared: dict[str, object]) -> None:
    config = TernaryConfig(quantiser=name, **shared)  # type: ignore[arg-type]
    w, learned = leaves(normal(5, 7), config)
    w_hat, bias, quantised = trained(w, config, learned)
    plain = quantise(w, config, learned)
    assert torch.equal(w_hat, plain.dense()) and torch.equal(quantised.codes, plain.codes)
    assert (bias is None) == (plain.bias is None)
    if bias is not None and plain.bias is not None:
        assert torch.equal(bias, plain.bias)


@pytest.mark.parametrize("name", ["absmean", "absmedian", "statistics", "twn", "binary", "dual", "dead-zone"])
@pytest.mark.parametrize("shared", SHARED)
def test_straight_through(name: str, shared: dict[str, object]) -> None:
    config = TernaryConfig(quantiser=name, **shared)  # type: ignore[arg-type]
    w, learned = leaves(normal(4, 7) * 3, config)
    upstream = normal(4, 7, seed=1)
    (trained(w, config, learned)[0] * upstream).sum().backward()
    assert w.grad is not None and torch.equal(w.grad, upstream)


def test_dead_zone_gives_its_weights_the_bias_gradient() -> None:
    """dL/dw = dL/dw_hat everywhere, and lambda dL/dbias more where the code is 0 (arXiv:2509.23809)."""
    config = TernaryConfig(quantiser="dead-zone", dead_zone=0.5)
    w = torch.tensor([[1.2, 0.2, -0.1, 0.25, -0.75], [5.0, 1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    w_hat, bias, _ = trained(w, config)
    assert bias is not None
    (w_hat.sum() + 10 * bias[0] + 4 * bias[1]).backward()
    assert w.grad is not None
    # second row: mean 1.8, dead below 0.9: nothing is
    torch.testing.assert_close(w.grad, torch.tensor([[1.0, 6.0, 6.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]]))


def test_dual_by_hand() -> None:
    config = TernaryConfig(quantiser="dual")
    w, learned = leaves(torch.tensor([[5.0, 2.0, 2.5, 2.5]]), config)  # codes 1 -1 0 0
    upstream = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    (trained(w, config, learned)[0] * upstream).sum().backward()
    assert learned["scale"].grad is not None and learned["shift"].grad is not None
    assert learned["scale"].grad.item() == 1.0 - 2.0 and learned["shift"].grad.item() == 15.0


@pytest.mark.parametrize("shared", SHARED)
def test_dual_against_differences(shared: dict[str, object]) -> None:
    """The matrix is linear in scale and shift, so the true derivative is there to be compared."""
    config = TernaryConfig(quantiser="dual", **shared)  # type: ignore[arg-type]
    w, learned = leaves(normal(4, 7), config)
    upstream = normal(4, 7, seed=2)
    (trained(w, config, learned)[0] * upstream).sum().backward()
    for name, number in learned.items():
        assert number.grad is not None
        for at in torch.cartesian_prod(*map(torch.arange, number.shape)).view(-1, 2):
            i, j = at.tolist()
            ends = []
            for sign in (1, -1):
                moved = {k: v.detach().clone() for k, v in learned.items()}
                moved[name][i, j] += sign * 0.25
                ends.append((quantise(w, config, moved).dense() * upstream).sum())
            assert number.grad[i, j].item() == pytest.approx((ends[0] - ends[1]).item() / 0.5, abs=1e-4)


def surrogate(w: torch.Tensor, scale: torch.Tensor, name: str, group: int, rest: torch.Tensor) -> torch.Tensor:
    """scale * (clip(w / scale) + what rounding added, held fixed): the function whose derivative LSQ takes."""
    wide = spread(scale, group, w.shape[1])
    return wide * ((w / wide).clamp(*clipping(name)) + rest)


@pytest.mark.parametrize("name", [n for n in ELASTIC if n != "paretoq-1"])
@pytest.mark.parametrize("shared", SHARED)
def test_elastic_against_differences_of_its_surrogate(name: str, shared: dict[str, object]) -> None:
    config = TernaryConfig(quantiser=name, **shared)  # type: ignore[arg-type]
    w, learned = leaves(normal(4, 7), config)
    with torch.no_grad():
        learned["scale"].mul_(0.6)  # so that some weights are clipped
    upstream = normal(4, 7, seed=3)
    w_hat, _, quantised = trained(w, config, learned)
    (w_hat * upstream).sum().backward()
    x, s, up = w.detach().double(), learned["scale"].detach().double(), upstream.double()
    wide = spread(s, config.group, 7)
    rest = quantised.codes / steps(name) - (x / wide).clamp(*clipping(name))
    torch.testing.assert_close(surrogate(x, s, name, config.group, rest).float(), w_hat.detach())

    def slope(of: torch.Tensor, i: int, j: int) -> float:
        ends = []
        for sign in (1, -1):
            of[i, j] += sign * 1e-6
            ends.append((surrogate(x, s, name, config.group, rest) * up).sum().item())
            of[i, j] -= sign * 1e-6
        return (ends[0] - ends[1]) / 2e-6

    assert w.grad is not None and learned["scale"].grad is not None
    clipped = 0
    for i in range(4):
        for j in range(7):
            clipped += slope(x, i, j) == 0.0
            assert w.grad[i, j].item() == pytest.approx(slope(x, i, j), abs=1e-4)
    assert 0 < clipped < 28
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            sharing = {"tensor": 28, "channel": 7}.get(config.shared_by, 3 if j < 2 else 1)
            damped = slope(s, i, j) / sqrt(sharing * max(1.0, clipping(name)[1]))
            assert learned["scale"].grad[i, j].item() == pytest.approx(damped, abs=1e-4)


def test_elastic_binary_by_hand() -> None:
    config = TernaryConfig(quantiser="paretoq-1")
    w = torch.tensor([[0.5, -0.5, 3.0, -3.0]], requires_grad=True)
    scale = torch.tensor([[1.0]], requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, 4.0, 16.0]])
    (trained(w, config, {"scale": scale})[0] * upstream).sum().backward()
    assert w.grad is not None and scale.grad is not None
    assert w.grad.tolist() == [[1.0, 2.0, 0.0, 0.0]]  # outside [-scale, scale] a weight is not moved
    assert scale.grad.item() == (1 - 2 + 4 - 16) / sqrt(4)


def test_gradients_reach_bfloat16_weights_in_their_type() -> None:
    w = normal(4, 8).bfloat16().requires_grad_()
    trained(w, TernaryConfig())[0].sum().backward()
    assert w.grad is not None and w.grad.dtype == torch.bfloat16 and bool((w.grad == 1).all())


# ---------------------------------------------------------------- activations


def test_int8_rows_by_hand() -> None:
    # rows reach 127, 254 and nothing; halves go to the even neighbour
    x = torch.tensor([[127.0, -0.5, 1.5, 2.5], [-254.0, 1.0, 3.0, 200.0], [0.0, 0.0, 0.0, 0.0]])
    same, rows = activations.int8(x)
    assert same is x
    assert rows.codes.tolist() == [[127, 0, 2, 2], [-127, 0, 2, 100], [0, 0, 0, 0]]
    assert rows.scale is not None
    assert rows.scale.flatten().tolist() == [1.0, 2.0, pytest.approx(1e-5 / 127)]


def test_elastic_activations_by_hand() -> None:
    x = torch.tensor([[1.0, -1.0, 0.2], [9.0, -9.0, 3.0]], requires_grad=True)
    scale, zero = torch.tensor([2.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    x_hat, rows = activations.elastic(x, scale, zero, 2)
    # u = 0 -1 -.4 | 4 -5 1; codes 0 -1 0 | 1 -1 1
    assert rows.codes.tolist() == [[0, -1, 0], [1, -1, 1]]
    assert x_hat.tolist() == [[1.0, -1.0, 1.0], [3.0, -1.0, 3.0]]
    upstream = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    (x_hat * upstream).sum().backward()
    assert x.grad is not None and scale.grad is not None and zero.grad is not None
    assert x.grad.tolist() == [[1.0, 2.0, 4.0], [0.0, 0.0, 32.0]]
    # codes - u inside: 0 0 .4 | outside: 1 -1 | inside 0
    assert scale.grad.item() == pytest.approx((4 * 0.4 + 8 - 16) / sqrt(6))
    assert zero.grad.item() == pytest.approx((8 + 16) / sqrt(6))


def test_elastic_activations_of_one_bit_are_signs() -> None:
    x = torch.tensor([[0.5, -3.0]], requires_grad=True)
    scale, zero = torch.tensor([1.0], requires_grad=True), torch.zeros(1, requires_grad=True)
    x_hat, rows = activations.elastic(x, scale, zero, 1)
    assert rows.codes.tolist() == [[1, -1]]
    (x_hat * torch.tensor([[3.0, 5.0]])).sum().backward()
    assert x.grad is not None and scale.grad is not None
    assert x.grad.tolist() == [[3.0, 0.0]] and scale.grad.item() == pytest.approx((3 - 5) / sqrt(2))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_elastic_activations_against_differences_of_their_surrogate(bits: int) -> None:
    low, high = activations.elastic_range(bits)
    x = (normal(4, 6) * 2).requires_grad_()
    scale, zero = torch.tensor([3.0 / high], requires_grad=True), torch.tensor([0.2], requires_grad=True)
    x_hat, rows = activations.elastic(x, scale, zero, bits)
    upstream = normal(4, 6, seed=4)
    (x_hat * upstream).sum().backward()
    s, z, y, up = (t.detach().double() for t in (scale, zero, x, upstream))
    rest = rows.codes - ((y - z) / s).clamp(low, high)

    def value(s: torch.Tensor, z: torch.Tensor) -> float:
        return ((s * (((y - z) / s).clamp(low, high) + rest) + z) * up).sum().item()

    rate, h = sqrt(24 * high), 1e-6
    assert scale.grad is not None and zero.grad is not None
    assert scale.grad.item() == pytest.approx((value(s + h, z) - value(s - h, z)) / (2 * h) / rate, abs=1e-4)
    assert zero.grad.item() == pytest.approx((value(s, z + h) - value(s, z - h)) / (2 * h) / rate, abs=1e-4)
