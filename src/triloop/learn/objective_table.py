"""An objective on judgements is data: what it learns from, how a completion's strength is read, which likelihood, and its
coefficients. One table holds them all.

A new method that combines what is here is one row; one that needs new mathematics is a new pure function in ``likelihood``,
``preferences`` or ``spans``, a few lines that pick its arguments from the batch, and one row.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from triloop.errors import ConfigError
from triloop.learn import likelihood, objectives, preferences
from triloop.learn.batch import TokenOutputs
from triloop.learn.choices import closest
from triloop.learn.examples import Consumes
from triloop.learn.judged import JudgedBatch, Pairs
from triloop.learn.objective_config import ObjectiveConfig
from triloop.learn.spans import signed_policy_gradient

__all__ = ["OBJECTIVES", "Objective", "UnitLoss", "resolve_objective"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One way to learn from one kind of example, complete. Coefficients are explained in ``ObjectiveConfig``."""

    consumes: Consumes
    loss: UnitLoss
    """Loss of each unit of a batch that holds this kind alone: [pairs], or [rows]."""
    strength: UnitLoss
    """What the loss compares, per row [rows]: a log ratio, log odds, or a score. Figures are read off it, too."""
    reads: tuple[str, ...]
    """The coefficients that it looks at; any other stays as it is."""
    reference: Literal["always", "with_beta", "never"] = "never"
    """When the batch must hold the reference's log-probabilities."""
    per: Literal["unit", "token", "sign"] = "unit"
    """What the mean of its kind is over: examples, tokens, or tokens of which something was said."""
    needs_baseline: bool = False
    needs_values: bool = False
    """It trains a scalar head (a reward model), not log-probabilities."""

    coefficient: float = 1.0
    beta: float = 0.1
    label_smoothing: float = 0.0
    length_normalised: bool = False
    margin: float = 0.0
    nll_coef: float = 0.0
    tie_nu: float = 1.0
    alpha: float = 0.5
    balance: bool = False
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    negative_weight: float = 1.0
    alternatives: int = 0
    gate_temperature: float = 1.0
    temperature: float = 1.0
    clip: float = 0.0
    centring: float = 0.0

    @property
    def needs_reference(self) -> bool:
        """Whether a batch must hold the reference's log-probabilities."""
        return self.reference == "always" or (self.reference == "with_beta" and self.beta > 0)

    @property
    def needs_old(self) -> bool:
        """Whether a batch must hold log-probabilities under the policy before the update."""
        return self.clip > 0


UnitLoss = Callable[[TokenOutputs, JudgedBatch, Objective], Tensor]
"""(outputs, batch of one kind, objective) -> one number per unit or per row."""


# ---------------------------------------------------------------------- what is compared


