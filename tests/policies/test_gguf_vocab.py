"""Tokenizers in GGUF: what llama.cpp would make of a text is what we make of it; what it would not is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers

from policies.quantised import byte_level
from policies.small import CHARS
from triloop.errors import ModelError
from triloop.nn.tokenizer import Tokenizer, char_tokenizer, word_tokenizer
from triloop.policies.formats.gguf_vocab import BLANK, SPLITS, TokenKind, Vocabulary, vocabulary
from triloop.policies.formats.gguf_words import tokenizer_of

BYTES = [f"<0x{b:02X}>" for b in range(256)]
TEXTS = [
    "Once upon a time", " two  blanks ", "", "ünïcode 日本", "a\nb\t1984!", "they'd said IT'S 12345 times", "<s>x</s> y",
]  # fmt: skip


def pieces(
    merges: Sequence[tuple[str, str]], *, extra: Sequence[str] = (), prefix: bool = True, **model: Any
) -> Tokenizer:
    """A byte-fallback BPE: the letters a to d, a blank, and what ``merges`` make."""
    letters = [BLANK, *"abcd"]
    made = dict.fromkeys([*letters, *(a + b for a, b in merges), *extra])
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *BYTES, *made])}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": BLANK}] if prefix else []
    raw = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": t, **flags, "special": True} for t, i in list(vocab.items())[:3]],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [list(m) for m in merges],
            **model,
        },
    }
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Tokenizer({"tokenizer.json": json.dumps(raw).encode(), "tokenizer_config.json": json.dumps(named).encode()})


def joined(words: Vocabulary, text: str) -> list[int]:
    """What llama.cpp's llama tokenizer does, the slow way: join the best-scored neighbours, the leftmost of equals."""
    ids = {t: i for i, t in enumerate(words.tokens)}
    parts = list(((" " if words.add_space_prefix else "") + text).replace(" ", BLANK))
    while True:
        found = [(-words.scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not found:
            break
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [i for p in parts for i in ([ids[p]] if p in ids else [ids[f"<0x{b:02X}>"] for b in p.encode()])]


MERGES = [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc"), (BLANK, "a"), ("d", "d")]
"""No order in which llama.cpp could score them: abc is made at places 1 and 3."""
RIGHT = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"), (BLANK, "a"), (BLANK, "ab"), (f"{BLANK}a", "b"), ("d", "d")]


def test_joining_by_score_is_merging_by_place() -> None:
    tokenizer = pieces(RIGHT)
    words = vocabulary(tokenizer, tokenizer.vocab_size)
    assert words.model == "llama" and words.add_space_prefix and not words.add_bos
    draw = random.Random(3)
    for _ in range(300):
        text = "".join(draw.choices("abcd é", k=draw.randrange(1, 14)))
        assert joined(words, text) == tokenizer.encode(text), text


def test_stories260k_is_cut_alike(shared: Path) -> None:
    tokenizer = Tokenizer.from_directory(shared / "models/stories260K")
    words = vocabulary(tokenizer, 512)
    assert (words.add_bos, words.add_eos, words.add_space_prefix, words.notes) == (True, False, True, ())
    assert words.ends == (2, 1) and words.special == {"bos": 1, "unk": 0, "pad": 0}
    assert words.kinds[:4] == (TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.CONTROL, TokenKind.BYTE)
    for text in ("Once upon a time, there was a little girl named Lily.", "The  big\nred ball — ünïcode", "zzz"):
        assert [1, *joined(words, text)] == tokenizer.encode(text)


REFUSED: dict[str, tuple[Tokenizer, str]] = {
    "order": (pieces(MERGES), "merges into 'abc' at several places"),
    "unmerged": (pieces([("a", "b")], extra=["bc"]), "never merges 'b' and 'c'.*join into 'bc'"),
    "ignored merges": (pieces([("a", "b")], ignore_merges=True), "ignores its merges"),
    "dropout": (pieces([("a", "b")], dropout=0.1), "sets dropout"),
    "words": (word_tokenizer(["a", "b"]), "one token per word"),
    "rule": (byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), "splits text by a rule"),
    "ignoring": (byte_level(ignore_merges=True), "ignore_merges True"),
}  # fmt: skip


@pytest.mark.parametrize(("tokenizer", "message"), REFUSED.values(), ids=REFUSED)
def test_what_llama_cpp_cuts_otherwise_is_refused(tokenizer: Tokenizer, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        vocabulary(tokenizer, tokenizer.vocab_size)


def test_lacking_bytes_and_other_normalizers_are_refused() -> None:
    tokenizer = pieces([("a", "b")])
    raw = json.loads(tokenizer.files["tokenizer.json"])
    del raw["model"]["vocab"]["<0x41>"]
    with pytest.raises(ModelError, match=r"lacks 1 of the 256 byte tokens \(<0x41>\)"):
        vocabulary(Tokenizer({**tokenizer.files, "tokenizer.json": json.dumps(raw).encode()}), tokenizer.vocab_size)
    raw = json.loads(tokenizer.files["tokenizer.json"]) | {"normalizer": {"type": "Lowercase"}}
    with pytest.raises(ModelError, match="otherwise than SentencePiece"):
        vocabulary(Tokenizer({**tokenizer.files, "tokenizer.json": json.dumps(raw).encode()}), tokenizer.vocab_size)


def test_a_model_without_an_end_is_refused() -> None:
    tokenizer = Tokenizer({"tokenizer.json": pieces([("a", "b")]).files["tokenizer.json"]})
    with pytest.raises(ModelError, match="names no end token"):
        vocabulary(tokenizer, tokenizer.vocab_size)


def test_characters_become_a_vocabulary_without_joins() -> None:
    tokenizer = char_tokenizer(CHARS)
    words = vocabulary(tokenizer, 4 + len(CHARS) + 2)
    assert words.model == "llama" and not words.add_space_prefix and words.tokens[-1] == "[PAD23]"
    assert words.kinds[-1] == TokenKind.UNUSED and words.tokens[4 + CHARS.index(" ")] == BLANK
    assert words.ends == (2,) and "unknown token here and an error" in words.notes[0]
    assert [joined(words, t) for t in ("1+2=", "a b\n")] == [tokenizer.encode(t) for t in ("1+2=", "a b\n")]


_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN.replace(r"\p{N}| ", r"\p{N}{1,3}| ")


def _split(pattern: str) -> Any:
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), rest])


