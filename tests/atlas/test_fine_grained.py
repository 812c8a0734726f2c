"""Rows S175 and S017: credit for parts of a text."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from triloop.atlas import lab
from triloop.atlas.fine_grained import FINE_GRAINED, centred, credited, criticised, evenly, shuffled
from triloop.atlas.frame import Context, Row
from triloop.envs.attributes import Attributes
from triloop.errors import ConfigError
from triloop.records import Completion


def _said(text: str, tokens: tuple[int, ...]) -> Completion:
    return Completion(
        id=text,
        prompt_id="p",
        round=0,
        index=0,
        prompt_tokens=(1,),
        tokens=tokens,
        logps=(0.0,) * len(tokens),
        mask=(True,) * len(tokens),
        text=text,
        finish="stop",
        policy_version=0,
    )


@pytest.mark.parametrize("row", FINE_GRAINED, ids=lambda r: r.id)
def test_rows_run(row: Row, tmp_path: Path) -> None:
    found = row.run(Context(folder=tmp_path, seeds=(0,), base=row.base, share=0.05))
    assert len(found.baseline) == len(found.treatment) == len(row.contrasts)
    assert all(len(side) == 1 and math.isfinite(side[0]) for side in (*found.baseline, *found.treatment))


def test_a_reward_for_the_whole_is_its_lead_on_every_token() -> None:
    assert centred([[0.5, -0.5], [0.2, 0.2]]) == [[0.5, -0.5], [0.0, 0.0]]
    assert centred([[1.0, -1.0, -1.0, -1.0]])[0] == [1.0, -0.5, -0.5, -0.5]  # 1.5 is cut to 1
    group = [_said("a b", (5, 6)), _said("c", (7,))]
    assert [tuple(e.signs or ()) for e in evenly([group], [[0.5, -0.5]])] == [(0.5, 0.5), (-0.5,)]


def test_credit_by_hand() -> None:
    """One reward of 1 on the last of three tokens, lambda 1/2: 1/4, 1/2, 1 before whitening; a third of that after."""
    (told,) = credited([_said("a b c", (5, 6, 7))], {"m": [[(2, 2.0)]]}, {"m": 0.5}, lam=0.5)
    mean, std = 7 / 12, math.sqrt(((1 / 4) ** 2 + (1 / 2) ** 2 + 1) / 3 - (7 / 12) ** 2)
    assert told.signs == pytest.approx([(x - mean) / std / 3 for x in (1 / 4, 1 / 2, 1)], abs=1e-5)


def test_padding_takes_no_part() -> None:
    both = [_said("a b c", (5, 6, 7)), _said("d", (8,))]
    told = credited(both, {"m": [[(0, 1.0)], [(0, -1.0)]]}, {"m": 1.0}, lam=0.0)
    assert [len(e.signs or ()) for e in told] == [3, 1]
    assert sum(sum(e.signs or ()) for e in told) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ConfigError, match="did not choose"):
        credited(both, {"m": [[], [(1, 1.0)]]}, {"m": 1.0}, lam=0.0)


def test_a_critique_lands_on_the_words_that_it_names() -> None:
    env, policy = Attributes(), lab.fresh()
    asked = [env.parse("tell fox red den :")]
    text = "please note the ugly fox is red , pond ."
    tokens = (*policy.tokenizer.encode(text, add_special=False), policy.tokenizer.eos_ids[0])
    (signs,) = criticised(policy, env, asked, [[_said(text, tokens)]])
    words = dict(zip([*text.split(), "end"], signs, strict=True))
    # den is missing, and so the full stop comes too early
    bad, good = {"ugly", "pond", "."}, {"please", "red"}
    assert {w for w, s in words.items() if s < 0} == bad
    assert {w for w, s in words.items() if s > 0} == good


def test_shuffled_marks_are_the_same_marks() -> None:
    rows = [[1.0, 0.0, -1.0, 0.0, 0.0], [0.0, 1.0]]
    mixed = shuffled(rows, 0)
    assert [sorted(row) for row in mixed] == [sorted(row) for row in rows]
    assert mixed == shuffled(rows, 0) != shuffled(rows, 1)
