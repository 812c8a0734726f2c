"""From collected judgements to what the learner eats: each example says what was judged, how, and how sure the judge was.

What is read natively comes from feedback of that very kind; asked ``widely``, every other kind is converted, and each
conversion says in ``triloop.feedback`` what it loses. Confidence becomes the weight of an example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, groupby

from triloop.feedback.contents import Edit, Pair, Ranking, Sign, Span, Spans, Text
from triloop.feedback.conversions_text import spans_to_signs, text_to_spans, text_to_ternary
from triloop.feedback.conversions_values import pair_to_ternary, ranking_to_pairs
from triloop.feedback.kinds import read
from triloop.learn.examples import Consumes, Demonstration, Example, Preference, Rated
from triloop.policies.protocol import Policy
from triloop.records import Completion, Episode, Feedback, Prompt
from triloop.sources.reward_examples import RewardExample, RewardPair, RewardRating

__all__ = ["Pool", "conditioned", "continuation", "examples", "offsets", "passages", "reward_examples"]

_NUMBERS = ("ternary", "scalar", "rubric", "abstention")
_SAME = 1e-9
"""Values closer than this are a tie."""


def continuation(policy: Policy, prompt: Prompt, text: str) -> tuple[int, ...]:
    """Tokens of a text that follows a prompt, with the end of the sequence: as the policy itself would have written it."""
    head = policy.encode(prompt)
    eos = tuple(policy.tokenizer.eos_ids[:1])
    if not prompt.turns:
        whole = policy.encode(dataclasses.replace(prompt, text=prompt.text + text))
        if whole[: len(head)] == head:
            return (*whole[len(head) :], *eos)
    return (*policy.tokenizer.encode(text, add_special=False), *eos)


@dataclass(frozen=True)
class Pool:
    """Judged episodes, and the policy whose tokens they are read in."""

    episodes: Sequence[Episode]
    policy: Policy
    clauses: Sequence[tuple[str, Sign]] = ()
    """How the task's critics name words of the text, such as ("rude {}", -1); quotation marks are understood anyway."""

    @cached_property
    def by_id(self) -> Mapping[str, Completion]:
        """Completions by their identifier."""
        return {e.completion.id: e.completion for e in self.episodes}

    @cached_property
    def groups(self) -> list[list[Episode]]:
        """Episodes of one prompt and one round, together."""
        return [list(g) for _, g in groupby(self.episodes, key=lambda e: (e.completion.round, e.prompt.id))]

    def judgements(self) -> Iterator[tuple[Episode, Feedback]]:
        """Every judgement that succeeded, with the episode that it is stored with."""
        for episode in self.episodes:
            yield from ((episode, f) for f in episode.feedback if not f.failed)


def examples(pool: Pool, consumes: Consumes, *, widely: bool = True) -> list[Example]:
    """What an objective that eats ``consumes`` can learn from the pool. ``widely``: from other kinds of feedback too."""
    makers: dict[Consumes, tuple[_Maker, _Maker]] = {
        "pairs": (_pairs, _ranked_groups),
        "rated": (_numbers, _sides),
        "spans": (_spans, _whole_signs),
        "demonstrations": (_edits, _winners),
    }
    native, other = makers[consumes]
    found: list[Example] = [*native(pool)]
    return [*found, *other(pool)] if widely else found


_Maker = Callable[[Pool], Iterator[Example]]


# ---------------------------------------------------------------------- pairs


def _pairs(pool: Pool) -> Iterator[Example]:
    """Pairs and rankings as they were given; an edit is a pair of the revised text over the original."""
    for _, f in pool.judgements():
        content = read(f) if f.kind in ("pair", "ranking") else None
        if isinstance(content, Pair):
            yield from _versus(pool, f, [(0, 1, content)])
        elif isinstance(content, Ranking):
            yield from _versus(pool, f, ranking_to_pairs(content))


def _versus(pool: Pool, f: Feedback, pairs: Sequence[tuple[int, int, Pair]]) -> Iterator[Example]:
    for i, j, content in pairs:
        first, second = (pool.by_id.get(f.about[k]) for k in (i, j))
        if (
            first is not None
            and second is not None
            and first.tokens
            and second.tokens
            and first.tokens != second.tokens
        ):
            yield _preference(first, second, content.preference, f.confidence)


def _preference(first: Completion, second: Completion, sign: int, weight: float) -> Preference:
    return Preference(
        prompt_tokens=first.prompt_tokens,
        first=first.tokens,
        second=second.tokens,
        p=0.5 + sign / 2,
        tie=sign == 0,
        weight=weight,
    )


