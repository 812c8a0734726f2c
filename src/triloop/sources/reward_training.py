"""Training a reward model: one loss over pairs, ratings, attributes and passages; held-out prompts say when to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from triloop import rng
from triloop.learn import preferences
from triloop.learn.batch import TokenOutputs
from triloop.learn.reduction import Denominators
from triloop.learn.schedule import learning_rate
from triloop.learn.update import LossFn, Sums, add_sums, summarise
from triloop.policies.learner import Learner
from triloop.sources.reward_config import RewardConfig, RewardTraining
from triloop.sources.reward_examples import RewardExample
from triloop.sources.reward_features import SparseRows
from triloop.sources.reward_network import RewardNetwork
from triloop.sources.reward_table import RewardBatch, Table

__all__ = ["Trained", "evaluate", "pair_loss", "reward_loss", "split_by_prompt", "text_outputs", "tie_nu", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What became of one call of ``learn``."""

    examples: int
    """Learned from, those that only decided when to stop left out."""
    held_out: int
    steps: int
    """Optimiser steps taken."""
    best_epoch: int
    """Passes after which the kept weights stood; 0 is before the first."""
    losses: tuple[float, ...]
    """Mean training loss of each pass, nats."""
    held_losses: tuple[float, ...]
    """Held-out loss before the first pass and after each; () without held-out examples."""
    held_accuracy: float | None
    """Share of held-out decided pairs that the kept weights order as people did; None without such."""
    failures: tuple[str, ...] = ()
    """Why examples were left out."""


def pair_loss(
    difference: Float[Tensor, " pairs"],
    p: Float[Tensor, " pairs"],
    tie: Tensor,
    margin: Float[Tensor, " pairs"],
    *,
    config: RewardConfig,
    nu: float,
) -> Float[Tensor, " pairs"]:
    """Negative log-likelihood of the judgements under the configured model of ties, nats; see ``learn/preferences.py``.

    With ties as outcomes, a margin m is a lead that the better one must have on top: d - (2 p - 1) m stands for d.
    """
    if config.ties == "bradley_terry":
        return preferences.logistic(difference, p, margin)
    led = difference - (2.0 * p - 1.0) * margin
    likelihood = preferences.davidson if config.ties == "davidson" else preferences.rao_kupper
    return likelihood(led, p, tie, nu=nu)


def tie_nu(share: float, config: RewardConfig) -> float:
    """The tie parameter under which equals tie with this probability: t / (1 - t), or (1 + t) / (1 - t) by Rao and Kupper.

    Pairs are seldom equals, so it understates how readily judges call ties. The share is held within [0.01, 0.9]."""
    if config.tie_nu is not None:
        return config.tie_nu
    t = min(max(share, 0.01), 0.9)
    return (1.0 + t) / (1.0 - t) if config.ties == "rao_kupper" else t / (1.0 - t)


def text_outputs(
    network: RewardNetwork, features: SparseRows | None, outputs: TokenOutputs, batch: RewardBatch
) -> Float[Tensor, "rows outputs"]:
    """The score and the attributes of every row's whole text: the head at the end of the text, the mean of what its tokens
    and its end token say, and the features' part."""
    heads, k = _heads(outputs), len(network.config.names)
    last = batch.mask.sum(dim=1) - 1
    whole = heads[torch.arange(len(batch)), last][:, :k]
    if network.config.pooled:
        said = batch.mask[:, 1:, None].to(heads.device)  # the first state is the one before the text
        mean = torch.where(said, heads[:, 1:, k : 2 * k], 0.0).sum(dim=1) / said.sum(dim=1).clamp(min=1)
        whole = whole + network.config.pooled * mean
    if features is None:
        return whole
    return whole + network.known(features, batch.index).to(whole.device)


