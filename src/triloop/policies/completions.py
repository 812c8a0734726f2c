"""From prompts to completion records, the same for every backend that the engine drives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triloop import rng
from triloop.errors import ConfigError
from triloop.nn.tokenizer import Tokenizer
from triloop.policies.engine import Generated, Hooks, Request, Stepper, generate
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Prompt, completion_id

__all__ = ["Completer", "sample_key"]


def sample_key(tag: Tag, prompt_id: str, index: int) -> int:
    """The key of a sample's random stream: a function of what the sample is, not of where or when it is drawn."""
    return rng.key(tag.seed, tag.purpose, tag.round, prompt_id, index)


@dataclass(frozen=True, kw_only=True)
class Completer:
    """Encodes prompts, runs the engine, writes records."""

    tokenizer: Tokenizer
    max_positions: int | None
    """Longest sequence that the model takes; None when it has no limit."""

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokens of a prompt, chat template applied when it has turns."""
        if prompt.turns:
            return tuple(self.tokenizer.encode(self.tokenizer.render(prompt.turns), add_special=False))
        return tuple(self.tokenizer.encode(prompt.text))

    def complete(
        self,
        stepper: Stepper,
        prompts: Sequence[Prompt],
        n: int,
        sampling: Sampling,
        tag: Tag,
        *,
        version: int,
        hooks: Hooks | None = None,
    ) -> list[Completion]:
        """``n`` completions of every prompt, prompt by prompt, by the model behind ``stepper``, of this version.

        Raises ConfigError for a prompt that is empty or leaves no room for ``sampling.max_tokens``.
        """
        requests: list[Request] = []
        for prompt in prompts:
            ids = self.encode(prompt)
            self._check(prompt, ids, sampling)
            requests += [Request(ids, sample_key(tag, prompt.id, i)) for i in range(n)]
        done = generate(stepper, requests, sampling, self.tokenizer, hooks, max_positions=self.max_positions)
        return [_record(g, prompts[i // n].id, requests[i], (tag, i % n, version)) for i, g in enumerate(done)]

    def _check(self, prompt: Prompt, ids: Sequence[int], sampling: Sampling) -> None:
        if not ids:
            raise ConfigError(f"prompt {prompt.id!r} has no tokens; a causal model needs at least one to continue")
        if self.max_positions is not None and len(ids) + sampling.max_tokens > self.max_positions:
            raise ConfigError(
                f"prompt {prompt.id!r} has {len(ids)} tokens and sampling.max_tokens is {sampling.max_tokens}, but the "
                f"model has {self.max_positions} positions; shorten the prompt or lower max_tokens"
            )


def _record(generated: Generated, prompt_id: str, request: Request, origin: tuple[Tag, int, int]) -> Completion:
    tag, index, version = origin
    name = completion_id(tag.round, prompt_id, index)
    return Completion(
        id=name if tag.purpose == "train" else f"{tag.purpose}/{name}",
        prompt_id=prompt_id,
        round=tag.round,
        index=index,
        prompt_tokens=request.prompt,
        tokens=tuple(generated.tokens),
        logps=tuple(generated.logps),
        mask=tuple(generated.mask),
        text=generated.text,
        finish=generated.finish,
        policy_version=version,
    )
