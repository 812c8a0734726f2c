import pytest

from triloop.errors import ConfigError
from triloop.records import Feedback, Prompt
from triloop.sources.judge import EnvJudge, Panel, combine


def f(value, source, **fields):
    return Feedback(value=value, source=source, **fields)


def test_all_takes_the_lowest():
    out = combine([f(1.0, "format"), f(-1.0, "sum", reason="7 is not 8", cost=2.0), f(0.0, "c")], source="both")
    assert (out.value, out.reason, out.source, out.cost) == (-1.0, "7 is not 8", "both", 2.0)
    assert dict(out.breakdown) == {"format": 1.0, "sum": -1.0, "c": 0.0}
    assert out.kind == "ternary"


def test_mean_weighs_by_confidence():
    out = combine([f(1.0, "a", confidence=0.75), f(-1.0, "b", confidence=0.25)], rule="mean")
    assert (out.value, out.kind, out.confidence) == (0.5, "scalar", 0.5)
    assert combine([f(1.0, "a", confidence=0.0)], rule="mean").value == 0.0


@pytest.mark.parametrize("rule", ["all", "mean"])
def test_a_failure_is_never_a_score(rule):
    out = combine([f(1.0, "a"), f(None, "b", failure="no network")], rule=rule)
    assert (out.value, out.failure) == (None, "b: no network")
    assert combine([], rule=rule).value is None


class Length:
    name = "length"

    def judge(self, prompts, texts):
        return [f(1.0 if len(t) < 4 else -1.0, self.name) for t in texts]


class Env:
    name = "toy"

    def judge(self, prompts, texts):
        return [f(1.0 if "a" in t else -1.0, "env:toy") for t in texts]


def test_panel_of_an_environment_and_a_rule():
    panel = Panel([EnvJudge(Env()), Length()])
    prompts = [Prompt(id=str(i), text="") for i in range(3)]
    assert [x.value for x in panel.judge(prompts, ["a", "b", "aaaa"])] == [1.0, -1.0, -1.0]
    assert panel.name == "all(env:toy, length)"
    with pytest.raises(ConfigError, match="at least one"):
        Panel([])
