"""Simulated annotators: people with known tastes, bias, noise and price, for what no crowd can be paid for (S128).

An annotator sees an item as attributes (name -> [0, 1], 1 good) and features (length, distractors), never the truth: what
is really wanted are other weights of the same attributes, kept by whoever measures. Each judgement is a pure function of
(annotator's seed, item): ask again, in any order or batch, and the answer is the same.

Noise is a random utility model, so that what is simulated is what ``ties`` fits: a comparison adds logistic noise of scale
T to the difference of utilities and calls less than ``tie`` a tie, which is Rao-Kupper with scores u / T and
theta = exp(tie / T); a ranking adds Gumbel noise of scale T to each item, which is Plackett-Luce.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from triloop import rng
from triloop.errors import ConfigError
from triloop.feedback.aggregate import Votes
from triloop.feedback.ties import regress

__all__ = [
    "FIRST",
    "PERSONAS",
    "Annotator",
    "Item",
    "calibrated",
    "cast_votes",
    "even_confusion",
    "population",
    "valued",
]

Sign = Literal[-1, 0, 1]
FIRST = "first"
"""The feature of being shown first, in a comparison or a ranking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What is judged. ``id`` decides the noise: equal ids get equal judgements."""

    id: str
    attributes: Mapping[str, float]
    """In [0, 1], 1 good."""
    features: Mapping[str, float] = field(default_factory=dict)
    """What carries no worth and may sway: ``length``, ``distractor``."""


def valued(id: str, utility: float) -> Item:
    """An item of which only a utility in [-1, 1] is known, as one attribute ``utility``."""
    return Item(id=id, attributes={"utility": (utility + 1.0) / 2.0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotator:
    """One person. All amounts are in units of utility, which runs from -1 to 1."""

    name: str
    weights: Mapping[str, float] = field(default_factory=lambda: {"utility": 1.0})
    """How much each attribute matters; an attribute that is not named does not."""
    bias: Mapping[str, float] = field(default_factory=dict)
    """Feature -> utility that one unit of it seems to add; ``first`` is the place of being shown first."""
    temperature: float = 0.0
    """Scale T of logistic noise; comparisons have log-odds difference / T."""
    flip: float = 0.0
    """Chance of saying the opposite of what was meant."""
    tie: float = 0.0
    """Perceived differences of at most this size are ties."""
    abstain: float = 0.0
    """A ternary or rubric mark this close to the bar is 0."""
    bar: float = 0.0
    """What is good enough for +1: above 0 a harsh judge, below a lenient one."""
    skill: float = 1.0
    """Chance of looking at all; who does not look answers at random."""
    delay: float = 0.0
    """Mean seconds until the answer, exponentially distributed."""
    cost: float = 0.0
    """Price of a judgement of a kind that ``costs`` does not name."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """Kind -> price."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no chance, no scale and no taste."""
        chances = {"flip": self.flip, "skill": self.skill}
        sizes = {"temperature": self.temperature, "tie": self.tie, "abstain": self.abstain, "delay": self.delay}
        wrong = [f"{k}={v}" for k, v in chances.items() if not 0.0 <= v <= 1.0]
        wrong += [f"{k}={v}" for k, v in sizes.items() if not 0.0 <= v < math.inf]
        if wrong or not sum(map(abs, self.weights.values())) > 0:
            raise ConfigError(
                f"annotator {self.name!r}: {', '.join(wrong) or 'weights are all 0'}; expected chances in [0, 1], "
                "sizes of at least 0, and at least one weight that is not 0"
            )

    # ------------------------------------------------------------------ what they think

    def utility(self, item: Item) -> float:
        """Their own taste without bias and noise: 2 sum(w a) / sum|w| - 1, negative weights counting 1 - a."""
        total = sum(map(abs, self.weights.values()))
        got = sum(
            w * item.attributes[k] if w >= 0 else -w * (1.0 - item.attributes[k]) for k, w in self.weights.items()
        )
        return 2.0 * got / total - 1.0

    def perceived(self, item: Item, *, first: bool = False) -> float:
        """Utility as it seems to them, without noise: bias included."""
        features = dict(item.features) | {FIRST: float(first)}
        return self.utility(item) + sum(b * features.get(k, 0.0) for k, b in self.bias.items())

    # ------------------------------------------------------------------ what they say

    def scalar(self, item: Item) -> float:
        """How good, in [-1, 1]."""
        u = self._draws("rate", item.id)
        if u[0] >= self.skill:
            return 2.0 * u[1] - 1.0
        return self._flipped(max(-1.0, min(1.0, self.perceived(item) + self._logistic(u[1]))), u[2])

    def ternary(self, item: Item) -> Sign:
        """+1 above the bar, -1 below, 0 within ``abstain`` of it. The same look at the item as ``scalar``'s."""
        u = self._draws("rate", item.id)
        if u[0] >= self.skill:
            return _sign(u[1] - 0.5)
        return self._marked(self.perceived(item) - self.bar + self._logistic(u[1]), u[2])

    def rubric(self, item: Item) -> dict[str, Sign]:
        """A ternary mark for each attribute that matters to them; each is looked at by itself, without bias."""
        marks: dict[str, Sign] = {}
        for name in self.weights:
            u = self._draws("rubric", item.id, name)
            here = 2.0 * item.attributes[name] - 1.0 - self.bar + self._logistic(u[1])
            marks[name] = _sign(u[1] - 0.5) if u[0] >= self.skill else self._marked(here, u[2])
        return marks

    def pair(self, first: Item, second: Item) -> float:
        """Above 0 the first is better, below the second, 0 a tie; the size is the strength, 1 a whole utility range.

        The noise belongs to the two items and not to their order: without a ``first`` bias the turned question gets
        the turned answer. Who does not look answers each order by itself, and knows no tie."""
        low, high = sorted((first.id, second.id))
        u = self._draws("pair", low, high)
        if u[0] >= self.skill:
            return 1.0 if self._draws("guess", first.id, second.id)[0] < 0.5 else -1.0
        turned = -1.0 if first.id != low else 1.0
        d = self.perceived(first, first=True) - self.perceived(second) + turned * self._logistic(u[1])
        if abs(d) <= self.tie:
            return 0.0
        return self._flipped(max(-1.0, min(1.0, d / 2.0)), u[2])

    def ranking(self, items: Sequence[Item]) -> tuple[tuple[int, ...], ...]:
        """Positions in groups of equals, best first. Within ``tie`` of the best of its group is equal."""
        seen = []
        for k, item in enumerate(items):
            u = self._draws("rank", item.id)
            noise = -math.log(-math.log(min(max(u[1], 1e-300), 1.0 - 1e-16)))
            looked = u[0] < self.skill
            seen.append(self.perceived(item, first=k == 0) + self.temperature * noise if looked else 2.0 * u[2] - 1.0)
        groups: list[list[int]] = []
        for k in sorted(range(len(items)), key=lambda k: (-seen[k], items[k].id)):
            if groups and seen[groups[-1][0]] - seen[k] <= self.tie:
                groups[-1].append(k)
            else:
                groups.append([k])
        turned = self._draws("rank flip", *sorted(i.id for i in items))[0] < self.flip
        return tuple(tuple(sorted(g)) for g in (reversed(groups) if turned else groups))

    def notices(self, item_id: str, what: str) -> bool:
        """Whether one detail of an item (a defect) is seen: chance ``skill``, each by itself."""
        return bool(self._draws("notice", item_id, what)[0] < self.skill)

    # ------------------------------------------------------------------ what it takes

    def price(self, kind: str) -> float:
        """Of one judgement of this kind."""
        return float(self.costs.get(kind, self.cost))

    def wait(self, kind: str, *ids: str) -> float:
        """Seconds until the answer."""
        return -self.delay * math.log1p(-self._draws("wait", kind, *ids)[0])

    def _draws(self, what: str, *ids: str) -> list[float]:
        """Four uniform numbers that belong to this annotator, this question and these items."""
        key = np.array([rng.key(self.seed, "annotator", self.name, what, *ids)], dtype=np.uint64)
        return [float(x) for x in rng.uniforms(key, 0, 4)[0]]

    def _logistic(self, u: float) -> float:
        u = min(max(u, 1e-16), 1.0 - 1e-16)
        return self.temperature * math.log(u / (1.0 - u))

    def _flipped(self, value: float, u: float) -> float:
        return -value if u < self.flip else value

    def _marked(self, above: float, u: float) -> Sign:
        return 0 if abs(above) <= self.abstain else _sign(self._flipped(above, u))


