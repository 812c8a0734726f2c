"""The native policy: our decoder behind the policy protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from triloop.kernels import native
from triloop.learn.batch import TokenBatch
from triloop.learn.update import LossFn
from triloop.nn.answers import Answers, numbers_per_token
from triloop.nn.decoder import COMPILED, Answer, Decoder, multiplied
from triloop.nn.lora import add_lora, effective_state, lora_modules, merge_lora
from triloop.nn.packing import Packing, prefix_tree
from triloop.nn.tokenizer import Tokenizer
from triloop.policies.completions import Completer
from triloop.policies.engine import Hooks, LogitMask, Respond, never
from triloop.policies.formats.bitnet_read import is_bitnet, load_bitnet
from triloop.policies.formats.fixed import fixed_linears
from triloop.policies.formats.packed import is_packed, load_packed
from triloop.policies.formats.weights import fixed_sha256
from triloop.policies.learner import Learner, LearnerSettings, pick_precision
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.policies.stepper import NativeStepper
from triloop.policies.ternary import int8_headed, load_directory, save_directory, sha256, ternarised, twin
from triloop.records import Completion, Prompt
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import linears

__all__ = ["NativeNetwork", "NativePolicy", "NativeStepper", "pick_precision"]


@dataclass(frozen=True)
class NativeNetwork:
    """The decoder's packed forward pass, in the precision of the products."""

    decoder: Decoder
    precision: torch.dtype
    known: Callable[[Sequence[Sequence[int]], Packing], Answer | None] | None = None
    """What need not be computed again of a pack of these sequences."""

    @property
    def vocab_size(self) -> int:
        return self.decoder.config.vocab_size

    @property
    def floats_per_token(self) -> int:
        c = self.decoder.config
        return c.num_layers * (4 * c.hidden_size + c.qkv_size + c.num_heads * c.head_dim + 3 * c.intermediate_size)

    @property
    def shared(self) -> int:
        return COMPILED if native.available() else 0

    @property
    def value_head(self) -> nn.Module | None:
        return self.decoder.value_head

    def parameters(self) -> Iterable[nn.Parameter]:
        return self.decoder.parameters()

    def hidden(self, sequences: Sequence[Sequence[int]]) -> Float[Tensor, "tokens width"]:
        device = self.decoder.device
        ids, where = prefix_tree(sequences, device)
        answer = None if self.known is None else self.known(sequences, where)
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            return self.decoder.packed(ids, where, answer or multiplied)

    def logits(self, hidden: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens vocab"]:
        return self.decoder.logits(hidden.to(self.decoder.dtype))


class NativePolicy:
    """Samples, scores and learns with one decoder. ``settings`` are the fields of ``LearnerSettings``."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, **settings: Any) -> None:
        self.decoder, self.tokenizer, self.settings = decoder, tokenizer, LearnerSettings(**settings)
        self.learner = Learner(NativeNetwork(decoder, self.settings.precision, self._known), self.settings)
        self._answers: Answers | None = None
        self._completer = Completer(tokenizer=tokenizer, max_positions=decoder.config.max_positions)
        self._fast: Decoder | None = None
        self._fast_version = -1
        self._stepper: NativeStepper | None = None

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu", **settings: Any) -> NativePolicy:
        """From a Hugging Face directory, of BitNet too, or one of packed weights (``triloop export --format packed``)."""
        if is_packed(path) or is_bitnet(path):
            decoder, tokenizer = (load_packed if is_packed(path) else load_bitnet)(path)
            settings["precision"] = torch.float32  # the products are of whole numbers; what lies between them is fp32
        else:
            decoder, tokenizer = load_directory(path)
        return cls(decoder.to(device), tokenizer, **settings)

    @property
    def version(self) -> int:
        return self.learner.version

    @property
    def precision(self) -> torch.dtype:
        return self.settings.precision

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    @property
    def parameters(self) -> int:
        return self.decoder.config.parameters

    def weights_sha256(self) -> str:
        return fixed_sha256(self.decoder) if fixed_linears(self.decoder) else sha256(self.decoder)

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
        sampler = self._sampler()
        if self._stepper is None or self._stepper.decoder is not sampler:
            self._stepper = NativeStepper(sampler, cache_bytes=self.settings.cache_bytes)
        self._stepper.answers = self._kept_for(sampler) if tag.learned else None
        hooks = Hooks(respond=respond, logit_mask=logit_mask, interrupted=interrupted)
        done = self._completer.complete(self._stepper, prompts, n, sampling, tag, version=self.version, hooks=hooks)
        self._stepper.rest()
        return done

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

    # ------------------------------------------------------------------ what the sampler computed

    def _kept_for(self, sampler: Decoder) -> Answers | None:
        """Room for what this sampler computes and the learner would compute again; None where there is none."""
        if sampler is not self.decoder or self.device.type != "cpu":
            return None
        if self._answers is None:
            token = 4 * numbers_per_token(self.decoder.config)
            room = self.settings.keep_bytes
            if room < 0:
                room = 10 * self.learner.network.floats_per_token * self.learner.micro_tokens  # 2.5 times a pass's
            if room < token:
                return None
            self._answers = Answers(self.decoder.config, room // token)
        self._answers.begin(self._stamp())
        return self._answers

    @property
    def kept_tokens(self) -> int:
        """Tokens of the last samples to learn from whose answers the learner need not compute."""
        return 0 if self._answers is None else self._answers.tokens

    def _known(self, sequences: Sequence[Sequence[int]], where: Packing) -> Answer | None:
        return None if self._answers is None else self._answers.find(self._stamp(), sequences, where)

    def _stamp(self) -> object:
        """Changes with every weight: fused optimisers do not count theirs (torch 2.13), the version does."""
        return self.version, *((p.data_ptr(), p._version) for p in self.decoder.parameters())

    # ------------------------------------------------------------------ weights

    def _sampler(self) -> Decoder:
        """The decoder in the precision of the products and without adapters, brought up to date once per version."""
        exact = self.precision == self.decoder.dtype or bool(linears(self.decoder))  # codes are the fast way already
        if exact and not lora_modules(self.decoder):
            return self.decoder
        if self._fast is None:
            self._fast = Decoder(self.decoder.config).to(self.decoder.device, self.precision).requires_grad_(False)
            self._fast_version = -1
        if self._fast_version != self.version:
            state = effective_state(self.decoder)
            self._fast.load_state_dict({k: v for k, v in state.items() if not k.startswith("value_head.")})
            self._fast_version = self.version
        return self._fast

    def add_value_head(self) -> None:
        if self.decoder.value_head is None:
            self.decoder.add_value_head()
            self.learner.forget()

    def add_lora(self, rank: int, alpha: float) -> None:
        add_lora(self.decoder, rank=rank, alpha=alpha)
        self._fast_version = -1
        self.learner.forget()

    def ternarise(self, config: TernaryConfig) -> None:
        """Quantise the layers' linears from now on, and the head if asked; the weights train on behind their codes."""
        ternarised(self.decoder, config)
        self._stepper = self._answers = None  # they hold calls of the products as they were, and what they answered
        self.learner.forget()

    def use_int8_head(self) -> None:
        """Quantise the output head of a ternary policy from now on; nothing happens where it is."""
        int8_headed(self.decoder)
        self._stepper = None

    def frozen(self) -> NativePolicy:
        copy = merge_lora(twin(self.decoder)).requires_grad_(False)
        return NativePolicy(copy, self.tokenizer, **vars(self.settings))

    def restart_from(self, other: NativePolicy) -> None:
        own, theirs = self.decoder.state_dict(), {**other.decoder.state_dict(), **effective_state(other.decoder)}
        self.decoder.load_state_dict({**own, **{k: v for k, v in theirs.items() if k in own}})
        for adapter in lora_modules(self.decoder).values():
            nn.init.zeros_(adapter.lora_b)  # an adapter that adds nothing
        self._fast_version = -1
        self.learner.forget()

    def follow(self, other: NativePolicy) -> None:
        self.restart_from(other)
        self.learner.version = other.version

    # ------------------------------------------------------------------ state

    def save_pretrained(self, folder: Path) -> None:
        save_directory(folder, self.decoder, self.tokenizer)

    def save_state(self, folder: Path) -> None:
        self.save_pretrained(folder / "policy")
        state = self.learner.state()
        if lora_modules(self.decoder):
            # The directory holds the merged weights; going on needs the base and the adapters apart.
            state["decoder"] = self.decoder.state_dict()
        torch.save(state, folder / "learner.pt")

    def load_state(self, folder: Path) -> None:
        state = torch.load(folder / "learner.pt", map_location="cpu", weights_only=True)
        weights = state.get("decoder")
        if weights is None:
            weights = load_directory(folder / "policy")[0].state_dict()
        self.decoder.load_state_dict(weights)
        self._fast_version = -1
        self.learner.restore(state)
