"""Simulated annotators: the same question gets the same answer, and the answers follow the laws that are promised."""

import itertools
import math

import numpy as np
import pytest

from triloop import rng
from triloop.errors import ConfigError
from triloop.feedback.simulate import (
    FIRST,
    PERSONAS,
    Annotator,
    Item,
    calibrated,
    cast_votes,
    even_confusion,
    population,
    valued,
)
from triloop.feedback.ties import comparisons, fit


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def item(id, polite, short=1.0, **features):
    return Item(id=id, attributes={"polite": polite, "short": short}, features=features)


TASTE = {"polite": 3.0, "short": 1.0}


def near(share, p, n):
    """Within four standard errors."""
    return abs(share - p) < 4 * math.sqrt(p * (1 - p) / n) + 1e-9


def test_utility_by_hand():
    a = Annotator(name="a", weights=TASTE)
    assert a.utility(item("x", 0.5, 1.0)) == pytest.approx(2 * (3 * 0.5 + 1) / 4 - 1)
    loves_rude = Annotator(name="r", weights={"polite": -1.0})
    assert loves_rude.utility(item("x", 0.25)) == pytest.approx(0.5)
    assert Annotator(name="v").utility(valued("x", -0.4)) == pytest.approx(-0.4)


def test_a_perfect_annotator_says_the_truth():
    a = Annotator(name="a")
    good, bad, same = valued("g", 0.6), valued("b", -0.2), valued("s", 0.6)
    assert (a.scalar(good), a.ternary(good), a.ternary(bad)) == (pytest.approx(0.6), 1, -1)
    assert a.pair(good, bad) == pytest.approx(0.4)
    assert a.pair(bad, good) == pytest.approx(-0.4)
    assert a.pair(good, same) == 0.0
    assert a.ranking([bad, good, same]) == ((1, 2), (0,))
    assert Annotator(name="r", weights=TASTE).rubric(item("x", 0.9, 0.1)) == {"polite": 1, "short": -1}


def test_the_same_question_gets_the_same_answer_in_any_order():
    a = Annotator(name="a", weights=TASTE, temperature=0.5, flip=0.1, skill=0.8, tie=0.1, delay=5.0, seed=3)
    items = [item(str(i), (i * 37 % 100) / 100) for i in range(60)]
    forward = [(a.scalar(x), a.ternary(x), a.rubric(x)) for x in items]
    backward = [(a.scalar(x), a.ternary(x), a.rubric(x)) for x in reversed(items)][::-1]
    assert forward == backward
    looked = Annotator(name="a", weights=TASTE, temperature=0.5, flip=0.1, tie=0.1, seed=3)
    for x, y in itertools.pairwise(items):
        assert looked.pair(x, y) == -looked.pair(y, x)
        assert a.pair(x, y) == a.pair(x, y)
    shuffled = [items[k] for k in (4, 1, 3, 0, 2)]
    names = [[items[k].id for g in looked.ranking(items[:5]) for k in g]]
    names += [[shuffled[k].id for g in looked.ranking(shuffled) for k in g]]
    assert names[0] == names[1] or any(len(g) > 1 for g in looked.ranking(items[:5]))
    assert a.wait("pair", "x", "y") == a.wait("pair", "x", "y") > 0


def test_other_people_and_other_seeds_answer_otherwise():
    items = [valued(str(i), 0.0) for i in range(200)]
    said = [
        [Annotator(name=n, temperature=1.0, seed=s).ternary(x) for x in items]
        for n, s in (("a", 0), ("b", 0), ("a", 1))
    ]
    for i in range(3):
        for j in range(i):
            agree = np.mean([x == y for x, y in zip(said[i], said[j], strict=True)])
            assert near(agree, 0.5, 200)


def test_comparisons_follow_the_logistic_law():
    a = Annotator(name="a", temperature=0.5)
    n = 2000
    won = np.mean([a.pair(valued(f"x{i}", 0.3), valued(f"y{i}", 0.0)) > 0 for i in range(n)])
    assert near(won, sigmoid(0.3 / 0.5), n)


def test_the_tie_zone_is_rao_kupper():
    """Simulated people with a dead zone are found again by the model that says so: theta = exp(tie / T)."""
    a = Annotator(name="a", temperature=0.4, tie=0.2)
    truth = np.array([-0.5, -0.1, 0.2, 0.4])
    g = rng.generator(0, "players")
    rows = []
    for i in range(3000):
        p, q = g.permutation(4)[:2].tolist()
        said = a.pair(valued(f"{p} {i}", truth[p]), valued(f"{q} {i}", truth[q]))
        rows.append((p, q, int(np.sign(said))))
    found = fit(comparisons(rows, 4), "rao_kupper")
    assert abs(found.tie - math.exp(0.5)) < 3.5 * found.tie_error
    assert (np.abs(found.scores - truth / 0.4) < 3.5 * found.errors).all()


def test_rankings_follow_plackett_luce():
    a = Annotator(name="a", temperature=0.5)
    u, n = (0.4, 0.0, -0.2), 1200
    first = [a.ranking([valued(f"{k} {i}", x) for k, x in enumerate(u)])[0][0] for i in range(n)]
    odds = [math.exp(x / 0.5) for x in u]
    for k in range(3):
        assert near(np.mean(np.array(first) == k), odds[k] / sum(odds), n)


