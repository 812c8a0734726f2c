from collections import Counter

import pytest

from triloop.errors import DataError
from triloop.sources.attribute_asking import RULES
from triloop.sources.constitution import Constitution, Principle, parse_constitution, read_constitution

GOOD = """
name: house rules
principles:
  - name: polite
    text: The response is polite.
    question: Is it rude?
    wanted: no
    weight: 3
  - {name: short, text: The response is short., critique: what is too long, revision: fewer words}
"""


def test_reads_what_it_says(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(GOOD)
    rules = read_constitution(path)
    polite, short = rules.principles
    assert (rules.name, polite.asked, polite.wanted, polite.weight) == ("house rules", "Is it rude?", False, 3.0)
    assert (polite.sought, polite.aim) == ("The response is polite.", "The response is polite.")
    assert short.asked.endswith("The response is short.") and short.wanted
    assert (short.sought, short.aim) == ("what is too long", "fewer words")
    assert parse_constitution(GOOD.replace("name: house rules\n", ""), where="f.yaml").name == "f.yaml"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a: [", "not YAML"),
        ("- x", "is list"),
        ("", "is NoneType"),
        ("principles: {}", "expected a list"),
        ("principles: polite", "expected a list"),
        ("principles: []", "no principles"),
        ("principles: [polite]", "principle 1 is str"),
        ("principles: [{name: a}]", "principle 1 has no `text`"),
        ("principles: [{name: a, text: 3}]", "text is int"),
        ("principles: [{name: yes, text: b}]", "name is bool"),
        ("principles: [{name: a, text: b, wheight: 2}]", "has wheight; known are"),
        ("principles: [{name: a, text: b, weight: heavy}]", "weight is 'heavy'"),
        ("principles: [{name: a, text: b, weight: true}]", "weight is True"),
        ("principles: [{name: a, text: b, weight: 0}]", "weight 0.0"),
        ("principles: [{name: a, text: b, weight: .nan}]", "weight nan"),
        ("principles: [{name: a, text: b, wanted: maybe}]", "wanted is str"),
        ("principles: [{name: a, text: ' '}]", "needs a name and a text"),
        ("principles: [{name: a, text: b}, {name: a, text: c}]", "names a twice"),
        ("rules: 1\nprinciples: [{name: a, text: b}]", "has rules"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_malformed_file_says_where(text, wrong):
    with pytest.raises(DataError, match=wrong) as error:
        parse_constitution(text, where="f.yaml")
    assert "f.yaml" in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot read the constitution"):
        read_constitution(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read the constitution"):
        read_constitution(tmp_path / "bad.yaml")


def test_drawing_follows_the_weights_and_the_path_alone():
    rules = parse_constitution(GOOD)
    drawn = Counter(rules.draw(0, f"p{i}").name for i in range(2000))
    assert 1440 < drawn["polite"] < 1560  # 1500 +- 3 standard deviations of 19
    assert rules.draw(0, "p1") == rules.draw(0, "p1")
    assert [rules.draw(0, k).name for k in range(50)] != [rules.draw(1, k).name for k in range(50)]


def test_choosing_by_name():
    assert [p.name for p in RULES.named("clean", "polite").principles] == ["clean", "polite"]
    with pytest.raises(DataError, match="no principle 'kind'"):
        RULES.named("kind")


def test_a_single_principle_is_drawn_always():
    one = Constitution(name="one", principles=(Principle(name="a", text="b"),))
    assert {one.draw(k).name for k in range(20)} == {"a"}


def test_the_attribute_worlds_own():
    assert [p.name for p in RULES.principles] == ["coverage", "grounded", "polite", "clean", "concise", "fluent"]
    assert sum(p.weight for p in RULES.principles) == pytest.approx(1.0)
