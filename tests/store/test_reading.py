from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from store.toy import episodes
from triloop.records import Feedback, Verdict
from triloop.store import (
    Run,
    completion_row,
    episode_rows,
    event_row,
    feedback_row,
    metrics_row,
    prompt_row,
    timing_row,
    verdict_row,
)


@pytest.fixture
def run(run_dir: Path) -> Iterator[Run]:
    with Run.create(run_dir, {}, {}) as run:
        yield run


def test_episodes_come_back(run: Run) -> None:
    drawn = {round: episodes(round, "s") for round in (1, 2)}
    drawn[2][0] = replace(drawn[2][0], feedback=(Feedback(value=None, failure="timeout"),) * 2, reward=None)
    for made in drawn.values():
        run.append(episode_rows(made))
    assert run.episodes(1) == drawn[1]
    assert run.episodes(2) == drawn[2]
    assert run.completions(1) == [e.completion for e in drawn[1]]
    assert len(run.completions()) == 12
    assert run.feedback(2)[drawn[2][0].completion.id] == [Feedback(value=None, failure="timeout")] * 2
    assert len(run.feedback()) == 12
    assert run.prompts(["p2", "nobody"]) == {"p2": drawn[2][0].prompt}


def test_evaluation_samples_are_told_from_training(run: Run) -> None:
    train, test = episodes(1, "s")[:3], episodes(1, "s")[3:]
    run.append(episode_rows(train))
    run.append(episode_rows(test, purpose="eval"))
    assert run.episodes(1) == train
    assert run.episodes(1, purpose="eval") == test
    assert len(run.episodes(1, purpose=None)) == len(run.completions(1, purpose=None)) == 6


def test_metrics_timings_and_rounds(run: Run) -> None:
    run.append([metrics_row(2, {"reward": 0.5}), metrics_row(1, {"reward": 0.25}), timing_row(1, {"seconds": 3.0})])
    assert run.metrics() == [{"round": 1, "reward": 0.25}, {"round": 2, "reward": 0.5}]
    assert run.timings() == [{"round": 1, "seconds": 3.0}]
    assert run.rounds() == [1, 2]


def test_verdicts_of_rewound_rounds_can_be_asked_for(run: Run) -> None:
    said = [Verdict(guard="kl", round=r, value=v, reason="r", samples=("1/p/0",)) for r, v in ((1, 1), (2, -1))]
    run.append([verdict_row(v) for v in reversed(said)])
    assert run.verdicts() == said
    run.rewind(1)
    assert run.verdicts() == said[:1]
    assert run.verdicts(state=None) == said


def test_events_are_never_the_same(run: Run) -> None:
    run.append([event_row(1, "resumed"), event_row(1, "resumed", {"threads": 2})])
    assert [r.payload["name"] for r in run.rows("event")] == ["resumed", "resumed"]


def test_ancestors_are_found_through_all_generations(run: Run) -> None:
    episode = episodes(1, "s")[0]
    draft = episode.completion
    revised = replace(draft, id="2/p/0", round=2, parents=(draft.id, f"{draft.id}/feedback/0"))
    run.append(
        [
            prompt_row(episode.prompt, 1),
            completion_row(draft),
            feedback_row(episode.feedback[0], draft.id, 1),
            completion_row(revised),
        ]
    )
    assert [r.id for r in run.ancestors("2/p/0")] == [draft.prompt_id, draft.id, f"{draft.id}/feedback/0"]
    assert [r.id for r in run.ancestors(f"{draft.id}/feedback/0")] == [draft.id, draft.prompt_id]
    assert run.ancestors("nobody") == run.ancestors(draft.prompt_id) == []
