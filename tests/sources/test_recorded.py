"""Recorded judges, and the six of JudgeBench: order matters, and asking both ways helps."""

import gzip
import json
from functools import cache

import pytest

from triloop.records import Prompt
from triloop.sources.debias import BothOrders, KnownPair, measure_bias
from triloop.sources.panel import PairPanel
from triloop.sources.recorded import RecordedPairs

P = Prompt(id="p", text="")


def test_it_says_what_was_said_in_this_order():
    judge = RecordedPairs("old", {("p", "a", "b"): 1.0, ("p", "b", "a"): None, ("p", "a", "c"): 0.0})
    told = judge.compare([P] * 4, ["a", "b", "a", "c"], ["b", "a", "c", "a"])
    assert [f.value for f in told] == [1.0, None, 0.0, None]
    assert "then, too" in told[1].failure and "this order" in told[3].failure and told[2].source == "old"


SIGN = {"A>B": 1.0, "B>A": -1.0, "A=B": 0.0}


@cache
def judgebench(path):
    """(items, judges) of the recorded votes."""
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    truth = {r["pair_id"]: SIGN[r["label"]] for r in rows}
    items = [KnownPair(prompt=Prompt(id=i, text=""), first="A", second="B", truth=t) for i, t in truth.items()]
    votes = {}
    for r in rows:
        mine = votes.setdefault(r["judge"], {})
        mine[r["pair_id"], "A", "B"] = SIGN.get(r["decision_ab"])
        mine[r["pair_id"], "B", "A"] = SIGN.get(r["decision_ba_swapped"])
    return items, [RecordedPairs(name, verdicts) for name, verdicts in votes.items()]


@pytest.fixture
def bench(shared):
    path = shared / "judgebench_votes" / "votes_gpt4o_pairs.jsonl.gz"
    if not path.is_file():
        pytest.skip("the recorded votes are not there")
    return judgebench(path)


def test_each_judges_position_bias_is_what_its_rows_say(bench):
    items, judges = bench
    assert len(items) == 350 and len(judges) == 6
    for judge in judges:
        report = measure_bias(judge, items)
        rows = [(judge._verdicts[x.prompt.id, "A", "B"], judge._verdicts[x.prompt.id, "B", "A"]) for x in items]
        whole = [(a, b) for a, b in rows if a is not None and b is not None]
        assert report.n == len(whole)
        assert report.position.value == pytest.approx(sum(a + b for a, b in whole) / 2 / len(whole))
        assert report.flips.value == pytest.approx(sum(a * b > 0 for a, b in whole) / len(whole))
        assert measure_bias(BothOrders(judge), items).position.value == 0.0


def test_a_panel_in_both_orders_is_not_worse_than_its_median_member(bench):
    items, judges = bench
    alone = sorted(measure_bias(j, items).accuracy.value for j in judges)
    both = [BothOrders(j) for j in judges]
    for rule in ("majority", "crowd"):
        together = measure_bias(PairPanel(both, rule=rule), items)
        assert together.accuracy.value > alone[2], (rule, together, alone)
