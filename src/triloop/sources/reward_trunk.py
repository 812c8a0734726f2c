"""A small reward model's own network and vocabulary, where there is no policy to start from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from triloop.errors import ConfigError
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.tokenizer import Tokenizer

__all__ = ["learned_words", "small_trunk"]

_ROLES = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


def learned_words(texts: Sequence[str], size: int) -> Tokenizer:
    """The most frequent words and punctuation marks of these texts in lower case, ``size`` tokens in all.

    Any other word is ``<unk>``. Words of equal frequency stand in alphabetical order, so equal texts give equal ids.
    """
    if size < len(_ROLES) + 1:
        raise ConfigError(f"a vocabulary of {size} tokens; expected at least {len(_ROLES) + 1}")
    lower, cut = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), pre_tokenizers.Whitespace()
    counts = Counter[str]()
    for text in texts:
        seen = lower.normalize_str(text.encode("utf-8", "replace").decode())
        counts.update(word for word, _ in cut.pre_tokenize_str(seen))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: size - len(_ROLES)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*_ROLES.values(), *frequent]))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.add_special_tokens(list(_ROLES.values()))
    backend.normalizer, backend.pre_tokenizer = lower, cut
    config = {**_ROLES, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return Tokenizer(
        {
            "tokenizer.json": backend.to_str(pretty=True).encode(),
            "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        }
    )


def small_trunk(
    tokenizer: Tokenizer, *, width: int = 64, layers: int = 2, positions: int = 256, seed: int = 0
) -> Decoder:
    """Fresh weights over this vocabulary, heads of 16; a text is cut to its last ``positions`` tokens."""
    if width % 16 or width < 16:
        raise ConfigError(f"a trunk of width {width}; expected a multiple of 16")
    shape = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_layers=layers,
        num_heads=width // 16,
        num_kv_heads=width // 16,
        head_dim=16,
        max_positions=positions,
    )
    return Decoder(shape).initialise(seed, std=0.05)
