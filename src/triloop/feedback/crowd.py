"""Who can be trusted: models of workers, fitted by expectation maximisation to their votes alone.

Each takes ``Votes`` and returns a ``Crowd``: the posterior of every item, and how reliable every worker is. Log space
throughout; no randomness: all start from the majority's shares. An item without votes gets the prior.

    dawid_skene   one confusion matrix per worker (Dawid and Skene 1979)
    one_coin      one accuracy per worker, errors even over the other labels
    glad          ability of the worker times ease of the item (Whitehill et al. 2009)
    mace          a worker knows the answer, or spams with habits of his own (Hovy et al. 2013)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from triloop.errors import ConfigError
from triloop.feedback.aggregate import Votes, majority

__all__ = ["Crowd", "dawid_skene", "glad", "mace", "one_coin"]

_FLOOR = 1e-10
"""Least count of an answer that a worker did give, and least probability of a label: keeps logarithms finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """What a model made of the votes."""

    posterior: Float[np.ndarray, "items labels"]
    prior: Float[np.ndarray, " labels"]
    reliability: Float[np.ndarray, " workers"]
    """Chance that a worker's vote is the true label, over the prior; ``mace``: that he knows the answer."""
    history: tuple[float, ...]
    """Log-likelihood per vote, in nats, after each E-step (``glad``: with the prior's terms)."""
    converged: bool
    confusion: Float[np.ndarray, "workers truth given"] | None = None
    """P(given | truth) of each worker, where the model has it."""
    ease: Float[np.ndarray, " items"] | None = None
    """``glad``: how easy each item is, above 0."""


def dawid_skene(
    votes: Votes,
    *,
    gold: Int[np.ndarray, " items"] | None = None,
    smoothing: float = 0.0,
    stop: str = "early",
    iterations: int = 100,
    tolerance: float | None = None,
) -> Crowd:
    """Dawid and Skene's model: item i is c with prior p_c, worker w then answers k with probability e_w[c, k].

        E   q_ic  ~  p_c prod_v e_{w(v)}[c, k(v)]            over the votes v of item i
        M   p_c = mean_i q_ic,   e_w[c, k] ~ smoothing + sum of q_{i(v)c} over w's votes v for k

    Appl. Stat. 28(1):20-28, eq. 2.3 to 2.5. ``smoothing`` 0 is maximum likelihood (counts of answers that were given
    are at least 1e-10, as in crowd-kit); ``gold`` fixes the label of items, -1 where unknown.

    ``stop="likelihood"`` climbs until the log-likelihood per vote rises by less than ``tolerance`` (1e-7). ``"early"`` is
    crowd-kit's rule, and gives its posteriors: until the evidence bound per vote, *with the prior counted once a vote
    instead of once an item*, rises by less than ``tolerance`` (1e-5). That sum can fall while the likelihood rises; to
    end there is a regulariser, and on the real crowds of ``proofs/crowds.py`` no worse than the maximum."""
    if stop not in ("early", "likelihood"):
        raise ConfigError(f"stop={stop!r}: expected 'early' or 'likelihood'")
    k, cell = votes.n_labels, votes.worker * votes.n_labels + votes.label
    given = np.bincount(cell, minlength=votes.n_workers * k).astype(np.float64).reshape(votes.n_workers, 1, k) > 0

    def confusion(q: Float[np.ndarray, "items labels"]) -> Float[np.ndarray, "workers truth given"]:
        counts = _sum_by(cell, q[votes.item], votes.n_workers * k).reshape(votes.n_workers, k, k).transpose(0, 2, 1)
        counts = np.where(given, np.maximum(counts + smoothing, _FLOOR), smoothing)
        return _rows(counts)

    def step(q: Float[np.ndarray, "items labels"]) -> tuple[Float[np.ndarray, "items labels"], float]:
        with np.errstate(divide="ignore"):  # an answer never given has probability 0, and no vote reads it
            table = np.log(confusion(q)).transpose(0, 2, 1).reshape(-1, k)
        q, likelihood = _posterior(votes, table[cell], np.log(_prior(votes, q)))
        return _with_gold(q, gold), likelihood

    def bound(q: Float[np.ndarray, "items labels"]) -> float:
        with np.errstate(divide="ignore"):
            logs = np.log(confusion(q)).transpose(0, 2, 1).reshape(-1, k)[cell] + np.log(_prior(votes, q))
        entropy = -(np.maximum(q, _FLOOR) * np.log(np.maximum(q, _FLOOR)))[votes.voted()].sum()
        return float((q[votes.item] * logs).sum() + entropy)

    start, least = _with_gold(majority(votes), gold), (1e-5 if stop == "early" else 1e-7)
    least = least if tolerance is None else tolerance
    q, history, converged = _climb(start, step, iterations, least, len(votes.item), bound if stop == "early" else None)
    table, prior = confusion(q), _prior(votes, q)
    reliability = np.einsum("wcc,c->w", table, prior / prior.sum())
    return Crowd(
        posterior=q, prior=prior, reliability=reliability, history=history, converged=converged, confusion=table
    )


