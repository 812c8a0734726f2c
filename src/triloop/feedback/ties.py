"""Strengths from comparisons, with ties as outcomes of their own: Bradley-Terry, Davidson, Rao-Kupper.

With scores s, strengths p = exp(s) and d = s_i - s_j, the three models are functions of d alone:

    bradley_terry   P(i > j) = p_i / (p_i + p_j);                                       a tie is half of each
    davidson        P(i > j) = p_i / (p_i + p_j + nu sqrt(p_i p_j)),   nu >= 0;         Davidson 1970, eq. 2.2
    rao_kupper      P(i > j) = p_i / (p_i + theta p_j),                theta >= 1;      Rao and Kupper 1967, eq. 2.4

and P(tie) is what is left: nu sqrt(p_i p_j) / (...) for the one, (theta^2 - 1) P(i > j) P(j > i) for the other.
Rao-Kupper is what logistic noise on d with a dead zone of half-width log theta gives. ``log_probabilities`` serves
losses; ``fit`` finds scores and the tie parameter by maximum likelihood, which is concave in s and log nu or log theta.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from triloop.errors import ConfigError, DataError

__all__ = [
    "Comparisons",
    "Slope",
    "Strengths",
    "TieModel",
    "comparisons",
    "fit",
    "log_likelihood",
    "log_probabilities",
    "regress",
]

TieModel = Literal["bradley_terry", "davidson", "rao_kupper"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """Row ``r``: player ``first[r]``, shown first, against ``second[r]``: how often each outcome came, or its weight."""

    first: Int[np.ndarray, " rows"]
    second: Int[np.ndarray, " rows"]
    outcomes: Float[np.ndarray, "rows 3"]
    """Columns: first better, tie, second better."""
    n_players: int

    def __post_init__(self) -> None:
        """Refuse what no model could read."""
        _check_players(np.concatenate([self.first, self.second]), self.n_players)
        if bool((self.first == self.second).any()) or bool((self.outcomes < 0).any()):
            raise DataError("comparisons: a player against itself or a negative count; expected two players and counts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strengths:
    """Fitted scores. Errors are standard errors from the inverse of the observed information."""

    model: TieModel
    scores: Float[np.ndarray, " players"]
    """Natural-log strengths with mean 0: exp of a difference is the odds of winning (without ties)."""
    errors: Float[np.ndarray, " players"]
    """Of the scores, under the constraint that their mean is 0; NaN where the comparisons do not connect the players."""
    tie: float
    """nu or theta; of ``bradley_terry`` 0."""
    tie_error: float
    order: float
    """What being shown first adds to the difference of scores; 0 unless it was fitted."""
    order_error: float
    log_likelihood: float
    iterations: int
    covariance: Float[np.ndarray, "parameters parameters"]
    """Of scores, then log nu or log theta, then order, as far as they were fitted."""

    def difference(self, i: int, j: int) -> tuple[float, float]:
        """s_i - s_j and its standard error."""
        c = self.covariance
        variance = float(c[i, i] + c[j, j] - 2.0 * c[i, j])
        return float(self.scores[i] - self.scores[j]), float(np.sqrt(max(variance, 0.0)))


def comparisons(rows: Iterable[tuple[int, int, int]], n_players: int) -> Comparisons:
    """From rows (first, second, outcome), outcome +1 first better, 0 tie, -1 second better; equal rows are counted."""
    table = np.array(list(rows), dtype=np.int64).reshape(-1, 3)
    if len(table) and not bool(np.isin(table[:, 2], (-1, 0, 1)).all()):
        raise DataError("comparisons: an outcome is +1 (first better), 0 (tie) or -1 (second better)")
    _check_players(table[:, :2].ravel(), n_players)
    cell, column = table[:, 0] * n_players + table[:, 1], 1 - table[:, 2]
    cells, place = np.unique(cell, return_inverse=True)
    counts = np.bincount(place * 3 + column, minlength=3 * len(cells)).astype(np.float64).reshape(-1, 3)
    return Comparisons(first=cells // n_players, second=cells % n_players, outcomes=counts, n_players=n_players)


def log_probabilities(
    difference: Float[np.ndarray, " rows"], model: TieModel, tie: float = 0.0
) -> Float[np.ndarray, "rows 3"]:
    """Log-probabilities of (first better, tie, second better) at differences of scores, in nats.

    ``tie`` is nu (at least 0) or theta (at least 1); a tie that is impossible has -inf. ``bradley_terry`` knows no tie:
    its middle column is the mean of the outer two, the log of half a win for each, and no probability."""
    d = difference
    _check_tie(model, tie)
    if model == "bradley_terry":
        win, lose = -np.logaddexp(0.0, -d), -np.logaddexp(0.0, d)
        return np.stack([win, 0.5 * (win + lose), lose], axis=1)
    with np.errstate(divide="ignore"):
        if model == "davidson":
            logits = np.stack([0.5 * d, np.full_like(d, np.log(tie)), -0.5 * d], axis=1)
            top = logits.max(axis=1, keepdims=True)
            return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        t = float(np.log(tie))
        win, lose = -np.logaddexp(0.0, t - d), -np.logaddexp(0.0, t + d)
        return np.stack([win, np.log(np.expm1(2.0 * t)) + win + lose, lose], axis=1)


def log_likelihood(
    difference: Float[np.ndarray, " rows"],
    outcome: Int[np.ndarray, " rows"],
    model: TieModel,
    tie: float = 0.0,
) -> Float[np.ndarray, " rows"]:
    """Log-probability of each outcome: +1 first better, 0 tie, -1 second better."""
    return log_probabilities(difference, model, tie)[np.arange(len(outcome)), 1 - outcome]


def fit(
    played: Comparisons,
    model: TieModel = "bradley_terry",
    *,
    ridge: float = 1e-4,
    order_effect: bool = False,
    iterations: int = 100,
    tolerance: float = 1e-10,
) -> Strengths:
    """Scores, the tie parameter and, if asked, an order effect (Davidson and Beaver 1977), by penalised likelihood.

        maximise  sum of counts * log P  -  ridge / 2 * (|s|^2 + order^2)

    The ridge keeps a player that wins every game finite and fixes the mean of the scores at 0; it is small enough to
    leave the third digit of fitted scores alone, and 0 is exact maximum likelihood. Without any tie nu is 0 and theta 1,
    the likelihood's maximum at the boundary. Newton's method, the step halved until the objective rises."""
    if ridge < 0 or iterations < 1:
        raise ConfigError(f"ridge={ridge}, iterations={iterations}: expected ridge >= 0 and at least one iteration")
    n, rows = played.n_players, np.arange(len(played.first))
    design = np.zeros((len(rows), n + order_effect))
    design[rows, played.first], design[rows, played.second] = 1.0, -1.0
    if order_effect:
        design[:, n] = 1.0
    theta, has_tie, done = _newton(design, played.outcomes, model, ridge, iterations, tolerance)
    return _strengths(theta, design, played, model, order_effect, has_tie, done)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """How one judge turns known differences into verdicts; each with its standard error."""

    slope: float
    """Scores per unit of the difference: the inverse temperature of the judge's noise."""
    slope_error: float
    order: float
    """What being shown first adds, in scores."""
    order_error: float
    tie: float
    """nu or theta."""
    tie_error: float


