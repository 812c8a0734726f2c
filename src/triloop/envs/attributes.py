"""The attribute world: answer a request of a few facts, well. Feedback of every kind can be given on it, and checked.

    prompt      tell fox red den :
    completion  please note the fox is red , den .

Behind every completion stands a known truth: six attributes (coverage, grounded, polite, clean, concise, fluent), a utility
that weighs them, the places where they are violated, a critique in words, and a revision that mends what a critique names.
Annotators, judges, reward models and critics, simulated or learned, are measured against it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, final

import numpy as np

from triloop.envs import attributes_language as language
from triloop.envs.attributes_language import ATTRIBUTES, FACTS, SUBJECTS, Defect
from triloop.envs.world import TextWorld, pick
from triloop.errors import ConfigError, DataError
from triloop.records import Feedback, Prompt

__all__ = ["BAD", "GOOD", "MEDIOCRE", "Attributes", "requested"]

GOOD, BAD = 0.6, 0.2
"""A ternary judge says +1 above the one and -1 below the other."""
MEDIOCRE: Mapping[str, float] = {
    "coverage": 0.65, "grounded": 0.45, "polite": 0.65, "clean": 0.45, "concise": 0.3, "fluent": 0.3
}  # fmt: skip
"""How often each attribute fails in the answers that the base was taught."""
_OPENINGS = ("please note", "kindly note", "thanks ,", "dear friend ,")


@final
class Attributes(TextWorld):
    """Level = number of requested facts. The default mixture (2 and 3) has over 50,000 requests."""

    name = "attributes"

    def __init__(
        self,
        *,
        levels: tuple[int, ...] = (1, 2, 3, 4),
        mixture: tuple[int, ...] = (2, 3),
        weights: Mapping[str, float] | Sequence[tuple[str, float]] | None = None,
        judge: Literal["gold", "ternary"] = "gold",
    ) -> None:
        """``weights`` of the attributes make another utility: the gold of a hidden persona, say. ``judge`` is what the
        learner is paid: the utility, or only its ternary word. ConfigError for what does not exist."""
        if not levels or not set(levels) <= {1, 2, 3, 4} or not mixture or not set(mixture) <= set(levels):
            raise ConfigError(
                f"attributes: levels {levels} must be of 1 .. 4, and mixture {mixture} a choice from them"
            )
        if judge not in ("gold", "ternary"):
            raise ConfigError(f"attributes: judge is {judge!r}; expected 'gold' or 'ternary'")
        self.levels, self.mixture, self.paid = levels, mixture, judge
        self.weights = language.normalised(weights)
        self.draws = 1 + max(levels)
        self.max_tokens = 36

    # ------------------------------------------------------------------ the task

    def draw(self, u: Sequence[float], level: int) -> str | None:
        left = list(FACTS)
        facts = [left.pop(pick(x, 0, len(left) - 1)) for x in u[1 : 1 + level]]
        return f"tell {SUBJECTS[pick(u[0], 0, len(SUBJECTS) - 1)]} {' '.join(facts)} :"

    def canonical(self, text: str) -> str:
        _, subject, *facts, _ = text.split()
        return " ".join([subject, *sorted(facts)])

    def parse(self, text: str) -> Prompt:
        words = text.split()
        head, subject, facts, tail = words[:1], words[1:2], words[2:-1], words[-1:]
        known = len(subject) == 1 and subject[0] in SUBJECTS and set(facts) <= set(FACTS)
        if head != ["tell"] or tail != [":"] or not known or not 1 <= len(set(facts)) == len(facts) <= 4:
            raise DataError(
                f"attributes: {text[:80]!r} is not a request; expected a subject and 1 .. 4 different facts, such as "
                "'tell fox red den :'"
            )
        return Prompt(
            id=f"{self.name}:{'-'.join([*subject, *facts])}",
            text=" ".join(words),
            env=self.name,
            answer=_plain(subject[0], facts),
            level=len(facts),
            meta={"subject": subject[0], "facts": facts},
        )

    @property
    def honest(self) -> bool:
        return self.paid == "gold"

    def verify(self, prompt: Prompt, text: str) -> Feedback:
        """The utility, with the attributes as its breakdown and the critique as its reason."""
        reading = language.read_text(requested(prompt), text)
        attributes = language.measure(reading)
        return Feedback(
            value=language.utility(attributes, self.weights),
            kind="scalar",
            reason=language.describe(language.find_defects(reading, text)),
            source=f"env:{self.name}",
            breakdown=attributes,
        )

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        gold = self.gold(prompts, texts)
        return gold if self.paid == "gold" else [self._word(f) for f in gold]

    def gold(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        return [self.verify(p, t) for p, t in zip(prompts, texts, strict=True)]

    def _word(self, gold: Feedback) -> Feedback:
        value = gold.value or 0.0
        return self.feedback((value > GOOD) - (value < BAD), gold.reason)

    def right_answer(self, prompt: Prompt) -> str:
        return _plain(prompt.meta["subject"], requested(prompt))

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        """Spoiled answers, as far as this world's weights mind: below a right one's value, or not worth a ternary +1."""
        right, facts = self.right_answer(prompt), requested(prompt)
        other = next(fact for fact in FACTS if fact not in facts)
        spoiled = [
            "",
            prompt.text,
            "please .",
            right.removesuffix(" ."),
            right.removeprefix("please note "),
            right.replace(f" {facts[0]} ", f" {other} "),
            right.replace(" .", f" , {other} ."),
            right.replace(" .", f" , {facts[0]} ."),
            right.replace(" .", " , stupid ."),
            right.replace("note", " ".join(f"note {language.FILLER[0]}" for _ in range(3))),
        ]
        values = [self.utility(self.attributes(prompt, text)) for text in spoiled]
        return [t for t, v in zip(spoiled, values, strict=True) if (v < 1 if self.paid == "gold" else v <= GOOD)]

    # ------------------------------------------------------------------ the truth behind it

    def attributes(self, prompt: Prompt, text: str) -> dict[str, float]:
        """Each attribute in [0, 1]; see ``attributes_language.measure``."""
        return language.measure(language.read_text(requested(prompt), text))

    def utility(self, attributes: Mapping[str, float]) -> float:
        """What this world's gold makes of attributes, in [-1, 1]."""
        return language.utility(attributes, self.weights)

    def defects(self, prompt: Prompt, text: str) -> list[Defect]:
        """The good (+1) and bad (-1) places of a text."""
        return language.find_defects(language.read_text(requested(prompt), text), text)

    def critique(self, prompt: Prompt, text: str) -> str:
        """``missing den ; rude ugly ; not polite``, or ``good``."""
        return language.describe(self.defects(prompt, text))

    def revise(self, prompt: Prompt, text: str, attributes: Collection[str] | None = None) -> str:
        """The text with the defects of these attributes (None: all) mended and everything else kept."""
        return language.mend(requested(prompt), text, attributes)

    # ------------------------------------------------------------------ teachers

    def demonstration(
        self,
        prompt: Prompt,
        rng: np.random.Generator,
        noise: float = 0.0,
        *,
        rates: Mapping[str, float] | None = None,
        distract: float = 0.3,
    ) -> str:
        """An answer in which each attribute fails independently, with its own rate of ``rates`` or else ``noise``.

        With all rates 0 it is an expert's: utility 1. With probability ``distract`` it has a distractor word. (Two facts
        too many may make a long answer a word or two too long besides.)
        """
        chance = dict.fromkeys(ATTRIBUTES, noise) | dict(rates or {})
        u = dict(zip(ATTRIBUTES, rng.random(len(ATTRIBUTES)).tolist(), strict=True))
        return _Teacher(rng).answer(prompt, {name for name in ATTRIBUTES if u[name] < chance[name]}, distract)


