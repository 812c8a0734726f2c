"""How a judging model is asked: every question of a batch in one call, answers read off the log-probabilities of words.

A question that cannot be answered (too long, not a number, no probability on any of the words) becomes a reason in words;
its neighbours are answered all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from triloop import rng
from triloop.errors import ConfigError, GuardStop, Interrupted, TriloopError
from triloop.policies.protocol import Sampler, Scorer, Tag
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Prompt
from triloop.sources.templates import CHAT, FIELDS, Templates, defanged, fill, guarded, request_of

if TYPE_CHECKING:
    from triloop.nn.tokenizer import Tokenizer

__all__ = [
    "Answer",
    "Asking",
    "Interview",
    "Question",
    "Reader",
    "Thinking",
    "answer_tokens",
    "asked_with",
    "each_or_all",
    "question_ident",
    "written",
]

T = TypeVar("T")
Tokens = tuple[int, ...]


class Reader(Scorer, Protocol):
    """A model that can be asked: it scores tokens, and turns prompts into them. Every ``Policy`` is one."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokens of a prompt, chat template applied when it has turns."""
        ...


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """Reasoning before the verdict."""

    max_tokens: int = 192
    """Longest reasoning; one that is cut there counts all the same."""
    temperature: float = 1.0
    samples: int = 1
    """Reasonings per question; their verdicts are averaged (self-consistency)."""
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"thinking.samples is {self.samples}; expected at least 1")

    @property
    def sampling(self) -> Sampling:
        """As the rollout engine takes it."""
        return Sampling(max_tokens=self.max_tokens, temperature=self.temperature, stop=self.stop)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What all judges over a model have in common."""

    templates: Templates = CHAT
    longest: int | None = None
    """Most tokens of a question with its answer, such as the model's positions; a longer one fails. None: no limit."""
    least_mass: float = 1e-3
    """Least probability that the answer words must have together; below it the model is not answering, and that fails."""
    price: float = 0.0
    """Of a token read or written, in the unit of ``Feedback.cost``."""
    thinking: Thinking | None = None
    """Reason in words before the verdict."""

    def __post_init__(self) -> None:
        rules = (
            (self.longest is None or self.longest >= 2, "longest", self.longest, "None or at least 2 tokens"),
            (0 <= self.least_mass < 1, "least_mass", self.least_mass, "in [0, 1)"),
            (self.price >= 0 and math.isfinite(self.price), "price", self.price, "0 or more"),
        )
        for good, name, got, expected in rules:
            if not good:
                raise ConfigError(f"asking.{name} is {got!r}; expected {expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question about a stranger's texts."""

    ident: str
    """Names its random stream: equal idents and texts reason alike, whatever else is in the batch."""
    fields: Mapping[str, str]
    """What fills the template, as it came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a question."""

    logps: tuple[float, ...] = ()
    """Log-probability (nats) of each option, normalised over the options; averaged over the reasonings."""
    mass: float = 0.0
    """Probability that the model gave to the options together."""
    spread: float = 0.0
    """Largest difference of the first option's probability between two reasonings."""
    tokens: int = 0
    """Read and written."""
    reasoning: str = ""
    failure: str | None = None

    @property
    def shares(self) -> tuple[float, ...]:
        """Probability of each option, given that one of them is the answer."""
        return tuple(math.exp(x) for x in self.logps)


class Interview:
    """A model, what it is asked with, and the options that it chooses between.

    ``kind`` is ``ask`` or ``compare``. Raises ConfigError where the answer words cannot be told apart, and ModelError where
    the model has no chat template for templates with turns.
    """

    def __init__(
        self,
        model: Reader,
        kind: str,
        options: Mapping[str, tuple[str, ...]],
        asking: Asking,
        *,
        sampler: Sampler | None,
    ) -> None:
        if asking.thinking is not None and sampler is None:
            raise ConfigError("a judge that reasons first needs a model that samples; give sampler=POLICY")
        self.model, self.kind, self.asking, self.sampler = model, kind, asking, sampler
        self.tokens = answer_tokens(model.tokenizer, options)
        self.guarded = guarded(model.tokenizer, asking.templates)
        template = asking.templates.get(kind)
        model.encode(fill(template, "probe", dict.fromkeys(FIELDS[kind], "x")))

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order."""
        if self.asking.thinking is None:
            name = self.kind
            return self._read([self._prompt(name, q.ident, q.fields) for q in questions])
        return self._reason(questions, self.asking.thinking)

    def write(
        self, name: str, questions: Sequence[Question], sampling: Sampling, *, n: int = 1, seed: int = 0
    ) -> list[Completion | str]:
        """``n`` completions of each question's template ``name``, question by question; a reason where there is none."""
        assert self.sampler is not None, "checked when the judge was made"
        prompts = [self._prompt(name, q.ident, q.fields) for q in questions]
        return written(self.sampler, prompts, sampling, n=n, tag=Tag(seed=seed, round=0, purpose=f"judge/{name}"))

    def _prompt(self, name: str, ident: str, fields: Mapping[str, str]) -> Prompt:
        return asked_with(self.asking.templates, name, ident, fields, self.guarded)

    def _reason(self, questions: Sequence[Question], how: Thinking) -> list[Answer]:
        thoughts = self.write(f"think_{self.kind}", questions, how.sampling, n=how.samples, seed=how.seed)
        prompts, spoken = [], []
        for i, thought in enumerate(thoughts):
            if isinstance(thought, Completion) and thought.text.strip():
                q = questions[i // how.samples]
                prompts.append(self._prompt(f"{self.kind}_reasoned", q.ident, {**q.fields, "reasoning": thought.text}))
                spoken.append(i)
        read = dict(zip(spoken, self._read(prompts), strict=True))
        answers = []
        for i in range(len(questions)):
            mine = range(i * how.samples, (i + 1) * how.samples)
            why = next((t for t in (thoughts[j] for j in mine) if isinstance(t, str)), "the model wrote no reasoning")
            written_tokens = sum(
                len(t.prompt_tokens) + len(t.tokens) for j in mine if isinstance(t := thoughts[j], Completion)
            )
            reasoning = next((t.text for j in mine if isinstance(t := thoughts[j], Completion)), "")
            answers.append(_pooled([read[j] for j in mine if j in read], why, written_tokens, reasoning))
        return answers

    def _read(self, prompts: Sequence[Prompt]) -> list[Answer]:
        encoded = [self.model.encode(p) for p in prompts]
        longest_answer = max(len(t) for option in self.tokens for t in option)
        limit = self.asking.longest
        fits = [i for i, e in enumerate(encoded) if limit is None or len(e) + longest_answer <= limit]
        words = [t for option in self.tokens for t in option]
        flat = [(encoded[i], t) for i in fits for t in words]
        per = len(words)
        scored = each_or_all(lambda chunk: [float(x.sum()) for x in self.model.logprobs(chunk)], flat, per)
        answers = [
            Answer(failure=f"the question has {len(e)} tokens and its answer {longest_answer}; the judge takes {limit}")
            for e in encoded
        ]
        for at, i in enumerate(fits):
            answers[i] = self._answer(scored[at * per : (at + 1) * per], len(encoded[i]) + sum(map(len, words)))
        return answers

    def _answer(self, scores: Sequence[float | str], tokens: int) -> Answer:
        wrong = next((s for s in scores if isinstance(s, str)), None)
        if wrong is not None:
            return Answer(failure=wrong, tokens=tokens)
        numbers, options, at = [float(s) for s in scores], [], 0
        if any(math.isnan(x) or x == math.inf for x in numbers):
            return Answer(failure="the judge's log-probabilities are not numbers", tokens=tokens)
        for option in self.tokens:
            options.append(_logsumexp(numbers[at : at + len(option)]))
            at += len(option)
        total = _logsumexp(options)
        mass = math.exp(min(total, 0.0))
        if total == -math.inf or mass < self.asking.least_mass:
            why = f"the judge gives its answer words a probability of {mass:.2g} in all: it does not answer"
            return Answer(failure=why, mass=mass, tokens=tokens)
        return Answer(logps=tuple(x - total for x in options), mass=mass, tokens=tokens)


def answer_tokens(tokenizer: Tokenizer, options: Mapping[str, tuple[str, ...]]) -> tuple[tuple[Tokens, ...], ...]:
    """Token sequences of each option's words. Raises ConfigError unless every word can be written and told from the others.

    Words whose tokens begin another word's are refused: the shorter one's probability would contain the longer one's.
    """
    spelt: dict[Tokens, str] = {}
    result = []
    for option, words in options.items():
        if not words:
            raise ConfigError(f"the judge's templates give no word for {option!r}; give at least one")
        tokens = []
        for word in words:
            ids = tuple(tokenizer.encode(word, add_special=False))
            where = f"the answer {word!r} ({option})"
            if not ids or tokenizer.special_ids.intersection(ids):
                raise ConfigError(
                    f"{where} has tokens {list(ids)}, which the judge's vocabulary cannot write; take another"
                )
            for other, name in spelt.items():
                short = min(len(ids), len(other))
                if ids[:short] == other[:short]:
                    raise ConfigError(
                        f"{where} has tokens {list(ids)} and {name} has {list(other)}: one begins like the other, and "
                        "their probabilities cannot be told apart; take words that differ from their first token on"
                    )
            spelt[ids] = where
            tokens.append(ids)
        result.append(tuple(tokens))
    return tuple(result)


def each_or_all(call: Callable[[Sequence[T]], Sequence[float]], items: Sequence[T], per: int = 1) -> list[float | str]:
    """``call`` on all items at once; where that raises, on groups of ``per`` alone, so that one bad group spoils no other.

    A group that raises on its own is a reason in words. What asks to stop, and errors of programming, pass through.
    """
    return _shielded(call, items, per, 1)


def written(
    sampler: Sampler, prompts: Sequence[Prompt], sampling: Sampling, *, n: int, tag: Tag
) -> list[Completion | str]:
    """``n`` completions per prompt, or the reason why a prompt has none."""
    return _shielded(lambda chunk: sampler.sample(chunk, n, sampling, tag), prompts, 1, n)


R = TypeVar("R")


def _shielded(call: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], per: int, n: int) -> list[R | str]:
    if not items:
        return []
    try:
        return list(call(items))
    except (GuardStop, Interrupted):
        raise
    except (TriloopError, ValueError, IndexError, RuntimeError, OSError) as error:
        if len(items) <= per:
            return [f"{type(error).__name__}: {error}"] * (len(items) * n)
    out: list[R | str] = []
    for at in range(0, len(items), per):
        out += _shielded(call, items[at : at + per], per, n)
    return out


def _pooled(read: Sequence[Answer], why: str, written_tokens: int, reasoning: str) -> Answer:
    """The mean of several reasonings' verdicts."""
    tokens = written_tokens + sum(a.tokens for a in read)
    good = [a for a in read if a.failure is None]
    if not good:
        return Answer(failure=read[0].failure if read else why, tokens=tokens, reasoning=reasoning)
    logps = tuple(_logsumexp(column) - math.log(len(good)) for column in zip(*(a.logps for a in good), strict=True))
    firsts = [a.shares[0] for a in good]
    return Answer(
        logps=logps,
        mass=sum(a.mass for a in good) / len(good),
        spread=max(firsts) - min(firsts),
        tokens=tokens,
        reasoning=reasoning,
    )


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(v - top) for v in values))


def asked_with(templates: Templates, name: str, ident: str, fields: Mapping[str, str], marks: Sequence[str]) -> Prompt:
    """The prompt that the template ``name`` makes of a stranger's texts, none of which keeps an unbroken mark.

    A field ``reference`` (the judge's own answer) goes into the request.
    """
    safe = {key: defanged(text, marks) for key, text in fields.items()}
    if "reference" in safe:
        safe["request"] = templates.referred.format_map(safe)
    return fill(templates.get(name), ident, safe)


def question_ident(prompt: Prompt, *parts: str) -> str:
    """Names a question by what it is about, so that its random stream depends on nothing else."""
    return f"{prompt.id}/{rng.key('question', request_of(prompt), *parts):016x}"
