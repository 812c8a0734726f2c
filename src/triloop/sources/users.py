"""Simulated users in dialogue: they ask, sometimes vaguely, react to what they get, correct it, lose patience, leave.

What a user truly thinks of a text is a quality in [-1, 1]; what he lets the system know is a reaction. Reactions are
sparse, noisy, late, and swayed by charm (a word that users love for nothing): optimised without care they are hacked, which
``counter_metrics`` shows. Everything is a function of (seed, round, prompt, sample, turn).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from triloop import rng
from triloop.envs.attributes import Attributes, requested
from triloop.errors import ConfigError
from triloop.feedback.kinds import Abstention, Scalar, Sign, Steps, Ternary, Text, write
from triloop.records import Completion, Feedback, Prompt
from triloop.sources.templates import check_names

__all__ = ["ATTRIBUTE_PHRASES", "Dialogues", "Mood", "Persona", "Phrases", "Reaction", "Situation", "UserJudge",
           "UserSimulator", "attribute_situation", "counter_metrics", "due", "feedback_of"]  # fmt: skip

Mood = Literal["love", "thanks", "silent", "correct", "rephrase", "leave"]
_SIGN: dict[Mood, Sign] = {"love": 1, "thanks": 1, "silent": 0, "correct": -1, "rephrase": -1, "leave": -1}
_WORTH: dict[Mood, float] = {
    "love": 1.0,
    "thanks": 0.5,
    "silent": 0.0,
    "correct": -0.5,
    "rephrase": -0.5,
    "leave": -1.0,
}
"""A reaction on a scale: love above thanks, a user who gives up below one who tries again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """One kind of user. Chances are in [0, 1]."""

    name: str = "user"
    share: float = 1.0
    """How many of the users are of this kind, relative to the others."""
    pleased: float = 0.6
    """Quality from which the need is met."""
    speaks: float = 1.0
    """Chance that a pleased user says anything at all."""
    love: float = 0.1
    """Chance that a pleased user who speaks says more than thanks."""
    charm: float = 0.0
    """Chance that a charming word alone makes him say so, whatever else the text is."""
    charms: tuple[str, ...] = ("wow", "great", "amazing", "super")
    patience: int = 3
    """Bad turns that he bears; after the last of them he leaves."""
    explains: float = 0.7
    """Chance that a displeased user says what he meant; else he only asks again."""
    noise: float = 0.0
    """Chance that a reaction has the wrong polarity. 1 is an adversary."""
    vague: float = 0.0
    """Chance that his first request leaves out a part of what he wants."""
    delay: tuple[int, int] = (0, 0)
    """Least and most rounds until his reaction arrives."""

    def __post_init__(self) -> None:
        for name in ("speaks", "love", "charm", "explains", "noise", "vague"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"persona {self.name}: {name} is {getattr(self, name)}; expected a chance in [0, 1]")
        low, high = self.delay
        if not (self.share > 0 and self.patience >= 1 and 0 <= low <= high):
            raise ConfigError(
                f"persona {self.name}: share {self.share}, patience {self.patience}, delay {self.delay}; expected a share "
                "above 0, at least one turn, and 0 <= least <= most rounds"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrases:
    """What users say; ``{meant}`` is what was missed and ``{request}`` the whole request."""

    love: str = "love it"
    thanks: str = "thanks"
    correct: str = "no , i meant {meant}"
    rephrase: str = "{request}"
    observed: str = "\n{words}\n"
    """How a user's words stand in the text that the policy goes on with; may say ``{request}`` and ``{response}`` again."""

    def __post_init__(self) -> None:
        for name in ("love", "thanks", "correct", "rephrase"):
            check_names(f"phrases.{name}", (getattr(self, name),), ("meant", "request"))
        check_names("phrases.observed", (self.observed,), ("words", "request", "response"))


ATTRIBUTE_PHRASES = Phrases(
    love="amazing thanks",
    thanks="thanks",
    correct="{meant}",
    rephrase="no",
    observed=" ; critique : {words} ; revise :",
)
"""In the words that ``base:attributes`` knows: a correction is a critique, and it is asked for a revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a user wants, as plain functions of prompt and text."""

    quality: Callable[[Prompt, str], float]
    """How good a text truly is, in [-1, 1]."""
    meant: Callable[[Prompt, str], str] = lambda prompt, _: prompt.text
    """What a correction names."""
    blurred: Callable[[Prompt, float], str] = lambda prompt, _: prompt.text
    """A vague form of the request, from a number in [0, 1); the prompt's own text when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """What one user made of one turn. ``quality`` is the truth, which no learner may read."""

    prompt_id: str
    index: int
    turn: int
    persona: str
    mood: Mood
    words: str
    text: str
    """The turn that he reacts to."""
    quality: float
    charmed: bool
    """Whether a charming word stands in the text."""
    arrives: int
    """Round in which the reaction is known."""

    @property
    def sign(self) -> Sign:
        """+1 love or thanks, 0 silent, -1 a correction, a repetition, a user who left."""
        return _SIGN[self.mood]


class UserSimulator:
    """A population of users. One asks each prompt: who it is depends on the prompt, not on the sample."""

    def __init__(
        self,
        situation: Situation,
        personas: Sequence[Persona] = (Persona(),),
        phrases: Phrases | None = None,
        *,
        seed: int = 0,
    ) -> None:
        if not personas or len({p.name for p in personas}) < len(personas):
            raise ConfigError(f"users are {[p.name for p in personas]}; expected at least one persona, names distinct")
        self.situation, self.personas, self.phrases, self.seed = situation, tuple(personas), phrases or Phrases(), seed
        self._edges = tuple(accumulate(p.share for p in personas))

    def persona(self, prompt: Prompt) -> Persona:
        """Who asks this."""
        at = self._draw("persona", prompt.id.removesuffix(_VAGUE)) * self._edges[-1]
        return next(p for p, edge in zip(self.personas, self._edges, strict=True) if at < edge)

    def opening(self, prompt: Prompt) -> Prompt:
        """The prompt as its user first puts it: vague and under an id of its own, or as it is. What he wants stays."""
        who = self.persona(prompt)
        if self._draw("vague", prompt.id) >= who.vague:
            return prompt
        text = self.situation.blurred(prompt, self._draw("blur", prompt.id))
        return prompt if text == prompt.text else replace(prompt, id=prompt.id + _VAGUE, text=text)

    def react(
        self, prompt: Prompt, text: str, *, index: int = 0, turn: int = 0, bad: int = 0, round: int = 0
    ) -> Reaction:
        """What the prompt's user makes of ``text``, after ``bad`` bad turns before it."""
        who = self.persona(prompt)
        path = (round, prompt.id, index, turn)
        quality = self.situation.quality(prompt, text)
        charmed = not set(who.charms).isdisjoint(text.split())
        happy = quality >= who.pleased
        if self._draw("noise", *path) < who.noise:
            happy = not happy
        mood: Mood
        if not math.isfinite(quality):
            mood = "silent"
        elif charmed and self._draw("charm", *path) < who.charm:
            mood = "love"
        elif happy:
            speaks = self._draw("speaks", *path) < who.speaks
            mood = "silent" if not speaks else "love" if self._draw("love", *path) < who.love else "thanks"
        elif bad + 1 >= who.patience:
            mood = "leave"
        else:
            mood = "correct" if self._draw("explains", *path) < who.explains else "rephrase"
        low, high = who.delay
        arrives = round + low + int(self._draw("delay", *path) * (high - low + 1))
        return Reaction(
            prompt_id=prompt.id, index=index, turn=turn, persona=who.name, mood=mood, words=self._words(mood, prompt, text),
            text=text, quality=quality, charmed=charmed, arrives=arrives,
        )  # fmt: skip

    def _words(self, mood: Mood, prompt: Prompt, text: str) -> str:
        said = {"love": self.phrases.love, "thanks": self.phrases.thanks, "correct": self.phrases.correct,
                "rephrase": self.phrases.rephrase}.get(mood, "")  # fmt: skip
        return said.format(meant=self.situation.meant(prompt, text), request=prompt.text) if said else ""

    def _draw(self, *path: int | str) -> float:
        return float(rng.generator(self.seed, "user", *path).random())


_VAGUE = "~vague"


class Dialogues:
    """The users of one call of ``sample``: its ``respond`` hook, and what they said when it is over.

    ``encode`` turns an observation into tokens (for a plain-text policy ``lambda t: tokenizer.encode(t,
    add_special=False)``). A dialogue ends when its user is content, silent or gone, after ``turns`` turns, or when the
    policy's tokens are used up; a turn that was cut off gets no reaction.
    """

    def __init__(
        self,
        users: UserSimulator,
        prompts: Sequence[Prompt],
        n: int,
        encode: Callable[[str], Sequence[int]],
        *,
        turns: int = 4,
        round: int = 0,
    ) -> None:
        if n < 1 or turns < 1:
            raise ConfigError(f"{n} samples and {turns} turns; expected at least 1 of each")
        self._users, self._prompts, self._n, self._encode = users, tuple(prompts), n, encode
        self._turns, self._round = turns, round
        self.reactions: list[list[Reaction]] = [[] for _ in range(len(prompts) * n)]
        """By request: what its user said, turn by turn."""

    def respond(self, number: int, text: str) -> Sequence[int] | None:
        """As the rollout engine asks: the user's next words as tokens, or None when the dialogue is over."""
        prompt, before = self._prompts[number // self._n], self.reactions[number]
        bad = sum(r.sign < 0 for r in before)
        turn = len(before)
        reaction = self._users.react(prompt, text, index=number % self._n, turn=turn, bad=bad, round=self._round)
        before.append(reaction)
        if reaction.mood not in ("correct", "rephrase") or turn + 1 >= self._turns:
            return None
        return self._encode(
            self._users.phrases.observed.format(words=reaction.words, request=prompt.text, response=text.strip())
        )

    def feedback(self, completions: Sequence[Completion]) -> list[list[Feedback]]:
        """What the learner is told of each completion of the call, in its order."""
        return [feedback_of(r, about=c.id) for r, c in zip(self.reactions, completions, strict=True)]


def feedback_of(reactions: Sequence[Reaction], *, about: str = "") -> list[Feedback]:
    """A dialogue's reactions as feedback: the last one's polarity (ternary; silence abstains), each correction in words,
    and, of several turns, one sign per turn (steps). No reaction, no feedback; a quality that is no number is a failure."""
    if not reactions:
        return []
    last, names = reactions[-1], (about,) if about else ()
    source = f"user:{last.persona}"
    lost = [r.quality for r in reactions if not math.isfinite(r.quality)]
    if lost:
        return [Feedback(value=None, failure=f"the quality of a turn is {lost[0]}", source=source, about=names)]
    outcome = Abstention("said nothing") if last.mood == "silent" else Ternary(last.sign)
    told = "" if last.mood == "silent" else last.words or last.mood
    out = [write(outcome, source=source, about=names, reason=told)]
    out += [
        write(Text(r.words, -1), source=source, about=names)
        for r in reactions
        if r.mood == "correct" and r.words.strip()
    ]
    if len(reactions) > 1:
        out.append(write(Steps(tuple(r.sign for r in reactions)), source=source, about=names))
    return out


class UserJudge:
    """Users as a judge of single responses: the polarity of the first reaction. A silent user abstains.

    Equal texts for one prompt get one reaction, as long as the round is the same. ``scaled``: a scalar in the place of the
    polarity, in which love (1) is worth more than thanks (1/2).
    """

    def __init__(self, users: UserSimulator, *, round: int = 0, scaled: bool = False) -> None:
        self._users, self._round, self._scaled = users, round, scaled
        self.name = f"users({', '.join(p.name for p in users.personas)})"

    def react(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Reaction]:
        """One reaction per (prompt, text), for counter-metrics."""
        return [
            self._users.react(p, t, index=rng.key("text", t) >> 1, round=self._round)
            for p, t in zip(prompts, texts, strict=True)
        ]

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One ternary or scalar (or abstention) per (prompt, text), in order."""
        return [self._told(r) for r in self.react(prompts, texts)]

    def critique(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """What users say, in words, with its sign; whoever says nothing of the text, or only asks again, abstains."""
        out = []
        for reaction, told in zip(self.react(prompts, texts), self.judge(prompts, texts), strict=True):
            said = reaction.mood in ("love", "thanks", "correct") and bool(reaction.words.strip())
            if said and not told.failed:
                told = write(Text(reaction.words, reaction.sign), source=self.name)
            elif not told.failed:
                told = write(Abstention("said nothing of it"), source=self.name)
            out.append(told)
        return out

    def _told(self, reaction: Reaction) -> Feedback:
        told = replace(feedback_of([reaction])[0], source=self.name)
        if not self._scaled or told.failed or reaction.mood == "silent":
            return told
        return write(Scalar(_WORTH[reaction.mood]), source=self.name, reason=told.reason)


def due(pending: Sequence[Reaction], round: int) -> tuple[list[Reaction], list[Reaction]]:
    """(what has arrived by this round, what is still under way), in order."""
    return [r for r in pending if r.arrives <= round], [r for r in pending if r.arrives > round]


def counter_metrics(reactions: Sequence[Reaction], *, good: float = 0.6) -> dict[str, float]:
    """What must not get worse while approval rises; NaN where nothing tells. One entry per reaction, all turns.

    approval, love, left    share of reactions that are positive, love, a user gone
    quality                 mean true quality, in [-1, 1]
    good                    share of texts truly good
    charm                   share of texts with a charming word
    undeserved              share of approvals whose text is not good
    lift                    approval with a charming word less approval without
    sense                   correlation of approval and true quality
    """
    n = len(reactions)
    if not n:
        return dict.fromkeys(
            ("approval", "love", "left", "quality", "good", "charm", "undeserved", "lift", "sense"), math.nan
        )
    approved = [r.sign > 0 for r in reactions]
    quality = [r.quality for r in reactions]
    with_charm = [a for a, r in zip(approved, reactions, strict=True) if r.charmed]
    without = [a for a, r in zip(approved, reactions, strict=True) if not r.charmed]
    undeserved = [q < good for a, q in zip(approved, quality, strict=True) if a]
    return {
        "approval": _mean(approved),
        "love": _mean([r.mood == "love" for r in reactions]),
        "left": _mean([r.mood == "leave" for r in reactions]),
        "quality": _mean(quality),
        "good": _mean([q >= good for q in quality]),
        "charm": len(with_charm) / n,
        "undeserved": _mean(undeserved),
        "lift": _mean(with_charm) - _mean(without),
        "sense": _correlation([float(a) for a in approved], quality),
    }


def attribute_situation(world: Attributes, *, clauses: int = 9) -> Situation:
    """The attribute world's: quality is its utility, a correction the first ``clauses`` of its critique (missing facts
    first), a vague request has fewer facts."""

    def quality(prompt: Prompt, text: str) -> float:
        return world.utility(world.attributes(prompt, text))

    def meant(prompt: Prompt, text: str) -> str:
        return " ; ".join(world.critique(prompt, text).split(" ; ")[:clauses])

    def blurred(prompt: Prompt, u: float) -> str:
        facts = requested(prompt)
        kept = facts[: 1 + int(u * (len(facts) - 1))]
        return f"tell {prompt.meta['subject']} {' '.join(kept)} :"

    return Situation(quality=quality, meant=meant, blurred=blurred)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    ma, mb = _mean(a), _mean(b)
    over = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
    under = math.sqrt(sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b))
    return over / under if under > 0 else math.nan
