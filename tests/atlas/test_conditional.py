"""Rows on feedback as a condition, as likelihood and as words: what of them can be worked by hand, and that each runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from triloop.atlas import lab
from triloop.atlas.conditional import AGREE, CODES, CONDITIONAL, coded, topic
from triloop.atlas.frame import Context, Row
from triloop.atlas.likelihood import ARMS, LIKELIHOOD, corpus, resting, tabular, untaught
from triloop.atlas.table import ROWS
from triloop.atlas.verbal import SCOPE, VERBAL_MORE, beside, in_scope
from triloop.envs.attributes import Attributes

MINE = (*CONDITIONAL, *LIKELIHOOD, *VERBAL_MORE)


def test_they_stand_in_the_table() -> None:
    assert {row.id for row in MINE} == {"S038", "S001", "S058", "S062", "S060", "S028", "S046", "S054", "A04"}
    assert all(ROWS[row.id] is row for row in MINE)


@pytest.mark.slow
@pytest.mark.parametrize("row", MINE, ids=lambda row: row.id)
def test_a_row_runs(row: Row, tmp_path: Path) -> None:
    measured = row.run(Context(folder=tmp_path, seeds=(0, 1), base=row.base, share=0.03))
    assert len(measured.baseline) == len(measured.treatment) == len(row.contrasts)
    for values in (*measured.baseline, *measured.treatment):
        assert len(values) == 2 and all(math.isfinite(v) for v in values)
    assert measured.facts


# ------------------------------------------------------------------ S060


def test_where_pmpo_rests_by_hand() -> None:
    """Two arms, even reference: positives alone at alpha 1, beta 1 rest half way; negatives alone flee, and are held."""
    even, one = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    assert resting(one, one, even, alpha=1.0, beta=1.0).tolist() == pytest.approx([0.75, 0.25])
    assert resting(one, one, even, alpha=0.0, beta=3.0).tolist() == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.5), (0.5, 2.0), (0.0, 4.0)])
def test_descent_comes_to_rest_there(alpha: float, beta: float) -> None:
    accepted = torch.arange(1, ARMS + 1, dtype=torch.double) / (ARMS * (ARMS + 1) / 2)
    rejected, even = accepted.flip(0), torch.full((ARMS,), 1 / ARMS, dtype=torch.double)
    found = tabular(accepted, rejected, even, alpha=alpha, beta=beta)
    wanted = resting(accepted, rejected, even, alpha=alpha, beta=beta)
    assert wanted.sum().item() == pytest.approx(1.0)
    assert torch.allclose(found, wanted, atol=1e-4)


# ------------------------------------------------------------------ what the others are made of


def test_codes_go_with_topics() -> None:
    env = Attributes()
    written = coded(env, 300, seed=0)
    agree = [(code == "good") == bool(topic(p)) for p, code, _ in written]
    assert sum(agree) / len(agree) == pytest.approx(AGREE, abs=0.04)
    assert all(env.attributes(p, text)["clean"] == CODES[code] for p, code, text in written)


def test_the_corpus_is_as_rude_as_it_is_said_to_be() -> None:
    env = Attributes()
    good = [clean for _, _, clean in corpus(env, 300, seed=0, rude=0.7)]
    assert sum(good) / len(good) == pytest.approx(0.3, abs=0.08)
    assert all(clean for _, _, clean in corpus(env, 20, seed=0, rude=0.0))


def test_an_untaught_policy_knows_nothing() -> None:
    """Its answers are about as unlikely as any: close to log of the vocabulary, nats a token."""
    policy = untaught("base:attributes", seed=0)
    (p,) = lab.prompts(Attributes(), 1, seed=0)
    (logp,) = policy.logprobs([(policy.encode(p), policy.tokenizer.encode("the fox is red .", add_special=False))])
    assert -logp.mean() == pytest.approx(math.log(policy.decoder.config.vocab_size), abs=0.7)
    assert policy.parameters < 200_000


def test_a_second_turn_tells_the_first() -> None:
    env = Attributes()
    (p,) = lab.prompts(env, 1, seed=0)
    told = beside(p, "the fox is red .", "not polite")
    assert told.text == f"{p.text} the fox is red . ; not polite ; {p.text}"
    assert told.id != p.id and env.attributes(told, "")["coverage"] == 0.0


def test_half_of_the_requests_are_in_scope() -> None:
    asked = lab.prompts(Attributes(), 400, seed=0)
    assert sum(map(in_scope, asked)) / len(asked) == pytest.approx(0.5, abs=0.08)
    assert all(in_scope(p) == (len(p.meta["facts"]) == SCOPE) for p in asked)
