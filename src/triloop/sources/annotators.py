"""People that do not exist: a simulated annotator over an environment that knows attributes, as a source of any feedback.

``Person`` joins an ``Annotator`` (taste, bias, noise, delay, price) to an ``Attributed`` environment and speaks every
protocol of ``sources.judge``, and rankings, rubrics and spans besides. What is right stays with the environment's gold.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol, final

from triloop.envs.attributes_language import DISTRACTORS
from triloop.feedback.kinds import (
    Content,
    Edit,
    Pair,
    Ranking,
    Rubric,
    Scalar,
    Sign,
    Span,
    Spans,
    Ternary,
    Text,
    write,
)
from triloop.feedback.simulate import Annotator, Item
from triloop.records import Feedback, Prompt

__all__ = ["Attributed", "Finding", "JudgedKind", "Person", "features"]

JudgedKind = Literal["scalar", "ternary", "rubric", "spans", "text", "edit"]
"""Kinds that one completion can get."""


class Finding(Protocol):
    """One good (+1) or bad (-1) place of a text."""

    @property
    def attribute(self) -> str:
        """Which attribute it belongs to."""
        ...

    @property
    def start(self) -> int:
        """First character."""
        ...

    @property
    def end(self) -> int:
        """Behind the last character."""
        ...

    @property
    def sign(self) -> int:
        """+1 or -1."""
        ...

    @property
    def note(self) -> str:
        """As a critique says it."""
        ...


class Attributed(Protocol):
    """What of an environment an annotator looks at."""

    def attributes(self, prompt: Prompt, text: str) -> dict[str, float]:
        """Each in [0, 1], 1 good."""
        ...

    def defects(self, prompt: Prompt, text: str) -> Sequence[Finding]:
        """The good and bad places of the text."""
        ...

    def revise(self, prompt: Prompt, text: str, attributes: Collection[str] | None = None) -> str:
        """The text with the defects of these attributes mended."""
        ...


def features(text: str) -> dict[str, float]:
    """What may sway a judge: ``length`` in tens of words, ``distractor`` how many such words of the attribute world."""
    words = text.split()
    return {"length": len(words) / 10.0, "distractor": float(sum(w in DISTRACTORS for w in words))}


@final
class Person:
    """One simulated annotator of one environment. The same question always gets the same answer.

    ``kind`` is what ``judge`` gives. ``clock`` is when a question is put, in seconds since the epoch; the feedback's time
    is that plus the annotator's delay. Without a clock feedback has no time. Errors of the environment become failures.
    """

    def __init__(
        self,
        env: Attributed,
        annotator: Annotator,
        *,
        kind: JudgedKind = "scalar",
        clock: Callable[[], float] | None = None,
        consent: str = "simulated",
        sways: Callable[[str], dict[str, float]] = features,
    ) -> None:
        self._env, self.annotator, self._kind = env, annotator, kind
        self._clock, self._consent, self._sways = clock, consent, sways
        self.name = f"person:{annotator.name}"

    # ------------------------------------------------------------------ the protocols

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One judgement of this person's ``kind`` per (prompt, text), in order."""
        say: dict[JudgedKind, Callable[[Prompt, str], Content]] = {
            "scalar": self._scalar,
            "ternary": self._ternary,
            "rubric": self._rubric,
            "spans": self._spans,
            "text": self._text,
            "edit": self._edit,
        }
        return [self._told(self._kind, say[self._kind], p, t) for p, t in zip(prompts, texts, strict=True)]

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        """One ``pair`` judgement per (prompt, first, second), in order; a tie is 0."""
        return [self._told("pair", self._pair, *asked) for asked in zip(prompts, firsts, seconds, strict=True)]

    def critique(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """What this person noticed and minds, in words, per (prompt, text), in order."""
        return [self._told("text", self._text, *asked) for asked in zip(prompts, texts, strict=True)]

    def revise(self, prompts: Sequence[Prompt], texts: Sequence[str], critiques: Sequence[str]) -> list[Feedback]:
        """The text with what the critique names mended, per (prompt, text, critique), in order.

        An empty critique leaves it to this person's own eyes. Clauses that fit no defect of the text mend nothing."""
        return [self._told("edit", self._edit, *asked) for asked in zip(prompts, texts, critiques, strict=True)]

    def rank(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> list[Feedback]:
        """One ``ranking`` per (prompt, its texts), in order; positions are those of the texts."""
        return [self._told("ranking", self._ranking, p, *texts) for p, texts in zip(prompts, groups, strict=True)]

    # ------------------------------------------------------------------ one judgement

    def _item(self, prompt: Prompt, text: str) -> Item:
        return Item(id=_id(prompt, text), attributes=self._env.attributes(prompt, text), features=self._sways(text))

    def _scalar(self, prompt: Prompt, text: str) -> Scalar:
        return Scalar(self.annotator.scalar(self._item(prompt, text)))

    def _ternary(self, prompt: Prompt, text: str) -> Ternary:
        return Ternary(self.annotator.ternary(self._item(prompt, text)))

    def _rubric(self, prompt: Prompt, text: str) -> Rubric:
        return Rubric(self.annotator.rubric(self._item(prompt, text)))

    def _ranking(self, prompt: Prompt, *texts: str) -> Ranking:
        return Ranking(self.annotator.ranking([self._item(prompt, t) for t in texts]))

    def _pair(self, prompt: Prompt, first: str, second: str) -> Pair:
        value = self.annotator.pair(self._item(prompt, first), self._item(prompt, second))
        return Pair(_sign(value), abs(value))

    def _noticed(self, prompt: Prompt, text: str) -> list[Finding]:
        """What they see of the defects of attributes that matter to them."""
        return [
            d
            for d in self._env.defects(prompt, text)
            if self.annotator.weights.get(d.attribute, 0.0) > 0
            and self.annotator.notices(_id(prompt, text), f"{d.attribute} {d.start} {d.note}")
        ]

    def _spans(self, prompt: Prompt, text: str) -> Spans:
        seen = self._noticed(prompt, text)
        return Spans(tuple(Span(d.start, d.end, _sign(d.sign), d.note) for d in seen if d.start < d.end))

    def _text(self, prompt: Prompt, text: str) -> Text:
        bad = list(dict.fromkeys(d.note for d in self._noticed(prompt, text) if d.sign < 0))
        return Text(" ; ".join(bad) or "good", -1 if bad else 1)

    def _edit(self, prompt: Prompt, text: str, critique: str = "") -> Edit:
        if critique.strip():
            clauses = {" ".join(c.split()) for c in critique.split(";")}
            bad = [d for d in self._env.defects(prompt, text) if d.sign < 0 and d.note in clauses]
        else:
            bad = [d for d in self._noticed(prompt, text) if d.sign < 0]
        named = {d.attribute for d in bad}
        return Edit(self._env.revise(prompt, text, named) if named else text, self.name)

    def _told(self, kind: str, say: Callable[..., Content], prompt: Prompt, *texts: str) -> Feedback:
        price = self.annotator.price(kind)
        time = None
        if self._clock is not None:
            time = self._clock() + self.annotator.wait(kind, *(_id(prompt, t) for t in texts))
        try:
            return write(say(prompt, *texts), source=self.name, cost=price, time=time, consent=self._consent)
        except Exception as error:  # noqa: BLE001 - whatever the environment raises, the siblings go on
            why = f"{type(error).__name__}: {error}"
            return Feedback(value=None, failure=why, source=self.name, kind=kind, cost=price, time=time)


def _id(prompt: Prompt, text: str) -> str:
    return f"{prompt.id}\n{text}"


def _sign(x: float) -> Sign:
    return 1 if x > 0 else -1 if x < 0 else 0
