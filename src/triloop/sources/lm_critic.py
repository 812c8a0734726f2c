"""Critics and revisers over a model that samples, and the rounds of critique and revision between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from triloop.errors import ConfigError
from triloop.feedback.kinds import Edit, Text, read, write
from triloop.policies.protocol import Sampler, Tag
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Feedback, Prompt
from triloop.sources.asking import asked_with, question_ident, written
from triloop.sources.constitution import Constitution, Principle, as_constitution
from triloop.sources.judge import Critic, Reviser
from triloop.sources.lm_judge import failure
from triloop.sources.templates import CHAT, Templates, guarded, request_of

if TYPE_CHECKING:
    from triloop.nn.tokenizer import Tokenizer

__all__ = ["Improved", "PolicyCritic", "PolicyReviser", "Writer", "Writing", "improve_by_critique"]

_ANYTHING = Principle(name="overall", text="be as good a response as can be")


class Writer(Sampler, Protocol):
    """A model that completes prompts and says how it spells: a ``Policy``. What it is shown is guarded by that spelling."""

    @property
    def tokenizer(self) -> Tokenizer: ...


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How critics and revisers write."""

    templates: Templates = CHAT
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=192))
    seed: int = 0
    round: int = 0
    """Of the loop that asks: another round draws other principles and other words for the same texts."""
    form: str = ""
    """A regular expression for the whole reply; its group ``text``, if it has one, is what counts. Empty: any reply."""
    price: float = 0.0
    """Of a token read or written."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.form)
        except re.error as error:
            raise ConfigError(f"writing.form {self.form!r} is no regular expression: {error}") from error


class _Desk:
    """What a critic and a reviser share: prompts from templates, replies of one form."""

    def __init__(self, model: Writer, principles: Constitution | Principle, how: Writing, template: str) -> None:
        self.model, self.how, self.template = model, how, template
        self.constitution = as_constitution(principles)
        self.marks = guarded(model.tokenizer, how.templates)
        how.templates.get(template)

    def principle(self, prompt: Prompt, text: str) -> Principle:
        return self.constitution.draw(self.how.seed, self.how.round, question_ident(prompt, text))

    def replies(self, asked: Sequence[tuple[str, dict[str, str]]]) -> list[Completion | str]:
        prompts = [asked_with(self.how.templates, self.template, ident, fields, self.marks) for ident, fields in asked]
        tag = Tag(seed=self.how.seed, round=self.how.round, purpose=self.template)
        return written(self.model, prompts, self.how.sampling, n=1, tag=tag)

    def text_of(self, reply: Completion) -> tuple[str, str]:
        """(what counts of the reply, why nothing does)."""
        said = reply.text.strip()
        if reply.finish != "stop":
            return "", f"the reply did not end within {len(reply.tokens)} tokens ({reply.finish})"
        if self.how.form:
            match = re.fullmatch(self.how.form, said, re.DOTALL)
            if match is None:
                return "", f"the reply {said[:60]!r} is not of the form {self.how.form!r}"
            said = (match.groupdict().get("text") if "text" in match.groupdict() else match.group()) or ""
        return said.strip(), "" if said.strip() else "the reply is empty"

    def cost(self, reply: Completion | str) -> float:
        return self.how.price * (len(reply.prompt_tokens) + len(reply.tokens)) if isinstance(reply, Completion) else 0.0


class PolicyCritic:
    """Says what is wrong with a response under one principle, drawn per item: ``text`` feedback.

    Its sign is +1 for a critique that is one of ``templates.praise`` and -1 for any other; the principle's name is the
    reason. A reply that is empty, cut off, or not of the form is a failure.
    """

    def __init__(
        self, model: Writer, principles: Constitution | Principle = _ANYTHING, writing: Writing | None = None
    ) -> None:
        self._desk = _Desk(model, principles, writing or Writing(), "critique")
        self.name = f"critic:{self._desk.constitution.name}"

    def critique(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One critique per (prompt, text), in order."""
        drawn = [self._desk.principle(p, t) for p, t in zip(prompts, texts, strict=True)]
        asked = [
            (
                question_ident(p, t, x.name),
                {"request": request_of(p), "response": t, "principle": x.sought},
            )
            for p, t, x in zip(prompts, texts, drawn, strict=True)
        ]
        return [self._written(r, x) for r, x in zip(self._desk.replies(asked), drawn, strict=True)]

    def _written(self, reply: Completion | str, principle: Principle) -> Feedback:
        cost = self._desk.cost(reply)
        said, why = ("", reply) if isinstance(reply, str) else self._desk.text_of(reply)
        if not said:
            return failure(self.name, why, kind="text", cost=cost)
        content = Text(said, 1 if said in self._desk.how.templates.praise else -1)
        return write(content, source=self.name, cost=cost, reason=principle.name)