def reward_loss(network: RewardNetwork, table: Table, *, nu: float, ridge_over: int = 0) -> LossFn:
    """The mean over examples of what each one says, weighted:

        pair        -log P(judgement | s_1 - s_2) + centring (s_1 + s_2)^2 + sum_k BT(a_k1 - a_k2) over its attributes
        rating      cross-entropy of sigmoid(s) with (value + 1) / 2 + sum_k (a_k - target_k)^2 / 2
        passages    mean over the text's tokens of (r_t - sign_t)^2 / 2

    s is the score, after the scalarisation. With ``ridge_over`` > 0 examples, the ridge on the features' weights,
    ``prior_l2 / (2 ridge_over) |w|^2``, is added once per step: together the posterior mode over that many examples.
    """

    def loss(outputs: TokenOutputs, batch: RewardBatch, denominators: Denominators) -> tuple[Tensor, Sums]:
        told = text_outputs(network, table.features, outputs, batch)
        units = batch.units()
        first = torch.tensor([u.start for u in units])
        last = torch.tensor([u.stop - 1 for u in units])
        which = torch.tensor([batch.example[u.start] for u in units])
        score = told @ network.overall.to(told.device)
        losses, sums = _of_pairs(network.config, table, score, told, (first, last, which), nu)
        losses = losses + _of_ratings(table, score[first], told[first], which)
        if network.config.token_level:
            losses = losses + _of_passages(table, _heads(outputs)[first, :, -1], batch.mask[first], which)
        count = max(denominators.sequences, 1e-9)
        total = (table.said.weight[which] * losses).sum() / count
        if ridge_over and network.prior is not None:
            total = total + network.ridge().to(total.device) * (len(units) / count / ridge_over)
        return total, sums | {"loss": total.detach()}

    return loss


def _of_pairs(
    config: RewardConfig, table: Table, score: Tensor, told: Tensor, at: tuple[Tensor, Tensor, Tensor], nu: float
) -> tuple[Tensor, Sums]:
    """Losses of the units, 0 for ratings; and how many decided pairs are ordered as judged."""
    first, second, which = at
    said = table.said
    is_pair = said.pair[which]
    p = torch.where(is_pair, said.p[which], 0.5)
    difference = score[first] - score[second]
    losses = pair_loss(difference, p, said.tie[which], said.margin[which], config=config, nu=nu)
    if config.centring:
        losses = losses + config.centring * preferences.centring(score[first], score[second])
    wanted = said.attributes[which]
    given = wanted.isfinite() & is_pair[:, None]
    lead = (told[first] - told[second])[:, 1:]
    for k in range(lead.shape[1]):
        of_one = preferences.logistic(lead[:, k], torch.where(given[:, k], wanted[:, k], 0.5))
        losses = losses + torch.where(given[:, k], of_one, 0.0)
    decided = is_pair & (p != 0.5)
    right = decided & (difference * (p - 0.5) > 0)
    sums = {"pairs/accuracy": right.sum().float(), "pairs/accuracy:n": decided.sum().float()}
    return torch.where(is_pair, losses, 0.0), sums


def _of_ratings(table: Table, score: Tensor, told: Tensor, which: Tensor) -> Tensor:
    """Losses of the units, 0 for pairs and for what was not said."""
    said = table.said
    value, wanted = said.value[which], said.attributes[which]
    rated = value.isfinite()
    p = torch.where(rated, (value + 1.0) / 2.0, 0.5)
    losses = torch.where(rated, preferences.logistic(score, p), 0.0)
    given = wanted.isfinite() & ~said.pair[which][:, None]
    error = torch.where(given, told[:, 1:] - torch.where(given, wanted, 0.0), 0.0)
    return losses + 0.5 * error.square().sum(dim=1)


def _of_passages(table: Table, tokens: Tensor, mask: Tensor, which: Tensor) -> Tensor:
    """Losses of the units whose tokens were marked. ``tokens`` [units time] holds the state before each token, so what
    was said of token t stands against column t + 1."""
    signs = torch.zeros_like(tokens)
    marked = torch.zeros_like(mask)
    for row, example in enumerate(which.tolist()):
        told = table.said.signs[example]
        if told is not None:
            signs[row, 1 : 1 + len(told)] = torch.tensor(told)
            marked[row, 1 : 1 + len(told)] = True
    marked = marked & mask
    error = torch.where(marked, tokens - signs, 0.0)
    return 0.5 * error.square().sum(dim=1) / marked.sum(dim=1).clamp(min=1)


def _heads(outputs: TokenOutputs) -> Float[Tensor, "batch time outputs"]:
    if outputs.heads is not None:
        return outputs.heads
    assert outputs.values is not None
    return outputs.values[..., None]


@torch.no_grad()
def evaluate(learner: Learner, batch: RewardBatch, loss: LossFn) -> dict[str, float]:
    """The figures of ``forward_backward`` without a gradient."""
    sums: Sums = {}
    for micro in learner.pieces(batch):
        sums = add_sums(sums, loss(learner.outputs(micro), micro, batch.denominators)[1])
    return summarise(sums)


