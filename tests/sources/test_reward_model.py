"""A reward model scores the state after the last token, learns a toy preference, judges, marks, and keeps its state."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policies import small
from sources.rewarding import TRAINING, ask, model, numbers, pairs, texts, utility
from triloop.errors import ConfigError, DataError, ModelError
from triloop.feedback.kinds import Span, Spans, read
from triloop.records import Prompt, Turn
from triloop.sources.reward_config import RewardConfig, RewardTraining
from triloop.sources.reward_examples import RewardPair, RewardRating
from triloop.sources.reward_features import HashedNgrams, NamedFeatures
from triloop.sources.reward_model import RewardModel


def randomised(m: RewardModel, std: float = 0.3) -> RewardModel:
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        m.network.head.weight.normal_(0.0, std, generator=g)
        m.network.head.bias.normal_(0.0, std, generator=g)
    return m


# ---------------------------------------------------------------------- scores


def test_the_score_is_the_head_at_the_end_token():
    m = randomised(model())
    tokenizer = small.tokenizer()
    ids = [*tokenizer.encode("a="), *tokenizer.encode("abc"), tokenizer.eos_ids[0]]
    from triloop.nn.decoder import packing

    with torch.no_grad():
        states = m.network.decoder.packed(torch.tensor(ids), packing([len(ids)]))
        wanted = float(m.network.head(states[-1]))
    got = m.score(ask(n=2), ["abc", "b"])
    assert got[0] == pytest.approx(wanted, abs=1e-5)
    assert m.score(ask(), ["b"])[0] == pytest.approx(got[1], abs=1e-5)  # a batch changes nothing


def test_pooled_adds_the_mean_of_what_the_tokens_and_the_end_say():
    m = randomised(model(RewardConfig(pooled=4.0, token_level=True)))
    tokenizer = small.tokenizer()
    head, text = tokenizer.encode("a="), tokenizer.encode("abc")
    ids = [*head, *text, tokenizer.eos_ids[0]]
    from triloop.nn.decoder import packing

    with torch.no_grad():
        told = m.network.head(m.network.decoder.packed(torch.tensor(ids), packing([len(ids)])))
    assert told.shape[1] == 3  # the score at the end, as tokens have it, and the output for passages
    wanted = float(told[-1, 0] + 4.0 * told[len(head) :, 1].mean())
    assert m.score(ask(), ["abc"])[0] == pytest.approx(wanted, abs=1e-5)
    assert m.score(ask(n=2), ["abc", "b" * 40])[0] == pytest.approx(wanted, abs=1e-5)  # padding adds nothing
    assert m.token_scores(ask(), ["abc"])[0] == pytest.approx(told[len(head) :, 2].numpy(), abs=1e-5)


def test_an_untrained_model_says_nothing():
    m = model()
    assert m.score(ask(n=3), ["a", "bb", ""]).tolist() == [0.0, 0.0, 0.0]
    assert numbers(m.judge(ask(n=2), ["a", "b"])).tolist() == [0.0, 0.0]
    (f,) = m.compare(ask(), ["a"], ["b"])
    assert (f.value, f.kind, f.confidence) == (0.0, "pair", 0.5)
    assert dict(f.breakdown) == pytest.approx({"first": 0.5, "tie": 0.0, "second": 0.5})


ODD = ["", "\ud800", "\x00\n\t", "é" * 50, "a" * 5000, "<eos><pad>", "😀 \u202e"]


@pytest.mark.parametrize(
    "config",
    [
        RewardConfig(),
        RewardConfig(token_level=True),
        RewardConfig(pooled=1.0),
        RewardConfig(template="{request}{response}"),
    ],
)
def test_odd_texts_are_scored(config):
    m = randomised(model(config))
    prompts = [Prompt(id="p", text=t) for t in ODD]
    for given in (ODD, list(reversed(ODD))):
        assert np.isfinite(m.score(prompts, given)).all()
        assert not any(f.failed for f in m.judge(prompts, given))
    turns = Prompt(id="t", text="", turns=(Turn(role="user", text="a"), Turn(role="user", text="b")))
    assert np.isfinite(m.score([turns], ["c"])).all()
    assert m.score([], []).tolist() == [] and m.judge([], []) == []


def test_a_long_text_keeps_its_end():
    m = randomised(model())
    ends = m.score(ask(n=3), ["b" * 200 + "a" * 61 + "cd", "d" * 90 + "a" * 61 + "cd", "a" * 200 + "dc"])
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)  # 64 positions: the end token and 63 before it
    assert abs(ends[0] - ends[2]) > 1e-3


def test_what_cannot_be_scored_is_a_failure_and_its_neighbours_are_not():
    def facts(prompt, text):
        return {"x": 1.0 / len(text)}

    m = randomised(model(features=NamedFeatures(facts, ("x",))))
    assert np.isnan(m.score(ask(n=3), ["a", "", "b"])).tolist() == [False, True, False]
    a, b, c = m.judge(ask(n=3), ["a", "", "b"])
    assert not a.failed and not c.failed
    assert b.value is None and "ZeroDivisionError" in b.failure
    good, bad = m.compare(ask(n=2), ["a", "a"], ["b", ""])
    assert not good.failed and bad.failed and bad.value is None
    with torch.no_grad():
        m.network.head.bias.fill_(math.nan)
    (f,) = m.judge(ask(), ["a"])
    assert f.value is None and "nan" in f.failure


def test_one_text_that_breaks_the_forward_pass_fails_alone(monkeypatch):
    m = randomised(model())
    before = m.score(ask(n=2), ["a", "c"])
    inner = type(m.encoder).rows

    def rows(self, prompts, given):
        if "b" in given:
            raise RuntimeError("no b here")
        return inner(self, prompts, given)

    monkeypatch.setattr(type(m.encoder), "rows", rows)
    a, b, c = m.judge(ask(n=3), ["a", "b", "c"])
    assert b.failure == "RuntimeError: no b here"
    assert (a.breakdown["score"], c.breakdown["score"]) == pytest.approx(tuple(before), abs=1e-6)


# ---------------------------------------------------------------------- judging


def test_judge_squashes_around_the_origin():
    m = randomised(model())
    s = m.score(ask(n=4), ["a", "b", "ab", "dd"])
    assert m.calibrate(ask(n=4), ["a", "b", "ab", "dd"]) == pytest.approx(s.mean())
    wanted = 2 / (1 + np.exp(-(s - s.mean()))) - 1
    out = m.judge(ask(n=4), ["a", "b", "ab", "dd"])
    assert numbers(out) == pytest.approx(wanted, abs=1e-6)
    assert {f.kind for f in out} == {"scalar"} and {f.source for f in out} == {"reward"}
    with pytest.raises(DataError, match="none of 0"):
        m.calibrate([], [])


@pytest.mark.parametrize(("ties", "nu"), [("bradley_terry", None), ("davidson", 0.5), ("rao_kupper", 2.0)])
def test_compare_by_hand(ties, nu):
    m = randomised(model(RewardConfig(ties=ties, tie_nu=nu)), std=2.0)
    d = float(np.subtract(*m.score(ask(n=2), ["a", "bd"])))
    x, y = math.exp(d / 2), math.exp(-d / 2)
    if ties == "davidson":
        total = x + y + 2 * nu
        wanted = {"first": x / total, "tie": 2 * nu / total, "second": y / total}
    else:
        t = nu or 1.0
        first, second = 1 / (1 + t * math.exp(-d)), 1 / (1 + t * math.exp(d))
        wanted = {"first": first, "tie": 1 - first - second, "second": second}
    (f,) = m.compare(ask(), ["a"], ["bd"])
    assert dict(f.breakdown) == pytest.approx(wanted, abs=1e-6)
    best = max(wanted, key=wanted.get)
    assert f.confidence == pytest.approx(wanted[best], abs=1e-6)
    sign = {"first": 1, "tie": 0, "second": -1}[best]
    assert f.value == pytest.approx(sign * abs(wanted["first"] - wanted["second"]), abs=1e-6)
    (back,) = m.compare(ask(), ["bd"], ["a"])
    assert back.value == pytest.approx(-f.value, abs=1e-6)


# ---------------------------------------------------------------------- learning


def test_it_learns_a_preference_that_depends_on_the_prompt():
    """More of the letter that the prompt names: no count of letters alone gets beyond chance on both prompts."""
    training = replace(TRAINING, epochs=10)
    m, test = model(training=training), pairs(200, seed=9, letters="ab")
    done = m.learn(pairs(400, letters="ab"))
    assert done.examples == 400 and done.steps == 250 and done.losses[-1] < done.losses[0]
    audit = m.audit(test)
    assert audit.accuracy.value > 0.9 and audit.pairs == 200 and audit.log_loss < 0.4
    assert audit.accuracy.low < audit.accuracy.value < audit.accuracy.high
    said = [f.value for f in m.compare([e.prompt for e in test], [e.first for e in test], [e.second for e in test])]
    assert np.mean([(v > 0) == (e.p > 0.5) for v, e in zip(said, test, strict=True)]) == audit.accuracy.value
    values = numbers(m.judge(ask(n=60), texts(60, 7)))
    assert np.corrcoef(values, [utility(ask()[0], t) for t in texts(60, 7)])[0, 1] > 0.7
    seen = pairs(400, letters="ab")
    assert abs(m.score([e.prompt for e in seen], [e.first for e in seen]).mean() - m.origin) < 0.5


def test_equal_seeds_give_equal_weights_and_another_seed_another():
    def weights(seed):
        m = model(training=replace(TRAINING, seed=seed, epochs=1))
        m.learn(pairs(64))
        return m.score(ask(n=3), ["a", "b", "ab"])

    assert np.array_equal(weights(0), weights(0))
    assert not np.array_equal(weights(0), weights(1))


def test_held_out_prompts_stop_training_and_the_best_pass_is_kept():
    """Labels that are coin flips: nothing can be learned, and the kept weights are those that say the least."""
    flips = [replace(e, p=float(i % 2)) for i, e in enumerate(pairs(240))]
    m = model(training=replace(TRAINING, epochs=20, held_out=0.25, patience=2))
    done = m.learn(flips)
    assert done.held_out == 60 and done.examples == 180
    assert len(done.held_losses) == len(done.losses) + 1 < 21
    assert done.best_epoch == int(np.argmin(done.held_losses)) == len(done.losses) - 2
    assert done.held_losses[0] == pytest.approx(math.log(2), abs=1e-6)  # scores of 0


def test_learning_again_goes_on():
    m = model(training=replace(TRAINING, epochs=1))
    m.learn(pairs(64))
    first = m.score(ask(), ["aab"])
    m.learn(pairs(64, seed=3), training=replace(TRAINING, epochs=1, steps=2))
    assert m.trainings == 2 and m.learner.version == 4 + 2
    assert m.score(ask(), ["aab"]) != first
    with pytest.raises(DataError, match="got none"):
        m.learn([])


def test_a_frozen_trunk_does_not_move():
    m = model(RewardConfig(train_trunk=False))
    before = {k: v.clone() for k, v in m.network.decoder.state_dict().items()}
    m.learn(pairs(64))
    assert all(torch.equal(v, before[k]) for k, v in m.network.decoder.state_dict().items())
    assert m.network.head.weight.abs().sum() > 0


def test_the_prior_on_features_learns_what_they_say():
    """With a trunk that is not trained, counts of letters as features are what makes the difference."""
    counts = NamedFeatures(lambda p, t: {c: t.count(c) for c in "abcd"}, tuple("abcd"))
    config = RewardConfig(train_trunk=False, prior_gain=10.0)
    known, blind = model(config, features=counts), model(config)
    for m in (known, blind):
        m.learn(pairs(96), training=replace(TRAINING, epochs=12))
    test = pairs(200, seed=9)
    assert known.audit(test).accuracy.value > 0.97 > 0.9 > blind.audit(test).accuracy.value
    w = known.network.prior[:, 0].tolist()
    assert w[0] == max(w)


def test_features_that_fail_leave_the_example_out():
    features = NamedFeatures(lambda p, t: {"x": 1 / t.count("a")}, ("x",))
    m = model(features=features)
    done = m.learn([RewardPair(prompt=ask()[0], first="aa", second=s) for s in ("a", "b", "ab")])
    assert done.examples == 2 and len(done.failures) == 1


# ---------------------------------------------------------------------- several outputs, tokens


def test_attributes_have_outputs_of_their_own():
    """``a`` wants the letter a in a rating, ``b`` the letter b in pairs; the score is their weighted sum or a direction."""
    config = RewardConfig(attributes=("a", "b"), weights={"a": 1.0, "b": -1.0})
    m = model(config, training=replace(TRAINING, epochs=8))
    made = texts(600)
    given = [RewardRating(prompt=ask()[0], text=t, attributes={"a": t.count("a") / 2}) for t in made[:300]]
    leads = [(x, y, x.count("b") - y.count("b")) for x, y in zip(made[300::2], made[301::2], strict=True)]
    given += [
        RewardPair(prompt=ask()[0], first=x, second=y, p=0.5, weight=1.0, attributes={"b": (np.sign(d) + 1) / 2})
        for x, y, d in leads
    ]
    m.learn(given)
    test = texts(200, seed=4)
    told, failures = m.outputs(ask() * 200, test)
    assert m.config.names == ("score", "a", "b") and not failures
    for k, letter in ((1, "a"), (2, "b")):
        assert np.corrcoef(told[:, k], [t.count(letter) for t in test])[0, 1] > 0.8
    assert np.abs(told[:, 1] - [t.count("a") / 2 for t in test]).mean() < 0.25  # a rating fixes the number itself
    prompts = ask() * 200
    assert m.score(prompts, test) == pytest.approx(told[:, 1] - told[:, 2])
    assert m.score(prompts, test, direction={"b": 2.0}) == pytest.approx(2 * told[:, 2])
    assert set(m.judge(prompts[:1], test[:1])[0].breakdown) == {"score", "a", "b"}
    with pytest.raises(ConfigError, match="polite"):
        m.score(prompts, test, direction={"polite": 1.0})


def test_ratings_make_the_score_a_log_odds():
    """sigmoid(score) -> (value + 1) / 2: the value that judging gives before the origin moves."""
    m = model(training=replace(TRAINING, epochs=12))
    made = texts(300)
    m.learn([RewardRating(prompt=ask()[0], text=t, value=0.8 if "a" in t else -0.4) for t in made])
    s = np.tanh(m.score(ask() * 300, made) / 2)
    assert s[["a" in t for t in made]].mean() == pytest.approx(0.8, abs=0.12)
    assert s[["a" not in t for t in made]].mean() == pytest.approx(-0.4, abs=0.12)


def test_tokens_learn_from_marked_passages():
    m = model(RewardConfig(token_level=True), training=replace(TRAINING, epochs=12))
    made = [t for t in texts(300) if t]

    def spans(text):
        signs = {"a": 1, "d": -1}
        return Spans(tuple(Span(i, i + 1, signs[c]) for i, c in enumerate(text) if c in signs))

    m.learn([RewardRating(prompt=ask()[0], text=t, spans=spans(t)) for t in made])
    (found,) = m.token_scores(ask(), ["badc"])
    assert len(found) == 5  # four letters and the end
    assert found[:4] == pytest.approx([0, 1, -1, 0], abs=0.35)
    (f,) = m.mark(ask(), ["baaddc"])
    assert f.kind == "spans"
    assert read(f) == Spans((Span(1, 3, 1), Span(3, 5, -1)))
    (long,) = m.mark(ask(), ["b" * 300 + "a"])
    assert long.content["spans"][-1][:3] == [300, 301, 1]
    assert read(m.mark(ask(), [""])[0]) == Spans(())
    with pytest.raises(ConfigError, match="token_level"):
        model().token_scores(ask(), ["a"])


def test_what_single_letters_decide_is_learned_from_fewer_pairs_where_every_token_is_asked():
    end, all_of_them = (model(RewardConfig(pooled=p), training=replace(TRAINING, epochs=1)) for p in (0.0, 4.0))
    for m in (end, all_of_them):
        m.learn(pairs(96))
    assert all_of_them.audit(pairs(200, seed=9)).accuracy.low > end.audit(pairs(200, seed=9)).accuracy.high


# ---------------------------------------------------------------------- where it starts


def test_a_template_and_answers_start_from_what_the_policy_says():
    policy = small.native()
    m = RewardModel.of(policy, RewardConfig(template="{response}?{request}".replace("?", "+"), answers=("a", "b")))
    tokenizer = policy.tokenizer
    prompt = tokenizer.encode("cd+1=")
    a, b = (float(policy.logprobs([(prompt, tokenizer.encode(w))])[0][0]) for w in "ab")
    assert m.score([Prompt(id="p", text="1=")], ["cd"])[0] == pytest.approx(a - b, abs=1e-5)
    with pytest.raises(ConfigError, match="one token"):
        RewardModel.of(policy, RewardConfig(answers=("a", "ab")))


def test_it_is_a_copy_of_the_policy_and_leaves_it_alone():
    policy = small.native()
    policy.add_value_head()
    before = policy.weights_sha256()
    m = RewardModel.of(policy, training=TRAINING)
    m.learn(pairs(64))
    assert policy.weights_sha256() == before
    lora = RewardModel.of(small.native_lora())
    assert all(p.requires_grad for p in lora.network.decoder.parameters())


@pytest.mark.parametrize("fields", [
    {"ties": "coin"}, {"weights": {"a": 1.0}}, {"attributes": ("a", "a")}, {"template": "{other}{response}"},
    {"template": "{request}"}, {"template": "{response}", "token_level": True}, {"ties": "rao_kupper", "tie_nu": 0.9},
    {"prior_l2": -1.0}, {"centring": math.inf}, {"pooled": -1.0}, {"template": "{response}", "pooled": 1.0},
])  # fmt: skip
def test_impossible_configurations_are_refused(fields):
    with pytest.raises(ConfigError):
        RewardConfig(**fields)


@pytest.mark.parametrize("fields", [{"epochs": 0}, {"batch": 0}, {"held_out": 1.0}, {"patience": 0}, {"steps": -1}])
def test_impossible_training_is_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        RewardTraining(**fields)


# ---------------------------------------------------------------------- state


def test_frozen_stays_and_state_goes_on_bit_for_bit(tmp_path: Path):
    config = RewardConfig(ties="davidson", attributes=("a",))
    make = lambda: model(config, features=HashedNgrams(bits=8), training=replace(TRAINING, epochs=1))  # noqa: E731
    m = make()
    m.learn([replace(e, p=0.5, tie=True) if i % 4 == 0 else e for i, e in enumerate(pairs(64))])
    assert m.tie_nu == pytest.approx(0.25 / 0.75)
    twin = m.frozen()
    m.save_state(tmp_path / "state")
    before = m.score(ask(n=3), ["a", "b", "dd"])
    m.learn(pairs(64, seed=2))
    after = m.score(ask(n=3), ["a", "b", "dd"])
    assert np.array_equal(twin.score(ask(n=3), ["a", "b", "dd"]), before) and not np.array_equal(before, after)
    assert not any(p.requires_grad for p in twin.network.parameters())

    back = make()
    back.load_state(tmp_path / "state")
    assert (back.origin, back.tie_nu, back.trainings, back.learner.version) == (
        twin.origin,
        twin.tie_nu,
        1,
        twin.learner.version,
    )
    assert np.array_equal(back.score(ask(n=3), ["a", "b", "dd"]), before)
    back.learn(pairs(64, seed=2))
    assert np.array_equal(back.score(ask(n=3), ["a", "b", "dd"]), after)
    with pytest.raises(ModelError, match="another form"):
        model(features=HashedNgrams(bits=8)).load_state(tmp_path / "state")
    with pytest.raises(ModelError, match="features"):
        model(config).load_state(tmp_path / "state")


def test_a_trained_public_model_is_a_trunk(shared: Path):
    folder = shared / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("no stories260K")
    m = RewardModel.load(folder, training=replace(TRAINING, epochs=2))
    prompt = Prompt(id="s", text="Once upon a time")
    happy, sad = " there was a happy dog. He smiled.", " there was a sad dog. He cried."
    made = [RewardPair(prompt=replace(prompt, id=str(i)), first=happy, second=sad, p=0.9) for i in range(32)]
    m.learn(made)
    assert m.score([prompt] * 2, [happy, sad]) @ [1, -1] > 0.5