def regress(
    difference: Float[np.ndarray, " rows"],
    outcome: Int[np.ndarray, " rows"],
    model: TieModel = "rao_kupper",
    *,
    ridge: float = 1e-4,
) -> Slope:
    """Fit d = slope * difference + order for one judge whose differences of utility are known. Outcome as in ``fit``."""
    outcomes = np.eye(3)[1 - outcome]
    design = np.stack([difference, np.ones_like(difference)], axis=1)
    theta, has_tie, _ = _newton(design, outcomes, model, ridge, 100, 1e-10)
    _, _, information = _objective(theta, design, outcomes, model, has_tie, np.zeros(len(theta)))
    error = np.sqrt(np.maximum(np.diag(np.linalg.pinv(information, hermitian=True)), 0.0))
    tie = _tie(model, float(theta[2]) if has_tie else 0.0, has_tie)
    return Slope(
        slope=float(theta[0]),
        slope_error=float(error[0]),
        order=float(theta[1]),
        order_error=float(error[1]),
        tie=tie,
        tie_error=tie * float(error[2]) if has_tie else 0.0,
    )


def _newton(
    design: Float[np.ndarray, "rows columns"],
    outcomes: Float[np.ndarray, "rows 3"],
    model: TieModel,
    ridge: float,
    iterations: int,
    tolerance: float,
) -> tuple[Float[np.ndarray, " parameters"], bool, int]:
    """Parameters (columns, then log nu or log theta if there are ties), whether there are, and steps taken."""
    has_tie = model != "bradley_terry" and float(outcomes[:, 1].sum()) > 0
    theta = np.zeros(design.shape[1] + has_tie)
    if has_tie:
        theta[-1] = 0.5 if model == "rao_kupper" else 0.0
    penalty = np.append(np.full(design.shape[1], ridge), [0.0] * has_tie)
    value, gradient, information = _objective(theta, design, outcomes, model, has_tie, penalty)
    done = 0
    while done < iterations:
        done += 1
        # the shift of all scores has no information without a ridge: the pseudo-inverse leaves it where it is
        move = np.linalg.pinv(information, hermitian=True) @ gradient
        if float(gradient @ move) < tolerance:
            break
        scale = 1.0
        while scale > 1e-8:
            new = _objective(theta + scale * move, design, outcomes, model, has_tie, penalty)
            if new[0] > value:
                break
            scale *= 0.5
        else:
            break
        theta, (value, gradient, information) = theta + scale * move, new
    return theta, has_tie, done


