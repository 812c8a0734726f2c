from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triloop.errors import ConfigError
from triloop.learn import credit as c

REWARDS = torch.tensor([[1.0, 0.0, 0.0, -1.0], [0.1, 0.1, 0.1, 0.1]])
ALL = torch.ones(2, 4, dtype=torch.bool)
BATCH_MEAN = partial(c.plain, baseline="batch")

GROUP_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": c.plain,
    "batch_mean": BATCH_MEAN,
    "leave_one_out": c.leave_one_out,
    "group_centred": c.group_centred,
    "group_normalised": c.group_normalised,
    "group_normalised_sample": partial(c.group_normalised, sample_std=True, eps=1e-4),
}
every_group_function = pytest.mark.parametrize("name", GROUP_FUNCTIONS)


@every_group_function
def test_contract_failed_judgements_count_nowhere(name: str) -> None:
    """A failed entry, whatever its reward, gets 0, and the others are what they would be without it."""
    advantage = GROUP_FUNCTIONS[name]
    poisoned = torch.cat([REWARDS, torch.full((2, 1), math.nan)], dim=1)
    valid = torch.cat([ALL, torch.zeros(2, 1, dtype=torch.bool)], dim=1)
    got = advantage(poisoned, valid)
    torch.testing.assert_close(got[:, :4], advantage(REWARDS, ALL))
    assert (got[:, 4] == 0).all()


@every_group_function
def test_contract_shapes_are_checked(name: str) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        GROUP_FUNCTIONS[name](REWARDS, ALL[:, :2])


@pytest.mark.parametrize("name", sorted(GROUP_FUNCTIONS.keys() - {"plain"}))  # plain subtracts nothing
def test_contract_no_spread_is_exactly_zero(name: str) -> None:
    flat = torch.full((2, 7), 0.1)
    assert (GROUP_FUNCTIONS[name](flat, torch.ones(2, 7, dtype=torch.bool)) == 0).all()


@every_group_function
def test_contract_nothing_valid(name: str) -> None:
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    assert (GROUP_FUNCTIONS[name](REWARDS, nothing) == 0).all()
    assert c.has_spread(REWARDS, nothing).tolist() == [False, False]


def test_values_by_hand() -> None:
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
    assert torch.equal(c.plain(REWARDS, ALL), REWARDS)
    close(BATCH_MEAN(REWARDS, ALL), REWARDS - 0.05)
    close(c.group_centred(REWARDS, ALL)[0], REWARDS[0])
    close(c.leave_one_out(REWARDS, ALL)[0], torch.tensor([4 / 3, 0.0, 0.0, -4 / 3]))
    close(c.group_normalised(REWARDS, ALL, eps=0.0)[0], REWARDS[0] * math.sqrt(2))
    close(c.group_normalised(REWARDS, ALL, eps=0.0, sample_std=True)[0], REWARDS[0] * math.sqrt(1.5))


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    r = torch.tensor([[0.3, -1.0, 0.9]])
    expected = torch.tensor([[0.3 - (-0.1 / 2), -1.0 - 0.6, 0.9 - (-0.35)]])
    torch.testing.assert_close(c.leave_one_out(r, torch.ones(1, 3, dtype=torch.bool)), expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=4, max_size=4), min_size=1, max_size=4))
def test_identities(rows: list[list[float]]) -> None:
    r = torch.tensor(rows)
    valid = torch.ones_like(r, dtype=torch.bool)
    centred = c.group_centred(r, valid)
    torch.testing.assert_close(c.leave_one_out(r, valid), centred * 4 / 3)
    torch.testing.assert_close(centred.sum(dim=1), torch.zeros(len(rows)), atol=1e-6, rtol=0)
    population, sample = (c.group_normalised(r, valid, eps=0.0, sample_std=s) for s in (False, True))
    torch.testing.assert_close(population, sample * math.sqrt(4 / 3))
    spread = c.has_spread(r, valid)
    torch.testing.assert_close(population.square().mean(dim=1), spread.float())


def test_has_spread_looks_at_valid_rewards_alone() -> None:
    valid = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert c.has_spread(REWARDS, valid).tolist() == [True, False]
    assert c.has_spread(torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]])).tolist() == [False]


def test_success_rate() -> None:
    valid = torch.tensor([[True, True, False, False], [False] * 4])
    assert c.success_rate(REWARDS > 0, valid).tolist() == [0.5, 0.0]


