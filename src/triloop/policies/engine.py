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
from numpy.typing import NDArray
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
    if hooks.respond is None:  # no turn was read as it ended: all at once is faster
        texts = run.reader.read([r.prompt for r in requests], [g.tokens for g in run.results])
        for result, text in zip(run.results, texts, strict=True):
            result.text = text
    return run.results


class _Rows:
    """The rows in flight: who sits where and what they have drawn. Arrays: of this size, tensors take several times as
    long."""

    def __init__(self, rows: int, limit: int) -> None:
        self.request = np.full(rows, -1)
        self.live = np.zeros(rows, np.bool_)
        self.count = np.zeros(rows, np.int64)  # tokens drawn in this turn
        self.before = np.zeros(rows, np.int64)  # tokens drawn in earlier turns
        self.left = np.zeros(rows, np.int64)  # most tokens of this turn
        self.position = np.zeros(rows, np.int64)  # where the next token goes
        # Rows are columns of these: what a step writes lies together.
        self.tokens = np.zeros((limit, rows), np.int64)
        self.logps = np.zeros((limit, rows), np.float32)
        self.uniform = np.zeros((limit, rows), np.float32)

    def __len__(self) -> int:
        return len(self.live)

    def keep(self, rows: NDArray[np.int64]) -> None:
        for name, numbers in vars(self).items():
            setattr(self, name, numbers[..., rows])


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
        rows, live = self.rows, int(np.count_nonzero(self.rows.live))
        free = len(rows) - live
        if live == 0:
            self._open()
        elif self.queue and self.stepper.refills:
            # A few at a time: each admission is a forward pass of its own.
            if free >= max(1, len(rows) // 8) and self._need(*self.queue[0]) <= self.length:
                self._admit(np.flatnonzero(~rows.live))
        elif free > len(rows) // 4:
            kept = np.flatnonzero(rows.live)
            index = torch.from_numpy(kept)
            self.stepper.keep(index)
            rows.keep(kept)
            self.logits = self.logits.index_select(0, index.to(self.logits.device))

    def _need(self, number: int, prompt: tuple[int, ...]) -> int:
        """Positions that the rest of this episode may take."""
        return min(len(prompt) + self.sampling.max_tokens - self.results[number].drawn, self.max_positions)

    def _open(self) -> None:
        self.length = max(self._need(*waiting) for waiting in self.queue)
        count = self.stepper.open(min(self.sampling.slots, len(self.queue)), self.length)
        self.rows = _Rows(count, self.sampling.max_tokens)
        self.logits = self.logits[:0]
        self._admit(np.arange(count))

    def _admit(self, free: NDArray[np.int64]) -> None:
        rows, waiting = self.rows, list[tuple[int, tuple[int, ...]]]()
        # Observations can make an episode outgrow the open cache; it waits for the next one.
        while len(waiting) < len(free) and self.queue and self._need(*self.queue[0]) <= self.length:
            waiting.append(self.queue.popleft())
        numbers, prompts = zip(*waiting, strict=True)
        taken = free[: len(waiting)]
        fresh = self.stepper.admit(prompts, taken.tolist()).float()
        if len(self.logits) == 0:
            self.logits = fresh.new_zeros(len(rows), fresh.shape[1])
        self.logits[torch.from_numpy(taken).to(fresh.device)] = fresh
        keys = np.array([self.requests[n].key for n in numbers], dtype=np.uint64)
        lengths = np.array([len(p) for p in prompts])
        before = np.array([self.results[n].drawn for n in numbers])
        rows.request[taken] = numbers
        rows.uniform[:, taken] = rng.uniforms(keys, 0, self.sampling.max_tokens).T
        rows.live[taken] = True
        rows.count[taken] = 0
        rows.before[taken] = before
        rows.left[taken] = np.minimum(lengths + self.sampling.max_tokens - before, self.max_positions) - lengths
        rows.position[taken] = lengths

    # ------------------------------------------------------------------ one token

    def advance(self) -> None:
        """Draw one token for every row, retire those that are done, step the model for the others.

        Free rows go along: their tokens were collected, and nobody reads what they draw.
        """
        rows, every, last = self.rows, np.arange(len(self.rows)), self.sampling.max_tokens - 1
        at = np.minimum(rows.count, last)
        uniform = torch.from_numpy(rows.uniform[np.minimum(rows.before + at, last), every])
        drawn, logp = draw(self.logits, uniform.to(self.logits.device), self.sampling, self._allowed())
        drawn = drawn.cpu()
        token = drawn.numpy()
        rows.tokens[at, every] = token
        rows.logps[at, every] = logp.cpu().numpy()
        rows.count += rows.live
        stopped = rows.live & self.reader.ends_at[token]
        if self.sampling.stop:
            stopped |= self._stopped(token)
        done = np.flatnonzero(stopped | (rows.live & (rows.count >= rows.left)))
        if len(done):
            self._retire(done, stopped[done].tolist())
        if rows.live.any():
            position = rows.position * rows.live
            self.logits = self.stepper.step(drawn, torch.from_numpy(position), int(position.max()) + 1)
            rows.position += rows.live

    def _stopped(self, token: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Rows whose text has just reached a stop sequence."""
        hit = self.rows.live & self.reader.stops_at[token]
        for row in np.flatnonzero(hit).tolist():
            hit[row] = self.reader.stopped(self._turn(row))
        return hit

    def _turn(self, row: int) -> list[int]:
        turn: list[int] = self.rows.tokens[: self.rows.count[row], row].tolist()
        return turn

    def _allowed(self) -> Bool[Tensor, "#rows vocab"] | None:
        """Tokens that each row may draw; None for all of them."""
        if self.allowed is None or self.hooks.logit_mask is None:
            return None if self.allowed is None else self.allowed.to(self.logits.device)
        allowed = self.allowed.repeat(len(self.rows), 1)
        for row in np.flatnonzero(self.rows.live).tolist():
            number, turn = int(self.rows.request[row]), self._turn(row)
            allowed[row] &= self.hooks.logit_mask(number, turn).cpu()
            if not bool(allowed[row].any()):
                raise WorkError(
                    f"the logit mask allows request {number} no token after {len(turn)}; let it allow at least the "
                    "end-of-sequence token"
                )
        return allowed.to(self.logits.device)

    # ------------------------------------------------------------------ who is done

    def _collect(self, index: NDArray[np.int64]) -> list[tuple[int, str]]:
        """Move what these rows have drawn into their requests' results; the requests, and the text of their turns where
        somebody responds to it."""
        rows = self.rows
        numbers: list[int] = rows.request[index].tolist()
        turns, texts = [self._turn(row) for row in index.tolist()], [""] * len(numbers)
        if self.hooks.respond is not None:
            texts = self.reader.read([(*self.requests[n].prompt, *self.results[n].tokens) for n in numbers], turns)
        for number, turn, logps, text in zip(numbers, turns, rows.logps.T[index].tolist(), texts, strict=True):
            self.results[number].add(turn, logps[: len(turn)], own=True)
            self.results[number].text += text
        rows.live[index] = False
        return list(zip(numbers, texts, strict=True))

    def _retire(self, index: NDArray[np.int64], stopped: list[bool]) -> None:
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
        numbers = [n for n, _ in self._collect(np.flatnonzero(self.rows.live))]
        for number in (*numbers, *(n for n, _ in self.queue)):
            self.results[number].finish = "interrupted"
        self.queue.clear()
