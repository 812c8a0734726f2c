"""What may be drawn, how often, and with which probability it is booked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from triloop import rng
from triloop.errors import ConfigError
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
