"""Many judgements of one thing as one: votes in a compact form, majority, weighted majority, and what confidence weighs.

A vote is three numbers: which item, which worker, which label. Shapes: ``votes`` the number of votes, ``items`` and
``labels`` as the ``Votes`` say. A posterior is a table [items labels] whose rows sum to 1. Models that learn who can be
trusted are in ``triloop.feedback.crowd``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from triloop.errors import ConfigError, DataError
from triloop.records import Feedback

__all__ = [
    "Abstentions",
    "Ballot",
    "Votes",
    "ballot",
    "confidence",
    "decide",
    "expected_value",
    "majority",
    "ternary_ballot",
    "weighted_majority",
]

Abstentions = Literal["label", "missing"]
"""What a vote of 0 is: a label of its own, which can win, or a vote that was not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """Vote ``v``: worker ``worker[v]`` gives item ``item[v]`` the label ``label[v]``; all count from 0.

    A worker may vote twice on an item, and both count; ``without_repeats`` keeps the first. Raises ``DataError``.
    """

    item: Int[np.ndarray, " votes"]
    worker: Int[np.ndarray, " votes"]
    label: Int[np.ndarray, " votes"]
    n_items: int
    n_workers: int
    n_labels: int

    def __post_init__(self) -> None:
        """Refuse what no model could read."""
        if not len(self.item) == len(self.worker) == len(self.label):
            raise DataError(
                f"votes: {len(self.item)} items, {len(self.worker)} workers, {len(self.label)} labels; "
                "expected one of each per vote"
            )
        columns = (("item", self.item, self.n_items), ("worker", self.worker, self.n_workers))
        for name, column, size in (*columns, ("label", self.label, self.n_labels)):
            if len(column) and not (int(column.min()) >= 0 and int(column.max()) < size):
                raise DataError(
                    f"votes: {name} runs from {column.min()} to {column.max()}; expected 0 to {size - 1}: "
                    f"n_{name}s is {size}"
                )

    def counts(self, weights: Float[np.ndarray, " votes"] | None = None) -> Float[np.ndarray, "items labels"]:
        """Votes per item and label, or the sums of their weights."""
        cell = self.item * self.n_labels + self.label
        flat = np.bincount(cell, weights=weights, minlength=self.n_items * self.n_labels)
        return flat.astype(np.float64).reshape(self.n_items, self.n_labels)

    def voted(self) -> Bool[np.ndarray, " items"]:
        """Which items have a vote at all."""
        return np.bincount(self.item, minlength=self.n_items) > 0

    def take(self, keep: Bool[np.ndarray, " votes"] | Int[np.ndarray, " kept"]) -> Votes:
        """Some of the votes, over the same items, workers and labels."""
        return Votes(
            item=self.item[keep],
            worker=self.worker[keep],
            label=self.label[keep],
            n_items=self.n_items,
            n_workers=self.n_workers,
            n_labels=self.n_labels,
        )

    def without_repeats(self) -> Votes:
        """Each worker's first vote on each item."""
        _, first = np.unique(self.item * self.n_workers + self.worker, return_index=True)
        return self.take(np.sort(first))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """Votes, and what their numbers stand for."""

    votes: Votes
    items: tuple[Any, ...]
    workers: tuple[Any, ...]
    labels: tuple[Any, ...]
    dropped: int = 0
    """Judgements that are no votes: failures, and abstentions where these are missing."""


def ballot(
    rows: Iterable[tuple[Hashable, Hashable, Hashable]],
    *,
    labels: Sequence[Hashable] | None = None,
    missing: Sequence[Hashable] = (),
) -> Ballot:
    """Votes from rows (worker, item, label); items and workers are numbered as they come.

    ``labels`` gives their order; without, they are sorted by their text. Rows with a label in ``missing`` are left out,
    though their item and worker keep a number. Raises ``DataError`` for a label that is not listed.
    """
    rows = list(rows)
    kept = [row for row in rows if row[2] not in missing]
    named = sorted({lab for _, _, lab in kept}, key=str) if labels is None else list(labels)
    code = {lab: i for i, lab in enumerate(named)}
    items = {it: i for i, it in enumerate(dict.fromkeys(it for _, it, _ in rows))}
    workers = {w: i for i, w in enumerate(dict.fromkeys(w for w, _, _ in rows))}
    unknown = sorted({str(lab) for _, _, lab in kept if lab not in code})
    if unknown:
        raise DataError(f"votes: labels {', '.join(unknown)} are not among {', '.join(map(str, named))}")
    table = np.array([(items[it], workers[w], code[lab]) for w, it, lab in kept], dtype=np.int64).reshape(-1, 3)
    votes = Votes(
        item=table[:, 0],
        worker=table[:, 1],
        label=table[:, 2],
        n_items=len(items),
        n_workers=len(workers),
        n_labels=len(named),
    )
    return Ballot(
        votes=votes,
        items=tuple(items),
        workers=tuple(workers),
        labels=tuple(named),
        dropped=len(rows) - len(kept),
    )


