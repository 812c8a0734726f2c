"""The tokenizer in a GGUF file: the files it was written from where they are in it, else rebuilt from its vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from triloop.errors import ModelError
from triloop.nn.tokenizer import Tokenizer, parse_json
from triloop.policies.formats.gguf_vocab import BLANK, FILES_KEY, JSON_KEY, SPLITS, TokenKind

__all__ = ["tokenizer_of"]

_ALIASES = {"gpt2": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}


def tokenizer_of(keys: Mapping[str, Any], where: str) -> Tokenizer:
    """From a file's keys. Raises ModelError for a kind of tokenizer that cannot be rebuilt."""
    own = keys.get(JSON_KEY)
    if own is not None:
        files = {"tokenizer.json": own, **parse_json(str(keys.get(FILES_KEY, "{}")).encode(), where)}
        return Tokenizer({name: str(text).encode() for name, text in files.items()}, path=where)
    return _Rebuilt(keys, where).tokenizer()


class _Rebuilt:
    def __init__(self, keys: Mapping[str, Any], where: str) -> None:
        self.keys, self.where = keys, where
        self.kind = self.get("model")
        self.tokens: Sequence[str] = self.get("tokens") or ()
        self.kinds: Sequence[int] = self.get("token_type") or [TokenKind.NORMAL] * len(self.tokens)
        if self.kind not in ("llama", "gpt2") or not self.tokens:
            raise ModelError(f"{where}: tokenizer {self.kind!r} cannot be rebuilt; expected llama or gpt2, with tokens")
        llama = self.kind == "llama"
        self.roles = {
            "bos": self.get("bos_token_id", 1 if llama else None),
            "eos": self.get("eos_token_id", 2 if llama else None),
            "unk": self.get("unknown_token_id", 0 if llama else None),
            "pad": self.get("padding_token_id"),
        }

    def get(self, key: str, default: Any = None) -> Any:
        return self.keys.get(f"tokenizer.ggml.{key}", default)

    def tokenizer(self) -> Tokenizer:
        parts = self._pieces() if self.kind == "llama" else self._bytes()
        raw = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": self._added(),
            "post_processor": self._around(),
            **parts,
        }
        named = {f"{role}_token": self.tokens[i] for role, i in self.roles.items() if i is not None}
        config: dict[str, Any] = {**named, "clean_up_tokenization_spaces": False}
        if self.keys.get("tokenizer.chat_template"):
            config["chat_template"] = self.keys["tokenizer.chat_template"]
        ends = [self.get(f"{role}_token_id") for role in ("eos", "eot", "eom")]
        ends[0] = self.roles["eos"]
        ids = list(dict.fromkeys(int(i) for i in ends if i is not None))
        generation = {"bos_token_id": self.roles["bos"], "eos_token_id": ids, "pad_token_id": self.roles["pad"]}
        files = {"tokenizer.json": raw, "tokenizer_config.json": config, "generation_config.json": generation}
        return Tokenizer({name: json.dumps(value).encode() for name, value in files.items()}, path=self.where)

    def _added(self) -> list[dict[str, Any]]:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        wanted = (TokenKind.CONTROL, TokenKind.USER, TokenKind.UNKNOWN)
        return [
            {"id": i, "content": self.tokens[i], **flags, "special": kind != TokenKind.USER}
            for i, kind in enumerate(self.kinds)
            if kind in wanted
        ]

    def _around(self) -> dict[str, Any] | None:
        """What puts the begin and end tokens around a text."""
        llama_bos = self.kind == "llama" or _ALIASES.get(self.get("pre"), self.get("pre")) == "llama-bpe"
        use = {"bos": self.get("add_bos_token", llama_bos), "eos": self.get("add_eos_token", False)}
        ids = {role: self.roles[role] for role, on in use.items() if on and self.roles[role] is not None}
        if not ids:
            return None
        before, after = (
            [{"SpecialToken": {"id": self.tokens[ids[role]], "type_id": 0}}] if role in ids else []
            for role in ("bos", "eos")
        )
        single = [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after]
        named = {self.tokens[i]: {"id": self.tokens[i], "ids": [i], "tokens": [self.tokens[i]]} for i in ids.values()}
        pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": named}

    def _model(self, merges: Sequence[Sequence[str]], **more: Any) -> dict[str, Any]:
        vocab = {t: i for i, t in enumerate(self.tokens) if self.kinds[i] != TokenKind.UNUSED}
        base = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
        return {**base, "vocab": vocab, "merges": [list(m) for m in merges], **more}

    def _pieces(self) -> dict[str, Any]:
        """Merges are every way to cut a token into two, best token first: what llama.cpp joins."""
        scores = self.get("scores") or [0.0] * len(self.tokens)
        plain = [i for i, kind in enumerate(self.kinds) if kind == TokenKind.NORMAL]
        known = {self.tokens[i] for i in plain}
        merges = [
            (text[:k], text[k:])
            for i in sorted(plain, key=lambda i: (-scores[i], i))
            for text in [self.tokens[i]]
            for k in range(1, len(text))
            if text[:k] in known and text[k:] in known
        ]
        prefix = bool(self.get("add_space_prefix", True))
        steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": BLANK}] if prefix else []
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": BLANK})
        back: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": BLANK}, "content": " "}]
        back += [{"type": "ByteFallback"}, {"type": "Fuse"}]
        back += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
        unknown = None if self.roles["unk"] is None else self.tokens[self.roles["unk"]]
        fallback = all(f"<0x{b:02X}>" in self.tokens for b in range(256))
        return {
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": back},
            "model": self._model(merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback, ignore_merges=False),
        }

    def _bytes(self) -> dict[str, Any]:
        pre = _ALIASES.get(self.get("pre"), self.get("pre"))
        if pre not in SPLITS:
            raise ModelError(
                f"{self.where}: text is split by rule {pre!r}, expected one of {', '.join(SPLITS)}. Import the model's "
                "Hugging Face directory instead."
            )
        rules, ignore = SPLITS[pre]
        steps = [_pre_tokenizer(name, value) for name, value in rules]
        return {
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "decoder": _pre_tokenizer("ByteLevel", True),
            "model": self._model(
                [m.split(" ") for m in self.get("merges") or ()],
                unk_token=None,
                fuse_unk=False,
                byte_fallback=False,
                ignore_merges=ignore,
            ),
        }


def _pre_tokenizer(name: str, value: Any) -> dict[str, Any]:
    if name == "ByteLevel":
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": value}
    if name == "Digits":
        return {"type": "Digits", "individual_digits": value}
    return {"type": "Split", "pattern": {"Regex": value}, "behavior": "Isolated", "invert": False}
