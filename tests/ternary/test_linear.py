"""The layer: whole numbers first, the packed product, gradients, what is kept from call to call."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from triloop.errors import ConfigError
from triloop.kernels import ternary as kernels
from triloop.kernels.rows import quantise_blocks
from triloop.ternary.config import QUANTISERS, TernaryConfig
from triloop.ternary.linear import TernaryLinear

EVERY = tuple(QUANTISERS)
PACKABLE = tuple(n for n, q in QUANTISERS.items() if q.packable)
SHAPES = ((1, 1), (7, 33), (65, 130))
SHARED: tuple[dict[str, Any], ...] = (
    {"granularity": "tensor"},
    {"granularity": "channel"},
    {"granularity": "group", "group": 32},
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(out: int = 6, width: int = 10, *, bias: bool = True, seed: int = 0, **options: Any) -> TernaryLinear:
    return TernaryLinear(normal(out, width, seed=seed), normal(out, seed=9) if bias else None, TernaryConfig(**options))


# ---------------------------------------------------------------- forward


def test_forward_by_hand() -> None:
    # w: mean size 2, codes 1 0 -1 | 0 1 -1; x: scale 1; bias 0.5, -1
    w = torch.tensor([[2.0, 0.5, -4.0], [-0.5, 3.0, -2.0]])
    m = TernaryLinear(w, torch.tensor([0.5, -1.0]), TernaryConfig())
    x = torch.tensor([[127.0, 2.0, -3.0], [0.0, -127.0, 1.0]])
    # D: 127 + 3, 2 + 3 | -1, -127 - 1
    expected = torch.tensor([[2 * 130.0 + 0.5, 2 * 5.0 - 1], [2 * -1.0 + 0.5, 2 * -128.0 - 1]])
    assert torch.equal(m(x), expected)
    with torch.no_grad():
        assert torch.equal(m(x), expected)
    assert torch.equal(m(x.view(1, 2, 3)), expected[None])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_scaled_sums_of_whole_numbers(name: str, shared: dict[str, Any], shape: tuple[int, int]) -> None:
    """Sums in int64 and scales in fp64 give the same to fp32 rounding: nothing is lost before the scales."""
    out, width = shape
    m = layer(out, width, quantiser=name, **shared)
    x = normal(4, width, seed=1)
    codes, scale = kernels.quantise_rows(x)
    q = m.quantised()
    step = m.config.group or width
    total = torch.zeros(4, out, dtype=torch.float64)
    for g in range(q.scale.shape[1]):
        part = slice(g * step, (g + 1) * step)
        total += (codes[:, part].long() @ q.codes[:, part].long().t()).double() * q.scale[:, g].double()
        if q.shift is not None:
            total += codes[:, part].long().sum(1, keepdim=True).double() * q.shift[:, g].double()
    total = total * scale.double().view(-1, 1)
    bias = m.fused_bias()
    assert bias is not None
    expected = (total + bias.double()).float()
    torch.testing.assert_close(m(x), expected, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("name", PACKABLE)
@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_equals_training(name: str, shared: dict[str, Any], shape: tuple[int, int]) -> None:
    """The sums of whole numbers, and here, where all that follows is rounded in the same order, the answer too."""
    out, width = shape
    m = layer(out, width, quantiser=name, **shared)
    codes = m.quantised().codes
    assert torch.equal(kernels.unpack(m.prepared())[0], codes)
    for n in (1, 2, 5, 17):
        x = normal(n, width, seed=n) * 10.0 ** (n % 3)
        whole, _ = kernels.quantise_rows(x)
        assert torch.equal(kernels.integer_product(whole, m.prepared()).long(), whole.long() @ codes.long().t())
        learning = m(x)
        assert learning.requires_grad
        with torch.no_grad():
            assert torch.equal(m(x), learning)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shared", [*SHARED[:2], {"granularity": "group", "group": 256}])
@pytest.mark.parametrize("width", [33, 256, 600])
def test_blocks_of_activations_packed_equal_training_and_the_kernels_reference(
    name: str, shared: dict[str, Any], width: int
) -> None:
    m = layer(65, width, quantiser=name, activations="int8-256", **shared)
    q = m.quantised()
    assert torch.equal(q.scale, q.scale.half().float())  # what a file for llama.cpp holds
    for n in (1, 2, 17):
        x = normal(n, width, seed=n) * 10.0 ** (n % 3)
        learning, bias = m(x), m.fused_bias()
        assert learning.requires_grad and bias is not None
        with torch.no_grad():
            assert torch.equal(m(x), learning)
            if m.config.kind.packable:
                assert torch.equal(kernels.reference(x, m.prepared(), block=256) + bias, learning)
                out = torch.empty(n, 65)
                m.into(x, out)()
                assert torch.equal(out, learning)
        codes, scale = quantise_blocks(x)
        seen = codes * scale.repeat_interleave(256, 1)[:, :width]
        truth = seen.double() @ q.dense().double().t() + bias.detach().double()
        torch.testing.assert_close(learning, truth.float(), rtol=1e-5, atol=1e-5 * float(truth.abs().max()))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("activations", ["int8", "int8-256", "none", "elastic"])
def test_with_and_without_gradients_alike(name: str, activations: str) -> None:
    m = layer(9, 14, quantiser=name, activations=activations, norm=True)
    x = normal(5, 14, seed=3)
    learning = m(x).detach()
    with torch.no_grad():
        if activations == "none":  # sums of floating point, in another order
            torch.testing.assert_close(m(x), learning, rtol=2e-6, atol=5e-6)
        else:
            assert torch.equal(m(x), learning)
    assert torch.equal(m(x), learning)


def test_dead_zone_bias_is_fused_exactly() -> None:
    """Adding the bias that export writes to the packed product is what training computes, to the last bit."""
    m = layer(8, 64, quantiser="dead-zone", dead_zone=0.3)
    x = torch.randint(-127, 128, (3, 64), generator=torch.Generator().manual_seed(0)).float()
    x[:, 0] = 127
    bias, plain = m.fused_bias(), m.bias
    assert bias is not None and plain is not None
    dead = m.quantised().codes == 0
    torch.testing.assert_close(bias - plain, 0.3 * (m.weight * dead).sum(1))
    assert float((bias - plain).detach().abs().max()) > 0.01
    assert torch.equal(kernels.product(x, m.prepared()) + bias, m(x))


def test_the_norm_stands_before_the_product() -> None:
    m = layer(6, 10, norm=True)
    bare = layer(6, 10)
    assert m.norm_weight is not None
    with torch.no_grad():
        m.norm_weight.copy_(normal(10, seed=5))
    x = normal(4, 10, seed=1) * 100
    normed = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * m.norm_weight
    torch.testing.assert_close(m(x), bare(normed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_answer_has_the_type_of_a_plain_linear(dtype: torch.dtype) -> None:
    m, plain = layer().to(dtype), nn.Linear(10, 6).to(dtype)
    x = normal(3, 10).to(dtype)
    assert m(x).dtype == plain(x).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert m(x).dtype == plain(x).dtype == torch.bfloat16


def test_products_stay_exact_under_autocast() -> None:
    m = layer(8, 300, bias=False)
    x = normal(3, 300)
    with torch.autocast("cpu", torch.bfloat16):
        low = m(x)
    torch.testing.assert_close(low, m(x).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("activations", ["int8", "int8-256", "none", "elastic"])
def test_no_rows_and_rows_that_are_not_contiguous(activations: str) -> None:
    m = layer(activations=activations)
    assert m(torch.zeros(0, 10)).shape == (0, 6)
    x = normal(10, 4).t()
    with torch.no_grad():
        assert m(torch.zeros(2, 0, 10)).shape == (2, 0, 6)
        torch.testing.assert_close(m(x), m(x.contiguous()))
    torch.testing.assert_close(m(x), m(x.contiguous()))


# ---------------------------------------------------------------- backward


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("activations", ["int8", "int8-256", "none", "elastic"])
@pytest.mark.parametrize("shared", SHARED)
def test_backward_is_that_of_a_plain_product_of_the_dense_matrices(
    name: str, activations: str, shared: dict[str, Any]
) -> None:
    from triloop.ternary.gradients import trained

    blocks = activations == "int8-256"
    if blocks and "group" in shared:
        shared = {"granularity": "group", "group": 256}
    width = 300 if blocks else 40
    m = layer(5, width, quantiser=name, activations=activations, **shared)
    other = copy.deepcopy(m)
    x = normal(7, width, seed=2).requires_grad_()
    y = x.detach().clone().requires_grad_()
    upstream = normal(7, 5, seed=3)
    (m(x) * upstream).sum().backward()
    w_hat, more, _ = trained(other.weight, other.config, other.learned())
    x_hat, rows = other._rows(y)
    seen = x_hat + (rows.dense() - x_hat).detach()  # the same value, straight through where x_hat is x itself
    assert other.bias is not None
    out = F.linear(seen, w_hat, other.bias if more is None else other.bias + more)
    (out * upstream).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    theirs = dict(other.named_parameters())
    for key, parameter in m.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[key].grad, msg=key)
        # nothing is outside the range of 8 bits, and only what is outside moves the zero point
        assert parameter.grad is not None and bool((parameter.grad != 0).any()) == (key != "input_zero"), key


def test_only_bytes_are_kept_for_the_gradient() -> None:
    m = layer(32, 64, bias=False)
    x = normal(128, 64)
    x.requires_grad_()
    sizes: list[int] = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        if t.data_ptr() != m.weight.data_ptr():
            sizes.append(t.numel() * t.element_size())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        m(x)
    assert sum(sizes) <= 128 * 64 + 128 * 4 + 32 * 64 + 4  # codes of both, and their scales


def test_a_frozen_weight_gets_no_gradient() -> None:
    m = layer()
    m.weight.requires_grad_(False)
    x = normal(2, 10).requires_grad_()
    m(x).sum().backward()
    assert m.weight.grad is None and x.grad is not None


# ---------------------------------------------------------------- gradual


@pytest.mark.parametrize("name", EVERY)
def test_share_nought_is_the_linear_and_share_one_the_quantised_product(name: str) -> None:
    gradual, plain = layer(gradual=True, quantiser=name), layer(quantiser=name)
    x = normal(4, 10)
    assert gradual.blend is not None
    assert torch.equal(gradual(x), F.linear(x, gradual.weight, gradual.bias))
    gradual.blend.fill_(1.0)
    assert torch.equal(gradual(x), plain(x))


def test_half_way_weights_and_activations_are_half_quantised() -> None:
    m = layer(gradual=True, quantiser="dead-zone", dead_zone=0.2)
    assert m.blend is not None and m.bias is not None
    m.blend.fill_(0.5)
    x = normal(4, 10)
    codes, scale = kernels.quantise_rows(x)
    q = m.quantised()
    assert q.bias is not None
    seen, w = (x + codes * scale.view(-1, 1)) / 2, (m.weight + q.dense()) / 2
    torch.testing.assert_close(m(x), seen @ w.t() + m.bias + 0.5 * q.bias)
    m(x).sum().backward()
    assert m.weight.grad is not None
    torch.testing.assert_close(m.weight.grad - 0.5 * 0.2 * 4 * (q.codes == 0), seen.sum(0).expand(6, 10))


# ---------------------------------------------------------------- packed, and kept


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"quantiser": "paretoq-2"}, r"paretoq-2 has codes \(-3, -1, 1, 3\)"),
        ({"activations": "none"}, "activations are none"),
        ({"gradual": True}, "the gradual schedule stands at 0"),
    ],
)
def test_what_cannot_be_packed_says_why(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        layer(**options).prepared()


@pytest.mark.parametrize("name", ["absmean", "dual", "paretoq-1.58"])
def test_it_is_packed_again_when_a_parameter_changed_and_only_then(name: str) -> None:
    m = layer(12, 16, quantiser=name)
    x = normal(3, 16)
    first = m.prepared()
    assert m.prepared() is first
    optimiser = torch.optim.AdamW(m.parameters(), lr=0.3, fused=True)
    for evaluate in ((), ("before",), ("between",)):
        before = m.prepared()
        loss = m(x).square().sum()
        if "before" in evaluate:
            m.prepared()
        loss.backward()
        if "between" in evaluate:
            m.prepared()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        assert m.prepared() is not before and m.prepared() is m.prepared()
        assert torch.equal(kernels.unpack(m.prepared())[0], copy.deepcopy(m).quantised().codes)
    with torch.no_grad():
        assert torch.equal(m(x), m._trained(x))
    state = {k: v + 1 for k, v in m.state_dict().items()}
    m.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(m(x), m._trained(x))


def test_a_learned_scale_alone_changes_what_is_kept() -> None:
    m = layer(quantiser="dual")
    x = normal(3, 10)
    assert m.weight_shift is not None and m.bias is not None
    with torch.no_grad():
        before = m(x)
        m.weight_shift.add_(1.0)
        codes, scale = kernels.quantise_rows(x)
        moved = codes.sum(1, dtype=torch.int32).float() * scale.flatten()
        torch.testing.assert_close(m(x) - before, moved[:, None].expand(3, 6), rtol=1e-4, atol=1e-4)


def test_changes_behind_torchs_back_need_forget() -> None:
    m = layer()
    x = normal(3, 10)
    with torch.no_grad():
        before = m(x)
        m.weight.data.neg_()
        m.forget()
        assert not torch.equal(m(x), before)


def test_copies_and_pickles_go_without_what_is_kept() -> None:
    m = layer(quantiser="dual")
    x = normal(2, 10)
    with torch.no_grad():
        before = m(x)
        twin = copy.deepcopy(m)
        buffer = io.BytesIO()
        torch.save(m, buffer)
        assert twin._packed is None and twin._kept is None and m._packed is not None
        buffer.seek(0)
        for other in (twin, torch.load(buffer, weights_only=False)):
            assert torch.equal(other(x), before)


def test_state_is_plain_tensors_under_the_old_names() -> None:
    assert set(layer().state_dict()) == {"weight", "bias"}
    assert set(layer(bias=False, quantiser="paretoq-3").state_dict()) == {"weight", "weight_scale"}
    full = layer(quantiser="dual", activations="elastic", norm=True, gradual=True, granularity="group", group=4)
    assert {k: tuple(v.shape) for k, v in full.state_dict().items()} == {
        "weight": (6, 10),
        "bias": (6,),
        "weight_scale": (18,),
        "weight_shift": (18,),
        "input_scale": (1,),
        "input_zero": (1,),
        "norm_weight": (10,),
        "blend": (),
    }
    assert all(p.ndim < 2 for n, p in full.named_parameters() if n != "weight")
    other = layer(
        quantiser="dual", activations="elastic", norm=True, gradual=True, granularity="group", group=4, seed=4
    )
    other.load_state_dict(full.state_dict())
    assert torch.equal(other(normal(2, 10)), full(normal(2, 10)))


def test_it_says_what_it_is() -> None:
    assert repr(layer()) == "TernaryLinear(10, 6, absmean per tensor, activations int8)"


@pytest.mark.parametrize(
    ("name", "activations"),
    [*((name, "int8") for name in EVERY), *(("absmean", a) for a in ("int8-256", "none", "elastic"))],
)
def test_training_lowers_a_loss_and_repeats_to_the_last_bit(name: str, activations: str) -> None:
    x, target = normal(64, 16, seed=1), normal(64, 8, seed=2)
    x[:, 0] = 1.0
    target = x @ normal(16, 8, seed=3) + 0.1 * target

    def run(steps: int) -> list[float]:
        m = layer(8, 16, quantiser=name, activations=activations, seed=5)
        optimiser = torch.optim.Adam(m.parameters(), lr=0.03)
        losses = []
        for _ in range(steps):
            loss = (m(x) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses

    losses = run(60)
    assert losses[-1] < 0.6 * losses[0]
    assert losses[:5] == run(5)
