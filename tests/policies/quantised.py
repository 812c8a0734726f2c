"""Small decoders with quantised linears, and tokenizers of the kinds that other programs know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from policies.small import CHARS, tokenizer
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.tokenizer import Tokenizer
from triloop.policies.ternary import ternarised
from triloop.ternary.config import TernaryConfig

__all__ = ["byte_level", "logits", "plain", "ternary", "tokenizer"]

SHAPE: dict[str, Any] = {
    "vocab_size": 4 + len(CHARS),
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
    "max_positions": 64,
}
KINDS: dict[str, dict[str, Any]] = {
    "tensor": {},
    "channel": {"granularity": "channel"},
    "group": {"granularity": "group", "group": 256},
    "unquantised activations": {"activations": "none"},
    "blocks": {"activations": "int8-256"},
    "elastic": {"activations": "elastic"},
    "dead zone": {"quantiser": "dead-zone"},
    "dual": {"quantiser": "dual"},
    "four bits": {"quantiser": "paretoq-4"},
    "odd groups": {"granularity": "group", "group": 96},
    "normed": {"norm": True},
    "int8 head": {"head": "int8"},
}


def plain(**changes: Any) -> Decoder:
    return Decoder(DecoderConfig(**{**SHAPE, **changes})).initialise(0, std=0.1)


def ternary(changes: dict[str, Any] | None = None, **settings: Any) -> Decoder:
    """``settings`` are those of the quantiser, ``changes`` of the shape. Learned numbers and biases are no round ones."""
    decoder = plain(**(changes or {}))
    ternarised(decoder, TernaryConfig(**settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.startswith("layers.") and parameter.ndim == 1 and "norm1" not in name and "norm2" not in name:
                parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
    return decoder.requires_grad_(False).eval()


def logits(decoder: Decoder, ids: Sequence[int] = (1, 5, 9, 4, 17, 8, 8, 20, 6, 11)) -> Tensor:
    with torch.no_grad():
        return decoder.logits_padded(torch.tensor([list(ids)]))


def byte_level(rule: Any = None, *, ignore_merges: bool = False, vocab: int = 300) -> Tokenizer:
    """A byte-level BPE of ``vocab`` tokens, trained on a few sentences; split by ``rule``, by GPT-2's without one."""
    backend = Backend(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = rule or pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the cat and the hat", "there and then in 1984 they said that it's théirs"], trainer)
    config = {"eos_token": "<|endoftext|>", "clean_up_tokenization_spaces": False}
    files = {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}
    return Tokenizer(files)