@pytest.mark.parametrize(("feature", "amount"), [("length", 0.5), ("distractor", 0.2)])
def test_bias_moves_what_it_should_and_nothing_else(feature, amount):
    a = Annotator(name="a", weights=TASTE, bias={feature: amount})
    plain, dressed = item("p", 0.5), item("d", 0.5, **{feature: 1.0})
    assert a.scalar(dressed) - a.scalar(plain) == pytest.approx(amount)
    assert a.pair(dressed, plain) == pytest.approx(amount / 2)
    assert a.utility(dressed) == a.utility(plain)
    assert a.rubric(dressed) == a.rubric(plain)


def test_position_bias_turns_with_the_order():
    a = Annotator(name="a", bias={FIRST: 0.3})
    x, y = valued("x", 0.1), valued("y", 0.0)
    assert (a.pair(x, y), a.pair(y, x)) == (pytest.approx(0.2), pytest.approx(0.1))  # either is better when first
    assert a.ranking([y, x]) == ((0,), (1,))


def test_zones_and_bar():
    a = Annotator(name="a", abstain=0.2, tie=0.1)
    assert [a.ternary(valued("x", u)) for u in (-0.3, -0.1, 0.1, 0.3)] == [-1, 0, 0, 1]
    assert a.pair(valued("x", 0.05), valued("y", 0.0)) == 0.0
    assert a.ranking([valued("x", 0.0), valued("y", 0.08), valued("z", 0.5)]) == ((2,), (0, 1))
    harsh = Annotator(name="h", bar=0.5, abstain=0.2)
    assert [harsh.ternary(valued("x", u)) for u in (0.2, 0.5, 0.8)] == [-1, 0, 1]


def test_flip_and_skill_are_the_chances_they_are():
    n = 1500
    items = [valued(str(i), 0.9) for i in range(n)]
    flips = np.mean([Annotator(name="f", flip=0.2).ternary(x) < 0 for x in items])
    assert near(flips, 0.2, n)
    absent = np.mean([Annotator(name="s", skill=0.4).ternary(x) < 0 for x in items])
    assert near(absent, 0.6 * 0.5, n)
    seen = np.mean([Annotator(name="s", skill=0.4).notices(x.id, "rude") for x in items])
    assert near(seen, 0.4, n)
    waits = [Annotator(name="d", delay=7.0).wait("ternary", x.id) for x in items]
    assert np.mean(waits) == pytest.approx(7.0, rel=0.11)
    assert Annotator(name="c", cost=2.0, costs={"text": 5.0}).price("text") == 5.0
    assert Annotator(name="c", cost=2.0, costs={"text": 5.0}).price("pair") == 2.0


def test_calibration_finds_an_annotator_again():
    real = Annotator(name="real", temperature=0.3, tie=0.1, bias={FIRST: 0.15})
    d = rng.generator(0, "differences").uniform(-1, 1, 3000)
    said = [real.pair(valued(f"a{i}", x / 2), valued(f"b{i}", -x / 2)) for i, x in enumerate(d.tolist())]
    found = calibrated(Annotator(name="copy"), d, np.sign(said).astype(np.int64))
    assert found.temperature == pytest.approx(0.3, rel=0.12)
    assert found.tie == pytest.approx(0.1, rel=0.2)
    assert found.bias[FIRST] == pytest.approx(0.15, rel=0.3)
    with pytest.raises(ConfigError, match="slope"):
        calibrated(Annotator(name="copy"), -d, np.sign(said).astype(np.int64))


def test_population_is_a_prefix_of_a_larger_one_and_knows_its_personas():
    few, many = population(5, weights=TASTE, seed=1), population(40, weights=TASTE, seed=1)
    assert few == many[:5]
    assert len({a.name for a in many}) == 40
    assert len({a.name.rpartition("-")[0] for a in many}) > 7
    only = population(10, weights=TASTE, seed=1, personas={"careful": 1.0})
    assert all(a.name.startswith("careful") and a.temperature == PERSONAS["careful"]["temperature"] for a in only)
    assert len({a.weights["polite"] for a in only}) == 10
    assert population(3, weights=TASTE, seed=1, spread=0.0)[0].weights == TASTE
    with pytest.raises(ConfigError, match="personas"):
        population(1, weights=TASTE, seed=0, personas={"kind": 1.0})


def test_votes_have_the_skill_that_was_asked_for():
    accuracy = np.array([0.95, 0.7, 0.4])
    truth = rng.generator(0, "truth").integers(0, 3, 4000)
    v = cast_votes(truth, even_confusion(accuracy, 3), per_item=2, seed=5)
    right = v.label == truth[v.item]
    for w, p in enumerate(accuracy):
        assert near(right[v.worker == w].mean(), p, (v.worker == w).sum())
    assert np.bincount(v.item).tolist() == [2] * 4000
    assert len(v.without_repeats().item) == 8000
    part = cast_votes(truth[:10], even_confusion(accuracy, 3), per_item=2, seed=5)
    assert part.label.tolist() == v.label[:20].tolist()


def test_refusals():
    with pytest.raises(ConfigError, match=r"flip=1\.5"):
        Annotator(name="a", flip=1.5)
    with pytest.raises(ConfigError, match="weights are all 0"):
        Annotator(name="a", weights={"x": 0.0})
    with pytest.raises(ConfigError, match="per_item=4"):
        cast_votes(np.zeros(1, int), even_confusion(np.ones(3), 2), per_item=4, seed=0)
