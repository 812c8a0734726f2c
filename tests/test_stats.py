import math
import subprocess
import sys

import numpy as np
import pytest

from triloop import stats


def test_wilson_by_hand():
    # 8 of 10 at 95 %: the textbook case (0.4902, 0.9433)
    i = stats.wilson(8, 10)
    assert i.value == 0.8
    assert i.n == 10
    assert (round(i.low, 4), round(i.high, 4)) == (0.4902, 0.9433)


@pytest.mark.parametrize("n", [1, 7, 128, 10_000])
def test_wilson_at_the_ends(n):
    z2 = 1.959963984540054**2
    none, all_ = stats.wilson(0, n), stats.wilson(n, n)
    assert none.low == 0.0
    assert all_.high == 1.0
    assert none.high == pytest.approx(z2 / (n + z2))  # closed form at p = 0
    assert all_.low == pytest.approx(n / (n + z2))
    assert all_.value == 1.0


def test_wilson_narrows_with_n_and_widens_with_level():
    width = [i.high - i.low for i in (stats.wilson(5, 10), stats.wilson(50, 100), stats.wilson(50, 100, 0.99))]
    assert width[1] < width[2] < width[0]


def test_wilson_covers():
    draws = np.random.default_rng(0).binomial(100, 0.93, 4000)
    hits = [not stats.wilson(int(k), 100).excludes(0.93) for k in draws]
    assert 0.92 < np.mean(hits) < 0.98


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses(k, n):
    with pytest.raises(ValueError, match="successes"):
        stats.wilson(k, n)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_levels_are_checked(level):
    with pytest.raises(ValueError, match="level"):
        stats.wilson(1, 2, level)


def test_bootstrap_matches_the_normal_interval():
    x = np.random.default_rng(1).normal(3.0, 2.0, 400)
    i = stats.bootstrap_mean(x.tolist(), seed=5)
    half = 1.96 * x.std() / math.sqrt(len(x))
    assert i.value == pytest.approx(x.mean())
    assert i.low == pytest.approx(x.mean() - half, abs=0.03)
    assert i.high == pytest.approx(x.mean() + half, abs=0.03)


def test_bootstrap_is_seeded():
    x = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert stats.bootstrap_mean(x, seed=1) == stats.bootstrap_mean(x, seed=1)
    many = [float(i % 7) for i in range(100)]
    assert stats.bootstrap_mean(many, seed=1) != stats.bootstrap_mean(many, seed=2)


def test_bootstrap_in_blocks_keeps_every_resample():
    i = stats.bootstrap_mean([0.5] * 30_000, resamples=100)  # 66 resamples fit a block
    assert (i.value, i.low, i.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_bootstrap_refuses(bad):
    with pytest.raises(ValueError, match="finite"):
        stats.bootstrap_mean(bad)


def test_pairs_see_what_unpaired_intervals_hide():
    level = np.random.default_rng(2).normal(0, 10, 60)
    a, b = (level + 0.5).tolist(), (level + np.random.default_rng(3).normal(0, 0.2, 60)).tolist()
    i = stats.paired_difference(a, b)
    assert i.excludes(0.0)
    assert not i.excludes(0.5)
    with pytest.raises(ValueError, match="equally long"):
        stats.paired_difference([1.0], [1.0, 2.0])


def test_sign_test_by_hand():
    # 9 wins, 1 loss, 1 tie: 2 (C(10,0) + C(10,1)) / 2^10 = 22/1024
    a, b = [1.0] * 9 + [0.0, 0.5], [0.0] * 9 + [1.0, 0.5]
    assert stats.sign_test(a, b) == pytest.approx(22 / 1024)
    assert stats.sign_test(b, a) == pytest.approx(22 / 1024)
    assert stats.sign_test([1.0], [1.0]) == 1.0


def test_mcnemar_is_exact():
    # 1 against 5 discordant pairs: 2 (1 + 6) / 2^6 = 14/64; the 20 concordant ones say nothing
    a = [True] * 5 + [False] + [True] * 20
    b = [False] * 5 + [True] + [True] * 20
    assert stats.mcnemar(a, b) == pytest.approx(14 / 64)
    assert stats.mcnemar([True, False], [False, True]) == 1.0


def test_binomial_survives_large_n():
    assert stats.binomial_two_sided(0, 5000) == 0.0
    assert stats.binomial_two_sided(2500, 5000) == 1.0
    assert stats.binomial_two_sided(1000, 2000) == 1.0


def test_two_proportions_newcombe_example():
    # Newcombe 1998, table II: 56/70 - 48/80, method 10: 0.2 (0.0524, 0.3339)
    i = stats.two_proportions(56, 70, 48, 80)
    assert (round(i.value, 4), round(i.low, 4), round(i.high, 4)) == (0.2, 0.0524, 0.3339)


def test_two_proportion_z_by_hand():
    # p = 0.3 and 0.1 over 100 each: pooled 0.2, 0.2 / sqrt(0.16 / 50) = 3.5355
    assert stats.two_proportion_z(0.3, 100, 0.1, 100) == pytest.approx(0.2 / math.sqrt(0.0032))
    assert stats.two_proportion_z(0.0, 10, 0.0, 10) == 0.0
    assert stats.two_proportion_z(1.0, 10, 1.0, 10) == 0.0
    with pytest.raises(ValueError, match="rates"):
        stats.two_proportion_z(1.2, 10, 0.5, 10)


def test_control_variate_removes_shared_noise():
    noise = np.random.default_rng(4).normal(0, 1, 200)
    own = np.random.default_rng(5).normal(0, 0.1, 200)
    plain = stats.bootstrap_mean((2.0 + noise + own).tolist())
    sharp = stats.control_variate((2.0 + noise + own).tolist(), noise.tolist(), 0.0)
    assert not sharp.excludes(2.0)
    assert sharp.high - sharp.low < 0.2 * (plain.high - plain.low)


def test_control_variate_exact_line_and_constant_control():
    # v = 1 + 3c exactly, so the estimate at control mean 0.5 is 2.5 without error
    c = [0.0, 1.0, 2.0, 3.0]
    i = stats.control_variate([1 + 3 * x for x in c], c, 0.5)
    assert (i.value, i.low, i.high) == (pytest.approx(2.5), pytest.approx(2.5), pytest.approx(2.5))
    flat = stats.control_variate([1.0, 2.0, 3.0], [7.0, 7.0, 7.0], 0.0)
    assert flat.value == 2.0
    with pytest.raises(ValueError, match="same length"):
        stats.control_variate([1.0, 2.0, 3.0], [1.0], 0.0)


def test_pass_at_k():
    assert stats.pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert stats.pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert stats.pass_at_k(4, 3, 2) == 1.0
    with pytest.raises(ValueError, match="pass@k"):
        stats.pass_at_k(2, 1, 3)


def test_import_is_cheap():
    code = "import sys, triloop.stats; sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
