"""Judges over any model that scores tokens: yes/no questions, rubrics, a scale of marks, and what a user would say next.

A judge asks a batch's questions in one call and reads the log-probabilities of the answer words. What cannot be judged (an
empty text, a question that is too long, numbers that are none, a model that does not answer) is a failure with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from triloop.errors import ConfigError, DataError
from triloop.feedback.kinds import Rubric, Scalar, Sign, Ternary, write
from triloop.policies.protocol import Sampler
from triloop.records import Feedback, Prompt
from triloop.sources.asking import Answer, Asking, Interview, Question, Reader, question_ident
from triloop.sources.constitution import Constitution, Principle, as_constitution
from triloop.sources.templates import request_of

__all__ = ["Calibration", "Combine", "RubricJudge", "ScaleJudge", "YesNoJudge", "combined", "failure", "sigmoid"]

Combine = Literal["mean", "product", "min"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """p = sigmoid((log p(yes) - log p(no) - offset) / temperature), both in nats; Platt scaling with a fixed sign."""

    temperature: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature) and math.isfinite(self.offset)):
            raise ConfigError(
                f"a calibration has temperature {self.temperature} and offset {self.offset}; expected a finite temperature "
                "above 0 and a finite offset"
            )

    def __call__(self, difference: float) -> float:
        """Probability of yes from the difference of log-probabilities."""
        return sigmoid((difference - self.offset) / self.temperature)


class YesNoJudge:
    """Yes/no questions about a response, answered by a model that need never have been trained for it.

        p_k = sigmoid((log p(yes) - log p(no) - offset) / temperature),   value = 2 combine_k(p_k) - 1

    ``combine``: ``mean`` weighted by the principles' weights, ``product`` p_1^w_1 p_2^w_2 ..., or ``min``. A question whose
    good answer is "no" counts as 1 - p. With ``drawn`` > 0 that many principles are drawn per item instead of all asked
    (with repetition, as their weights say). With ``dead_zone`` the feedback is ternary: 0 up to that size of the
    value. ``breakdown`` keeps every question's raw p(yes) before calibration; ``confidence`` is max(p, 1 - p), the chance
    that the sign is right if the judge is calibrated. One failed question fails the item.

    ZYN (S153), arXiv:2308.06385.
    """

    def __init__(
        self,
        model: Reader,
        questions: Constitution | Principle,
        asking: Asking | None = None,
        *,
        combine: Combine = "mean",
        calibration: Calibration | None = None,
        dead_zone: float | None = None,
        drawn: int = 0,
        seed: int = 0,
        sampler: Sampler | None = None,
    ) -> None:
        self._asking, self._combine, self._dead_zone = asking or Asking(), combine, dead_zone
        self._constitution = as_constitution(questions)
        self._calibration, self._drawn, self._seed = calibration or Calibration(), drawn, seed
        if combine not in ("mean", "product", "min"):
            raise ConfigError(f"combine is {combine!r}; expected mean, product or min")
        if dead_zone is not None and not 0 <= dead_zone < 1:
            raise ConfigError(f"dead_zone is {dead_zone}; expected None or a number in [0, 1)")
        words = self._asking.templates
        self._interview = Interview(model, "ask", {"yes": words.yes, "no": words.no}, self._asking, sampler=sampler)
        self.name = f"yes-no:{self._constitution.name}"
        self.answer_tokens = dict(zip(("yes", "no"), self._interview.tokens, strict=True))
        """Token sequences of the answer words."""

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One scalar (or ternary) judgement per (prompt, text), in order."""
        return _per_item(prompts, texts, self._principles, self._interview, self._verdict, self.name)

    def differences(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """log p(yes) - log p(no) of the only question, for calibration; NaN where it failed."""
        if len(self._constitution.principles) != 1:
            raise ConfigError(f"differences are of one question; {self.name} has {len(self._constitution.principles)}")
        principle = self._constitution.principles[0]
        asked = [_question(p, t, principle) for p, t in zip(prompts, texts, strict=True)]
        return [a.logps[0] - a.logps[1] if a.failure is None else math.nan for a in self._interview.ask(asked)]

    def _principles(self, prompt: Prompt, text: str) -> Sequence[Principle]:
        if not self._drawn:
            return self._constitution.principles
        ident = question_ident(prompt, text)
        return [self._constitution.draw(self._seed, ident, k) for k in range(self._drawn)]

    def _verdict(self, asked: Sequence[Principle], answers: Sequence[Answer]) -> Feedback:
        good, parts = [], {}
        for principle, a in zip(asked, answers, strict=True):
            difference = a.logps[0] - a.logps[1]
            p = self._calibration(difference)
            good.append((p if principle.wanted else 1 - p, principle.weight if not self._drawn else 1.0))
            parts[principle.name] = sigmoid(difference)
        p = combined(good, self._combine)
        value = 2 * p - 1
        return write(
            Scalar(value) if self._dead_zone is None else Ternary(_ternary(value, self._dead_zone)),
            source=self.name,
            confidence=max(p, 1 - p),
            cost=self._asking.price * sum(a.tokens for a in answers),
            breakdown=parts,
            reason="; ".join(a.reasoning for a in answers if a.reasoning),
        )


class RubricJudge:
    """A mark of +1, 0 or -1 for every principle, by entailment: does the response keep to it, yes, no, or neither?

        e_k = p(yes) - p(no) over {yes, no, none};   mark_k = sign(e_k) where |e_k| > dead_zone, else 0

    ``none`` is left out when the templates have no word for it. The feedback is a ``rubric`` whose value is the mean mark;
    ``confidence`` is the mean probability of the marks given. A failed question fails the item: half a rubric is none.
    Binary flexible feedback, RLBFF (S070), where 0 is "partial".
    """

    def __init__(
        self,
        model: Reader,
        principles: Constitution | Principle,
        asking: Asking | None = None,
        *,
        dead_zone: float = 0.2,
        sampler: Sampler | None = None,
    ) -> None:
        if not 0 <= dead_zone < 1:
            raise ConfigError(f"dead_zone is {dead_zone}; expected a number in [0, 1)")
        self._asking, self._dead_zone = asking or Asking(), dead_zone
        self._constitution = as_constitution(principles)
        words = self._asking.templates
        options = {"yes": words.yes, "no": words.no} | ({"none": words.none} if words.none else {})
        self._interview = Interview(model, "ask", options, self._asking, sampler=sampler)
        self.name = f"rubric:{self._constitution.name}"

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One rubric per (prompt, text), in order."""
        every = self._constitution.principles
        return _per_item(prompts, texts, lambda *_: every, self._interview, self._verdict, self.name)

    def _verdict(self, asked: Sequence[Principle], answers: Sequence[Answer]) -> Feedback:
        marks: dict[str, Sign] = {}
        certain, said = [], []
        for principle, a in zip(asked, answers, strict=True):
            yes, no = a.shares[:2] if principle.wanted else a.shares[1::-1]
            mark = _ternary(yes - no, self._dead_zone)
            marks[principle.name] = mark
            certain.append((1 - yes - no, yes, no)[mark] if mark else 1 - abs(yes - no))
            said.append(f"{principle.name} {yes - no:+.2f}")
        return write(
            Rubric(marks),
            source=self.name,
            confidence=min(1.0, max(0.0, sum(certain) / len(certain))),
            cost=self._asking.price * sum(a.tokens for a in answers),
            reason=", ".join(said),
        )


class ScaleJudge:
    """A mark on a scale, as its expected value under the model: direct RLAIF's 1 to 10 (S118, arXiv:2309.00267).

        s = sum_m p(m) m over the marks, value = 2 (s - lowest) / (highest - lowest) - 1

    ``marks`` maps each number to the words that say it. Digits of several tokens must not begin alike ("1" and "10" do).
    """

    def __init__(
        self,
        model: Reader,
        question: Principle,
        marks: Mapping[float, tuple[str, ...]],
        asking: Asking | None = None,
        *,
        sampler: Sampler | None = None,
    ) -> None:
        self._marks = tuple(marks)
        if len(marks) < 2 or any(a >= b for a, b in pairwise(self._marks)):
            raise ConfigError(f"the marks of a scale are {list(marks)}; expected at least two, rising")
        self._asking, self._question = asking or Asking(), question
        options = {str(mark): words for mark, words in marks.items()}
        self._interview = Interview(model, "ask", options, self._asking, sampler=sampler)
        self.name = f"scale:{question.name}"

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One scalar per (prompt, text), in order."""
        return _per_item(prompts, texts, lambda *_: [self._question], self._interview, self._verdict, self.name)

    def _verdict(self, asked: Sequence[Principle], answers: Sequence[Answer]) -> Feedback:
        shares = answers[0].shares
        mark = sum(p * m for p, m in zip(shares, self._marks, strict=True))
        low, high = self._marks[0], self._marks[-1]
        value = min(1.0, max(-1.0, 2 * (mark - low) / (high - low) - 1))
        return write(
            Scalar(value if asked[0].wanted else -value),
            source=self.name,
            confidence=min(1.0, max(shares)),
            cost=self._asking.price * answers[0].tokens,
            breakdown={"mark": mark},
            reason=answers[0].reasoning,
        )


def combined(parts: Sequence[tuple[float, float]], how: Combine) -> float:
    """Several (probability, weight) as one probability: weighted mean, product of p^weight, or the least."""
    if how == "min":
        return min(p for p, _ in parts)
    if how == "product":
        return math.prod(p**w for p, w in parts)
    return sum(p * w for p, w in parts) / sum(w for _, w in parts)


def failure(source: str, why: str, *, kind: str = "scalar", cost: float = 0.0) -> Feedback:
    """A judgement that was not made."""
    return Feedback(value=None, failure=why, source=source, kind=kind, cost=cost)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _question(prompt: Prompt, text: str, principle: Principle) -> Question:
    fields = {"request": request_of(prompt), "response": text, "question": principle.asked}
    return Question(ident=question_ident(prompt, text, principle.name), fields=fields)


def _ternary(value: float, dead_zone: float) -> Sign:
    return 0 if abs(value) <= dead_zone else 1 if value > 0 else -1


def _per_item(
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    principles: Callable[[Prompt, str], Sequence[Principle]],
    interview: Interview,
    verdict: Callable[[Sequence[Principle], Sequence[Answer]], Feedback],
    name: str,
) -> list[Feedback]:
    """Ask every principle of every item in one call, and give each item its verdict or its failure."""
    asked = [principles(p, t) if t.strip() else () for p, t in zip(prompts, texts, strict=True)]
    questions = [
        _question(prompt, text, x) for prompt, text, mine in zip(prompts, texts, asked, strict=True) for x in mine
    ]
    answers = iter(interview.ask(questions))
    out = []
    for mine in asked:
        own = [next(answers) for _ in mine]
        wrong = next((f"{x.name}: {a.failure}" for x, a in zip(mine, own, strict=True) if a.failure is not None), None)
        if not mine:
            out.append(failure(name, "the text is empty: there is nothing to judge"))
        elif wrong is not None:
            out.append(failure(name, wrong, cost=interview.asking.price * sum(a.tokens for a in own)))
        else:
            out.append(_safely(verdict, mine, own, name))
    return out


def _safely(
    verdict: Callable[[Sequence[Principle], Sequence[Answer]], Feedback],
    asked: Sequence[Principle],
    answers: Sequence[Answer],
    name: str,
) -> Feedback:
    try:
        return verdict(asked, answers)
    except DataError as error:  # numbers that no judgement can mean
        return failure(name, str(error))
