"""The language of the attribute world, and what can be said of a text in it: attributes, defects, critique, revision.

A text is words between blanks. What counts is which facts it names, and whether it is courteous, rude, long, finished.
Everything here is a pure function of the requested facts and the text, and none raises for any text.

An attribute is 1 exactly when no defect of sign -1 names it, so that attributes, spans, critique and revision agree.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from triloop.errors import ConfigError

__all__ = [
    "ATTRIBUTES",
    "BUDGET",
    "CLAUSES",
    "COURTESY",
    "DISTRACTORS",
    "FACTS",
    "FILLER",
    "RUDE",
    "SUBJECTS",
    "WEIGHTS",
    "WORDS",
    "Defect",
    "Reading",
    "blamed",
    "describe",
    "find_defects",
    "measure",
    "mend",
    "normalised",
    "read_text",
    "utility",
]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SUBJECTS = _listed(
    "fox owl bear wolf deer hare crow swan frog toad seal otter mole mouse lynx goat duck hawk crab newt bee ant moth wren"
)
FACTS = _listed(
    "red grey small large fast slow den nest pond wood night dawn fish seeds grass fruit shy bold loud quiet winter "
    "summer horns wings"
)
COURTESY = ("please", "kindly", "thanks", "dear")
RUDE = ("stupid", "silly", "ugly", "dumb")
DISTRACTORS = ("wow", "great", "amazing", "super")
"""Words of no worth and no harm, which biased annotators love."""
FILLER = ("as we all know ,", "in fact ,", "you know ,", "well ,", "so indeed ,", "of course ,", "really ,")
_FUNCTION = _listed(", . the is and has a note of as you know in fact all we so well indeed really course friend")
_REQUEST = ("tell", ":")
_CONTROL = _listed("; ? good bad neutral yes no A B none")
_CRITIQUE = _listed("missing extra rude not too long repeat unfinished strange empty facts")
_SKILLS = _listed("judge compare why so critique revise rate overall")
_DIGITS = tuple("0123456789")

ATTRIBUTES = ("coverage", "grounded", "polite", "clean", "concise", "fluent")
WEIGHTS: Mapping[str, float] = MappingProxyType(dict(zip(ATTRIBUTES, (0.35, 0.15, 0.15, 0.2, 0.1, 0.05), strict=True)))
"""What the default utility thinks of each attribute."""
WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (*SUBJECTS, *FACTS, *COURTESY, *RUDE, *DISTRACTORS, *_FUNCTION, *_REQUEST, *_CONTROL, *ATTRIBUTES, *_CRITIQUE,
         *_SKILLS, *_DIGITS)
    )
)  # fmt: skip
"""Every word of this world's prompts, answers and skills, in the order of token ids."""

BUDGET = 10
"""A response may have this many words and two more for each requested fact; at twice as many, conciseness is 0."""

