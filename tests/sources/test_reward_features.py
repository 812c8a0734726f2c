"""Feature extractors: values by hand, statistics of fitted texts only, failures of one row, state."""

from __future__ import annotations

import math

import numpy as np
import pytest

from triloop.errors import ConfigError, ModelError
from triloop.records import Prompt, Turn
from triloop.sources.reward_facts import FACTS, plain_facts
from triloop.sources.reward_features import HashedNgrams, Joined, NamedFeatures, join_features

P = Prompt(id="p", text="why is it red ?")


def dense(features, texts, prompt=P):
    rows = features.rows([prompt] * len(texts), texts)
    out = np.zeros((len(texts), features.size))
    for i in range(len(texts)):
        columns, values = rows.row(i)
        np.add.at(out[i], columns, values)
    return out, rows


def test_ngrams_count_words_and_pairs_and_have_length_one():
    grams = HashedNgrams(bits=12)
    x, rows = dense(grams, ["red fox", "red fox red", "fox red", ""])
    assert np.linalg.norm(x, axis=1) == pytest.approx([1, 1, 1, 0])
    assert [len(rows.row(i)[0]) for i in range(4)] == [3, 4, 3, 0]  # red, fox, red fox (, fox red)
    words_only, _ = dense(HashedNgrams(bits=12, longest=1), ["red fox red"])
    assert sorted(np.abs(words_only[words_only != 0])) == pytest.approx([1 / math.sqrt(5), 2 / math.sqrt(5)])
    assert not np.allclose(x[0], x[2])  # order matters to pairs
    assert np.array_equal(dense(grams, ["Red, FOX!"])[0][0], x[0])  # neither case nor punctuation does


def test_rarity_is_that_of_the_fitted_texts():
    """ln((1 + N) / (1 + df)) + 1: of a word in both of two texts 1, in one of two ln(3 / 2) + 1."""
    grams = HashedNgrams(bits=12, longest=1).fitted([P, P], ["red fox", "red owl"])
    x, _ = dense(grams, ["red fox"])
    red, fox = sorted(np.abs(x[x != 0]))
    assert fox / red == pytest.approx(math.log(1.5) + 1)
    assert grams.fitted([P], ["other"]) is grams


def test_both_reads_the_prompt_too():
    turns = Prompt(id="t", text="", turns=(Turn(role="user", text="why red"),))
    x, _ = dense(HashedNgrams(bits=10, of="both"), ["red"], turns)
    y, _ = dense(HashedNgrams(bits=10), ["why red red"])
    assert np.array_equal(x, y)


def test_named_numbers_are_standardised():
    features = NamedFeatures(lambda p, t: {"n": len(t), "same": 3.0}, ("n", "same"), scale=2.0)
    fitted = features.fitted([P] * 2, ["a", "abc"])  # mean 2, deviation 1
    x, _ = dense(fitted, ["a", "abcde"])
    assert x.tolist() == [[-2.0, 0.0], [6.0, 0.0]]


def test_a_callable_that_fails_fails_one_row():
    def odd(prompt, text):
        return {"x": math.nan if text == "nan" else 1 / len(text)}

    features = NamedFeatures(odd, ("x",)).fitted([P] * 3, ["a", "", "abcd"])
    assert features.mean == pytest.approx([0.625])
    _, rows = dense(features, ["a", "", "nan"])
    assert set(rows.failures) == {1, 2}
    assert "ZeroDivisionError" in rows.failures[1] and "x is nan" in rows.failures[2]
    with pytest.raises(ConfigError, match="ZeroDivision"):
        NamedFeatures(odd, ("x",)).fitted([P], [""])


def test_joined_stand_side_by_side_and_come_back():
    named = NamedFeatures(plain_facts, FACTS)
    both = join_features(HashedNgrams(bits=6), named).fitted([P] * 2, ["red ?", "a blue fox , sorry"])
    assert both.size == 64 + len(FACTS)
    fresh = join_features(HashedNgrams(bits=6), named).restored(both.state())
    a, b = (dense(f, ["sorry , red"])[0] for f in (both, fresh))
    assert np.array_equal(a, b)
    assert np.array_equal(a[0, :64], dense(both.parts[0], ["sorry , red"])[0][0])
    assert join_features(named) is named
    with pytest.raises(ModelError, match="built? it as it was saved|build it"):
        Joined((HashedNgrams(bits=7), named)).restored(both.state())


def test_plain_facts_by_hand():
    got = plain_facts(
        Prompt(id="h", text="\n\nHuman: why red ?\n\nHuman: is it blue"), " I'm sorry , you can't ! is it ? "
    )
    n = 6
    assert got["length"] == pytest.approx(math.log(7))
    assert (got["asks"], got["ends_asking"], got["exclaims"]) == (1, 1, 1)
    assert got["refuses"] == pytest.approx(2 / math.sqrt(n))
    assert got["echoes"] == pytest.approx(2 / 6) and got["me"] == got["you"] == pytest.approx(1 / 6)
    assert tuple(got) == FACTS
    assert all(map(math.isfinite, plain_facts(Prompt(id="e", text=""), "").values()))
