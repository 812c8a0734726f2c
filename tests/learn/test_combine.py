from __future__ import annotations

import math

import pytest
import torch

from triloop.errors import ConfigError
from triloop.learn import combine
from triloop.learn.credit import gae, group_normalised
from triloop.learn.spans import dense_rewards, signed_policy_gradient

RIGHT = torch.tensor([[True, True, False, False, True], [False, False, False, False, False]])
SCORES = torch.tensor([[3.0, 5.0, 1.0, 9.0, math.nan], [0.0, 1.0, 2.0, 2.0, 4.0]])
VALID = torch.tensor([[True, True, True, True, False], [True] * 5])


def test_stratified_by_hand() -> None:
    got = combine.stratified(RIGHT, SCORES, VALID, alpha=0.1, beta=0.2, eps=0.0)
    want = torch.tensor([[0.8, 1.2, -0.1, 0.1, 0.0], [-0.1, -0.05, 0.0, 0.0, 0.1]])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert group_normalised(got, VALID)[0, 0] > group_normalised(got, VALID)[0, 3]


def test_no_score_lifts_wrong_above_right() -> None:
    g = torch.Generator().manual_seed(0)
    right, scores = torch.rand(50, 8, generator=g) > 0.5, 100 * torch.randn(50, 8, generator=g)
    got = combine.stratified(right, scores, torch.ones_like(right), alpha=0.4, beta=0.59)
    assert got[right].min() > got[~right].max()
    with pytest.raises(ConfigError, match="together below 1"):
        combine.stratified(right, scores, right, alpha=0.5, beta=0.5)


def test_a_stratum_of_equals_stands_at_its_lower_end() -> None:
    one = torch.tensor([[True, False]])
    got = combine.stratified(one, torch.tensor([[2.0, 7.0]]), torch.ones_like(one))
    torch.testing.assert_close(got, torch.tensor([[0.9, -0.1]]))


def test_spread_weighs_prompts() -> None:
    scores = torch.tensor([[1.0, 3.0, math.nan], [2.0, 2.0, 2.0]])
    valid = torch.tensor([[True, True, False], [True] * 3])
    got = combine.spread_weight(scores, valid, mean_spread=1.0, low=0.5, high=2.5, steepness=2.0)
    assert got.tolist() == pytest.approx([1.5, 0.5 + 2.0 / (1 + math.e**2)])


def test_along_a_direction() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    got = combine.along(rewards, torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(got, torch.tensor([0.6, 1.1]))
    with pytest.raises(ConfigError, match="length 1.414"):
        combine.along(rewards, torch.tensor([1.0, 1.0]))


def test_rewards_at_their_own_density() -> None:
    mask = torch.tensor([[True, True, False, True], [True, True, False, False]])
    marks = {"words": [[(0, 1.0), (3, -1.0)], [(1, 0.5)]], "whole": [[(3, 2.0)], [(1, 1.0)]]}
    got = dense_rewards(marks, {"words": 0.5, "whole": 2.0}, mask)
    assert got.tolist() == [[0.5, 0.0, 0.0, 3.5], [0.0, 2.25, 0.0, 0.0]]
    advantage, _ = gae(got, torch.zeros(2, 4), mask)
    assert advantage.tolist() == [[4.0, 3.5, 0.0, 3.5], [2.25, 2.25, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("marks", "says"),
    [
        ({"words": [[(1, 1.0)], []]}, "marks token 1 of completion 0"),
        ({"words": [[(9, 1.0)], []]}, "marks token 9"),
        ({"other": [[], []]}, "'other' has no weight"),
        ({"words": [[]]}, "marks 1 completions, expected 2"),
    ],
)
def test_wrong_marks_are_refused(marks: dict[str, list[list[tuple[int, float]]]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        dense_rewards(marks, {"words": 1.0}, torch.tensor([[True, False], [True, True]]))


def test_signed_policy_gradient_by_hand() -> None:
    logp, signs = torch.tensor([[-1.0, -2.0, -3.0, math.nan]]), torch.tensor([[1.0, 0.0, -0.5, math.nan]])
    mask = torch.tensor([[True, True, True, False]])
    assert signed_policy_gradient(logp, signs, mask, negative_weight=0.5).tolist() == [[1.0, 0.0, -0.75, 0.0]]
    old = torch.tensor([[-2.0, -2.0, -1.0, 0.0]])
    x = logp.clone().requires_grad_()
    loss = signed_policy_gradient(x, signs, mask, logp_old=old, clip=0.2)
    torch.testing.assert_close(loss.detach(), torch.tensor([[-1.2, 0.0, 0.4, 0.0]]))
    loss.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 0.0, 0.0, 0.0]]  # both moved past the clip already
    with pytest.raises(ConfigError, match="needs log-probabilities under the policy before"):
        signed_policy_gradient(logp, signs, mask, clip=0.2)
