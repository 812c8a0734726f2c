import pytest

from sources.judging import TEMPLATES, Fake, ask
from triloop.errors import ConfigError
from triloop.feedback.kinds import Edit, Text, read
from triloop.sources.constitution import Constitution, Principle
from triloop.sources.lm_critic import PolicyCritic, PolicyReviser, Writing, improve_by_critique

WRITING = Writing(templates=TEMPLATES)
POLITE = Principle(name="polite", text="polite", critique="rude", revision="polite")


def writer(prompt, index):
    """Finds fault with blue, then with long; mends what is named."""
    if prompt.endswith("fix"):
        text = prompt.split(" ; ")[1]
        return text.replace("blue", "long") if "bad" in prompt else text.replace("long", "red")
    text = prompt.split(" ; ")[1]
    return "bad blue" if "blue" in text else "long" if "long" in text else "good"


def test_critiques():
    model = Fake(writes=writer)
    blue, red = PolicyCritic(model, POLITE, WRITING).critique(ask(2, "x"), ["blue", "red"])
    assert read(blue) == Text("bad blue", -1) and read(red) == Text("good", 1)
    assert (blue.kind, blue.value, blue.source, blue.reason) == ("text", None, "critic:polite", "polite")


def test_critics_and_revisers_are_told_what_is_theirs():
    seen = []
    model = Fake(writes=lambda prompt, i: seen.append(prompt) or "x")
    critic, reviser = PolicyCritic(model, POLITE, WRITING), PolicyReviser(model, POLITE, WRITING)
    critic.critique(ask(1, "x"), ["y"])
    reviser.revise(ask(1, "x"), ["y"], ["it long"])
    assert seen == ["x ; y ; rude bad ?", "x ; y ; it long fix"]


def test_revisions():
    model = Fake(writes=writer)
    reviser = PolicyReviser(model, POLITE, WRITING)
    mended, kept = reviser.revise(ask(2, "x"), ["blue x", "red"], ["bad blue", "good"])
    assert read(mended) == Edit("long x", by="reviser:polite")
    assert read(kept) == Edit("red", by="reviser:polite") and kept.cost == 0
    assert model.sampled == [1], "praise asks for nothing"


def test_what_cannot_be_read_is_a_failure():
    replies = {"red": "", "blue": "bad|", "long": "bad it", "x": "fix rude", "y": RuntimeError("no memory")}
    model = Fake(writes=lambda prompt, i: replies[prompt.split(" ; ")[1]])
    how = Writing(templates=TEMPLATES, form="fix (?P<text>.*)")
    out = PolicyCritic(model, POLITE, how).critique(ask(5, "x"), list(replies))
    assert [f.failed for f in out] == [True, True, True, False, True]
    for f, part in zip(out, ["is not of the form", "did not end", "is not of the form", "", "no memory"], strict=True):
        assert part in (f.failure or "")
    assert read(out[3]) == Text("rude", -1)
    assert "is empty" in PolicyCritic(model, POLITE, WRITING).critique(ask(1, "x"), ["red"])[0].failure
    with pytest.raises(ConfigError, match="regular expression"):
        Writing(form="(")


def test_rounds_stop_at_praise_and_at_failures():
    model = Fake(writes=lambda p, i: "" if "sorry" in p else writer(p, i))
    critic, reviser = PolicyCritic(model, POLITE, WRITING), PolicyReviser(model, POLITE, WRITING)
    texts = ["blue", "red", "sorry"]
    one = improve_by_critique(critic, reviser, ask(3, "x"), texts, rounds=1)
    assert [r.text for r in one] == ["long", "red", "sorry"]
    three = improve_by_critique(critic, reviser, ask(3, "x"), texts, rounds=3)
    blue, red, sorry = three
    assert blue.texts == ("blue", "long", "red") and blue.stopped == "praised"
    assert (len(blue.critiques), len(blue.edits)) == (3, 2)
    assert red.texts == ("red",) and red.stopped == "praised"
    assert sorry.texts == ("sorry",) and sorry.stopped.startswith("critique: ")
    assert [r.texts for r in improve_by_critique(critic, reviser, ask(3, "x"), texts, rounds=0)] == [
        (t,) for t in texts
    ]


def test_rounds_of_the_loop_draw_anew_and_replay_alike():
    rules = Constitution(name="rules", principles=(POLITE, Principle(name="long", text="long")))
    model = Fake(writes=writer)

    def drawn(round):
        critic = PolicyCritic(model, rules, Writing(templates=TEMPLATES, round=round))
        return [f.reason for f in critic.critique(ask(40, "x"), ["blue"] * 40)]

    assert drawn(0) == drawn(0) != drawn(1)
    assert {t.round for t in model.tags} == {0, 1}
