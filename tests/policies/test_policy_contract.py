"""What every backend promises: one suite, each backend a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.small import TAG, Make, lesson, prompts
from triloop.errors import ConfigError
from triloop.learn.algorithms import resolve
from triloop.learn.build import build_batch
from triloop.learn.choices import AlgorithmConfig
from triloop.learn.update import policy_loss, supervised_loss
from triloop.policies.protocol import Policy, Tag
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Episode, Prompt

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def rows(completions: Sequence[Completion]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(c.prompt_tokens, c.tokens) for c in completions]


def agreement(a: Sequence[Completion], b: Sequence[Completion]) -> float:
    """Share of completions with the same tokens."""
    return sum(x.tokens == y.tokens for x, y in zip(a, b, strict=True)) / len(a)


# -------------------------------------------------------------------- sampling


@pytest.mark.parametrize("sampling", [
    Sampling(max_tokens=16, slots=7), Sampling(max_tokens=16, temperature=0.6), Sampling(max_tokens=8, top_k=3, slots=4),
    Sampling(max_tokens=20, banned_tokens=(2, 5)),
], ids=["plain", "cool", "top-k", "banned"])  # fmt: skip
def test_sampled_log_probabilities_are_those_that_scoring_gives(make: Make, sampling: Sampling) -> None:
    policy = make()
    done = policy.sample(prompts(), 3, sampling, TAG)
    scored = policy.logprobs(rows(done), temperature=sampling.temperature)
    for completion, logps in zip(done, scored, strict=True):
        np.testing.assert_allclose(completion.logps, logps, atol=1e-4)


def test_greedy_equals_the_likeliest_token_again_and_again(make: Make) -> None:
    policy = make()
    vocab = range(22)
    done = policy.sample(prompts(), 1, Sampling(max_tokens=6, temperature=0.0, slots=2), TAG)
    for completion in done:
        ids = list(completion.prompt_tokens)
        for token in completion.tokens:
            scores = policy.logprobs([(ids, [v]) for v in vocab])
            assert token == int(np.argmax(np.concatenate(scores)))
            ids.append(token)


def test_the_record(make: Make) -> None:
    policy = make()
    asked = prompts("1+2=", "ab")
    done = policy.sample(asked, 3, Sampling(max_tokens=5), Tag(seed=0, round=4, purpose="eval"))
    assert [c.id for c in done] == [f"eval/4/{p.id}/{i}" for p in asked for i in range(3)]
    assert [c.prompt_id for c in done] == ["p0"] * 3 + ["p1"] * 3
    assert policy.sample(asked[:1], 1, Sampling(max_tokens=1), Tag(seed=0, round=4))[0].id == "4/p0/0"
    for c in done:
        assert c.prompt_tokens == policy.encode(asked[int(c.prompt_id[1])])
        assert len(c.tokens) == len(c.logps) == len(c.mask) <= 5
        assert c.text == policy.tokenizer.decode(c.tokens) and c.policy_version == 0


def test_samples_do_not_depend_on_slots_order_or_company(make: Make) -> None:
    policy, asked = make(), prompts()
    wide = policy.sample(asked, 6, Sampling(max_tokens=12), TAG)
    narrow = policy.sample(asked, 6, Sampling(max_tokens=12, slots=7), TAG)
    turned = {c.id: c for c in policy.sample(asked[::-1], 6, Sampling(max_tokens=12), TAG)}
    alone = policy.sample(asked[2:3], 6, Sampling(max_tokens=12), TAG)
    assert agreement(wide, narrow) > 0.99
    assert agreement(wide, [turned[c.id] for c in wide]) > 0.99
    assert agreement(wide[12:18], alone) > 0.99


def test_the_same_seed_gives_the_same_and_another_round_another(make: Make) -> None:
    policy, sampling = make(), Sampling(max_tokens=8)
    first = policy.sample(prompts(), 4, sampling, TAG)
    assert policy.sample(prompts(), 4, sampling, TAG) == first
    for tag in (Tag(seed=3, round=2), Tag(seed=4, round=1), Tag(seed=3, round=1, purpose="eval")):
        assert agreement(first, policy.sample(prompts(), 4, sampling, tag)) < 0.5


def test_several_turns(make: Make) -> None:
    """Whatever a turn says, the tool answers '12', twice; then the episode is over."""
    policy, answers = make(), dict[int, int]()

    def respond(number: int, text: str) -> Sequence[int] | None:
        answers[number] = answers.get(number, 0) + 1
        return policy.tokenizer.encode("12") if answers[number] <= 2 else None

    sampling = Sampling(max_tokens=40, stop=("1", "2", "a", "\n"), slots=3)
    done = policy.sample(prompts(), 2, sampling, TAG, respond=respond)
    scored = policy.logprobs(rows(done))
    inserted = policy.tokenizer.encode("12")
    assert any(c.finish == "stop" for c in done)
    for i, (c, logps) in enumerate(zip(done, scored, strict=True)):
        own = np.array(c.mask)
        np.testing.assert_allclose(np.array(c.logps)[own], logps[own], atol=1e-4)
        assert not np.array(c.logps)[~own].any()
        assert [t for t, m in zip(c.tokens, c.mask, strict=True) if not m] == inserted * min(2, answers[i])
        assert sum(own) <= 40


def test_an_interruption(make: Make) -> None:
    asked = iter(range(100))
    done = make().sample(
        prompts(), 4, Sampling(max_tokens=30, slots=4, banned_tokens=(2,)), TAG, interrupted=lambda: next(asked) >= 3
    )
    assert {c.finish for c in done} == {"interrupted"}
    assert [len(c.tokens) for c in done] == [4] * 4 + [0] * 16


def test_prompts_that_cannot_be_completed(make: Make) -> None:
    policy = make()
    with pytest.raises(ConfigError, match=r"'p0' has 30 tokens.*64 positions; shorten"):
        policy.sample(prompts("1" * 30), 1, Sampling(max_tokens=35), TAG)
    assert policy.sample(prompts("1" * 30), 1, Sampling(max_tokens=34), TAG)
    with pytest.raises(ConfigError, match="'empty' has no tokens"):
        policy.sample([Prompt(id="empty", text="")], 1, Sampling(), TAG)
    assert policy.sample([], 3, Sampling(), TAG) == []


# -------------------------------------------------------------------- scoring


def test_scoring_in_pieces_and_rows_without_tokens(make: Make) -> None:
    batch = lesson(rows=9)
    items = [*zip(batch.prompt_tokens, batch.tokens, strict=True), ([5], []), ([5, 6], [7])]
    whole, pieces = make().logprobs(items), make(micro_tokens=12).logprobs(items)
    assert [len(x) for x in whole] == [len(t) for _, t in items]
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert make().logprobs([]) == [] and len(make().logprobs([([5], [])])[0]) == 0
    with pytest.raises(ConfigError, match="without a prompt"):
        make().logprobs([([], [5, 6])])


def test_values(make: Make) -> None:
    policy = make()
    with pytest.raises(ConfigError, match="no value head"):
        policy.values([([5], [6])])
    policy.add_value_head()
    policy.add_value_head()
    first, second = policy.values([([5], [6, 7]), ([5, 6, 7], [8])])
    assert first.tolist() == [0.0, 0.0] and second.tolist() == [0.0]


# -------------------------------------------------------------------- learning


def state_of(policy: Policy) -> list[np.ndarray]:
    batch = lesson(seed=5)
    return policy.logprobs(list(zip(batch.prompt_tokens, batch.tokens, strict=True)))


def train(policy: Policy, steps: Sequence[int], lr: float = 1e-2) -> list[dict[str, float]]:
    figures = []
    for seed in steps:
        metrics = policy.forward_backward(lesson(seed), supervised_loss)
        figures.append({**metrics, **policy.optim_step(lr)})
    return figures


def test_a_step_moves_towards_the_lesson(make: Make) -> None:
    policy, before = make(), make().weights_sha256()
    figures = train(policy, [0] * 5)
    assert policy.version == 5 and policy.weights_sha256() != before
    assert figures[-1]["nll"] < figures[0]["nll"]
    assert all(np.isfinite(f["grad_norm"]) and f["grad_norm"] > 0 for f in figures)
    assert policy.sample(prompts(), 1, Sampling(max_tokens=2), TAG)[0].policy_version == 5


def test_samples_follow_the_weights(make: Make) -> None:
    """After a step the sampler's copy, if it has one, is the new policy: scored and sampled agree again."""
    policy = make()
    policy.sample(prompts(), 1, Sampling(max_tokens=2), TAG)
    train(policy, [0, 1])
    done = policy.sample(prompts(), 2, Sampling(max_tokens=12), TAG)
    for completion, logps in zip(done, policy.logprobs(rows(done)), strict=True):
        np.testing.assert_allclose(completion.logps, logps, atol=1e-4)


