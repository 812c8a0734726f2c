"""Our tokenizers as llama.cpp's vocabularies, where both cut every text into the same tokens; refused where not.

Three kinds go: BPE over SentencePiece's alphabet with byte fallback (Llama 2, Mistral, stories260K) and one token per
character (our own bases) as ``llama``, byte-level BPE with a splitting rule that llama.cpp knows as ``gpt2``.

llama.cpp's ``llama`` has no merges: it joins the neighbours whose joined text is the best-scored token of the vocabulary.
That is the tokenizer's own list of merges exactly when every way to cut a token into two tokens is a merge and the merges
into one token stand together; scores are then minus their places in the list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triloop.errors import ModelError
from triloop.nn.tokenizer import Tokenizer, parse_json

__all__ = ["BLANK", "FILES_KEY", "JSON_KEY", "SPLITS", "TokenKind", "Vocabulary", "vocabulary"]

JSON_KEY, FILES_KEY = "tokenizer.huggingface.json", "triloop.tokenizer.files"
"""Keys under which the tokenizer's own files lie, so that reading gives the very same back: tokenizer.json, the others."""

BLANK = "\u2581"
"""What SentencePiece writes for a blank."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

SPLITS: Mapping[str, tuple[tuple[Any, ...], bool]] = {
    "gpt-2": ((("ByteLevel", True),), False),
    "smollm": ((("Digits", True), ("ByteLevel", True)), False),
    "qwen2": ((("Split", _CONTRACTIONS + r"\p{N}" + _TAIL), ("ByteLevel", False)), False),
    "llama-bpe": ((("Split", _CONTRACTIONS + r"\p{N}{1,3}" + _TAIL), ("ByteLevel", False)), True),
}
"""llama.cpp's name of a splitting rule -> the pre-tokenizers of tokenizer.json that split so, and its ignore_merges.

The text of a Split is its regular expression; of Digits, one by one; of ByteLevel, whether it splits by GPT-2's rule.
"""

_STOPS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
     "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
     "<eos>", "<turn|>", "<|tool_response>")
)  # fmt: skip
"""Tokens at whose names llama.cpp stops, whatever the file says."""


class TokenKind:
    """GGUF's numbers for kinds of tokens."""

    NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What the ``tokenizer.ggml`` keys hold."""

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...] = ()
    """Only for ``llama``."""
    merges: tuple[str, ...] = ()
    """Only for ``gpt2``."""
    ends: tuple[int, ...]
    """Ids that end a text: the first is ``eos``, the others ``eot`` and ``eom``."""
    special: Mapping[str, int] = field(default_factory=dict)
    """Ids of ``bos``, ``unk`` and ``pad``, where there are some."""
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool = False
    notes: tuple[str, ...] = ()
    """Where llama.cpp's reading of a text can still differ from ours."""


def vocabulary(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """The vocabulary of a model with ``rows`` rows of embedding. Raises ModelError where llama.cpp cuts texts otherwise."""
    raw = parse_json(tokenizer.files["tokenizer.json"], f"{tokenizer.path}/tokenizer.json")
    reader = _Reader(tokenizer, raw, rows)
    model = raw["model"]
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        return reader.pieces()
    if model.get("type") == "BPE":
        return reader.bytes()
    if model.get("type") == "WordLevel" and reader.steps("pre_tokenizer") == [_CHARACTERS]:
        return reader.characters()
    if model.get("type") == "WordLevel":
        raise reader.error(
            "has one token per word between blanks, and llama.cpp has no such kind: its tokens are joined without "
            "blanks"
        )
    raise reader.error(f"is a {model.get('type')} model; llama.cpp's llama and gpt2 kinds are BPE")


_CHARACTERS = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}


