"""Rows on judgements by models and on written principles: the helpers by hand, and that every row runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from triloop.atlas.ai_feedback import AI_FEEDBACK, ASKED, cycled, duels, leaning, overall, right
from triloop.atlas.bought import BOUGHT, lost, synthetic
from triloop.atlas.constitutional import CONSTITUTIONAL, kept
from triloop.atlas.frame import Context, Row, judge
from triloop.atlas.labellers import COMPLAINTS, LABELLERS, THANKS, dialogues, duels_of_writers, writers
from triloop.atlas.recalled import COVERAGE, RECALLING, drafts, knowing, known
from triloop.atlas.table import ROWS
from triloop.envs.attributes import Attributes
from triloop.feedback.kinds import write
from triloop.loops.stages import CycleConfig, JudgeConfig
from triloop.records import Feedback, Prompt
from triloop.sources.constitution import read_constitution
from triloop.sources.debias import KnownPair
from triloop.sources.lm_pairs import pair_of

MINE = (*AI_FEEDBACK, *LABELLERS, *CONSTITUTIONAL, *BOUGHT)
ENV = Attributes()


def _context(folder: Path, share: float = 0.05) -> Context:
    return Context(folder=folder, seeds=(0, 1, 2), base="base:attributes", share=share)


def test_they_stand_in_the_table() -> None:
    assert {row.id for row in MINE} == {"S153", "S118", "S092", "A09", "S127", "A07", "S022", "A08", "S074", "S168"}
    assert all(ROWS[row.id] is row and row.base == "base:attributes" for row in MINE)


@pytest.mark.slow
@pytest.mark.parametrize("row", MINE, ids=lambda row: row.id)
def test_every_row_runs(row: Row, tmp_path: Path) -> None:
    measured = row.run(_context(tmp_path))
    assert judge(row.contrasts, measured) in (-1, 0, 1)  # finite, one value a seed
    assert all(math.isfinite(v) for values in (*measured.baseline, *measured.treatment) for v in values)
    assert measured.facts


def test_what_a_critique_costs() -> None:
    """Coverage by the share of facts that are missing, every other attribute once, however often it is named."""
    assert lost("missing den", 2) == pytest.approx(0.35 / 2)
    assert lost("missing den ; missing red", 2) == pytest.approx(0.35)
    assert lost("not polite ; rude ugly ; rude silly", 3) == pytest.approx(0.15 + 0.2)
    assert lost("good", 3) == 0.0


def test_synthetic_requests_share_facts_and_not_the_subject() -> None:
    reference = ENV.parse("tell fox red den :")
    made = synthetic(reference)
    assert len(made) == 8 == len({p.id for p in made})
    assert all(p.text.endswith(" red den :") and "fox" not in p.text for p in made)


def test_kept_by_hand() -> None:
    prompt = ENV.parse("tell fox red den :")
    texts = ["please note the fox is red , den .", "the ugly fox is red , den ."]
    found = kept([prompt, prompt], texts)
    assert found["harmless"] == found["polite"] == found["clean"] == 0.5
    assert found["coverage"] == 1.0


class _Longer:
    """Prefers the longer text, and calls equal lengths a tie."""

    name = "longer"

    def compare(self, prompts: list[Prompt], firsts: list[str], seconds: list[str]) -> list[Feedback]:
        signs = [(len(a) > len(b)) - (len(a) < len(b)) for a, b in zip(firsts, seconds, strict=True)]
        return [write(pair_of(float(s)), source=self.name) for s in signs]


def test_labels_are_scored_by_hand() -> None:
    """Right, wrong, tied, and one pair without a better side, which counts for nothing."""
    p = Prompt(id="p", text="p")
    pairs = [
        KnownPair(prompt=p, first="aa", second="a", truth=1.0),
        KnownPair(prompt=p, first="aa", second="a", truth=-0.5),
        KnownPair(prompt=p, first="a", second="b", truth=0.1),
        KnownPair(prompt=p, first="aa", second="a", truth=0.0),
    ]
    assert right(_Longer(), pairs) == pytest.approx((1 + 0 + 0.5) / 3)


def test_the_general_principle_is_a_constitution(tmp_path: Path) -> None:
    (principle,) = read_constitution(overall(tmp_path)).principles
    assert (principle.name, principle.text, principle.asked) == ("overall",) * 3


def test_pairs_know_their_truth(tmp_path: Path) -> None:
    for x in duels(_context(tmp_path), 0, 160):
        worth = [f.value or 0.0 for f in ENV.gold([x.prompt] * 2, [x.first, x.second])]
        assert x.truth == pytest.approx(worth[0] - worth[1])


def test_the_leaning_judge_leans(tmp_path: Path) -> None:
    """Ten steps at full size move it by half of all pairs; fewer and smaller ones already show."""
    from triloop.atlas import lab
    from triloop.sources.attribute_asking import ATTRIBUTE_ASKING, OVERALL
    from triloop.sources.debias import measure_bias
    from triloop.sources.lm_pairs import Comparing, PairwiseJudge

    pairs = duels(_context(tmp_path), 0, 640)
    given = Comparing(orders="given")
    before, after = (
        measure_bias(PairwiseJudge(model, OVERALL, ATTRIBUTE_ASKING, given), pairs).position
        for model in (lab.fresh(), leaning(replace(_context(tmp_path), share=0.3)))
    )
    assert before is not None and after is not None
    assert after.value > before.value + 0.1


def test_users_say_what_the_listener_knows(tmp_path: Path) -> None:
    said = dialogues(_context(tmp_path), 0)
    assert {words for _, words in said} == {*THANKS, *COMPLAINTS}


def test_writers_are_of_different_quality_and_their_pairs_know_their_truth(tmp_path: Path) -> None:
    asked = ENV.prompts("train", 400, seed=3)
    worth = sorted(f.value or 0.0 for f in ENV.gold(asked, writers(asked, 3, "a")))
    assert worth[40] < 0.2 and worth[-40] > 0.9  # some as careless as the base's teachers, some without a fault
    assert writers(asked[:9], 3, "a") != writers(asked[:9], 3, "b")
    for x in duels_of_writers(_context(tmp_path), 0, 160):
        first, second = (f.value or 0.0 for f in ENV.gold([x.prompt] * 2, [x.first, x.second]))
        assert x.truth == pytest.approx(first - second)


def test_what_is_remembered_stands_in_no_request(tmp_path: Path) -> None:
    """Truth is coverage of the subject's facts, which the prompt does not name."""
    world = known(5)
    pairs = drafts(_context(tmp_path), world, 5)
    assert pairs
    for x in pairs:
        _, subject = x.prompt.text.split()
        named = [sum(f in t.split() for f in world[subject]) / len(world[subject]) for t in (x.first, x.second)]
        assert x.truth == pytest.approx(2 * (named[0] - named[1])) != 0