PERSONAS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "careful": {"temperature": 0.05, "tie": 0.05, "abstain": 0.05, "delay": 60.0, "cost": 2.0},
        "hasty": {"temperature": 0.4, "skill": 0.85, "delay": 5.0, "cost": 0.5},
        "dazzled": {"temperature": 0.15, "bias": {"distractor": 0.5}, "delay": 20.0, "cost": 1.0},
        "lengthy": {"temperature": 0.15, "bias": {"length": 0.4}, "delay": 20.0, "cost": 1.0},
        "first": {"temperature": 0.15, "bias": {FIRST: 0.4}, "delay": 20.0, "cost": 1.0},
        "undecided": {"temperature": 0.15, "tie": 0.4, "abstain": 0.4, "delay": 30.0, "cost": 1.0},
        "harsh": {"temperature": 0.15, "bar": 0.4, "delay": 20.0, "cost": 1.0},
        "lenient": {"temperature": 0.15, "bar": -0.4, "delay": 20.0, "cost": 1.0},
        "contrary": {"temperature": 0.15, "flip": 0.7, "delay": 20.0, "cost": 1.0},
        "spammer": {"skill": 0.0, "delay": 2.0, "cost": 0.5},
    }
)
"""Kinds of people, each with one trait that a method may stumble over. The amounts are ours; ``calibrated`` measures."""


