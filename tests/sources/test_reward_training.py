"""The loss of a reward model by hand, batches that keep pairs together, the audit, and examples from feedback."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from policies import small
from sources.rewarding import TRAINING, ask, model, pairs, swapped
from triloop.errors import DataError
from triloop.feedback.kinds import Abstention, Pair, Rubric, Scalar, Span, Spans, Ternary, write
from triloop.learn.batch import TokenOutputs, micro_batches
from triloop.learn.examples import Demonstration, Preference, Rated
from triloop.records import Feedback, Prompt
from triloop.sources.reward_audit import audit_scores
from triloop.sources.reward_config import RewardConfig
from triloop.sources.reward_examples import RewardPair, RewardRating, pair_from, rating_from, texts_of
from triloop.sources.reward_features import HashedNgrams
from triloop.sources.reward_table import RewardBatch, table_of
from triloop.sources.reward_training import evaluate, reward_loss, split_by_prompt, tie_nu
from triloop.sources.reward_trunk import learned_words, small_trunk

P = ask()[0]


def loss_of(examples, scores, config=None, *, nu=1.0, ridge_over=0, features=None, prior=None):
    """The loss of these examples where the head said ``scores`` ([rows outputs], or one number per row)."""
    m = model(config, features=features)
    if features is not None:
        m._settle(examples)
    table, wrong = table_of(examples, m.encoder, m.features, m.config)
    assert not wrong
    batch = table.batch(range(len(examples)))
    told = torch.tensor(scores, dtype=torch.float32).reshape(len(batch), -1)
    time = batch.mask.shape[1]
    heads = torch.full((len(batch), time, told.shape[1]), math.nan)
    heads[torch.arange(len(batch)), batch.mask.sum(1) - 1] = told
    if prior is not None:
        with torch.no_grad():
            m.network.prior.copy_(prior)
    outputs = TokenOutputs(logp=torch.zeros(len(batch), time), values=heads[..., 0], heads=heads)
    total, sums = reward_loss(m.network, table, nu=nu, ridge_over=ridge_over)(outputs, batch, batch.denominators)
    return float(total.detach()), sums


def bt(d):
    return math.log1p(math.exp(-d))


def test_bradley_terry_with_soft_labels_margin_and_weight():
    made = [
        RewardPair(prompt=P, first="a", second="b"),
        RewardPair(prompt=P, first="a", second="b", p=0.25, weight=3.0),
        RewardPair(prompt=P, first="a", second="b", p=0.0, margin=0.5),
    ]
    total, sums = loss_of(made, [1.0, 0.2, 0.5, 1.5, 2.0, 1.0])
    wanted = bt(0.8) + 3 * (0.25 * bt(-1.0) + 0.75 * bt(1.0)) + bt(-1.0 - 0.5)
    assert total == pytest.approx(wanted / 3, rel=1e-6)
    assert (float(sums["pairs/accuracy"]), float(sums["pairs/accuracy:n"])) == (2.0, 3.0)


def test_ties_as_outcomes_of_their_own():
    tie = RewardPair(prompt=P, first="a", second="b", p=0.5, tie=True)
    d = 0.7
    x, y = math.exp(d / 2), math.exp(-d / 2)
    got, sums = loss_of([tie], [d, 0.0], RewardConfig(ties="davidson"), nu=0.4)
    assert got == pytest.approx(-math.log(0.8 / (x + y + 0.8)), rel=1e-5)
    assert float(sums["pairs/accuracy:n"]) == 0.0
    got, _ = loss_of([tie], [d, 0.0], RewardConfig(ties="rao_kupper"), nu=3.0)
    first, second = 1 / (1 + 3 * math.exp(-d)), 1 / (1 + 3 * math.exp(d))
    assert got == pytest.approx(-math.log(1 - first - second), rel=1e-5)
    assert loss_of([tie], [d, 0.0])[0] == pytest.approx((bt(d) + bt(-d)) / 2, rel=1e-6)


@pytest.mark.parametrize("ties", ["bradley_terry", "davidson", "rao_kupper"])
@pytest.mark.parametrize("said", [{"p": 1.0, "margin": 0.3}, {"p": 0.2}, {"p": 0.5, "tie": True}])
def test_swapping_the_two_changes_nothing(ties, said):
    pair, config = RewardPair(prompt=P, first="a", second="bb", **said), RewardConfig(ties=ties, centring=0.1)
    a, _ = loss_of([pair], [0.9, -0.4], config, nu=2.0)
    b, _ = loss_of([swapped(pair)], [-0.4, 0.9], config, nu=2.0)
    assert a == pytest.approx(b, rel=1e-6)


def test_ratings_attributes_and_the_scalarisation():
    config = RewardConfig(attributes=("x", "y"), weights={"x": 2.0, "y": 1.0})
    made = [
        RewardRating(prompt=P, text="a", value=0.5, attributes={"y": 1.5}),
        RewardPair(prompt=P, first="a", second="b", attributes={"x": 0.0}),
    ]
    rows = [[9.0, 0.3, 0.5], [9.0, 1.0, 0.0], [9.0, 0.0, 1.0]]
    s = 2 * 0.3 + 0.5
    rating = 0.75 * bt(s) + 0.25 * bt(-s) + (0.5 - 1.5) ** 2 / 2
    pair = bt((2 * 1.0) - 1.0) + bt(-(1.0 - 0.0))
    assert loss_of(made, rows, config)[0] == pytest.approx((rating + pair) / 2, rel=1e-6)


def test_the_prior_adds_its_features_and_its_ridge_once():
    grams = HashedNgrams(bits=4, longest=1)
    config = RewardConfig(prior_l2=2.0, prior_gain=3.0)
    pair = RewardPair(prompt=P, first="a", second="b")
    prior = torch.arange(16.0)[:, None] / 100
    fitted = grams.fitted([P] * 2, ["a", "b"])
    rows = fitted.rows([P] * 2, ["a", "b"])
    w = [float(v[0]) * float(prior[c[0], 0]) for c, v in (rows.row(0), rows.row(1))]
    d = 0.5 + 3 * (w[0] - w[1])
    ridge = 2.0 / 2 / 10 * 9 * float(prior.square().sum())
    got, _ = loss_of([pair], [0.5, 0.0], config, features=grams, prior=prior, ridge_over=10)
    assert got == pytest.approx(bt(d) + ridge, rel=1e-5)
    got, _ = loss_of([pair] * 4, [0.5, 0.0] * 4, config, features=grams, prior=prior, ridge_over=10)
    assert got == pytest.approx(bt(d) + ridge, rel=1e-5)


def test_micro_batches_add_up_and_part_no_pair():
    m = model(RewardConfig(attributes=("x",), prior_l2=1.0), features=HashedNgrams(bits=6))
    made = [replace(e, weight=1 + i % 3, attributes={"x": 1.0}) for i, e in enumerate(pairs(12))]
    made.insert(5, RewardRating(prompt=P, text="abcd", value=0.3))
    m._settle(made)
    table, _ = table_of(made, m.encoder, m.features, m.config)
    batch = table.batch(range(13))
    assert [len(u) for u in batch.units()] == [2] * 5 + [1] + [2] * 7
    parts = list(micro_batches(batch, 30))
    assert len(parts) > 3 and all(len(u) == (1 if p.example[u.start] == 5 else 2) for p in parts for u in p.units())

    def gradients(limit):
        m.learner.micro_tokens = limit
        m.network.zero_grad()
        got = m.learner.forward_backward(batch, reward_loss(m.network, table, nu=1.0, ridge_over=12))
        return got["loss"], [p.grad.clone() for p in m.network.parameters() if p.grad is not None]

    with torch.no_grad():
        m.network.head.weight.normal_(generator=torch.Generator().manual_seed(1))
        m.network.prior.normal_(generator=torch.Generator().manual_seed(2))
    (one, whole), (many, pieces) = gradients(10_000), gradients(30)
    assert one == pytest.approx(many, rel=1e-5)
    assert max(float((a - b).abs().max()) for a, b in zip(whole, pieces, strict=True)) < 1e-4
    held = evaluate(m.learner, batch, reward_loss(m.network, table, nu=1.0))
    assert held["loss"] < one  # the ridge is not held against held-out examples
    assert [batch.rows([2, 3]).example, batch.rows([2, 3]).index] == [[1, 1], [2, 3]]
    assert RewardBatch.of(table.rows, [0], [0]).example == [-1]


def test_held_out_examples_share_no_prompt():
    made = [replace(e, prompt=Prompt(id=f"g{i // 3}", text="a=")) for i, e in enumerate(pairs(120))]
    learned, held = split_by_prompt(made, 0.25, seed=1)
    assert len(learned) + len(held) == 120 and 8 <= len(held) <= 30
    assert not {e.prompt.id for e in learned} & {e.prompt.id for e in held}
    assert split_by_prompt(made, 0.25, seed=1) == (learned, held) != split_by_prompt(made, 0.25, seed=2)
    assert split_by_prompt(made[:20], 0.25, seed=1)[1] == []  # too few to decide anything


def test_the_tie_parameter_gives_equals_the_share_of_ties():
    assert tie_nu(0.2, RewardConfig(ties="davidson")) == pytest.approx(0.25)
    assert tie_nu(0.2, RewardConfig(ties="rao_kupper")) == pytest.approx(1.5)
    assert tie_nu(0.0, RewardConfig(ties="davidson")) == pytest.approx(0.01 / 0.99)
    assert tie_nu(0.2, RewardConfig(ties="davidson", tie_nu=7.0)) == 7.0


# ---------------------------------------------------------------------- the audit


def test_audit_by_hand():
    def pair(first, second, p=1.0):
        return RewardPair(prompt=P, first=first, second=second, p=p)

    made = [pair("a b c", "a"), pair("a", "a b", p=0.0), pair("a", "b"), pair("a b", "c", p=0.2), pair("a", "b", p=0.5)]
    made += [pair("a", "b")]
    first = np.array([1.0, 0.0, -1.0, 2.0, 5.0, math.nan])
    second = np.array([0.0, 2.0, 1.0, 1.0, 0.0, 0.0])
    a = audit_scores(made, first, second)
    lead = np.array([1.0, 2.0, -2.0, -1.0])
    assert (a.pairs, a.failures) == (4, 1)
    assert (a.accuracy.value, a.accuracy.n) == (0.5, 4)
    assert a.log_loss == pytest.approx(np.log1p(np.exp(-lead)).mean())
    assert a.brier == pytest.approx(np.square(1 - 1 / (1 + np.exp(-lead))).mean())
    # winners' probabilities: .731 twice (one right), .881 twice (one right)
    assert a.ece == pytest.approx((abs(1 - 2 * 0.7310586) + abs(1 - 2 * 0.8807971)) / 4, abs=1e-6)
    # of the three pairs of unequal length the longer wins thrice with the model, twice with people
    assert (a.longer_wins_model, a.longer_wins_people) == (1.0, pytest.approx(2 / 3))
    assert a.length_bias == pytest.approx(1 / 3)
    d, w = np.array([1.0, -2.0, -2.0, 1.0]), np.array([2.0, -1.0, 0.0, 1.0])
    assert a.length_correlation == pytest.approx(d @ w / math.sqrt((d @ d) * (w @ w)))
    assert a.as_dict()["accuracy"]["n"] == 4
    turned = audit_scores([swapped(e) for e in made], second, first)
    assert turned == a
    with pytest.raises(DataError, match="none of 1"):
        audit_scores(made[4:5], first[4:5], second[4:5])


# ---------------------------------------------------------------------- examples


def test_examples_from_feedback():
    said = write(Pair(-1, 0.4), source="s", confidence=0.6)
    assert pair_from(P, "x", "y", said, margin=2.0) == RewardPair(prompt=P, first="x", second="y", p=0.2, margin=0.8)
    tie = pair_from(P, "x", "y", write(Pair(0), source="s", confidence=0.7))
    assert tie == RewardPair(prompt=P, first="x", second="y", p=0.5, tie=True, weight=0.7)
    failed = Feedback(value=None, failure="no", kind="pair")
    assert pair_from(P, "x", "y", failed) is None and rating_from(P, "x", failed) is None
    assert pair_from(P, "x", "y", write(Scalar(0.1), source="s")) is None
    assert rating_from(P, "x", write(Scalar(0.1), source="s")) == RewardRating(prompt=P, text="x", value=0.1)
    half = rating_from(P, "x", write(Ternary(-1), source="s", confidence=0.5))
    assert (half.value, half.weight) == (-1.0, 0.5)
    rubric = rating_from(P, "x", write(Rubric({"kind": 1, "short": 0}), source="s"))
    assert (rubric.value, dict(rubric.attributes)) == (0.5, {"kind": 1.0, "short": 0.0})
    spans = Spans((Span(0, 1, -1),))
    assert rating_from(P, "x", write(spans, source="s")).spans == spans
    assert rating_from(P, "x", write(Abstention(), source="s")) is None


@pytest.mark.parametrize("make", [
    lambda: RewardPair(prompt=P, first="", second="", p=1.5),
    lambda: RewardPair(prompt=P, first="", second="", p=0.4, tie=True),
    lambda: RewardPair(prompt=P, first="", second="", margin=-1.0),
    lambda: RewardPair(prompt=P, first="", second="", attributes={"x": 2.0}),
    lambda: RewardRating(prompt=P, text="", value=1.5),
    lambda: RewardRating(prompt=P, text="", attributes={"x": math.nan}),
    lambda: RewardRating(prompt=P, text="", weight=-1.0),
])  # fmt: skip
def test_impossible_examples_are_refused(make):
    with pytest.raises(DataError):
        make()


def test_examples_from_a_policys_tokens():
    t = small.tokenizer()
    prompt, a, b = t.encode("a="), [*t.encode("ab"), t.eos_ids[0]], t.encode("c")
    got = texts_of(
        [
            Preference(prompt_tokens=prompt, first=a, second=b, p=0.7),
            Rated(prompt_tokens=prompt, tokens=b, value=-0.5, weight=2.0),
            Demonstration(prompt_tokens=prompt, tokens=a),
            Rated(prompt_tokens=prompt, tokens=b, signs=[1.0]),
        ],
        t,
    )
    pair, rating = got
    assert (pair.prompt.text, pair.first, pair.second, pair.p) == ("a=", "ab", "c", 0.7)
    assert (rating.text, rating.value, rating.weight) == ("c", -0.5, 2.0)


def test_a_vocabulary_of_its_own():
    t = learned_words(["Red fox, red!", "the FOX"], 8)
    assert t.vocab_size == 8
    ids = t.encode("RED fox , owl")
    assert ids[0] == t.encode("red")[0] and ids[-1] == t.encode("<unk>")[0] and len(ids) == 4
    assert len({*ids[:3]}) == 3
    assert learned_words(["Red fox, red!", "the FOX"], 8).files == t.files
    m = type(model())(small_trunk(t, width=16, layers=1, positions=8), t, training=TRAINING)
    m.learn([RewardPair(prompt=Prompt(id=str(i), text="the"), first="red", second="fox") for i in range(32)])
    assert m.score([P] * 2, ["red", "fox"]) @ [1, -1] > 0.2
