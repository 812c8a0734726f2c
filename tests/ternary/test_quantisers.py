"""Each quantiser on numbers worked by hand, and what makes its scale the right one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triloop.errors import ConfigError
from triloop.ternary.config import QUANTISERS, TernaryConfig
from triloop.ternary.quantisers import FLOOR, Quantised, initial, quantise

EVERY = tuple(QUANTISERS)


def done(w: torch.Tensor, name: str, **options: object) -> Quantised:
    config = TernaryConfig(quantiser=name, **options)  # type: ignore[arg-type]
    return quantise(w, config, initial(w, config))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- by hand


def test_absmean_by_hand() -> None:
    # mean |w| = (2 + 0.5 + 1 + 4.5) / 4 = 2; w / s = 1, -0.25, 0.5, -2.25; a half rounds to even: 0
    got = done(torch.tensor([[2.0, -0.5], [1.0, -4.5]]), "absmean")
    assert got.codes.tolist() == [[1, 0], [0, -1]]
    assert got.scale.tolist() == [[2.0]] and got.shift is None and got.bias is None


def test_absmean_per_channel_and_per_group_by_hand() -> None:
    w = torch.tensor([[0.5, 0.1, 4.0, 2.0, 0.3], [1.0, -1.0, 0.0, 8.0, -0.3]])
    channel = done(w, "absmean", granularity="channel")
    # row means 6.9/5 = 1.38 and 10.3/5 = 2.06
    assert channel.codes.tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]
    torch.testing.assert_close(channel.scale, torch.tensor([[1.38], [2.06]]))
    group = done(w, "absmean", granularity="group", group=2)  # pairs, and the fifth column alone
    torch.testing.assert_close(group.scale, torch.tensor([[0.3, 3.0, 0.3], [1.0, 4.0, 0.3]]))
    assert group.codes.tolist() == [[1, 0, 1, 1, 1], [1, -1, 0, 1, -1]]


def test_absmedian_by_hand() -> None:
    # |w| sorted 1 2 4 100: the lower median is 2; w / 2 = 0.5 -> 0, 1, -2 -> -1, 50 -> 1
    got = done(torch.tensor([[1.0, 2.0, -4.0, 100.0]]), "absmedian")
    assert got.codes.tolist() == [[0, 1, -1, 1]] and got.scale.item() == 2.0


def test_statistics_by_hand() -> None:
    # mean 1; w - m = 2 -2 0.5 -0.5; mean size 1.25; s = 5/3; halves of it are 0.833
    got = done(torch.tensor([[3.0, -1.0, 1.5, 0.5]]), "statistics")
    assert got.codes.tolist() == [[1, -1, 0, 0]]
    assert got.scale.item() == pytest.approx(5 / 3)


def test_statistics_gives_each_code_a_third_of_evenly_spread_weights() -> None:
    w = torch.linspace(-1, 1, 3001)[None] + 0.3  # the mean does not matter
    got = done(w, "statistics")
    shares = [(got.codes == k).float().mean().item() for k in (-1, 0, 1)]
    assert shares == pytest.approx([1 / 3] * 3, abs=1e-3)
    assert got.scale.item() == pytest.approx(2 / 3, abs=1e-3)
    assert got.dense().abs().mean().item() == pytest.approx(4 / 9, abs=1e-3)


def test_twn_by_hand() -> None:
    # mean |w| = 1; threshold 0.7; kept 2.0 and -1.0; scale 1.5
    got = done(torch.tensor([[2.0, -1.0, 0.5, -0.5]]), "twn")
    assert got.codes.tolist() == [[1, -1, 0, 0]] and got.scale.item() == pytest.approx(1.5)


def test_twn_has_the_best_scale_and_nearly_the_best_threshold() -> None:
    w = normal(1, 4000)
    got = done(w, "twn")
    error = (w - got.dense()).square().mean()
    for factor in (0.98, 1.02):
        assert (w - factor * got.dense()).square().mean() > error  # for its codes the scale is the least squares one
    best = error
    for share in torch.arange(0.1, 1.5, 0.02):
        kept = w.abs() > share * w.abs().mean()
        best = min(best, (w - w.sign() * kept * w[kept].abs().mean()).square().mean())
    assert error <= 1.02 * best


def test_dead_zone_by_hand() -> None:
    # mean |w| = 0.5, dead below 0.25: 0.2 and -0.1 are, 0.25 is not; bias = 1e-3 (0.2 - 0.1)
    got = done(torch.tensor([[1.2, 0.2, -0.1, 0.25, -0.75]]), "dead-zone")
    assert got.codes.tolist() == [[1, 0, 0, 1, -1]]
    assert got.bias is not None and got.bias.tolist() == [pytest.approx(1e-4)]
    more = done(torch.tensor([[1.2, 0.2, -0.1, 0.25, -0.75]]), "dead-zone", dead_zone=0.5)
    assert more.bias is not None and more.bias.tolist() == [pytest.approx(0.05)]


def test_dual_by_hand() -> None:
    # mean 3; w - m = 2 -1 -0.5 -0.5: TWN around it keeps 2 and -1 (mean size 1, threshold 0.7), scale 1.5, shift 3
    w = torch.tensor([[5.0, 2.0, 2.5, 2.5]])
    got = done(w, "dual")
    assert got.codes.tolist() == [[1, -1, 0, 0]]
    torch.testing.assert_close(got.dense(), torch.tensor([[4.5, 1.5, 3.0, 3.0]]))
    config = TernaryConfig(quantiser="dual")
    other = quantise(w, config, {"scale": torch.tensor([[2.0]]), "shift": torch.tensor([[-1.0]])})
    torch.testing.assert_close(other.dense(), torch.tensor([[1.0, -3.0, -1.0, -1.0]]))


def test_binary_by_hand() -> None:
    got = done(torch.tensor([[0.5, -1.5, 0.0], [2.0, 2.0, -2.0]]), "binary")
    assert got.codes.tolist() == [[1, -1, 1], [1, 1, -1]]
    torch.testing.assert_close(got.scale, torch.tensor([[2 / 3], [2.0]]))
    w = normal(1, 100)
    best = done(w, "binary")
    for factor in (0.98, 1.02):
        assert (w - factor * best.dense()).square().mean() > (w - best.dense()).square().mean()


def test_paretoq_by_hand() -> None:
    w = torch.tensor([[4.0, -4.0, 1.0, -1.0, 1.5, 0.0]])
    one = done(w, "paretoq-1")
    assert one.codes.tolist() == [[1, -1, 1, -1, 1, 1]] and one.scale.item() == pytest.approx(11.5 / 6)
    # a = 4: w/a = 1 -1 .25 -.25 .375 0; times 1.5 (clipped at .99): 1.485 -> 1, .375 -> 0, .5625 -> 1
    ternary = done(w, "paretoq-1.58")
    assert ternary.codes.tolist() == [[1, -1, 0, 0, 1, 0]] and ternary.scale.item() == pytest.approx(4 / 1.5)
    # levels -3 -1 1 3 quarters of 4: bounds at -2, 0, 2; 0 * 2 - .5 rounds to even: 0 -> level 1
    two = done(w, "paretoq-2")
    assert two.codes.tolist() == [[3, -3, 1, -1, 1, 1]]
    torch.testing.assert_close(two.dense(), torch.tensor([[3.0, -3.0, 1.0, -1.0, 1.0, 1.0]]))
    # step 4/3: w/s = 3 -3 .75 -.75 1.125 0
    three = done(w, "paretoq-3")
    assert three.codes.tolist() == [[3, -3, 1, -1, 1, 0]] and three.scale.item() == pytest.approx(4 / 3)
    # step 4/7: 7 -7 1.75 -1.75 2.625 0
    four = done(w, "paretoq-4")
    assert four.codes.tolist() == [[7, -7, 2, -2, 3, 0]]


def test_stretched_levels_lie_evenly_around_zero_and_share_the_range() -> None:
    w = torch.linspace(-0.98, 0.98, 5001)[None]
    for name, levels in (("paretoq-1.58", [-2 / 3, 0, 2 / 3]), ("paretoq-2", [-0.75, -0.25, 0.25, 0.75])):
        got = quantise(w, TernaryConfig(quantiser=name), {"scale": torch.ones(1, 1)})
        assert got.dense().unique().tolist() == pytest.approx(levels)
        counts = torch.stack([(got.codes == k).sum() for k in QUANTISERS[name].codes]).float()
        assert (counts.max() / counts.min()).item() < 1.1


# ---------------------------------------------------------------- properties of all


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "options", [{"granularity": g} for g in ("tensor", "channel")] + [{"granularity": "group", "group": 3}]
)
@pytest.mark.parametrize("shape", [(4, 6), (1, 1), (5, 7), (3, 2)])
def test_codes_scales_and_shapes(name: str, options: dict[str, object], shape: tuple[int, int]) -> None:
    w = normal(*shape)
    before = w.clone()
    got = done(w, name, **options)
    assert torch.equal(w, before)
    assert set(got.codes.unique().tolist()) <= set(QUANTISERS[name].codes)
    rows = 1 if options["granularity"] == "tensor" else shape[0]
    groups = -(-shape[1] // 3) if "group" in options else 1
    assert got.scale.shape == (rows, groups) and got.dense().shape == shape
    assert (got.shift is not None) == ("shift" in QUANTISERS[name].learned)
    assert (got.bias is not None) == QUANTISERS[name].bias
    again = done(w, name, **options)
    assert torch.equal(got.codes, again.codes) and torch.equal(got.scale, again.scale)


@pytest.mark.parametrize("name", EVERY)
def test_a_group_is_quantised_as_if_it_were_a_matrix(name: str) -> None:
    w = normal(4, 10)
    whole = done(w, name, granularity="group", group=4).dense()
    for piece in (slice(0, 4), slice(4, 8), slice(8, 10)):
        torch.testing.assert_close(whole[:, piece], done(w[:, piece], name, granularity="channel").dense())
    torch.testing.assert_close(
        done(w[1:2], name, granularity="tensor").dense(), done(w, name, granularity="channel").dense()[1:2]
    )


@pytest.mark.parametrize("name", EVERY)
def test_zeros_give_finite_numbers(name: str) -> None:
    got = done(torch.zeros(3, 5), name)
    assert torch.isfinite(got.dense()).all() and (got.scale > 0).all()
    assert got.dense().abs().max() <= FLOOR


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), power=st.integers(-6, 6))
def test_scaling_a_weight_by_a_power_of_two_scales_the_answer(name: str, seed: int, power: int) -> None:
    """Exact in floating point, so the codes must be the same to the last one."""
    w = normal(3, 8, seed=seed)
    one, other = done(w, name), done(w * 2.0**power, name)
    assert torch.equal(one.codes, other.codes)
    torch.testing.assert_close(one.dense() * 2.0**power, other.dense())


@pytest.mark.parametrize("name", [n for n in EVERY if n != "binary" and n != "paretoq-1"])
def test_negating_a_weight_negates_the_answer(name: str) -> None:
    w = normal(4, 64)
    if name in ("paretoq-3", "paretoq-4"):
        w = w - w.abs().max() / 100  # their codes reach one further below 0; nothing here comes near it
    one, other = done(w, name), done(-w, name)
    torch.testing.assert_close(one.dense(), -other.dense())


def test_bfloat16_weights_are_quantised_in_fp32() -> None:
    w = normal(8, 32).bfloat16()
    one, other = done(w, "absmean"), done(w.float(), "absmean")
    assert torch.equal(one.codes, other.codes) and torch.equal(one.scale, other.scale)
    assert one.dense().dtype == torch.float32


@pytest.mark.parametrize("name", EVERY)
def test_scales_for_llama_cpp_are_in_half_precision(name: str) -> None:
    """Those and nothing else: codes are made with the exact ones."""
    w = normal(6, 600) * 3
    exact, config = done(w, name), TernaryConfig(quantiser=name, activations="int8-256")
    half = quantise(w, config, initial(w, config))
    assert torch.equal(half.codes, exact.codes) and torch.equal(half.scale, exact.scale.half().float())
    assert not torch.equal(half.scale, exact.scale)
    huge = quantise(w * 1e6, config, initial(w * 1e6, config))
    assert bool(huge.scale.isfinite().all())


# ---------------------------------------------------------------- the table and the settings


def test_bits_and_packability() -> None:
    bits = {name: q.bits for name, q in QUANTISERS.items()}
    assert bits["paretoq-2"] == 2 and bits["binary"] == 1 and bits["paretoq-4"] == 4
    assert bits["absmean"] == pytest.approx(1.585, abs=1e-3)
    assert [n for n, q in QUANTISERS.items() if not q.packable] == ["paretoq-2", "paretoq-3", "paretoq-4"]


def test_learned_numbers_must_be_given() -> None:
    with pytest.raises(ConfigError, match="learns scale, shift, and got none"):
        quantise(normal(2, 2), TernaryConfig(quantiser="dual"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantiser": "ternary"}, "no quantiser 'ternary'; choose one of absmean"),
        ({"granularity": "row"}, "granularity 'row' is none of"),
        ({"activations": "int4"}, "activations 'int4' are none of"),
        ({"group": 32}, "give a positive group with granularity group"),
        ({"granularity": "group"}, "group 0 with granularity group"),
        ({"activations": "int8-256", "granularity": "group", "group": 128}, "expected a multiple of 256"),
        ({"activation_bits": 4}, "needs activations elastic"),
        ({"activations": "elastic", "activation_bits": 9}, "not between 1 and 8"),
        ({"dead_zone": 0.1}, "is read by the quantiser dead-zone"),
        ({"quantiser": "dead-zone", "dead_zone": -0.1}, r"must lie in \[0, 1\)"),
        ({"norm_eps": 1e-5}, "is read with norm=True only"),
        ({"norm": True, "norm_eps": 0.0}, "must be positive"),
    ],
)
def test_settings_that_cannot_be_used(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TernaryConfig(**options)  # type: ignore[arg-type]


def test_the_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TernaryConfig().quantiser = "twn"  # type: ignore[misc]
