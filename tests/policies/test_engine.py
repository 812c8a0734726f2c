"""The engine alone, over a model whose every next token is known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from torch import Tensor

from policies.small import CHARS, Chain, tokenizer
from triloop.errors import WorkError
from triloop.nn.tokenizer import Tokenizer
from triloop.policies.engine import Generated, Hooks, Request, generate
from triloop.policies.sampling import Sampling

TOKENS = tokenizer()
EOS = TOKENS.eos_ids[0]


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENS.encode(text))


def chain(text: str, *, then: int = EOS, **options: int) -> Chain:
    """Each character leads to the next, the last one to ``then``."""
    path = [*ids(text), then]
    return Chain(dict(pairwise(path)), **options)  # type: ignore[arg-type]


def run(stepper: Chain, texts: Sequence[str], sampling: Sampling, hooks: Hooks | None = None) -> list[Generated]:
    requests = [Request(ids(t), key) for key, t in enumerate(texts)]
    return generate(stepper, requests, sampling, TOKENS, hooks)


def test_nothing_to_do() -> None:
    assert generate(Chain({}), [], Sampling(), TOKENS) == []


def test_the_end_token_ends_and_is_part_of_the_tokens() -> None:
    (done,) = run(chain("0123"), ["01"], Sampling(max_tokens=9))
    assert (done.text, done.finish, done.tokens) == ("23", "stop", [*ids("23"), EOS])
    assert done.mask == [True] * 3
    assert done.logps == pytest.approx([0.0] * 3, abs=1e-6)


def test_max_tokens_ends() -> None:
    (done,) = run(chain("0123456789"), ["0"], Sampling(max_tokens=4))
    assert (done.text, done.finish, done.drawn) == ("1234", "length", 4)


def test_the_end_token_as_the_last_allowed_one_is_a_stop() -> None:
    (done,) = run(chain("012"), ["0"], Sampling(max_tokens=3))
    assert (done.text, done.finish) == ("12", "stop")


def test_a_stop_sequence_over_several_tokens_is_cut_from_the_text_and_kept_in_the_tokens() -> None:
    (done,) = run(chain("0123456789"), ["0"], Sampling(max_tokens=9, stop=("xyz", "45")))
    assert (done.text, done.finish, done.tokens) == ("123", "stop", list(ids("12345")))


def test_a_stop_sequence_is_not_found_in_the_prompt() -> None:
    (done,) = run(chain("0123456"), ["0123"], Sampling(max_tokens=3, stop=("123", "34")))
    assert (done.text, done.finish) == ("456", "length")


def test_banned_tokens_are_never_drawn() -> None:
    (done,) = run(chain("0123456"), ["0"], Sampling(max_tokens=3, banned_tokens=(*ids("1"), EOS)))
    assert not {*ids("1"), EOS} & {*done.tokens}
    assert done.logps[0] == pytest.approx(-50.0, abs=1e-3), "booked under the policy, not under what was left of it"


def test_a_logit_mask_forces_a_grammar() -> None:
    """Digits only, and only after the first token the end: whatever the model wants."""
    digits = [TOKENS.encode(c)[0] for c in "0123456789"]
    seen: list[tuple[int, int]] = []

    def mask(number: int, turn: Sequence[int]) -> Tensor:
        seen.append((number, len(turn)))
        allowed = torch.zeros(4 + len(CHARS), dtype=torch.bool)
        allowed[digits if len(turn) < 3 else EOS] = True
        return allowed

    done = run(chain("abcd"), ["a", "b"], Sampling(max_tokens=9), Hooks(logit_mask=mask))
    assert all(len(d.text) == 3 and d.text.isdigit() and d.finish == "stop" for d in done)
    assert sorted(seen) == [(n, t) for n in (0, 1) for t in range(4)]


def test_a_mask_that_allows_nothing_is_an_error() -> None:
    nothing = torch.zeros(4 + len(CHARS), dtype=torch.bool)
    with pytest.raises(WorkError, match=r"request 0 no token after 0.*end-of-sequence"):
        run(chain("ab"), ["a"], Sampling(max_tokens=2), Hooks(logit_mask=lambda n, turn: nothing))


# -------------------------------------------------------------------- rows


@pytest.mark.parametrize("refills", [True, False])
@pytest.mark.parametrize("slots", [1, 3, 7, 64])
def test_every_request_is_answered_in_its_place(slots: int, refills: bool) -> None:
    texts = [CHARS[i % 10] for i in range(40)]
    stepper = chain("0123456789", refills=refills)
    done = run(stepper, texts, Sampling(max_tokens=6, slots=slots))
    assert [d.text for d in done] == ["0123456789"[int(t) + 1 :][:6] for t in texts]
    assert len(stepper.admitted) == 40, "each prompt is started once"
    assert max(stepper.steps) <= slots


def test_finished_rows_are_refilled_and_the_tail_is_compacted() -> None:
    stepper = chain("0123456789")
    done = run(stepper, ["8", "5", "7"] * 10 + ["0"] * 2, Sampling(max_tokens=20, slots=8))
    assert {d.finish for d in done} == {"stop"}
    assert len(stepper.opened) == 1, "refilled in place"
    assert stepper.steps[0] == 8 and stepper.steps[-1] < 8
    assert len(stepper.steps) < 32 * 4 / 8 + 10


def test_a_stepper_may_have_room_for_fewer_rows() -> None:
    stepper = chain("0123456789", most_rows=2)
    assert [d.text for d in run(stepper, ["8"] * 5, Sampling(max_tokens=3))] == ["9"] * 5
    assert max(stepper.steps) <= 2


# -------------------------------------------------------------------- several turns


def test_turns_and_observations() -> None:
    """'0' -> '12\\n', the tool says '5', -> '67\\n', the episode is over."""
    line = ids("\n")[0]
    stepper = Chain({ids(a)[0]: ids(b)[0] for a, b in ("01", "12", "56", "67")} | {ids(c)[0]: line for c in "27"})
    heard: list[tuple[int, str]] = []

    def respond(number: int, text: str) -> Sequence[int] | None:
        heard.append((number, text))
        return ids("5") if text == "12" else None

    (done,) = run(stepper, ["0"], Sampling(max_tokens=20, stop=("\n",)), Hooks(respond=respond))
    assert heard == [(0, "12"), (0, "67")]
    assert done.tokens == list(ids("12\n567\n"))
    assert done.mask == [True, True, True, False, True, True, True]
    assert done.logps[3] == 0.0
    assert (done.text, done.finish, done.drawn) == ("1267", "stop", 6)
    assert stepper.admitted == [ids("0"), ids("012\n5")], "the second turn goes on from everything before it"


def test_the_token_budget_is_of_the_whole_episode() -> None:
    (done,) = run(chain("0123"), ["0"], Sampling(max_tokens=6), Hooks(respond=lambda n, text: ids("1")))
    assert done.drawn == 6 and done.finish == "length"
    assert done.tokens == [*ids("123"), EOS, *ids("1"), *ids("23")]
    assert done.mask[-1] and len(done.mask) == len(done.tokens) == len(done.logps)


def test_no_observation_follows_when_the_budget_is_spent() -> None:
    (done,) = run(chain("0123"), ["0"], Sampling(max_tokens=4), Hooks(respond=lambda n, text: ids("1")))
    assert done.mask == [True] * 4 and done.finish == "length"


def test_an_episode_that_outgrows_the_model_ends() -> None:
    def respond(number: int, text: str) -> Sequence[int]:
        return ids("0" * 10)

    requests = [Request(ids("0"), 0), Request(ids("1"), 1)]
    stepper = chain("0123")
    done = generate(stepper, requests, Sampling(max_tokens=50), TOKENS, Hooks(respond=respond), max_positions=20)
    assert all(d.finish == "length" and 1 + len(d.tokens) <= 20 for d in done)
    assert max(length for _, length in stepper.opened) <= 20


# -------------------------------------------------------------------- interruption


def test_an_interruption_returns_what_there_is() -> None:
    asked = iter(range(100))
    hooks = Hooks(interrupted=lambda: next(asked) >= 2)
    done = run(chain("0123456789"), ["0", "8", "0", "0"], Sampling(max_tokens=20, slots=2), hooks)
    assert [d.finish for d in done] == ["interrupted", "stop", "interrupted", "interrupted"]
    assert done[0].text == "123" and done[1].text == "9"
    assert done[3].tokens == [] and done[3].text == ""
    assert all(len(d.tokens) == len(d.logps) == len(d.mask) for d in done)


# -------------------------------------------------------------------- text


def spaced() -> Tokenizer:
    """Words that carry the space before them, which the decoder strips from the first one (as SentencePiece does)."""
    words = {"<unk>": 0, "</s>": 1, "▁the": 2, "▁cat": 3, "▁sat": 4, "s": 5, ".": 6}
    backend = Backend(models.WordLevel(words, unk_token="<unk>"))
    backend.add_special_tokens(["<unk>", "</s>"])
    backend.decoder = decoders.Metaspace()
    return Tokenizer({"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": b'{"eos_token": "</s>"}'})


def test_the_first_space_survives() -> None:
    tokens = spaced()
    stepper = Chain({2: 3, 3: 5, 5: 4, 4: 6, 6: 1})
    whole, stopped = generate(stepper, [Request((2,), 0), Request((2, 3), 1)], Sampling(max_tokens=9), tokens)
    assert tokens.decode([3, 5]) == "cats", "the decoder alone would lose it"
    assert (whole.text, stopped.text) == (" cats sat.", "s sat.")
    (cut,) = generate(stepper, [Request((2,), 0)], Sampling(max_tokens=9, stop=("s s",)), tokens)
    assert (cut.text, cut.finish, cut.tokens) == (" cat", "stop", [3, 5, 4])
