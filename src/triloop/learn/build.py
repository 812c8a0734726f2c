"""From judged episodes to a batch: groups, shaped rewards, credit, and which rows need a pass through the model at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triloop.errors import ConfigError
from triloop.learn import credit, objectives
from triloop.learn.algorithms import Algorithm
from triloop.learn.batch import Batch, pad
from triloop.learn.reduction import Denominators
from triloop.records import Episode

__all__ = ["build_batch"]

Ragged = Sequence[Any]
"""One row per episode: a list, array or tensor with one number per token of its completion."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Groups:
    """Where each episode stands in the table of prompts by group; prompts in order of first appearance."""

    prompt: Int[Tensor, " rows"]
    slot: Int[Tensor, " rows"]
    shape: tuple[int, int]

    def table(self, x: Tensor, fill: float) -> Tensor:
        """[rows] -> [prompts, group]; places without an episode hold ``fill``."""
        out = torch.full(self.shape, fill, dtype=x.dtype)
        out[self.prompt, self.slot] = x
        return out

    def spread(self, x: Tensor) -> Tensor:
        """[prompts, group] -> [rows]."""
        return x[self.prompt, self.slot]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Round:
    """All episodes of a round as tensors, before anything is left out."""

    groups: _Groups
    mask: Bool[Tensor, "rows time"]
    logp_old: Float[Tensor, "rows time"]
    logp_ref: Float[Tensor, "rows time"] | None
    values: Float[Tensor, "rows time"] | None
    dense: Float[Tensor, "rows time"] | None
    weight: Float[Tensor, "rows time"] | None
    reward: Float[Tensor, " rows"]
    valid: Bool[Tensor, " rows"]

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Credit:
    """What the rewards say: advantages, and for whom success is read off."""

    advantage: Float[Tensor, "rows time"]
    returns: Float[Tensor, "rows time"] | None
    positive: Bool[Tensor, " rows"]
    success: Float[Tensor, " rows"]


def build_batch(
    episodes: Sequence[Episode],
    algorithm: Algorithm,
    *,
    max_tokens: int,
    reference: Ragged | None = None,
    values: Ragged | None = None,
    logp_learner: Ragged | None = None,
    dense: Ragged | None = None,
) -> tuple[Batch | None, dict[str, float]]:
    """What the learner needs of one round, and the round's figures. None when no row carries a gradient.

    ``max_tokens`` is the longest completion that sampling allowed. ``reference``: log-probabilities under the reference
    (``algorithm.needs_reference``); ``values``: the value head's (``algorithm.needs_values``); ``logp_learner``: the
    sampled policy's log-probabilities as the learner computes them (``algorithm.importance_cap``); ``dense``: rewards of
    single tokens beside the episode's, which comes with the last (``spans.dense_rewards``; ConfigError without a value
    head, which alone can credit them). Each is ragged, one row per episode. A group is all episodes with one prompt id.

    What is left out: an episode whose judgement failed (reward None or not finite) counts nowhere. A completion whose
    advantage is exactly zero is not in the batch when its gradient would be zero too
    (``algorithm.skips_zero_advantage``), yet stays in the denominators, so that the gradient is the same as with it.
    With ``dynamic_sampling`` a group without any advantage leaves the denominators as well; with ``positives_only``
    every completion does that is not positive.

    Figures (of all judged episodes): reward, reward_std, zero_std_share (groups without spread), judge_failures, length
    (tokens), truncated_share, trained_share (rows in the batch / episodes), success_share.
    """
    if not episodes:
        raise ConfigError("a round without episodes: expected at least one judged completion")
    if dense is not None and not algorithm.needs_values:
        raise ConfigError("rewards of single tokens need a value head to be credited by; choose ppo")
    given = _round(episodes, algorithm, reference=reference, values=values, logp_learner=logp_learner, dense=dense)
    credited = _credit(given, algorithm, max_tokens)
    rows, denominators = _select(given, credited, algorithm, max_tokens)
    figures = _figures(episodes, given, credited, trained=len(rows))
    return (_batch(episodes, given, credited, rows, denominators) if rows else None), figures


