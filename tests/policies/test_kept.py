"""What sampling computed is not computed again by the learner, and that changes nothing but the time."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from triloop.errors import ConfigError
from triloop.kernels import panels
from triloop.kernels.native import available
from triloop.loops.build import policy_path
from triloop.nn import kernel_decoding as decoding
from triloop.nn.answers import Recalled, numbers_per_token
from triloop.nn.packing import prefix_tree
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Prompt
from triloop.ternary.config import TernaryConfig

pytestmark = pytest.mark.skipif(not available(), reason="the compiled kernels are not built")

LEARNED = Tag(seed=3, round=1, learned=True)
Respond = Callable[[int, str], list[int] | None]


def policy(name: str = "base:arithmetic", **settings: object) -> NativePolicy:
    return NativePolicy.load(policy_path(name), **settings)  # type: ignore[arg-type]


def prompts(count: int = 7) -> list[Prompt]:
    return [Prompt(id=str(i), text=("0123456789+-=" * 3)[: 3 + 2 * i]) for i in range(count)]


def sample(p: NativePolicy, tag: Tag = LEARNED, respond: Respond | None = None, **options: object) -> list[Completion]:
    settings: dict[str, object] = {"max_tokens": 24, "slots": 20} | options
    return p.sample(prompts(), 6, Sampling(**settings), tag, respond=respond)  # type: ignore[arg-type]


def sequences(done: list[Completion]) -> list[list[int]]:
    return [[*c.prompt_tokens, *c.tokens[:-1]] for c in done]


def recalled(p: NativePolicy, done: list[Completion]) -> Recalled | None:
    asked = sequences(done)
    found = p._known(asked, prefix_tree(asked)[1])
    assert found is None or isinstance(found, Recalled)
    return found


def gradient(p: NativePolicy, done: list[Completion]) -> str:
    """Of the sum of squared states; a digest of the states' and the gradient's bits."""
    p.decoder.zero_grad()
    states = p.learner.network.hidden(sequences(done))
    states.square().sum().backward()  # type: ignore[no-untyped-call]
    grads = [q.grad for q in p.decoder.parameters() if q.grad is not None]
    assert len(grads) > 10
    return hashlib.sha256(b"".join(x.detach().numpy().tobytes() for x in (states, *grads))).hexdigest()


def assert_as_computed(p: NativePolicy, done: list[Completion]) -> None:
    """The same states and gradients with what is kept and without; it is forgotten then."""
    kept = gradient(p, done)
    p._answers = None
    assert kept == gradient(p, done)


def assert_all_kept(p: NativePolicy, done: list[Completion]) -> None:
    found = recalled(p, done)
    assert found is not None and not len(found.missing)


def products(p: NativePolicy, done: list[Completion]) -> int:
    """Operations of our products in a forward pass over these."""
    before = panels.tally()[0]
    with torch.no_grad():
        p.learner.network.hidden(sequences(done))
    return panels.tally()[0] - before


# ---------------------------------------------------------------------- same numbers, fewer products


def test_the_forward_pass_multiplies_nothing() -> None:
    plain, keeping = policy(keep_bytes=0), policy()
    done = sample(keeping)
    assert [c.tokens for c in sample(plain)] == [c.tokens for c in done]
    assert products(plain, done) > 0 == products(keeping, done)
    assert gradient(plain, done) == gradient(keeping, done)


def test_what_found_no_room_is_multiplied() -> None:
    plain, cramped = policy(keep_bytes=0), policy()
    cramped = policy(keep_bytes=50 * 4 * numbers_per_token(cramped.decoder.config) + 17)
    done = sample(cramped)
    assert cramped.kept_tokens == 50
    found = recalled(cramped, done)
    assert found is not None and 0 < len(found.missing) < len(found.slots)
    assert 0 < products(cramped, done) < products(plain, done)
    assert gradient(plain, done) == gradient(cramped, done)


@pytest.mark.parametrize("slots", [1, 5, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_slots_and_threads_change_nothing(slots: int, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        p = policy()
        done = sample(p, slots=slots)
        assert_all_kept(p, done)
        assert_as_computed(p, done)
    finally:
        torch.set_num_threads(before)


def test_samples_of_one_version_come_together() -> None:
    p = policy()
    first, second = sample(p), sample(p, dataclasses.replace(LEARNED, round=2))
    assert [c.tokens for c in first] != [c.tokens for c in second]
    assert_all_kept(p, [*first, *second])


def test_episodes_of_several_turns() -> None:
    p, asked = policy(), []

    def respond(number: int, text: str) -> list[int] | None:
        asked.append(number)
        return None if asked.count(number) > 1 else [5, 6, 7]

    done = sample(p, respond=respond, max_tokens=40)
    assert any(not all(c.mask) for c in done)
    assert_all_kept(p, done)
    assert_as_computed(p, done)


def test_other_sequences_are_computed() -> None:
    p = policy()
    done = sample(p)
    longer = [dataclasses.replace(c, tokens=(*c.tokens, 1, 2)) for c in done]
    assert recalled(p, longer) is None
    mixed = recalled(p, [*done, *longer])
    assert mixed is not None and len(mixed.missing)
    assert_as_computed(p, [*done, *longer])


def test_log_probabilities_are_the_samplers() -> None:
    p = policy()
    done = sample(p)
    for c, scored in zip(done, p.logprobs([(c.prompt_tokens, c.tokens) for c in done]), strict=True):
        np.testing.assert_array_equal(scored, np.array(c.logps, np.float32))


# ---------------------------------------------------------------------- whatever changes a weight


def step(p: NativePolicy) -> None:
    for q in p.decoder.parameters():
        q.grad = torch.ones_like(q)
    p.optim_step(1e-3)


def restart(p: NativePolicy) -> None:
    p.restart_from(p.frozen())


def scale(p: NativePolicy) -> None:
    with torch.no_grad():
        p.decoder.blocks[1].down.weight.mul_(1.01)


def load(p: NativePolicy, folder: Path) -> None:
    p.save_state(folder)
    p.load_state(folder)


CHANGES: dict[str, Callable[[NativePolicy, Path], object]] = {
    "a step": lambda p, _: step(p),
    "a restart": lambda p, _: restart(p),
    "by hand": lambda p, _: scale(p),
    "a checkpoint": load,
    "adapters": lambda p, _: p.add_lora(2, 4.0),
    "ternary": lambda p, _: p.ternarise(TernaryConfig()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_forget(change: Callable[[NativePolicy, Path], object], tmp_path: Path) -> None:
    p = policy()
    done = sample(p)
    assert recalled(p, done) is not None
    (tmp_path / "state").mkdir()
    change(p, tmp_path / "state")
    assert recalled(p, done) is None


def test_a_new_version_begins_anew() -> None:
    p = policy()
    first = sample(p)
    used = p.kept_tokens
    step(p)
    again = sample(p, dataclasses.replace(LEARNED, round=2))
    assert 0 < p.kept_tokens < 2 * used
    assert_all_kept(p, again)
    assert_as_computed(p, [*again, *first])


# ---------------------------------------------------------------------- where nothing is kept


def test_samples_nobody_learns_from_leave_what_is_kept() -> None:
    p = policy()
    done = sample(p)
    used = p.kept_tokens
    sample(p, Tag(seed=3, round=1, purpose="eval"))
    assert p.kept_tokens == used and recalled(p, done) is not None
    fresh = policy()
    sample(fresh, Tag(seed=3, round=1))
    assert fresh.kept_tokens == 0


def test_a_sampler_that_computes_otherwise_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (policy(precision=torch.bfloat16), policy("base:countdown-ternary"), policy()):
        if other.precision == torch.float32:
            monkeypatch.setattr(decoding, "LAID_OUT", 0)
        sample(other)
        assert other.kept_tokens == 0


def test_no_room_at_all() -> None:
    p = policy(keep_bytes=100)
    sample(p)
    assert p._answers is None
    with pytest.raises(ConfigError, match="keep_bytes is -2"):
        policy(keep_bytes=-2)


def test_memory_that_was_let_go_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same completions from a sampler whose weights and cache are given back in between."""
    usual = [sample(p) for p in [policy()] for _ in range(2)]
    monkeypatch.setattr(decoding, "KEPT", 0)
    frugal = [sample(p) for p in [policy()] for _ in range(2)]
    assert [(c.tokens, c.logps) for d in usual for c in d] == [(c.tokens, c.logps) for d in frugal for c in d]
