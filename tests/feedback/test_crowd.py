"""Models of workers: steps by hand, crowd-kit as the reference, known skill found again, and time."""

import gzip
import json
import time

import numpy as np
import pytest

from triloop import rng
from triloop.errors import ConfigError
from triloop.feedback.aggregate import Votes, ballot, decide, majority
from triloop.feedback.crowd import Crowd, dawid_skene, glad, mace, one_coin
from triloop.feedback.simulate import cast_votes, even_confusion

MODELS = (dawid_skene, one_coin, glad, mace)
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)


def small() -> Votes:
    """Item 0: a and b say 0, c says 1. Item 1: all say 1."""
    rows = [("a", 0, 0), ("b", 0, 0), ("c", 0, 1), ("a", 1, 1), ("b", 1, 1), ("c", 1, 1)]
    return ballot(rows, labels=(0, 1)).votes


def simulated(n=600, workers=20, per_item=5, k=3, seed=0):
    g = rng.generator(seed, "crowd test")
    accuracy = np.clip(g.beta(4, 2, workers), 0.2, 0.97)
    truth = g.integers(0, k, n)
    return truth, accuracy, cast_votes(truth, even_confusion(accuracy, k), per_item=per_item, seed=seed)


def test_dawid_skene_by_hand():
    """One step. Majority q: (2/3, 1/3) and (0, 1); prior (1/3, 2/3).

    a and b given truth 0 say 0 always; given truth 1: 0 with (1/3) / (4/3) = 1/4. c says 1 always, and tells nothing.
    Item 0: 1/3 * 1 * 1 against 2/3 * 1/16: q = 8/9."""
    one = dawid_skene(small(), iterations=1)
    assert one.posterior[0] == pytest.approx([8 / 9, 1 / 9])
    assert one.posterior[1] == pytest.approx([0.0, 1.0], abs=1e-9)
    # log-likelihood: item 0 has 1/3 + 1/24, item 1 has 2/3 * 9/16
    assert one.history[0] == pytest.approx((np.log(3 / 8) + np.log(3 / 8)) / 6)


def test_one_coin_by_hand():
    """One step: a, b are right with (2/3 + 1) / 2 = 5/6, c with (1/3 + 1) / 2 = 2/3; prior (1/3, 2/3).

    Item 0: 1/3 (5/6)^2 (1/3) against 2/3 (1/6)^2 (2/3), that is 25 against 4."""
    one = one_coin(small(), iterations=1, tolerance=0.0)
    assert one.posterior[0] == pytest.approx([25 / 29, 4 / 29])


def test_mace_step_without_priors_by_hand():
    """Everyone starts at half knowing, half spamming evenly: a vote for k is 3/4 from the label itself, 1/4 from the other.

    Known share: q(label) * (1/2) / (3/4). a: (2/3 + 1) * 2/3 = 10/9 of 2 votes known."""
    one = mace(small(), iterations=1, tolerance=0.0, knowing=(1e-9, 1e-9), habit=1e-9)
    assert one.reliability[:2] == pytest.approx([5 / 9, 5 / 9])
    assert one.reliability[2] == pytest.approx((1 / 3 + 1) / 3)


@every_model
def test_posteriors_are_distributions_and_the_likelihood_climbs(model):
    _, _, v = simulated()
    c = model(v)
    assert isinstance(c, Crowd)
    assert c.converged
    assert c.posterior.sum(axis=1) == pytest.approx(1.0)
    assert np.isfinite(c.posterior).all() and (c.posterior >= 0).all()
    assert (np.diff(c.history) > -1e-9).all()


@every_model
def test_known_skill_is_found_and_used(model):
    truth, accuracy, v = simulated(n=1500)
    c = model(v)
    right = (decide(c.posterior) == truth).mean()
    assert right > (decide(majority(v)) == truth).mean() + 0.005
    assert np.corrcoef(c.reliability, accuracy)[0, 1] > 0.9
    if model in (dawid_skene, one_coin):
        assert np.abs(c.reliability - accuracy).mean() < 0.05


def test_dawid_skene_turns_a_liar_round():
    """A worker who always says the opposite is as good as one who is right; a single accuracy below 1/2 says so too."""
    truth = rng.generator(0, "liar").integers(0, 2, 400)
    accuracy = np.array([0.9, 0.85, 0.8, 0.05])
    v = cast_votes(truth, even_confusion(accuracy, 2), per_item=4, seed=3)
    c = dawid_skene(v)
    assert (decide(c.posterior) == truth).mean() > (decide(majority(v)) == truth).mean() + 0.03
    assert c.confusion is not None
    assert c.confusion[3, 0, 1] > 0.9


def test_confusions_are_found():
    """One label is taken for another in one direction only, which no single accuracy can say."""
    truth = rng.generator(1, "confusion").integers(0, 3, 3000)
    one = np.array([[0.9, 0.05, 0.05], [0.4, 0.55, 0.05], [0.05, 0.05, 0.9]])
    v = cast_votes(truth, np.stack([one] * 6), per_item=6, seed=1)
    c = dawid_skene(v, stop="likelihood")
    assert c.confusion is not None
    assert np.abs(c.confusion.mean(axis=0) - one).max() < 0.03


