"""Models with random weights, and vocabularies of any size: one character, one token."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

from triloop.bench.case import POSITIONS, PROMPT, SIZES, Case
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.hf_io import save_pretrained
from triloop.nn.tokenizer import Tokenizer, char_tokenizer
from triloop.policies.native import NativePolicy, pick_precision
from triloop.records import Prompt
from triloop.ternary.config import TernaryConfig

__all__ = ["config_of", "make_policy", "random_checkpoint", "random_prompts", "tokenizer_of"]

_CHARS = "0123456789+-*/=#,;:()<>[] ._abcdefghijklmnopqrstuvwxyzABCDEF"
"""With the four special tokens the 64 of the checkpoints of the comparison."""
_MORE = 0x10000
"""Code point of the first further character: from here on all of them are valid."""


def config_of(size: str, vocab: int = 64) -> DecoderConfig:
    """The shape of a size's decoder."""
    s = SIZES[size]
    return DecoderConfig(
        vocab_size=vocab,
        hidden_size=s.hidden,
        intermediate_size=s.mlp,
        num_layers=s.layers,
        num_heads=s.heads,
        num_kv_heads=s.heads,
        head_dim=s.hidden // s.heads,
        max_positions=POSITIONS,
    )


@lru_cache(maxsize=1)
def tokenizer_of(vocab: int) -> Tokenizer:
    """One with exactly this many tokens, at least 64."""
    more = vocab - len(_CHARS) - 4
    return char_tokenizer(_CHARS + "".join(map(chr, range(_MORE, _MORE + more))))


def make_policy(case: Case, **settings: Any) -> NativePolicy:
    """A fresh policy. ``settings`` are the learner's, besides the precision."""
    decoder = Decoder(config_of(case.size, case.vocab)).initialise(1234).to(case.device)
    policy = NativePolicy(
        decoder, tokenizer_of(case.vocab), precision=pick_precision(case.precision, case.device), **settings
    )
    if case.ternary:
        policy.ternarise(TernaryConfig(quantiser=case.ternary, head=case.ternary_head))
    return policy


def random_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Different texts of ``PROMPT`` tokens."""
    draw, found = random.Random(seed), dict[str, Prompt]()
    while len(found) < count:
        text = "".join(draw.choice(_CHARS[:28]) for _ in range(PROMPT))
        found[text] = Prompt(id=text, text=text)
    return list(found.values())


def random_checkpoint(folder: Path, size: str) -> Path:
    """A decoder of this size with fresh weights, as a Hugging Face directory."""
    path = folder / f"{size}_random"
    if not (path / "config.json").exists():
        save_pretrained(path, Decoder(config_of(size)).initialise(1234), tokenizer_of(64))
    return path
