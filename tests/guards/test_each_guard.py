"""Each guard's own rule, on the few rounds that show it."""

import pytest

from guards.trajectories import episode
from triloop.errors import ConfigError
from triloop.guards.base import Watch
from triloop.guards.canary import Canary
from triloop.guards.collapse import Collapse
from triloop.guards.counter import Counter
from triloop.guards.diversity import Diversity
from triloop.guards.entropy import Entropy
from triloop.guards.failures import Failures
from triloop.guards.finite import Finite
from triloop.guards.fluency import Fluency
from triloop.guards.kl import KLCeiling
from triloop.guards.length import Length
from triloop.guards.samples import Samples
from triloop.guards.spread import Spread


def says(guard, episodes=(), **columns):
    """(value, action) of a guard after rounds given as columns; None is "not measured"."""
    rounds = max((len(c) for c in columns.values()), default=1)
    rows = [{k: c[t] for k, c in columns.items() if t < len(c) and c[t] is not None} for t in range(rounds)]
    verdict = guard.check(Watch(round=rounds - 1, metrics=rows[-1], history=rows[:-1], episodes=episodes))
    return verdict.value, verdict.action


def test_kl():
    g = KLCeiling()
    assert says(g, kl=[0.1, 0.1]) == (0, "none")
    assert says(g, kl=[0.1, 0.3, 0.3]) == (1, "none")
    assert says(g, kl=[1.2, 1.2, 1.2]) == (-1, "tighten")
    assert says(g, kl=[0.1, 0.1, 9.0]) == (-1, "tighten")  # one round above the hard ceiling is an outlier
    assert says(g, kl=[3.1, 4.0, 5.0]) == (-1, "stop")
    with pytest.raises(ConfigError, match="soft KL"):
        KLCeiling(soft=4.0)


def test_entropy():
    g = Entropy()
    low = [0.4] * 3 + [0.02] * 27
    assert says(g, entropy=low, reward=[-0.5] * 30) == (-1, "note")
    assert says(g, entropy=low, reward=[0.9] * 30) == (1, "none")  # solved
    assert says(g, entropy=low, reward=[-0.9 + 0.03 * t for t in range(30)]) == (1, "none")  # still rising
    assert says(g, entropy=[0.4] * 30, reward=[-0.5] * 30) == (1, "none")
    assert says(g, entropy=[0.4] * 20 + [1.5] * 10, reward=[-0.5] * 30) == (-1, "warn")
    assert says(g, entropy=[0.4] * 5, reward=[0.0] * 5) == (0, "none")


def test_counter():
    g = Counter()
    up, level = [0.1 * t for t in range(6)], [0.3] * 6
    assert says(g, reward=up) == (0, "none")  # nothing is counted
    assert says(g, reward=up[:5], counter_clean=[0.9, 0.9, 0.9, 0.1, 0.1]) == (0, "none")  # too early
    assert says(g, reward=up, counter_clean=[0.9] * 3 + [0.75] * 3) == (-1, "stop")
    assert says(g, reward=up, counter_clean=[0.9] * 3 + [0.85] * 3) == (1, "none")
    assert says(g, reward=level, counter_clean=[0.9] * 3 + [0.75] * 3) == (1, "none")  # nobody was paid for it
    assert says(g, reward=up, counter_clean=[0.9] * 3 + [0.6, 0.6, 0.9]) == (1, "none")  # put back since
    assert says(g, reward=up, counter_clean=[0.9] * 6, counter_plain=[1.0] * 3 + [0.5] * 3) == (-1, "stop")
    seen = Watch(round=5, metrics={"reward": 0.5, "counter_plain": 0.5, "counter_clean": 0.7},
                 history=[{"reward": 0.0, "counter_plain": 1.0, "counter_clean": 0.9}] * 5)  # fmt: skip
    verdict = Counter(rounds=1).check(seen)
    assert verdict.reason == "plain fell from 1.00 to 0.50 while the reward rose by 0.50", "the one that fell most"
    assert verdict.measured["clean_lost"] == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="fall is a share"):
        Counter(fall=1.5)


