"""Judges that read a written reply, for models behind an endpoint, which complete prompts and tell no probabilities.

The form is strict: the reply is one of the answer words and nothing else. It is asked once; any other reply is a failure,
and what a response says about itself, in whatever form, is never looked at as a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from triloop.errors import ConfigError
from triloop.feedback.kinds import Pair, Sign, Ternary, write
from triloop.policies.protocol import Sampler, Tag
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Feedback, Prompt
from triloop.sources.asking import asked_with, question_ident, written
from triloop.sources.constitution import Constitution, Principle, as_constitution
from triloop.sources.lm_judge import failure
from triloop.sources.templates import CHAT, Templates, request_of

__all__ = ["ReplyJudge", "ReplyPairs", "read_reply"]


def read_reply(reply: Completion | str, words: dict[str, tuple[str, ...]]) -> tuple[str | None, str]:
    """(which option the reply names, why none): spaces around it and one full stop at its end are all that it may add."""
    if isinstance(reply, str):
        return None, reply
    if reply.finish != "stop":
        return None, f"the reply was cut off ({reply.finish}): {reply.text[:60]!r}"
    said = reply.text.strip().removesuffix(".")
    for option, spelt in words.items():
        if said in {word.strip() for word in spelt}:
            return option, ""
    allowed = ", ".join(repr(word.strip()) for spelt in words.values() for word in spelt)
    return None, f"the reply is {reply.text[:60]!r}; expected one of {allowed}"


class _Asker:
    """Writes prompts, takes replies. The special tokens of a model behind an endpoint are its server's to keep out."""

    def __init__(self, sampler: Sampler, templates: Templates, sampling: Sampling | None, seed: int) -> None:
        self.sampler, self.templates, self.seed = sampler, templates, seed
        self.sampling = sampling or Sampling(max_tokens=8, temperature=0.0)

    def replies(self, name: str, asked: Sequence[tuple[str, dict[str, str]]]) -> list[Completion | str]:
        prompts = [asked_with(self.templates, name, ident, fields, self.templates.fences) for ident, fields in asked]
        tag = Tag(seed=self.seed, round=0, purpose=f"judge/{name}")
        return written(self.sampler, prompts, self.sampling, n=1, tag=tag)


class ReplyJudge:
    """A yes/no question by written reply: +1, -1, or 0 for the word that says neither."""

    def __init__(
        self,
        sampler: Sampler,
        question: Principle,
        templates: Templates = CHAT,
        *,
        sampling: Sampling | None = None,
        price: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._asker, self._question, self._price = _Asker(sampler, templates, sampling, seed), question, price
        templates.get("ask")
        self._words = _distinct({"yes": templates.yes, "no": templates.no, "none": templates.none})
        self.name = f"reply:{question.name}"

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One ternary per (prompt, text), in order."""
        whole = [i for i, t in enumerate(texts) if t.strip()]
        asked = []
        for i in whole:
            fields = {"request": request_of(prompts[i]), "response": texts[i], "question": self._question.asked}
            asked.append((question_ident(prompts[i], texts[i], self._question.name), fields))
        replies = dict(zip(whole, self._asker.replies("ask", asked), strict=True))
        return [
            self._verdict(replies.get(i, "the text is empty: there is nothing to judge")) for i in range(len(texts))
        ]

    def _verdict(self, reply: Completion | str) -> Feedback:
        said, why = read_reply(reply, self._words)
        cost = _cost(reply, self._price)
        if said is None:
            return failure(self.name, why, kind="ternary", cost=cost)
        mark: Sign = 0 if said == "none" else 1 if (said == "yes") == self._question.wanted else -1
        return write(Ternary(mark), source=self.name, cost=cost)


class ReplyPairs:
    """A comparison by written reply in both orders: the side that wins both, else a tie."""

    def __init__(
        self,
        sampler: Sampler,
        principles: Constitution | Principle,
        templates: Templates = CHAT,
        *,
        sampling: Sampling | None = None,
        price: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._asker, self._price, self._seed = _Asker(sampler, templates, sampling, seed), price, seed
        self._constitution = as_constitution(principles)
        templates.get("compare")
        self._words = _distinct({"first": templates.first, "second": templates.second, "tie": templates.tie})
        self.name = f"reply-pairs:{self._constitution.name}"

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        """One pair per (prompt, first, second), in order; both orders must be readable."""
        items = list(zip(prompts, firsts, seconds, strict=True))
        whole = [i for i, (_, a, b) in enumerate(items) if a.strip() and b.strip()]
        asked = []
        for i in whole:
            prompt, first, second = items[i]
            ident = question_ident(prompt, first, second)
            same = question_ident(prompt, *sorted((first, second)))  # whichever is named first, one principle decides
            fields = {"request": request_of(prompt), "principle": self._constitution.draw(self._seed, same).text}
            asked.append((f"{ident}/ab", {**fields, "first": first, "second": second}))
            asked.append((f"{ident}/ba", {**fields, "first": second, "second": first}))
        replies = self._asker.replies("compare", asked)
        told = {i: (replies[2 * at], replies[2 * at + 1]) for at, i in enumerate(whole)}
        empty = failure(self.name, "a text is empty: there is nothing to compare", kind="pair")
        return [self._verdict(*told[i]) if i in told else empty for i in range(len(items))]

    def _verdict(self, forward: Completion | str, backward: Completion | str) -> Feedback:
        cost = _cost(forward, self._price) + _cost(backward, self._price)
        marks: list[int] = []
        for reply, first in ((forward, 1), (backward, -1)):
            said, why = read_reply(reply, self._words)
            if said is None:
                return failure(self.name, why, kind="pair", cost=cost)
            marks.append(0 if said == "tie" else first if said == "first" else -first)
        agreed: Literal[-1, 0, 1] = 1 if marks == [1, 1] else -1 if marks == [-1, -1] else 0
        parts = {"forward": (marks[0] + 1) / 2, "backward": (marks[1] + 1) / 2, "bias": (marks[0] - marks[1]) / 2}
        return write(Pair(agreed), source=self.name, cost=cost, breakdown=parts)


def _cost(reply: Completion | str, price: float) -> float:
    return price * (len(reply.prompt_tokens) + len(reply.tokens)) if isinstance(reply, Completion) else 0.0


def _distinct(words: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    spelt = [word.strip() for option in words.values() for word in option]
    if len(spelt) != len(set(spelt)) or not all(list(words.values())[:2]):
        raise ConfigError(f"the answer words are {spelt}; expected some for each side, none of them twice")
    return words
