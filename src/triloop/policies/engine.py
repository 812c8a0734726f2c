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
from triloop.errors import WorkError
from triloop.nn.tokenizer import Tokenizer
from triloop.policies.draw import draw
from triloop.policies.sampling import Sampling
from triloop.policies.turns import TurnReader
from triloop.records import Finish

__all__ = ["Generated", "Hooks", "LogitMask", "Request", "Respond", "Stepper", "generate", "never"]

LogitMask = Callable[[int, Sequence[int]], "Bool[Tensor, ' vocab']"]
"""(request number, tokens of its present turn) -> tokens it may draw next; at least one."""

Respond = Callable[[int, str], "Sequence[int] | None"]
"""(request number, text of the turn that just ended) -> tokens of the observation, or None when the episode is over."""


def never() -> bool:
    """Nobody interrupts."""
    return False


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to generate."""

    prompt: tuple[int, ...]
    key: int
    """Counter-based key of its randomness (``rng.key``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What may reach into a generation."""

    respond: Respond | None = None
    """Makes episodes of several turns."""
    logit_mask: LogitMask | None = None
    """Forces a grammar."""
    interrupted: Callable[[], bool] = never
    """Asked once a step; when it says yes everything in flight is returned as it is, with finish ``interrupted``."""


@dataclass(slots=True)
class Generated:
    """What came of a request: tokens in order, observations included (mask false, log-probability 0)."""

    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    text: str = ""
    finish: Finish = "length"
    drawn: int = 0
    """Tokens that the policy chose."""

    def add(self, tokens: Sequence[int], logps: Sequence[float], *, own: bool) -> None:
        self.tokens += tokens
        self.logps += logps
        self.mask += [own] * len(tokens)
        self.drawn += own * len(tokens)


class Stepper(Protocol):
    """A model that advances rows. Rows are numbered 0..rows-1; ``keep`` renumbers them."""

    refills: bool
    """Whether rows can be admitted while others are half way."""

    @property
    def vocab_size(self) -> int: ...

    def open(self, rows: int, length: int) -> int:
        """Make room for up to this many rows of up to ``length`` positions, empty; returns for how many (at least 1)."""
        ...

    def admit(self, prompts: Sequence[tuple[int, ...]], rows: Sequence[int]) -> Float[Tensor, "new vocab"]:
        """Start these prompts in these rows; logits after each prompt's last token."""
        ...

    def step(
        self, tokens: Int[Tensor, " rows"], positions: Int[Tensor, " rows"], span: int
    ) -> Float[Tensor, "rows vocab"]:
        """Append ``tokens[r]`` at ``positions[r]`` (below ``span``) of every row and return the next logits.

        Position 0 says that a row is free: its token and its logits mean nothing.
        """
        ...

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Forget every row but these."""


def generate(
    stepper: Stepper,
    requests: Sequence[Request],
    sampling: Sampling,
    tokenizer: Tokenizer,
    hooks: Hooks | None = None,
    *,
    max_positions: int | None = None,
) -> list[Generated]:
    """Generate one completion per request, in the order of the requests.

    An episode of several turns that reaches ``max_positions`` tokens ends there, with finish ``length``.
    """
    if not requests:
        return []
    hooks = hooks or Hooks()
    run = _Generation(stepper, requests, sampling, TurnReader(tokenizer, sampling.stop, stepper.vocab_size), hooks)
    run.max_positions = max_positions or run.max_positions
    while run.busy:
        run.refill()
        run.advance()
        if hooks.interrupted():
            run.abandon()
            break
    return run.results


class _Rows:
    """The rows in flight: who sits where and what they have drawn. All tensors lie on the processor."""

    def __init__(self, rows: int, limit: int) -> None:
        self.request = [-1] * rows
        self.live = torch.zeros(rows, dtype=torch.bool)
        self.count = torch.zeros(rows, dtype=torch.long)  # tokens drawn in this turn
        self.before = torch.zeros(rows, dtype=torch.long)  # tokens drawn in earlier turns
        self.left = torch.zeros(rows, dtype=torch.long)  # most tokens of this turn
        self.position = torch.zeros(rows, dtype=torch.long)  # where the next token goes
        self.tokens = torch.zeros(rows, limit, dtype=torch.long)
        self.logps = torch.zeros(rows, limit)
        self.uniform = torch.zeros(rows, limit)
        self.every = torch.arange(rows)

    def __len__(self) -> int:
        return len(self.request)

    def keep(self, rows: Tensor) -> None:
        self.request = [self.request[r] for r in rows.tolist()]
        for name in ("live", "count", "before", "left", "position", "tokens", "logps", "uniform"):
            setattr(self, name, getattr(self, name).index_select(0, rows))
        self.every = self.every[: len(rows)]


class _Generation:
    """The state of one call of ``generate``."""

    def __init__(
        self, stepper: Stepper, requests: Sequence[Request], sampling: Sampling, reader: TurnReader, hooks: Hooks
    ) -> None:
        self.stepper, self.requests, self.sampling, self.reader, self.hooks = stepper, requests, sampling, reader, hooks
        self.results = [Generated() for _ in requests]
        self.queue = deque((i, r.prompt) for i, r in enumerate(requests))
        self.rows = _Rows(0, 0)
        self.logits = torch.zeros(0, stepper.vocab_size)
        self.length = 0
        self.max_positions = 1 << 62
        self.allowed: Tensor | None = None
        if sampling.banned_tokens or hooks.logit_mask is not None:
            self.allowed = torch.ones(1, stepper.vocab_size, dtype=torch.bool)
            self.allowed[:, list(sampling.banned_tokens)] = False

    @property
    def busy(self) -> bool:
        return bool(self.queue) or bool(self.rows.live.any())

    # ------------------------------------------------------------------ who sits where

    def refill(self) -> None:
        """Give free rows to waiting requests; drop free rows when nobody waits and they are many."""
        rows, live = self.rows, int(self.rows.live.sum())
        free = len(rows) - live
        if live == 0:
            self._open()
        elif self.queue and self.stepper.refills:
            # A few at a time: each admission is a forward pass of its own.
            if free >= max(1, len(rows) // 8) and self._need(*self.queue[0]) <= self.length:
                self._admit(torch.nonzero(~rows.live)[:, 0].tolist())
        elif free > len(rows) // 4:
            kept = torch.nonzero(rows.live)[:, 0]
            self.stepper.keep(kept)
            rows.keep(kept)
            self.logits = self.logits.index_select(0, kept.to(self.logits.device))

    def _need(self, number: int, prompt: tuple[int, ...]) -> int:
        """Positions that the rest of this episode may take."""
        return min(len(prompt) + self.sampling.max_tokens - self.results[number].drawn, self.max_positions)

    def _open(self) -> None:
        self.length = max(self._need(*waiting) for waiting in self.queue)
        count = self.stepper.open(min(self.sampling.slots, len(self.queue)), self.length)
        self.rows = _Rows(count, self.sampling.max_tokens)
        self.logits = self.logits[:0]
        self._admit(list(range(count)))

    def _admit(self, free: list[int]) -> None:
        rows, taken, numbers, prompts = self.rows, [], [], []
        for row in free:
            # Observations can make an episode outgrow the open cache; it waits for the next one.
            if not self.queue or self._need(*self.queue[0]) > self.length:
                break
            number, prompt = self.queue.popleft()
            taken.append(row)
            numbers.append(number)
            prompts.append(prompt)
            rows.request[row] = number
        fresh = self.stepper.admit(prompts, taken).float()
        index = torch.tensor(taken)
        if len(self.logits) == 0:
            self.logits = fresh.new_zeros(len(rows), fresh.shape[1])
        self.logits[index.to(fresh.device)] = fresh
        keys = np.array([self.requests[n].key for n in numbers], dtype=np.uint64)
        rows.uniform[index] = torch.from_numpy(rng.uniforms(keys, 0, self.sampling.max_tokens)).float()
        lengths = torch.tensor([len(p) for p in prompts])
        rows.live[index] = True
        rows.count[index] = 0
        rows.before[index] = torch.tensor([self.results[n].drawn for n in numbers])
        rows.left[index] = torch.tensor([self._need(*x) for x in zip(numbers, prompts, strict=True)]) - lengths
        rows.position[index] = lengths

    # ------------------------------------------------------------------ one token

    def advance(self) -> None:
        """Draw one token for every row, retire those that are done, step the model for the others.

        Free rows go along: their tokens were collected, and nobody reads what they draw.
        """
        rows = self.rows
        at = rows.count.clamp(max=self.sampling.max_tokens - 1)
        place = (rows.before + at).clamp_(max=self.sampling.max_tokens - 1)
        uniform = rows.uniform.gather(1, place[:, None])[:, 0].to(self.logits.device)
        drawn, logp = draw(self.logits, uniform, self.sampling, self._allowed())
        token = drawn.cpu()
        rows.tokens[rows.every, at] = token
        rows.logps[rows.every, at] = logp.cpu()
        rows.count += rows.live
        stopped = rows.live & (self.reader.ends_at[token] | self._stopped(token))
        done = torch.nonzero(stopped | (rows.live & (rows.count >= rows.left)))[:, 0]
        if len(done):
            self._retire(done, stopped[done].tolist())
        live = rows.live
        if bool(live.any()):
            position = rows.position * live
            self.logits = self.stepper.step(token, position, int(position.max()) + 1)
            rows.position += live

    def _stopped(self, token: Tensor) -> Tensor:
        """Rows whose text has just reached a stop sequence."""
        hit = self.rows.live & self.reader.stops_at[token]
        if self.sampling.stop:
            for row in torch.nonzero(hit)[:, 0].tolist():
                hit[row] = self.reader.stopped(self._turn(row))
        return hit

    def _turn(self, row: int) -> list[int]:
        turn: list[int] = self.rows.tokens[row, : int(self.rows.count[row])].tolist()
        return turn

    def _allowed(self) -> Bool[Tensor, "#rows vocab"] | None:
        """Tokens that each row may draw; None for all of them."""
        if self.allowed is None or self.hooks.logit_mask is None:
            return None if self.allowed is None else self.allowed.to(self.logits.device)
        allowed = self.allowed.repeat(len(self.rows), 1)
        for row in torch.nonzero(self.rows.live)[:, 0].tolist():
            turn = self._turn(row)
            allowed[row] &= self.hooks.logit_mask(self.rows.request[row], turn).cpu()
            if not bool(allowed[row].any()):
                raise WorkError(
                    f"the logit mask allows request {self.rows.request[row]} no token after {len(turn)}; let it allow at "
                    "least the end-of-sequence token"
                )
        return allowed.to(self.logits.device)

    # ------------------------------------------------------------------ who is done

    def _collect(self, index: Tensor) -> list[tuple[int, str]]:
        """Move what these rows have drawn into their requests' results; the requests and the text of their turns."""
        rows = self.rows
        numbers = [rows.request[r] for r in index.tolist()]
        counts = rows.count[index].tolist()
        turns = [t[:n] for t, n in zip(rows.tokens[index].tolist(), counts, strict=True)]
        logps = [p[:n] for p, n in zip(rows.logps[index].tolist(), counts, strict=True)]
        texts = self.reader.read([self.requests[n].prompt + tuple(self.results[n].tokens) for n in numbers], turns)
        for number, turn, logp, text in zip(numbers, turns, logps, texts, strict=True):
            self.results[number].add(turn, logp, own=True)
            self.results[number].text += text
        rows.live[index] = False
        return list(zip(numbers, texts, strict=True))

    def _retire(self, index: Tensor, stopped: list[bool]) -> None:
        for (number, text), stop in zip(self._collect(index), stopped, strict=True):
            result = self.results[number]
            result.finish = "stop" if stop else "length"
            observation = None if self.hooks.respond is None or not stop else self.hooks.respond(number, text)
            if observation is None:
                continue
            prompt = (*self.requests[number].prompt, *result.tokens, *observation)
            if result.drawn >= self.sampling.max_tokens or len(prompt) >= self.max_positions:
                result.finish = "length"  # the episode would go on, and there is no room
                continue
            result.add(list(observation), [0.0] * len(observation), own=False)
            self.queue.append((number, prompt))

    def abandon(self) -> None:
        """Collect what is in flight and forget who waits."""
        numbers = [n for n, _ in self._collect(torch.nonzero(self.rows.live)[:, 0])]
        for number in (*numbers, *(n for n, _ in self.queue)):
            self.results[number].finish = "interrupted"
        self.queue.clear()