class PolicyReviser:
    """Writes a response anew with a critique in hand: ``edit`` feedback. It keeps the text as it is where the critique is
    praise, at no cost."""

    def __init__(
        self, model: Writer, principles: Constitution | Principle = _ANYTHING, writing: Writing | None = None
    ) -> None:
        self._desk = _Desk(model, principles, writing or Writing(), "revise")
        self.name = f"reviser:{self._desk.constitution.name}"

    def revise(self, prompts: Sequence[Prompt], texts: Sequence[str], critiques: Sequence[str]) -> list[Feedback]:
        """One revision per (prompt, text, critique), in order."""
        praise = self._desk.how.templates.praise
        items = list(zip(prompts, texts, critiques, strict=True))
        wanted = [i for i, (_, _, critique) in enumerate(items) if critique.strip() not in praise]
        asked = []
        for i in wanted:
            prompt, text, critique = items[i]
            principle = self._desk.principle(prompt, text)
            fields = {"request": request_of(prompt), "response": text, "critique": critique, "principle": principle.aim}
            asked.append((question_ident(prompt, text, critique), fields))
        replies = dict(zip(wanted, self._desk.replies(asked), strict=True))
        return [
            self._written(replies[i])
            if i in replies
            else write(Edit(text, by=self.name), source=self.name, reason="praised")
            for i, (_, text, _) in enumerate(items)
        ]

    def _written(self, reply: Completion | str) -> Feedback:
        cost = self._desk.cost(reply)
        said, why = ("", reply) if isinstance(reply, str) else self._desk.text_of(reply)
        if not said:
            return failure(self.name, why, kind="edit", cost=cost)
        return write(Edit(said, by=self.name), source=self.name, cost=cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Improved:
    """What rounds of critique and revision made of one response."""

    prompt: Prompt
    texts: tuple[str, ...]
    """The response, then each revision of it."""
    critiques: tuple[Feedback, ...] = ()
    edits: tuple[Feedback, ...] = ()
    stopped: str = ""
    """Why there was no further round: ``praised``, or the failure; empty when all rounds were run."""

    @property
    def text(self) -> str:
        """The last revision."""
        return self.texts[-1]


def improve_by_critique(
    critic: Critic, reviser: Reviser, prompts: Sequence[Prompt], texts: Sequence[str], *, rounds: int = 1
) -> list[Improved]:
    """Critique and revise ``rounds`` times (Constitutional AI's first phase, A07), all items of a round at once.

    An item stops when its critique praises it, and when a critique or revision fails; it keeps what it had by then.
    """
    state = [Improved(prompt=p, texts=(t,)) for p, t in zip(prompts, texts, strict=True)]
    for _ in range(rounds):
        going = [i for i, item in enumerate(state) if not item.stopped]
        found = critic.critique([state[i].prompt for i in going], [state[i].text for i in going])
        told = []
        for i, f in zip(going, found, strict=True):
            content = None if f.failed else read(f)
            praised = isinstance(content, Text) and content.sign == 1
            why = f"critique: {f.failure}" if not isinstance(content, Text) else "praised" if praised else ""
            state[i] = replace(state[i], critiques=(*state[i].critiques, f), stopped=why)
            if isinstance(content, Text) and not why:
                told.append((i, content.critique))
        chosen = [i for i, _ in told]
        edits = reviser.revise([state[i].prompt for i in chosen], [state[i].text for i in chosen], [c for _, c in told])
        for i, f in zip(chosen, edits, strict=True):
            content = None if f.failed else read(f)
            item = replace(state[i], edits=(*state[i].edits, f))
            state[i] = (
                replace(item, texts=(*item.texts, content.revised))
                if isinstance(content, Edit)
                else replace(item, stopped=f"revision: {f.failure}")
            )
    return state
