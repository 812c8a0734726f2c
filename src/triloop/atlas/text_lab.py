"""What the rows on quantised networks share: small decoders of characters, text for them, updates, a held-out loss.

The text is what the teachers of Triloop's worlds say: answers, judgements, comparisons, critiques and revisions of the
attribute world, worked chains of arithmetic and searches for countdowns. Some of it is spelling that anybody learns, some
is copying, and some needs sums, so that a decoder of this size is not done with it in a few hundred updates.
"""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from triloop import rng
from triloop.atlas.frame import Context, transposed
from triloop.envs.arithmetic import Arithmetic
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_skills import lessons
from triloop.envs.base import Split
from triloop.envs.charset import CHARS
from triloop.envs.countdown import Countdown
from triloop.envs.world import TextWorld
from triloop.learn.choices import Schedule
from triloop.learn.schedule import learning_rate
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import linears, ternarise
from triloop.ternary.distil import logits_kl

__all__ = [
    "ALPHABET",
    "TIME",
    "Loss",
    "Plan",
    "Text",
    "batches",
    "by_name",
    "checkpoint",
    "converted",
    "distilled",
    "fit",
    "held_out",
    "likelihood",
    "moved",
    "outputs",
    "shape",
    "start",
    "text",
]

ALPHABET = "\n" + CHARS + "AB"
"""Every character of the text; its place is its token."""
TIME, ROWS = 96, 8
"""Characters of a window, and windows of an update."""
LAYERS, HEADS = 2, 4

Loss = Callable[[Decoder, Int[Tensor, "rows time"], int], Tensor]
"""(decoder, windows of TIME + 1 characters, update) -> what an update makes smaller: one number, nats per character."""


# ------------------------------------------------------------------ text


@dataclass(frozen=True, kw_only=True)
class Text:
    """Characters as tokens."""

    learn: Int[Tensor, " characters"]
    held: Int[Tensor, "windows time"]
    """Windows of ``TIME + 1`` characters of held-out problems."""


