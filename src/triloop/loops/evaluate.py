"""The one evaluator of a policy on a task: one sample each on held-out prompts, judged by the gold judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from triloop import stats
from triloop.envs.base import Env, Split
from triloop.errors import DataError, Interrupted
from triloop.policies.protocol import Policy, Tag
from triloop.policies.sampling import Sampling
from triloop.records import Episode, Feedback
from triloop.sources.judge import Judge
from triloop.sources.verifier import check_failures

__all__ = ["Evaluation", "evaluate", "passed"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out gold score: pass@1 with Wilson's interval when all are ternary, else their mean with a bootstrap's."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    proxy: float | None
    """Share that the training judge passes of the same completions; None where it was not asked."""
    episodes: tuple[Episode, ...]

    @property
    def gold(self) -> float:
        """Share that the gold judge passes, whatever the metric: what ``proxy`` is compared with."""
        return sum(passed(e.feedback[0]) for e in self.episodes) / self.n

    def summary(self) -> dict[str, object]:
        """What reports show; ``breakdown`` is the mean of each named part of the gold judgements, such as one per rule."""
        parts: dict[str, list[float]] = {}
        for e in self.episodes:
            for name, value in e.feedback[0].breakdown.items():
                parts.setdefault(name, []).append(value)
        means = {name: sum(values) / len(values) for name, values in sorted(parts.items())}
        facts = {"metric": self.metric, "value": self.value, "ci95": [self.low, self.high], "n": self.n}
        return {**facts, "breakdown": means} if means else facts


def passed(feedback: Feedback) -> bool:
    """Whether a judgement says right: +1 of a ternary one, above 0 of any other."""
    return feedback.value is not None and (feedback.value == 1 if feedback.kind == "ternary" else feedback.value > 0)


def evaluate(
    policy: Policy,
    env: Env,
    n: int,
    sampling: Sampling,
    tag: Tag,
    *,
    judge: Judge | None = None,
    split: Split = "eval",
    level: int | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Sample once on each of ``n`` distinct prompts of a split and judge; equal ``tag.seed``, equal prompts.

    A task with fewer problems gives what it has, and ``n`` of the result says so. Failed judgements count as not passed.
    Raises JudgeError when most of them failed, and Interrupted, keeping nothing, when ``interrupted`` says so.
    """
    drawn = env.prompts(split, n, seed=tag.seed, level=level)
    prompts = list({p.id: p for p in drawn}.values())
    if not prompts:
        raise DataError(f"{env.name} has no {split} prompts; give it more problems")
    completions = policy.sample(prompts, 1, sampling, tag, interrupted=interrupted)
    if interrupted():
        raise Interrupted("interrupted while held-out prompts were evaluated; `triloop resume` does that again")
    texts = [c.text for c in completions]
    gold = env.gold(prompts, texts)
    check_failures(gold)
    proxy = None if judge is None else judge.judge(prompts, texts)
    metric, interval = _score(gold, tag.seed)
    return Evaluation(
        metric=metric,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=len(prompts),
        proxy=None if proxy is None else sum(map(passed, proxy)) / len(proxy),
        episodes=tuple(
            Episode(prompt=p, completion=c, feedback=(f,), reward=f.value)
            for p, c, f in zip(prompts, completions, gold, strict=True)
        ),
    )


def _score(feedback: Sequence[Feedback], seed: int) -> tuple[str, stats.Interval]:
    if all(f.kind == "ternary" for f in feedback):
        return "pass@1", stats.wilson(sum(map(passed, feedback)), len(feedback))
    values = [0.0 if f.value is None else float(f.value) for f in feedback]
    return "mean score", stats.bootstrap_mean(values, seed=seed)
