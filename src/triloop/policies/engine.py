"""The one rollout engine: wide batches, rows refilled as they finish, a group's prompt computed once.

A ``Stepper`` knows how to advance a batch of rows by one token; the engine decides what each row draws, when it is
done, and who takes its place. Randomness is counter-based: token ``t`` of a request uses number ``t`` of the request's own
stream, whatever row it sits in and whatever its neighbours do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triloop import rng
from triloop.policies.sampling import Sampling
from triloop.records import Finish

__all__ = ["Generated", "LogitMask", "Request", "Respond", "Stepper", "TextTools", "draw", "generate"]

LogitMask = Callable[[int, Sequence[int]], "Bool[Tensor, ' vocab']"]
"""(request number, its policy tokens so far) -> tokens it may draw next."""

Respond = Callable[[int, str], "Sequence[int] | None"]
"""(request number, text of the turn that just ended) -> tokens of the observation, or None when the episode is over."""


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to generate."""

    prompt: tuple[int, ...]
    key: int
    """Counter-based key of its randomness (``rng.key``)."""


@dataclass(slots=True)
class Generated:
    """What came of a request: tokens in order, observations included (mask false, log-probability 0)."""

    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    text: str = ""
    finish: Finish = "length"

    @property
    def drawn(self) -> int:
        return sum(self.mask)


class Stepper(Protocol):
    """A model that advances rows. Rows are numbered 0..rows-1; ``keep`` renumbers them."""

    refills: bool
    """Whether rows can be admitted while others are half way."""

    def open(self, rows: int, length: int) -> None:
        """Make room for this many rows of up to ``length`` positions."""

    def admit(self, prompts: Sequence[tuple[int, ...]], rows: Sequence[int]) -> Float[Tensor, "new vocab"]:
        """Start these prompts in these rows; logits after each prompt's last token."""
        ...

    def step(
        self, tokens: Int[Tensor, " rows"], positions: Int[Tensor, " rows"], span: int
    ) -> Float[Tensor, "rows vocab"]:
        """Append ``tokens[r]`` at ``positions[r]`` of every row and return the next logits; no position reaches ``span``."""
        ...

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Forget every row but these."""


class TextTools(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def draw(
    logits: Float[Tensor, "rows vocab"], uniform: Float[Tensor, " rows"], sampling: Sampling
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Tokens by inversion of the cumulative distribution, one uniform number each, and their log-probabilities (nats).

    The log-probability is that of the full softmax at the sampling temperature (at temperature 0: of the softmax at 1),
    before top-k, top-p and min-p: the distribution whose gradient the learner takes.
    """
    scaled = logits.float() / (sampling.temperature or 1.0)
    logps = torch.log_softmax(scaled, dim=-1)
    if sampling.temperature == 0:
        token = logps.argmax(dim=-1)
    else:
        weight = _truncate(logps.exp(), sampling)
        cumulative = weight.cumsum(dim=-1)
        threshold = uniform.clamp(max=1 - 2**-24)[:, None] * cumulative[:, -1:]
        token = (cumulative <= threshold).sum(dim=-1).clamp_(max=logits.shape[-1] - 1)
    return token, logps.gather(1, token[:, None])[:, 0]


def _truncate(probability: Tensor, s: Sampling) -> Tensor:
    if s.min_p > 0:
        probability = probability * (probability >= s.min_p * probability.amax(-1, keepdim=True))
    if s.top_k > 0 or s.top_p < 1:
        ordered, order = probability.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        # A token stays while the mass before it has not reached top_p: the likeliest always stays.
        keep = before < s.top_p * ordered.sum(-1, keepdim=True) if s.top_p < 1 else torch.ones_like(ordered, dtype=torch.bool)
        if s.top_k > 0:
            keep[:, s.top_k :] = False
        probability = torch.zeros_like(probability).scatter_(1, order, ordered * keep)
    return probability


