"""Texts as the learner reads them: encoded rows, what was said of them, and batches whose pairs stay together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from triloop.feedback.conversions_text import spans_to_signs
from triloop.learn.batch import pad
from triloop.learn.reduction import Denominators
from triloop.nn.tokenizer import Tokenizer
from triloop.records import Prompt
from triloop.sources.reward_config import RewardConfig
from triloop.sources.reward_examples import RewardExample, RewardPair, RewardRating
from triloop.sources.reward_features import Features, SparseRows
from triloop.sources.templates import request_of

__all__ = ["Encoder", "Encoded", "RewardBatch", "Said", "Table", "flat", "table_of"]

_CHARS_PER_TOKEN = 64
"""A text is cut to this many characters for each position before it is encoded: no vocabulary packs more into a token."""

Encoded = tuple[list[int], list[int]]
"""Prompt tokens and completion tokens as the learner takes them; the end token stands twice at the end."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Turns (prompt, text) into a row that ends with the end token, its beginning cut off where it would be too long.

    The learner gives the state *before* each completion token, so the end token stands twice: the state before the second
    is the one after the whole text. Only that one is asked for, unless every token has an output.
    """

    tokenizer: Tokenizer
    positions: int
    vocab_size: int
    per_token: bool = False
    template: str = ""

    @property
    def end(self) -> int:
        """The token that ends a text."""
        ends = [t for t in self.tokenizer.eos_ids if t < self.vocab_size]
        return ends[0] if ends else self.tokenizer.pad_id

    def rows(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Encoded]:
        """One row per (prompt, text). Takes any text, however odd, empty or long."""
        if self.template:
            return [self._asked(p, t) for p, t in zip(prompts, texts, strict=True)]
        asked = {self._prompt_text(p) for p in prompts}
        known = {key: self._ids(*key) for key in asked}
        said = self._many([_clean(t, self.positions) for t in texts])
        return [self._row(known[self._prompt_text(p)], ids) for p, ids in zip(prompts, said, strict=True)]

    def _row(self, prompt: Sequence[int], text: Sequence[int]) -> Encoded:
        whole = [*prompt, *text, self.end][-self.positions :]
        if not self.per_token:
            return whole, [self.end]
        answer = min(len(text) + 1, len(whole) - 1)
        return (whole[:-answer], [*whole[-answer:], self.end]) if answer else (whole, [self.end])

    def _asked(self, prompt: Prompt, text: str) -> Encoded:
        filled = self.template.format_map({"request": request_of(prompt), "response": text})
        ids = self._ids(_clean(filled, self.positions), True)
        return ids[-self.positions :] or [self.end], [self.end]

    def _prompt_text(self, prompt: Prompt) -> tuple[str, bool]:
        """The prompt as text, and whether the tokenizer may put its own special tokens around it."""
        if not prompt.turns:
            return _clean(prompt.text, self.positions), True
        if self.tokenizer.chat_template is not None:
            return _clean(self.tokenizer.render(prompt.turns), self.positions), False
        return _clean(f"{request_of(prompt)}\n", self.positions), True

    def _ids(self, text: str, special: bool) -> list[int]:
        return [t for t in self.tokenizer.encode(text, add_special=special) if t < self.vocab_size]

    def _many(self, texts: Sequence[str]) -> list[list[int]]:
        found = self.tokenizer.encode_batch(texts, add_special=False)
        return [[t for t in ids if t < self.vocab_size] for ids in found]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Which characters ``start <= k < end`` of the text each of its tokens is."""
        seen = _clean(text, self.positions)
        cut = len(text) - len(seen)
        ids, found = self.tokenizer.encode_with_offsets(seen)
        return [(a + cut, b + cut) for t, (a, b) in zip(ids, found, strict=True) if t < self.vocab_size]

    def signs(self, example: RewardRating, time: int) -> list[float]:
        """What was said of the last ``time`` tokens of a text, the end token among them, of which nothing was said."""
        assert example.spans is not None
        return [*map(float, spans_to_signs(example.spans, self.offsets(example.text))), 0.0][-time:]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Said:
    """What was said of each example; NaN where nothing was."""

    pair: Bool[Tensor, " examples"]
    p: Float[Tensor, " examples"]
    tie: Bool[Tensor, " examples"]
    margin: Float[Tensor, " examples"]
    weight: Float[Tensor, " examples"]
    value: Float[Tensor, " examples"]
    attributes: Float[Tensor, "examples attributes"]
    """P(first) of a pair, the output's target of a rating."""
    signs: tuple[tuple[float, ...] | None, ...]
    """Of the tokens of a rated text, its end token last."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Rows to be computed, their features, and the examples that they belong to."""

    rows: list[Encoded]
    features: SparseRows | None
    owner: list[int]
    """The example of each row; the two rows of a pair follow each other."""
    said: Said

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.said.signs)

    def batch(self, examples: Sequence[int]) -> RewardBatch:
        """The rows of these examples, to be averaged over them."""
        starts = np.searchsorted(self.owner, examples)
        ends = np.searchsorted(self.owner, examples, side="right")
        index = [r for a, b in zip(starts, ends, strict=True) for r in range(int(a), int(b))]
        place = [k for k, (a, b) in enumerate(zip(starts, ends, strict=True)) for _ in range(int(b - a))]
        return RewardBatch.of(self.rows, index, place, examples)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewardBatch:
    """A ``TokenBatch`` that knows which row and which example of its table each of its rows is."""

    prompt_tokens: list[list[int]]
    tokens: list[list[int]]
    mask: Bool[Tensor, "batch time"]
    """True at every completion token; the last one stands for the whole text."""
    index: list[int]
    """Row of the table."""
    place: list[int]
    """Which unit each row belongs to; units follow each other."""
    example: list[int]
    """Example of the table, or -1 where nothing was said and rows are only to be scored."""
    denominators: Denominators

    @classmethod
    def of(
        cls, rows: Sequence[Encoded], index: Sequence[int], place: Sequence[int], examples: Sequence[int] = ()
    ) -> RewardBatch:
        """The rows ``index``, grouped in the units ``place``; ``examples`` of the units."""
        tokens = [rows[i][1] for i in index]
        units = float(len(set(place)))
        return cls(
            prompt_tokens=[rows[i][0] for i in index],
            tokens=tokens,
            mask=pad([[1.0] * len(t) for t in tokens]) > 0,
            index=list(index),
            place=list(place),
            example=[int(examples[k]) if len(examples) else -1 for k in place],
            denominators=Denominators(tokens=units, sequences=units, max_tokens=max(map(len, tokens), default=1)),
        )

    @property
    def alternatives(self) -> int:
        """No other tokens are looked at."""
        return 0

    def __len__(self) -> int:
        return len(self.tokens)

    def units(self) -> list[range]:
        """The rows of each example."""
        found, start = [], 0
        for _, group in groupby(self.place):
            end = start + sum(1 for _ in group)
            found.append(range(start, end))
            start = end
        return found

    def rows(self, index: Sequence[int]) -> RewardBatch:
        """Those rows, in that order. The denominators stay those of the whole."""
        tokens = [self.tokens[i] for i in index]
        return RewardBatch(
            prompt_tokens=[self.prompt_tokens[i] for i in index],
            tokens=tokens,
            mask=self.mask[list(index), : max(map(len, tokens), default=0)],
            index=[self.index[i] for i in index],
            place=[self.place[i] for i in index],
            example=[self.example[i] for i in index],
            denominators=self.denominators,
        )

    def counted_as(self, denominators: Denominators) -> RewardBatch:
        """The same rows with other denominators."""
        return replace(self, denominators=denominators)


