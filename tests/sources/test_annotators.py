"""Simulated people as sources: every protocol, on a tiny fake and on the attribute world."""

from dataclasses import dataclass

import numpy as np
import pytest

from triloop.envs.attributes import Attributes
from triloop.feedback.kinds import Edit, Pair, Ranking, Rubric, Scalar, Spans, Ternary, Text, read
from triloop.feedback.simulate import FIRST, Annotator, population
from triloop.records import Prompt
from triloop.sources.annotators import Person, features
from triloop.sources.panel import Panel

PROMPT = Prompt(id="p", text="say hi")


@dataclass(frozen=True, kw_only=True)
class Place:
    attribute: str
    start: int
    end: int
    sign: int
    note: str


class Fake:
    """kind: has `hi`; clean: has no `ugh`."""

    def attributes(self, prompt, text):
        if text == "boom":
            raise RuntimeError("no such text")
        return {"kind": float("hi" in text.split()), "clean": float("ugh" not in text.split())}

    def defects(self, prompt, text):
        found = [Place(attribute="kind", start=0, end=len(text), sign=-1, note="no hi")] if "hi" not in text else []
        at = text.find("ugh")
        return [*found, *([Place(attribute="clean", start=at, end=at + 3, sign=-1, note="ugh")] if at >= 0 else [])]

    def revise(self, prompt, text, attributes=None):
        words = text.split()
        if attributes is None or "clean" in attributes:
            words = [w for w in words if w != "ugh"]
        if (attributes is None or "kind" in attributes) and "hi" not in words:
            words = ["hi", *words]
        return " ".join(words)


EVEN = {"kind": 1.0, "clean": 1.0}


def person(kind="scalar", **fields):
    fields = {"name": "eve", "weights": EVEN, "cost": 1.5} | fields
    return Person(Fake(), Annotator(**fields), kind=kind)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("scalar", Scalar(0.0)),
        ("ternary", Ternary(0)),
        ("rubric", Rubric({"kind": 1, "clean": -1})),
        ("text", Text("ugh", -1)),
        ("edit", Edit("hi you", "person:eve")),
    ],
)
def test_each_kind_says_what_is_so(kind, content):
    (f,) = person(kind, abstain=0.1).judge([PROMPT], ["hi ugh you"])
    assert read(f) == content
    assert (f.source, f.cost, f.consent, f.time) == ("person:eve", 1.5, "simulated", None)


def test_spans_point_into_the_text():
    (f,) = person("spans").judge([PROMPT], ["hi ugh you"])
    content = read(f)
    assert isinstance(content, Spans)
    (span,) = content.spans
    assert ("hi ugh you"[span.start : span.end], span.sign, span.note) == ("ugh", -1, "ugh")


def test_pairs_rankings_critiques_and_revisions():
    eve = person()
    first, second = eve.compare([PROMPT, PROMPT], ["hi", "ugh"], ["you", "so ugh"])
    assert read(first) == Pair(1, 0.5)
    assert read(second) == Pair(0)
    assert read(eve.rank([PROMPT], [["ugh", "hi", "hi ugh", "you"]])[0]) == Ranking(((1,), (2, 3), (0,)))
    assert read(eve.critique([PROMPT], ["ugh"])[0]) == Text("no hi ; ugh", -1)
    assert read(eve.critique([PROMPT], ["hi"])[0]) == Text("good", 1)
    told = eve.revise([PROMPT] * 4, ["ugh"] * 4, ["ugh", "no hi ; ugh", "", "too blue"])
    assert [read(f).revised for f in told] == ["", "hi", "hi", "ugh"]


def test_nobody_minds_what_has_no_weight():
    eve = person(weights={"clean": 1.0})
    assert read(eve.critique([PROMPT], ["ugh"])[0]) == Text("ugh", -1)
    assert read(eve.revise([PROMPT], ["ugh you"], [""])[0]).revised == "you"


