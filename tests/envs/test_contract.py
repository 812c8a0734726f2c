"""One suite over every environment; a new one joins by one line in CASES."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triloop.envs.reading import Row
from triloop.envs.scoring import RowEnv
from triloop.envs.table import ENVS, make
from triloop.errors import ConfigError
from triloop.records import Feedback, Prompt

N = 24
Files = Mapping[str, Path]


def _even(pairs: object) -> list[float]:
    """A fluency that finds every text fluent."""
    return [-1.0 for _ in pairs]  # type: ignore[attr-defined]


CASES: dict[str, Callable[[Files], RowEnv]] = {
    "arithmetic": lambda files: make("arithmetic"),
    "attributes": lambda files: make("attributes"),
    "attributes-ask": lambda files: make("attributes-ask"),
    "attributes-compare": lambda files: make("attributes-compare"),
    "countdown": lambda files: make("countdown"),
    "sort": lambda files: make("sort"),
    "gsm8k": lambda files: make("gsm8k", path=files["gsm8k"]),
    "math": lambda files: make("math", path=files["math"]),
    "jsonl": lambda files: make("jsonl", path=files["jsonl"]),
    "story-rules": lambda files: make("story-rules", fluency=_even),
    "story-hack": lambda files: make("story-hack", fluency=_even),
    "gym:chain_sum": lambda files: make("gym:chain_sum"),
    "gym:gcd": lambda files: make("gym:gcd"),
}
NEEDS = {"math": "math_verify", "gym:chain_sum": "reasoning_gym", "gym:gcd": "reasoning_gym"}
ODD_TEXTS = [
    "",
    " ",
    "?",
    "\x00",
    "\ud800",
    "#" * 50,
    ";" * 50,
    "9" * 5000,
    "\\boxed{",
    "####",
    "½",
    "٣",
    "\n\n",
    "-",
    "1/0",
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def env(request: pytest.FixtureRequest, files: Files) -> RowEnv:
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])
    return CASES[request.param](files)


def accepted(feedback: Feedback) -> bool:
    return feedback.value is not None and feedback.value >= 1


def test_every_environment_is_here() -> None:
    assert set(ENVS) <= set(CASES)


def test_it_says_what_it_is(env: RowEnv) -> None:
    assert env.name in CASES
    assert env.max_tokens > 0
    assert isinstance(env.stop, tuple) and isinstance(env.levels, tuple)
    assert list(env.levels) == sorted(set(env.levels))


def test_prompts_are_a_pure_function(env: RowEnv, files: Files) -> None:
    whole = env.prompts("train", N, seed=3)
    assert whole == CASES[env.name](files).prompts("train", N, seed=3)
    assert whole[5:9] == env.prompts("train", 4, seed=3, start=5)
    assert whole != env.prompts("train", N, seed=4)


def test_prompts_carry_what_they_need(env: RowEnv) -> None:
    for prompt in env.prompts("train", N, seed=0):
        assert prompt.env == env.name
        assert prompt.text
        assert "/" not in prompt.id
        assert json.loads(json.dumps(dict(prompt.meta))) == dict(prompt.meta)


def test_splits_are_disjoint(env: RowEnv) -> None:
    seen: dict[str, str] = {}
    for split in ("train", "eval", "canary"):
        for seed in (0, 1):
            for prompt in env.prompts(split, 3 * N, seed=seed):  # type: ignore[arg-type]
                assert seen.setdefault(prompt.id, split) == split
    assert set(seen.values()) == {"train", "eval", "canary"}


def test_levels_are_obeyed(env: RowEnv) -> None:
    for level in env.levels:
        assert {p.level for p in env.prompts("train", 4, seed=0, level=level)} == {level}
    with pytest.raises(ConfigError, match="level 77"):
        env.prompts("train", 1, seed=0, level=77)


def test_the_verifier_proves_itself(env: RowEnv) -> None:
    for prompt in env.prompts("eval", N, seed=0):
        right = env.right_answer(prompt)
        assert right is not None
        for judge in (env.judge, env.gold):
            assert accepted(judge([prompt], [right])[0]), right
        wrong = env.wrong_answers(prompt)
        assert "" in wrong
        for text, feedback in zip(wrong, env.judge([prompt] * len(wrong), wrong), strict=True):
            assert not accepted(feedback), (prompt.text, text)
            assert feedback.reason or feedback.failure


def test_judging_never_raises(env: RowEnv) -> None:
    prompt = env.prompts("eval", 1, seed=0)[0]
    for judge in (env.judge, env.gold):
        for feedback in judge([prompt] * len(ODD_TEXTS), ODD_TEXTS):
            well_formed(env, feedback)


def test_judging_any_text(env: RowEnv) -> None:
    prompt = env.prompts("eval", 1, seed=0)[0]

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.text(max_size=40) | st.text(alphabet="0123456789+-*/=#,;?. \\{}boxed$<>answer", max_size=60))
    def check(text: str) -> None:
        well_formed(env, env.judge([prompt], [text])[0])

    check()


def well_formed(env: RowEnv, feedback: Feedback) -> None:
    assert feedback.source == f"env:{env.name}"
    if feedback.value is None:
        assert feedback.failure
        return
    assert feedback.reason
    assert feedback.failure is None
    if feedback.kind == "ternary":
        assert feedback.value in (-1, 0, 1)
    else:
        assert feedback.kind == "scalar" and -1 <= feedback.value <= 1


def test_judging_is_repeatable_and_in_order(env: RowEnv) -> None:
    prompts = env.prompts("eval", 6, seed=0)
    texts = [env.right_answer(p) or "" if k % 2 else "?" for k, p in enumerate(prompts)]
    whole = env.judge(prompts, texts)
    assert whole == env.judge(prompts, texts)
    assert whole == [env.judge([p], [t])[0] for p, t in zip(prompts, texts, strict=True)]
    assert [accepted(f) for f in whole] == [k % 2 == 1 for k in range(6)]


def test_a_prompt_survives_the_store(env: RowEnv) -> None:
    """Written as JSON and read back, a prompt is judged as before."""
    prompt = env.prompts("eval", 1, seed=0)[0]
    stored = json.loads(
        json.dumps({f.name: getattr(prompt, f.name) for f in dataclasses.fields(prompt) if f.name != "turns"})
    )
    right = env.right_answer(prompt)
    assert right is not None
    assert env.judge([Prompt(**stored)], [right]) == env.judge([prompt], [right])


def test_a_recorded_row_is_read_back(env: RowEnv) -> None:
    """The text of a prompt, with its answer, is enough to judge a recorded completion."""
    for prompt in env.prompts("eval", 6, seed=0):
        text = prompt.text.removeprefix("Question: ").removesuffix("\nAnswer:")
        text = text.removeprefix("Problem: ").removesuffix("\nSolution:")
        data = {"prompt": text, "answer": prompt.answer, "wanted": prompt.meta.get("wanted")}
        again = env.read(Row(where="rows.jsonl:1", data=data))
        right = env.right_answer(prompt)
        assert right is not None
        assert accepted(env.judge([again], [right])[0])
