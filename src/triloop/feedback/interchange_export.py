"""Items as rows that other trainers read: pairs, labels, demonstrations. What a form cannot say is counted and left out.

The columns are those of TRL's data set formats: ``prompt``, ``chosen``, ``rejected``; ``prompt``, ``completion``,
``label``; ``prompt``, ``completion``. A prompt with turns is written as messages, and then so are its responses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from triloop.errors import UsageError
from triloop.feedback.contents import Edit, Pair, Ranking, Scalar
from triloop.feedback.conversions_values import pairs_to_scores, ranking_to_pairs, scalar_to_ternary, scores_to_pairs
from triloop.feedback.interchange_records import ImportedItem, Response
from triloop.feedback.kinds import read
from triloop.records import Completion, Feedback, Prompt

__all__ = ["EXPORTS", "Choice", "Export", "Pairing", "Ties", "grouped", "values_of"]

Ties = Literal["drop", "keep"]
Pairing = Literal["extremes", "all"]
Choice = Literal["best", "accepted"]
_NUMBERS = ("scalar", "ternary", "rubric", "abstention")


@dataclass(kw_only=True)
class Export:
    """How items become rows. ``left_out`` counts by reason what has no row, as rows are made."""

    pairing: Pairing = "extremes"
    """``extremes``: the best against the worst of a prompt; ``all``: every two responses of different value."""
    tie: float = 0.0
    """Values that differ by no more than this are a tie."""
    ties: Ties = "drop"
    """``keep`` writes a tie as a row with ``tie`` true, for losses that know ties; others must not see these rows."""
    dead_zone: float = 0.2
    """Means within it are labelled 0."""
    choice: Choice = "best"
    """Demonstrations: the ``best`` response of a prompt if it was judged good, or every ``accepted`` one."""
    left_out: Counter[str] = field(default_factory=Counter)

    def pairs(self, item: ImportedItem) -> Iterator[dict[str, Any]]:
        """Preferences that were given (pairs, rankings, edits), then those that follow from values."""
        seen: set[frozenset[str]] = set()
        texts = {r.id: r for r in item.responses}
        for first, second, said in (*_given(item, texts), *self._valued(item)):
            both = frozenset((first.text, second.text))
            if len(both) < 2 or both in seen:
                self.left_out["texts that are equal or paired already"] += 1
                continue
            if said.tie and self.ties == "drop":
                self.left_out["ties"] += 1
                continue
            seen.add(both)
            better, worse = (second, first) if said.preference < 0 else (first, second)
            tie = {"tie": said.tie} if self.ties == "keep" else {}
            row = {"prompt": _prompt(item.prompt), "chosen": _response(item.prompt, better)}
            yield {**row, "rejected": _response(item.prompt, worse), "strength": said.strength, **tie}

    def ternary(self, item: ImportedItem) -> Iterator[dict[str, Any]]:
        """Every judged response with -1, 0 or 1; where only pairs were judged, by who won more than it lost."""
        values = values_of(item) or _won(item)
        for response in item.responses:
            if response.id not in values:
                self.left_out["no number was said of it"] += 1
                continue
            label = scalar_to_ternary(Scalar(values[response.id]), dead_zone=self.dead_zone).value
            yield {"prompt": _prompt(item.prompt), "completion": _response(item.prompt, response), "label": label}

    def labels(self, item: ImportedItem) -> Iterator[dict[str, Any]]:
        """Every judged response with true or false, for trainers of unpaired preferences; zeros have no place there."""
        for row in self.ternary(item):
            if row["label"] == 0:
                self.left_out["labels of 0"] += 1
            else:
                yield {**row, "label": row["label"] > 0}

    def sft(self, item: ImportedItem) -> Iterator[dict[str, Any]]:
        """Demonstrations, revisions, and responses that were judged good."""
        values = values_of(item) or _won(item)
        good = [r for r in item.responses if values.get(r.id, 0.0) > self.dead_zone]
        if self.choice == "best" and good:
            good = [max(good, key=lambda r: values[r.id])]
        revised = [Response(id="", text=c.revised) for c in _said(item, Edit)]
        chosen = [*good, *revised] if item.feedback else list(item.responses)
        texts = dict.fromkeys(r.text for r in chosen)
        self.left_out["not chosen"] += len(item.responses) - len({r.text for r in item.responses} & texts.keys())
        for text in texts:
            response = next(r for r in chosen if r.text == text)
            yield {"prompt": _prompt(item.prompt), "completion": _response(item.prompt, response)}

    def _valued(self, item: ImportedItem) -> Iterator[tuple[Response, Response, Pair]]:
        values = values_of(item)
        judged = [r for r in item.responses if r.id in values]
        if len(judged) < 2:
            return
        if self.pairing == "extremes":
            judged = [max(judged, key=lambda r: values[r.id]), min(reversed(judged), key=lambda r: values[r.id])]
        said = scores_to_pairs([Scalar(values[r.id]) for r in judged], tie=self.tie)
        yield from ((judged[i], judged[j], pair) for i, j, pair in said)


Rows = Callable[[Export, ImportedItem], Iterator[dict[str, Any]]]
EXPORTS: Mapping[str, Rows] = {
    "pairs": Export.pairs,
    "ternary": Export.ternary,
    "labels": Export.labels,
    "sft": Export.sft,
}
"""Every form that items can be written in."""


def values_of(item: ImportedItem) -> dict[str, float]:
    """Mean value of each response, weighed by confidence: of what was said of it in numbers. Failures say nothing."""
    total: dict[str, float] = {}
    weight: dict[str, float] = {}
    only = [r.id for r in item.responses] if len(item.responses) == 1 else []
    for f in item.feedback:
        if f.failed or f.value is None or f.kind not in _NUMBERS:
            continue
        for id in f.about or only:
            total[id] = total.get(id, 0.0) + f.confidence * f.value
            weight[id] = weight.get(id, 0.0) + f.confidence
    return {id: total[id] / weight[id] if weight[id] else 0.0 for id in total}


def grouped(
    prompts: Mapping[str, Prompt], completions: Iterable[Completion], feedback: Mapping[str, Sequence[Feedback]]
) -> Iterator[ImportedItem]:
    """One item for each prompt of a round: its completions as responses, and all that was said of them."""
    groups: dict[tuple[int, str], list[Completion]] = {}
    for c in completions:
        groups.setdefault((c.round, c.prompt_id), []).append(c)
    for (round, prompt_id), drawn in groups.items():
        if prompt_id not in prompts:
            raise UsageError(
                f"prompt {prompt_id!r} of round {round} is not among the prompts; expected every prompt's row"
            )
        yield ImportedItem(
            prompt=prompts[prompt_id],
            responses=tuple(Response(id=c.id, text=c.text) for c in drawn),
            feedback=tuple(f if f.about else replace(f, about=(c.id,)) for c in drawn for f in feedback.get(c.id, ())),
            where=f"round {round}",
        )


def _given(item: ImportedItem, texts: Mapping[str, Response]) -> Iterator[tuple[Response, Response, Pair]]:
    for f in item.feedback:
        content = None if f.failed or f.kind not in ("pair", "ranking", "edit") else read(f)
        known = [texts.get(id) for id in f.about]
        if isinstance(content, Edit) and known and known[0] is not None:
            yield Response(id="", text=content.revised), known[0], Pair(1)
        if isinstance(content, Pair):
            ways = [(0, 1, content)] if f.about else []
        else:
            ways = ranking_to_pairs(content) if isinstance(content, Ranking) and f.about else []
        for i, j, pair in ways:
            first, second = known[i], known[j]
            if first is not None and second is not None:
                yield first, second, pair


def _won(item: ImportedItem) -> dict[str, float]:
    """Wins less losses of each response that was compared, for items without a number."""
    pairs = [(a, b, said) for a, b, said in _given(item, {r.id: r for r in item.responses}) if a.id]
    place = {id: k for k, id in enumerate(dict.fromkeys(r.id for a, b, _ in pairs for r in (a, b)))}
    scores = pairs_to_scores([(place[a.id], place[b.id], said) for a, b, said in pairs if a.id != b.id], len(place))
    return {id: scores[k].value for id, k in place.items()}


def _said(item: ImportedItem, kind: type[Edit]) -> list[Edit]:
    told = [read(f) for f in item.feedback if not f.failed and f.kind == "edit"]
    return [content for content in told if isinstance(content, kind)]


def _prompt(prompt: Prompt) -> Any:
    return [{"role": t.role, "content": t.text} for t in prompt.turns] if prompt.turns else prompt.text


def _response(prompt: Prompt, response: Response) -> Any:
    if response.turns:
        return [{"role": t.role, "content": t.text} for t in response.turns]
    return [{"role": "assistant", "content": response.text}] if prompt.turns else response.text
