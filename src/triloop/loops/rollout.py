"""Prompts to judged episodes: draw, sample, judge."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from triloop import rng
from triloop.errors import DataError
from triloop.learn.credit import ternary_reward
from triloop.loops.config import RunConfig
from triloop.loops.curriculum import choose_levels
from triloop.loops.state import LoopState, Workshop
from triloop.policies.protocol import Tag
from triloop.records import Completion, Episode, Feedback, Prompt
from triloop.sources.verifier import check_failures

__all__ = ["Rollout", "draw_prompts", "judged", "reward_of", "rollout"]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What one round sampled, and what it cost."""

    episodes: tuple[Episode, ...]
    """Prompt-major: the completions of a prompt stand together."""
    cursor: dict[str, int]
    sample_seconds: float
    judge_seconds: float

    @property
    def tokens(self) -> int:
        """Tokens that the policy generated."""
        return sum(sum(e.completion.mask) for e in self.episodes)


def draw_prompts(shop: Workshop, state: LoopState, cursor: dict[str, int], n: int, taken: set[str]) -> list[Prompt]:
    """``n`` training prompts that are not in ``taken``; moves ``cursor`` past them.

    A small task can run out of unseen prompts: then the stream simply repeats, but never within one round.
    """
    c = shop.config
    levels = choose_levels(
        c.curriculum,
        c.env.level,
        shop.env.levels,
        (state.pass_rates, state.trends),
        n,
        rng.key(c.seed, "levels", state.round, len(taken)),
    )
    chosen: list[Prompt] = []
    for level, count in levels.items():
        name = "*" if level is None else str(level)
        misses = 0
        while count > 0 and misses < 20:
            start = cursor.get(name, 0)
            fresh = shop.env.prompts("train", count, seed=c.seed, start=start, level=level)
            cursor[name] = start + len(fresh)
            new = list({p.id: p for p in fresh if p.id not in taken}.values())
            misses += not new
            taken.update(p.id for p in new)
            chosen += new
            count -= len(new)
    return chosen


def judged(shop: Workshop, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Feedback]:
    """One judgement per completion by the training judge. JudgeError, which stops the run, when most of them failed."""
    feedback = shop.judge.judge(prompts, [c.text for c in completions])
    check_failures(feedback)
    return feedback


def rollout(shop: Workshop, state: LoopState) -> Rollout:
    """Sample and judge one round; with dynamic sampling, draw on until enough groups have something to teach.

    Once somebody has interrupted, nothing more is judged, and what comes back is not a round.
    """
    c = shop.config
    tag = Tag(seed=c.seed, round=state.round + 1, learned=c.loop == "outcome_rl" and not c.pipeline)
    cursor, taken = dict(state.cursor), set[str]()
    episodes: list[Episode] = []
    sample_seconds = judge_seconds = 0.0
    wanted = c.prompts_per_round
    for _ in range(c.max_draws if shop.algorithm.dynamic_sampling else 1):
        prompts = draw_prompts(shop, state, cursor, wanted, taken)
        if not prompts or shop.interrupted():
            break
        t0 = time.perf_counter()
        completions = shop.policy.sample(prompts, c.group_size, c.sampling, tag, interrupted=shop.interrupted)
        t1 = time.perf_counter()
        if shop.interrupted():
            break
        each = [p for p in prompts for _ in range(c.group_size)]
        feedback = judged(shop, each, completions)
        sample_seconds += t1 - t0
        judge_seconds += time.perf_counter() - t1
        episodes += [
            Episode(prompt=p, completion=x, feedback=(f,), reward=reward_of(f, c))
            for p, x, f in zip(each, completions, feedback, strict=True)
        ]
        wanted = c.prompts_per_round - sum(_spread(group) for group in _groups(episodes, c.group_size))
        if wanted <= 0:
            break
    if not episodes and not shop.interrupted():
        raise DataError(f"{shop.env.name} has no train prompts; give it more problems")
    return Rollout(episodes=tuple(episodes), cursor=cursor, sample_seconds=sample_seconds, judge_seconds=judge_seconds)


def reward_of(feedback: Feedback, config: RunConfig) -> float | None:
    """What the learner is paid: the judge's value, ``abstain_value`` for 0, and with ``partial_credit`` a failing one
    loses only the share of the rules that it breaks. Passing stays above 0 and failing below it in every case.
    """
    if feedback.value is None:
        return None
    if config.partial_credit and feedback.value == -1 and "share" in feedback.breakdown:
        return feedback.breakdown["share"] - 1.0
    return ternary_reward(feedback.value, config.abstain_value)


def _groups(episodes: Sequence[Episode], size: int) -> list[Sequence[Episode]]:
    return [episodes[i : i + size] for i in range(0, len(episodes), size)]


def _spread(group: Sequence[Episode]) -> bool:
    return len({e.reward for e in group if e.reward is not None}) > 1
