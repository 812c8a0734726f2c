"""One batch of several kinds of judgement, each learned from by its own objective: from examples to a loss.

Each kind's loss is a weighted mean of its own,

    L = sum_k c_k share_k  sum_{i in k} w_i l_i / sum_{i in k} w_i n_i

with l_i the loss of an example, w_i its weight, n_i 1, its tokens, or its tokens with a sign (``Objective.per``), c_k the
coefficient and share_k = 1 (``kinds``), or the kind's part of all weights (``examples``). The quotient is worked out once,
when the batch is built, so any division into micro-batches gives the same gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import torch
from torch import Tensor

from triloop.errors import ConfigError
from triloop.learn.batch import TokenOutputs, pad
from triloop.learn.examples import Consumes, Demonstration, Example, Preference, Rated, Row, consumer, rows_of
from triloop.learn.judged import JudgedBatch
from triloop.learn.judged_figures import figures
from triloop.learn.objective_config import MixtureConfig, Normalise, ObjectiveConfig
from triloop.learn.objective_table import Objective, resolve_objective
from triloop.learn.reduction import Denominators
from triloop.learn.update import LossFn, Sums

__all__ = [
    "Mixture",
    "build_judged",
    "drift",
    "judged_loss",
    "judged_rows",
    "mismatched_rows",
    "mixture_of",
    "resolve_mixture",
    "scoring_rows",
]

Ragged = Sequence[Any]
"""One list, array or tensor per row of the batch, with one number per token of its completion, or empty where the row's
objective needs none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Which objective learns from which kind of example."""

    objectives: Mapping[Consumes, Objective]
    normalise: Normalise = "kinds"

    def __post_init__(self) -> None:
        for kind, objective in self.objectives.items():
            if objective.consumes != kind:
                raise ConfigError(f"an objective for {objective.consumes} stands where one for {kind} belongs")

    def of(self, kind: Consumes) -> Objective:
        """The objective for that kind; ``ConfigError`` without one."""
        if kind not in self.objectives:
            raise ConfigError(
                f"no objective learns from {kind}; the mixture has {', '.join(self.objectives)}. Convert the examples or "
                "name an objective for them"
            )
        return self.objectives[kind]

    @property
    def needs_reference(self) -> bool:
        """Whether any kind needs the reference's log-probabilities."""
        return any(o.needs_reference for o in self.objectives.values())

    @property
    def needs_old(self) -> bool:
        """Whether any kind needs log-probabilities under the policy before the update."""
        return any(o.needs_old for o in self.objectives.values())

    @property
    def needs_baseline(self) -> bool:
        """Whether any kind needs KTO's z0."""
        return any(o.needs_baseline for o in self.objectives.values())


def mixture_of(*objectives: Objective, normalise: Normalise = "kinds") -> Mixture:
    """Those objectives as a mixture; ``ConfigError`` when two learn from the same kind."""
    kinds = [o.consumes for o in objectives]
    if len(set(kinds)) < len(kinds):
        raise ConfigError(f"two objectives for one kind of example among {', '.join(kinds)}: expected one each")
    return Mixture(objectives=dict(zip(kinds, objectives, strict=True)), normalise=normalise)


def resolve_mixture(config: MixtureConfig | ObjectiveConfig | str) -> Mixture:
    """The mixture that a configuration describes; one objective alone is a mixture, too."""
    if not isinstance(config, MixtureConfig):
        return mixture_of(resolve_objective(config))
    given = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "normalise"}
    objectives = {kind: resolve_objective(o) for kind, o in given.items() if o is not None}
    return Mixture(objectives=objectives, normalise=config.normalise)  # type: ignore[arg-type]  # its fields are the kinds


# ---------------------------------------------------------------------- what has to be scored beforehand


def judged_rows(examples: Sequence[Example]) -> list[Row]:
    """(prompt tokens, tokens) of every row of the batch that ``build_judged`` makes of these examples, in its order."""
    return [row for example in examples for row in rows_of(example)]


