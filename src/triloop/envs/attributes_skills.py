"""What the attribute world's base can do besides answering: judge by a principle, compare, criticise, revise, rate.

Each skill is a prompt template and the text that completes it. The principle stands last, so that many questions about
one response share their beginning, which the engine and the learner compute once.

A principle is an attribute's name, ``overall`` (the utility), or two attributes joined by ``and``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

import numpy as np

from triloop.envs import attributes_language as language
from triloop.envs.attributes import GOOD, MEDIOCRE, Attributes, requested
from triloop.envs.attributes_language import ATTRIBUTES
from triloop.errors import ConfigError
from triloop.records import Prompt

__all__ = [
    "ASK",
    "ASK_REASON",
    "COMPARE",
    "COMPARE_REASON",
    "CONDITION",
    "CRITIQUE",
    "HELD_OUT",
    "PAIRS",
    "PRINCIPLES",
    "RATE",
    "REVISE",
    "SKILLS",
    "Skill",
    "ask",
    "compare",
    "condition",
    "criticise",
    "holds",
    "lessons",
    "rate",
    "revise",
    "score",
    "verdict",
]

ASK = "judge {request} {response} ; {principle} ?"
ASK_REASON = "judge {request} {response} ; why {principle} ?"
COMPARE = "compare {request} A {first} ; B {second} ; {principle} ?"
COMPARE_REASON = "compare {request} A {first} ; B {second} ; why {principle} ?"
RATE = "judge {request} {response} ; rate :"
CRITIQUE = "judge {request} {response} ; critique :"
REVISE = "judge {request} {response} ; critique : {critique} ; revise :"
"""Goes on where a critique has been written."""
CONDITION = "{control} ; {request}"
"""The control is ``good``, ``neutral``, ``bad`` or a critique. The base has not been taught what it means."""

PRINCIPLES = (*ATTRIBUTES, "overall")
PAIRS = tuple(f"{a} and {b}" for a, b in combinations(ATTRIBUTES, 2))
HELD_OUT = ("polite and clean", "coverage and concise", "grounded and fluent", "coverage and grounded")
"""Conjunctions that the base was never asked about, each made of attributes that it was."""

Example = tuple[str, str]
"""Prompt text, completion text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """One skill: how it is asked, and what answers it knows."""

    name: str
    template: str
    """For ``str.format``; see ``prompt``."""
    fields: tuple[str, ...]
    answers: tuple[str, ...] = ()
    """The words that decide, where there are only so many: those whose logits a judge reads."""
    max_tokens: int
    """Longest completion, with its end."""
    taught: bool = True

    def prompt(self, **fields: str) -> str:
        """The prompt's text, single blanks between words. ConfigError when a field is missing or unknown."""
        if set(fields) != set(self.fields):
            raise ConfigError(f"skill {self.name}: got {sorted(fields)}; expected {', '.join(self.fields)}")
        return self.template.format(**{name: " ".join(text.split()) for name, text in fields.items()})


_ONE, _TWO = ("request", "response"), ("request", "first", "second", "principle")
SKILLS: Mapping[str, Skill] = MappingProxyType(
    {
        skill.name: skill
        for skill in (
            Skill(name="ask", template=ASK, fields=(*_ONE, "principle"), answers=("yes", "no"), max_tokens=2),
            Skill(
                name="ask-reason",
                template=ASK_REASON,
                fields=(*_ONE, "principle"),
                answers=("yes", "no"),
                max_tokens=24,
            ),
            Skill(name="compare", template=COMPARE, fields=_TWO, answers=("A", "B", "none"), max_tokens=2),
            Skill(
                name="compare-reason", template=COMPARE_REASON, fields=_TWO, answers=("A", "B", "none"), max_tokens=40
            ),
            Skill(name="rate", template=RATE, fields=_ONE, answers=tuple("0123456789"), max_tokens=2),
            Skill(name="critique", template=CRITIQUE, fields=_ONE, max_tokens=40),
            Skill(name="revise", template=REVISE, fields=(*_ONE, "critique"), max_tokens=36),
            Skill(name="condition", template=CONDITION, fields=("control", "request"), max_tokens=36, taught=False),
        )
    }
)


# ---------------------------------------------------------------------- the truth about principles