def _round(
    episodes: Sequence[Episode],
    algorithm: Algorithm,
    *,
    reference: Ragged | None,
    values: Ragged | None,
    logp_learner: Ragged | None,
    dense: Ragged | None = None,
) -> _Round:
    completions = [e.completion for e in episodes]
    lengths = [len(c.tokens) for c in completions]
    time = max(lengths)
    mask = pad([c.mask for c in completions], time) > 0
    sampled = pad([c.logps for c in completions], time)
    ragged = {
        "reference": _ragged("reference", reference, lengths, algorithm.needs_reference),
        "values": _ragged("values", values, lengths, algorithm.needs_values),
        "logp_learner": _ragged("logp_learner", logp_learner, lengths, algorithm.importance_cap > 0),
        "dense": _ragged("dense", dense, lengths, needed=False),
    }
    learner = ragged["logp_learner"]
    weight = None
    if learner is not None and algorithm.importance_cap > 0:
        weight = objectives.truncated_importance_weight(learner, sampled, mask, cap=algorithm.importance_cap)
    reward = torch.tensor([math.nan if e.reward is None else float(e.reward) for e in episodes], dtype=torch.float32)
    valid = reward.isfinite()
    return _Round(
        groups=_groups(episodes),
        mask=mask,
        logp_old=sampled if learner is None else learner,
        logp_ref=ragged["reference"],
        values=ragged["values"],
        dense=ragged["dense"],
        weight=weight,
        reward=torch.where(valid, reward, 0.0),
        valid=valid,
    )


def _ragged(name: str, rows: Ragged | None, lengths: list[int], needed: bool) -> Tensor | None:
    """Padded rows; ``ConfigError`` when they are needed and missing, or do not fit the episodes."""
    if rows is None:
        if needed:
            raise ConfigError(f"this algorithm needs {name}: one row per episode, one number per token; got none")
        return None
    got = [len(row) for row in rows]
    if got != lengths:
        shorter = min(len(got), len(lengths))
        where = next((i for i in range(shorter) if got[i] != lengths[i]), shorter)
        raise ConfigError(
            f"{name}: {len(got)} rows for {len(lengths)} episodes, first mismatch at row {where}; "
            "expected one row per episode with one number per token"
        )
    return pad(rows, max(lengths))


def _groups(episodes: Sequence[Episode]) -> _Groups:
    place: dict[str, int] = {}
    size: list[int] = []
    prompt, slot = [], []
    for episode in episodes:
        p = place.setdefault(episode.prompt.id, len(place))
        if p == len(size):
            size.append(0)
        prompt.append(p)
        slot.append(size[p])
        size[p] += 1
    return _Groups(prompt=torch.tensor(prompt), slot=torch.tensor(slot), shape=(len(size), max(size)))


def _credit(given: _Round, algorithm: Algorithm, max_tokens: int) -> _Credit:
    """Shapes the rewards, then asks the algorithm's advantage function, or the value head."""
    reward = given.reward
    if algorithm.overlong_buffer > 0:
        reward = reward + credit.overlong_penalty(given.lengths, max_tokens, algorithm.overlong_buffer)
    fine = _kl_as_reward(given, algorithm)
    if fine is not None and not algorithm.needs_values:
        reward = reward - fine.sum(dim=1)
    positive = given.valid & (reward > algorithm.success_above)
    valid = given.groups.table(given.valid, False)
    success = credit.success_rate(given.groups.table(positive, False), valid)[given.groups.prompt]
    returns = None
    if algorithm.advantage is not None:
        scored = positive.float() if algorithm.on_success else reward
        rows = given.groups.spread(algorithm.advantage(given.groups.table(scored, 0.0), valid))
        if algorithm.positives_per_prompt > 0:
            rows = torch.where(_rank_of_positive(given, positive) <= algorithm.positives_per_prompt, rows, 0.0)
        advantage = objectives.per_token(rows, given.mask)
    else:
        advantage, returns = _by_values(given, algorithm, reward, fine)
    advantage = torch.where(advantage < 0, algorithm.negative_weight * advantage, advantage)
    return _Credit(advantage=advantage, returns=returns, positive=positive, success=success)