def scoring_rows(examples: Sequence[Example], mixture: Mixture) -> list[Row]:
    """``judged_rows`` with an empty completion where no objective asks for a reference or an old policy.

    ``Policy.logprobs`` passes over those, so what it answers is what ``build_judged`` takes as ``reference`` or ``old``.
    """
    return [
        row if (o.needs_reference or o.needs_old) else (row[0], ())
        for example in examples
        for o in (mixture.of(consumer(example)),)
        for row in rows_of(example)
    ]


def mismatched_rows(examples: Sequence[Example]) -> list[Row]:
    """The rated examples' completions, each put to the next prompt that is not its own: what KTO's z0 is measured on.

    Score them with the policy and with the reference before the update and give both to ``drift``. With one prompt alone
    there is no mismatch; its completions are then put to it.
    """
    rated = [e for e in examples if isinstance(e, Rated) and e.signs is None]
    prompts = [tuple(e.prompt_tokens) for e in rated]
    made: list[Row] = []
    for i, example in enumerate(rated):
        others = (prompts[(i + step) % len(rated)] for step in range(1, len(rated)))
        made.append((next((p for p in others if p != prompts[i]), prompts[i]), example.tokens))
    return made


def drift(logp: Ragged, logp_ref: Ragged) -> float:
    """``likelihood.kl_baseline`` of ragged rows: max(0, mean of sum_t (logp - logp_ref)), nats; 0 without rows."""
    total = sum(float(sum(a)) - float(sum(b)) for a, b in zip(logp, logp_ref, strict=True))
    return max(0.0, total / max(1, len(logp)))


# ---------------------------------------------------------------------- the batch


def build_judged(
    examples: Sequence[Example],
    mixture: Mixture | Objective,
    *,
    reference: Ragged | None = None,
    old: Ragged | None = None,
    baseline: float | None = None,
) -> JudgedBatch:
    """The batch of these examples, rows as in ``judged_rows``.

    ``reference`` and ``old``: log-probabilities of the rows (of ``scoring_rows``) under the reference and under the policy
    before the update, at the temperature that the learner computes with. ``baseline``: KTO's z0 (``drift``), of the whole
    batch and of the policy before the update: it has no gradient and is the same in all micro-batches and minibatches.
    ``ConfigError`` for a kind that no objective learns from, and for what an objective needs and was not given.
    """
    mixture = mixture_of(mixture) if isinstance(mixture, Objective) else mixture
    kinds = [consumer(e) for e in examples]
    per_row = [(e, k) for e, k in zip(examples, kinds, strict=True) for _ in rows_of(e)]
    used = [mixture.of(k) for k in dict.fromkeys(kinds)]
    for given, needed, what in (
        (reference, any(o.needs_reference for o in used), "reference: log-probabilities under the reference"),
        (old, any(o.needs_old for o in used), "old: log-probabilities under the policy before the update"),
        (baseline, any(o.needs_baseline for o in used), "baseline: KTO's z0, drift(...) over mismatched_rows"),
    ):
        if needed and given is None:
            raise ConfigError(f"an objective needs {what}")
    rows = judged_rows(examples)
    time = max((len(tokens) for _, tokens in rows), default=0)
    pairs = [e if isinstance(e, Preference) else None for e, _ in per_row]
    batch = JudgedBatch(
        prompt_tokens=[list(prompt) for prompt, _ in rows],
        tokens=[list(tokens) for _, tokens in rows],
        mask=pad([_mask(e, tokens) for (e, _), (_, tokens) in zip(per_row, rows, strict=True)], time) > 0,
        example=[i for i, e in enumerate(examples) for _ in rows_of(e)],
        kind=[k for _, k in per_row],
        value=torch.tensor([e.value if k == "rated" and isinstance(e, Rated) else 0.0 for e, k in per_row]),
        signs=pad([(e.signs or ()) if isinstance(e, Rated) else () for e, _ in per_row], time),
        p=torch.tensor([0.5 if e is None else e.p for e in pairs]),
        tie=torch.tensor([e is not None and e.tie for e in pairs], dtype=torch.bool),
        margin=torch.tensor([0.0 if e is None else e.margin for e in pairs]),
        scale=torch.tensor([e.weight for e, _ in per_row]),
        denominators=Denominators(tokens=0.0, sequences=float(len(examples)), max_tokens=max(1, time)),
        logp_ref=None if reference is None else _scores(reference, rows, time, "reference"),
        logp_old=None if old is None else _scores(old, rows, time, "old"),
        baseline=baseline,
        alternatives=max((o.alternatives for o in used), default=0),
    )
    whole = replace(batch.denominators, tokens=float(batch.mask.sum()))
    return replace(_weighed(batch, mixture), denominators=whole)


