"""What a round of learning from judgements looked like, by kind: sums that add up over micro-batches."""

from __future__ import annotations

import torch
from torch import Tensor

from triloop.learn.batch import TokenOutputs
from triloop.learn.judged import JudgedBatch
from triloop.learn.objective_table import Objective
from triloop.learn.update import Sums

__all__ = ["figures"]


@torch.no_grad()
def figures(objective: Objective, outputs: TokenOutputs, batch: JudgedBatch) -> Sums:
    """Figures of a batch of one kind, each under ``kind/`` with the count that it is a mean over (``update.summarise``).

    All: nll (nats per token). Pairs: accuracy (the decided pairs whose better completion is ahead; a draw is half), lead
    (of the better one, in the unit of the objective's strength: nats, or scores), tie_gap (size of the lead among ties).
    Rated: good, bad, abstained (mean strength of each). Spans: good, bad (mean log p of praised and of blamed tokens).
    """
    kind, found = objective.consumes, dict[str, tuple[Tensor, Tensor]]()
    found["nll"] = _under(-torch.where(batch.mask, outputs.logp, 0.0), batch.mask)
    if kind == "spans":
        found |= {name: _under(outputs.logp, batch.mask & wanted) for name, wanted in _signed(batch.signs).items()}
    elif kind != "demonstrations":
        strength = objective.strength(outputs, batch, objective)
        if kind == "rated":
            groups = {**_signed(batch.value), "abstained": batch.value == 0}
            found |= {name: _under(strength, wanted) for name, wanted in groups.items()}
        else:
            found |= _of_pairs(strength, batch)
    return {
        f"{kind}/{name}{suffix}": x for name, two in found.items() for suffix, x in zip(("", ":n"), two, strict=True)
    }


def _signed(x: Tensor) -> dict[str, Tensor]:
    return {"good": x > 0, "bad": x < 0}


def _of_pairs(strength: Tensor, batch: JudgedBatch) -> dict[str, tuple[Tensor, Tensor]]:
    pairs, difference = batch.pairs(), strength[0::2] - strength[1::2]
    decided = ~pairs.tie & (pairs.p != 0.5)
    lead = difference * (pairs.p - 0.5).sign()
    return {
        "accuracy": _under(0.5 * (1.0 + lead.sign()), decided),
        "lead": _under(lead, decided),
        "tie_gap": _under(difference.abs(), ~decided),
    }


def _under(x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Sum where wanted, and how many are."""
    return torch.where(wanted, x, 0.0).sum(), wanted.sum()
