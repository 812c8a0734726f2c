"""Text to token ids and back, exactly as the model's own directory says.

``tokenizer.json`` is the truth (transformers 5 holds the same): its post-processor decides whether a beginning-of-
sequence token is added. The other files only name the special tokens and the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from triloop.errors import ModelError
from triloop.records import Turn

__all__ = ["Tokenizer", "char_tokenizer", "parse_json", "read_json", "word_tokenizer"]

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
)
"""What travels with a tokenizer, unread or not. ``generation_config.json`` is here: it says which ids end a text."""


class Tokenizer:
    """A Hugging Face tokenizer directory in memory. Treat as immutable.

    ``files`` maps file name to the bytes it was read from, so that ``save`` writes the very same directory even when
    the source has gone. ``model`` is the model's config.json, when there is one: some directories name the special ids
    only there.
    """

    def __init__(
        self, files: Mapping[str, bytes], *, model: Mapping[str, Any] | None = None, path: str = "memory"
    ) -> None:
        self.path = path
        self.files = dict(files)
        self._config = self._json("tokenizer_config.json")
        self._backend = self._load_backend()
        self.specials = self._named_tokens()
        """Special tokens by role, e.g. ``{"bos_token": "<s>"}``."""
        if self.specials:
            self._backend.add_special_tokens(
                [AddedToken(t, special=True, normalized=False) for t in self.specials.values()]
            )
        generation, shape = self._json("generation_config.json"), dict(model or {})
        self.vocab_size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)
        """Largest id plus one. A model's embedding may have more rows (padding) and then speaks ids without text."""
        self.base_vocab_size = 1 + max(self._backend.get_vocab(with_added_tokens=False).values(), default=-1)
        """The same without added tokens, which some directories have beyond the model's embedding."""
        self.bos_id = self._first_id("bos", self._named_id("bos_token"), generation, shape)
        self.eos_ids = self._eos_ids(generation, shape)
        """Ids that end a completion, as transformers' generate takes them: generation_config.json, else config.json,
        else the tokenizer's own end token. Empty when none of them names one."""
        self.pad_id = self._pad_id(generation, shape)
        """An id that is safe to embed; what padding says is never read."""
        added = self._backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        """Ids that ``decode`` leaves out."""

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """Read a Hugging Face directory. Raises ModelError when it has no usable tokenizer.json."""
        folder = Path(path)
        if not folder.is_dir():
            raise ModelError(f"model directory {folder} does not exist; give the path of a Hugging Face directory")
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            files[f"additional_chat_templates/{extra.name}"] = extra.read_bytes()
        model = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
        return cls(files, model=model, path=str(folder))

    def save(self, path: str | Path) -> None:
        """Write every file back, byte for byte, into the directory ``path``."""
        for name, content in self.files.items():
            target = Path(path) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    # ---------------------------------------------------------------- text

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of ``text``; with ``add_special``, between the special tokens the tokenizer puts around a text."""
        return list(self._backend.encode(text, add_special_tokens=add_special).ids)

    def encode_batch(self, texts: Sequence[str], *, add_special: bool = True) -> list[list[int]]:
        """``encode`` of each text, in parallel and without offsets."""
        return [list(e.ids) for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of ``text`` without special tokens, and the characters ``start <= k < end`` that each stands for."""
        found = self._backend.encode(text, add_special_tokens=False)
        return list(found.ids), [(int(a), int(b)) for a, b in found.offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens. Ids that the vocabulary lacks are left out."""
        return self._clean(self._backend.decode(list(ids), skip_special_tokens=True))

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """``decode`` of each row, in parallel."""
        return [self._clean(t) for t in self._backend.decode_batch([list(r) for r in rows], skip_special_tokens=True)]

    def continuation(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Text that ``ids`` add after the tokens ``before``.

        Differs from ``decode(ids)`` where a decoder strips the first space of a text (SentencePiece models): there the
        continuation keeps it, so that prompt text + continuation reads right.
        """
        head = self.decode(before)
        whole = self.decode([*before, *ids])
        return whole[len(head) :] if whole.startswith(head) else self.decode(ids)

    @cached_property
    def surfaces(self) -> tuple[str, ...]:
        """Text of each id in the middle of a sentence: empty for special tokens and gaps, with "\\ufffd" where the
        token is part of a character."""
        anchor = self._anchor()
        head = len(self.decode(anchor))
        return tuple(t[head:] for t in self.decode_batch([[*anchor, i] for i in range(self.vocab_size)]))

    def _anchor(self) -> list[int]:
        for letter in ("a", "e", "0"):
            ids = self.encode(letter, add_special=False)
            if self.decode(ids) == letter:
                return ids
        return []

    # ---------------------------------------------------------------- dialogue

    def render(self, turns: Sequence[Turn], *, generate: bool = True) -> str:
        """The dialogue as text under the model's chat template; with ``generate``, the assistant's next turn is opened.

        Encode the result with ``add_special=False``: templates write their own special tokens.
        Raises ModelError when the model has no template or the template refuses the dialogue.
        """
        template = self.chat_template
        if template is None:
            raise ModelError(
                f"{self.path} has no chat template (no chat_template.jinja, none in tokenizer_config.json), "
                "and the prompt is a dialogue. Use a chat model, or give the prompt as plain text."
            )
        try:
            from triloop.nn.chat import render_chat
        except ImportError as error:
            raise ModelError("chat templates need jinja2: pip install 'triloop[chat]'") from error
        return render_chat(template, turns, specials=self.specials, generate=generate, where=self.path)

    @cached_property
    def chat_template(self) -> str | None:
        """The template used for dialogues: the file before tokenizer_config.json, ``default`` among several."""
        if "chat_template.jinja" in self.files:
            return self.files["chat_template.jinja"].decode()
        found = self._json("chat_template.json").get("chat_template") or self._config.get("chat_template")
        if isinstance(found, list):
            found = {str(t["name"]): t["template"] for t in found}
        if isinstance(found, dict):
            if "default" not in found:
                names = ", ".join(sorted(found))
                raise ModelError(f"{self.path} has several chat templates ({names}) and none is named 'default'")
            found = found["default"]
        return None if found is None else str(found)

    # ---------------------------------------------------------------- reading the files

    def _json(self, name: str) -> dict[str, Any]:
        raw = self.files.get(name)
        return {} if raw is None else parse_json(raw, f"{self.path}/{name}")

    def _load_backend(self) -> tokenizers.Tokenizer:
        raw = self.files.get("tokenizer.json")
        if raw is None:
            found = "only a SentencePiece model" if "tokenizer.model" in self.files else "no tokenizer"
            raise ModelError(
                f"{self.path} has {found}, expected a tokenizer.json. Convert it once with transformers: "
                "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
            )
        try:
            backend = tokenizers.Tokenizer.from_str(raw.decode())
        except Exception as error:  # the library raises bare Exception for any fault in the file
            raise ModelError(f"{self.path}/tokenizer.json cannot be read: {error}. Copy the file again.") from error
        backend.no_padding()  # the file may ask for padded or cut batches; a policy wants neither
        backend.no_truncation()
        return backend

    def _named_tokens(self) -> dict[str, str]:
        sources = (
            [self._config]
            if "added_tokens_decoder" in self._config
            else [self._json("special_tokens_map.json"), self._config]
        )
        named = {}
        for role in NAMED:
            for source in sources:
                token = source.get(role)
                token = token.get("content") if isinstance(token, dict) else token
                if isinstance(token, str):
                    named[role] = token
                    break
        return named

    def _named_id(self, role: str) -> int | None:
        token = self.specials.get(role)
        return None if token is None else self._backend.token_to_id(token)

    def _first_id(self, role: str, own: int | None, *sources: Mapping[str, Any]) -> int | None:
        if own is not None:
            return own
        for source in sources:
            ids = _ids(source.get(f"{role}_token_id"))
            if ids:
                return ids[0]
        return None

    def _eos_ids(self, *sources: Mapping[str, Any]) -> tuple[int, ...]:
        for source in sources:
            ids = _ids(source.get("eos_token_id"))
            if ids:
                return ids
        own = self._named_id("eos_token")
        return () if own is None else (own,)

    def _pad_id(self, generation: Mapping[str, Any], model: Mapping[str, Any]) -> int:
        # A pad token is often added to the tokenizer without a row in the embedding; such an id must not be embedded.
        rows = int(model.get("vocab_size") or self.vocab_size)
        found = self._first_id("pad", self._named_id("pad_token"), generation, model)
        for candidate in (found, *self.eos_ids):
            if candidate is not None and 0 <= candidate < rows:
                return candidate
        return 0

    @cached_property
    def _cleans(self) -> bool:
        # transformers 5: the clean-up was made for WordPiece and is ignored for BPE unless forced.
        forced = bool(self._config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"))
        asked = bool(self._config.get("clean_up_tokenization_spaces"))
        return asked and (forced or not isinstance(self._backend.model, models.BPE))

    def _clean(self, text: str) -> str:
        if self._cleans:
            for got, wanted in _CLEANING:
                text = text.replace(got, wanted)
        return text


_CLEANING = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def _ids(value: Any) -> tuple[int, ...]:
    """Config files hold one id, a list of ids, or null. (-1 stands for "none" in some.)"""
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object, or ModelError naming ``where`` it is from."""
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise ModelError(
            f"{where} is not JSON ({error}). Copy the file again from where the model came from."
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"{where} holds a JSON {type(value).__name__}, expected an object.")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a model's file. Raises ModelError when it is missing, unreadable or not an object."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}. Is this a Hugging Face directory?") from error
    return parse_json(raw, str(path))


def char_tokenizer(chars: str) -> Tokenizer:
    """One token per character: ``<pad>`` 0, ``<bos>`` 1, ``<eos>`` 2, ``<unk>`` 3, then ``chars`` in order.

    Adds no special tokens to a text. The directory it saves loads with transformers' AutoTokenizer, too.
    """
    if len(set(chars)) != len(chars):
        raise ValueError(f"characters must be distinct, got {chars!r}")
    backend = _whole_words(chars)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # "." would leave out line ends
    backend.decoder = decoders.Fuse()
    return _made(backend)


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """One token per word between blanks, ids as in ``char_tokenizer``; a word that is not listed is ``<unk>``.

    A text of listed words with single blanks between them comes back as it was; other white space becomes one blank.
    The directory it saves loads with transformers' AutoTokenizer, too. ValueError for words that are not distinct, empty,
    or hold white space.
    """
    if len(set(words)) != len(words) or any(word.split() != [word] for word in words):
        raise ValueError(f"words must be distinct, not empty and without white space, got {list(words)!r}")
    backend = _whole_words(words)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _made(backend)  # without a decoder, tokens are joined by single blanks


_ROLES = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


def _whole_words(words: Sequence[str]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*_ROLES.values(), *words])}, unk_token="<unk>")
    )
    backend.add_special_tokens(list(_ROLES.values()))
    return backend


def _made(backend: tokenizers.Tokenizer) -> Tokenizer:
    # Without the explicit false, transformers 4 would remove spaces before punctuation when it decodes.
    config = {**_ROLES, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
              "model_max_length": 1_000_000}  # fmt: skip
    return Tokenizer(
        {
            "tokenizer.json": backend.to_str(pretty=True).encode(),
            "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        }
    )
