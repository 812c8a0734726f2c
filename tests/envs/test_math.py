"""MATH through math-verify in its own process: equal forms, echoes, and texts that would hang it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from triloop.envs import math as module
from triloop.envs.math import Math
from triloop.envs.reading import Row
from triloop.errors import ConfigError
from triloop.records import Prompt

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def env() -> Iterator[Math]:
    return Math(timeout=2.0)


def problem(answer: str, text: str = r"Simplify $\sqrt{242}$.") -> Prompt:
    return Math().read(Row(where="f:1", data={"problem": text, "answer": answer, "level": "Level 3"}))


@pytest.mark.parametrize(
    ("answer", "text", "value"),
    [
        (r"11\sqrt2", r"\boxed{11\sqrt2}", 1),
        (r"11\sqrt2", r"\boxed{11 \sqrt{2}}", 1),
        (r"11\sqrt2", r"The answer is $11\sqrt{2}$.", 1),
        (r"\frac{1}{2}", r"\boxed{0.5}", 1),
        (r"\frac{1}{2}", r"\boxed{\dfrac12}", 1),
        (r"x^2+1", r"\boxed{1+x^2}", 1),
        (r"(1,2)", r"\boxed{(1, 2)}", 1),
        (r"11\sqrt2", r"\boxed{12\sqrt2}", -1),
        (r"11\sqrt2", r"\boxed{\sqrt{242}}", -1),  # copied from the problem, though equal
        (r"11\sqrt2", r"Simplify $\sqrt{242}$.", -1),
        (r"11\sqrt2", r"$11\sqrt2$", -1),  # not marked
        (r"11\sqrt2", "", -1),
        (r"11\sqrt2", "?", 0),
        (r"11\sqrt2", r"\boxed{?}", 0),
    ],
)
def test_by_hand(env: Math, answer: str, text: str, value: int) -> None:
    feedback = env.verify(problem(answer), text)
    assert feedback.value == value, feedback


def test_a_text_that_hangs_is_a_failure_and_the_next_is_judged() -> None:
    env = Math(timeout=0.5)
    prompt = problem("7")
    hung = env.verify(prompt, r"\boxed{9^{9^{9^9}}}")
    assert hung.value is None
    assert hung.failure is not None and "no reply within 0.5 s" in hung.failure
    assert env.verify(prompt, r"\boxed{6+1}").value == 1


def test_it_judges_in_any_thread(env: Math) -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(env.verify(problem("7"), r"\boxed{14/2}").value))
    thread.start()
    thread.join(30)
    assert found == [1]


def test_the_published_file(shared: Path) -> None:
    env = Math(path=shared / "math" / "train_1500.jsonl.gz", eval_path=shared / "math" / "test_500.jsonl.gz")
    assert env.levels == (1, 2, 3, 4, 5)
    prompts = env.prompts("eval", 500, seed=0)
    assert all(f.value == 1 for f in env.judge(prompts, [env.right_answer(p) for p in prompts]))
    few = prompts[:25]
    assert all(f.value == -1 for f in env.judge(few, [p.text for p in few]))


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'triloop\[math\]'"):
        Math()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="timeout"):
        Math(timeout=0)