def test_length():
    g = Length()
    long, cut = [20.0] * 10 + [60.0] * 20, [0.0] * 10 + [0.5] * 20
    assert says(g, length=long, reward=[0.0] * 30) == (-1, "warn")
    assert says(g, length=long, reward=[0.0] * 10 + [0.4] * 20) == (1, "none")  # earned
    assert says(g, length=[20.0] * 30, truncated_share=cut, reward=[0.0] * 30) == (-1, "warn")
    assert says(g, length=[20.0] * 30, reward=[0.0] * 30) == (1, "none")


def test_collapse():
    g = Collapse()
    falls = [0.0] * 10 + [-0.9] * 6
    up = [0.3] * 10 + [0.6] * 6
    assert says(g, reward=falls, entropy=up) == (-1, "stop")
    assert says(g, reward=falls, entropy=[0.3] * 16) == (-1, "warn")
    assert says(g, reward=falls[:14], entropy=up[:14]) == (1, "none")  # four rounds may heal
    assert says(g, reward=falls, entropy=up, canary_gold=[0.5] * 16) == (0, "none")  # only the prompts got harder
    assert says(g, reward=falls, entropy=up, canary_gold=[0.5] * 10 + [0.05] * 6) == (-1, "stop")
    assert says(g, reward=[-0.96] * 10 + [-1.0] * 6, entropy=up) == (1, "none")  # never had anything to lose


def test_spread():
    g = Spread()
    assert says(g, zero_std_share=[0.95] * 5, reward=[-0.9] * 5) == (-1, "note")
    assert says(g, zero_std_share=[0.95] * 5, reward=[0.9] * 5) == (1, "none")
    assert says(g, zero_std_share=[0.5] * 5, reward=[-0.9] * 5) == (1, "none")
    assert says(g, zero_std_share=[0.95] * 4, reward=[-0.9] * 4) == (0, "none")


def test_diversity():
    g = Diversity()
    alike = [0.1] * 5 + [0.9] * 25
    assert says(g, template_share=alike, reward=[0.9] * 30) == (1, "none")  # exact answers look alike
    assert says(g, template_share=alike, reward=[-0.5] * 30) == (-1, "note")
    assert says(g, template_share=alike, reward=[0.9] * 30, ppl_original=[3.0] * 5 + [5.0] * 25) == (-1, "warn")
    assert says(g, template_share=alike, reward=[0.9] * 30, canary_gold=[0.6] * 5 + [0.2] * 25) == (-1, "warn")
    assert says(g, distinct_2=[0.5] * 5 + [0.1] * 25, reward=[-0.5] * 30) == (-1, "note")
    assert says(g, template_share=[0.9] * 30, reward=[-0.5] * 30) == (1, "none")  # alike from the start


def test_canary_gap():
    g = Canary()
    n = [128.0] * 8
    assert says(g, canary_proxy=[0.3], canary_gold=[0.3], canary_n=n[:1]) == (0, "none")
    assert says(g, canary_proxy=[0.9], canary_gold=[0.3], canary_n=n[:1]) == (-1, "warn")
    assert says(g, canary_proxy=[0.3, 0.6], canary_gold=[0.3, 0.6], canary_n=n[:2]) == (1, "none")
    assert says(g, canary_proxy=[0.0, 0.22], canary_gold=[0.0, 0.02], canary_n=n[:2]) == (-1, "stop")
    assert says(g, canary_proxy=[0.0, 0.14], canary_gold=[0.0, 0.0], canary_n=n[:2]) == (-1, "warn")
    # the same rates on ten completions prove nothing
    assert says(g, canary_proxy=[0.0, 0.22], canary_gold=[0.0, 0.02], canary_n=[10.0, 10.0]) == (1, "none")
    assert says(g, canary_proxy=[0.6, 0.6], canary_gold=[0.4, 0.4], canary_n=n[:2]) == (1, "none")  # always lenient
    # measured every other round; rounds without it say nothing
    assert says(g, canary_proxy=[0.0, None, 0.3, None], canary_gold=[0.0, None, 0.0, None]) == (0, "none")


