"""A budget spent where it helps: a cheap judge about all, people about what it doubts, the kind by difficulty."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from loops.test_generations import STEPS, config
from triloop.errors import ConfigError
from triloop.learn.objective_config import ObjectiveConfig
from triloop.loops.config import EnvConfig
from triloop.loops.routed import question_of
from triloop.loops.run import start
from triloop.loops.stages import CollectConfig, CycleConfig, JudgeConfig, PeopleConfig, PreferConfig, RouteConfig
from triloop.records import Completion, Episode, Feedback, Prompt
from triloop.store.run import Run

CYCLE = CycleConfig(
    stages=("collect", "prefer"),
    collect=CollectConfig(prompts=12, samples=2, source="routed"),
    people=PeopleConfig(price=1.0, flip=0.0),
    ai=JudgeConfig(price=1e-3),
    route=RouteConfig(budget=12.0),
    prefer=PreferConfig(objective=ObjectiveConfig(name="dpo_davidson"), beside=("pmpo", "span_pg", "sft"), **STEPS),
)


def judged(*feedback: Feedback) -> list[Episode]:
    prompt = Prompt(id="p", text="?")
    made = Completion(
        id="1/p/0", prompt_id="p", round=1, index=0, prompt_tokens=(1,), tokens=(), logps=(), mask=(), text="",
        finish="stop", policy_version=0,
    )  # fmt: skip
    return [Episode(prompt=prompt, completion=made, feedback=(f,), reward=f.value) for f in feedback]


def test_a_question_by_hand() -> None:
    """Values 0.5 and -1 are hard at (1 + 0.25) / 2; who is sure at 0.9 and 0.6 is unsure at 0.25."""
    asked = question_of("p", judged(Feedback(value=0.5, confidence=0.9), Feedback(value=-1.0, confidence=0.6)))
    assert (asked.difficulty, asked.uncertainty) == pytest.approx((0.625, 0.25))
    lost = question_of("p", judged(Feedback(value=None, failure="gone")))
    assert (lost.difficulty, lost.uncertainty) == (1.0, 1.0)


def test_a_budget_is_spent_and_kept(run_dir: Path) -> None:
    start(config(CYCLE), run_dir)
    with Run.open(run_dir, write=False) as run:
        seen, metrics = run.episodes(1, purpose="collect"), run.metrics()[0]
    by_prompt: dict[str, list[Feedback]] = {}
    for e in seen:
        by_prompt.setdefault(e.prompt.id, []).extend(e.feedback)
    rubrics = [f for told in by_prompt.values() for f in told if f.source.startswith("rubric:")]
    people = {id: [f for f in told if f.source.startswith("person:")] for id, told in by_prompt.items()}
    asked = {id: told for id, told in people.items() if told}
    assert len(rubrics) == 24, "the cheap judge is asked about every sample"
    assert {f.kind for told in asked.values() for f in told} == {"text", "edit", "pair"}
    assert all({f.kind for f in told} in ({"text"}, {"text", "edit"}, {"pair"}) for told in asked.values())
    assert 3 <= len(asked) < 12 and metrics["asked_people"] == len(asked) / 12
    spent = sum(f.cost for told in by_prompt.values() for f in told)
    assert metrics["cost"] == pytest.approx(spent) == pytest.approx(metrics["cost_cheap"] + metrics["cost_people"])
    assert 0 < metrics["cost_cheap"] < spent <= 12.0
    # people are asked where the cheap judge is least sure
    cheap = [dataclasses.replace(e, feedback=tuple(f for f in e.feedback if f in rubrics)) for e in seen]
    doubt = {id: question_of(id, [e for e in cheap if e.prompt.id == id]).uncertainty or 0.0 for id in by_prompt}
    assert min(doubt[id] for id in asked) >= max(doubt[id] for id in by_prompt if id not in asked)


def test_without_money_only_the_cheap_judge_speaks(run_dir: Path) -> None:
    cycle = dataclasses.replace(CYCLE, route=RouteConfig(budget=0.0))
    cycle = dataclasses.replace(cycle, prefer=PreferConfig(objective=ObjectiveConfig(name="dpo"), **STEPS))
    start(config(cycle), run_dir)
    with Run.open(run_dir, write=False) as run:
        told = [f for e in run.episodes(1, purpose="collect") for f in e.feedback]
        assert {f.source.split(":")[0] for f in told} == {"rubric"}
        assert run.metrics()[0]["asked_people"] == 0.0 and run.metrics()[1]["examples"] > 0


def test_routes_that_cannot_be_are_refused(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match="the reward model judges, but no stage trains it"):
        start(config(dataclasses.replace(CYCLE, route=RouteConfig(cheap="reward"))), run_dir)
    with pytest.raises(ConfigError, match="cannot say what is wrong in sort"):
        wrong = dataclasses.replace(CYCLE, route=RouteConfig(cheap="task"))
        start(config(wrong, env=EnvConfig(name="sort")), run_dir)
    for changes, message in (
        ({"budget": -1.0}, "budget is -1"),
        ({"kinds": ()}, "kinds is empty"),
        ({"accuracy": 1.5}, "accuracy is 1.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            RouteConfig(**changes)  # type: ignore[arg-type]
    assert not run_dir.exists()
