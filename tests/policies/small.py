"""Small models behind each backend, and a model whose every next token is known."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from triloop.learn.batch import Batch, supervised_batch
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.lora import lora_modules
from triloop.nn.tokenizer import Tokenizer, char_tokenizer
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Policy, Tag
from triloop.records import Prompt

CHARS = "0123456789+= abcd\n"
TAG = Tag(seed=3, round=1)
BACKENDS = ("native", "native+lora", "transformers")

Make = Callable[..., Policy]
"""A new policy with the backend's weights; keywords are its settings."""


def tokenizer() -> Tokenizer:
    return char_tokenizer(CHARS)


def decoder(**changes: Any) -> Decoder:
    """Weights wide enough that distributions are far from uniform."""
    shape: dict[str, Any] = {
        "vocab_size": 4 + len(CHARS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_positions": 64,
    }
    return Decoder(DecoderConfig(**{**shape, **changes})).initialise(0, std=0.25)


def native(**settings: Any) -> NativePolicy:
    return NativePolicy(decoder(), tokenizer(), **settings)


def native_lora(**settings: Any) -> NativePolicy:
    """Adapters that already say something: at their start they would add nothing."""
    policy = native(**settings)
    policy.add_lora(rank=2, alpha=4.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in lora_modules(policy.decoder).values():
            adapter.lora_b.normal_(0.0, 0.1, generator=generator)
    return policy


def foreign_directory(folder: Path, family: str = "gpt2", **changes: Any) -> Path:
    """A directory of random weights of an architecture that the native decoder does not know."""
    transformers = pytest.importorskip("transformers")
    shape: dict[str, Mapping[str, Any]] = {
        "gpt2": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
        "gpt_neox": {
            "max_position_embeddings": 64,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
        },
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        "gemma2": {
            "max_position_embeddings": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 16,
        },
        "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(family, vocab_size=4 + len(CHARS), **{**shape[family], **ids, **changes})
    torch.manual_seed(0)
    kind = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    tokenizer().save(folder)
    return folder


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(id=f"p{i}", text=t) for i, t in enumerate(texts or ("1+2=", "a b c", "34", "7+8+9=", "d"))]


def lesson(seed: int = 0, rows: int = 6) -> Batch:
    """Ragged demonstrations of random tokens."""
    g = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> list[int]:
        n = int(torch.randint(low, high, (1,), generator=g))
        return torch.randint(4, 4 + len(CHARS), (n,), generator=g).tolist()

    return supervised_batch([draw(1, 6) for _ in range(rows)], [draw(1, 9) for _ in range(rows)])


class Chain:
    """A stepper whose next token is ``after[last token]``, all but certain. It keeps account of what it was asked."""

    def __init__(self, after: Mapping[int, int], *, refills: bool = True, most_rows: int = 10**6) -> None:
        self.after, self.refills, self.most_rows = after, refills, most_rows
        self.admitted: list[tuple[int, ...]] = []
        self.steps: list[int] = []
        self.opened: list[tuple[int, int]] = []
        self.rows = 0
        self.length = 0

    @property
    def vocab_size(self) -> int:
        return 4 + len(CHARS)

    def _logits(self, last: Sequence[int]) -> Tensor:
        logits = torch.zeros(len(last), self.vocab_size)
        for row, token in enumerate(last):
            logits[row, self.after.get(token, 0)] = 50.0
        return logits

    def open(self, rows: int, length: int) -> int:
        self.rows, self.length = min(rows, self.most_rows), length
        self.opened.append((self.rows, length))
        return self.rows

    def admit(self, prompts: Sequence[tuple[int, ...]], rows: Sequence[int]) -> Tensor:
        assert len(set(rows)) == len(rows) == len(prompts)
        assert all(row < self.rows for row in rows) and all(len(p) <= self.length for p in prompts)
        self.admitted += prompts
        return self._logits([p[-1] for p in prompts])

    def step(self, tokens: Tensor, positions: Tensor, span: int) -> Tensor:
        assert len(tokens) == len(positions) == self.rows
        assert int(positions.max()) == span - 1 < self.length
        self.steps.append(len(tokens))
        return self._logits(tokens.tolist())

    def keep(self, rows: Tensor) -> None:
        self.rows = len(rows)
