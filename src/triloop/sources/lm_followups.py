"""What a user would say next, as a judgement: a response is good when thanks are likelier than a correction."""

from __future__ import annotations

import math
from collections.abc import Sequence

from triloop.errors import ConfigError
from triloop.feedback.kinds import Scalar, write
from triloop.records import Feedback, Prompt
from triloop.sources.asking import Asking, Reader, asked_with, each_or_all, question_ident
from triloop.sources.lm_judge import failure, sigmoid
from triloop.sources.templates import guarded, request_of

__all__ = ["FollowUpJudge"]


class FollowUpJudge:
    """Follow-up likelihood as a judgement.

        r(x, y) = mean_{f in positive} log p(f | x, y) - mean_{f in negative} log p(f | x, y)      (nats)
        value   = 2 sigmoid((r - centre) / scale) - 1

    ``p(f)`` is the whole follow-up's probability, or with ``per_token`` the geometric mean of its tokens', so that long
    ones do not decide. ``centre`` is where good and bad balance: the median of r on a few hundred items, as
    ``likelihoods`` gives them.
    FLR (S127), arXiv:2409.13948.
    """

    def __init__(
        self,
        model: Reader,
        positive: Sequence[str],
        negative: Sequence[str],
        asking: Asking | None = None,
        *,
        per_token: bool = False,
        centre: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        if not positive or not negative:
            raise ConfigError(
                f"{len(positive)} positive and {len(negative)} negative follow-ups; expected some of each"
            )
        if not (scale > 0 and math.isfinite(scale) and math.isfinite(centre)):
            raise ConfigError(f"scale is {scale} and centre {centre}; expected finite numbers, scale above 0")
        self._model, self._asking = model, asking or Asking()
        self._per_token, self._centre, self._scale = per_token, centre, scale
        spelt = [tuple(model.tokenizer.encode(text, add_special=False)) for text in (*positive, *negative)]
        if not all(spelt):
            raise ConfigError("a follow-up has no tokens; give each at least a word")
        self._positive, self._negative = tuple(spelt[: len(positive)]), tuple(spelt[len(positive) :])
        self._guarded = guarded(model.tokenizer, self._asking.templates)
        self._asking.templates.get("follow")
        self.name = "follow-ups"

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One scalar per (prompt, text), in order; ``breakdown`` holds r, and each side's mean."""
        return [self._verdict(*told) for told in self._told(prompts, texts)]

    def likelihoods(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """r of every item; NaN where it failed."""
        return [math.nan if isinstance(told, str) else told[0] - told[1] for told, _ in self._told(prompts, texts)]

    def _told(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[tuple[tuple[float, float] | str, int]]:
        """(mean log p of positive, of negative) or a reason, and tokens, for every item."""
        every = (*self._positive, *self._negative)
        longest, limit = max(map(len, every)), self._asking.longest
        contexts = []
        for prompt, text in zip(prompts, texts, strict=True):
            fields = {"request": request_of(prompt), "response": text}
            asked = asked_with(self._asking.templates, "follow", question_ident(prompt, text), fields, self._guarded)
            contexts.append(self._model.encode(asked) if text.strip() else ())
        fits = [i for i, c in enumerate(contexts) if c and (limit is None or len(c) + longest <= limit)]
        flat = [(contexts[i], f) for i in fits for f in every]
        scores = each_or_all(lambda chunk: [float(x.sum()) for x in self._model.logprobs(chunk)], flat, len(every))
        out: list[tuple[tuple[float, float] | str, int]] = []
        place = {i: at * len(every) for at, i in enumerate(fits)}
        for i, context in enumerate(contexts):
            if i in place:
                own = scores[place[i] : place[i] + len(every)]
                out.append((self._sides(own), len(context) + sum(map(len, every))))
            elif not context:
                out.append(("the text is empty: nobody follows up on nothing", 0))
            else:
                out.append(
                    (f"the dialogue has {len(context)} tokens and a follow-up {longest}; the judge takes {limit}", 0)
                )
        return out

    def _sides(self, scores: Sequence[float | str]) -> tuple[float, float] | str:
        wrong = next((s for s in scores if isinstance(s, str)), None)
        if wrong is not None:
            return wrong
        numbers = [float(s) for s in scores]
        if not all(math.isfinite(x) for x in numbers):
            return "the judge's log-probabilities are not finite"
        if self._per_token:
            numbers = [x / len(f) for x, f in zip(numbers, (*self._positive, *self._negative), strict=True)]
        at = len(self._positive)
        return sum(numbers[:at]) / at, sum(numbers[at:]) / len(self._negative)

    def _verdict(self, told: tuple[float, float] | str, tokens: int) -> Feedback:
        cost = self._asking.price * tokens
        if isinstance(told, str):
            return failure(self.name, told, cost=cost)
        r = told[0] - told[1]
        p = sigmoid((r - self._centre) / self._scale)
        parts = {"likelihood": r, "positive": told[0], "negative": told[1]}
        return write(Scalar(2 * p - 1), source=self.name, confidence=max(p, 1 - p), cost=cost, breakdown=parts)