def _ranked_groups(pool: Pool) -> Iterator[Example]:
    """Every two completions of a group whose judgements are numbers, and every edit over what it mended."""
    for group in pool.groups:
        rated = [(e.completion, f.value, f.confidence) for e in group for f in e.feedback[:1] if _number(f)]
        for (a, x, s), (b, y, t) in combinations(rated, 2):
            if a.tokens and b.tokens and a.tokens != b.tokens and x is not None and y is not None:
                sign = 0 if abs(x - y) < _SAME else 1 if x > y else -1
                yield _preference(a, b, sign, min(s, t))
    for episode, tokens, f in _revised(pool):
        c = episode.completion
        if c.tokens and tuple(tokens) != c.tokens:
            yield Preference(prompt_tokens=c.prompt_tokens, first=tokens, second=c.tokens, weight=f.confidence)


def _number(f: Feedback) -> bool:
    return f.kind in _NUMBERS and not f.failed and f.value is not None


# ---------------------------------------------------------------------- values


def _numbers(pool: Pool) -> Iterator[Example]:
    for episode, f in pool.judgements():
        if _number(f) and episode.completion.tokens:
            yield _rated(episode.completion, float(f.value or 0.0), f.confidence)


def _sides(pool: Pool) -> Iterator[Example]:
    """Each side of a pair on its own, critiques by their sign, and what edits replaced and put in its place."""
    for episode, f in pool.judgements():
        content = read(f) if f.kind in ("pair", "text") else None
        if isinstance(content, Pair):
            for id, side in zip(f.about, pair_to_ternary(content), strict=False):
                if id in pool.by_id and pool.by_id[id].tokens:
                    yield _rated(pool.by_id[id], float(side.value), f.confidence)
        elif isinstance(content, Text) and episode.completion.tokens:
            yield _rated(episode.completion, float(text_to_ternary(content).value), f.confidence)
    for episode, tokens, f in _revised(pool):
        c = episode.completion
        yield Rated(prompt_tokens=c.prompt_tokens, tokens=tokens, value=1.0, weight=f.confidence)
        if c.tokens and tuple(tokens) != c.tokens:
            yield _rated(c, -1.0, f.confidence)


def _rated(c: Completion, value: float, weight: float) -> Rated:
    return Rated(prompt_tokens=c.prompt_tokens, tokens=c.tokens, mask=c.mask, value=value, weight=weight)


# ---------------------------------------------------------------------- spans


def _spans(pool: Pool) -> Iterator[Example]:
    """Marked passages, and critiques that name passages: one sign a token."""
    for episode, marked, f in _marked(pool):
        if marked.spans:
            yield _signed(pool, episode.completion, marked, f.confidence)


def _marked(pool: Pool) -> Iterator[tuple[Episode, Spans, Feedback]]:
    """Every text that was marked, or criticised in words that name passages. Praise that names none is of every token."""
    for episode, f in pool.judgements():
        if f.kind not in ("spans", "text") or not episode.completion.tokens:
            continue
        marked, text = read(f), episode.completion.text
        if isinstance(marked, Text):
            said = marked
            marked = text_to_spans(said, text=text, templates=pool.clauses, missing=bool(pool.clauses))
            if not marked.spans and said.sign == 1 and text:
                marked = Spans((Span(0, len(text), 1, said.critique),))
        if isinstance(marked, Spans):
            yield episode, marked, f


def _signed(pool: Pool, c: Completion, marked: Spans, weight: float) -> Rated:
    signs = spans_to_signs(marked, offsets(pool.policy, c.tokens))
    return Rated(prompt_tokens=c.prompt_tokens, tokens=c.tokens, mask=c.mask, signs=signs, weight=weight, level="span")


def _whole_signs(pool: Pool) -> Iterator[Example]:
    """A number for the whole text, on every token of it."""
    for episode, f in pool.judgements():
        c = episode.completion
        if _number(f) and c.tokens:
            signs = (float(f.value or 0.0),) * len(c.tokens)
            yield Rated(prompt_tokens=c.prompt_tokens, tokens=c.tokens, mask=c.mask, signs=signs, weight=f.confidence)


