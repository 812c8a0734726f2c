"""Scoring and learning over any network: token outputs, gradient accumulation, AdamW. Backends bring the forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from triloop.errors import ConfigError, WorkError
from triloop.learn.batch import AnyBatch, TokenBatch, TokenOutputs, micro_batches
from triloop.learn.choices import OptimConfig
from triloop.learn.update import LossFn, add_sums, summarise
from triloop.nn.lean import AdamW, spare_compiler
from triloop.policies.devices import exact
from triloop.policies.statistics import other_tokens, token_statistics

__all__ = ["Learner", "LearnerSettings", "Network", "pick_precision"]

Row = tuple[Sequence[int], Sequence[int]]
"""Prompt tokens, and tokens that follow them."""


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """How a policy computes. Weights and optimiser are fp32 throughout."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: torch.dtype = torch.float32
    """Of the products, in sampling and in learning."""
    micro_tokens: int = 0
    """Most tokens of one forward and backward pass: it bounds the memory and changes no result. 0: by the policy's size."""
    temperature: float = 1.0
    """The one that completions are sampled at, so that the learner differentiates what was sampled."""
    entropy: bool = True
    """Whether losses are shown the entropy; it costs a pass over the logits."""
    cache_bytes: int = 2 << 30
    """Most memory of the rollout's key-value cache; fewer rows are in flight when ``sampling.slots`` would not fit."""
    keep_bytes: int = -1
    """Most memory of what sampling computes and learning need not compute again (the native backend, in fp32 on the
    processor); 0: none, -1: two and a half times what a pass of the learner keeps."""

    def __post_init__(self) -> None:
        if self.micro_tokens < 0:
            raise ConfigError(f"micro_tokens is {self.micro_tokens}; expected at least 1, or 0 for a number by size")
        if self.keep_bytes < -1:
            raise ConfigError(f"keep_bytes is {self.keep_bytes}; expected a number of bytes, or -1 for one by size")