class _Rows:
    """The rows in flight: who sits where and what they have drawn."""

    def __init__(self, rows: int, limit: int) -> None:
        self.request = [-1] * rows
        self.count = torch.zeros(rows, dtype=torch.long)
        self.position = torch.zeros(rows, dtype=torch.long)
        self.tokens = torch.zeros(rows, limit, dtype=torch.long)
        self.logps = torch.zeros(rows, limit)
        self.uniform = torch.zeros(rows, limit)
        self.left = torch.zeros(rows, dtype=torch.long)
        self.live = torch.zeros(rows, dtype=torch.bool)
        self.every = torch.arange(rows)

    def keep(self, rows: Tensor) -> None:
        self.request = [self.request[r] for r in rows.tolist()]
        for name in ("count", "position", "tokens", "logps", "uniform", "left", "live"):
            setattr(self, name, getattr(self, name).index_select(0, rows))
        self.every = self.every[: len(rows)]


def generate(
    stepper: Stepper,
    requests: Sequence[Request],
    sampling: Sampling,
    tools: TextTools,
    *,
    respond: Respond | None = None,
    logit_mask: LogitMask | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[Generated]:
    """Generate one completion per request, in the order of the requests.

    ``respond`` makes episodes of several turns; ``interrupted`` is asked once a step, and when it says yes everything in
    flight is returned as it is with finish ``interrupted``.
    """
    if not requests:
        return []
    run = _Generation(stepper, requests, sampling, tools, respond, logit_mask)
    while run.busy:
        run.refill()
        run.advance()
        if interrupted():
            run.abandon()
            break
    return run.results


class _Generation:
    """The state of one call of ``generate``."""

    def __init__(
        self,
        stepper: Stepper,
        requests: Sequence[Request],
        sampling: Sampling,
        tools: TextTools,
        respond: Respond | None,
        logit_mask: LogitMask | None,
    ) -> None:
        self.stepper, self.requests, self.sampling, self.tools = stepper, requests, sampling, tools
        self.respond, self.logit_mask = respond, logit_mask
        self.results = [Generated() for _ in requests]
        self.queue = deque((i, r.prompt) for i, r in enumerate(requests))
        self.eos = torch.tensor(tools.eos_ids, dtype=torch.long)
        self.banned = torch.tensor(sampling.banned_tokens, dtype=torch.long)
        self.rows = _Rows(0, sampling.max_tokens)
        self.logits: Tensor | None = None

    @property
    def busy(self) -> bool:
        return bool(self.queue) or bool(self.rows.live.any())

    def refill(self) -> None:
        """Give free rows to waiting requests; drop free rows when nobody waits and they are many."""
        rows, live = self.rows, int(self.rows.live.sum())
        free = len(rows.request) - live
        if live == 0:
            if self.queue:
                self._open()
        elif self.queue and self.stepper.refills and free >= max(1, len(rows.request) // 8):
            if self._room():
                self._admit(torch.nonzero(~rows.live)[:, 0].tolist())
        elif free > len(rows.request) // 4 and (not self.queue or not self.stepper.refills):
            kept = torch.nonzero(rows.live)[:, 0]
            self.stepper.keep(kept)
            rows.keep(kept)
            assert self.logits is not None
            self.logits = self.logits.index_select(0, kept)

    def _open(self) -> None:
        count = min(self.sampling.slots, len(self.queue))
        waiting = self.queue if self.respond is None else list(self.queue)
        self.length = max(len(p) for _, p in waiting) + self.sampling.max_tokens
        self.stepper.open(count, self.length)
        self.rows = _Rows(count, self.sampling.max_tokens)
        self.logits = None
        self._admit(list(range(count)))

    def _room(self) -> bool:
        """Whether the next request fits the open cache; observations can make a prompt outgrow it."""
        return len(self.queue[0][1]) + self.sampling.max_tokens <= self.length

    def _admit(self, free: list[int]) -> None:
        rows, taken, prompts = self.rows, [], []
        for row in free:
            if not self.queue or not self._room():
                break
            request, prompt = self.queue.popleft()
            taken.append(row)
            prompts.append(prompt)
            rows.request[row] = request
        index = torch.tensor(taken)
        fresh = self.stepper.admit(prompts, taken).float()
        if self.logits is None:
            self.logits = fresh.new_zeros(len(rows.request), fresh.shape[1])
        self.logits[index] = fresh
        numbers = [rows.request[r] for r in taken]
        drawn = [self.results[n].drawn for n in numbers]
        keys = np.array([self.requests[n].key for n in numbers], dtype=np.uint64)
        limit = self.sampling.max_tokens
        uniform = torch.from_numpy(rng.uniforms(keys, 0, limit)).float()
        for i, shift in enumerate(drawn):
            if shift:
                uniform[i, : limit - shift] = uniform[i, shift:].clone()
        rows.uniform[index] = uniform
        rows.count[index] = 0
        rows.left[index] = limit - torch.tensor(drawn)
        rows.position[index] = torch.tensor([len(p) for p in prompts])
        rows.live[index] = True

    def advance(self) -> None:
        """Draw one token for every row, retire those that are done, step the model for the others."""
        rows, logits = self.rows, self.logits
        assert logits is not None
        if len(self.banned):
            logits[:, self.banned] = float("-inf")
        if self.logit_mask is not None:
            self._mask(logits, self.logit_mask)
        at = rows.count.clamp(max=self.sampling.max_tokens - 1)
        uniform = rows.uniform.gather(1, at[:, None])[:, 0].to(logits.device)
        token, logp = draw(logits, uniform, self.sampling)
        token, logp = token.cpu(), logp.cpu()
        rows.tokens[rows.every, at] = torch.where(rows.live, token, rows.tokens[rows.every, at])
        rows.logps[rows.every, at] = torch.where(rows.live, logp, rows.logps[rows.every, at])
        rows.count += rows.live
        ended = rows.live & torch.isin(token, self.eos)
        full = rows.live & (rows.count >= rows.left)
        if self.sampling.stop:
            ended |= self._stopped(rows.live & ~ended)
        for row in torch.nonzero(ended | full)[:, 0].tolist():
            self._retire(row, "stop" if bool(ended[row]) else "length")
        if bool(rows.live.any()):
            span = int(rows.position[rows.live].max()) + 1
            position = torch.where(rows.live, rows.position, torch.zeros_like(rows.position))
            self.logits = self.stepper.step(token, position, span)
            rows.position += rows.live

    def _mask(self, logits: Tensor, allowed: LogitMask) -> None:
        for row in torch.nonzero(self.rows.live)[:, 0].tolist():
            so_far = self.rows.tokens[row, : int(self.rows.count[row])].tolist()
            logits[row].masked_fill_(~allowed(self.rows.request[row], so_far).to(logits.device), float("-inf"))

    def _stopped(self, candidates: Tensor) -> Tensor:
        """Rows whose text ends with a stop sequence. Only the tail is decoded: a stop of n characters spans at most n tokens."""
        hit = torch.zeros_like(candidates)
        reach = max(len(s.encode()) for s in self.sampling.stop)
        for row in torch.nonzero(candidates)[:, 0].tolist():
            n = int(self.rows.count[row])
            tail = self.tools.decode(self.rows.tokens[row, max(0, n - reach - 1) : n].tolist())
            hit[row] = any(s in tail for s in self.sampling.stop)
        return hit

    def _collect(self, row: int, finish: Finish) -> tuple[int, str]:
        """Move what a row has drawn into its request's result; returns the request and the text of this turn."""
        rows = self.rows
        number, n = rows.request[row], int(rows.count[row])
        turn = rows.tokens[row, :n].tolist()
        result = self.results[number]
        result.tokens += turn
        result.logps += rows.logps[row, :n].tolist()
        result.mask += [True] * n
        result.finish = finish
        rows.live[row] = False
        text = self.tools.decode(turn)
        cut = min((at for s in self.sampling.stop if (at := text.find(s)) >= 0), default=len(text))
        result.text += text[:cut]
        return number, text[:cut]

    def _retire(self, row: int, finish: Finish) -> None:
        number, text = self._collect(row, finish)
        if self.respond is None or finish == "length":
            return
        observation = self.respond(number, text)
        if observation is None:
            return
        result = self.results[number]
        result.tokens += list(observation)
        result.logps += [0.0] * len(observation)
        result.mask += [False] * len(observation)
        self.queue.append((number, self.requests[number].prompt + tuple(result.tokens)))

    def abandon(self) -> None:
        for row in torch.nonzero(self.rows.live)[:, 0].tolist():
            self._collect(row, "interrupted")
        for number, _ in self.queue:
            self.results[number].finish = "interrupted"
        self.queue.clear()
