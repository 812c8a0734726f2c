"""The native policy: our decoder behind the policy protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from triloop.errors import ConfigError, WorkError
from triloop.learn.batch import Batch, TokenOutputs, micro_batches
from triloop.learn.choices import OptimConfig
from triloop.learn.update import LossFn, add_sums, summarise
from triloop.nn.decoder import Decoder, KVCache, packing
from triloop.nn.lora import effective_state, lora_modules
from triloop.nn.hf_io import load_pretrained, save_pretrained
from triloop.nn.tokenizer import Tokenizer
from triloop.policies.engine import LogitMask, Request, Respond, generate
from triloop.policies.protocol import Tag, completion_of, sample_key
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Prompt

__all__ = ["NativePolicy", "NativeStepper", "pick_precision"]

_CACHE_BYTES = 2 << 30


def pick_precision(name: str) -> torch.dtype:
    """``fp32``, ``bf16``, or ``auto``: bf16 where the processor multiplies it natively (AMX, CUDA), else fp32."""
    if name == "auto":
        amx = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
        name = "bf16" if amx or torch.cuda.is_available() else "fp32"
    try:
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    except KeyError:
        raise ConfigError(f"precision is {name!r}; expected auto, fp32 or bf16") from None


class NativeStepper:
    """A decoder and its cache, advanced by the engine. Prompts that are alike are computed once."""

    refills = True

    def __init__(self, decoder: Decoder, prefill_tokens: int = 16384) -> None:
        self.decoder, self.prefill_tokens = decoder, prefill_tokens

    def open(self, rows: int, length: int) -> None:
        d = self.decoder
        self.cache = KVCache(d.config, rows, length, d.dtype, d.device)

    def admit(self, prompts: Sequence[tuple[int, ...]], rows: Sequence[int]) -> Float[Tensor, "new vocab"]:
        device = self.decoder.device
        distinct = list(dict.fromkeys(prompts))
        place = {p: i for i, p in enumerate(distinct)}
        logits: list[Tensor] = []
        width = max(len(p) for p in distinct)
        for first in range(0, len(distinct), max(1, self.prefill_tokens // width)):
            part = distinct[first : first + max(1, self.prefill_tokens // width)]
            longest = max(len(p) for p in part)
            ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in part], device=device)
            lengths = torch.tensor([len(p) for p in part], device=device)
            out, cache = self.decoder.prefill(ids, lengths)
            logits.append(out)
            mine = [(r, place[p] - first) for r, p in zip(rows, prompts, strict=True) if first <= place[p] < first + len(part)]
            target, source = (torch.tensor(x, device=device) for x in zip(*mine, strict=True))
            self.cache.place(target, source, cache)
        return torch.cat(logits).index_select(0, torch.tensor([place[p] for p in prompts], device=device))

    def step(
        self, tokens: Int[Tensor, " rows"], positions: Int[Tensor, " rows"], span: int
    ) -> Float[Tensor, "rows vocab"]:
        device = self.decoder.device
        return self.decoder.decode(tokens.to(device), positions.to(device), self.cache, span).float()

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        self.cache.keep(rows.to(self.decoder.device))


class NativePolicy:
    """Samples, scores and learns with one decoder. Weights and optimiser are fp32; ``precision`` is that of the products.

    ``micro_tokens`` bounds the tokens of one forward and backward pass, and with them the memory. ``temperature`` is the one
    that completions are sampled at, so that the learner differentiates what was sampled; ``entropy`` is whether losses
    are shown the entropy.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        optim: OptimConfig | None = None,
        precision: torch.dtype = torch.float32,
        micro_tokens: int = 16384,
        temperature: float = 1.0,
        entropy: bool = True,
    ) -> None:
        self.decoder, self.tokenizer, self.optim_config = decoder, tokenizer, optim or OptimConfig()
        self.precision, self.micro_tokens, self.temperature = precision, micro_tokens, temperature
        self.entropy = entropy
        self.version = 0
        self._optimiser: torch.optim.AdamW | None = None
        self._fast: tuple[int, Decoder] | None = None

    @classmethod
    def load(cls, path: str | Path, **settings: Any) -> NativePolicy:
        """From a Hugging Face directory."""
        decoder, tokenizer = load_pretrained(Path(path))
        return cls(decoder, tokenizer, **settings)

    def frozen(self) -> NativePolicy:
        """A copy that does not learn: the reference of a KL term, or the original of a canary."""
        copy = Decoder(self.decoder.config)
        if self.decoder.value_head is not None:
            copy.add_value_head()
        copy.load_state_dict(self.decoder.state_dict())
        copy.requires_grad_(False)
        return NativePolicy(
            copy, self.tokenizer, precision=self.precision, micro_tokens=self.micro_tokens, temperature=self.temperature
        )

    def restart_from(self, other: NativePolicy) -> None:
        """Take the weights of another policy and forget the optimiser's memory. The version goes on counting."""
        own = self.decoder.state_dict()
        self.decoder.load_state_dict({**own, **{k: v for k, v in other.decoder.state_dict().items() if k in own}})
        self._optimiser = None
        self._fast = None

    # ------------------------------------------------------------------ sampling

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        if prompt.turns:
            return tuple(self.tokenizer.encode(self.tokenizer.render(prompt.turns), add_special=False))
        return tuple(self.tokenizer.encode(prompt.text))

    def sample(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: Sampling,
        tag: Tag,
        *,
        respond: Respond | None = None,
        logit_mask: LogitMask | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """``n`` completions of every prompt, prompt by prompt. The prompt of a group is computed once."""
        encoded = [self.encode(p) for p in prompts]
        for prompt, ids in zip(prompts, encoded, strict=True):
            self._check_length(prompt, ids, sampling)
        requests = [
            Request(ids, sample_key(tag, p.id, i)) for p, ids in zip(prompts, encoded, strict=True) for i in range(n)
        ]
        stepper = NativeStepper(self._sampler())
        done = generate(
            stepper, requests, sampling, self.tokenizer, respond=respond, logit_mask=logit_mask, interrupted=interrupted
        )
        return [
            completion_of(g, prompts[i // n], requests[i].prompt, tag, i % n, self.version) for i, g in enumerate(done)
        ]

    def _check_length(self, prompt: Prompt, ids: tuple[int, ...], sampling: Sampling) -> None:
        limit = self.decoder.config.max_positions
        if not ids:
            raise ConfigError(f"prompt {prompt.id!r} has no tokens; a causal model needs at least one to continue")
        if len(ids) + sampling.max_tokens > limit:
            raise ConfigError(
                f"prompt {prompt.id!r} has {len(ids)} tokens and sampling.max_tokens is {sampling.max_tokens}, but the model "
                f"has {limit} positions; shorten the prompt or lower max_tokens"
            )

    def _sampler(self) -> Decoder:
        """The decoder in the precision of the products, made once per version."""
        if self.precision == self.decoder.dtype and not lora_modules(self.decoder):
            return self.decoder
        if self._fast is None or self._fast[0] != self.version:
            fast = Decoder(self.decoder.config)
            fast.load_state_dict({k: v for k, v in effective_state(self.decoder).items() if not k.startswith("value_head")})
            self._fast = (self.version, fast.to(self.precision).requires_grad_(False))
        return self._fast[1]

    # ------------------------------------------------------------------ scoring

    def _hidden(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Tensor, Tensor, list[int]]:
        """Hidden states that predict the completion tokens, those tokens, and how many each row has."""
        sequences = [[*p, *t] for p, t in rows]
        # The last token predicts nothing that is asked for: it is never computed.
        lengths = [len(s) - 1 for s in sequences]
        device = self.decoder.device
        ids = torch.tensor([t for s in sequences for t in s[:-1]], device=device)
        where = packing(lengths, device)
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            hidden = self.decoder.packed(ids, where)
        counts = [len(t) for _, t in rows]
        ends = np.cumsum(lengths)
        pick = torch.tensor(np.concatenate([np.arange(e - c, e) for e, c in zip(ends, counts, strict=True)]), device=device)
        targets = torch.tensor([t for _, ts in rows for t in ts], device=device)
        return hidden.index_select(0, pick), targets, counts

    def _outputs(self, batch: Batch) -> TokenOutputs:
        rows = list(zip(batch.prompt_tokens, batch.tokens, strict=True))
        hidden, targets, counts = self._hidden(rows)
        logps, entropies = _token_statistics(self.decoder, hidden, targets, self.temperature, self.entropy)
        head = self.decoder.value_head
        values = None if head is None else head(hidden.float())[:, 0]
        shape = tuple(batch.mask.shape)
        where = torch.tensor([b * shape[1] + t for b, c in enumerate(counts) for t in range(c)], device=hidden.device)

        def unpack(x: Tensor) -> Tensor:
            return x.new_zeros(shape[0] * shape[1]).index_copy(0, where, x).view(shape)

        return TokenOutputs(
            logp=unpack(logps),
            entropy=unpack(entropies) if self.entropy else None,
            values=None if values is None else unpack(values),
        )

    @torch.no_grad()
    def logprobs(
        self, items: Sequence[tuple[Sequence[int], Sequence[int]]], *, temperature: float = 1.0
    ) -> list[NDArray[np.float32]]:
        """Log p (nats) of every completion token; long lists are scored in pieces of ``micro_tokens``."""
        out: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(items)
        for piece in _pieces([len(p) + len(t) for p, t in items], self.micro_tokens):
            rows = [items[i] for i in piece]
            hidden, targets, counts = self._hidden(rows)
            logps, _ = _token_statistics(self.decoder, hidden, targets, temperature, False)
            for i, part in zip(piece, logps.split(counts), strict=True):
                out[i] = part.float().cpu().numpy()
        return out

    @torch.no_grad()
    def values(self, items: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[NDArray[np.float32]]:
        """The value head's estimate before every completion token."""
        head = self.decoder.value_head
        if head is None:
            raise ConfigError("this policy has no value head; PPO adds one when the run starts")
        out: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(items)
        for piece in _pieces([len(p) + len(t) for p, t in items], self.micro_tokens):
            hidden, _, counts = self._hidden([items[i] for i in piece])
            for i, part in zip(piece, head(hidden.float())[:, 0].split(counts), strict=True):
                out[i] = part.cpu().numpy()
        return out

    # ------------------------------------------------------------------ learning

    def forward_backward(self, batch: Batch, loss: LossFn) -> dict[str, float]:
        """Accumulate the gradient over micro-batches: the same as one big batch, in bounded memory."""
        sums: dict[str, Tensor] = {}
        for micro in micro_batches(batch, self.micro_tokens):
            value, part = loss(self._outputs(micro), micro, batch.denominators)
            if not torch.isfinite(value):
                raise WorkError(
                    f"the loss became {value.item()} at policy version {self.version}; lower --optim.lr and start from an "
                    "earlier checkpoint"
                )
            value.backward()
            sums = add_sums(sums, part)
        return summarise(sums)

    def optim_step(self, lr: float) -> dict[str, float]:
        c = self.optim_config
        optimiser = self._adamw()
        parameters = [p for g in optimiser.param_groups for p in g["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, c.max_grad_norm if c.max_grad_norm > 0 else float("inf"))
        for group in optimiser.param_groups:
            group["lr"] = lr
        if torch.isfinite(norm):
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        self.version += 1
        return {"grad_norm": float(norm), "lr": lr}

    def _adamw(self) -> torch.optim.AdamW:
        if self._optimiser is None:
            c = self.optim_config
            trainable = [p for p in self.decoder.parameters() if p.requires_grad]
            groups = [
                {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": c.weight_decay},
                {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
            ]
            groups = [g for g in groups if g["params"]]
            self._optimiser = torch.optim.AdamW(groups, lr=c.lr, betas=tuple(c.betas), eps=c.eps, fused=True)
        return self._optimiser

    # ------------------------------------------------------------------ state

    def save_pretrained(self, folder: Path) -> None:
        """A Hugging Face directory."""
        save_pretrained(folder, self.decoder, self.tokenizer)

    def save_state(self, folder: Path) -> None:
        self.save_pretrained(folder / "policy")
        state: dict[str, Any] = {"optimiser": self._adamw().state_dict(), "version": self.version}
        if lora_modules(self.decoder):
            # The directory holds the merged weights; going on needs the base and the adapters apart.
            state["decoder"] = self.decoder.state_dict()
        torch.save(state, folder / "learner.pt")

    def load_state(self, folder: Path) -> None:
        state = torch.load(folder / "learner.pt", weights_only=True)
        weights = state.get("decoder")
        if weights is None:
            weights = load_pretrained(folder / "policy")[0].state_dict()
        self.decoder.load_state_dict(weights)
        self._optimiser = None
        self._adamw().load_state_dict(state["optimiser"])
        self.version = int(state["version"])
        self._fast = None


def _token_statistics(
    decoder: Decoder, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor]:
    """Log p of the targets and entropy of the distribution they come from, both [n], in nats and fp32."""
    logits = decoder.logits(hidden.to(decoder.dtype)).float()
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    all_logps = torch.log_softmax(logits, dim=-1)
    logps = all_logps.gather(1, targets[:, None])[:, 0]
    entropies = -(all_logps.exp() * all_logps).sum(-1) if entropy else torch.zeros_like(logps)
    return logps, entropies


def _pieces(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices in pieces of at most ``limit`` tokens, longest together so that attention pads little."""
    pieces: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not pieces or room < lengths[i]:
            pieces.append([])
            room = limit
        pieces[-1].append(i)
        room -= lengths[i]
    return pieces
