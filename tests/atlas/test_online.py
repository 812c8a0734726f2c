"""Rows on online feedback, self-play and symbiosis: that each runs, and the little mathematics of their own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from triloop.atlas.frame import Context, Row
from triloop.atlas.online import FRESH, extremes, preferred
from triloop.atlas.selfplay import PLAYS, against_mixture, population
from triloop.atlas.symbiosis import LIVING
from triloop.feedback.games import exploitability
from triloop.learn.preferences import logistic
from triloop.records import Completion

ALL = (*FRESH, *LIVING, *PLAYS)


@pytest.mark.parametrize("row", ALL, ids=lambda row: row.id)
def test_a_row_runs_in_small(row: Row, tmp_path: Path) -> None:
    """Every variant, from samples to figures, with next to no steps."""
    found = row.run(Context(folder=tmp_path, seeds=(0,), base=row.base, share=0.02))
    assert len(found.baseline) == len(found.treatment) == len(row.contrasts)
    for side in (*found.baseline, *found.treatment):
        assert len(side) == 1
        assert math.isfinite(side[0])
    assert found.facts
    assert list(tmp_path.iterdir()) == [], "run folders are removed"


def test_rows_have_seeds_and_say_where_the_idea_is_had() -> None:
    assert len({row.id for row in ALL}) == len(ALL)
    assert all(len(row.seeds) >= 3 and row.core and row.parts for row in ALL)


def test_the_best_and_the_worst_of_a_group() -> None:
    assert extremes([0.1, -0.4, 0.9, 0.3]) == (2, 1)
    assert extremes([-0.5, 0.5]) == (1, 0)
    assert extremes([0.2, 0.2, 0.2]) is None


def _completion(tokens: tuple[int, ...]) -> Completion:
    n = len(tokens)
    return Completion(
        id=f"c{tokens}",
        prompt_id="p",
        round=1,
        index=0,
        prompt_tokens=(7, 8),
        tokens=tokens,
        logps=(0.0,) * n,
        mask=(True,) * n,
        text="x",
        finish="stop",
        policy_version=0,
    )


def test_a_pair_answers_the_request_that_it_is_learned_for() -> None:
    better, worse = _completion((1, 2)), _completion((3,))
    (own,) = preferred(better, worse)
    assert (own.prompt_tokens, own.first, own.second, own.p) == ((7, 8), (1, 2), (3,), 1.0)
    (plain,) = preferred(better, worse, asked=(9,))
    assert plain.prompt_tokens == (9,)
    assert preferred(better, better) == [] == preferred(better, _completion(()))


def test_preferences_of_the_population_go_round() -> None:
    p = population()
    assert p + p.T == pytest.approx(np.ones_like(p))
    assert p[1, 0] > 0.5 and p[2, 1] > 0.5 and p[0, 2] > 0.5
    assert (p[:3, 4] > 0.5).all()
    # the first (1, 0.5, 0) over the second (0, 1, 0.5), by hand: leads of utility 2, -1, -1, noise 0.15
    hand = 0.38 / (1 + math.exp(-2 / 0.15)) + (0.34 + 0.28) / (1 + math.exp(1 / 0.15))
    assert p[0, 1] == pytest.approx(hand)


def test_duels_against_one_answer_make_what_beats_it() -> None:
    """Against the first answer alone: the regularised best reply, softmax of (P(i over 0) - 1/2) / beta."""
    p = population()
    first = [i for i in range(5) for _ in range(200)]
    told = np.array([p[i, 0] for i in first])
    found = against_mixture(first, [0] * len(first), told)
    reply = np.exp((p[:, 0] - 0.5) / 0.05)
    assert found == pytest.approx(reply / reply.sum(), abs=0.02)
    assert int(found.argmax()) == 1
    assert exploitability(p, found) > 0.1, "and that is beaten in its turn"


def test_a_round_of_self_play_starts_as_supervision() -> None:
    """SPIN's expected gradient where the opponent is the policy itself is beta / 2 of imitation's: own answers are drawn
    from the policy, so pushing them down cancels in the mean, and nothing moves once imitation has converged."""
    beta, teacher = 0.1, torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04], dtype=torch.double)
    logits = torch.tensor([0.2, -1.0, 0.7, 0.0, 0.3], dtype=torch.double, requires_grad=True)

    def gradients(at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logp = at.log_softmax(0)
        ratio = logp - logp.detach()
        lead = (ratio[:, None] - ratio[None, :]).flatten()
        chance = (teacher[:, None] * logp.detach().exp()[None, :]).flatten()
        played = (chance * logistic(beta * lead, torch.ones_like(lead))).sum()
        taught = -(teacher * logp).sum()
        return torch.autograd.grad(played, at, retain_graph=True)[0], torch.autograd.grad(taught, at)[0]

    played, taught = gradients(logits)
    assert torch.allclose(played, beta / 2 * taught) and taught.abs().max() > 0.1
    converged = teacher.log().clone().requires_grad_()
    assert all(g.abs().max() < 1e-12 for g in gradients(converged))