class _Reader:
    def __init__(self, tokenizer: Tokenizer, raw: Mapping[str, Any], rows: int) -> None:
        self.tokenizer, self.raw, self.rows = tokenizer, raw, rows
        self.model = raw["model"]
        self.texts: dict[int, str] = {i: text for text, i in self.model["vocab"].items() if i < rows}
        self.added = {int(t["id"]): bool(t["special"]) for t in raw.get("added_tokens") or () if int(t["id"]) < rows}
        self.texts |= {int(t["id"]): t["content"] for t in raw.get("added_tokens") or () if int(t["id"]) < rows}
        for part in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if self.model.get(part):
                raise self.error(f"sets {part}, which llama.cpp does not know")

    def error(self, why: str) -> ModelError:
        return ModelError(f"{self.tokenizer.path}: the tokenizer {why}. Export --format hf, or packed.")

    def steps(self, part: str) -> list[Mapping[str, Any]]:
        """The normalizers, pre-tokenizers or decoders of a tokenizer.json, sequences opened."""
        found = self.raw.get(part)
        if found is None:
            return []
        inner = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[part]
        return list(found[inner]) if found["type"] == "Sequence" else [found]

    # ---------------------------------------------------------------- the three kinds

    def pieces(self) -> Vocabulary:
        """BPE with byte fallback over text whose blanks are written as BLANK."""
        if self.model.get("ignore_merges"):
            raise self.error("ignores its merges for whole words, which llama.cpp does not do for byte-fallback BPE")
        absent = [f"<0x{b:02X}>" for b in range(256) if f"<0x{b:02X}>" not in self.model["vocab"]]
        if absent:
            raise self.error(f"lacks {len(absent)} of the 256 byte tokens ({absent[0]}), which llama.cpp falls back to")
        prefix = self._blank_before()
        merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in self.model["merges"]]
        return self._made(model="llama", pre="default", scores=self._scores(merges), add_space_prefix=prefix)

    def bytes(self) -> Vocabulary:
        """Byte-level BPE."""
        split = [self._step(s) for s in self.steps("pre_tokenizer")]
        pre = next((name for name, (steps, _) in SPLITS.items() if list(steps) == split), None)
        if pre is None:
            raise self.error(
                f"splits text by a rule ({self.raw.get('pre_tokenizer')}) that is none of llama.cpp's "
                f"{', '.join(SPLITS)}"
            )
        if bool(self.model.get("ignore_merges")) != SPLITS[pre][1]:
            raise self.error(
                f"has ignore_merges {self.model.get('ignore_merges')}, llama.cpp takes the other for {pre}"
            )
        notes = []
        for step in self.steps("normalizer"):
            if step["type"] != "NFC":
                raise self.error(f"normalises text by {step['type']}, which llama.cpp does not")
            notes.append("the tokenizer composes characters (NFC) first; llama.cpp takes a text as it comes")
        merges = tuple(m if isinstance(m, str) else " ".join(m) for m in self.model["merges"])
        return self._made(model="gpt2", pre=pre, merges=merges, notes=tuple(notes))

    def characters(self) -> Vocabulary:
        """One token per character: a ``llama`` vocabulary in which nothing can be joined."""
        plain = [t for i, t in self.texts.items() if i not in self.added]
        if any(len(t) != 1 for t in plain) or BLANK in plain or [s["type"] for s in self.steps("decoder")] != ["Fuse"]:
            raise self.error("has tokens of several characters, and splits text into single ones")
        self.texts = {i: t.replace(" ", BLANK) for i, t in self.texts.items()}
        note = "a character outside the alphabet is the unknown token here and an error in llama.cpp"
        return self._made(model="llama", pre="default", scores=(0.0,) * self.rows, notes=(note,))

    # ---------------------------------------------------------------- pieces of them

    def _step(self, step: Mapping[str, Any]) -> tuple[Any, ...]:
        if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
            return "ByteLevel", bool(step.get("use_regex", True))
        if step["type"] == "Digits":
            return "Digits", bool(step.get("individual_digits"))
        if step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            return "Split", (step.get("pattern") or {}).get("Regex")
        return (step["type"], dict(step))

    def _blank_before(self) -> bool:
        """Whether a blank is put before a text; ModelError where it is prepared otherwise than SentencePiece does."""
        normal = [
            (s["type"], s.get("prepend") or (s.get("pattern") or {}).get("String")) for s in self.steps("normalizer")
        ]
        before = self.steps("pre_tokenizer")
        metaspace = bool(before) and [s["type"] for s in before] == ["Metaspace"]
        if not before and normal in ([("Prepend", BLANK), ("Replace", " ")], [("Replace", " ")]):
            return normal[0][0] == "Prepend"
        if metaspace and not normal and before[0].get("replacement") == BLANK and not before[0].get("split", True):
            return bool(before[0].get("prepend_scheme", "always") != "never")
        raise self.error("prepares text otherwise than SentencePiece does (blanks written as one sign, nothing else)")

    def _scores(self, merges: Sequence[tuple[str, ...]]) -> tuple[float, ...]:
        places: dict[str, list[int]] = {}
        for place, (left, right) in enumerate(merges):
            places.setdefault(left + right, []).append(place)
        apart = [text for text, found in places.items() if found[-1] - found[0] != len(found) - 1]
        if apart:
            raise self.error(f"merges into {apart[0]!r} at several places of its list, where llama.cpp has one score")
        known, pairs = self.model["vocab"], set(merges)
        for text, i in known.items():
            if i in self.added or _BYTE.fullmatch(text):
                continue
            cuts = ((text[:k], text[k:]) for k in range(1, len(text)))
            extra = next((c for c in cuts if c[0] in known and c[1] in known and c not in pairs), None)
            if extra is not None:
                raise self.error(
                    f"never merges {extra[0]!r} and {extra[1]!r}, which llama.cpp would join into {text!r}"
                )
        last = float(-len(merges))
        return tuple(float(-places[t][0]) if (t := self.texts.get(i, "")) in places else last for i in range(self.rows))

    def _kind(self, i: int, model: str) -> int:
        if i not in self.texts:
            return TokenKind.UNUSED
        if i == self._unknown() and model == "llama":
            return TokenKind.UNKNOWN
        if i in self.tokenizer.special_ids or self.added.get(i):
            return TokenKind.CONTROL
        if i in self.added:
            return TokenKind.USER
        return TokenKind.BYTE if model == "llama" and _BYTE.fullmatch(self.texts[i]) else TokenKind.NORMAL

    def _unknown(self) -> int | None:
        text = self.model.get("unk_token")
        return None if text is None else self.model["vocab"].get(text)

    def _around(self) -> tuple[bool, bool]:
        """Whether the tokenizer puts the begin token before and the end token after a text."""
        probe = self.texts[next(i for i in sorted(self.texts) if i not in self.added)].replace(BLANK, " ")
        plain, whole = (self.tokenizer.encode(probe, add_special=special) for special in (False, True))
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_ids[:1]
        for before in ([], [bos]):
            for after in ([], list(eos)):
                if [*before, *plain, *after] == whole:
                    return bool(before), bool(after)
        raise self.error(f"puts {whole} around the tokens {plain}; llama.cpp adds only a begin and an end token")

    def _ends(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        named = self.tokenizer.specials.get("eos_token")
        ends = sorted(set(self.tokenizer.eos_ids), key=lambda i: (self.texts.get(i) != named, i))
        if not ends:
            raise self.error("names no end token, and llama.cpp always stops at one")
        if len(ends) > 3:
            raise self.error(f"ends a text at {len(ends)} tokens; GGUF has room for three")
        more = [t for i, t in sorted(self.texts.items()) if t in _STOPS and i not in ends]
        return tuple(ends), tuple(f"llama.cpp stops at {t!r} too, by its name" for t in more)

    def _made(self, *, model: str, notes: tuple[str, ...] = (), **parts: Any) -> Vocabulary:
        ends, more = self._ends()
        add_bos, add_eos = self._around()
        own = {"bos": self.tokenizer.bos_id, "unk": self._unknown(), "pad": self.tokenizer.pad_id}
        tokens = tuple(self.texts.get(i, f"[PAD{i}]") for i in range(self.rows))
        if len(set(tokens)) != len(tokens):
            raise self.error("has two ids for one text, and llama.cpp looks ids up by their text")
        return Vocabulary(
            model=model,
            tokens=tokens,
            kinds=tuple(self._kind(i, model) for i in range(self.rows)),
            ends=ends,
            special={name: i for name, i in own.items() if i is not None and i < self.rows},
            add_bos=add_bos,
            add_eos=add_eos,
            notes=(*notes, *more),
            **parts,
        )
