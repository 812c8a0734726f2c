"""Before a run starts the judge proves itself: it accepts what is right, rejects what is not, and repeats itself.

A policy finds in minutes whatever a careless verifier lets pass; here that costs a few dozen judgements. What cannot be
checked (no right answer is known) is said to be so, with value 0.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triloop.errors import VerifierError
from triloop.records import Feedback, Prompt, Verdict
from triloop.sources.judge import Judge
from triloop.sources.verifier import TIMED_OUT

if TYPE_CHECKING:
    from triloop.envs.base import Env
    from triloop.records import Action

__all__ = ["JUNK", "preflight"]

JUNK = (":", ".", "Thought process:", "The answer is", " ".join(str(i) for i in range(1, 51)))
"""Answers to nothing that win with careless judges ("One Token to Fool LLM-as-a-Judge", arXiv:2507.08794), and a list of
every small number, which wins wherever any match counts."""

_KINDS = ("right", "wrong", "empty", "echo", "junk")


@dataclass(frozen=True, slots=True)
class _Case:
    kind: str
    prompt: Prompt
    text: str


@dataclass(frozen=True, slots=True)
class _Judged:
    case: _Case
    feedback: Feedback
    bar: float = 0.0
    """What a wrong answer must stay below, or at when it is 0: of a graded task, the right answer's own value."""

    @property
    def accepted(self) -> bool:
        value = self.feedback.value
        return value is not None and value > 0 and (self.case.kind == "right" or value >= self.bar)


def preflight(env: Env, judge: Judge, *, n: int = 16, seed: int = 0, seconds: float = 5.0) -> list[Verdict]:
    """One verdict per property of ``judge``, tried on ``n`` training prompts of ``env``; round 0, names ``preflight:...``.

    -1 with action ``stop``: a right answer is rejected, or a wrong one (spoiled, empty, an echo of the prompt, junk) is
    accepted; where a right answer's own judgement is a scalar, the task is graded, and accepted means paid as much as that
    one. -1 with action ``warn``: it does not repeat itself, or fails on a few samples. 0: cannot tell. Raises
    ``VerifierError`` with the failing example when the judge does not end, fails on a right answer, or fails on more than
    half of all. Takes at most ``seconds`` and one time limit of the judge; what was not reached is not claimed.
    """
    prompts = env.prompts("train", n, seed=seed)
    deadline = time.monotonic() + seconds
    judged: list[_Judged] = []
    repeats: list[tuple[_Judged, Feedback]] = []
    # one call at a time: a judge that hangs costs one time limit, and is named with the sample that did it
    for index, prompt in enumerate(prompts):
        bar = 0.0
        for case in _cases(env, prompt):
            if judged and time.monotonic() > deadline:
                break
            judged.append(_Judged(case, _ask(judge, case), bar))
            if case.kind == "right" and judged[-1].feedback.kind == "scalar":
                bar = judged[-1].feedback.value or 0.0
            if index < 4:
                repeats.append((judged[-1], _ask(judge, case)))
    _raise_if_broken(judge, judged)
    return [
        *(_on_kind(judge, kind, judged) for kind in _KINDS),
        _on_repeats(judge, repeats),
        _on_failures(judge, judged),
    ]


def _cases(env: Env, prompt: Prompt) -> list[_Case]:
    """What to try on one prompt. ``wrong`` is what the environment itself calls wrong, beyond empty and echo."""
    shown = prompt.turns[-1].text if prompt.turns else prompt.text
    right = env.right_answer(prompt)
    wrong = [w for w in env.wrong_answers(prompt) if w.strip() and w.strip() != shown.strip() and w != right]
    texts = [("right", right)] if right is not None else []
    texts += [("wrong", w) for w in wrong]
    texts += [("empty", ""), ("empty", " \n")]
    texts += [("echo", shown)] if shown.strip() else []
    texts += [("junk", j) for j in JUNK]
    return [_Case(kind, prompt, text) for kind, text in texts]


def _ask(judge: Judge, case: _Case) -> Feedback:
    try:
        feedback = judge.judge([case.prompt], [case.text])[0]
    except Exception as error:  # noqa: BLE001 - an environment of one's own may break its promise never to raise
        feedback = Feedback(value=None, failure=f"{type(error).__name__}: {error}", source=judge.name)
    if feedback.value is not None and not -1.0 <= feedback.value <= 1.0:  # NaN is outside as well
        return Feedback(value=None, failure=f"returned {feedback.value}; expected [-1, 1]", source=judge.name)
    if (feedback.failure or "").startswith(TIMED_OUT):
        raise VerifierError(_failing(judge, _Judged(case, feedback), "does not end"))
    return feedback


