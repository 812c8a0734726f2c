"""The attribute world: values worked by hand, agreement of attributes, defects and revision, teachers, skills."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triloop.envs import attributes_skills as skills
from triloop.envs.attributes import BAD, GOOD, MEDIOCRE, Attributes, requested
from triloop.envs.attributes_language import (
    ATTRIBUTES,
    FACTS,
    FILLER,
    SUBJECTS,
    WEIGHTS,
    WORDS,
    blamed,
    describe,
    find_defects,
    measure,
    mend,
    read_text,
    utility,
)
from triloop.envs.table import make
from triloop.errors import ConfigError, DataError
from triloop.loops.build import policy_path
from triloop.nn.tokenizer import word_tokenizer
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Prompt

WORLD = Attributes()
FOX = WORLD.parse("tell fox red den :")
ASKED = ("red", "den")
PERFECT = "please note the fox is red , den ."
LONG = "please note " + " ".join(FILLER[:5]) + " the fox is red , den ."  # 25 words

TEXTS = st.lists(st.sampled_from([*WORDS, "xyzzy", "\n", "ＤＥＮ"]), max_size=40).map(" ".join)
CLOSE = st.lists(
    st.sampled_from(["red", "den", "nest", ",", "and", "the", "is", ".", "please", "silly", "wow", "fox", "note"]),
    max_size=20,
).map(" ".join)


@pytest.mark.parametrize(
    ("text", "coverage", "grounded", "polite", "clean", "concise", "fluent"),
    [
        (PERFECT, 1, 1, 1, 1, 1, 1),
        ("den red please .", 1, 1, 1, 1, 1, 1),
        ("", 0, 0, 0, 0, 0, 0),
        (" \n", 0, 0, 0, 0, 0, 0),
        ("please .", 0, 0, 1, 1, 1, 1),  # names nothing: nothing is grounded
        ("the fox is red , nest , pond .", 0.5, 1 / 3, 0, 1, 1, 1),
        ("the stupid fox is red , den", 1, 1, 0, 0, 1, 0.5),  # no full stop
        ("thanks , the fox is red red , den", 1, 1, 1, 1, 1, 0),  # no full stop, and a repeat
        ("please note the fox is red , the den .", 1, 1, 1, 1, 1, 1),  # small words may come again
        ("tell fox red den :", 1, 1, 0, 1, 1, 0),  # an echo
        (LONG, 1, 1, 1, 1, 1 - 11 / 14, 1),  # eleven words above 2 * 2 + 10
        ("wow " * 40, 0, 0, 0, 1, 0, 0),
        ("please den red . wow", 1, 1, 1, 1, 1, 0.5),
    ],
)
def test_attributes_by_hand(
    text: str, coverage: float, grounded: float, polite: float, clean: float, concise: float, fluent: float
) -> None:
    wanted = dict(zip(ATTRIBUTES, (coverage, grounded, polite, clean, concise, fluent), strict=True))
    assert WORLD.attributes(FOX, text) == pytest.approx(wanted)


def test_utility_by_hand() -> None:
    half = {"coverage": 0.5, "grounded": 1, "polite": 0, "clean": 1, "concise": 0.5, "fluent": 0}
    assert utility(half) == pytest.approx(2 * (0.175 + 0.15 + 0.2 + 0.05) - 1)
    assert utility(half, {"polite": 1.0, "clean": 3.0}) == pytest.approx(0.5)
    assert utility(dict.fromkeys(ATTRIBUTES, 1.0)) == 1 and utility(dict.fromkeys(ATTRIBUTES, 0.0)) == -1
    assert sum(WEIGHTS.values()) == pytest.approx(1)
    assert WORLD.gold([FOX], ["please ."])[0].value == pytest.approx(0.0)


def test_gold_says_why() -> None:
    (feedback,) = WORLD.gold([FOX], ["the ugly fox is red , nest ."])
    assert feedback.reason == "missing den ; extra nest ; not polite ; rude ugly"
    assert feedback.kind == "scalar" and set(feedback.breakdown) == set(ATTRIBUTES)
    assert feedback.value == pytest.approx(2 * (0.175 + 0.075 + 0.1 + 0.05) - 1)
    assert WORLD.honest and WORLD.judge([FOX], [PERFECT])[0].reason == "good"


def test_defects_stand_where_they_are() -> None:
    text = "  the ugly fox is red , nest red"
    found = {(d.attribute, d.sign, d.note): text[d.start : d.end] for d in WORLD.defects(FOX, text)}
    assert found == {
        ("coverage", 1, "named red"): "red",
        ("coverage", -1, "missing den"): "red",  # the last word: den should have come before the end
        ("grounded", -1, "extra nest"): "nest",
        ("polite", -1, "not polite"): "the",
        ("clean", -1, "rude ugly"): "ugly",
        ("fluent", -1, "repeat red"): "red",
        ("fluent", -1, "unfinished"): "red",
    }
    first = next(d for d in WORLD.defects(FOX, text) if d.note == "named red")
    again = next(d for d in WORLD.defects(FOX, text) if d.note == "repeat red")
    assert first.start < again.start and again.end == len(text)
    (long,) = [d for d in WORLD.defects(FOX, LONG) if d.attribute == "concise"]
    assert len(LONG[: long.start].split()) == 14 and LONG[long.start : long.end].endswith("den .")
    assert [d for d in WORLD.defects(FOX, PERFECT) if d.sign < 0] == []
    assert {PERFECT[d.start : d.end] for d in WORLD.defects(FOX, PERFECT)} == {"please", "red", "den"}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS | CLOSE | st.text(max_size=30))
def test_attributes_defects_and_critique_agree(text: str) -> None:
    reading = read_text(ASKED, text)
    found, values = find_defects(reading, text), measure(reading)
    faulty = {d.attribute for d in found if d.sign < 0}
    assert faulty == {name for name in ATTRIBUTES if values[name] < 1} == blamed(describe(found))
    assert all(0 <= v <= 1 for v in values.values())
    assert all(0 <= d.start <= d.end <= len(text) and d.sign in (-1, 1) for d in found)
    assert all(d.start < d.end for d in found) or not text.split()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS | CLOSE | st.text(max_size=30), st.sets(st.sampled_from(ATTRIBUTES)))
def test_a_revision_mends_what_it_is_asked_to(text: str, names: set[str]) -> None:
    assert utility(WORLD.attributes(FOX, WORLD.revise(FOX, text))) == 1
    before, after = WORLD.attributes(FOX, text), WORLD.attributes(FOX, WORLD.revise(FOX, text, names))
    for name in ATTRIBUTES:
        if name in names:
            assert after[name] == 1
        elif name != "concise":
            assert after[name] >= before[name]


def test_a_revision_keeps_the_rest() -> None:
    text = "wow , the ugly fox is red , nest"
    assert mend(ASKED, text, {"clean"}) == "wow , the fox is red , nest"
    assert mend(ASKED, text, {"coverage"}) == "wow , the ugly fox is red , nest , den"
    assert mend(ASKED, text, {"grounded"}) == "wow , the ugly fox is red"
    assert mend(ASKED, text, {"polite"}) == "please wow , the ugly fox is red , nest"
    assert mend(ASKED, text, {"fluent"}) == "wow , the ugly fox is red , nest ."
    assert mend(ASKED, text, set()) == text
    assert mend(ASKED, text) == "please wow , the fox is red , den ."
    assert mend(ASKED, LONG, {"concise"}) == "please note , the fox is red , den ."


def test_what_a_critique_blames() -> None:
    assert blamed("missing den ; rude ugly ; not polite") == {"coverage", "clean", "polite"}
    assert blamed("no facts ; too long ; unfinished ; extra nest") == {"grounded", "concise", "fluent"}
    assert blamed("good") == blamed("") == blamed("yes ; wow ;") == set()
    assert blamed("empty") == set(ATTRIBUTES)


# ---------------------------------------------------------------------- the world and its options


@pytest.mark.parametrize(
    "text",
    ["", "hello", "tell fox :", "tell fox red den", "fox red :", "tell red den :", "tell fox red red :", "tell fox zebra :",
     "tell fox red den nest pond wood :"],
)  # fmt: skip
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="attributes"):
        WORLD.parse(text)


def test_the_order_of_facts_makes_no_other_problem() -> None:
    assert WORLD.canonical("tell fox red den :") == WORLD.canonical("tell fox den red :")
    assert WORLD.canonical("tell fox red den :") != WORLD.canonical("tell owl red den :")


def test_requests_are_many() -> None:
    drawn = [WORLD.canonical(p.text) for p in WORLD.prompts("train", 1500, seed=0)]
    assert len(set(drawn)) > 1350
    assert len(SUBJECTS) >= 24 and len(FACTS) >= 24


def test_options_are_read_and_checked() -> None:
    assert {p.level for p in Attributes(mixture=(4,)).prompts("train", 5, seed=0)} == {4}
    persona = make("attributes", weights=[["polite", 1], ["clean", 3]])
    assert persona.gold([FOX], ["the fox ."])[0].value == pytest.approx(0.5)
    assert persona.gold([FOX], [PERFECT])[0].value == 1
    assert make("attributes", weights={"fluent": 2}).gold([FOX], ["wow"])[0].value == pytest.approx(0)
    weights = ({"funny": 1}, {"polite": -1}, {"polite": 0}, {"polite": float("nan")})
    others = ({"mixture": (5,)}, {"levels": (0,)}, {"levels": ()}, {"judge": "x"})
    for wrong in (*others, *({"weights": w} for w in weights)):
        with pytest.raises(ConfigError):
            Attributes(**wrong)  # type: ignore[arg-type]


def test_a_ternary_judge_says_one_word_and_gold_stays() -> None:
    world = make("attributes", judge="ternary")
    texts = [PERFECT, "the fox is red , den .", "the fox is red , den", "the ugly fox is nest ."]
    gold = [f.value for f in world.gold([FOX] * 4, texts)]
    assert gold == pytest.approx([1, 0.7, 0.65, -0.7])
    half = "please note the fox is red ."  # 2 * 0.825 - 1 = 0.65; without courtesy 0.35
    assert [f.value for f in world.judge([FOX] * 3, [PERFECT, half.removeprefix("please note "), texts[3]])] == [
        1,
        0,
        -1,
    ]
    assert not world.honest
    assert all(f.kind == "ternary" and not f.breakdown for f in world.judge([FOX] * 4, texts))
    assert BAD < 0.35 < GOOD


@pytest.mark.parametrize("options", [{}, {"judge": "ternary"}, {"weights": {"polite": 1, "coverage": 1}}])
def test_wrong_answers_are_wrong_by_this_world_s_own_judge(options: dict[str, Any]) -> None:
    world = Attributes(**options)
    for prompt in world.prompts("train", 12, seed=0):
        wrong = world.wrong_answers(prompt)
        values = [f.value or 0.0 for f in world.judge([prompt] * len(wrong), wrong)]
        assert "" in wrong and len(wrong) >= 3
        assert max(values) < (0.5 if "judge" in options else 1)
        assert world.judge([prompt], [world.right_answer(prompt)])[0].value == 1


def test_what_was_asked_is_read_from_the_text_when_nothing_was_recorded() -> None:
    bare = Prompt(id="x", text="good ; tell fox red den :")
    assert requested(bare) == ASKED == requested(FOX)
    assert requested(Prompt(id="x", text="hello")) == ()
    assert json.loads(json.dumps(dict(FOX.meta))) == {"subject": "fox", "facts": ["red", "den"]}


# ---------------------------------------------------------------------- teachers


def test_an_expert_is_perfect_and_various() -> None:
    draw = np.random.default_rng(0)
    texts = [WORLD.demonstration(FOX, draw) for _ in range(100)]
    assert {f.value for f in WORLD.gold([FOX] * 100, texts)} == {1.0}
    assert len(set(texts)) > 20
    assert any("wow" in t for t in texts) and not any(
        "wow" in WORLD.demonstration(FOX, draw, distract=0) for _ in texts
    )


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_teacher_fails_where_it_is_told_to(name: str) -> None:
    """One attribute fails always, at its rate of 1; of the others only conciseness, now and then, by a word of too many."""
    prompts, draw = WORLD.prompts("train", 200, seed=0), np.random.default_rng(1)
    texts = [WORLD.demonstration(p, draw, rates={name: 1.0}) for p in prompts]
    values = [WORLD.attributes(p, t) for p, t in zip(prompts, texts, strict=True)]
    assert all(v[name] < 1 for v in values)
    for other in set(ATTRIBUTES) - {name}:
        assert np.mean([v[other] == 1 for v in values]) > (0.85 if other == "concise" else 0.97), other


def test_mediocre_answers_spread() -> None:
    prompts, draw = WORLD.prompts("train", 800, seed=0), np.random.default_rng(1)
    texts = [WORLD.demonstration(p, draw, rates=MEDIOCRE) for p in prompts]
    values = np.array([f.value for f in WORLD.gold(prompts, texts)], dtype=float)
    assert 0.1 < values.mean() < 0.4 and values.std() > 0.25
    assert 0.1 < (values > GOOD).mean() < 0.4 and (values < BAD).mean() > 0.25
    failed = {
        name: np.mean([WORLD.attributes(p, t)[name] < 1 for p, t in zip(prompts, texts, strict=True)])
        for name in ATTRIBUTES
    }
    assert all(abs(failed[name] - MEDIOCRE[name]) < 0.08 for name in ATTRIBUTES)


def test_everything_said_is_in_the_vocabulary() -> None:
    tokenizer, draw = word_tokenizer(WORDS), np.random.default_rng(2)
    prompts = WORLD.prompts("train", 60, seed=1, level=4)
    for prompt, text in skills.lessons(WORLD, prompts, draw, unreliable=0.3):
        assert tokenizer.decode(tokenizer.encode(f"{prompt} {text}")) == f"{prompt} {text}"
        assert 3 not in tokenizer.encode(f"{prompt} {text}")
        assert len(tokenizer.encode(f"{prompt} {text}")) < 160
    answers = [WORLD.demonstration(p, draw, 0.9) for p in prompts]
    assert max(len(a.split()) for a in answers) < WORLD.max_tokens


# ---------------------------------------------------------------------- skills


def test_questions_by_hand() -> None:
    text = "please note the fox is red , nest ."
    assert skills.ask(FOX, text, "polite") == (f"judge tell fox red den : {text} ; polite ?", "yes")
    assert skills.ask(FOX, text, "coverage")[1] == "no"
    assert skills.ask(FOX, text, "polite and coverage")[1] == "no"
    assert skills.ask(FOX, text, "polite and clean", reason=True) == (
        f"judge tell fox red den : {text} ; why polite and clean ?", "polite please and none so yes"
    )  # fmt: skip
    assert skills.ask(FOX, text, "coverage", reason=True)[1] == "red yes den no so no"
    assert skills.ask(FOX, text, "overall", reason=True)[1] == "coverage grounded so no"
    assert skills.rate(FOX, PERFECT)[1] == "9" and skills.rate(FOX, "")[1] == "0"
    with pytest.raises(ConfigError, match="funny"):
        skills.ask(FOX, text, "funny")


def test_comparisons_by_hand() -> None:
    worse = "the fox is red ."
    asked, said = skills.compare(FOX, PERFECT, worse, "coverage")
    assert asked == f"compare tell fox red den : A {PERFECT} ; B {worse} ; coverage ?" and said == "A"
    assert skills.compare(FOX, worse, PERFECT, "overall")[1] == "B"
    assert skills.compare(FOX, worse, PERFECT, "clean")[1] == "none"
    why, said = skills.compare(FOX, worse, PERFECT, "polite", reason=True)
    assert why.endswith("; why polite ?") and said == "A not polite ; B polite please ; so B"


def test_critique_and_revision_by_hand() -> None:
    text = "the ugly fox is red ."
    asked, said = skills.criticise(FOX, text)
    assert (asked, said) == (f"judge tell fox red den : {text} ; critique :", "missing den ; not polite ; rude ugly")
    prompt, better = skills.revise(FOX, text, "rude ugly")
    assert prompt == f"{asked} rude ugly ; revise :" and better == "the fox is red ."
    assert skills.revise(FOX, text, said)[1] == "please note the fox is red , den ."
    assert skills.condition(FOX, PERFECT, "good") == ("good ; tell fox red den :", PERFECT)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("yes", "yes"),
        ("red yes den no so no", "no"),
        ("red yes den no", None),
        ("", None),
        ("so yes .", None),
        ("A", None),
    ],
)
def test_verdicts(text: str, wanted: str | None) -> None:
    assert skills.verdict(text) == wanted


def test_skills_know_their_fields() -> None:
    for skill in skills.SKILLS.values():
        assert skill.prompt(**dict.fromkeys(skill.fields, "wow"))
        with pytest.raises(ConfigError, match=skill.name):
            skill.prompt(request="wow")
    assert not skills.SKILLS["condition"].taught


def test_lessons_err_at_the_rate_they_are_told() -> None:
    prompts = WORLD.prompts("train", 600, seed=3)

    def right(unreliable: float) -> tuple[float, float]:
        """Share of right verdicts, without and with reasons."""
        told, draw = {True: [0, 0], False: [0, 0]}, np.random.default_rng(4)
        for text, said in skills.lessons(WORLD, prompts, draw, unreliable=unreliable, answers=0.0, compared=0.0):
            if not text.endswith("?"):
                continue
            head, _, question = text.removesuffix(" ?").rpartition(" ; ")
            words = head.split()
            end = words.index(":") + 1
            prompt = WORLD.parse(" ".join(words[1:end]))
            reason = question.startswith("why ")
            truth = skills.ask(prompt, " ".join(words[end:]), question.removeprefix("why "), reason=reason)[1]
            told[reason][truth == said] += 1
        return told[False][1] / sum(told[False]), told[True][1] / sum(told[True])

    assert right(0.0) == (1.0, 1.0)
    plain, reasoned = right(0.15)
    assert plain == pytest.approx(0.85, abs=0.02) and reasoned == pytest.approx(0.95, abs=0.02)


def test_held_out_principles_are_never_taught() -> None:
    prompts = WORLD.prompts("train", 400, seed=3)
    said = " | ".join(text for text, _ in skills.lessons(WORLD, prompts, np.random.default_rng(0)))
    assert set(skills.HELD_OUT) < set(skills.PAIRS)
    assert not any(f" {pair} ?" in said for pair in skills.HELD_OUT)
    assert sum(f" {pair} ?" in said for pair in skills.PAIRS) == len(skills.PAIRS) - len(skills.HELD_OUT)


# ---------------------------------------------------------------------- the base that comes with it


@pytest.fixture(scope="module")
def base() -> NativePolicy:
    return NativePolicy.load(policy_path("base:attributes"))


def test_the_base_speaks_this_language(base: NativePolicy) -> None:
    assert base.tokenizer.encode(" ".join(WORDS)) == word_tokenizer(WORDS).encode(" ".join(WORDS))
    assert base.decoder.config.max_positions >= 160


def test_the_base_answers_at_mediocre_quality(base: NativePolicy) -> None:
    prompts = WORLD.prompts("eval", 48, seed=5)
    done = base.sample(prompts, 4, Sampling(max_tokens=WORLD.max_tokens), Tag(seed=5, round=0))
    judged = WORLD.gold([p for p in prompts for _ in range(4)], [c.text for c in done])
    values = np.array([f.value for f in judged], dtype=float).reshape(-1, 4)
    assert 0 < values.mean() < 0.45 and values.std(axis=1).mean() > 0.15
    assert (values > GOOD).mean() > 0.08


@pytest.mark.parametrize("principle", ["coverage", "polite", "clean"])
def test_the_base_knows_good_from_bad(base: NativePolicy, principle: str) -> None:
    prompts, draw = WORLD.prompts("eval", 40, seed=5), np.random.default_rng(0)
    texts = [WORLD.demonstration(p, draw, rates={principle: 0.5}) for p in prompts]
    asked = [skills.ask(p, t, principle) for p, t in zip(prompts, texts, strict=True)]
    encode = base.tokenizer.encode
    yes, no = (base.logprobs([(encode(text), encode(word)) for text, _ in asked]) for word in ("yes", "no"))
    says = ["yes" if y[0] > n[0] else "no" for y, n in zip(yes, no, strict=True)]
    assert np.mean([s == truth for s, (_, truth) in zip(says, asked, strict=True)]) > 0.8
