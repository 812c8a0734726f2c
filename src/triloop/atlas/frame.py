"""What a row of the atlas is, and how data become a verdict: one rule, one function, for every row.

The unit that is repeated is the training run, so the interval is Student's t over the differences of seeds: treatment minus
baseline on the same base, the same training prompts and the same held-out problems. (A bootstrap over problems would be
narrower, and would say nothing of another seed's training; one over three to five seeds is too narrow at any level.)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triloop.errors import ConfigError
from triloop.stats import Interval

__all__ = [
    "Context",
    "Contrast",
    "Measured",
    "Row",
    "decide",
    "difference",
    "judge",
    "means",
    "outcome",
    "transposed",
]

FEWEST_SEEDS = 3
"""Below this no interval is worth its name."""

_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom. Above 30 the last one serves: a little too wide."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One comparison that a claim stands or falls with. Its thresholds are written down before the data that are recorded;
    where it was changed after a look at others, ``Row.changed_after_first_look`` says so.

    The difference d is treatment minus baseline, or baseline minus treatment where lower is better: above 0 is good.
    """

    metric: str
    """What is compared, in words."""
    treatment: str
    baseline: str
    above: float
    """+1 when the whole interval of d lies above this. Negative: *no worse than*, by that margin."""
    below: float
    """-1 when the whole interval of d lies below this."""
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if self.below > self.above:
            raise ConfigError(f"a contrast needs below <= above; got {self.below} and {self.above}")

    @property
    def words(self) -> str:
        """The rule as a sentence."""
        sides = (self.treatment, self.baseline) if self.higher_is_better else (self.baseline, self.treatment)
        return f"{self.metric}, {sides[0]} minus {sides[1]}: +1 above {self.above:g}, -1 below {self.below:g}, else 0"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a row's run found: for each contrast, in their order, one value a seed on either side."""

    baseline: Sequence[Sequence[float]]
    treatment: Sequence[Sequence[float]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is worth knowing; decides nothing."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where and how large a row is run."""

    folder: Path
    """For run folders, which are removed again, and nothing else."""
    seeds: tuple[int, ...]
    base: str = "base:arithmetic"
    """The policy that the row starts from."""
    share: float = 1.0
    """Below 1, rounds and held-out problems in proportion: to see that a row runs. Such a result is never saved."""
    workers: int = 1
    """Training runs at a time, each on one thread; the figures do not depend on it."""

    def scaled(self, count: int) -> int:
        """So many, or that share of them, at least one."""
        return max(1, round(count * self.share))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published system as a small experiment. Title, room and the paper's whole claim stand in ``systems.tsv``."""

    id: str
    claim: str
    """The part of the paper's claim that this miniature can show or contradict."""
    setup: str
    """The miniature: policy, task, budget."""
    core: str
    """Where the same idea can be had in ordinary use."""
    contrasts: tuple[Contrast, ...]
    """The first is what the row is told by; all must hold."""
    run: Callable[[Context], Measured]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    base: str = "base:arithmetic"
    """The policy that it starts from."""
    parts: tuple[str, ...] = ()
    """Shared parts of the library that it is made of, such as ``loops.generations``; none of its own."""
    changed_after_first_look: str = ""
    """What about experiment or rule is not as it was first written, when it was changed, and what had been seen by then.
    Empty: nothing was changed."""

    @property
    def rule(self) -> str:
        """The rule of the verdict in words, fixed before the data that are recorded."""
        each = "; ".join(f"({i}) {c.words}" for i, c in enumerate(self.contrasts, start=1))
        return f"95 % t-interval over {len(self.seeds)} seeds. {each}. The verdict is the lowest of these."


def transposed(found: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """One record a seed -> lists over the seeds, by name."""
    return {name: [f[name] for f in found] for name in found[0]}


def means(by: Mapping[str, Sequence[float]], *, digits: int = 5) -> dict[str, float]:
    """The mean over seeds of each, in so many digits: facts beside the contrasts."""
    return {name: float(f"{statistics.fmean(values):.{digits}g}") for name, values in by.items()}


def difference(contrast: Contrast, baseline: Sequence[float], treatment: Sequence[float]) -> Interval:
    """Mean difference over seeds, above 0 where the treatment is better, with its 95 % t-interval.

    d_s = sign (treatment_s - baseline_s),     mean(d) +- t(n-1) sd(d) / sqrt(n)
    """
    n = len(baseline)
    if len(treatment) != n or n < FEWEST_SEEDS:
        raise ConfigError(
            f"{contrast.metric}: {n} baseline and {len(treatment)} treatment values; expected one of each a seed, "
            f"for at least {FEWEST_SEEDS} seeds"
        )
    values = [*baseline, *treatment]
    if not all(math.isfinite(v) for v in values):
        raise ConfigError(f"{contrast.metric}: a value is not finite: {values}; a run has diverged, mend the row")
    sign = 1.0 if contrast.higher_is_better else -1.0
    d = [sign * (t - b) for b, t in zip(baseline, treatment, strict=True)]
    mean = statistics.fmean(d)
    half = _T[min(n - 2, len(_T) - 1)] * statistics.stdev(d) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def decide(contrast: Contrast, interval: Interval) -> int:
    """+1 holds, -1 contradicted, 0 undecided: where the whole interval lies."""
    return 1 if interval.low > contrast.above else -1 if interval.high < contrast.below else 0


def judge(contrasts: Sequence[Contrast], measured: Measured) -> int:
    """The verdict of a row: the lowest of its contrasts, so that +1 says that all of the claim holds."""
    return min(decide(c, difference(c, b, t)) for c, b, t in _sides(contrasts, measured))


def outcome(row: Row, measured: Measured) -> dict[str, Any]:
    """A row's result as plain values: the first contrast at the top, all of them with their data under ``contrasts``."""
    parts: list[dict[str, Any]] = []
    for contrast, baseline, treatment in _sides(row.contrasts, measured):
        d = difference(contrast, baseline, treatment)
        parts.append(
            {
                "rule": contrast.words,
                "baseline": [float(v) for v in baseline],
                "treatment": [float(v) for v in treatment],
                "difference": d.value,
                "ci95": [d.low, d.high],
                "verdict": decide(contrast, d),
            }
        )
    first = parts[0]
    return {
        "id": row.id,
        "claim": row.claim,
        "measured": statistics.fmean(first["treatment"]),
        "baseline": statistics.fmean(first["baseline"]),
        "difference": first["difference"],
        "ci95": first["ci95"],
        "seeds": len(first["baseline"]),
        "verdict": judge(row.contrasts, measured),
        "rule": row.rule,
        "contrasts": parts,
        "facts": dict(measured.facts),
    }


def _sides(
    contrasts: Sequence[Contrast], measured: Measured
) -> list[tuple[Contrast, Sequence[float], Sequence[float]]]:
    if not len(contrasts) == len(measured.baseline) == len(measured.treatment) > 0:
        raise ConfigError(
            f"{len(contrasts)} contrasts, {len(measured.baseline)} baselines and {len(measured.treatment)} treatments; "
            "expected as many of each, and at least one"
        )
    return list(zip(contrasts, measured.baseline, measured.treatment, strict=True))