@functools.cache
def text(documents: int = 900, windows: int = 160) -> Text:
    """The same text for every row and seed: ``documents`` problems of each world to learn from (about 430,000 characters
    with the default), and held-out ones, of which ``windows`` windows are kept."""
    number = {c: i for i, c in enumerate(ALPHABET)}
    held = torch.tensor([number[c] for c in _written("eval", documents // 4)])
    held = held[: len(held) // (TIME + 1) * (TIME + 1)].view(-1, TIME + 1)
    apart = max(1, len(held) // windows)  # from all over the text: its worlds lie in no order, its skills do
    return Text(learn=torch.tensor([number[c] for c in _written("train", documents)]), held=held[::apart][:windows])


def _written(split: Split, documents: int) -> str:
    """Prompts and what teachers answer, a line each, in a random order."""
    g = rng.generator("atlas text", split)
    world = Attributes()
    said = list(lessons(world, world.prompts(split, documents, seed=0), g, answers=0.8, compared=0.1))
    more: tuple[tuple[TextWorld, int], ...] = ((Arithmetic(), 4 * documents), (Countdown(), documents))
    for other, count in more:
        said += [(p.text, other.demonstration(p, g, 0.0)) for p in other.prompts(split, count, seed=0)]
    return "".join(f"{said[i][0]}{said[i][1]}\n" for i in g.permutation(len(said)).tolist())


def batches(seed: int, first: int, count: int) -> Int[Tensor, "updates rows time"]:
    """Windows for the updates ``first`` to ``first + count`` of a seed: [count, ROWS, TIME + 1]."""
    learn = text().learn
    g = torch.Generator().manual_seed(rng.key(seed, "windows") % 2**63)
    at = torch.randint(0, len(learn) - TIME, (first + count, ROWS), generator=g)[first:]
    return learn[at[..., None] + torch.arange(TIME + 1)]


# ------------------------------------------------------------------ decoders


def shape(width: int, inner: int | None = None, layers: int = LAYERS) -> DecoderConfig:
    """Layers of this width; the inner width of the MLP is 5/2 of it where none is given."""
    return DecoderConfig(
        vocab_size=len(ALPHABET),
        hidden_size=width,
        intermediate_size=inner or 5 * width // 2,
        num_layers=layers,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=width // HEADS,
        max_positions=TIME,
    )


def start(width: int, seed: int, inner: int | None = None, layers: int = LAYERS) -> Decoder:
    """Fresh weights, normal with deviation 0.05."""
    return Decoder(shape(width, inner, layers)).initialise(seed, std=0.05)


def checkpoint(width: int, seed: int, updates: int, inner: int | None = None, layers: int = LAYERS) -> Decoder:
    """A decoder in full precision after the first ``updates`` updates of a seed; the rate falls to nothing."""
    decoder = start(width, seed, inner, layers)
    fit(decoder, batches(seed, 0, updates), Plan(warmup=20, schedule="linear"))
    return decoder


def converted(decoder: Decoder, config: TernaryConfig) -> Decoder:
    """A copy with quantised linears."""
    made = copy.deepcopy(decoder)
    ternarise(made, config)
    return made


def moved(decoder: Decoder, before: Decoder) -> float:
    """How far the latent weights of the linears came: mean over layers of |W - W_0|_1 / |W_0|_1."""
    first = dict(before.named_parameters())
    pairs = [(m.weight.detach(), first[f"{name}.weight"].detach()) for name, m in linears(decoder).items()]
    return statistics.fmean(float((w - w0).abs().sum() / w0.abs().sum()) for w, w0 in pairs)


# ------------------------------------------------------------------ training


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How weights are changed: AdamW with betas 0.9 and 0.95, gradients clipped at norm 1, a fresh optimiser."""

    rate: float = 5e-3
    warmup: int = 0
    schedule: Schedule = "constant"
    weight_decay: float = 0.0
    by_update: Callable[[int], tuple[float, float]] | None = None
    """Rate and weight decay of each update, in place of the three above."""

    def at(self, update: int, total: int) -> tuple[float, float]:
        """(rate, weight decay)."""
        if self.by_update is not None:
            return self.by_update(update)
        rate = learning_rate(update, peak=self.rate, warmup=self.warmup, total=total, shape=self.schedule)
        return rate, self.weight_decay


def likelihood(decoder: Decoder, windows: Int[Tensor, "rows time"], update: int = 0) -> Float[Tensor, ""]:
    """Mean negative log-likelihood, nats per character."""
    logits = decoder.logits_padded(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def outputs(
    decoder: Decoder, windows: Int[Tensor, "rows time"]
) -> tuple[Float[Tensor, "n vocab"], list[Float[Tensor, "n width"]]]:
    """Logits of every next character, and what each attention and each MLP adds to the residual stream."""
    seen: list[Tensor] = []

    def keep(part: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        seen.append(made)

    hooks = [part.register_forward_hook(keep) for layer in decoder.blocks for part in (layer.out, layer.down)]
    try:
        logits = decoder.logits_padded(windows[:, :-1]).flatten(0, 1)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, seen


def distilled(
    teacher: Decoder,
    *,
    features: Callable[[Tensor, Tensor], Tensor] | None = None,
    weight: float = 0.0,
    labels: float = 0.0,
) -> Loss:
    """KL of the teacher's distribution, plus ``weight`` times the mean over parts and characters of
    ``features(student's, teacher's)`` [n], plus ``labels`` times the likelihood of the text. Nats per character."""

    def loss(decoder: Decoder, windows: Tensor, update: int) -> Tensor:
        with torch.no_grad():
            wanted, theirs = outputs(teacher, windows)
        logits, mine = outputs(decoder, windows)
        value = logits_kl(logits, wanted).mean()
        if features is not None:
            value = (
                value + weight * torch.stack([features(a, b).mean() for a, b in zip(mine, theirs, strict=True)]).mean()
            )
        return value + labels * F.cross_entropy(logits, windows[:, 1:].flatten()) if labels else value

    return loss


def fit(
    decoder: Decoder,
    data: Int[Tensor, "updates rows time"],
    plan: Plan,
    *,
    loss: Loss = likelihood,
    before: Callable[[int], None] = lambda update: None,
) -> list[float]:
    """One update for each batch, in place; the losses. ``before`` is called ahead of each update, with its number.

    Parameters with two dimensions decay, the others do not. Gradients are gone afterwards.
    """
    matrices = [p for p in decoder.parameters() if p.ndim > 1]
    others = [p for p in decoder.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW([{"params": matrices}, {"params": others}], betas=(0.9, 0.95), weight_decay=0.0)
    losses: list[float] = []
    for update, batch in enumerate(data):
        before(update)
        rate, decay = plan.at(update, len(data))
        for group, share in zip(optimiser.param_groups, (1.0, 0.0), strict=True):
            group["lr"], group["weight_decay"] = rate, share * decay
        value = loss(decoder, batch, update)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        losses.append(float(value.detach()))
    optimiser.zero_grad(set_to_none=True)
    return losses


@torch.no_grad()
def held_out(decoder: Decoder) -> float:
    """Mean loss on the held-out windows, nats per character."""
    parts = text().held.split(40)
    total = sum(float(likelihood(decoder, part)) * len(part) for part in parts)
    return total / sum(len(part) for part in parts)


# ------------------------------------------------------------------ a row's results


def by_name(context: Context, one: Callable[[int], Mapping[str, float]]) -> dict[str, list[float]]:
    """Every number that ``one(seed)`` gives, by name, over the seeds. On one thread: the figures shall not depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [one(seed) for seed in context.seeds]
    finally:
        torch.set_num_threads(threads)
    return {name: [float(v) for v in values] for name, values in transposed(found).items()}
