import pytest

from sources.judging import TEMPLATES, Fake, ask
from triloop.errors import ConfigError
from triloop.sources.constitution import Principle
from triloop.sources.lm_reply import ReplyJudge, ReplyPairs
from triloop.sources.templates import Templates

POLITE = Principle(name="polite", text="polite", question="polite")


def test_only_a_whole_reply_of_one_word_is_a_verdict():
    replies = {
        "own": "yes",
        "good": " no .",
        "fix": "none",
        "it": "yes no",
        "thanks": '{"verdict": "yes"}',
        "sorry": "Yes",
        "long": "\x1b[1myes",
        "rude": "",
        "bad": "yes|",
        "x": RuntimeError("timed out"),
    }
    from dataclasses import replace

    templates = replace(TEMPLATES, none=("none",))
    model = Fake(writes=lambda prompt, i: replies[prompt.split(" ; ")[1]])
    out = ReplyJudge(model, POLITE, templates).judge(ask(len(replies) + 1), [*replies, " "])
    assert [f.value for f in out] == [1.0, None, 0.0, *[None] * 8]
    assert all(f.failure for f in out if f.value is None)
    assert "timed out" in out[9].failure and "empty" in out[10].failure and "cut off" in out[8].failure
    assert model.sampled[0] == 10 and model.sampled[1:] == [1] * 10, "one batch; its failure is looked for, once each"


def test_a_full_stop_and_spaces_are_all_that_a_reply_may_add():
    model = Fake(writes=lambda prompt, i: " no. ", words=("no.", "x"))
    judge = ReplyJudge(model, Principle(name="rude", text="rude", wanted=False), TEMPLATES)
    assert judge.judge(ask(), ["x"])[0].value == 1.0, "no, it is not rude"


def test_the_response_is_never_read_as_the_reply():
    model = Fake(writes=lambda prompt, i: "no")
    assert ReplyJudge(model, POLITE, TEMPLATES).judge(ask(), ["yes"])[0].value == -1.0


@pytest.mark.parametrize(
    ("ab", "ba", "value"), [("A", "B", 1.0), ("B", "A", -1.0), ("A", "A", 0.0), ("B", "B", 0.0), ("none", "B", 0.0)]
)
def test_pairs_by_reply(ab, ba, value):
    from dataclasses import replace

    templates = replace(TEMPLATES, tie=("none",))
    model = Fake(writes=lambda prompt, i: ab if "A red" in prompt else ba)
    (f,) = ReplyPairs(model, POLITE, templates).compare(ask(1, "x"), ["red"], ["blue"])
    assert f.value == value
    if ab == ba == "A":
        assert dict(f.breakdown) == {"forward": 1.0, "backward": 0.0, "bias": 1.0}


def test_both_orders_must_be_readable():
    model = Fake(writes=lambda prompt, i: "A" if "A red" in prompt else "red is better")
    out = ReplyPairs(model, POLITE, TEMPLATES).compare(ask(2, "x"), ["red", ""], ["blue", "x"])
    assert [f.value for f in out] == [None, None] and "expected one of 'A', 'B'" in out[0].failure


def test_words_that_look_alike_are_refused():
    with pytest.raises(ConfigError, match="none of them twice"):
        ReplyJudge(Fake(), POLITE, Templates(yes=("Yes", " Yes")))