def one_coin(votes: Votes, *, smoothing: float = 0.0, iterations: int = 200, tolerance: float = 1e-7) -> Crowd:
    """Dawid and Skene with one number per worker: right with probability a_w, else any other label alike.

        M   a_w = (smoothing / K + sum of q_{i(v), k(v)}) / (smoothing + votes of w)

    ``smoothing`` is how many votes of chance accuracy 1/K stand before each worker's own."""
    k, n = votes.n_labels, np.bincount(votes.worker, minlength=votes.n_workers).astype(np.float64)

    def accuracy(q: Float[np.ndarray, "items labels"]) -> Float[np.ndarray, " workers"]:
        right = np.bincount(votes.worker, weights=q[votes.item, votes.label], minlength=votes.n_workers)
        total = n + smoothing
        return np.where(total > 0, (right + smoothing / k) / np.where(total > 0, total, 1.0), 1.0 / k)

    def step(q: Float[np.ndarray, "items labels"]) -> tuple[Float[np.ndarray, "items labels"], float]:
        a = np.clip(accuracy(q), _FLOOR, 1.0 - _FLOOR)[votes.worker]
        return _posterior(
            votes, _right_or_wrong(votes, np.log(a), np.log1p(-a) - _log_others(k)), np.log(_prior(votes, q))
        )

    q, history, converged = _climb(majority(votes), step, iterations, tolerance, len(votes.item))
    return Crowd(posterior=q, prior=_prior(votes, q), reliability=accuracy(q), history=history, converged=converged)


def glad(votes: Votes, *, iterations: int = 50, tolerance: float = 1e-5, inner: int = 3) -> Crowd:
    """Ability and difficulty: a vote is right with probability s(a_w exp(b_i)), s the logistic function.

    Whitehill et al. 2009, eq. 1 to 3, with normal priors of mean 1 and variance 1 on a and b, and a uniform prior over
    labels. The M-step alternates ``inner`` times between all workers and all items: given the other side each is a
    problem in one unknown, solved by Fisher scoring with a step that is halved until its own objective rises."""
    k, w, i = votes.n_labels, votes.worker, votes.item
    a, b = np.ones(votes.n_workers), np.ones(votes.n_items)
    prior = np.full(k, 1.0 / k)

    def step(q: Float[np.ndarray, "items labels"]) -> tuple[Float[np.ndarray, "items labels"], float]:
        nonlocal a, b
        p = q[i, votes.label]
        for _ in range(inner):
            a = _one_unknown(a, w, p, _by_ability, np.exp(b)[i])
            b = _one_unknown(b, i, p, _by_ease, a[w])
        x = a[w] * np.exp(b)[i]
        right, wrong = -np.logaddexp(0.0, -x), -np.logaddexp(0.0, x) - _log_others(k)
        q, likelihood = _posterior(votes, _right_or_wrong(votes, right, wrong), np.log(prior))
        return q, likelihood - 0.5 * float(((a - 1.0) ** 2).sum() + ((b - 1.0) ** 2).sum())

    q, history, converged = _climb(majority(votes), step, iterations, tolerance, len(votes.item))
    ability = 1.0 / (1.0 + np.exp(-a * np.exp(1.0)))  # on an item of the prior's mean ease
    return Crowd(posterior=q, prior=prior, reliability=ability, history=history, converged=converged, ease=np.exp(b))


