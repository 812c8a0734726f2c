"""Policies of architectures outside the Llama family: transformers runs the model, everything else is ours. Extra ``hf``.

Slower than the native decoder: prompts and training batches are padded, and no row is refilled while others are half way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from triloop.errors import ConfigError
from triloop.learn.batch import TokenBatch
from triloop.learn.update import LossFn
from triloop.nn.hf_io import tensors_sha256
from triloop.nn.tokenizer import Tokenizer
from triloop.policies.completions import Completer
from triloop.policies.engine import Hooks, LogitMask, Respond, never
from triloop.policies.learner import Learner, LearnerSettings
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.policies.transformers_model import CausalModel, read_model
from triloop.records import Completion, Prompt

__all__ = ["TransformersNetwork", "TransformersPolicy", "TransformersStepper", "load_transformers"]


def load_transformers(path: str | Path, *, device: torch.device | str = "cpu", **settings: Any) -> TransformersPolicy:
    """A policy from a Hugging Face directory of any causal language model that transformers knows.

    ``settings`` are the fields of ``LearnerSettings``. Raises ModelError when transformers is not installed, or the
    directory is missing, incomplete, corrupt or no causal language model.
    """
    folder = Path(path)
    model = read_model(folder)
    model.module.to(device)
    return TransformersPolicy(model, Tokenizer.from_directory(folder), **settings)


class TransformersStepper:
    """A model and its cache, advanced by the engine: prompts padded on the left, all rows one column further a step."""

    refills = False

    def __init__(self, model: CausalModel, *, cache_bytes: int = 2 << 30) -> None:
        self.model, self.cache_bytes = model, cache_bytes

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    def open(self, rows: int, length: int) -> int:
        rows = max(1, min(rows, self.cache_bytes // max(1, self.model.cache_bytes_per_token * length)))
        self.seen = torch.ones(rows, length, dtype=torch.long, device=self.model.device)
        return rows

    @torch.no_grad()
    def admit(self, prompts: Sequence[tuple[int, ...]], rows: Sequence[int]) -> Float[Tensor, "new vocab"]:
        device = self.model.device
        distinct = list(dict.fromkeys(prompts))
        place = {p: i for i, p in enumerate(distinct)}
        self.width = max(len(p) for p in distinct)
        ids = torch.tensor([[*[0] * (self.width - len(p)), *p] for p in distinct], device=device)
        padding = torch.tensor([self.width - len(p) for p in distinct], device=device)
        column = torch.arange(self.width, device=device)[None, :]
        features, self.cache = self.model.features(
            ids,
            attention=(column >= padding[:, None]).long(),
            positions=(column - padding[:, None]).clamp(min=0),
            use_cache=True,
        )
        source = torch.tensor([place[p] for p in prompts], device=device)
        self.cache.batch_select_indices(source)
        self.seen = self.seen[: len(rows)]
        self.seen[:, : self.width] = (column >= padding[source][:, None]).long()
        return self.model.logits(features[:, -1]).float().index_select(0, source)

    @torch.no_grad()
    def step(
        self, tokens: Int[Tensor, " rows"], positions: Int[Tensor, " rows"], span: int
    ) -> Float[Tensor, "rows vocab"]:
        device = self.model.device
        self.width += 1
        features, self.cache = self.model.features(
            tokens[:, None].to(device),
            attention=self.seen[:, : self.width],
            positions=positions[:, None].to(device),
            cache=self.cache,
            use_cache=True,
        )
        return self.model.logits(features[:, -1]).float()

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        rows = rows.to(self.model.device)
        self.cache.batch_select_indices(rows)
        self.seen = self.seen.index_select(0, rows)


@dataclass
class TransformersNetwork:
    """The model's forward pass over right-padded sequences, in the precision of the products."""

    model: CausalModel
    precision: torch.dtype
    value_head: nn.Linear | None = None

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def shared(self) -> int:
        return 0

    @property
    def floats_per_token(self) -> int:
        # What transformers' layers keep, whatever they are: about 20 numbers for each column of their square matrices.
        matrices = sum(p.numel() for p in self.model.module.parameters() if p.ndim >= 2)
        width = max(1, min(p.shape[-1] for p in self.model.module.parameters() if p.ndim >= 2))
        return max(1, 2 * matrices // width)

    def parameters(self) -> Iterable[nn.Parameter]:
        yield from self.model.module.parameters()
        if self.value_head is not None:
            yield from self.value_head.parameters()

    def hidden(self, sequences: Sequence[Sequence[int]]) -> Float[Tensor, "tokens width"]:
        longest, limit, device = max(map(len, sequences)), self.model.max_positions, self.model.device
        if limit is not None and longest > limit:
            raise ConfigError(f"a sequence of {longest} tokens cannot be scored: the model has {limit} positions")
        ids = torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences], device=device)
        # Causal attention looks back only: padding on the right changes nothing and needs no mask.
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            features, _ = self.model.features(ids)
        row = torch.repeat_interleave(torch.arange(len(sequences)), torch.tensor([len(s) for s in sequences]))
        column = torch.cat([torch.arange(len(s)) for s in sequences])
        return features[row.to(device), column.to(device)]

    def logits(self, hidden: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens vocab"]:
        return self.model.logits(hidden)


class TransformersPolicy:
    """Samples, scores and learns with a transformers model. ``settings`` are the fields of ``LearnerSettings``."""

    def __init__(self, model: CausalModel, tokenizer: Tokenizer, **settings: Any) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, LearnerSettings(**settings)
        self.network = TransformersNetwork(model, self.settings.precision)
        self.learner = Learner(self.network, self.settings)
        self._completer = Completer(tokenizer=tokenizer, max_positions=model.max_positions)
        self._fast: CausalModel | None = None
        self._fast_version = -1

    @property
    def version(self) -> int:
        return self.learner.version

    @property
    def precision(self) -> torch.dtype:
        return self.settings.precision

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.module.parameters())

    def weights_sha256(self) -> str:
        tensors: dict[str, Tensor] = dict(self.model.module.named_parameters())  # tied ones once, as in the native hash
        if self.network.value_head is not None:
            tensors |= {f"value_head.{k}": v for k, v in self.network.value_head.state_dict().items()}
        return tensors_sha256(tensors)

    # ------------------------------------------------------------------ the primitives

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        return self._completer.encode(prompt)

    def sample(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: Sampling,
        tag: Tag,
        *,
        respond: Respond | None = None,
        logit_mask: LogitMask | None = None,
        interrupted: Callable[[], bool] = never,
    ) -> list[Completion]:
        stepper = TransformersStepper(self._sampler(), cache_bytes=self.settings.cache_bytes)
        hooks = Hooks(respond=respond, logit_mask=logit_mask, interrupted=interrupted)
        return self._completer.complete(stepper, prompts, n, sampling, tag, version=self.version, hooks=hooks)

    def logprobs(
        self, items: Sequence[tuple[Sequence[int], Sequence[int]]], *, temperature: float = 1.0
    ) -> list[NDArray[np.float32]]:
        return self.learner.logprobs(items, temperature=temperature)

    def values(self, items: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[NDArray[np.float32]]:
        return self.learner.values(items)

    def forward_backward(self, batch: TokenBatch, loss: LossFn) -> dict[str, float]:
        return self.learner.forward_backward(batch, loss)

    def optim_step(self, lr: float) -> dict[str, float]:
        return self.learner.optim_step(lr)

    # ------------------------------------------------------------------ weights

    def _sampler(self) -> CausalModel:
        """The model in the precision of the products, brought up to date once per version."""
        if self.precision == torch.float32:
            return self.model
        if self._fast is None:
            self._fast = self.model.in_precision(self.precision)
        elif self._fast_version != self.version:
            self._fast.module.load_state_dict(self.model.module.state_dict())
        self._fast_version = self.version
        return self._fast

    def add_value_head(self) -> None:
        if self.network.value_head is None:
            self.network.value_head = self.model.new_value_head()
            self.learner.forget()

    def add_lora(self, rank: int, alpha: float) -> None:
        raise ConfigError(
            f"lora_rank is {rank}, but the transformers backend trains all weights; set it to 0, or use the native backend "
            "with a model of the Llama family"
        )

    def frozen(self) -> TransformersPolicy:
        twin = TransformersPolicy(self.model.twin(), self.tokenizer, **vars(self.settings))
        twin.network.value_head = copy.deepcopy(self.network.value_head)
        for parameter in twin.network.parameters():
            parameter.requires_grad_(False)
        return twin

    def restart_from(self, other: TransformersPolicy) -> None:
        self.model.module.load_state_dict(other.model.module.state_dict())
        if self.network.value_head is not None and other.network.value_head is not None:
            self.network.value_head.load_state_dict(other.network.value_head.state_dict())
        self._fast_version = -1
        self.learner.forget()

    def follow(self, other: TransformersPolicy) -> None:
        self.restart_from(other)
        self.learner.version = other.version

    # ------------------------------------------------------------------ state

    def save_pretrained(self, folder: Path) -> None:
        self.model.save(folder)
        self.tokenizer.save(folder)

    def save_state(self, folder: Path) -> None:
        self.save_pretrained(folder / "policy")
        head = self.network.value_head
        state = {**self.learner.state(), "value_head": None if head is None else head.state_dict()}
        torch.save(state, folder / "learner.pt")

    def load_state(self, folder: Path) -> None:
        state = torch.load(folder / "learner.pt", map_location="cpu", weights_only=True)
        self.model.module.load_state_dict(read_model(folder / "policy").module.state_dict())
        if state["value_head"] is not None:
            self.add_value_head()
            assert self.network.value_head is not None
            self.network.value_head.load_state_dict(state["value_head"])
        self._fast_version = -1
        self.learner.restore(state)