def test_canary_creeps_and_gold_falls():
    g = Canary()
    n = [128.0] * 12
    assert says(g, canary_proxy=[0.3] + [0.42] * 11, canary_gold=[0.3] * 12, canary_n=n) == (-1, "stop")
    assert says(g, canary_proxy=[0.3] + [0.35] * 11, canary_gold=[0.3] * 12, canary_n=n) == (1, "none")
    falling = Canary(rise=1.0, slow_rise=1.0)
    gold = [0.3, 0.4, 0.6, 0.35, 0.35]
    assert says(falling, canary_proxy=[0.3, 0.4, 0.6, 0.7, 0.7], canary_gold=gold, canary_n=n[:5]) == (-1, "stop")
    assert says(falling, canary_proxy=gold, canary_gold=gold, canary_n=n[:5]) == (1, "none")  # both fall: no gap


def test_fluency():
    g = Fluency()
    assert says(g, ppl_original=[4.0] * 4) == (0, "none")
    assert says(g, ppl_original=[4.0] * 3 + [5.0, 5.1]) == (1, "none")
    assert says(g, ppl_original=[4.0] * 3 + [5.5, 5.5]) == (-1, "warn")
    assert says(g, ppl_original=[4.0] * 3 + [4.0, 9.0]) == (-1, "warn")  # one round is an outlier
    assert says(g, ppl_original=[4.0] * 3 + [7.0, 7.0]) == (-1, "stop")
    assert says(g, ppl_original=[1.1] * 3 + [2.4, 2.4]) == (1, "none")  # a fixed answer format
    with pytest.raises(ConfigError, match="at least 1"):
        Fluency(soft=0.5)


def test_failures():
    g = Failures()
    assert says(g, judge_failures=[0.0] * 5) == (1, "none")
    assert says(g, judge_failures=[0.1] * 3) == (-1, "warn")
    assert says(g, judge_failures=[0.0, 0.6]) == (-1, "stop")
    verdict = g.check(Watch(round=0, metrics={"judge_failures": 0.6}, episodes=(episode(), episode(1, reward=None))))
    assert verdict.samples == ("0/p1/0",)
    assert "boom" in verdict.reason


def test_finite():
    assert says(Finite(), loss=[0.1, float("nan")]) == (-1, "stop")
    assert says(Finite(), loss=[float("nan"), 0.1]) == (1, "none")
    assert says(Finite(), length=[float("nan")]) == (0, "none")


def test_samples():
    g = Samples()
    fine = [episode(i, text=f"answer {i}") for i in range(40)]

    def of(*bad):
        verdict = g.check(Watch(round=0, metrics={}, episodes=[*fine, *bad]))
        return verdict.value, verdict.action, verdict.samples

    assert of() == (1, "none", ())
    assert of(episode(90, text=" ")) == (-1, "screen", ("0/p90/0",))
    assert of(episode(90, text=" ", reward=-1.0)) == (1, "none", ())
    assert of(episode(90, text="", answer="")) == (1, "none", ())
    assert of(episode(90, text="prompt text")) == (-1, "screen", ("0/p90/0",))
    assert of(episode(90, text="prompt text", answer="prompt text")) == (1, "none", ())
    keys = [episode(90 + i, text="1 2 3", answer=str(i)) for i in range(3)]
    assert of(*keys) == (1, "none", ())
    same = [episode(90 + i, text="5", answer=a) for i, a in enumerate(["5", "5.0", "05", " 5"])]
    assert of(*same) == (1, "none", ())
    assert of(*keys, episode(93, text="1 2 3 ", answer="3"))[:2] == (-1, "screen")
    many = [episode(90 + i, text="1 2 3", answer=str(i)) for i in range(10)]
    assert of(*many)[:2] == (-1, "stop")