def requested(prompt: Prompt) -> tuple[str, ...]:
    """The facts that a prompt asks for: as recorded with it, else as the last request in its text says."""
    facts = prompt.meta.get("facts")
    if facts is None:
        _, _, request = prompt.text.rpartition("tell ")
        facts = [word for word in request.partition(" :")[0].split()[1:] if word in FACTS]
    return tuple(map(str, facts))


def _plain(subject: str, facts: Sequence[str]) -> str:
    return f"please note the {subject} is {' , '.join(facts)} ."


class _Teacher:
    """Writes answers from one stream of random numbers."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def some(self, options: Sequence[str], n: int) -> list[str]:
        return [options[k] for k in self.rng.permutation(len(options))[:n].tolist()]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def answer(self, prompt: Prompt, failed: Collection[str], distract: float) -> str:
        """An answer that fails in exactly these attributes."""
        asked = list(requested(prompt))
        if self.chance(0.3):
            asked = self.some(asked, len(asked))
        facts = asked
        if "coverage" in failed:
            lost = self.some(asked, int(self.rng.integers(1, max(2, len(asked)))))
            facts = [fact for fact in asked if fact not in lost]
        if "grounded" in failed or not facts:
            extra = self.some([f for f in FACTS if f not in asked], 1 + self.chance(0.3) * ("grounded" in failed))
            facts = self.some([*facts, *extra], len(facts) + len(extra))
        joined = " and ".join(facts) if len(facts) == 2 and self.chance(0.3) else " , ".join(facts)
        rude = self.pick(language.RUDE) if "clean" in failed else ""
        inside = self.chance(0.5)
        subject = " ".join(["the", *([rude] if rude and inside else []), str(prompt.meta["subject"])])
        body = f"{subject} {self.pick(('is', 'has'))} {joined}" + (f" , {rude}" if rude and not inside else "")
        if self.chance(distract):
            word = self.pick(language.DISTRACTORS)
            body = f"{body} , {word}" if self.chance(0.5) else f"{word} , {body}"
        opening = "" if "polite" in failed else self.pick(_OPENINGS)
        return self._finished(opening, body, len(asked), failed)

    def _finished(self, opening: str, body: str, asked: int, failed: Collection[str]) -> str:
        end = "."
        if "fluent" in failed:
            if self.chance(0.5):
                end = ""
            else:
                words = body.split()
                k = self.pick([str(k) for k, word in enumerate(words) if word != ","])
                words.insert(int(k), words[int(k)])
                body = " ".join(words)
        middle: list[str] = []
        if "concise" in failed:
            wanted = language.BUDGET + 2 * asked + int(self.rng.integers(1, 9))
            while len(f"{opening} {body} {end}".split()) + len(middle) < wanted:
                middle += self.pick(language.FILLER).split()
        return " ".join(f"{opening} {' '.join(middle)} {body} {end}".split())