def score(principle: str, attributes: Mapping[str, float]) -> float:
    """How well a principle is kept: its attributes' mean in [0, 1], and of ``overall`` the default utility in [-1, 1].

    ConfigError for a principle that is none.
    """
    if principle == "overall":
        return language.utility(attributes)
    names = principle.split(" and ")
    if not set(names) <= set(ATTRIBUTES):
        raise ConfigError(
            f"principle {principle!r}: expected {', '.join(PRINCIPLES)} or two attributes joined by 'and'"
        )
    return sum(attributes[name] for name in names) / len(names)


def holds(principle: str, attributes: Mapping[str, float]) -> bool:
    """Whether a principle is kept without fault; ``overall``: whether the default utility is above ``GOOD``."""
    kept = score(principle, attributes)
    return kept > GOOD if principle == "overall" else kept == 1


def verdict(text: str, answers: Sequence[str] = ("yes", "no")) -> str | None:
    """The verdict that a completion comes to, with or without reasons before it; None when it comes to none."""
    words = text.split()
    last = words[-1] if words else ""
    return last if last in answers and (len(words) == 1 or words[-2] == "so") else None


def _finding(principle: str, facts: Sequence[str], text: str) -> str:
    """What is to be looked at before a verdict, in words."""
    reading = language.read_text(facts, text)
    if principle == "overall":
        attributes = language.measure(reading)
        return " ".join(name for name in ATTRIBUTES if attributes[name] < 1) or "none"
    return " and ".join(_one_finding(name, reading, text) for name in principle.split(" and "))


def _one_finding(attribute: str, reading: language.Reading, text: str) -> str:
    if attribute == "coverage":
        return " ".join(f"{fact} {'no' if fact in reading.missing else 'yes'}" for fact in reading.facts)
    if attribute == "polite" and reading.courtesy:
        return f"polite {reading.words[reading.courtesy[0]]}"
    notes = [d.note for d in language.find_defects(reading, text) if d.attribute == attribute and d.sign < 0]
    return " ".join(dict.fromkeys(notes)) or "none"


# ---------------------------------------------------------------------- examples, as one who knows makes them


def ask(prompt: Prompt, response: str, principle: str, *, reason: bool = False) -> Example:
    """Does the response keep the principle? ``yes`` or ``no``; with ``reason``, what was found, ``so`` and the verdict."""
    facts = requested(prompt)
    said = "yes" if holds(principle, language.measure(language.read_text(facts, response))) else "no"
    skill = SKILLS["ask-reason" if reason else "ask"]
    text = skill.prompt(request=prompt.text, response=response, principle=principle)
    return text, f"{_finding(principle, facts, response)} so {said}" if reason else said


def compare(prompt: Prompt, first: str, second: str, principle: str, *, reason: bool = False) -> Example:
    """Which response keeps the principle better? ``A``, ``B``, or ``none`` when they keep it equally well."""
    facts = requested(prompt)
    a, b = (score(principle, language.measure(language.read_text(facts, text))) for text in (first, second))
    said = "none" if a == b else "A" if a > b else "B"
    skill = SKILLS["compare-reason" if reason else "compare"]
    text = skill.prompt(request=prompt.text, first=first, second=second, principle=principle)
    if not reason:
        return text, said
    return text, f"A {_finding(principle, facts, first)} ; B {_finding(principle, facts, second)} ; so {said}"


def rate(prompt: Prompt, response: str) -> Example:
    """The default utility as a digit: 0 for -1, 9 for +1."""
    value = language.utility(language.measure(language.read_text(requested(prompt), response)))
    return SKILLS["rate"].prompt(request=prompt.text, response=response), str(round(9 * (value + 1) / 2))


def criticise(prompt: Prompt, response: str) -> Example:
    """What is wrong with the response."""
    reading = language.read_text(requested(prompt), response)
    said = language.describe(language.find_defects(reading, response))
    return SKILLS["critique"].prompt(request=prompt.text, response=response), said


def revise(prompt: Prompt, response: str, critique: str) -> Example:
    """The response with what the critique blames mended."""
    said = language.mend(requested(prompt), response, language.blamed(critique))
    return SKILLS["revise"].prompt(request=prompt.text, response=response, critique=critique), said


def condition(prompt: Prompt, response: str, control: str) -> Example:
    """The response as the one that belongs to a control: a word of quality, or a critique."""
    return SKILLS["condition"].prompt(control=control, request=prompt.text), response


# ---------------------------------------------------------------------- lessons, as the base's teachers give them