def _check_players(players: Int[np.ndarray, " mentions"], n_players: int) -> None:
    if len(players) and (int(players.min()) < 0 or int(players.max()) >= n_players):
        raise DataError(
            f"comparisons: players run from {players.min()} to {players.max()}; expected 0 to {n_players - 1}"
        )


def _check_tie(model: TieModel, tie: float) -> None:
    least = 1.0 if model == "rao_kupper" else 0.0
    if model not in ("bradley_terry", "davidson", "rao_kupper") or (model != "bradley_terry" and not tie >= least):
        raise ConfigError(
            f"model={model!r} with tie={tie}: expected bradley_terry, davidson (nu >= 0) or rao_kupper (theta >= 1)"
        )


def _objective(
    theta: Float[np.ndarray, " parameters"],
    design: Float[np.ndarray, "rows columns"],
    outcomes: Float[np.ndarray, "rows 3"],
    model: TieModel,
    has_tie: bool,
    penalty: Float[np.ndarray, " parameters"],
) -> tuple[float, Float[np.ndarray, " parameters"], Float[np.ndarray, "parameters parameters"]]:
    """Penalised log-likelihood, its gradient, and minus its Hessian; -inf outside the domain."""
    c = design.shape[1]
    d, t = design @ theta[:c], float(theta[c]) if has_tie else 0.0
    if has_tie and model == "rao_kupper" and t <= 0.0:
        return -np.inf, theta, np.eye(len(theta))
    logs = log_probabilities(d, model, _tie(model, t, has_tie))
    value = float(np.where(outcomes > 0, outcomes * np.where(outcomes > 0, logs, 0.0), 0.0).sum())
    slope = _slopes(np.exp(logs), outcomes, model, t, has_tie)
    gradient = np.zeros(len(theta))
    information = np.zeros((len(theta), len(theta)))
    gradient[:c] = design.T @ slope["d"]
    information[:c, :c] = (design * slope["dd"][:, None]).T @ design
    if has_tie:
        gradient[c] = slope["t"].sum()
        information[c, c] = slope["tt"].sum()
        information[:c, c] = information[c, :c] = design.T @ slope["dt"]
    value -= 0.5 * float(penalty @ theta**2)
    return value, gradient - penalty * theta, information + np.diag(penalty)