class Network(Protocol):
    """The forward pass of a backend, differentiable."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def floats_per_token(self) -> int:
        """About how many numbers a forward pass keeps of each token for the gradient."""
        ...

    @property
    def shared(self) -> int:
        """Length of the sequences, in tokens, up to which those with the same history are computed and kept once."""
        ...

    @property
    def value_head(self) -> nn.Module | None:
        """Maps a hidden state to one number, or to several of which the first is the value; None when there is none."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """All of them, frozen ones and the value head's included."""
        ...

    def hidden(self, sequences: Sequence[Sequence[int]]) -> Float[Tensor, "tokens width"]:
        """The state after every token of these sequences (none empty), which lie end to end in the answer."""
        ...

    def logits(self, hidden: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens vocab"]:
        """Logits of the token that follows."""
        ...


def pick_precision(name: str, device: torch.device | str = "cpu") -> torch.dtype:
    """``fp32``, ``bf16``, or ``auto``: bf16 where the device multiplies it natively (AMX, CUDA), else fp32."""
    if name == "auto":
        on_gpu = torch.device(device).type == "cuda"
        amx = not on_gpu and bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
        name = "bf16" if amx or (on_gpu and torch.cuda.is_bf16_supported()) else "fp32"
    try:
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    except KeyError:
        raise ConfigError(f"precision is {name!r}; expected auto, fp32 or bf16") from None


class Learner:
    """Scores with a network and changes its weights. Its state is the optimiser's and the number of steps taken."""

    def __init__(self, network: Network, settings: LearnerSettings) -> None:
        self.network, self.settings = network, settings
        self.micro_tokens = settings.micro_tokens or _micro_tokens(network, settings.precision)
        self.version = 0
        spare_compiler()
        self._optimiser: AdamW | None = None

    @property
    def device(self) -> torch.device:
        """Where the network's weights are. Batches and what the losses see lie on the processor."""
        return next(iter(self.network.parameters())).device

    # ------------------------------------------------------------------ scoring

    def _states(self, rows: Sequence[Row]) -> tuple[Float[Tensor, "n width"], Int[Tensor, " n"]]:
        """States that predict the completion tokens, and those tokens, row after row. No row has an empty completion."""
        if not all(prompt for prompt, _ in rows):
            raise ConfigError("a completion without a prompt cannot be scored: nothing predicts its first token")
        # The last token predicts nothing that is asked for: it is never computed.
        sequences = [[*prompt, *tokens[:-1]] for prompt, tokens in rows]
        hidden = self.network.hidden(sequences)
        counts = np.array([len(tokens) for _, tokens in rows])
        behind = np.cumsum([len(s) for s in sequences]) - np.cumsum(counts)
        pick = np.arange(counts.sum()) + np.repeat(behind, counts)
        flat = np.fromiter(chain.from_iterable(tokens for _, tokens in rows), np.int64, counts.sum())
        if len(flat) and not 0 <= flat.min() <= flat.max() < self.network.vocab_size:
            raise ConfigError(
                f"a completion has token {flat.min() if flat.min() < 0 else flat.max()}, but the policy knows tokens 0 to "
                f"{self.network.vocab_size - 1}; was it encoded with another tokenizer?"
            )
        which, targets = (torch.from_numpy(x).to(hidden.device) for x in (pick, flat))
        return hidden.index_select(0, which), targets

    def _statistics(
        self, rows: Sequence[Row], temperature: float, *, entropy: bool
    ) -> tuple[Tensor, Tensor, Float[Tensor, "n width"]]:
        hidden, targets = self._states(rows)
        logps, entropies = token_statistics(
            self.network.logits,
            hidden,
            targets,
            vocab_size=self.network.vocab_size,
            temperature=temperature,
            entropy=entropy,
        )
        return logps, entropies, hidden

    @torch.no_grad()
    def logprobs(self, items: Sequence[Row], *, temperature: float = 1.0) -> list[NDArray[np.float32]]:
        """Log p (nats) of every completion token; long lists are scored in pieces of ``micro_tokens``."""
        out = [np.zeros(0, np.float32) for _ in items]
        for piece in _pieces(items, self.micro_tokens):
            logps, _, _ = self._statistics([items[i] for i in piece], temperature, entropy=False)
            _spread(out, items, piece, logps)
        return out

    @torch.no_grad()
    def values(self, items: Sequence[Row]) -> list[NDArray[np.float32]]:
        """The value head's estimate before every completion token."""
        head = self.network.value_head
        if head is None:
            raise ConfigError("this policy has no value head; add one with add_value_head, as runs of PPO do")
        out = [np.zeros(0, np.float32) for _ in items]
        for piece in _pieces(items, self.micro_tokens):
            hidden, _ = self._states([items[i] for i in piece])
            _spread(out, items, piece, head(hidden.float())[:, 0])
        return out

    def outputs(self, batch: TokenBatch) -> TokenOutputs:
        """What the losses see of a batch, differentiable."""
        rows = [row for row in zip(batch.prompt_tokens, batch.tokens, strict=True) if row[1]]
        asked, shape = self.settings.entropy, batch.mask.shape
        if not rows:
            others = torch.zeros(*shape, batch.alternatives) if batch.alternatives else None
            nothing = torch.zeros(shape)
            return TokenOutputs(logp=nothing, entropy=nothing if asked else None, alternatives=others)
        logps, entropies, hidden = self._statistics(rows, self.settings.temperature, entropy=asked)
        head = self.network.value_head
        told = None if head is None else head(hidden.float())
        lengths = torch.tensor([len(tokens) for tokens in batch.tokens])
        where = torch.nonzero((torch.arange(shape[1]) < lengths[:, None]).view(-1))[:, 0]

        def unpack(x: Tensor) -> Tensor:
            x = x.to(batch.mask.device)
            rest = x.shape[1:]
            return x.new_zeros(shape.numel(), *rest).index_copy(0, where.to(x.device), x).view(*shape, *rest)

        return TokenOutputs(
            logp=unpack(logps),
            entropy=unpack(entropies) if asked else None,
            values=None if told is None else unpack(told[:, 0]),
            alternatives=unpack(self._alternatives(rows, hidden, batch.alternatives)) if batch.alternatives else None,
            heads=None if told is None or told.shape[1] == 1 else unpack(told),
        )

    def _alternatives(self, rows: Sequence[Row], hidden: Tensor, count: int) -> Float[Tensor, "n rank"]:
        targets = torch.tensor([t for _, tokens in rows for t in tokens], device=hidden.device)
        return other_tokens(
            self.network.logits,
            hidden,
            targets,
            vocab_size=self.network.vocab_size,
            count=count,
            temperature=self.settings.temperature,
        )

    # ------------------------------------------------------------------ learning

    def pieces(self, batch: AnyBatch) -> Iterator[AnyBatch]:
        """As much of a batch at a time as ``micro_tokens`` allows."""
        return micro_batches(batch, self.micro_tokens, shared=self.network.shared)

    def forward_backward(self, batch: TokenBatch, loss: LossFn) -> dict[str, float]:
        """Accumulate the gradient over micro-batches: the same as one big batch, in bounded memory."""
        sums: dict[str, Tensor] = {}
        for micro in self.pieces(batch):
            with exact(self.device):
                value, part = loss(self.outputs(micro), micro, batch.denominators)
                if not torch.isfinite(value):
                    raise WorkError(
                        f"the loss became {value.item()} at policy version {self.version}; lower --optim.lr and start from "
                        "an earlier checkpoint"
                    )
                if value.requires_grad:  # not when no row has a token
                    value.backward()
            sums = add_sums(sums, part)
        return summarise(sums)

    def optim_step(self, lr: float) -> dict[str, float]:
        """Clip, step, clear. A gradient that is not finite changes nothing, and its norm says so."""
        optimiser, limit = self._adamw(), self.settings.optim.max_grad_norm
        parameters = [p for g in optimiser.param_groups for p in g["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf"))
        for group in optimiser.param_groups:
            group["lr"] = lr
        if torch.isfinite(norm):
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        self.version += 1
        return {"grad_norm": float(norm), "lr": lr}

    def _adamw(self) -> AdamW:
        if self._optimiser is None:
            c = self.settings.optim
            trained = [p for p in self.network.parameters() if p.requires_grad]
            matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
            groups = [{"params": matrices, "weight_decay": c.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
            self._optimiser = AdamW(
                [g for g in groups if g["params"]],
                lr=c.lr,
                betas=(c.betas[0], c.betas[1]),
                eps=c.eps,
                fused=True,
            )
        return self._optimiser

    # ------------------------------------------------------------------ state

    def forget(self) -> None:
        """Drop the optimiser's memory; needed whenever other parameters are to be trained."""
        self._optimiser = None

    def state(self) -> dict[str, Any]:
        """What continues bit-exactly besides the weights. A policy that does not learn has no optimiser."""
        learns = any(p.requires_grad for p in self.network.parameters())
        return {"optimiser": self._adamw().state_dict() if learns else None, "version": self.version}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what ``state`` gave, into an optimiser over the present parameters."""
        self.forget()
        if state["optimiser"] is not None:
            self._adamw().load_state_dict(state["optimiser"])
        self.version = int(state["version"])


def _micro_tokens(network: Network, precision: torch.dtype) -> int:
    """As many as keep about 48 MB, and enough for matrix products to run at full speed."""
    return min(16384, max(512, 48_000_000 // (network.floats_per_token * precision.itemsize)))


def _pieces(items: Sequence[Row], limit: int) -> list[list[int]]:
    """Indices of the rows with tokens, at most ``limit`` tokens a piece, longest together so that attention pads little."""
    lengths = {i: len(prompt) + len(tokens) for i, (prompt, tokens) in enumerate(items) if tokens}
    pieces: list[list[int]] = []
    room = 0
    for i in sorted(lengths, key=lambda i: -lengths[i]):
        if not pieces or room < lengths[i]:
            pieces.append([])
            room = limit
        pieces[-1].append(i)
        room -= lengths[i]
    return pieces


def _spread(out: list[NDArray[np.float32]], items: Sequence[Row], piece: Sequence[int], numbers: Tensor) -> None:
    """Hand the numbers of a piece, row after row, to the rows they belong to."""
    for i, part in zip(piece, numbers.split([len(items[i][1]) for i in piece]), strict=True):
        out[i] = part.float().cpu().numpy()