def test_a_failure_is_a_feedback_and_its_siblings_go_on():
    broken, fine = person().judge([PROMPT, PROMPT], ["boom", "hi"])
    assert (broken.value, broken.failed, broken.failure) == (None, True, "RuntimeError: no such text")
    assert fine.value == 1.0
    assert person().compare([PROMPT], ["boom"], ["hi"])[0].failed


def test_time_is_the_clock_and_the_delay():
    slow = Person(Fake(), Annotator(name="s", weights=EVEN, delay=10.0), clock=lambda: 1000.0)
    times = [f.time for f in slow.judge([PROMPT] * 50, [f"hi {i}" for i in range(50)])]
    assert all(t is not None and t > 1000.0 for t in times)
    assert len(set(times)) == 50
    assert times == [f.time for f in slow.judge([PROMPT] * 50, [f"hi {i}" for i in range(50)])]


def test_features():
    assert features("wow a great fox") == {"length": 0.4, "distractor": 2.0}


# ---------------------------------------------------------------------- the attribute world


@pytest.fixture(scope="module")
def world():
    return Attributes()


def drawn(world, n=60):
    prompts = world.prompts("train", n, seed=0)
    g = np.random.default_rng(0)
    rates = dict.fromkeys(("coverage", "grounded", "polite", "clean", "concise", "fluent"), 0.4)
    return prompts, [world.demonstration(p, g, rates=rates) for p in prompts]


def test_a_perfect_person_agrees_with_gold(world):
    prompts, texts = drawn(world)
    perfect = Person(world, Annotator(name="perfect", weights=world.weights))
    gold = world.gold(prompts, texts)
    assert [f.value for f in perfect.judge(prompts, texts)] == pytest.approx([f.value for f in gold])
    assert [read(f).critique for f in perfect.critique(prompts, texts)] == [f.reason for f in gold]
    told = perfect.revise(prompts, texts, [f.reason for f in gold])
    better = [world.verify(p, read(f).revised).value for p, f in zip(prompts, told, strict=True)]
    assert all(b >= f.value for b, f in zip(better, gold, strict=True))
    assert sum(better) / len(better) > 0.95
    compared = perfect.compare(prompts, [read(f).revised for f in told], texts)
    assert all(c.value > 0 for c, f in zip(compared, gold, strict=True) if f.value < 0.95 and c.value != 0)


def test_a_dazzled_person_pays_for_distractors_that_gold_does_not(world):
    (prompt,) = world.prompts("train", 1, seed=0)
    plain = world.right_answer(prompt)
    dressed = plain.replace(" .", " , wow .")
    judged = world.gold([prompt] * 2, [plain, dressed])
    assert judged[0].value == judged[1].value
    dazzled = Person(world, Annotator(name="d", weights=world.weights, bias={"distractor": 0.5}))
    assert dazzled.compare([prompt], [dressed], [plain])[0].value > 0
    swayed = Person(world, Annotator(name="f", weights=world.weights, bias={FIRST: 0.2}))
    assert swayed.compare([prompt], [plain], [dressed])[0].value > 0
    assert swayed.compare([prompt], [dressed], [plain])[0].value > 0


def test_careful_people_on_a_panel_come_close_to_gold(world):
    prompts, texts = drawn(world, 20)
    people = population(4, weights=world.weights, seed=2, personas={"careful": 1.0})
    panel = Panel([Person(world, a) for a in people], rule="mean")
    values = [f.value for f in panel.judge(prompts, texts)]
    gold = [f.value for f in world.gold(prompts, texts)]
    assert np.corrcoef(values, gold)[0, 1] > 0.9


@pytest.mark.parametrize("text", ["", "   ", "wow wow", "tell fox red :"])
def test_no_text_is_a_failure(world, text):
    (prompt,) = world.prompts("train", 1, seed=0)
    for kind in ("scalar", "ternary", "rubric", "spans", "text", "edit"):
        (f,) = Person(world, Annotator(name="a", weights=world.weights), kind=kind).judge([prompt], [text])
        assert not f.failed, (kind, f.failure)