def lessons(
    world: Attributes,
    prompts: Sequence[Prompt],
    rng: np.random.Generator,
    *,
    unreliable: float = 0.0,
    careless: float = 1.0,
    answers: float = 0.6,
    compared: float = 0.2,
) -> list[Example]:
    """Demonstrations of everything: a share ``answers`` of the prompts is answered, a share ``compared`` has two responses
    compared under every principle, and the rest one response judged, criticised, rated and revised in every way.

    Answers fail ``careless`` times as often as ``MEDIOCRE`` ones; a skill's is wrong with probability ``unreliable``,
    one with reasons a third as often.
    """
    teacher = _Skilled(world, rng, unreliable)
    rates = {name: careless * rate for name, rate in MEDIOCRE.items()}
    answered = round(answers * len(prompts))
    judged = len(prompts) - round(compared * len(prompts))
    out: list[Example] = [(p.text, world.demonstration(p, rng, rates=rates)) for p in prompts[:answered]]
    for prompt in prompts[answered:judged]:
        out += teacher.judging(prompt)
    for prompt in prompts[judged:]:
        out += teacher.comparing(prompt)
    return out


_TAUGHT = tuple(pair for pair in PAIRS if pair not in HELD_OUT)


class _Skilled:
    """A teacher of skills who errs at a known rate."""

    def __init__(self, world: Attributes, rng: np.random.Generator, unreliable: float) -> None:
        self.world, self.rng, self.unreliable = world, rng, unreliable

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def errs(self, factor: float = 1.0) -> bool:
        return bool(self.rng.random() < self.unreliable * factor)

    def response(self, prompt: Prompt) -> str:
        """Of any quality from an expert's to the base's own; one in eight is a revision."""
        scale = 1.1 * float(self.rng.random())
        text = self.world.demonstration(prompt, self.rng, rates={k: scale * p for k, p in MEDIOCRE.items()})
        if self.rng.random() < 0.125:
            names = {name for name in ATTRIBUTES if self.rng.random() < 0.4}
            text = self.world.revise(prompt, text, names) or text
        return text

    def twisted(self, example: Example, answers: Sequence[str], factor: float = 1.0) -> Example:
        """The example, or with the rate of errors one with another verdict."""
        text, said = example
        if not self.errs(factor):
            return example
        head, _, last = said.rpartition(" ")
        other = self.pick([word for word in answers if word != last])
        return text, f"{head} {other}".strip()

    def judging(self, prompt: Prompt) -> list[Example]:
        response, yes_no = self.response(prompt), SKILLS["ask"].answers
        asked = [*PRINCIPLES, self.pick(_TAUGHT)]
        out = [self.twisted(ask(prompt, response, principle), yes_no) for principle in asked]
        why = [self.pick(PRINCIPLES) for _ in range(2)]
        out += [self.twisted(ask(prompt, response, principle, reason=True), yes_no, 1 / 3) for principle in why]
        out += [self.rated(prompt, response), self.criticised(prompt, response)]
        return [*out, *self.revised(prompt, response)]

    def rated(self, prompt: Prompt, response: str) -> Example:
        text, said = rate(prompt, response)
        off = int(self.rng.choice([-2, -1, 1, 2])) if self.errs() else 0
        return text, str(min(9, max(0, int(said) + off)))

    def criticised(self, prompt: Prompt, response: str) -> Example:
        """With the rate of errors, one clause is left out."""
        text, said = criticise(prompt, response)
        clauses = said.split(" ; ")
        if self.errs() and said != "good":
            clauses.remove(self.pick(clauses))
        return text, " ; ".join(clauses) or "good"

    def revised(self, prompt: Prompt, response: str) -> list[Example]:
        """After the whole critique, and after a part of it; with the rate of errors one blamed attribute is left."""
        whole = self.world.critique(prompt, response)
        names = sorted(language.blamed(whole))
        part = {name for name in names if self.rng.random() < 0.5} or set(names[:1])
        defects = [d for d in self.world.defects(prompt, response) if d.attribute in part]
        out = []
        for critique in dict.fromkeys((whole, language.describe(defects))):
            text, said = revise(prompt, response, critique)
            if self.errs() and names:
                left: Collection[str] = language.blamed(critique) - {self.pick(sorted(language.blamed(critique)))}
                said = self.world.revise(prompt, response, left)
            out.append((text, said))
        return out

    def comparing(self, prompt: Prompt) -> list[Example]:
        first, second = self.response(prompt), self.response(prompt)
        answers = SKILLS["compare"].answers
        out = [self.twisted(compare(prompt, first, second, principle), answers) for principle in PRINCIPLES]
        reasoned = compare(prompt, first, second, self.pick(PRINCIPLES), reason=True)
        return [*out, self.twisted(reasoned, answers, 1 / 3)]
