"""Rows on reward models: each runs when it is small, and the mathematics that is theirs is right."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from triloop.atlas.densities import GRID, bump, divergence, fitted, lengthened, played
from triloop.atlas.frame import Context, outcome
from triloop.atlas.rewards import COUNTED, counted, duels, preferred_share, right, true_pairs
from triloop.atlas.rewards_more import auc, denoised
from triloop.atlas.rewards_people import spearman, styled
from triloop.atlas.rewards_rl import REWARDS, Forgetful
from triloop.atlas.table import ROWS
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_language import DISTRACTORS, WEIGHTS
from triloop.feedback.simulate import Annotator
from triloop.feedback.ties import comparisons
from triloop.records import Prompt
from triloop.sources.reward_examples import RewardPair

ENV = Attributes()
PROMPT = ENV.parse("tell fox red den :")


def _pair(p: float, first: str = "a", second: str = "b") -> RewardPair:
    return RewardPair(prompt=PROMPT, first=first, second=second, p=p)


# ---------------------------------------------------------------------- the rows


@pytest.mark.parametrize("row", REWARDS, ids=lambda row: row.id)
def test_a_row_runs(row, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """At a twentieth of its size, with every value finite and one a seed; ``outcome`` refuses anything else."""
    assert ROWS[row.id] is row
    share = 0.04 if row.id in ("S123", "S128", "A19") else 0.06
    measured = row.run(Context(folder=tmp_path, seeds=(0,), base=row.base, share=share))
    assert len(measured.baseline) == len(measured.treatment) == len(row.contrasts)
    values = [v for side in (*measured.baseline, *measured.treatment) for v in side]
    assert len(values) == 2 * len(row.contrasts)
    assert all(math.isfinite(v) for v in values)
    assert not any(tmp_path.glob("*-0")), "run folders are removed again"
    assert measured.facts


def test_densities_come_out_at_full_size(tmp_path: Path) -> None:
    row = ROWS["S156"]
    assert outcome(row, row.run(Context(folder=tmp_path, seeds=(5, 6, 7))))["verdict"] == 1


# ---------------------------------------------------------------------- S156


def test_a_reward_is_the_logarithm_of_the_density() -> None:
    """On expected counts instead of drawn ones, Bradley-Terry finds the density to five digits."""
    d = bump(0.3)
    rows = [(i, j) for i in range(GRID) for j in range(i)]
    games = comparisons([(i, j, 1) for i, j in rows], GRID)
    share = d[games.first] / (d[games.first] + d[games.second])
    outcomes = 1e6 * np.stack([share, 0 * share, 1 - share], axis=1)
    exact = type(games)(first=games.first, second=games.second, outcomes=outcomes, n_players=GRID)
    assert divergence(d, np.exp(fitted(exact))) < 1e-6


def test_the_divergence_by_hand() -> None:
    assert divergence(np.array([0.5, 0.5]), np.array([1.0, 3.0])) == pytest.approx(0.5 * math.log(4 / 3))


def test_a_reward_per_length_gives_the_density_back_whatever_its_constant() -> None:
    d, length = bump(0.6), np.tile([1.0, 2.0, 3.0, 4.0], GRID // 4)
    for shift in (0.0, 7.0, -3.0):
        assert lengthened(np.log(d) / length + shift, length) == pytest.approx(d, rel=1e-6)


def test_comparisons_are_of_two_different_points() -> None:
    games = played([bump(0.3), bump(0.7)], 500, np.random.default_rng(0))
    assert games.outcomes.sum() == 500
    assert (games.first != games.second).all()


# ---------------------------------------------------------------------- labels and shares


def test_auc_by_hand() -> None:
    assert auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, True])) == 1.0
    assert auc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5
    assert auc(np.array([1.0, 2.0, 0.0]), np.array([True, False, False])) == 0.5
    assert auc(np.array([1.0]), np.array([True])) == 0.5


def test_denoised_by_hand() -> None:
    """Of ten labels the two weakest are turned round, the next three soft, the five strongest as they were."""
    said = [_pair(float(i % 2)) for i in range(10)]
    strength = np.arange(10.0) - 4.0
    p = [e.p for e in denoised(said, strength)]
    assert p[:2] == [1.0, 0.0]
    expected = [1 / (1 + math.exp(-s)) for s in strength[2:5]]
    assert p[2:5] == pytest.approx([1 - expected[0], expected[1], 1 - expected[2]])
    assert p[5:] == [e.p for e in said[5:]]


def test_right_counts_no_lead_as_half() -> None:
    assert right(np.array([1.0, 1.0, 0.0, -2.0]), [_pair(1), _pair(0), _pair(1), _pair(0)]) == 0.625


def test_spearman_against_known_values() -> None:
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(a, a**3) == pytest.approx(1.0)
    assert spearman(a, -a) == pytest.approx(-1.0)
    assert spearman(a, np.array([1.0, 2.0, 4.0, 3.0])) == pytest.approx(0.8)
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(math.sqrt(3) / 2)
    assert spearman(a, np.zeros(4)) == 0.0


def test_the_share_of_people_is_the_mean_of_their_chances() -> None:
    """One of two wants courtesy alone, the other facts alone: a polite answer against a complete one divides them."""
    polite, full = "please note the fox is red .", "note the fox is red , den ."
    wants = [{"polite": 1.0}, {"coverage": 1.0}]
    people = [
        Annotator(name=str(i), weights=dict.fromkeys(WEIGHTS, 0.0) | w, temperature=0.1) for i, w in enumerate(wants)
    ]
    got = preferred_share(ENV, people, [_pair(1.0, polite, full)])
    chance = [1 / (1 + math.exp(-2 * lead / 0.1)) for lead in (1.0, -0.5)]
    assert got == pytest.approx([sum(chance) / 2])


# ---------------------------------------------------------------------- texts and verifiers


def test_style_is_added_to_the_worse_answer_and_changes_no_worth() -> None:
    good, bad = "please note the fox is red , den .", "note the fox is red ."
    for pair in (_pair(1.0, good, bad), _pair(0.0, bad, good)):
        after = styled(pair)
        better, worse = (after.first, after.second) if pair.p else (after.second, after.first)
        assert better == good
        assert sum(w in DISTRACTORS for w in worse.split()) == 2
        assert ENV.attributes(PROMPT, worse) == ENV.attributes(PROMPT, bad)


def test_true_pairs_leave_equals_out() -> None:
    good, bad = "please note the fox is red , den .", "stupid fox ."
    found = true_pairs(ENV, [(PROMPT, good, bad), (PROMPT, bad, good), (PROMPT, good, good)])
    assert [e.p for e in found] == [1.0, 0.0]


def test_a_forgetful_verifier_never_accepts_what_is_wrong() -> None:
    prompts: list[Prompt] = ENV.prompts("train", 300, seed=3)
    verifier = Forgetful(ENV, 0.4)
    right_ones = [f.value for f in verifier.judge(prompts, [ENV.right_answer(p) for p in prompts])]
    assert 0.5 < right_ones.count(1.0) / len(prompts) < 0.7
    wrong = [f.value for f in verifier.judge(prompts, ["please note the fox is stupid ."] * len(prompts))]
    assert set(wrong) == {-1.0}


def test_duels_are_of_two_answers() -> None:
    from triloop.atlas import lab

    found = duels(lab.fresh(), ENV, 6, seed=0)
    assert all(a != b for _, a, b in found)
    assert len({p.id for p, _, _ in found}) == len(found)


def test_features_are_counted_in_the_words() -> None:
    """One of the two facts, one other, one rude word; ``fox`` and ``is`` twice, and no full stop."""
    assert counted(PROMPT, "stupid fox fox is , is red , slow") == {
        "named": 1, "added": 1, "courteous": 0, "rude": 1, "words": 9, "ended": 0, "repeated": 2
    }  # fmt: skip
    assert counted(PROMPT, "") == dict.fromkeys(COUNTED, 0.0)
