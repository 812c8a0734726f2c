"""Rows S067, S033 and S057: what users say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from triloop.atlas import lab
from triloop.atlas.dialogue import DIALOGUE, best_by, blended, refinements
from triloop.atlas.frame import Context, Row
from triloop.envs.attributes import Attributes
from triloop.sources.attribute_asking import ATTRIBUTE_ASKING, OVERALL
from triloop.sources.lm_judge import YesNoJudge


@pytest.mark.parametrize("row", DIALOGUE, ids=lambda r: r.id)
def test_rows_run(row: Row, tmp_path: Path) -> None:
    found = row.run(Context(folder=tmp_path, seeds=(0,), base=row.base, share=0.05))
    assert len(found.baseline) == len(found.treatment) == len(row.contrasts)
    assert all(len(side) == 1 and math.isfinite(side[0]) for side in (*found.baseline, *found.treatment))


def test_refinements_heed_what_was_said_and_the_judge_picks_one_of_them() -> None:
    env, policy = Attributes(), lab.fresh()
    asked = lab.prompts(env, 24, seed=3)
    drafts = [(p, g[0].text) for p, g in zip(asked, lab.sample(policy, asked, 1, seed=3), strict=True)]
    new = refinements(policy, drafts, [env.critique(p, t) for p, t in drafts], 3, seed=3)
    before = np.mean([env.utility(env.attributes(p, t)) for p, t in drafts])
    after = np.mean([env.utility(env.attributes(p, t)) for p, g in zip(asked, new, strict=True) for t in g])
    assert after > before + 0.3
    chosen = best_by(YesNoJudge(policy, OVERALL, ATTRIBUTE_ASKING), asked, new)
    assert all(t in g for t, g in zip(chosen, new, strict=True))


def test_rewards_are_blended_in_units_of_the_utility() -> None:
    love, utility = np.array([10.0, -10.0]), np.array([-0.5, 0.5])
    assert blended(love, utility, 0.0).tolist() == utility.tolist()
    assert blended(love, utility, 1.0) == pytest.approx([0.5, -0.5], abs=1e-4)
    assert blended(love, utility, 0.5) == pytest.approx([0.0, 0.0], abs=1e-4)