def test_gae_by_hand() -> None:
    """Two tokens, reward at the end, gamma = 0.5, lam = 0.5."""
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.2, 0.4]])
    advantage, returns = c.gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), gamma=0.5, lam=0.5)
    last = 1.0 - 0.4
    first = (0.5 * 0.4 - 0.2) + 0.25 * last
    torch.testing.assert_close(advantage, torch.tensor([[first, last]]))
    torch.testing.assert_close(returns, torch.tensor([[first + 0.2, 1.0]]))


def test_gae_limits() -> None:
    """lam = 1: return to go minus value. lam = 0: one-step error."""
    g = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(3, 5, generator=g), torch.randn(3, 5, generator=g)
    mask = torch.ones(3, 5, dtype=torch.bool)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(c.gae(rewards, values, mask, gamma=1.0, lam=1.0)[1], to_go)
    after = torch.cat([values[:, 1:], torch.zeros(3, 1)], dim=1)
    torch.testing.assert_close(c.gae(rewards, values, mask, gamma=0.9, lam=0.0)[0], rewards + 0.9 * after - values)


def test_gae_steps_over_what_the_environment_inserted() -> None:
    """An observation in the middle, NaN there: the same as without it."""
    nan = math.nan
    rewards, values = torch.tensor([[0.0, nan, 1.0, nan]]), torch.tensor([[0.2, nan, 0.4, nan]])
    mask = torch.tensor([[True, False, True, False]])
    advantage, returns = c.gae(rewards, values, mask, gamma=0.5, lam=0.5)
    dense = c.gae(rewards[:, ::2], values[:, ::2], mask[:, ::2], gamma=0.5, lam=0.5)
    torch.testing.assert_close(advantage[:, ::2], dense[0])
    torch.testing.assert_close(returns[:, ::2], dense[1])
    assert (advantage[:, 1::2] == 0).all()
    assert (returns[:, 1::2] == 0).all()


def test_whiten() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    got = c.whiten(torch.tensor([[1.0, 2.0, math.nan], [5.0, 4.0, 0.0]]), mask)
    assert got[mask].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert got[mask].std(correction=0).item() == pytest.approx(1.0, abs=1e-4)
    assert got[0, 2] == 0
    assert (c.whiten(torch.ones(2, 3), mask).abs() < 1e-3).all()


def test_overlong_penalty_by_hand() -> None:
    """DAPO's own figures: limit 20480, buffer 4096."""
    lengths = torch.tensor([100, 16384, 18432, 20480, 30000])
    assert c.overlong_penalty(lengths, 20480, 4096).tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]
    with pytest.raises(ConfigError, match="overlong_buffer"):
        c.overlong_penalty(lengths, 10, 11)


def test_ternary_reward() -> None:
    assert [c.ternary_reward(v, -0.5) for v in (1.0, 0.0, -1.0, 0.25)] == [1.0, -0.5, -1.0, 0.25]
    assert c.ternary_reward(0.0) == 0.0
    with pytest.raises(ConfigError, match="abstain_value"):
        c.ternary_reward(1.0, 2.0)


@pytest.mark.parametrize("v", [-1.0, -0.5, 0.0, 0.6, 1.0])
def test_abstention_threshold_is_where_both_pay_the_same(v: float) -> None:
    p = c.abstention_threshold(v)
    answering = p * c.ternary_reward(1.0, v) + (1 - p) * c.ternary_reward(-1.0, v)
    assert answering == pytest.approx(c.ternary_reward(0.0, v))
    assert 0 <= p <= 1


@pytest.mark.parametrize(
    ("v", "p", "answers"), [(0.0, 0.7, True), (0.0, 0.3, False), (0.6, 0.7, False), (-0.6, 0.3, True)]
)
def test_a_learner_answers_exactly_above_the_threshold(v: float, p: float, answers: bool) -> None:
    """S132 in small: one question that is answered rightly with chance p; group-relative policy gradient on the choice."""
    assert (p > c.abstention_threshold(v)) is answers
    g = torch.Generator().manual_seed(0)
    logit = torch.zeros(1)
    for _ in range(60):
        answer = torch.rand(8, 32, generator=g) < logit.sigmoid()
        right = torch.rand(8, 32, generator=g) < p
        judged = torch.where(answer, torch.where(right, 1.0, -1.0), 0.0)
        reward = torch.tensor([c.ternary_reward(x, v) for x in judged.flatten().tolist()]).reshape(8, 32)
        advantage = c.group_normalised(reward, torch.ones_like(answer))
        score = answer.float() - logit.sigmoid()  # gradient of log-probability of the choice
        logit = logit + 1.0 * (advantage * score).mean()
    assert (logit.sigmoid().item() > 0.8) if answers else (logit.sigmoid().item() < 0.2)