def split_by_prompt(
    examples: Sequence[RewardExample], share: float, seed: int
) -> tuple[list[RewardExample], list[RewardExample]]:
    """Examples to learn from, and about ``share`` of them to hold out; all examples of a prompt stand on one side.

    Fewer than 8 held-out examples decide nothing: then none is held out.
    """
    keys = [rng.key(e.prompt.id, e.prompt.text, *(t.text for t in e.prompt.turns)) for e in examples]
    prompts = sorted(set(keys), key=lambda k: rng.key(seed, "held out", k))
    counts = dict.fromkeys(prompts, 0)
    for k in keys:
        counts[k] += 1
    held: set[int] = set()
    size = 0
    for k in prompts:
        if size + counts[k] > share * len(examples):
            break
        held.add(k)
        size += counts[k]
    if size < 8:
        return list(examples), []
    return [e for e, k in zip(examples, keys, strict=True) if k not in held], [
        e for e, k in zip(examples, keys, strict=True) if k in held
    ]


def train(
    learner: Learner, losses: tuple[LossFn, LossFn], tables: tuple[Table, Table], how: RewardTraining, *, taken: int
) -> Trained:
    """Train on the first table, stop by the second, keep the best pass's weights. ``taken`` counts earlier trainings.

    Starts with a fresh optimiser, so that weights are all there is to save between trainings.
    """
    learner.forget()
    table, held = tables
    per_epoch = -(-table.examples // how.batch)
    total = min(how.epochs * per_epoch, how.steps or how.epochs * per_epoch)
    look = _looker(learner, held, losses[1])
    best, best_epoch, kept = look(), 0, _weights(learner)
    seen, means, step = [best[0]], [], 0
    for epoch, batches in enumerate(_epochs(table, how, total, taken), start=1):
        total_loss = 0.0
        for batch in batches:
            total_loss += learner.forward_backward(batch, losses[0])["loss"]
            optim = how.optim
            learner.optim_step(
                learning_rate(step, peak=optim.lr, warmup=optim.warmup_steps, total=total, shape=optim.schedule,
                              floor=optim.lr_floor)
            )  # fmt: skip
            step += 1
        means.append(total_loss / len(batches))
        now = look()
        seen.append(now[0])
        if held.examples and now[0] < best[0]:
            best, best_epoch, kept = now, epoch, _weights(learner)
        elif held.examples and epoch - best_epoch >= how.patience:
            break
    if held.examples:
        _put_back(learner, kept)
    learner.forget()
    return Trained(
        examples=table.examples,
        held_out=held.examples,
        steps=step,
        best_epoch=best_epoch if held.examples else len(means),
        losses=tuple(means),
        held_losses=tuple(seen) if held.examples else (),
        held_accuracy=best[1],
    )


def _epochs(table: Table, how: RewardTraining, total: int, taken: int) -> Iterator[list[RewardBatch]]:
    """The batches of each pass, ``total`` in all."""
    left = total
    epoch = 0
    while left > 0:
        order = rng.generator(how.seed, "reward", taken, epoch).permutation(table.examples).tolist()
        parts = [order[i : i + how.batch] for i in range(0, len(order), how.batch)][:left]
        yield [table.batch(sorted(part)) for part in parts]
        left -= len(parts)
        epoch += 1


def _looker(learner: Learner, held: Table, loss: LossFn) -> Callable[[], tuple[float, float | None]]:
    """Held-out loss and accuracy, when asked."""
    decided = held.said.pair & (held.said.p != 0.5)

    def look() -> tuple[float, float | None]:
        if not held.examples:
            return float("inf"), None
        found = evaluate(learner, held.batch(range(held.examples)), loss)
        return found["loss"], found["pairs/accuracy"] if bool(decided.any()) else None

    return look


def _weights(learner: Learner) -> list[Tensor]:
    return [p.detach().clone() for p in learner.network.parameters() if p.requires_grad]


@torch.no_grad()
def _put_back(learner: Learner, kept: Sequence[Tensor]) -> None:
    for parameter, weights in zip((p for p in learner.network.parameters() if p.requires_grad), kept, strict=True):
        parameter.copy_(weights)
