"""Several judges as one: by the lowest value, the mean, the majority, weights, or what their votes say of their skill.

A member that fails is left out as long as a quorum speaks. How far the members agree is the confidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np

from triloop.errors import ConfigError
from triloop.feedback.aggregate import confidence as surety
from triloop.feedback.aggregate import ternary_ballot
from triloop.feedback.crowd import dawid_skene
from triloop.feedback.kinds import Pair, Scalar, Sign, Ternary, write
from triloop.records import Feedback, Prompt
from triloop.sources.judge import Judge, PairJudge

__all__ = ["Panel", "PairPanel", "Rule", "combine"]

Rule = Literal["all", "mean", "majority", "crowd"]
_RULES = ("all", "mean", "majority", "crowd")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """What a panel was made with, checked."""

    rule: Rule
    quorum: int
    weights: tuple[float, ...]

    @classmethod
    def of(cls, names: Sequence[str], rule: Rule, quorum: int | None, weights: Mapping[str, float] | None) -> _Settings:
        if not names:
            raise ConfigError("a panel needs at least one judge; got none")
        if len(set(names)) < len(names):
            raise ConfigError(
                f"a panel's judges are {', '.join(names)}; each needs a name of its own, or votes are mixed up"
            )
        if rule not in _RULES:
            raise ConfigError(f"a panel's rule is {rule!r}; expected one of {', '.join(_RULES)}")
        least = (len(names) if rule == "all" else len(names) // 2 + 1) if quorum is None else quorum
        if not 1 <= least <= len(names):
            raise ConfigError(f"a panel of {len(names)} has quorum {least}; expected 1 to {len(names)}")
        given = dict(weights or {})
        odd = sorted(set(given) - set(names))
        if odd or not all(math.isfinite(w) and w >= 0 for w in given.values()):
            raise ConfigError(
                f"a panel's weights are {given}; expected numbers of at least 0 for some of {', '.join(names)}"
            )
        if given and rule in ("all", "crowd"):
            raise ConfigError(
                f"a panel with rule {rule!r} does not read weights; leave them out, or take mean or majority"
            )
        return cls(rule=rule, quorum=least, weights=tuple(given.get(name, 1.0) for name in names))


class Panel:
    """Several judges of every completion.

        all        the lowest value: accepted only if every member accepts, so that no easy part (a format) pays for a
                   missing hard one (the answer). Quorum: everybody.
        mean       weighted by ``weights`` and each judgement's own confidence. Quorum: more than half.
        majority   of the signs, by weight; a tie is 0. Quorum: more than half.
        crowd      Dawid and Skene's posterior over (-1, 0, +1), fitted to this call's votes: give it a few dozen items

    ``weights`` maps judges' names to weights (1 unless given). Costs are summed over all members, failed ones included.
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        *,
        rule: Rule = "all",
        quorum: int | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._judges = tuple(judges)
        names = [j.name for j in judges]
        self._settings = _Settings.of(names, rule, quorum, weights)
        self.name = f"{rule}({', '.join(names)})"

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One combined judgement per (prompt, text), in order."""
        columns = [_named(j.judge(prompts, texts), j.name) for j in self._judges]
        return _rows(columns, self._settings, self.name, pairs=False)


class PairPanel:
    """Several pair judges of every pair; the rules of ``Panel``, where ``all`` prefers a side only when all members do."""

    def __init__(
        self,
        judges: Sequence[PairJudge],
        *,
        rule: Rule = "majority",
        quorum: int | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._judges = tuple(judges)
        names = [j.name for j in judges]
        self._settings = _Settings.of(names, rule, quorum, weights)
        self.name = f"{rule}({', '.join(names)})"

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        """One combined judgement per (prompt, first, second), in order."""
        columns = [_named(j.compare(prompts, firsts, seconds), j.name) for j in self._judges]
        return _rows(columns, self._settings, self.name, pairs=True)


def combine(
    feedback: Sequence[Feedback], *, rule: Literal["all", "mean", "majority"] = "all", source: str = ""
) -> Feedback:
    """Several judgements of one completion as one, with equal weights; if any of them failed, so did the combination."""
    if not feedback:
        return Feedback(value=None, failure="no judgement to combine", source=source)
    settings = _Settings(rule=rule, quorum=len(feedback), weights=(1.0,) * len(feedback))
    return _row(feedback, settings, source, pairs=False)


def _named(column: Sequence[Feedback], name: str) -> list[Feedback]:
    """Each judgement under its member's name, whatever source it gave: votes are counted by it."""
    return [f if f.source == name else replace(f, source=name) for f in column]


