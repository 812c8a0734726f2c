"""What critiques in words become: signs on the words that they name."""

from __future__ import annotations

from triloop.atlas import lab
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_language import CLAUSES
from triloop.feedback.kinds import Abstention, Scalar, Ternary, Text, write
from triloop.learn.examples import Rated
from triloop.loops.assemble import Pool, continuation, examples, passages, reward_examples
from triloop.records import Completion, Episode, Feedback, Prompt
from triloop.sources.reward_examples import RewardPair, RewardRating


def _pool(said: Text, clauses: tuple[tuple[str, int], ...]) -> Pool:
    policy, text = lab.fresh(), "the ugly fox is red ."
    prompt = Attributes().parse("tell fox red den :")
    tokens = continuation(policy, prompt, text)
    own = Completion(
        id="c", prompt_id=prompt.id, round=1, index=0, prompt_tokens=policy.encode(prompt), tokens=tokens,
        logps=(0.0,) * len(tokens), mask=(True,) * len(tokens), text=text, finish="stop", policy_version=0,
    )  # fmt: skip
    told = write(said, source="person", about=("c",))
    return Pool([Episode(prompt=prompt, completion=own, feedback=(told,), reward=None)], policy, clauses)  # type: ignore[arg-type]


def _signs(said: Text, clauses: tuple[tuple[str, int], ...] = CLAUSES) -> list[tuple[float, ...]]:
    found = examples(_pool(said, clauses), "spans", widely=False)
    return [e.signs or () for e in found if isinstance(e, Rated)]


def test_what_a_critique_names_is_bad_and_what_is_missing_should_have_come_by_the_end() -> None:
    assert _signs(Text("rude ugly", -1)) == [(0, -1, 0, 0, 0, 0, 0)], "words, then the end of the sequence"
    assert _signs(Text("rude ugly ; missing den", -1)) == [(0, -1, 0, 0, 0, -1, 0)]


def test_praise_without_a_place_is_of_every_word() -> None:
    assert _signs(Text("good", 1)) == [(1, 1, 1, 1, 1, 1, 0)]


def test_words_that_no_template_knows_say_nothing_of_places() -> None:
    assert _signs(Text("rude ugly", -1), ()) == []
    assert _signs(Text("not polite", -1)) == []


def _answer(name: str, text: str, *said: Feedback, prompt: str = "p") -> Episode:
    own = Completion(
        id=name, prompt_id=prompt, round=1, index=0, prompt_tokens=(1,), tokens=(2,), logps=(0.0,), mask=(True,), text=text,
        finish="stop", policy_version=0,
    )  # fmt: skip
    return Episode(prompt=Prompt(id=prompt, text="?"), completion=own, feedback=said, reward=None)


def test_a_number_for_a_single_answer_is_a_rating_and_for_a_group_a_comparison() -> None:
    alone = _answer("a", "x", write(Scalar(0.5), source="user", confidence=0.8))
    silent = _answer("b", "y", write(Abstention("said nothing"), source="user"), prompt="q")
    first = _answer("c", "v", write(Ternary(1), source="user"), prompt="r")
    second = _answer("d", "w", write(Ternary(-1), source="user"), prompt="r")
    found = reward_examples(Pool([alone, silent, first, second], lab.fresh()))
    rating, pair = found
    assert isinstance(rating, RewardRating) and (rating.text, rating.value, rating.weight) == ("x", 0.5, 0.8)
    assert isinstance(pair, RewardPair) and (pair.first, pair.second, pair.p) == ("v", "w", 1.0)


def test_passages_for_a_model_of_words() -> None:
    marked = passages(_pool(Text("rude ugly", -1), CLAUSES))
    (only,) = marked
    assert isinstance(only, RewardRating) and only.spans is not None and only.value is None
    assert [(s.start, s.end, s.sign) for s in only.spans.spans] == [(4, 8, -1)]
    assert passages(Pool([_answer("a", "x", write(Scalar(0.5), source="user"))], lab.fresh())) == []
