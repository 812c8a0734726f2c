"""How to draw tokens. Plain settings; importing this loads no numerics."""

from __future__ import annotations

from dataclasses import dataclass

from triloop.errors import ConfigError

__all__ = ["Sampling"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of one rollout. The defaults sample from the policy itself, which is what on-policy learning assumes."""

    max_tokens: int = 64
    """Most tokens that the policy may generate for one completion, over all turns."""
    temperature: float = 1.0
    """Logits are divided by this; 0 takes the likeliest token."""
    top_k: int = 0
    """Keep only the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose probability reaches this (nucleus sampling)."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the likeliest one."""
    stop: tuple[str, ...] = ()
    """Text that ends a completion, besides the end-of-sequence token."""
    banned_tokens: tuple[int, ...] = ()
    """Token ids that are never drawn."""
    slots: int = 256
    """Rows of the batch: completions in flight at once."""

    def __post_init__(self) -> None:
        rules = (
            (self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1"),
            (self.temperature >= 0, "temperature", self.temperature, "0 or more"),
            (self.top_k >= 0, "top_k", self.top_k, "0 (off) or more"),
            (0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]"),
            (0 <= self.min_p < 1, "min_p", self.min_p, "in [0, 1)"),
            (self.slots >= 1, "slots", self.slots, "at least 1"),
            (all(self.stop), "stop", self.stop, "non-empty strings"),
        )
        for good, name, got, expected in rules:
            if not good:
                raise ConfigError(f"sampling.{name} is {got!r}; expected {expected}")
