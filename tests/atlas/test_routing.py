"""Rows A68, S142 and S009: whom to ask, and for what."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from triloop.atlas import lab
from triloop.atlas.frame import Context, Row
from triloop.atlas.routing import (
    CHECK,
    JUDGE,
    PEOPLE,
    ROUTING,
    Asked,
    ellipsoid,
    judged,
    rosenbrock,
    run_cascade,
    slope,
)
from triloop.envs.attributes import Attributes
from triloop.feedback.kinds import Abstention, Ternary, write
from triloop.learn.examples import Demonstration, Preference
from triloop.records import Feedback


@pytest.mark.parametrize("row", ROUTING, ids=lambda r: r.id)
def test_rows_run(row: Row, tmp_path: Path) -> None:
    found = row.run(Context(folder=tmp_path, seeds=(0,), base=row.base, share=0.03))
    assert len(found.baseline) == len(found.treatment) == len(row.contrasts)
    assert all(len(side) == 1 and math.isfinite(side[0]) for side in (*found.baseline, *found.treatment))


def _word(value: int, source: str, price: float, confidence: float = 1.0) -> Feedback:
    content = Ternary(1 if value > 0 else -1) if value else Abstention("cannot tell")
    return write(content, source=source, cost=price, confidence=confidence)


def test_a_cascade_by_hand() -> None:
    """The verifier settles the first, a sure judge the second, a person the third, of which the judge was unsure."""
    asked = Asked(
        truth=[1.0, -1.0, 1.0],
        check=[_word(1, "check", CHECK), _word(0, "check", CHECK), _word(0, "check", CHECK)],
        judge=[_word(-1, "judge", JUDGE), _word(-1, "judge", JUDGE, 0.95), _word(-1, "judge", JUDGE, 0.6)],
        people=[_word(-1, "people", PEOPLE), _word(1, "people", PEOPLE), _word(1, "people", PEOPLE)],
    )
    done = run_cascade(asked, 10.0)
    assert done.by_source == {"check": 1, "judge": 1, "people": 1}
    assert done.accuracy == 1.0
    assert done.cost == pytest.approx(3 * CHECK + 2 * JUDGE + PEOPLE)
    careless = run_cascade(asked, 0.0)
    assert careless.by_source == {"check": 1, "judge": 2}
    assert careless.right == 2


def test_the_functions_are_best_where_they_say() -> None:
    at = np.ones(3)
    assert rosenbrock(at) == ellipsoid(at) == 0
    assert np.allclose(slope(ellipsoid, at), 0, atol=1e-3)
    assert (np.sign(slope(ellipsoid, at + 1)) == -1).all()


def test_each_kind_of_judgement_becomes_what_is_learned_from() -> None:
    env, policy = Attributes(), lab.fresh()
    asked = lab.prompts(env, 6, seed=0)
    drawn = lab.sample(policy, asked, 2, seed=0)
    kinds = {"text": Demonstration, "edit": Demonstration, "pair": Preference}
    for kind, example in kinds.items():
        found = judged(policy, env, kind, asked, drawn)
        assert found
        assert all(isinstance(x, example) for x in found)
    edits = judged(policy, env, "edit", asked, drawn)
    texts = [policy.tokenizer.decode(e.tokens) for e in edits if isinstance(e, Demonstration)]
    assert [env.verify(p, t.strip()).value for p, t in zip(asked, texts, strict=True)] == [pytest.approx(1.0)] * 6
