"""An ensemble's bound and doubt by hand, and that disagreement is large where members were taught differently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sources.rewarding import TRAINING, ask, model, numbers, pairs
from triloop.errors import ConfigError
from triloop.sources.reward_ensemble import RewardEnsemble
from triloop.sources.reward_features import NamedFeatures


def constant(score, origin=0.0, **options):
    m = model(**options)
    with torch.no_grad():
        m.network.head.bias.fill_(score)
    m.origin = origin
    return m


def test_the_bound_by_hand():
    e = RewardEnsemble([constant(1.0), constant(4.0, origin=1.0), constant(2.0)], k=0.5)
    scores = np.array([1.0, 3.0, 2.0])
    bound = scores.mean() - 0.5 * scores.std()
    assert e.score(ask(n=2), ["a", "b"]) == pytest.approx([bound, bound], abs=1e-6)
    assert e.disagreement(ask(), ["a"]) == pytest.approx([scores.std()])
    (f,) = e.judge(ask(), ["a"])
    values = 2 / (1 + np.exp(-scores)) - 1
    assert f.value == pytest.approx(2 / (1 + np.exp(-bound)) - 1)
    assert f.confidence == pytest.approx(1 - values.std())
    assert dict(f.breakdown) == pytest.approx({"score": bound, "mean": 2.0, "spread": scores.std()})


def test_one_member_is_itself_and_its_failure_is_the_ensembles():
    def facts(prompt, text):
        return {"x": 1 / len(text)}

    m = constant(1.0, features=NamedFeatures(facts, ("x",)))
    e = RewardEnsemble([m, constant(2.0)], k=1.0)
    good, bad = e.judge(ask(n=2), ["a", ""])
    assert not good.failed and bad.failed and "ZeroDivision" in bad.failure
    assert [f.failed for f in e.compare(ask(n=2), ["a", "a"], ["b", ""])] == [False, True]
    assert np.isnan(e.score(ask(), [""])).all()
    alone = RewardEnsemble([m])
    assert numbers(alone.judge(ask(), ["a"])) == pytest.approx(numbers(m.judge(ask(), ["a"])))
    for wrong in ([], [m]):
        with pytest.raises(ConfigError, match="ensemble"):
            RewardEnsemble(wrong, k=-1.0)


def test_it_learns_and_disagrees_where_it_was_taught_differently(tmp_path: Path):
    make = lambda seed: model(training=replace(TRAINING, epochs=3))  # noqa: E731
    e = RewardEnsemble.build(make, 2, k=1.0, resample=True)
    done = e.learn(pairs(200))
    assert len(done) == 2 and done[0].losses != done[1].losses
    test = pairs(100, seed=9)
    assert e.audit(test).accuracy.value > 0.8
    prompts, texts = [x.prompt for x in test], [x.first for x in test]
    said = e.compare(prompts, texts, [x.second for x in test])
    assert np.mean([(f.value > 0) == (x.p > 0.5) for f, x in zip(said, test, strict=True)]) > 0.8
    assert all(0 <= f.confidence <= max(f.breakdown.values()) for f in said)
    assert (e.disagreement(prompts, texts) > 0).all()
    e.save_state(tmp_path)
    back = RewardEnsemble.build(make, 2, k=1.0)
    back.load_state(tmp_path)
    twin = e.frozen()
    assert np.array_equal(back.score(prompts, texts), e.score(prompts, texts))
    e.learn(pairs(32, seed=4))
    assert np.array_equal(twin.score(prompts, texts), back.score(prompts, texts))
    assert not np.array_equal(twin.score(prompts, texts), e.score(prompts, texts))