def _mask(example: Example, tokens: Sequence[int]) -> list[float]:
    if isinstance(example, Demonstration | Rated) and example.mask is not None:
        return [float(m) for m in example.mask]
    return [1.0] * len(tokens)


def _scores(given: Ragged, rows: Sequence[Row], time: int, what: str) -> Tensor:
    if len(given) != len(rows):
        raise ConfigError(f"{what} has {len(given)} rows, expected {len(rows)}: one per row of judged_rows")
    for numbers, (_, tokens) in zip(given, rows, strict=True):
        if len(numbers) not in (0, len(tokens)):
            raise ConfigError(f"{what} has {len(numbers)} numbers for a completion of {len(tokens)} tokens")
    return pad(given, time)


def _weighed(batch: JudgedBatch, mixture: Mixture) -> JudgedBatch:
    """``scale`` from weights, and ``value`` balanced where its objective asks for it."""
    weight, scale, value = batch.scale, torch.zeros(len(batch)), batch.value.clone()
    units = [unit.start for unit in batch.units()]
    everything = float(weight[units].sum())
    for kind, objective in mixture.objectives.items():
        rows = batch.of(kind)
        first = [i for i in units if batch.kind[i] == kind]
        size = _sizes(batch, objective)
        total = float((weight * size)[first].sum())
        if total <= 0:
            continue
        share = float(weight[first].sum()) / everything if mixture.normalise == "examples" else 1.0
        scale[rows] = weight[rows] * (objective.coefficient * share * len(units) / total)
        if objective.balance:
            value[rows] = _balanced(value[rows], (weight * size)[rows])
    return replace(batch, scale=scale, value=value)


def _sizes(batch: JudgedBatch, objective: Objective) -> Tensor:
    if objective.per == "unit":
        return torch.ones(len(batch))
    counted = batch.mask & (batch.signs != 0) if objective.per == "sign" else batch.mask
    return counted.sum(dim=1).float()


def _balanced(value: Tensor, weight: Tensor) -> Tensor:
    """Values scaled so that each sign's weights sum to all weights, as if either were the whole."""
    for sign in (1.0, -1.0):
        theirs = value.sign() == sign
        value = torch.where(theirs, value * weight.sum() / (weight * theirs).sum().clamp(min=1e-9), value)
    return value


# ---------------------------------------------------------------------- the loss


def judged_loss(mixture: Mixture | Objective) -> LossFn:
    """The loss of a ``JudgedBatch``, and its figures by kind (``judged_figures``)."""
    mixture = mixture_of(mixture) if isinstance(mixture, Objective) else mixture

    def loss(outputs: TokenOutputs, batch: JudgedBatch, denominators: Denominators) -> tuple[Tensor, Sums]:
        total = torch.where(batch.mask, outputs.logp, 0.0).sum() * 0.0
        sums: Sums = {"tokens": batch.mask.sum()}
        for objective, seen, part in _parts(mixture, outputs, batch):
            lost = objective.loss(seen, part, objective)
            scale = part.scale[:: len(part) // len(lost)]
            term = torch.where(scale > 0, scale * lost, 0.0).sum() / max(denominators.sequences, 1e-9)
            total = total + term
            sums |= {f"{objective.consumes}/loss": term.detach(), **figures(objective, seen, part)}
        return total, sums | {"loss": total.detach()}

    return loss


def _parts(
    mixture: Mixture, outputs: TokenOutputs, batch: JudgedBatch
) -> Iterator[tuple[Objective, TokenOutputs, JudgedBatch]]:
    """The rows of each kind that are there, with what the forward pass said of them."""
    for kind in get_args(Consumes):
        if rows := batch.of(kind):
            part = batch.rows(rows)
            yield mixture.of(kind), outputs.rows(rows, part.mask.shape[1]), part