def _rows(columns: Sequence[Sequence[Feedback]], settings: _Settings, source: str, *, pairs: bool) -> list[Feedback]:
    rows = [tuple(row) for row in zip(*columns, strict=True)]
    if settings.rule != "crowd":
        return [_row(row, settings, source, pairs=pairs) for row in rows]
    cast_votes = ternary_ballot(((str(i), f) for i, row in enumerate(rows) for f in row), abstentions="label")
    told: dict[str, tuple[float, float]] = {}
    if cast_votes.items:
        posterior = dawid_skene(cast_votes.votes, smoothing=0.5).posterior
        sure = surety(posterior)
        for item, p, c in zip(cast_votes.items, posterior, sure, strict=True):
            told[item] = (float(np.array([-1.0, 0.0, 1.0])[int(p.argmax())]), float(c))
    return [_row(row, settings, source, pairs=pairs, told=told.get(str(i))) for i, row in enumerate(rows)]


def _row(
    row: Sequence[Feedback],
    settings: _Settings,
    source: str,
    *,
    pairs: bool,
    told: tuple[float, float] | None = None,
) -> Feedback:
    """One item's judgements as one; ``told`` is the crowd's (sign, confidence)."""
    cost = sum(f.cost for f in row)
    spoke = [
        (f, w, f.value) for f, w in zip(row, settings.weights, strict=True) if not f.failed and f.value is not None
    ]
    if len(spoke) < settings.quorum:
        silent = [f"{f.source}: {f.failure or f'{f.kind} has no number'}" for f in row if f.failed or f.value is None]
        short = (
            ""
            if settings.quorum == len(row)
            else f"{len(spoke)} of {len(row)} judged and the quorum is {settings.quorum}; "
        )
        return Feedback(
            value=None, failure=short + silent[0], source=source, cost=cost, kind="pair" if pairs else "scalar"
        )
    if told is not None:
        value, sure, reason = *told, ""
    else:
        value, sure, reason = (_RULE[settings.rule] if not (pairs and settings.rule == "all") else _unanimous)(
            [(f, w, v) for f, w, v in spoke]
        )
    value = min(1.0, max(-1.0, value))
    parts = {f.source or str(i): v for i, (f, _, v) in enumerate(spoke)}
    sign = cast(Sign, (value > 0) - (value < 0))
    content = Pair(sign, abs(value) or 1.0) if pairs else Ternary(sign) if abs(value) in (0.0, 1.0) else Scalar(value)
    return write(
        content,
        source=source,
        confidence=min(1.0, max(0.0, sure)),
        cost=cost,
        breakdown=parts,
        reason=reason,
        about=next((f.about for f, _, _ in spoke if f.about), ()),
        parents=tuple(dict.fromkeys(p for f, _, _ in spoke for p in f.parents)),
        consent=" and ".join(dict.fromkeys(f.consent for f, _, _ in spoke if f.consent)),
    )


_Spoke = Sequence[tuple[Feedback, float, float]]


def _lowest(spoke: _Spoke) -> tuple[float, float, str]:
    """The member that decides, at its own confidence."""
    f, _, value = min(spoke, key=lambda s: s[2])
    return value, f.confidence, f.reason


def _mean(spoke: _Spoke) -> tuple[float, float, str]:
    """Mean by weight and confidence; confidence is the members' own, less half their mean distance from it."""
    weights = [w * f.confidence for f, w, _ in spoke]
    total, asked = sum(weights), sum(w for _, w, _ in spoke)
    if total <= 0:
        return 0.0, 0.0, ""
    value = sum(w * v for w, (_, _, v) in zip(weights, spoke, strict=True)) / total
    apart = sum(w * abs(v - value) for w, (_, _, v) in zip(weights, spoke, strict=True)) / total
    return value, total / asked * (1 - apart / 2), "; ".join(f.reason for f, _, _ in spoke if f.reason)


def _majority(spoke: _Spoke) -> tuple[float, float, str]:
    """The sign with the most weight; confidence is its share. Equal shares at the top are a tie: 0."""
    total = sum(w for _, w, _ in spoke)
    if total <= 0:
        return 0.0, 0.0, ""
    shares = {sign: sum(w for _, w, v in spoke if ((v > 0) - (v < 0)) == sign) / total for sign in (1, 0, -1)}
    top = max(shares.values())
    winners = [sign for sign, share in shares.items() if share > top - 1e-12]
    won = winners[0] if len(winners) == 1 else 0
    side = [f.reason for f, _, v in spoke if f.reason and ((v > 0) - (v < 0)) == won]
    return float(won), shares[won] if len(winners) == 1 else 1 - top, "; ".join(side)


def _unanimous(spoke: _Spoke) -> tuple[float, float, str]:
    """The weakest preference where all members prefer the same side, else a tie."""
    values = [v for _, _, v in spoke]
    agreed = all(v > 0 for v in values) or all(v < 0 for v in values)
    if not agreed:
        return 0.0, max(sum(v > 0 for v in values), sum(v < 0 for v in values)) / len(values), "not of one mind"
    f, _, value = min(spoke, key=lambda s: abs(s[2]))
    return value, f.confidence, f.reason


_RULE: Mapping[str, Callable[[_Spoke], tuple[float, float, str]]] = {
    "all": _lowest,
    "mean": _mean,
    "majority": _majority,
}