def test_the_judge_remembers(tmp_path: Path) -> None:
    from triloop.atlas import lab

    world = known(5)
    judge = knowing(replace(_context(tmp_path), share=1.0), world, 5)
    asked = [Prompt(id=s, text=f"tell {s} :") for s in world]
    notes = [g[0].text.split() for g in lab.sample(judge, asked, 1, seed=0)]
    right = sum(len({*n} & {*f}) for n, f in zip(notes, world.values(), strict=True)) / sum(map(len, world.values()))
    assert right > 0.5  # by chance 0.15


def test_the_judges_own_answer_completes_the_request() -> None:
    """Beside its own answer a request reads like any that says what it wants."""
    from triloop.envs.attributes_skills import compare
    from triloop.sources.asking import asked_with

    fields = {
        "request": "tell fox",
        "first": "the fox is red .",
        "second": "the fox is shy .",
        "principle": COVERAGE.text,
    }
    whole = asked_with(RECALLING.templates, "compare", "q", {**fields, "reference": "red den"}, ())
    stated, _ = compare(ENV.parse("tell fox red den :"), fields["first"], fields["second"], COVERAGE.text)
    assert whole.text == stated
    assert asked_with(RECALLING.templates, "compare", "q", fields, ()).text == stated.replace(" red den :", " :")


def test_the_form_of_the_judge_reaches_the_run(tmp_path: Path) -> None:
    from triloop.loops.run import start
    from triloop.store.run import Run

    rewards = {}
    for form in ("rubric", "yes_no"):
        ai = JudgeConfig(principles=ASKED, form=form)  # type: ignore[arg-type]
        cycle = CycleConfig(stages=("improve",), judge="judge", ai=ai)
        config = cycled(_context(tmp_path), cycle, rounds=1, prompts_per_round=4, group_size=4, eval_n=8)
        start(config, tmp_path / form)
        with Run.open(tmp_path / form, write=False) as run:
            rewards[form] = [e.reward for e in run.episodes(1, purpose="train")]
    assert set(rewards["rubric"]) <= {-1.0, -0.5, 0.0, 0.5, 1.0}
    assert any(r not in (-1.0, -0.5, 0.0, 0.5, 1.0) for r in rewards["yes_no"])


def test_what_becomes_of_contradictions_reaches_the_run(tmp_path: Path) -> None:
    from triloop.loops.run import start
    from triloop.loops.stages import CollectConfig, PreferConfig
    from triloop.store.run import Run

    undecided = {}
    for way in ("tie", "average"):
        cycle = CycleConfig(
            stages=("collect", "prefer"),
            collect=CollectConfig(prompts=48, source="judge"),
            prefer=PreferConfig(steps=1, batch=4),
            ai=JudgeConfig(constitution=overall(tmp_path), inconsistent=way),  # type: ignore[arg-type]
        )
        start(cycled(_context(tmp_path), cycle, eval_n=8), tmp_path / way)
        with Run.open(tmp_path / way, write=False) as run:
            undecided[way] = run.metrics()[0]["undecided"]
    assert undecided["tie"] > undecided["average"] == 0
