import math
import time
from dataclasses import replace

import pytest

from triloop.guards.measure import distinct_n, failure_share, measure, template_share, truncated_share, zero_std_share
from triloop.records import Completion, Episode, Feedback, Prompt


def episode(prompt, index, reward, tokens=(1, 2, 3), text="", finish="stop", round=0):
    c = Completion(
        id=f"{round}/{prompt}/{index}",
        prompt_id=prompt,
        round=round,
        index=index,
        prompt_tokens=(),
        tokens=tokens,
        logps=(0.0,) * len(tokens),
        mask=(True,) * len(tokens),
        text=text,
        finish=finish,
        policy_version=0,
    )
    f = Feedback(value=reward, failure="x" if reward is None else None)
    return Episode(prompt=Prompt(id=prompt, text=""), completion=c, feedback=(f,), reward=reward)


def test_distinct_by_hand():
    assert distinct_n([[1, 2, 3], [1, 2, 4]], 2) == 3 / 4
    assert distinct_n([[1, 1, 1, 1]], 2) == 1 / 3
    assert distinct_n([[1, 2], [2, 1]], 1) == 2 / 4
    assert math.isnan(distinct_n([[1], []], 2))


def test_templates_by_hand():
    texts = ["12 + 5 = 17", "3 +  4 = 7", "no idea", "Anna saw Tim."]
    assert template_share(texts) == 2 / 4
    assert template_share(["Anna saw a cat.", "Billy saw a cat.", "Anna saw a dog."]) == pytest.approx(2 / 3)
    assert math.isnan(template_share([]))


def test_groups_without_spread():
    rows = [
        ("a", 1.0),
        ("a", 1.0),
        ("b", 1.0),
        ("b", -1.0),
        ("c", 0.3),
        ("c", 0.1 + 0.2),
        ("d", 1.0),
        ("e", None),
        ("e", 1.0),
    ]
    episodes = [episode(p, i, r) for i, (p, r) in enumerate(rows)]
    assert zero_std_share(episodes) == pytest.approx(2 / 3)  # a and c; d and e have one judged sample
    assert math.isnan(zero_std_share(episodes[6:7]))
    # the same prompt drawn again in another round is another group
    assert zero_std_share([episode("a", 0, 1.0), episode("a", 1, 1.0), episode("a", 0, -1.0, round=1)]) == 1.0


def test_measure_by_hand():
    episodes = [
        episode("a", 0, 1.0, tokens=(1, 2), text="x"),
        episode("a", 1, -1.0, tokens=(1, 2, 3, 4), text="y", finish="length"),
        episode("b", 0, None, text="y"),
        episode("b", 1, 1.0, text="z"),
    ]
    found = measure(episodes)
    assert found == {
        "length": 3.0,
        "truncated_share": 0.25,
        "distinct_2": pytest.approx(3 / 8),
        "template_share": 0.5,
        "zero_std_share": 0.0,
        "judge_failures": 0.25,
        "reward": pytest.approx(1 / 3),
        "reward_std": pytest.approx(math.sqrt(8 / 9)),
    }
    assert measure([]) == {}
    only_failed = measure([episode("a", 0, None, tokens=())])
    assert only_failed == {"length": 0.0, "truncated_share": 0.0, "template_share": 1.0, "judge_failures": 1.0}


def test_what_the_environment_inserted_is_not_the_policys():
    e = episode("a", 0, 1.0, tokens=(1, 2, 9, 9, 9, 1, 2))
    e = replace(e, completion=replace(e.completion, mask=(True, True, False, False, False, True, True)))
    assert measure([e])["length"] == 4.0
    assert measure([e])["distinct_2"] == 2 / 3


def test_shares_of_nothing():
    assert math.isnan(truncated_share([]))
    assert math.isnan(failure_share([]))
    no_judge = replace(episode("a", 0, 1.0), feedback=())
    assert failure_share([no_judge]) == 1.0


def test_speed():
    text = "One day, Anna went to play outside with 3 friends. " * 8
    tokens = tuple(i * 7919 % 512 for i in range(96))
    episodes = [episode(f"p{i // 8}", i % 8, float(i % 3 - 1), tokens=tokens, text=text) for i in range(256)]
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        measure(episodes)
        best = min(best, time.perf_counter() - start)
    assert best < 0.05  # about 8 ms on an idle machine