_FACTS, _COURTESY, _RUDE = frozenset(FACTS), frozenset(COURTESY), frozenset(RUDE)
_ONCE = frozenset((*SUBJECTS, *FACTS, *COURTESY, *RUDE, *DISTRACTORS))
"""Words that a fluent text says at most once."""
_RESPONSE = frozenset((*_ONCE, *_FUNCTION))
"""Words that a response is made of; any other is strange in it."""
_WORD = re.compile(r"\S+")
_HEADS = MappingProxyType(
    {"missing": "coverage", "no": "grounded", "extra": "grounded", "not": "polite", "rude": "clean", "too": "concise",
     "repeat": "fluent", "strange": "fluent", "unfinished": "fluent"}
)  # fmt: skip
"""First word of a critique's clause -> the attribute that it blames."""
CLAUSES: tuple[tuple[str, Literal[-1]], ...] = tuple(
    (f"{head} {{}}", -1) for head in ("missing", "extra", "rude", "repeat", "strange")
)
"""Clauses of a critique that name words, of the text or missing from it: see ``feedback.conversions_text``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """A finding of one attribute at one place: sign -1 what is wrong, +1 what is good there."""

    attribute: str
    start: int
    end: int
    """Characters ``start .. end`` of the text. What is missing is marked where it should have come: the last word for
    facts and the full stop, the first for courtesy. Equal only in an empty text."""
    sign: int
    note: str
    """As a critique says it: ``missing den``, ``rude ugly``, ``named red``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What stands in a text, as positions among its words."""

    words: tuple[str, ...]
    facts: tuple[str, ...]
    """Requested."""
    covered: tuple[int, ...]
    """First mentions of requested facts."""
    missing: tuple[str, ...]
    extra: tuple[int, ...]
    """First mentions of facts that nobody asked for."""
    courtesy: tuple[int, ...]
    rude: tuple[int, ...]
    repeats: tuple[int, ...]
    strange: tuple[int, ...]
    finished: bool
    over: int
    """Words beyond the budget."""

    @property
    def budget(self) -> int:
        """Words that a concise response to this request may have."""
        return BUDGET + 2 * len(self.facts)


def read_text(facts: Sequence[str], text: str) -> Reading:
    """Find everything that attributes, defects and revisions are about."""
    words = tuple(text.split())
    seen: set[str] = set()
    covered, extra, courtesy, rude, repeats, strange = (list[int]() for _ in range(6))
    for k, word in enumerate(words):
        first = word not in seen
        seen.add(word)
        if word not in _RESPONSE:
            strange.append(k)
        elif (k and words[k - 1] == word) or (not first and word in _ONCE):
            repeats.append(k)
        if word in _FACTS and first:
            (covered if word in facts else extra).append(k)
        elif word in _COURTESY:
            courtesy.append(k)
        elif word in _RUDE:
            rude.append(k)
    return Reading(
        words=words,
        facts=tuple(facts),
        covered=tuple(covered),
        missing=tuple(f for f in facts if f not in seen),
        extra=tuple(extra),
        courtesy=tuple(courtesy),
        rude=tuple(rude),
        repeats=tuple(repeats),
        strange=tuple(strange),
        finished=words[-1:] == (".",),
        over=max(0, len(words) - BUDGET - 2 * len(facts)),
    )


def measure(reading: Reading) -> dict[str, float]:
    """Each attribute in [0, 1], 1 is best; an empty text has 0 of all.

    coverage   share of the requested facts that are named
    grounded   share of the named facts that were requested; 0 when none is named
    polite     a courtesy word is there
    clean      no rude word is there
    concise    1 within the budget, falling linearly to 0 at twice the budget
    fluent     1 without fault, 0.5 with one of three: no full stop at the end, a repeated word, a word of no response
    """
    if not reading.words:
        return dict.fromkeys(ATTRIBUTES, 0.0)
    named = len(reading.covered) + len(reading.extra)
    faults = (not reading.finished) + bool(reading.repeats) + bool(reading.strange)
    return {
        "coverage": len(reading.covered) / max(1, len(reading.facts)),
        "grounded": len(reading.covered) / named if named else 0.0,
        "polite": float(bool(reading.courtesy)),
        "clean": float(not reading.rude),
        "concise": max(0.0, 1 - reading.over / reading.budget),
        "fluent": (1.0, 0.5, 0.0, 0.0)[faults],
    }


def normalised(weights: Mapping[str, float] | Sequence[tuple[str, float]] | None) -> dict[str, float]:
    """Weights of the attributes, in their order; None is the default, and an attribute that is left out weighs nothing.

    ConfigError for a name that is no attribute, a negative or non-finite weight, and weights that are all 0.
    """
    given = dict(WEIGHTS if weights is None else weights)
    strange = sorted(set(map(str, given)) - set(ATTRIBUTES))
    if strange:
        raise ConfigError(f"weights: {', '.join(strange)} is no attribute; choose from {', '.join(ATTRIBUTES)}")
    if not all(0 <= w < float("inf") for w in given.values()) or not sum(given.values()) > 0:
        raise ConfigError(f"weights: got {given}; expected finite numbers of at least 0, not all of them 0")
    return {name: float(given.get(name, 0.0)) for name in ATTRIBUTES}


def utility(attributes: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
    """Weighted mean of the attributes, stretched to [-1, 1]: ``2 sum(w_k a_k) / sum(w_k) - 1``."""
    w = WEIGHTS if weights is None else weights
    return 2 * sum(w[k] * attributes[k] for k in w) / sum(w.values()) - 1


def find_defects(reading: Reading, text: str) -> list[Defect]:
    """Everything good (+1) and bad (-1) in the text, by attribute and place; see ``Defect`` for what is missing."""
    spans = [m.span() for m in _WORD.finditer(text)] or [(0, 0)]
    words, last = reading.words, len(spans) - 1
    if not words:
        return [Defect(attribute=name, start=0, end=0, sign=-1, note="empty") for name in ATTRIBUTES]

    def at(attribute: str, k: int, sign: int, note: str, end: int | None = None) -> Defect:
        return Defect(
            attribute=attribute, start=spans[k][0], end=spans[k if end is None else end][1], sign=sign, note=note
        )

    out = [at("coverage", k, 1, f"named {words[k]}") for k in reading.covered]
    out += [at("coverage", last, -1, f"missing {fact}") for fact in reading.missing]
    out += [at("grounded", k, -1, f"extra {words[k]}") for k in reading.extra]
    out += [] if reading.covered or reading.extra else [at("grounded", last, -1, "no facts")]
    out += [at("polite", k, 1, f"polite {words[k]}") for k in reading.courtesy[:1]]
    out += [] if reading.courtesy else [at("polite", 0, -1, "not polite")]
    out += [at("clean", k, -1, f"rude {words[k]}") for k in reading.rude]
    out += [at("concise", reading.budget, -1, "too long", last)] if reading.over else []
    out += [at("fluent", k, -1, f"repeat {words[k]}") for k in reading.repeats]
    out += [at("fluent", k, -1, f"strange {words[k]}" if words[k] in _KNOWN else "strange") for k in reading.strange]
    return out + ([] if reading.finished else [at("fluent", last, -1, "unfinished")])


_KNOWN = frozenset(WORDS) - {";"}


def describe(defects: Sequence[Defect]) -> str:
    """The critique: what is wrong, each once, such as ``missing den ; rude ugly``; ``good`` when nothing is."""
    return " ; ".join(dict.fromkeys(d.note for d in defects if d.sign < 0)) or "good"


def blamed(critique: str) -> set[str]:
    """The attributes that a critique finds fault with. Clauses that it does not understand blame nothing."""
    clauses = [clause.split() for clause in critique.split(";")]
    if ["empty"] in clauses:
        return set(ATTRIBUTES)
    return {_HEADS[c[0]] for c in clauses if c and c[0] in _HEADS}


def mend(facts: Sequence[str], text: str, attributes: Collection[str] | None = None) -> str:
    """The text with the defects of these attributes mended and everything else kept; None mends all.

    Every named attribute is 1 afterwards and no other is lower, but that facts and courtesy which had to be added
    cost words: conciseness may fall when it is not named.
    """
    names = set(ATTRIBUTES if attributes is None else attributes)
    reading = read_text(facts, text)
    drop: set[int] = set()
    if "grounded" in names:
        named = {*(reading.words[k] for k in reading.extra)}
        drop |= {k for k, word in enumerate(reading.words) if word in named}
    if "clean" in names:
        drop |= set(reading.rude)
    if "fluent" in names:
        drop |= {*reading.repeats, *reading.strange}
    words = _without(reading.words, drop)
    if not words and names:
        names = set(ATTRIBUTES)
    _complete(words, names, facts)
    if "concise" in names:
        words = _shortened(words, facts)
    return " ".join(words)


def _without(words: Sequence[str], drop: set[int]) -> list[str]:
    """The words that stay; a comma or *and* that joined a dropped one goes with it."""
    kept: list[str] = []
    dropped = popped = False
    for k, word in enumerate(words):
        if k in drop:
            if kept and kept[-1] in (",", "and"):
                kept.pop()
                popped = True
            dropped = True
            continue
        dangling = not popped and word in (",", "and") and (not kept or kept[-1] in ("is", "has", ",", "and"))
        if not (dropped and (dangling or kept[-1:] == [word])):
            kept.append(word)
            dropped = popped = False
    return kept


def _complete(words: list[str], names: Collection[str], facts: Sequence[str]) -> None:
    """Add, in place, what these attributes lack: courtesy, facts, a full stop."""
    if "polite" in names and not _COURTESY & set(words):
        words[:0] = ["please", "note"] if words[:1] == ["the"] else ["please"]
    missing = [f for f in facts if f not in words]
    wanted = missing if "coverage" in names else []
    if "grounded" in names and not wanted and not _FACTS & set(words):
        wanted = missing[:1]
    end = len(words) - 1 if words[-1:] == ["."] else len(words)
    place = max((k + 1 for k in range(end) if words[k] in _FACTS), default=end)
    for fact in wanted:
        joint = [","] if words[:place] and words[place - 1] in _FACTS else []
        words[place:place] = [*joint, fact]
        place += len(joint) + 1
    if "fluent" in names:
        words[:] = [w for k, w in enumerate(words) if not k or words[k - 1] != w]
        if words[-1:] != ["."]:
            words.append(".")


def _shortened(words: list[str], facts: Sequence[str]) -> list[str]:
    """Without as many words as are over the budget: from the end, idle ones before those that say something."""
    reading = read_text(facts, " ".join(words))
    needed = {*reading.covered, *reading.courtesy[:1], *([len(words) - 1] if reading.finished else [])}
    loaded = {k for k, word in enumerate(words) if word in _FACTS or word in _RUDE}
    order = sorted(set(range(len(words))) - needed, key=lambda k: (k in loaded, words[k] not in _SPARE, -k))
    gone = set(order[: reading.over])
    kept = [word for k, word in enumerate(words) if k not in gone]
    return [w for k, w in enumerate(kept) if not k or kept[k - 1] != w]


_SPARE = frozenset((*DISTRACTORS, *(w for phrase in FILLER for w in phrase.split()))) - {","}