def population(
    n: int,
    *,
    weights: Mapping[str, float],
    seed: int,
    personas: Mapping[str, float] | None = None,
    spread: float = 0.2,
) -> tuple[Annotator, ...]:
    """``n`` different people: personas in these shares (default: all alike), tastes around ``weights``.

    Each weight is multiplied by exp(spread * normal). Person ``i`` depends on (seed, i) alone: a larger population begins
    with the smaller one. Raises ``ConfigError`` for a persona that does not exist."""
    shares = dict.fromkeys(PERSONAS, 1.0) if personas is None else dict(personas)
    strange = sorted(shares.keys() - PERSONAS.keys())
    if strange or not sum(shares.values()) > 0 or min(shares.values()) < 0:
        raise ConfigError(f"personas {shares}: expected shares of at least 0, not all 0, of {', '.join(PERSONAS)}")
    edges = np.cumsum(list(shares.values())) / sum(shares.values())
    people = []
    for i in range(n):
        draw = rng.generator(seed, "person", i)
        persona = list(shares)[min(int(np.searchsorted(edges, draw.random(), side="right")), len(shares) - 1)]
        taste = np.exp(spread * draw.normal(size=len(weights)))
        own = {k: w * float(t) for (k, w), t in zip(weights.items(), taste, strict=True)}
        people.append(Annotator(name=f"{persona}-{i}", weights=own, seed=seed, **PERSONAS[persona]))
    return tuple(people)


def calibrated(
    annotator: Annotator, difference: Float[np.ndarray, " rows"], outcome: Int[np.ndarray, " rows"]
) -> Annotator:
    """The annotator with temperature, tie zone and first bias as fitted to somebody's real comparisons.

    ``difference`` is the known utility of the first less the second, ``outcome`` +1, 0, -1 as for ``ties.regress``.
    Raises ``ConfigError`` when the verdicts do not rise with the utility: no temperature says that."""
    fitted = regress(difference, outcome, "rao_kupper")
    if fitted.slope <= 0:
        raise ConfigError(
            f"annotator {annotator.name!r}: slope {fitted.slope:.3g} of verdicts on utility; expected > 0"
        )
    t = 1.0 / fitted.slope
    bias = dict(annotator.bias) | {FIRST: fitted.order * t}
    return replace(annotator, temperature=t, tie=math.log(fitted.tie) * t, bias=bias, flip=0.0, skill=1.0)


def even_confusion(accuracy: Float[np.ndarray, " workers"], n_labels: int) -> Float[np.ndarray, "workers truth given"]:
    """Confusion matrices of workers that are right so often, and err evenly over the other labels."""
    wrong = (1.0 - accuracy) / (n_labels - 1)
    return wrong[:, None, None] + (accuracy - wrong)[:, None, None] * np.eye(n_labels)


def cast_votes(
    truth: Int[np.ndarray, " items"],
    confusion: Float[np.ndarray, "workers truth given"],
    *,
    per_item: int,
    seed: int,
) -> Votes:
    """A crowd of known skill: ``per_item`` different workers, drawn alike, vote on each item, P(given | truth) known.

    Item ``i`` and its votes depend on (seed, i) alone."""
    n, workers, k = len(truth), confusion.shape[0], confusion.shape[1]
    if not 1 <= per_item <= workers:
        raise ConfigError(f"per_item={per_item}: expected 1 to {workers}, the number of workers")
    keys = np.array([rng.key(seed, "votes", i) for i in range(n)], dtype=np.uint64)
    u = rng.uniforms(keys, 0, workers + per_item)
    who = np.argsort(u[:, :workers], axis=1)[:, :per_item]
    bounds = np.cumsum(confusion[who, truth[:, None]], axis=2)
    given = np.minimum((u[:, workers:, None] >= bounds).sum(axis=2), k - 1)
    return Votes(
        item=np.repeat(np.arange(n), per_item),
        worker=who.ravel(),
        label=given.ravel(),
        n_items=n,
        n_workers=workers,
        n_labels=k,
    )


def _sign(x: float) -> Sign:
    return 1 if x > 0 else -1 if x < 0 else 0