def test_glad_finds_which_items_are_easy():
    g = rng.generator(2, "ease")
    n, workers = 800, 12
    truth, hard = g.integers(0, 2, n), np.arange(n) < n // 2
    p = np.where(hard, 0.58, 0.92)
    right = g.random((n, workers)) < p[:, None]
    label = np.where(right, truth[:, None], 1 - truth[:, None])
    v = ballot([(w, i, int(label[i, w])) for i in range(n) for w in range(workers)]).votes
    ease = glad(v).ease
    assert ease is not None
    assert ease[~hard].mean() > 1.5 * ease[hard].mean()


def test_gold_is_taken_as_given_and_teaches_about_workers():
    """Three of five workers lie: alone the votes say the opposite, and forty known labels turn everything round."""
    truth = rng.generator(4, "gold").integers(0, 2, 400)
    v = cast_votes(truth, even_confusion(np.array([0.9, 0.9, 0.1, 0.1, 0.1]), 2), per_item=5, seed=4)
    assert (decide(dawid_skene(v).posterior) == truth).mean() < 0.1
    gold = np.where(np.arange(400) < 40, truth, -1)
    c = dawid_skene(v, gold=gold, smoothing=0.1)
    assert (decide(c.posterior)[:40] == truth[:40]).all()
    assert (decide(c.posterior) == truth).mean() > 0.95


@every_model
def test_an_item_without_votes_gets_the_prior_and_a_silent_worker_chance(model):
    v = small()
    wider = Votes(item=v.item, worker=v.worker, label=v.label, n_items=3, n_workers=4, n_labels=2)
    c = model(wider)
    assert c.posterior[2] == pytest.approx(c.prior / c.prior.sum(), abs=1e-6)
    assert c.posterior[:2] == pytest.approx(model(v).posterior)
    assert np.isfinite(c.reliability).all()


def test_smoothing_pulls_a_worker_to_chance():
    assert dawid_skene(small(), smoothing=1e6).reliability == pytest.approx(0.5, abs=1e-3)
    assert one_coin(small(), smoothing=1e6).reliability == pytest.approx(0.5, abs=1e-3)


def test_a_hundred_thousand_votes_in_about_a_second():
    _, _, v = simulated(n=20_000, workers=200, per_item=5, k=4)
    best = min(_seconds(v) for _ in range(2))
    assert best < 3.0, f"{best:.2f} s for {len(v.item)} votes"


def _seconds(v):
    start = time.perf_counter()
    dawid_skene(v)
    return time.perf_counter() - start


def test_refusals():
    with pytest.raises(ConfigError, match="at least 1"):
        dawid_skene(small(), iterations=0)


# ---------------------------------------------------------------------- the reference


def reference(name, v, **options):
    """Posterior of crowd-kit's model and how many steps it took."""
    classification = pytest.importorskip("crowdkit.aggregation.classification", exc_type=ImportError)
    pd = pytest.importorskip("pandas")
    model = getattr(classification, name)(**options)
    model.fit(pd.DataFrame({"task": v.item, "worker": v.worker, "label": v.label}))
    table = model.probas_.reindex(index=range(v.n_items), columns=range(v.n_labels))
    return table.to_numpy(), model


@pytest.mark.filterwarnings("ignore")  # pandas announces changes at crowd-kit's calls
@pytest.mark.parametrize(("name", "ours"), [("DawidSkene", dawid_skene), ("OneCoinDawidSkene", one_coin)])
@pytest.mark.parametrize("steps", [1, 30])
def test_equals_crowd_kit_step_by_step(name, ours, steps):
    """Its stopping rule is switched off (``tol``): it counts the prior once per vote, and may stop after two steps."""
    _, _, v = simulated(n=200, workers=12)
    theirs, _ = reference(name, v, n_iter=steps, tol=-1e9)
    assert ours(v, iterations=steps, tolerance=0.0).posterior == pytest.approx(theirs, abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_glad_equals_crowd_kit_at_the_fixed_point():
    """Both maximise the same posterior of abilities and ease, by different means."""
    _, _, v = simulated(n=20, workers=6, per_item=4)
    theirs, model = reference("GLAD", v, n_iter=8, tol=-1e9, m_step_max_iter=15, m_step_tol=1e-5)
    mine = glad(v, iterations=300, tolerance=1e-12, inner=5)
    assert mine.posterior == pytest.approx(theirs, abs=1e-3)
    assert mine.ease is not None
    assert np.log(mine.ease) == pytest.approx(model.betas_.sort_index().to_numpy(), abs=5e-3)


@pytest.mark.filterwarnings("ignore")
def test_mace_decides_as_crowd_kit():
    _, _, v = simulated(n=300, workers=12)
    theirs, _ = reference("MACE", v, n_restarts=1, n_iter=50)
    assert (decide(mace(v).posterior) == decide(theirs)).mean() > 0.98


@pytest.mark.filterwarnings("ignore")
def test_equals_crowd_kit_on_a_real_crowd(shared):
    with gzip.open(shared / "crowds" / "copyright.labels.jsonl.gz", "rt") as lines:
        v = ballot([tuple(json.loads(line)) for line in lines]).votes.without_repeats()
    theirs, model = reference("DawidSkene", v)
    steps = len(model.loss_history_)
    mine = dawid_skene(v)
    assert len(mine.history) == steps
    assert mine.posterior == pytest.approx(theirs, abs=1e-6)
    longer, _ = reference("DawidSkene", v, n_iter=25, tol=-1e9)
    assert dawid_skene(v, stop="likelihood", iterations=25, tolerance=0.0).posterior == pytest.approx(longer, abs=1e-6)
    with pytest.raises(ConfigError, match="'early' or 'likelihood'"):
        dawid_skene(v, stop="late")
