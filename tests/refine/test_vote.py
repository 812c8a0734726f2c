from __future__ import annotations

import pytest

from triloop.errors import ConfigError
from triloop.refine.vote import draws_until_agreement, majority


@pytest.mark.parametrize(
    ("answers", "winner"),
    [(["1", "2", "2"], "2"), (["1", "2"], "1"), ([None, "3", None], "3"), ([None, None], None), ([], None)],
)
def test_majority(answers: list[str | None], winner: str | None) -> None:
    assert majority(answers) == winner


@pytest.mark.parametrize(
    ("answers", "draws"),
    [
        (["1", "1", "1", "2"], 3),
        (["1", "2", "1", "2", "1"], 5),
        (["1", None, "1", None, "1"], 5),
        (["1", "2", "3"], 3),
        ([None, None], 2),
        ([], 0),
    ],
)
def test_draws_until_three_agree(answers: list[str | None], draws: int) -> None:
    assert draws_until_agreement(answers, 3) == draws


def test_agreement_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 sample"):
        draws_until_agreement(["1"], 0)
