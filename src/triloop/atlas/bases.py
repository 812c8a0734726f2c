"""Tiny bases that a row trains for itself, once: kept in the user's cache folder, made again when their recipe changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from triloop.errors import WorkError

__all__ = ["Pairs", "TinyBase", "cached", "described", "taught"]

Pairs = Callable[[int], list[tuple[str, str]]]
"""step -> (prompt, completion) pairs of its batch, from counter-based randomness."""


@dataclass(frozen=True, kw_only=True)
class TinyBase:
    """A small character model and how long it is taught."""

    name: str
    recipe: str
    """Everything that the pairs depend on, in words: another text is another base."""
    chars: str
    """Its vocabulary, one token each."""
    hidden: int
    layers: int
    steps: int
    lr: float = 2e-3

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        plain = {**vars(self)}
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return root / "triloop" / "atlas" / f"{self.name}-{digest}"


def cached(base: TinyBase, pairs: Pairs) -> Path:
    """The base's directory, trained first when it is not there. A copy appears whole or not at all."""
    if (base.folder / "config.json").is_file():
        return base.folder
    try:
        base.folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=base.folder.parent))
    except OSError as error:
        raise WorkError(f"{base.folder.parent} cannot be written ({error}); set XDG_CACHE_HOME to another") from error
    taught(base, pairs, fresh)
    try:
        fresh.rename(base.folder)
    except OSError:  # another process was first; both are the same
        shutil.rmtree(fresh, ignore_errors=True)
    return base.folder


def taught(base: TinyBase, pairs: Pairs, folder: Path) -> None:
    """Teach a fresh model the pairs, on one thread, and write its directory."""
    from triloop.learn.choices import OptimConfig
    from triloop.loops.build import set_threads
    from triloop.loops.supervised import Demonstration, supervised
    from triloop.nn.decoder import Decoder, DecoderConfig
    from triloop.nn.tokenizer import char_tokenizer
    from triloop.policies.native import NativePolicy

    set_threads(1)
    tokenizer = char_tokenizer(base.chars)
    shape = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=base.hidden,
        intermediate_size=3 * base.hidden,
        num_layers=base.layers,
        num_heads=4,
        num_kv_heads=4,
        head_dim=base.hidden // 4,
        max_positions=256,
    )
    optim = OptimConfig(lr=base.lr, warmup_steps=20, schedule="cosine")
    policy = NativePolicy(Decoder(shape).initialise(0), tokenizer, optim=optim, entropy=False)
    end = tokenizer.eos_ids[0]

    def batch(step: int) -> list[Demonstration]:
        return [(tokenizer.encode(p), [*tokenizer.encode(c), end]) for p, c in pairs(step)]

    supervised(policy, batch, base.steps, optim).save_pretrained(folder)


def described(values: Mapping[str, object]) -> str:
    """Settings as a recipe's text."""
    return json.dumps(values, sort_keys=True)
