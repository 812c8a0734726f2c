"""Which of two responses is better, by the log-probabilities of the letters that name them, in both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from triloop import rng
from triloop.errors import ConfigError
from triloop.feedback.kinds import Pair, write
from triloop.policies.protocol import Sampler
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Feedback, Prompt
from triloop.sources.asking import Answer, Asking, Interview, Question, Reader, question_ident
from triloop.sources.constitution import Constitution, Principle, as_constitution
from triloop.sources.lm_judge import failure
from triloop.sources.templates import request_of

__all__ = ["Comparing", "PairwiseJudge", "pair_of"]

_BEST = Principle(name="overall", text="which is the better response overall")


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """How a pairwise judge makes one verdict of what it was told."""

    orders: Literal["both", "given", "random"] = "both"
    """``both`` cancels position bias; ``given`` shows the first as A; ``random`` flips a coin per item, half the price."""
    inconsistent: Literal["tie", "average"] = "tie"
    """What becomes of an item whose two orders choose different responses: a tie, or the average of the probabilities."""
    clamp: tuple[float, float] = (0.0, 1.0)
    """Bounds of the final probability. Constitutional AI clamps to (0.4, 0.6) after reasoning, which makes it too sure."""
    hard: bool = False
    """Only who is better, with full strength."""
    drawn: bool = True
    """Draw one principle per item from the constitution; else every principle is asked and the probabilities averaged."""
    seed: int = 0
    reference: Sampling | None = None
    """How the judge answers the request itself before it compares (self-reference); None: it does not."""

    def __post_init__(self) -> None:
        low, high = self.clamp
        rules = (
            (self.orders in ("both", "given", "random"), "orders", self.orders, "both, given or random"),
            (self.inconsistent in ("tie", "average"), "inconsistent", self.inconsistent, "tie or average"),
            (
                0 <= low <= 0.5 <= high <= 1 and low < high,
                "clamp",
                self.clamp,
                "0 <= low <= 0.5 <= high <= 1, low < high",
            ),
        )
        for good, name, got, expected in rules:
            if not good:
                raise ConfigError(f"comparing.{name} is {got!r}; expected {expected}")


class PairwiseJudge:
    """Compares two responses under a principle: ``pair`` feedback, value 2p - 1 with p the probability of the first.

        forward  = P(A | first shown as A, second as B)      backward = P(B | second shown as A, first as B)
        p        = (forward + backward) / 2                  bias     = forward - backward

    Both are probabilities that the *first* is better; ``bias`` is above 0 for a judge that favours what it sees first. All
    orders of all items go to the model in one call. ``breakdown`` holds forward, backward and bias (averaged over
    principles), and ``tie`` where the templates have a word for it: its probability, shared evenly by both sides.

    S118 (arXiv:2309.00267), both orders and soft labels; S092 (arXiv:2406.11190), self-reference; A08 (arXiv:2212.08073),
    principles and the clamp; A09, reasoning first (``Asking.thinking``).
    """

    def __init__(
        self,
        model: Reader,
        principles: Constitution | Principle = _BEST,
        asking: Asking | None = None,
        comparing: Comparing | None = None,
        *,
        sampler: Sampler | None = None,
    ) -> None:
        self._asking, self._how = asking or Asking(), comparing or Comparing()
        self._constitution = as_constitution(principles)
        if self._how.reference is not None and sampler is None:
            raise ConfigError("a judge that answers first needs a model that samples; give sampler=POLICY")
        words = self._asking.templates
        options = {"first": words.first, "second": words.second} | ({"tie": words.tie} if words.tie else {})
        self._interview = Interview(model, "compare", options, self._asking, sampler=sampler)
        self.name = f"pairs:{self._constitution.name}"

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        """One judgement per (prompt, first, second), in order."""
        items = list(zip(prompts, firsts, seconds, strict=True))
        requests, spent = self._requests(prompts)
        whole = [i for i, (_, a, b) in enumerate(items) if a.strip() and b.strip() and requests[i].failure is None]
        asked = [self._questions(*items[i], requests[i].fields) for i in whole]
        answers = iter(self._interview.ask([q for mine in asked for _, q in mine]))
        told = {i: [(swapped, next(answers)) for swapped, _ in mine] for i, mine in zip(whole, asked, strict=True)}
        out = []
        for i in range(len(items)):
            if i in told:
                out.append(self._verdict(told[i], spent[i]))
            else:
                why = requests[i].failure or "a text is empty: there is nothing to compare"
                out.append(failure(self.name, why, kind="pair", cost=self._asking.price * spent[i]))
        return out

    def _requests(self, prompts: Sequence[Prompt]) -> tuple[list[_Request], list[int]]:
        """What each comparison shows as the request, with the judge's own answer when it gives one; tokens spent on it."""
        plain = [request_of(p) for p in prompts]
        how = self._how.reference
        if how is None:
            return [_Request(text) for text in plain], [0] * len(plain)
        asked = [Question(ident=question_ident(p), fields={"request": t}) for p, t in zip(prompts, plain, strict=True)]
        own = self._interview.write("answer", asked, how, seed=self._how.seed)
        out, spent = [], []
        for text, answer in zip(plain, own, strict=True):
            spoken = isinstance(answer, Completion) and bool(answer.text.strip())
            why = "the judge gave no answer of its own" if isinstance(answer, Completion) else answer
            reference = answer.text if isinstance(answer, Completion) else ""
            out.append(_Request(text, reference) if spoken else _Request(text, failure=why))
            spent.append(len(answer.prompt_tokens) + len(answer.tokens) if isinstance(answer, Completion) else 0)
        return out, spent

    def _questions(
        self, prompt: Prompt, first: str, second: str, shown: Mapping[str, str]
    ) -> list[tuple[bool, Question]]:
        """(shown the other way round, question) for every principle and order of one item."""
        ident = question_ident(prompt, first, second)
        every = self._constitution.principles
        same = question_ident(prompt, *sorted((first, second)))  # whichever is named first, one principle decides
        principles = (self._constitution.draw(self._how.seed, same),) if self._how.drawn else every
        coin = bool(rng.key(self._how.seed, "order", ident) & 1)
        orders = {"both": (False, True), "given": (False,), "random": (coin,)}[self._how.orders]
        questions = []
        for principle in principles:
            for swapped in orders:
                a, b = (second, first) if swapped else (first, second)
                fields = {**shown, "first": a, "second": b, "principle": principle.text}
                name = f"{ident}/{principle.name}/{'ba' if swapped else 'ab'}"
                questions.append((swapped, Question(ident=name, fields=fields)))
        return questions

    def _verdict(self, told: Sequence[tuple[bool, Answer]], spent: int) -> Feedback:
        cost = self._asking.price * (spent + sum(a.tokens for _, a in told))
        wrong = next((a.failure for _, a in told if a.failure is not None), None)
        if wrong is not None:
            return failure(self.name, wrong, kind="pair", cost=cost)
        forward = [_of_first(a, swapped) for swapped, a in told if not swapped]
        backward = [_of_first(a, swapped) for swapped, a in told if swapped]
        means = [sum(side) / len(side) for side in (forward, backward) if side]
        parts = {name: sum(side) / len(side) for name, side in (("forward", forward), ("backward", backward)) if side}
        if len(means) == 2:
            parts["bias"] = means[0] - means[1]
        if self._asking.templates.tie:
            parts["tie"] = sum(a.shares[2] for _, a in told) / len(told)
        p = sum(means) / len(means)
        low, high = self._how.clamp
        disagree = len(means) == 2 and (means[0] - 0.5) * (means[1] - 0.5) < 0
        p = 0.5 if disagree and self._how.inconsistent == "tie" else min(high, max(low, p))
        return write(
            pair_of(2 * p - 1, hard=self._how.hard),
            source=self.name,
            confidence=max(p, 1 - p) if not disagree else 1 - abs(means[0] - means[1]),
            cost=cost,
            breakdown=parts,
            reason="; ".join(a.reasoning for _, a in told if a.reasoning)
            or ("the orders disagree" if disagree else ""),
        )


@dataclass(frozen=True, slots=True)
class _Request:
    """What a comparison shows as the request, or why it cannot."""

    plain: str
    reference: str = ""
    failure: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        return {"request": self.plain} | ({"reference": self.reference} if self.reference else {})


def pair_of(value: float, *, hard: bool = False) -> Pair:
    """Content of a pair whose value is this number in [-1, 1]."""
    sign: Literal[-1, 0, 1] = 0 if value == 0 else 1 if value > 0 else -1
    return Pair(sign, 1.0 if hard or sign == 0 else min(1.0, abs(value)))


def _of_first(answer: Answer, swapped: bool) -> float:
    """Probability that the item's first response is better; a tie counts half for either."""
    shares = answer.shares
    p = shares[1] if swapped else shares[0]
    return p + 0.5 * shares[2] if len(shares) == 3 else p
