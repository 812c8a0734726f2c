"""What critiques in words become: signs on the words that they name."""

from __future__ import annotations

from triloop.atlas import lab
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_language import CLAUSES
from triloop.feedback.kinds import Text, write
from triloop.learn.examples import Rated
from triloop.loops.assemble import Pool, continuation, examples
from triloop.records import Completion, Episode


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