def _log_ratio(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    """log p, less log p_ref where there is a reference: the sum over tokens, or the mean."""
    reduced = likelihood.sequence_mean_logp if o.length_normalised else likelihood.sequence_sum
    strength = reduced(outputs.logp, batch.mask)
    return strength - reduced(_reference(batch), batch.mask) if o.needs_reference else strength


def _log_odds(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    return preferences.log_odds(likelihood.sequence_mean_logp(outputs.logp, batch.mask))


def _score(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    values = _present(outputs.values, "the forward pass gave no values: add_value_head to the model first")
    return likelihood.at_last_token(values, batch.mask)


# ---------------------------------------------------------------------- pairs


def _pairwise(judged: Callable[[Tensor, Pairs, Objective], Tensor]) -> UnitLoss:
    """The likelihood of a judgement given the difference, with what may stand beside it."""

    def loss(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
        strength, pairs = o.strength(outputs, batch, o), batch.pairs()
        total = judged(strength[0::2] - strength[1::2], pairs, o)
        if o.nll_coef > 0:
            nll = -likelihood.sequence_mean_logp(outputs.logp, batch.mask)
            total = total + o.nll_coef * (pairs.p * nll[0::2] + (1.0 - pairs.p) * nll[1::2])
        if o.centring > 0:
            total = total + o.centring * preferences.centring(strength[0::2], strength[1::2])
        return total

    return loss


def _logistic(difference: Tensor, pairs: Pairs, o: Objective) -> Tensor:
    p = preferences.smoothed(pairs.p, label_smoothing=o.label_smoothing)
    return preferences.logistic(o.beta * difference, p, pairs.margin + o.margin)


def _robust(difference: Tensor, pairs: Pairs, o: Objective) -> Tensor:
    p = preferences.debiased(pairs.p, label_smoothing=o.label_smoothing)
    return preferences.logistic(o.beta * difference, p, pairs.margin + o.margin)


def _squared(difference: Tensor, pairs: Pairs, o: Objective) -> Tensor:
    return preferences.squared(difference, pairs.p, beta=o.beta)


def _odds(difference: Tensor, pairs: Pairs, o: Objective) -> Tensor:
    return o.beta * preferences.logistic(difference, pairs.p)


def _davidson(difference: Tensor, pairs: Pairs, o: Objective) -> Tensor:
    return preferences.davidson(o.beta * difference, pairs.p, pairs.tie, nu=o.tie_nu)


def _rao_kupper(difference: Tensor, pairs: Pairs, o: Objective) -> Tensor:
    return preferences.rao_kupper(o.beta * difference, pairs.p, pairs.tie, nu=o.tie_nu)


def _pairwise_cringe(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    """Each completion as the better one, weighed by the chance that it is; losses are means per token."""
    pairs, logp = batch.pairs(), likelihood.sequence_sum(outputs.logp, batch.mask)
    up = -likelihood.sequence_mean_logp(outputs.logp, batch.mask)
    down = o.negative_weight * likelihood.sequence_mean_logp(_contrast(outputs, batch), batch.mask)
    lead = logp[0::2] - logp[1::2]
    gate_first, gate_second = (
        preferences.cringe_gate(x, margin=o.margin, temperature=o.gate_temperature) for x in (lead, -lead)
    )
    first, second = gate_first * (up[0::2] + down[1::2]), gate_second * (up[1::2] + down[0::2])
    return pairs.p * first + (1.0 - pairs.p) * second


# ---------------------------------------------------------------------- single completions


def _sft(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    return likelihood.likely(outputs.logp, torch.ones_like(batch.value), batch.mask).sum(dim=1)


def _weighted_sft(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    weight = likelihood.reward_weight(batch.value, temperature=o.temperature)
    return likelihood.likely(outputs.logp, weight, batch.mask).sum(dim=1)


def _unlikelihood(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    weight = o.negative_weight
    return likelihood.unlikelihood(outputs.logp, batch.value, batch.mask, negative_weight=weight).sum(dim=1)


def _cringe(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    good, bad = batch.value.clamp(min=0.0), (-batch.value).clamp(min=0.0)
    down = o.negative_weight * bad[:, None] * _contrast(outputs, batch)
    return (likelihood.likely(outputs.logp, good, batch.mask) + down).sum(dim=1)


def _kto(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    if batch.baseline is None:
        raise ConfigError("kto needs its baseline z0: pass baseline=drift(...) over mismatched_rows to build_judged")
    return likelihood.kto(
        o.strength(outputs, batch, o),
        batch.value,
        baseline=batch.baseline,
        beta=o.beta,
        desirable_weight=o.desirable_weight,
        undesirable_weight=o.undesirable_weight,
    )


def _pmpo(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    reference = _reference(batch)
    return likelihood.pmpo(outputs.logp, reference, batch.value, batch.mask, alpha=o.alpha, beta=o.beta).sum(dim=1)


def _span_pg(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    losses = signed_policy_gradient(
        outputs.logp,
        batch.signs,
        batch.mask,
        logp_old=batch.logp_old,
        clip=o.clip,
        negative_weight=o.negative_weight,
    )
    if o.needs_reference:
        losses = losses + o.beta * objectives.kl_k3(outputs.logp, _reference(batch), batch.mask)
    return losses.sum(dim=1)


def _regression(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    return 0.5 * (o.strength(outputs, batch, o) - batch.value).square()


def _ordinal(outputs: TokenOutputs, batch: JudgedBatch, o: Objective) -> Tensor:
    return preferences.ordinal(o.strength(outputs, batch, o), batch.value, nu=o.tie_nu)


def _contrast(outputs: TokenOutputs, batch: JudgedBatch) -> Tensor:
    others = _present(outputs.alternatives, "the forward pass gave no other tokens, which CRINGE compares with")
    return likelihood.contrast(outputs.logp, others, batch.mask)


def _reference(batch: JudgedBatch) -> Tensor:
    return _present(batch.logp_ref, "the batch holds no reference log-probabilities: pass reference to build_judged")


def _present(x: Tensor | None, otherwise: str) -> Tensor:
    if x is None:
        raise ConfigError(otherwise)
    return x


# ---------------------------------------------------------------------- the table

_OF_LOGISTIC = ("beta", "label_smoothing", "margin")
_BESIDE = ("length_normalised", "nll_coef")

_DPO = Objective(
    consumes="pairs",
    loss=_pairwise(_logistic),
    strength=_log_ratio,
    reads=(*_OF_LOGISTIC, *_BESIDE),
    reference="always",
)
_TIES = replace(_DPO, loss=_pairwise(_davidson), reads=("beta", "tie_nu", *_BESIDE))
_SFT = Objective(
    consumes="demonstrations", loss=_sft, strength=_log_ratio, reads=(), per="token", length_normalised=True
)
_RATED = replace(_SFT, consumes="rated")
_REWARD = replace(
    _DPO, strength=_score, reads=(*_OF_LOGISTIC, "centring"), reference="never", needs_values=True, beta=1.0
)

OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "sft": _SFT,
        # exp((v - 1) / temperature): at 0.5 an abstention counts 0.14 of a success, a failure 0.02.
        "weighted_sft": replace(_RATED, loss=_weighted_sft, reads=("temperature",), temperature=0.5),
        # arXiv:1908.04319.
        "unlikelihood": replace(_RATED, loss=_unlikelihood, reads=("negative_weight", "balance")),
        # arXiv:2211.05826, with the top 5 of arXiv:2312.16682.
        "cringe": replace(_RATED, loss=_cringe, reads=("negative_weight", "alternatives", "balance"), alternatives=5),
        # arXiv:2402.01306.
        "kto": Objective(
            consumes="rated",
            loss=_kto,
            strength=_log_ratio,
            reads=("beta", "desirable_weight", "undesirable_weight", "balance", "length_normalised"),
            reference="always",
            needs_baseline=True,
        ),
        # arXiv:2410.04166 eq. 10.
        "pmpo": replace(
            _RATED, loss=_pmpo, reads=("alpha", "beta", "balance"), reference="always", alpha=0.5, beta=0.5
        ),
        # The same from negatives alone: beta above 1 - alpha = 1 bounds it.
        "pmpo_negative": replace(
            _RATED, loss=_pmpo, reads=("alpha", "beta", "balance"), reference="always", alpha=0.0, beta=2.0
        ),
        # After arXiv:2505.22338, without a value head.
        "span_pg": replace(
            _SFT,
            consumes="spans",
            loss=_span_pg,
            reads=("clip", "negative_weight", "beta"),
            reference="with_beta",
            per="sign",
            beta=0.0,
        ),
        # arXiv:2305.18290.
        "dpo": _DPO,
        # Mitchell 2023.
        "cdpo": replace(_DPO, label_smoothing=0.1),
        # arXiv:2403.00409.
        "robust_dpo": replace(_DPO, loss=_pairwise(_robust), label_smoothing=0.1),
        # arXiv:2310.12036 eq. 17; per token, as its authors ran it (so TRL reports, and does).
        "ipo": replace(_DPO, loss=_pairwise(_squared), reads=("beta", *_BESIDE), length_normalised=True),
        # arXiv:2405.14734: beta 2 to 2.5 and gamma / beta about 0.5.
        "simpo": replace(_DPO, reference="never", length_normalised=True, beta=2.0, margin=1.0),
        # arXiv:2403.07691: likelihood of the better one, and beta (lambda there) times the odds ratio.
        "orpo": replace(
            _DPO,
            loss=_pairwise(_odds),
            strength=_log_odds,
            reads=("beta", "nll_coef"),
            reference="never",
            nll_coef=1.0,
        ),
        # arXiv:2401.01335: first a person's completion, second the policy's own, which is also the reference.
        "spin": _DPO,
        # arXiv:2409.17431; between equals both say tie half of the time.
        "dpo_davidson": _TIES,
        "dpo_rao_kupper": replace(_TIES, loss=_pairwise(_rao_kupper), tie_nu=3.0),
        # arXiv:2312.16682. The margin is of sequences, so it depends on their length.
        "pairwise_cringe": replace(
            _DPO,
            loss=_pairwise_cringe,
            reads=("margin", "gate_temperature", "negative_weight", "alternatives"),
            reference="never",
            margin=10.0,
            gate_temperature=10.0,
            alternatives=5,
        ),
        # Reward models: a scalar head on the last token.
        "reward_bt": _REWARD,
        "reward_davidson": replace(_REWARD, loss=_TIES.loss, reads=("beta", "tie_nu", "centring")),
        "reward_rao_kupper": replace(
            _REWARD, loss=_pairwise(_rao_kupper), reads=("beta", "tie_nu", "centring"), tie_nu=3.0
        ),
        "reward_regression": replace(_REWARD, consumes="rated", loss=_regression, reads=()),
        "reward_ordinal": replace(_REWARD, consumes="rated", loss=_ordinal, reads=("tie_nu",), tie_nu=3.0),
    }
)
_ALWAYS_READ = ("coefficient",)


def resolve_objective(config: ObjectiveConfig | str, **overrides: Any) -> Objective:
    """The objective of that name with its overrides.

    ``ConfigError`` for an unknown name or field, a value out of bounds, or one that this objective cannot have. Warns of an
    override that it never reads, which then has no effect.
    """
    if isinstance(config, str):
        config = ObjectiveConfig(name=config)  # type: ignore[arg-type]  # checked by the config itself
    known = tuple(f.name for f in fields(ObjectiveConfig) if f.name != "name")
    for field in overrides:
        if field not in known:
            raise ConfigError(
                f"objective field {field!r}: unknown{closest(field, known)} Known fields: {', '.join(known)}"
            )
    config = replace(config, **overrides)
    given, read = config.overrides(), (*_ALWAYS_READ, *OBJECTIVES[config.name].reads)
    objective = replace(OBJECTIVES[config.name], **{field: x for field, x in given.items() if field in read})
    if "beta" in objective.reads and objective.beta == 0 and objective.per == "unit":
        raise ConfigError(f"{config.name} with beta=0 teaches nothing: expected a number above 0")
    if config.name in {"dpo_rao_kupper", "reward_rao_kupper", "reward_ordinal"} and objective.tie_nu <= 1:
        raise ConfigError(
            f"{config.name} with tie_nu={objective.tie_nu}: expected above 1, or no judgement is ever a tie"
        )
    unread = [field for field in given if field not in read]
    if unread:
        warnings.warn(f"{config.name} does not read: {', '.join(unread)}", stacklevel=2)
    return objective