def _slopes(
    p: Float[np.ndarray, "rows 3"], outcomes: Float[np.ndarray, "rows 3"], model: TieModel, t: float, has_tie: bool
) -> dict[str, np.ndarray]:
    """First derivatives of each row's log-likelihood in d and t, and minus its second ones; t = log nu or log theta."""
    w, e, lose = outcomes.T
    n = outcomes.sum(axis=1)
    if model == "davidson":
        pw, pt, pl = p.T
        spread = 0.25 * (pw + pl - (pw - pl) ** 2)
        return {
            "d": 0.5 * (w - lose) - 0.5 * n * (pw - pl),
            "t": e - n * pt,
            "dd": n * spread,
            "tt": n * pt * (1.0 - pt),
            "dt": -0.5 * n * pt * (pw - pl),
        }
    a, b = p[:, 0], p[:, 2]  # s(d - t) and s(-d - t); with t = 0 they are Bradley-Terry's
    wins, losses = (w + e, lose + e) if model == "rao_kupper" else (w + 0.5 * e, lose + 0.5 * e)
    up, down = wins * (1.0 - a), losses * (1.0 - b)
    bend_up, bend_down = wins * a * (1.0 - a), losses * b * (1.0 - b)
    first, second = 0.0, 0.0
    if has_tie:  # of log(exp(2t) - 1)
        first = 2.0 / -np.expm1(-2.0 * t)
        second = 4.0 * np.exp(-2.0 * t) / np.expm1(-2.0 * t) ** 2
    return {
        "d": up - down,
        "t": -up - down + e * first,
        "dd": bend_up + bend_down,
        "tt": bend_up + bend_down + e * second,
        "dt": bend_down - bend_up,
    }


def _tie(model: TieModel, t: float, has_tie: bool) -> float:
    if has_tie:
        return float(np.exp(t))
    return 1.0 if model == "rao_kupper" else 0.0


def _strengths(
    theta: Float[np.ndarray, " parameters"],
    design: Float[np.ndarray, "rows columns"],
    played: Comparisons,
    model: TieModel,
    order_effect: bool,
    has_tie: bool,
    iterations: int,
) -> Strengths:
    """The record, with errors from the information without the ridge."""
    n, c = played.n_players, design.shape[1]
    free = np.zeros(len(theta))
    value, _, information = _objective(theta, design, played.outcomes, model, has_tie, free)
    covariance = np.linalg.pinv(information, rcond=1e-9, hermitian=True)
    rank = int(
        np.linalg.matrix_rank(information, tol=1e-9 * max(1.0, float(np.abs(information).max())), hermitian=True)
    )
    error = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    if rank < len(theta) - 1:  # more than the common shift is unknown
        error = np.full(len(theta), np.nan)
    tie = _tie(model, float(theta[c]) if has_tie else 0.0, has_tie)
    # scores, tie, order: the order in which the record lists them
    listed = [*range(n), *([c] if has_tie else []), *([n] if order_effect else [])]
    return Strengths(
        model=model,
        scores=theta[:n] - theta[:n].mean(),
        errors=error[:n],
        tie=tie,
        tie_error=tie * float(error[c]) if has_tie else 0.0,
        order=float(theta[n]) if order_effect else 0.0,
        order_error=float(error[n]) if order_effect else 0.0,
        log_likelihood=value,
        iterations=iterations,
        covariance=covariance[np.ix_(listed, listed)],
    )