def _raise_if_broken(judge: Judge, judged: Sequence[_Judged]) -> None:
    failed = [j for j in judged if j.feedback.failed]
    on_right = [j for j in failed if j.case.kind == "right"]
    if on_right:
        raise VerifierError(_failing(judge, on_right[0], "fails on a right answer"))
    if 2 * len(failed) > len(judged):
        raise VerifierError(_failing(judge, failed[0], f"fails on {len(failed)} of {len(judged)} completions"))


def _failing(judge: Judge, bad: _Judged, what: str) -> str:
    return (
        f"{judge.name} {what}: {bad.feedback.failure}. The example: {_example(bad)}. Expected a number in [-1, 1] for "
        "any text (+1 right, 0 cannot tell, -1 wrong); nothing was started"
    )


def _on_kind(judge: Judge, kind: str, judged: Sequence[_Judged]) -> Verdict:
    """Right answers are accepted, all others are not."""
    tried = [j for j in judged if j.case.kind == kind and j.feedback.value is not None]
    bad = [j for j in tried if j.accepted != (kind == "right")]
    if kind == "junk":
        # a list of numbers may name the right one by luck; junk that passes on one prompt in four is no luck
        by_text = [[j for j in bad if j.case.text == text] for text in JUNK]
        bad = max(by_text, key=len)
        bad = bad if len(bad) >= max(2, sum(j.case.text == JUNK[0] for j in tried) / 4) else []
    measured = {"tried": float(len(tried)), "failed": float(len(bad))}
    noun = {"empty": "empty completions", "echo": "echoes of the prompt", "junk": "answers to nothing"}
    noun = {"right": "right answers", "wrong": "wrong answers", **noun}
    if not tried:
        return _verdict(kind, 0, f"no {noun[kind]} known for these prompts: cannot tell", measured)
    if bad:
        verb = "rejects" if kind == "right" else "accepts"
        reason = f"{judge.name} {verb} {len(bad)} of {len(tried)} {noun[kind]}, such as: {_example(bad[0])}"
        return _verdict(kind, -1, reason, measured, stop=True)
    verb = "accepts" if kind == "right" else "rejects"
    return _verdict(kind, 1, f"{judge.name} {verb} all {len(tried)} {noun[kind]} tried", measured)


def _on_repeats(judge: Judge, repeats: Sequence[tuple[_Judged, Feedback]]) -> Verdict:
    moved = [(a, b) for a, b in repeats if a.feedback.value != b.value]
    measured = {"tried": float(len(repeats)), "failed": float(len(moved))}
    if moved:
        first, again = moved[0]
        reason = (
            f"{judge.name} judges the same text differently in {len(moved)} of {len(repeats)} cases: first "
            f"{first.feedback.value}, then {again.value}: {_example(first)}. A resumed run will not repeat itself"
        )
        return _verdict("repeatable", -1, reason, measured)
    if not repeats:
        return _verdict("repeatable", 0, "nothing was judged twice", measured)
    return _verdict("repeatable", 1, f"{judge.name} repeats itself on all {len(repeats)} texts tried", measured)


def _on_failures(judge: Judge, judged: Sequence[_Judged]) -> Verdict:
    failed = [j for j in judged if j.feedback.failed]
    measured = {"tried": float(len(judged)), "failed": float(len(failed))}
    if failed:
        reason = f"{judge.name} fails on {len(failed)} of {len(judged)} texts: {failed[0].feedback.failure}"
        return _verdict("failures", -1, f"{reason}; such as: {_example(failed[0])}", measured)
    if not judged:
        return _verdict("failures", 0, "no prompt to try it on", measured)
    return _verdict("failures", 1, f"{judge.name} judged all {len(judged)} texts", measured)


def _verdict(kind: str, value: int, reason: str, measured: dict[str, float], *, stop: bool = False) -> Verdict:
    action: Action = "none" if value >= 0 else "stop" if stop else "warn"
    return Verdict(guard=f"preflight:{kind}", round=0, value=value, reason=reason, action=action, measured=measured)


def _example(judged: _Judged) -> str:
    prompt, text = judged.case.prompt, judged.case.text
    shown = prompt.turns[-1].text if prompt.turns else prompt.text
    reason = f" ({judged.feedback.reason[:120]})" if judged.feedback.reason else ""
    return f"prompt {shown[:120]!r}, completion {text[:120]!r}, value {judged.feedback.value}{reason}"
