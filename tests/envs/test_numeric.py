"""Numbers in worked answers: found, read and compared as a careful reader would."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triloop.envs.numeric import boxed, final_answer, final_number, read_number, same


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", 72),
        ("$1,000.50", Fraction(2001, 2)),
        ("-3", -3),
        ("\u22123", -3),
        ("-$5", -5),
        ("$-5", -5),
        ("5.00", 5),
        ("5.", 5),
        (".5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"\$18", 18),
        ("50%", 50),
        ("1/0", None),
        ("five", None),
        ("5 apples", None),
        ("", None),
        ("9" * 100, None),
        ("\u0663", None),
    ],
)
def test_read_number(text: str, number: Fraction | int | None) -> None:
    assert read_number(text) == number


@pytest.mark.parametrize(
    ("text", "number", "by"),
    [
        ("5 * 2 = 10\n#### 10", 10, "####"),
        ("#### 3\n#### 4", 4, "####"),
        ("#### $1,234.", 1234, "####"),
        (r"so \boxed{7} of 9", 7, "boxed"),
        (r"\boxed{1} then \boxed{\frac{3}{4}}", Fraction(3, 4), "boxed"),
        ("5 + 5 = 10\nA: 10", 10, "A:"),
        ("The answer is 5 dollars.", 5, "answer is"),
        ("the answer is 2 * 5 = 10.", 10, "answer is"),
        ("Final answer: 12", 12, "answer is"),
        ("Answer is:\n\n 13", 13, "answer is"),
        ("he has 3 apples and 4 pears", 4, "last number"),
        ("from 3-5", -5, "last number"),
        ("#### none", None, "####"),
        ("no digits at all", None, None),
        ("the answer is unclear after 3 tries", 3, "answer is"),
    ],
)
def test_final_answer(text: str, number: Fraction | int | None, by: str | None) -> None:
    found = final_answer(text)
    assert (found and found.by) == by
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{a{b}c}", "a{b}c"),
        (r"\boxed{1} \boxed{ 2 }", "2"),
        (r"\boxed{1", None),
        ("boxed{1}", None),
        (r"\boxed{}", ""),
    ],
)
def test_boxed(text: str, inside: str | None) -> None:
    assert boxed(text) == inside


def test_same_forgives_what_binary_floats_add_and_no_more() -> None:
    assert same(Fraction("0.30000000000000004"), Fraction("0.3"))
    assert not same(Fraction("0.33"), Fraction(1, 3))
    assert not same(Fraction(10**6), Fraction(10**6 + 1))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text() | st.text(alphabet="#A:0123456789.,/$%-\\boxedfrac{} \n"))
def test_any_text(text: str) -> None:
    final_answer(text)
    read_number(text)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["#### {}", "A: {}", r"\boxed{{{}}}", "The answer is {}.", "It is ${}"]),
)
def test_a_marked_integer_is_found(number: int, form: str) -> None:
    assert final_number(f"2 + 2 = 4\n{form.format(f'{number:,}')}") == number
