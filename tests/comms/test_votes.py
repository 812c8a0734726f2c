"""Votes by hand: ties, weights, reputations, and a minority that lies."""

from __future__ import annotations

import math

import pytest
import torch

from triloop.comms.schemes import FedVote, Place, Vote
from triloop.comms.simulate import Fleet, inverted, magnified
from triloop.comms.votes import agreement, ballot, latent, plurality, soft_vote, trusted
from triloop.errors import ConfigError


def _votes(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int8)


def _alike(n: int) -> torch.Tensor:
    return torch.full((n,), 1.0 / n)


def test_plurality_by_hand() -> None:
    # by column: a majority; a plurality of 0; 1 and -1 tie; all differ; 0 and 1 tie
    votes = _votes([1, 0, 1, 1, 0], [1, 0, 1, 0, 0], [-1, 1, -1, -1, 1], [1, -1, -1, 1, 1], [0, 1, 0, -1, -1])
    assert plurality(votes, _alike(5)).tolist() == [1, 0, 0, 0, 0]
    assert plurality(votes[:, 1:2], _alike(5)).tolist() == [0]  # two 0, two 1, one -1: a tie, nobody has won
    assert plurality(_votes([0], [0], [1]), _alike(3)).tolist() == [0]  # 0 wins by itself


def test_ties_of_seven_equal_weights() -> None:
    """Sums of sevenths differ in their last bits, and are a tie all the same."""
    assert plurality(_votes([1], [-1], [1], [-1], [1], [-1], [0]), _alike(7)).tolist() == [0]


def test_binary_ties_are_for_the_coin() -> None:
    votes = _votes([1, 1, 1], [-1, -1, 1])
    coin = torch.tensor([0.49, 0.5, 0.9], dtype=torch.float64)
    assert plurality(votes, _alike(2), coin).tolist() == [1, -1, 1]


def test_weights_decide() -> None:
    votes = _votes([1, -1], [-1, -1], [-1, 1])
    assert plurality(votes, torch.tensor([0.6, 0.2, 0.2])).tolist() == [1, -1]
    assert soft_vote(votes, torch.tensor([0.5, 0.25, 0.25])).tolist() == [0.0, -0.5]


def test_ballots_have_no_bias() -> None:
    w = torch.tensor([[-1.0, -0.75, -0.25, 0.0, 0.5, 1.0]])
    even = ((torch.arange(8, dtype=torch.float64) + 0.5) / 8)[:, None].expand(8, 6).contiguous()
    for binary in (False, True):
        votes = ballot(w.repeat(8, 1), even, binary=binary)
        assert set(votes.flatten().tolist()) == ({-1, 1} if binary else {-1, 0, 1})
        assert torch.equal(votes.float().mean(dim=0), w[0])


def test_latent_is_the_inverse_and_stays_finite() -> None:
    share = torch.tensor([0.0, 0.5, -1.0])
    h = latent(share, 1.5, 0.998)
    assert torch.tanh(1.5 * h).tolist() == pytest.approx([0.0, 0.5, -0.998], abs=1e-6)
    assert h[2].item() == pytest.approx(math.atanh(-0.998) / 1.5, abs=1e-5)


def test_reputation_by_hand() -> None:
    agreed = agreement(_votes([1, 1, 0, -1], [1, 0, 0, 1]), torch.tensor([1, 1, 0, -1], dtype=torch.int8))
    assert agreed.tolist() == [1.0, 0.5]
    after, weights = trusted(torch.ones(2), agreed, 0.5)
    assert after.tolist() == [1.0, 0.75] and weights.tolist() == pytest.approx([4 / 7, 3 / 7])
    assert trusted(torch.zeros(2), torch.zeros(2), 0.5)[1].tolist() == [0.5, 0.5]


def test_one_liar_of_three_changes_no_gradient_but_the_scale_between() -> None:
    """Honest workers that agree win every number; the liar, a hundred times as loud, moves nothing."""
    g = torch.tensor([3.0, -3.0, 0.1, -0.1, 3.0])
    found = Fleet(scheme=Vote(), workers=3, liars=1, attack=magnified).exchange({"w": g.repeat(3, 1)})["w"]
    assert found.tolist() == [3.0, -3.0, 0.0, 0.0, 3.0]


def test_soft_votes_trust_liars_less_and_less() -> None:
    g = torch.tensor([1.0, -1.0, 1.0, 1.0])
    fleet = Fleet(scheme=Vote(soft=True, memory=0.5), workers=4, liars=1)
    first = fleet.exchange({"w": g.repeat(4, 1)})["w"]
    # the liar agrees in nothing: reputations 1, 1, 1, 1/2, so weights 2/7 and 1/7
    assert first.tolist() == pytest.approx([5 / 7, -5 / 7, 5 / 7, 5 / 7])
    assert fleet.exchange({"w": g.repeat(4, 1)})["w"][0].item() == pytest.approx(11 / 13)  # 4/13 each, and 1/13
    assert fleet.common["w"]["reputation"].tolist() == [1.0, 1.0, 1.0, 0.25]


def test_fedvote_by_hand() -> None:
    """Weights so large that the rounding has no choice: three for +, one for 0 by tanh(0) = 0."""
    h = torch.tensor([[9.0, -9.0, 0.0], [9.0, 9.0, 0.0], [9.0, -9.0, 0.0]])
    fleet = Fleet(scheme=FedVote(slope=1.5, memory=None, limit=0.998), workers=3)
    found = torch.tanh(1.5 * fleet.exchange({"w": h})["w"])
    assert found.tolist() == pytest.approx([0.998, -1 / 3, 0.0], abs=1e-5)
    assert fleet.common["w"]["deployed"].tolist() == [1, -1, 0]
    assert fleet.bits == 8  # three trits are one byte


def test_fedvote_outvotes_liars_and_weighs_them_down() -> None:
    h = torch.full((7, 400), 2.0)
    h[:, 200:] = -2.0
    for binary in (False, True):
        plain, wary = (
            Fleet(scheme=FedVote(binary=binary, memory=m), workers=7, liars=2, attack=inverted) for m in (None, 0.2)
        )
        for _ in range(4):
            unwarned, warned = plain.exchange({"w": h})["w"], wary.exchange({"w": h})["w"]
        reputation = wary.common["w"]["reputation"]
        assert reputation[:5].min() > 0.9 and reputation[5:].max() < 0.1
        right = torch.sign(h[0])
        assert (torch.sign(unwarned) == right).float().mean() > 0.95
        assert (warned * right).mean() > (unwarned * right).mean() + 0.2, "votes are clearer without the liars"
        assert torch.equal(wary.common["w"]["deployed"].float(), right)


def test_binary_ties_fall_alike_on_all_workers() -> None:
    place = Place(seed=3, step=1, layer="w", ranks=(0,), workers=2)
    messages = torch.tensor([[0b11110000], [0b00001111]], dtype=torch.uint8)  # two workers that disagree everywhere
    none = torch.zeros(0)
    deployed = [
        FedVote(binary=True).receive(place, messages, 8, none, {})[1]["deployed"],
        FedVote(binary=True).receive(Place(seed=3, step=1, layer="w", ranks=(1,), workers=2), messages, 8, none, {})[1][
            "deployed"
        ],
    ]
    assert torch.equal(*deployed) and set(deployed[0].tolist()) <= {-1, 1}


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"slope": 0.0}, {"limit": 1.0}, {"memory": 1.5}):
        with pytest.raises(ConfigError):
            FedVote(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="memory"):
        Vote(memory=-0.1)
    with pytest.raises(ConfigError, match="fewer than all"):
        Fleet(scheme=Vote(), workers=2, liars=2)