def _kl_as_reward(given: _Round, algorithm: Algorithm) -> Tensor | None:
    """The KL term as a fine per token, or None where it is a loss or absent."""
    if given.logp_ref is None or not algorithm.needs_reference or algorithm.kl_in != "reward":
        return None
    return algorithm.kl_coef * algorithm.kl(given.logp_old, given.logp_ref, given.mask)


def _rank_of_positive(given: _Round, positive: Tensor) -> Tensor:
    """For each row: how many positives its group has up to and including it."""
    table = given.groups.table(positive, False)
    return given.groups.spread(table.cumsum(dim=1))


def _by_values(given: _Round, algorithm: Algorithm, reward: Tensor, fine: Tensor | None) -> tuple[Tensor, Tensor]:
    """Advantages and returns of the value head: the reward arrives with the last token that the policy chose, on top of
    what single tokens earned."""
    assert given.values is not None, "checked in _round"
    mask = given.mask & given.valid[:, None]
    time = mask.shape[1]
    is_last = mask & (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True))
    rewards = torch.where(is_last, reward[:, None].expand(-1, time), 0.0)
    if given.dense is not None:
        rewards = rewards + torch.where(mask, given.dense, 0.0)
    if fine is not None:
        rewards = rewards - fine
    advantage, returns = credit.gae(rewards, given.values, mask, gamma=algorithm.gamma, lam=algorithm.lam)
    return (credit.whiten(advantage, mask) if algorithm.whiten else advantage), returns


def _select(given: _Round, credited: _Credit, algorithm: Algorithm, max_tokens: int) -> tuple[list[int], Denominators]:
    """Rows that need a pass, prompt by prompt, and the denominators of all rows that count."""
    signal = (credited.advantage != 0).any(dim=1)
    counted = given.valid
    if algorithm.dynamic_sampling:
        groups = given.groups
        counted = counted & groups.table(signal & given.valid, False).any(dim=1)[groups.prompt]
    if algorithm.positives_only:
        counted = counted & signal
    kept = counted & (given.lengths > 0)
    if algorithm.skips_zero_advantage:
        kept = kept & signal
    prompt, slot = given.groups.prompt.tolist(), given.groups.slot.tolist()
    rows = sorted(kept.nonzero().flatten().tolist(), key=lambda i: (prompt[i], slot[i]))
    tokens, sequences = given.lengths[counted].sum(), counted.sum()
    return rows, Denominators(tokens=float(tokens), sequences=float(sequences), max_tokens=max_tokens)


def _batch(
    episodes: Sequence[Episode], given: _Round, credited: _Credit, rows: list[int], denominators: Denominators
) -> Batch:
    completions = [e.completion for e in episodes]
    whole = Batch(
        prompt_tokens=[list(c.prompt_tokens) for c in completions],
        tokens=[list(c.tokens) for c in completions],
        mask=given.mask,
        advantage=credited.advantage,
        logp_old=given.logp_old,
        reward=given.reward,
        positive=credited.positive,
        success=credited.success,
        denominators=denominators,
        episode=list(range(len(episodes))),
        logp_ref=given.logp_ref,
        values_old=given.values,
        returns=credited.returns,
        weight=given.weight,
    )
    return whole.rows(rows)


def _figures(episodes: Sequence[Episode], given: _Round, credited: _Credit, *, trained: int) -> dict[str, float]:
    """Names as the guards know them (``guards.base.Watch``)."""
    judged = given.valid
    n = max(1, int(judged.sum()))
    reward = given.reward[judged]
    table, valid = given.groups.table(given.reward, 0.0), given.groups.table(judged, False)
    judged_groups = max(1, int(valid.any(dim=1).sum()))
    spread = int(credit.has_spread(table, valid).sum())
    figures = {
        "judge_failures": 1.0 - int(judged.sum()) / len(episodes),
        "length": float(given.lengths.float().mean()),
        "truncated_share": sum(e.completion.finish == "length" for e in episodes) / len(episodes),
        "trained_share": trained / len(episodes),
    }
    if judged.any():
        figures |= {
            "reward": float(reward.mean()),
            "reward_std": float(reward.std(correction=0)),
            "zero_std_share": 1.0 - spread / judged_groups,
            "success_share": float(credited.positive.sum()) / n,
        }
    return figures