def table_of(
    examples: Sequence[RewardExample], encoder: Encoder, features: Features | None, config: RewardConfig
) -> tuple[Table, dict[int, str]]:
    """All examples that have features, and why the others have none (by their position)."""
    prompts, texts, owner = flat(examples)
    known = features.rows(prompts, texts) if features is not None else None
    wrong = {owner[r]: why for r, why in (known.failures if known is not None else {}).items()}
    good = [i for i in range(len(examples)) if i not in wrong]
    if wrong:
        prompts, texts, owner = flat([examples[i] for i in good])
        known = features.rows(prompts, texts) if features is not None else None
    rows = encoder.rows(prompts, texts)
    kept = [examples[i] for i in good]
    first = {o: r for r, o in reversed(list(enumerate(owner)))}
    signs = tuple(_signs(e, encoder, rows[first[i]]) for i, e in enumerate(kept))
    return Table(rows=rows, features=known, owner=owner, said=_said(kept, config, signs)), wrong


def _signs(example: RewardExample, encoder: Encoder, row: Encoded) -> tuple[float, ...] | None:
    if isinstance(example, RewardPair) or example.spans is None or not encoder.per_token:
        return None
    return tuple(encoder.signs(example, len(row[1]) - 1))


def flat(examples: Sequence[RewardExample]) -> tuple[list[Prompt], list[str], list[int]]:
    """The texts of all examples with their prompts, and whose each is."""
    found = [(e.prompt, text, i) for i, e in enumerate(examples) for text in _texts(e)]
    return [p for p, _, _ in found], [t for _, t, _ in found], [i for _, _, i in found]


def _texts(example: RewardExample) -> Iterator[str]:
    if isinstance(example, RewardPair):
        yield example.first
        yield example.second
    else:
        yield example.text


def _said(examples: Sequence[RewardExample], config: RewardConfig, signs: tuple[tuple[float, ...] | None, ...]) -> Said:
    nan = float("nan")
    pairs = [e if isinstance(e, RewardPair) else None for e in examples]
    values = [e.value if isinstance(e, RewardRating) and e.value is not None else nan for e in examples]
    marks = [[e.attributes.get(name, nan) for name in config.attributes] for e in examples]
    return Said(
        pair=torch.tensor([e is not None for e in pairs], dtype=torch.bool),
        p=torch.tensor([nan if e is None else e.p for e in pairs]),
        tie=torch.tensor([e is not None and e.tie for e in pairs], dtype=torch.bool),
        margin=torch.tensor([0.0 if e is None else e.margin for e in pairs]),
        weight=torch.tensor([e.weight for e in examples], dtype=torch.float32),
        value=torch.tensor(values),
        attributes=torch.tensor(marks, dtype=torch.float32).reshape(len(examples), len(config.attributes)),
        signs=signs,
    )


def _clean(text: str, positions: int) -> str:
    """Without half characters, which no tokenizer takes; the end of what is far too long."""
    return text[-_CHARS_PER_TOKEN * positions :].encode("utf-8", "replace").decode("utf-8")