def ternary_ballot(judged: Iterable[tuple[str, Feedback]], *, abstentions: Abstentions) -> Ballot:
    """Votes from (item, feedback): the sign of each value, the source as the worker. Failures are never votes.

    Labels are -1, 0, +1 where abstentions are a ``label`` (pairs: 0 is a tie), and -1, +1 where they are ``missing``.
    A feedback without a number (text, spans) does not vote either. What is lost: strength, reason and cost.
    """
    rows: list[tuple[Hashable, Hashable, Hashable]] = []
    dropped = 0
    for item, f in judged:
        if f.failed or f.value is None:
            dropped += 1
        else:
            rows.append((f.source, item, (f.value > 0) - (f.value < 0)))
    if abstentions == "missing":
        cast = ballot(rows, labels=(-1, 1), missing=(0,))
    else:
        cast = ballot(rows, labels=(-1, 0, 1))
    return Ballot(
        votes=cast.votes,
        items=cast.items,
        workers=cast.workers,
        labels=cast.labels,
        dropped=cast.dropped + dropped,
    )


def majority(votes: Votes) -> Float[np.ndarray, "items labels"]:
    """Share of an item's votes that each label has; uniform for an item without votes."""
    return _shares(votes.counts())


def weighted_majority(votes: Votes, weights: Float[np.ndarray, " workers"]) -> Float[np.ndarray, "items labels"]:
    """Share of an item's weight that each label has: every vote counts as its worker's weight, at least 0.

    Log-odds of a worker's accuracy, ``log(a (K - 1) / (1 - a))``, are the weights of the Bayes rule when workers err
    independently and evenly (Nitzan and Paroush 1982); shares are then scores and no probabilities."""
    if len(weights) != votes.n_workers or not bool((weights >= 0).all()):
        raise DataError(
            f"weights: got {len(weights)}, lowest {weights.min() if len(weights) else None}; "
            f"expected one for each of {votes.n_workers} workers, none below 0"
        )
    return _shares(votes.counts(weights[votes.worker]))


def decide(
    posterior: Float[np.ndarray, "items labels"], *, ties: Literal["lowest", "none"] = "lowest"
) -> Int[np.ndarray, " items"]:
    """The most probable label of each item.

    Equals (to 1e-12 of each other) go to the ``lowest`` label number, or to -1 where the rule is ``none``.
    """
    near = posterior >= posterior.max(axis=1, keepdims=True) - 1e-12
    best = near.argmax(axis=1)
    return np.where(near.sum(axis=1) > 1, -1, best) if ties == "none" else best


def confidence(
    posterior: Float[np.ndarray, "items labels"], form: Literal["chance", "top", "entropy"] = "chance"
) -> Float[np.ndarray, " items"]:
    """How sure a posterior is, from 0 (uniform) to 1 (certain): the weight of an item in a loss.

        chance    (K p - 1) / (K - 1),  p the largest probability
        top       p
        entropy   1 - H / log K

    With two labels ``chance`` is 2p - 1 = |E[y]| for y = +1 or -1: a loss that is linear in y then has the same
    gradient as its expectation under the posterior."""
    k = posterior.shape[1]
    if k < 2:
        raise ConfigError(f"confidence needs at least two labels; got {k}")
    top = posterior.max(axis=1)
    if form == "top":
        return top
    if form == "chance":
        return np.clip((k * top - 1.0) / (k - 1.0), 0.0, 1.0)
    p = np.clip(posterior, 1e-300, 1.0)
    return np.clip(1.0 + (p * np.log(p)).sum(axis=1) / np.log(k), 0.0, 1.0)


def expected_value(
    posterior: Float[np.ndarray, "items labels"], values: Sequence[float]
) -> Float[np.ndarray, " items"]:
    """Posterior mean of labels that are numbers, such as (-1, 0, 1): a scalar judgement with doubt already in it."""
    if len(values) != posterior.shape[1]:
        raise DataError(f"values: got {len(values)}; expected one for each of {posterior.shape[1]} labels")
    return posterior @ np.asarray(values, dtype=np.float64)


def _shares(counts: Float[np.ndarray, "items labels"]) -> Float[np.ndarray, "items labels"]:
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > 0, counts / np.where(total > 0, total, 1.0), 1.0 / counts.shape[1])
