import pytest

from triloop.errors import ConfigError
from triloop.records import Feedback, Prompt
from triloop.sources.judge import EnvJudge
from triloop.sources.panel import PairPanel, Panel, combine


def f(value, source="", **fields):
    return Feedback(value=value, source=source, **fields)


class Says:
    """A judge that gives these values, in order; None is a failure."""

    def __init__(self, name, *values, **fields):
        self.name, self.values, self.fields = name, values, fields

    def judge(self, prompts, texts):
        return [
            f(v, self.name, **self.fields) if v is not None else f(None, self.name, failure="no network", cost=1.0)
            for v in self.values
        ]

    def compare(self, prompts, firsts, seconds):
        return self.judge(prompts, firsts)


def panel(*rows, pairs=False, **how):
    judges = [Says(f"j{i}", *values) for i, values in enumerate(rows)]
    n = len(rows[0])
    prompts = [Prompt(id=str(i), text="") for i in range(n)]
    return (
        PairPanel(judges, **how).compare(prompts, [""] * n, [""] * n)
        if pairs
        else Panel(judges, **how).judge(prompts, [""] * n)
    )


def test_all_takes_the_lowest():
    out = combine([f(1.0, "format"), f(-1.0, "sum", reason="7 is not 8", cost=2.0), f(0.0, "c")], source="both")
    assert (out.value, out.reason, out.source, out.cost) == (-1.0, "7 is not 8", "both", 2.0)
    assert dict(out.breakdown) == {"format": 1.0, "sum": -1.0, "c": 0.0}
    assert out.kind == "ternary"


def test_mean_weighs_by_confidence_and_doubts_where_members_differ():
    out = combine([f(1.0, "a", confidence=0.75), f(-1.0, "b", confidence=0.25)], rule="mean")
    assert (out.value, out.kind) == (0.5, "scalar")
    # own confidence 0.5; mean distance from 0.5 is 0.75 * 0.5 + 0.25 * 1.5 = 0.75, half of it is doubt
    assert out.confidence == pytest.approx(0.5 * (1 - 0.375))
    assert combine([f(1.0, "a"), f(1.0, "b")], rule="mean").confidence == 1.0
    assert combine([f(1.0, "a", confidence=0.0)], rule="mean").value == 0.0


@pytest.mark.parametrize("rule", ["all", "mean", "majority"])
def test_a_failure_is_never_a_score(rule):
    out = combine([f(1.0, "a"), f(None, "b", failure="no network")], rule=rule)
    assert (out.value, out.failure) == (None, "b: no network")
    assert combine([], rule=rule).value is None
    assert combine([f(1.0, "a"), f(None, "b", kind="text")], rule=rule).failure == "b: text has no number"


class Env:
    name = "toy"

    def judge(self, prompts, texts):
        return [f(1.0 if "a" in t else -1.0, "env:toy") for t in texts]


class Length:
    name = "length"

    def judge(self, prompts, texts):
        return [f(1.0 if len(t) < 4 else -1.0, self.name) for t in texts]


def test_panel_of_an_environment_and_a_rule():
    both = Panel([EnvJudge(Env()), Length()])
    prompts = [Prompt(id=str(i), text="") for i in range(3)]
    assert [x.value for x in both.judge(prompts, ["a", "b", "aaaa"])] == [1.0, -1.0, -1.0]
    assert both.name == "all(env:toy, length)"


def test_majority_and_its_confidence():
    out = panel([1.0, 1.0, 0.3], [1.0, -1.0, -0.9], [-0.2, 0.0, 0.0], rule="majority")
    assert [x.value for x in out] == [1.0, 0.0, 0.0]
    assert [x.confidence for x in out] == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    weighed = panel([1.0], [-1.0], [-1.0], rule="majority", weights={"j0": 3.0})
    assert weighed[0].value == 1.0 and weighed[0].confidence == pytest.approx(0.6)


def test_quorum():
    rows = ([1.0, 1.0], [1.0, None], [None, None])
    out = panel(*rows, rule="majority")
    assert out[0].value == 1.0 and out[0].cost == 1.0, "two of three are a quorum, and the failed one still costs"
    assert out[1].value is None and out[1].failure == "1 of 3 judged and the quorum is 2; j1: no network"
    assert panel(*rows, rule="majority", quorum=1)[1].value == 1.0
    assert panel(*rows, rule="all")[0].value is None, "accepted by all means by all"
    assert panel([None], [None], rule="mean", quorum=1)[0].failed


def test_crowd_learns_who_can_be_trusted():
    """Three good judges and four that agree with each other on nonsense... a majority is fooled less often than half."""
    from triloop import rng

    draw = rng.generator(0, "panel")
    truth = [1.0 if u < 0.5 else -1.0 for u in draw.random(200)]

    def votes(right):
        return [t if u < right else -t for t, u in zip(truth, draw.random(200), strict=True)]

    rows = [votes(0.95), votes(0.9), votes(0.55), votes(0.55), votes(0.55)]
    right = {
        rule: sum(x.value == t for x, t in zip(panel(*rows, rule=rule), truth, strict=True)) / 200
        for rule in ("majority", "crowd")
    }
    assert right["crowd"] > 0.93 and right["crowd"] > right["majority"] + 0.05, right


def test_lineage_and_consent_are_kept():
    judges = [
        Says("a", 1.0, parents=("f1", "f2"), about=("c",), consent="research"),
        Says("b", 1.0, parents=("f2", "f3")),
    ]
    (out,) = Panel(judges, rule="mean").judge([Prompt(id="0", text="")], [""])
    assert (out.parents, out.about, out.consent) == (("f1", "f2", "f3"), ("c",), "research")


def test_pairs():
    out = panel([0.8, 0.8, None], [0.4, -0.4, 0.5], [0.6, 0.1, -0.5], pairs=True, rule="all", quorum=2)
    assert [(x.value, x.kind) for x in out] == [(0.4, "pair"), (0.0, "pair"), (0.0, "pair")]
    mean = panel([0.8], [0.4], [-0.6], pairs=True, rule="mean")
    assert mean[0].value == pytest.approx(0.2)
    assert panel([0.8], [0.4], [-0.6], pairs=True)[0].value == 1.0


@pytest.mark.parametrize(
    ("how", "wrong"),
    [
        ({"rule": "most"}, "rule"),
        ({"quorum": 3}, "quorum"),
        ({"quorum": 0}, "quorum"),
        ({"rule": "mean", "weights": {"z": 1.0}}, "weights"),
        ({"rule": "mean", "weights": {"j0": -1.0}}, "weights"),
        ({"rule": "all", "weights": {"j0": 1.0}}, "does not read weights"),
    ],
)
def test_wrong_panels(how, wrong):
    with pytest.raises(ConfigError, match=wrong):
        panel([1.0], [1.0], **how)


def test_no_judges_and_namesakes():
    with pytest.raises(ConfigError, match="at least one"):
        Panel([])
    with pytest.raises(ConfigError, match="a name of its own"):
        Panel([Says("a", 1.0), Says("a", 1.0)])
