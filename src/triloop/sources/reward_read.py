"""From the numbers of a reward model to what it says: probabilities of a comparison, marked passages, state as tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from triloop.feedback.kinds import Sign, Span
from triloop.feedback.ties import log_probabilities
from triloop.sources.reward_config import Ties

__all__ = ["chances", "declared", "marked", "sigmoid", "arrays", "tensors"]


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), for any size of x."""
    return math.exp(-float(np.logaddexp(0.0, -x)))


def chances(difference: Float[np.ndarray, " pairs"], ties: Ties, nu: float | None) -> Float[np.ndarray, "pairs 3"]:
    """Probability of (first better, tie, second better) at these differences of scores; NaN stays NaN.

    ``nu`` as the losses of ``learn/preferences.py`` take it: half the nu of ``feedback/ties.py`` for Davidson."""
    known = np.where(np.isnan(difference), 0.0, difference)
    if ties == "bradley_terry" or nu is None:
        out = np.exp(log_probabilities(known, "bradley_terry"))
        out[:, 1] = 0.0
    else:
        out = np.exp(log_probabilities(known, ties, 2.0 * nu if ties == "davidson" else nu))
    out[np.isnan(difference)] = np.nan
    return out


def declared(chance: Float[np.ndarray, " outcomes"]) -> tuple[Sign, float, float]:
    """Of (first better, tie, second better): which is likeliest, by how much, and how likely it is. Equal ends tie."""
    first, tie, second = chance.tolist()
    if first == second or tie >= max(first, second):
        return 0, 0.0, tie if tie > 0 else 0.5
    return (1 if first > second else -1), min(1.0, abs(first - second)), max(first, second)


def marked(scores: Float[np.ndarray, " tokens"], offsets: Sequence[tuple[int, int]], above: float) -> tuple[Span, ...]:
    """Runs of neighbouring tokens beyond ``above`` on one side, as spans; tokens without characters are passed over."""
    spans: list[Span] = []
    last: Sign = 0
    for score, (start, end) in zip(scores.tolist(), offsets, strict=True):
        sign: Sign = 1 if score > above else -1 if score < -above else 0
        if start >= end:
            continue
        if sign and sign == last:
            spans[-1] = Span(spans[-1].start, end, sign)
        elif sign:
            spans.append(Span(start, end, sign))
        last = sign
    return tuple(spans)


def tensors(state: Any) -> Any:
    """Arrays as tensors, through mappings and lists: what ``torch.load`` reads back without running code."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, Mapping):
        return {k: tensors(v) for k, v in state.items()}
    return [tensors(v) for v in state] if isinstance(state, list) else state


def arrays(state: Any) -> Any:
    """The other way round: tensors as arrays."""
    if isinstance(state, Tensor):
        return state.numpy()
    if isinstance(state, Mapping):
        return {k: arrays(v) for k, v in state.items()}
    return [arrays(v) for v in state] if isinstance(state, list) else state
