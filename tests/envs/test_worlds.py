"""The three small worlds: values worked by hand, properties for any text, teachers, speed."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triloop.envs.arithmetic import Arithmetic
from triloop.envs.charset import CHARS
from triloop.envs.countdown import Countdown, solutions, solve
from triloop.envs.sort import Sort
from triloop.envs.world import TextWorld
from triloop.errors import ConfigError, DataError

WORLDS: list[TextWorld] = [Arithmetic(), Countdown(), Sort()]
every_world = pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.name)

CHAIN = Arithmetic().parse("7+12-5+9=")
NUMBERS = Countdown().parse("3 5 7=26:")
LETTERS = Sort().parse("s 4b17=")


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("19,14,23#23", 1, "right"),
        ("#23", 1, "right"),
        ("1,2,3#23", 1, "right"),  # only the answer is judged; the notes are the policy's own
        ("19,14,23#24", -1, "answer '24' is not 23"),
        ("19,15,24#24", -1, "answer '24' is not 23; running value 2 is '15', should be 14"),
        ("19,14,23# 23", -1, "answer ' 23' is not 23"),
        ("19,14,23#23 ", -1, "answer '23 ' is not 23"),
        ("19,14,23#023", -1, "answer '023' is not 23"),
        ("19,14,23#", -1, "answer '' is not 23"),
        ("24#23#23", -1, "2 answers where one is allowed"),
        ("#24#23", -1, "2 answers where one is allowed"),
        ("19,14,23", -1, "no answer: '#' is missing"),
        ("", -1, "empty"),
        ("?", 0, "abstained"),
        ("19,14#?", 0, "abstained"),
        ("19,14#??", -1, "answer '??' is not 23"),
        ("#?#23", -1, "2 answers where one is allowed"),
    ],
)
def test_arithmetic_by_hand(text: str, value: int, reason: str) -> None:
    feedback = Arithmetic().verify(CHAIN, text)
    assert (feedback.value, feedback.reason) == (value, reason)


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("3*7=21,21+5=26", 1, "right"),
        ("7*3=21,5+21=26", 1, "right"),
        ("3+5=8,8*7=56;3*7=21,21+5=26", 1, "right"),
        ("nonsense;3*7=21,21+5=26", 1, "right"),  # attempts before the last are the policy's own
        ("3*7=21,21+5=26;3+5=8,8*7=56", -1, "reaches 56, not 26"),
        ("3*7=21,21+5=26;", -1, "empty"),
        ("", -1, "empty"),
        ("?", 0, "abstained"),
        ("3+5=8,8*7=56;?", 0, "abstained"),
        ("3*7=22,22+4=26", -1, "step 1: 3*7 is 21, not 22"),
        ("3*7=21,21+6=27", -1, "step 2 uses 6, which is not left"),
        ("3*7=21", -1, "2 numbers are left where one is expected"),
        ("3*7=21,21+5=26,26+0=26", -1, "step 3 uses 0, which is not left"),
        ("3*7=21,3*5=15", -1, "step 2 uses 3, which is not left"),
        ("3-7=4,21+5=26", -1, "step 1: 3-7 is not a whole number of at least 0"),
        ("7/3=2,2+5=7", -1, "step 1: 7/3 is not a whole number of at least 0"),
        ("3*7=21, 21+5=26", -1, "step 2 ' 21+5=26' is not of the form 3*7=21"),
        ("3*7=021,21+5=26", -1, "step 1 '3*7=021' is not of the form 3*7=21"),
        ("3*7=21,21+5=26\n", -1, "step 2 '21+5=26\\n' is not of the form 3*7=21"),
        ("٣*7=21,21+5=26", -1, "step 1 '٣*7=21' is not of the form 3*7=21"),
    ],
)
def test_countdown_by_hand(text: str, value: int, reason: str) -> None:
    feedback = Countdown().verify(NUMBERS, text)
    assert (feedback.value, feedback.reason) == (value, reason)


def test_countdown_uses_a_repeated_number_as_often_as_it_stands_there() -> None:
    world = Countdown()
    prompt = world.parse("4 4 2=10:")
    assert world.verify(prompt, "4+4=8,8+2=10").value == 1
    assert world.verify(prompt, "4+2=6,6+4=10").value == 1
    assert world.verify(prompt, "4+4=8,8+4=12").reason == "step 2 uses 4, which is not left"
    # dividing by nothing left over, and by zero
    zero = world.parse("4 4 2=2:")
    assert world.verify(zero, "4-4=0,2+0=2").value == 1
    assert world.verify(zero, "4-4=0,2/0=2").value == -1
    assert world.verify(zero, "4/4=1,2*1=2").value == 1


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("147b", 1, "right"),
        ("?", 0, "abstained"),
        ("", -1, "empty"),
        ("14b7", -1, "'b' stands before '7'"),
        ("147", -1, "3 characters where 4 were given"),
        ("147b ", -1, "5 characters where 4 were given"),
        ("147c", -1, "'c' was not given"),
        ("144b", -1, "in order, but a character is written too often or too rarely"),
    ],
)
def test_sort_by_hand(text: str, value: int, reason: str) -> None:
    feedback = Sort().verify(LETTERS, text)
    assert (feedback.value, feedback.reason) == (value, reason)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="0123456789,#?-", max_size=16))
def test_arithmetic_accepts_exactly_one_answer(text: str) -> None:
    right = text.count("#") == 1 and text.split("#")[1] == "23"
    assert (Arithmetic().verify(CHAIN, text).value == 1) == right


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 20), min_size=3, max_size=3), st.integers(1, 100))
def test_countdown_accepts_every_solution_and_no_spoiled_one(numbers: list[int], target: int) -> None:
    world = Countdown()
    prompt = world.parse(f"{' '.join(map(str, numbers))}={target}:")
    found = list(solutions(numbers, target))
    assert solve(numbers, target) == (found[0] if found else None)
    for text in found:
        assert world.verify(prompt, text).value == 1
        assert world.verify(prompt, text[:-1]).value == -1
        assert world.verify(prompt, f"{text}1").value == -1
    assert all(world.verify(prompt, text).value == -1 for text in world.wrong_answers(prompt))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.permutations("3a19zb"))
def test_sort_accepts_one_order_alone(order: list[str]) -> None:
    prompt = Sort().parse("s zb3a19=")
    text = "".join(order)
    assert (Sort().verify(prompt, text).value == 1) == all(a < b for a, b in pairwise(text))


@every_world
def test_the_default_mixture_is_wide(world: TextWorld) -> None:
    """A fresh draw hardly ever meets an old one: by the birthday rule far more than 10,000 problems."""
    drawn = [world.canonical(p.text) for p in world.prompts("train", 1500, seed=0)]
    pairs = len(drawn) * (len(drawn) - 1) / 2
    repeats = max(1, len(drawn) - len(set(drawn)))
    assert pairs / repeats > 8_000


@every_world
def test_prompts_and_teachers_keep_to_the_characters(world: TextWorld) -> None:
    draw = np.random.default_rng(0)
    for level in (None, world.levels[-1]):
        for prompt in world.prompts("train", 100, seed=1, level=level):
            text = world.demonstration(prompt, draw, 0.3)
            assert set(prompt.text + text) <= set(CHARS)
            assert 0 < len(text) < world.max_tokens or level is not None


def test_characters_are_distinct() -> None:
    assert len(set(CHARS)) == len(CHARS)


@every_world
def test_noise_makes_a_teacher_err(world: TextWorld) -> None:
    prompts = world.prompts("train", 300, seed=2)

    def passed(noise: float) -> float:
        draw = np.random.default_rng(5)
        texts = [world.demonstration(p, draw, noise) for p in prompts]
        return float(np.mean([f.value == 1 for f in world.judge(prompts, texts)]))

    clean, noisy = passed(0.0), passed(0.4)
    assert clean > noisy + 0.2 > 0.2
    # countdown's teacher searches, and a search of bounded length may fail
    assert clean == 1.0 or world.name == "countdown"


def test_a_slip_carries_on() -> None:
    world = Arithmetic()
    for k in range(50):
        values, answer = world.demonstration(CHAIN, np.random.default_rng(k), 0.5).split("#")
        got = [int(v) for v in values.split(",")]
        assert answer == str(got[-1])
        assert all(0 <= v <= 99 for v in got)


@every_world
def test_a_text_that_is_no_problem_is_refused(world: TextWorld) -> None:
    for text in ("", "hello", "1+", "s =", "1 2=3", "3 5 7=26", "7+12", "0 1 2=3:", "s aaaa="):
        with pytest.raises(DataError, match=world.name):
            world.parse(text)


@pytest.mark.parametrize("build", [Arithmetic, Countdown, Sort])
def test_options_are_read_and_checked(build: type) -> None:
    with pytest.raises(ConfigError):
        build(mixture=(99,))
    with pytest.raises(ConfigError):
        build(mixture=())
    level = build().levels[-1]
    assert {p.level for p in build(mixture=(level,)).prompts("train", 3, seed=0)} == {level}


def test_size_options_change_the_problems() -> None:
    small = Arithmetic(largest=2).prompts("train", 50, seed=0)
    assert set("".join(p.text for p in small)) <= set("12+-=")
    close = Countdown(largest=4, targets=(5, 6)).prompts("train", 8, seed=0)
    assert {p.meta["target"] for p in close} <= {5, 6}
    assert max(max(p.meta["numbers"]) for p in close) <= 4
    assert set("".join(p.text for p in Sort(symbols="0123456789").prompts("train", 20, seed=0))) <= set("s 0123456789=")
    draw = np.random.default_rng(0)
    one = Countdown(attempts=1)
    assert all(";" not in one.demonstration(p, draw, 0.0) for p in one.prompts("train", 30, seed=0))


@every_world
def test_judging_is_fast(world: TextWorld) -> None:
    """256 completions in under 10 ms: feedback must cost nothing beside a rollout. Best of five, for a busy machine."""
    prompts = world.prompts("train", 256, seed=0)
    draw = np.random.default_rng(0)
    texts = [world.demonstration(p, draw, 0.2) for p in prompts]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        world.judge(prompts, texts)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.010