def test_rewarded_completions_become_likelier(make: Make) -> None:
    policy, algorithm = make(), resolve(AlgorithmConfig(name="grpo"))
    asked = prompts()
    done = policy.sample(asked, 8, Sampling(max_tokens=8), TAG)
    episodes = [
        Episode(prompt=asked[i // 8], completion=c, feedback=(), reward=float(i % 2)) for i, c in enumerate(done)
    ]
    batch, _ = build_batch(episodes, algorithm, max_tokens=8)
    assert batch is not None
    metrics = policy.forward_backward(batch, policy_loss(algorithm))
    assert metrics["ratio_max"] == pytest.approx(1.0, abs=1e-3), "on policy"
    policy.optim_step(3e-3)
    gain = np.array([new.sum() - sum(c.logps) for new, c in zip(policy.logprobs(rows(done)), done, strict=True)])
    assert gain[1::2].mean() > gain[::2].mean()


def test_small_micro_batches_give_the_gradient_of_the_whole(make: Make) -> None:
    whole, parts = make(), make(micro_tokens=9)
    for _ in range(3):
        a, b = train(whole, [1])[0], train(parts, [1])[0]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5) and a["loss"] == pytest.approx(
            b["loss"], rel=1e-5
        )
    # AdamW divides by the gradient's own size: where that is rounding, so is its quotient. Gradients are compared above.
    for x, y in zip(state_of(whole), state_of(parts), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-3)


def test_what_the_forward_pass_need_not_do_it_does_not(make: Make) -> None:
    seen = []

    def loss(outputs, batch, denominators):  # type: ignore[no-untyped-def]
        seen.append(outputs)
        return supervised_loss(outputs, batch, denominators)

    for asked in (True, False):
        make(entropy=asked).forward_backward(lesson(), loss)
    assert seen[0].entropy is not None and seen[1].entropy is None and seen[0].values is None
    torch.testing.assert_close(seen[0].logp, seen[1].logp)


# -------------------------------------------------------------------- state


@pytest.mark.parametrize("head", [False, True], ids=["", "value head"])
def test_going_on_from_a_saved_state_is_bit_equal(make: Make, tmp_path: Path, head: bool) -> None:
    def start() -> Policy:
        policy = make()
        if head:
            policy.add_value_head()
        return policy

    through, saved, resumed = start(), start(), start()
    expected = train(through, [0, 1, 2, 3])
    train(saved, [0, 1])
    saved.save_state(tmp_path)
    train(resumed, [7, 8, 9])
    resumed.load_state(tmp_path)
    assert resumed.version == 2 and resumed.weights_sha256() == saved.weights_sha256()
    assert train(resumed, [2, 3]) == expected[2:]
    assert resumed.weights_sha256() == through.weights_sha256() and resumed.version == 4
    sampling = Sampling(max_tokens=12)
    assert resumed.sample(prompts(), 2, sampling, TAG) == through.sample(prompts(), 2, sampling, TAG)
    for a, b in zip(state_of(resumed), state_of(through), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_state_without_a_step(make: Make, tmp_path: Path) -> None:
    policy, other = make(), make()
    policy.save_state(tmp_path)
    train(other, [0])
    other.load_state(tmp_path)
    assert (other.version, other.weights_sha256()) == (0, policy.weights_sha256())
    assert train(other, [1]) == train(policy, [1])


def test_a_frozen_copy_stays_and_gives_its_weights_back(make: Make) -> None:
    policy = make()
    reference, before = policy.frozen(), state_of(policy)
    train(policy, [0, 1])
    for a, b in zip(state_of(reference), before, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    policy.restart_from(reference)
    for a, b in zip(state_of(policy), before, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert policy.version == 2, "the version goes on counting"
    assert train(policy, [0])[0]["nll"] == pytest.approx(train(make(), [0])[0]["nll"], abs=1e-4)


def test_a_written_directory_reads_back(make: Make, tmp_path: Path) -> None:
    policy = make()
    train(policy, [0])
    policy.save_pretrained(tmp_path / "model")
    again = type(policy)
    loaded = reread(again, tmp_path / "model")
    assert loaded.weights_sha256() == policy.weights_sha256()
    assert loaded.parameters == policy.parameters > 1000


def reread(kind: type[Policy], folder: Path) -> Policy:
    from triloop.policies.native import NativePolicy
    from triloop.policies.transformers_backend import load_transformers

    return NativePolicy.load(folder) if kind is NativePolicy else load_transformers(folder)


# -------------------------------------------------------------------- bf16


def test_bf16_samples_and_learns(make: Make) -> None:
    """The sampler rounds weights, the learner products: they differ, and by little enough for importance ratios near 1."""
    policy = make(precision=torch.bfloat16)
    done = policy.sample(prompts(), 8, Sampling(max_tokens=16), TAG)
    gap = np.concatenate([np.array(c.logps) - x for c, x in zip(done, policy.logprobs(rows(done)), strict=True)])
    assert 0 < np.abs(gap).mean() < 0.03
    exact = make().logprobs(rows(done))
    error = np.concatenate([np.array(c.logps) - x for c, x in zip(done, exact, strict=True)])
    assert np.abs(error).mean() < 0.05
    figures = train(policy, [0] * 6)
    assert figures[-1]["nll"] < figures[0]["nll"]
    again = policy.sample(prompts(), 8, Sampling(max_tokens=16), TAG)
    assert agreement(done, again) < 0.9, "the sampler's copy has learned too"