def mace(
    votes: Votes,
    *,
    knowing: tuple[float, float] = (0.5, 0.5),
    habit: float = 10.0,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> Crowd:
    """A worker knows the label with probability t_w; else he spams label k with probability x_w[k].

        q_ic  ~  prod_v (1 - t_w) x_w[k(v)] + t_w [k(v) = c],     uniform prior over labels

    Hovy et al., NAACL 2013, with the variational M-step of their section 3.2: parameters are exp of digamma of expected
    counts plus priors, Beta(``knowing``) on t and Dirichlet(``habit``) on x. ``reliability`` is the mean of t."""
    k, w, lab = votes.n_labels, votes.worker, votes.label
    cell, prior = w * k + lab, np.full(votes.n_labels, 1.0 / votes.n_labels)
    knows = np.full((votes.n_workers, 2), 0.5)  # columns: spams, knows
    habits = np.full((votes.n_workers, k), 1.0 / k)
    counts = np.zeros((votes.n_workers, 2))

    def step(q: Float[np.ndarray, "items labels"]) -> tuple[Float[np.ndarray, "items labels"], float]:
        nonlocal knows, habits, counts
        spam, sure = knows[w, 0] * habits[w, lab], knows[w, 1]
        known = q[votes.item, lab] * sure / (spam + sure)
        spammed = np.bincount(cell, weights=1.0 - known, minlength=votes.n_workers * k).reshape(-1, k)
        counts = np.stack([spammed.sum(axis=1), np.bincount(w, weights=known, minlength=votes.n_workers)], axis=1)
        knows, habits = _variational(counts + np.array(knowing[::-1])), _variational(spammed + habit)
        spam, sure = knows[w, 0] * habits[w, lab], knows[w, 1]
        return _posterior(votes, _right_or_wrong(votes, np.log(spam + sure), np.log(spam)), np.log(prior))

    q, history, converged = _climb(majority(votes), step, iterations, tolerance, len(votes.item))
    shares = counts + np.array(knowing[::-1])
    return Crowd(
        posterior=q, prior=prior, reliability=shares[:, 1] / shares.sum(axis=1), history=history, converged=converged
    )


_Step = Callable[[np.ndarray], tuple[np.ndarray, float]]


def _climb(
    q: Float[np.ndarray, "items labels"],
    step: _Step,
    iterations: int,
    tolerance: float,
    n_votes: int,
    watched: Callable[[np.ndarray], float] | None = None,
) -> tuple[Float[np.ndarray, "items labels"], tuple[float, ...], bool]:
    """Step until the objective per vote moves by less than ``tolerance``, or what is ``watched`` rises by less."""
    if iterations < 1:
        raise ConfigError(f"iterations={iterations}: expected at least 1")
    history: list[float] = []
    last = -np.inf
    for _ in range(iterations):
        q, value = step(q)
        history.append(value / max(n_votes, 1))
        if watched is not None:
            now = watched(q) / max(n_votes, 1)
            if now - last < tolerance:
                return q, tuple(history), True
            last = now
        elif len(history) > 1 and abs(history[-1] - history[-2]) < tolerance:
            return q, tuple(history), True
    return q, tuple(history), False


def _posterior(
    votes: Votes, logs: Float[np.ndarray, "votes labels"], log_prior: Float[np.ndarray, " labels"]
) -> tuple[Float[np.ndarray, "items labels"], float]:
    """Posterior and log-likelihood from each vote's log-probability under each true label."""
    joint = log_prior + _sum_by(votes.item, logs, votes.n_items)
    top = joint.max(axis=1, keepdims=True)
    likely = np.exp(joint - top)
    total = likely.sum(axis=1, keepdims=True)
    return likely / total, float((top + np.log(total))[votes.voted()].sum())


def _right_or_wrong(
    votes: Votes, right: Float[np.ndarray, " votes"], wrong: Float[np.ndarray, " votes"]
) -> Float[np.ndarray, "votes labels"]:
    logs = np.repeat(wrong[:, None], votes.n_labels, axis=1)
    logs[np.arange(len(right)), votes.label] = right
    return logs


def _prior(votes: Votes, q: Float[np.ndarray, "items labels"]) -> Float[np.ndarray, " labels"]:
    voted = votes.voted()
    return np.maximum(q[voted].mean(axis=0), _FLOOR) if voted.any() else np.full(q.shape[1], 1.0 / q.shape[1])


def _with_gold(
    q: Float[np.ndarray, "items labels"], gold: Int[np.ndarray, " items"] | None
) -> Float[np.ndarray, "items labels"]:
    if gold is None:
        return q
    return np.where((gold >= 0)[:, None], np.eye(q.shape[1])[np.maximum(gold, 0)], q)


def _log_others(k: int) -> float:
    return float(np.log(max(k - 1, 1)))


def _rows(counts: Float[np.ndarray, "*rows labels"]) -> Float[np.ndarray, "*rows labels"]:
    """Rows divided by their sums; uniform where the sum is 0."""
    total = counts.sum(axis=-1, keepdims=True)
    return np.where(total > 0, counts / np.where(total > 0, total, 1.0), 1.0 / counts.shape[-1])


def _sum_by(
    index: Int[np.ndarray, " votes"], values: Float[np.ndarray, "votes columns"], size: int
) -> Float[np.ndarray, "size columns"]:
    """Sums of rows that share an index; a bincount per column is several times faster than ``np.add.at``."""
    columns = [np.bincount(index, weights=column, minlength=size) for column in np.ascontiguousarray(values.T)]
    return np.stack(columns, axis=1)


_Logit = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(own unknown of each vote, the other side's) -> the logit of being right, and its slope in the unknown."""


def _by_ability(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return own * other, other


def _by_ease(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = np.exp(own) * other
    return x, x


def _one_unknown(
    u: Float[np.ndarray, " own"],
    index: Int[np.ndarray, " votes"],
    p: Float[np.ndarray, " votes"],
    logit: _Logit,
    other: Float[np.ndarray, " votes"],
) -> Float[np.ndarray, " own"]:
    """One Fisher step of every worker (or item) at once; each is halved until it helps, or refused after five halvings.

    ``p`` is the probability that a vote is right."""

    def objective(v: np.ndarray) -> np.ndarray:
        x, _ = logit(v[index], other)
        gain = -p * np.logaddexp(0.0, -x) - (1.0 - p) * np.logaddexp(0.0, x)
        return np.bincount(index, weights=gain, minlength=len(v)) - 0.5 * (v - 1.0) ** 2

    x, slope = logit(u[index], other)
    right = 1.0 / (1.0 + np.exp(-np.clip(x, -500.0, 500.0)))
    gradient = np.bincount(index, weights=(p - right) * slope, minlength=len(u)) - (u - 1.0)
    fisher = np.bincount(index, weights=right * (1.0 - right) * slope**2, minlength=len(u)) + 1.0
    move, now = np.clip(gradient / fisher, -2.0, 2.0), objective(u)
    for _ in range(5):
        better = objective(u + move) >= now
        if better.all():
            break
        move = np.where(better, move, 0.5 * move)
    return np.where(objective(u + move) >= now, u + move, u)


def _variational(counts: Float[np.ndarray, "workers parts"]) -> Float[np.ndarray, "workers parts"]:
    """exp(E[log x]) of Dirichlet(counts); rows sum to less than 1, the more so the fewer the counts."""
    return np.exp(_digamma(counts) - _digamma(counts.sum(axis=1, keepdims=True)))


def _digamma(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Derivative of log gamma for x > 0: recurrence up to 6, then the asymptotic series (to about 1e-10)."""
    x, shift = x.astype(np.float64), np.zeros(x.shape)
    for _ in range(6):
        low = x < 6.0
        shift = np.where(low, shift - 1.0 / x, shift)
        x = np.where(low, x + 1.0, x)
    r = 1.0 / (x * x)
    tail = r * (1 / 12 - r * (1 / 120 - r * (1 / 252 - r * (1 / 240 - r / 132))))
    return shift + np.log(x) - 0.5 / x - tail