def offsets(policy: Policy, tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Where each token's characters stand in the decoded text; (n, n) for one that has none."""
    ends = [len(policy.tokenizer.decode(tokens[: i + 1])) for i in range(len(tokens))]
    return list(zip([0, *ends[:-1]], ends, strict=True))


# ---------------------------------------------------------------------- demonstrations


def _edits(pool: Pool) -> Iterator[Example]:
    """What was revised, as it was revised; and what a teacher wrote, which nobody has judged."""
    for episode, tokens, f in _revised(pool):
        yield Demonstration(prompt_tokens=episode.completion.prompt_tokens, tokens=tokens, weight=f.confidence)
    for episode in pool.episodes:
        c = episode.completion
        if not episode.feedback and c.tokens:
            yield Demonstration(prompt_tokens=c.prompt_tokens, tokens=c.tokens, mask=c.mask)


def _winners(pool: Pool) -> Iterator[Example]:
    """The best of each group whose judgements are numbers, where one is better than another; the better side of a pair."""
    for group in pool.groups:
        rated = [(float(f.value or 0.0), e.completion) for e in group for f in e.feedback[:1] if _number(f)]
        if rated and max(v for v, _ in rated) > min(v for v, _ in rated) + _SAME:
            _, best = max(rated, key=lambda pair: pair[0])
            if best.tokens:
                yield Demonstration(prompt_tokens=best.prompt_tokens, tokens=best.tokens, mask=best.mask)
    for _, f in pool.judgements():
        content = read(f) if f.kind == "pair" else None
        if isinstance(content, Pair) and content.preference:
            winner = pool.by_id.get(f.about[0 if content.preference > 0 else 1])
            if winner is not None and winner.tokens:
                yield Demonstration(
                    prompt_tokens=winner.prompt_tokens, tokens=winner.tokens, mask=winner.mask, weight=f.confidence
                )


def _revised(pool: Pool) -> Iterator[tuple[Episode, tuple[int, ...], Feedback]]:
    """Every edit, with the tokens of the revised text."""
    for episode, f in pool.judgements():
        content = read(f) if f.kind == "edit" else None
        if isinstance(content, Edit):
            yield episode, continuation(pool.policy, episode.prompt, content.revised), f


# ---------------------------------------------------------------------- texts


def reward_examples(pool: Pool) -> list[RewardExample]:
    """What a reward model learns from: pairs, rankings and edits as they were given, and numbers: those of a group against
    each other, that of a single sample as a rating. Whoever abstained on a single sample said nothing of it.

    Confidence becomes the label of a pair, so that doubtful votes pull less (``sources.reward_examples.pair_from``).
    """
    found: list[RewardExample] = []
    for episode, f in pool.judgements():
        content = read(f) if f.kind in ("pair", "ranking", "edit") else None
        if isinstance(content, Edit):
            found.append(RewardPair(prompt=episode.prompt, first=content.revised, second=episode.completion.text))
        pairs = [(0, 1, content)] if isinstance(content, Pair) else []
        pairs = ranking_to_pairs(content) if isinstance(content, Ranking) else pairs
        for i, j, pair in pairs:
            if f.about[i] in pool.by_id and f.about[j] in pool.by_id:
                first, second = (pool.by_id[f.about[k]].text for k in (i, j))
                p = (1 + pair.preference * f.confidence) / 2
                tie = pair.preference == 0
                weight = f.confidence if tie else 1.0
                found.append(RewardPair(prompt=episode.prompt, first=first, second=second, p=p, tie=tie, weight=weight))
    for group in pool.groups:
        rated = [(e, float(f.value or 0.0)) for e in group for f in e.feedback[:1] if _number(f)]
        for (a, x), (b, y) in combinations(rated, 2):
            p = 0.5 if abs(x - y) < _SAME else float(x > y)
            texts = (a.completion.text, b.completion.text)
            found.append(RewardPair(prompt=a.prompt, first=texts[0], second=texts[1], p=p, tie=p == 0.5))
        if len(group) == 1:
            found += [_rating(group[0], f) for f in group[0].feedback[:1] if _number(f) and f.kind != "abstention"]
    return [x for x in found if isinstance(x, RewardRating) or x.first != x.second]


def passages(pool: Pool) -> list[RewardExample]:
    """What a reward model with an output per token learns from: marked passages, and critiques that name some."""
    return [
        RewardRating(prompt=e.prompt, text=e.completion.text, spans=marked, weight=f.confidence)
        for e, marked, f in _marked(pool)
    ]


def _rating(e: Episode, f: Feedback) -> RewardRating:
    return RewardRating(prompt=e.prompt, text=e.completion.text, value=f.value, weight=f.confidence)


def conditioned(
    pool: Pool, condition: Callable[[Prompt, str], Prompt], words: Callable[[Feedback], str]
) -> list[Example]:
    """Every judged completion, to be imitated under the feedback that it got: its prompt then asks for just that.

    ``condition`` puts words before a prompt, ``words`` says a judgement in them. Feedback-conditional policy (S001).
    """
    found: list[Example] = []
    for episode, f in pool.judgements():
        c = episode.completion
        if c.tokens and (said := words(f)):
            tokens = pool.policy.encode(condition(episode.prompt, said))
            found.append(Demonstration(prompt_tokens=tokens, tokens=c.tokens, mask=c.mask, weight=f.confidence))
    return found
