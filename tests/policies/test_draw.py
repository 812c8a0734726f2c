"""What may be drawn, how often, and with which probability it is booked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from triloop import rng
from triloop.errors import ConfigError
from triloop.kernels import native
from triloop.policies.draw import draw
from triloop.policies.sampling import Sampling

PROBABILITIES = torch.tensor([0.05, 0.4, 0.1, 0.2, 0.25])
MANY = 10_000


def drawn(sampling: Sampling, logits: Tensor | None = None, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    logits = PROBABILITIES.log() if logits is None else logits
    uniform = torch.from_numpy(rng.uniforms(np.array([7], dtype=np.uint64), 0, MANY)[0]).float()
    return draw(logits.expand(MANY, -1).clone(), uniform, sampling, allowed)


def chi_square(tokens: Tensor, expected: Tensor) -> float:
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    wanted = expected[kept].double() / expected.sum() * len(tokens)
    return float(((counts[kept] - wanted) ** 2 / wanted).sum())


@pytest.mark.parametrize(
    ("sampling", "support"),
    [
        (Sampling(), [0, 1, 2, 3, 4]),
        (Sampling(top_k=2), [1, 4]),
        (Sampling(top_k=1), [1]),
        (Sampling(top_k=9), [0, 1, 2, 3, 4]),
        (Sampling(top_p=0.39), [1]),
        (Sampling(top_p=0.41), [1, 4]),
        (Sampling(top_p=0.66), [1, 3, 4]),
        (Sampling(top_p=1e-9), [1]),
        (Sampling(min_p=0.5), [1, 3, 4]),
        (Sampling(min_p=0.55), [1, 4]),
        (Sampling(top_k=3, top_p=0.66), [1, 3, 4]),
        (Sampling(top_k=2, min_p=0.7), [1]),
    ],
    ids=str,
)
def test_support_and_frequency(sampling: Sampling, support: list[int]) -> None:
    """Chi-square below its 99.9 % point at 4 degrees of freedom, with every kept token as likely as it was in relation."""
    tokens, logps = drawn(sampling)
    expected = torch.zeros(5)
    expected[support] = PROBABILITIES[support]
    assert sorted(tokens.unique().tolist()) == support
    assert chi_square(tokens, expected) < 18.5
    torch.testing.assert_close(logps, PROBABILITIES.log()[tokens], msg="booked before truncation")


def test_top_k_of_equals_keeps_k() -> None:
    tokens, _ = drawn(Sampling(top_k=2), logits=torch.zeros(5))
    assert sorted(tokens.unique().tolist()) == [0, 1]


def test_temperature_scales_logits_and_log_probabilities() -> None:
    tokens, logps = drawn(Sampling(temperature=0.5))
    sharp = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    assert chi_square(tokens, sharp) < 18.5
    torch.testing.assert_close(logps, sharp.log()[tokens])


def test_temperature_zero_takes_the_likeliest() -> None:
    tokens, logps = drawn(Sampling(temperature=0.0))
    assert set(tokens.tolist()) == {1}
    assert logps[0].item() == pytest.approx(math.log(0.4), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_truncates_and_does_not_renormalise(temperature: float) -> None:
    allowed = torch.tensor([[True, False, True, False, False]])
    tokens, logps = drawn(Sampling(temperature=temperature), allowed=allowed)
    if temperature:
        assert chi_square(tokens, torch.tensor([0.05, 0.0, 0.1, 0.0, 0.0])) < 10.8
    else:
        assert set(tokens.tolist()) == {2}
    torch.testing.assert_close(logps, PROBABILITIES.log()[tokens])


def test_a_mask_of_impossible_tokens_still_draws_among_them() -> None:
    logits = torch.tensor([0.0, -300.0, -300.0, -301.0])
    allowed = torch.tensor([[False, True, True, True]])
    tokens, _ = drawn(Sampling(), logits=logits, allowed=allowed)
    assert sorted(tokens.unique().tolist()) == [1, 2, 3]


def test_the_ends_of_the_unit_interval() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]]).expand(3, -1)
    tokens, _ = draw(logits, torch.tensor([0.0, 0.5, 1.0]), Sampling())
    assert tokens.tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1},
        {"min_p": 1.0}, {"slots": 0}, {"stop": ("",)},
    ],
    ids=str,
)  # fmt: skip
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"sampling.{next(iter(wrong))}"):
        Sampling(**wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(not native.available(), reason="the compiled kernels are not built")
@pytest.mark.parametrize("vocab", [1, 2, 15, 64, 65, 5003])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("mask", ["none", "one for all", "one each", "only the unlikely"])
def test_the_compiled_draw_is_the_same(
    vocab: int, temperature: float, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(vocab)
    rows = 500
    logits, uniform = 4 * torch.randn(rows, vocab, generator=g), torch.rand(rows, generator=g)
    logits[0] = float("-inf")
    logits[0, -1] = 0.0
    uniform[:4] = torch.tensor([1.0, 0.0, 1 - 2**-24, 0.5])
    allowed = None
    if mask != "none":
        allowed = torch.rand(1 if mask == "one for all" else rows, vocab, generator=g) < 0.5
        allowed[:, -1] = True
        if mask == "only the unlikely":
            logits[:, allowed[-1]] -= 200.0
            allowed = allowed[-1:].clone()
    sampling = Sampling(temperature=temperature)
    tokens, logps = draw(logits, uniform, sampling, allowed)
    monkeypatch.setattr(native, "available", lambda: False)
    wanted, wanted_logps = draw(logits, uniform, sampling, allowed)
    # Sums are rounded differently: a number that falls on the border of two tokens may fall on either side of it.
    assert int((tokens != wanted).sum()) <= (0 if temperature == 0 else 2 + vocab // 1000)
    same = tokens == wanted
    torch.testing.assert_close(logps[same], wanted_logps[same], atol=1e-4, rtol=1e-5)
    if allowed is not None:
        assert bool(allowed.expand(rows, -1).gather(1, tokens[:, None]).all())
