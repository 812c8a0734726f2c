"""Who judges: one protocol, an environment's own verifier behind it, and how several judgements become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from triloop.errors import ConfigError
from triloop.records import Feedback, Prompt

if TYPE_CHECKING:
    from triloop.envs.base import Env, Split

__all__ = ["EnvJudge", "Judge", "JudgedBy", "Panel", "Rule", "combine"]

Rule = Literal["all", "mean"]


class Judge(Protocol):
    """Judges completions: one feedback per (prompt, text), in order. A failure is a feedback, not an exception."""

    @property
    def name(self) -> str:
        """Who judges, as the feedback's ``source`` says it."""
        ...

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One judgement per (prompt, text), in order."""
        ...


class EnvJudge:
    """What the environment pays: its own ``judge``."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self.name = f"env:{env.name}"

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One judgement per (prompt, text), in order."""
        return self._env.judge(prompts, texts)


class JudgedBy:
    """An environment whose only judge, gold included, is another one: one's own problems with one's own verifier."""

    honest = True

    def __init__(self, env: Env, judge: Judge) -> None:
        self._env, self._judge = env, judge
        self.name, self.max_tokens, self.stop, self.levels = env.name, env.max_tokens, env.stop, env.levels

    def prompts(self, split: Split, n: int, *, seed: int, start: int = 0, level: int | None = None) -> list[Prompt]:
        """As the environment draws them."""
        return self._env.prompts(split, n, seed=seed, start=start, level=level)

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """As the judge says."""
        return self._judge.judge(prompts, texts)

    def gold(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """As the judge says: nobody knows better."""
        return self._judge.judge(prompts, texts)

    def right_answer(self, prompt: Prompt) -> str | None:
        """As the environment knows it."""
        return self._env.right_answer(prompt)

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        """As the environment makes them up."""
        return self._env.wrong_answers(prompt)


class Panel:
    """Several judges of every completion, combined by one rule."""

    def __init__(self, judges: Sequence[Judge], *, rule: Rule = "all") -> None:
        if not judges:
            raise ConfigError("a panel needs at least one judge; got none")
        self._judges, self._rule = tuple(judges), rule
        self.name = f"{rule}({', '.join(j.name for j in judges)})"

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One combined judgement per (prompt, text), in order."""
        columns = [j.judge(prompts, texts) for j in self._judges]
        return [combine(row, rule=self._rule, source=self.name) for row in zip(*columns, strict=True)]


def combine(feedback: Sequence[Feedback], *, rule: Rule = "all", source: str = "") -> Feedback:
    """Several judgements of one completion as one.

    ``all`` takes the lowest value: accepted only if every judge accepts, so that no easy part (a format) pays for a
    missing hard one (the answer). ``mean`` weighs by confidence. If any judge failed, so did the combination.
    """
    failed = [f for f in feedback if f.value is None]
    cost = sum(f.cost for f in feedback)
    if failed or not feedback:
        why = f"{failed[0].source}: {failed[0].failure}" if failed else "no judgement to combine"
        return Feedback(value=None, failure=why, source=source, cost=cost)
    pairs = [(f.value, f) for f in feedback if f.value is not None]
    parts = {f.source or str(i): value for i, (value, f) in enumerate(pairs)}
    weight = sum(f.confidence for _, f in pairs)
    if rule == "all":
        value, decisive = min(pairs, key=lambda pair: pair[0])
        reason, confidence = decisive.reason, decisive.confidence
    else:
        value = sum(v * f.confidence for v, f in pairs) / weight if weight > 0 else 0.0
        reason, confidence = "; ".join(f.reason for _, f in pairs if f.reason), weight / len(pairs)
    kind = "ternary" if value in (-1.0, 0.0, 1.0) else "scalar"
    return Feedback(
        value=value, reason=reason, source=source, kind=kind, confidence=confidence, cost=cost, breakdown=parts
    )