RULES: dict[str, tuple[Any, bool]] = {
    "gpt-2": (None, False),
    "smollm": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        False,
    ),
    "qwen2": (_split(_QWEN), False),
    "llama-bpe": (_split(_LLAMA3), True),
}


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level_rules_are_known_and_come_back(pre: str) -> None:
    rule, ignore = RULES[pre]
    tokenizer = byte_level(rule, ignore_merges=ignore)
    words = vocabulary(tokenizer, tokenizer.vocab_size)
    assert (words.model, words.pre, words.scores) == ("gpt2", pre, ()) and words.ends == (0,)
    assert len(words.merges) == tokenizer.vocab_size - 257 and all(m.count(" ") == 1 for m in words.merges)
    again = tokenizer_of(_keys(words), "here")
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text) and again.decode(again.encode(text)) == text
    assert again.eos_ids == (0,)


def _keys(words: Vocabulary) -> dict[str, Any]:
    """A file's keys without the tokenizer's own files, as another program's file has them."""
    own = {
        "model": words.model,
        "pre": words.pre,
        "tokens": list(words.tokens),
        "token_type": list(words.kinds),
        "scores": list(words.scores) or None,
        "merges": list(words.merges) or None,
        "eos_token_id": words.ends[0],
        "eot_token_id": words.ends[1] if len(words.ends) > 1 else None,
        "add_bos_token": words.add_bos,
        "add_space_prefix": words.add_space_prefix,
        "unknown_token_id": words.special.get("unk"),
        "bos_token_id": words.special.get("bos"),
    }
    return {f"tokenizer.ggml.{k}": v for k, v in own.items() if v is not None}


def test_pieces_are_rebuilt_from_scores(shared: Path) -> None:
    tokenizer = Tokenizer.from_directory(shared / "models/stories260K")
    again = tokenizer_of(_keys(vocabulary(tokenizer, 512)), "here")
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert set(again.eos_ids) == {1, 2} and again.bos_id == 1


def test_stops_that_llama_cpp_adds_by_name_are_told() -> None:
    tokenizer = byte_level()
    raw = json.loads(tokenizer.files["tokenizer.json"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    raw["added_tokens"].append({"id": 300, "content": "<|im_end|>", **flags, "special": True})
    words = vocabulary(Tokenizer({**tokenizer.files, "tokenizer.json": json.dumps(raw).encode()}), 301)
    assert words.ends == (0,) and "stops at '<|im_end|>' too" in words.notes[0]


def test_an_unknown_kind_cannot_be_rebuilt() -> None:
    with pytest.raises(ModelError, match="'bert' cannot be rebuilt"):
        tokenizer_of({"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["a"]}, "here")
    with pytest.raises(ModelError, match="split by rule 'tekken'"):
        tokenizer_of(_keys(vocabulary(byte_level(), 300)) | {"tokenizer.ggml.pre": "tekken"}, "here")
