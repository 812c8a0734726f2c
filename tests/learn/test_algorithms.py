"""One suite over every algorithm. A new one joins by one line in ``EVERY``; a test fails when one is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from triloop.learn.algorithms import ALGORITHMS, Algorithm, resolve
from triloop.learn.batch import Batch, TokenOutputs, micro_batches, minibatches, pad
from triloop.learn.build import build_batch
from triloop.learn.choices import AlgorithmConfig
from triloop.learn.update import add_sums, policy_loss, summarise
from triloop.records import Completion, Episode, Prompt

Make = Callable[..., list[Episode]]

EVERY = ["reinforce", "rloo", "ppo", "grpo", "dr_grpo", "dapo", "gspo", "nft", "rest_em"]
every_algorithm = pytest.mark.parametrize("name", EVERY)

PROMPTS, TIME, VOCABULARY, STOP = 4, 3, 4, 0


def test_none_is_missing() -> None:
    assert set(ALGORITHMS) == set(EVERY)


@dataclass(frozen=True)
class Table:
    """A policy without generalisation: free logits for each prompt and position, and a value of each."""

    logits: Tensor
    values: Tensor

    @staticmethod
    def start(scale: float = 0.0, dtype: torch.dtype = torch.float32) -> Table:
        g = torch.Generator().manual_seed(7)
        logits = scale * torch.randn(PROMPTS, TIME, VOCABULARY, generator=g)
        return Table(logits.to(dtype).requires_grad_(), torch.zeros(PROMPTS, TIME, dtype=dtype, requires_grad=True))

    def __call__(self, batch: Batch) -> TokenOutputs:
        p = torch.tensor([row[0] for row in batch.prompt_tokens])
        time = batch.mask.shape[1]
        logp_all = self.logits[p, :time].log_softmax(-1)
        tokens = pad(batch.tokens, time).long()
        logp = logp_all.gather(-1, tokens[..., None])[..., 0]
        return TokenOutputs(logp=logp, entropy=-(logp_all.exp() * logp_all).sum(-1), values=self.values[p, :time])

    def sample(self, n: int, generator: torch.Generator) -> list[Episode]:
        """``n`` completions of each prompt, up to ``STOP``; right when the first token is the prompt's number mod 3 + 1."""
        logp = self.logits.detach().log_softmax(-1)
        drawn = torch.multinomial(logp.exp().reshape(-1, VOCABULARY), n, replacement=True, generator=generator)
        table, chance = drawn.reshape(PROMPTS, TIME, n), logp.tolist()
        made = []
        for p in range(PROMPTS):
            for i in range(n):
                row = table[p, :, i].tolist()
                tokens = row[: row.index(STOP) + 1] if STOP in row else row
                logps = [chance[p][t][y] for t, y in enumerate(tokens)]
                made.append(episode(p, i, tokens, logps, 1.0 if tokens[0] == p % 3 + 1 else -1.0))
        return made

    def old_values(self, episodes: list[Episode]) -> list[list[float]]:
        values = self.values.detach()
        return [values[e.completion.prompt_tokens[0], : len(e.completion.tokens)].tolist() for e in episodes]


def episode(p: int, i: int, tokens: list[int], logps: list[float], reward: float) -> Episode:
    completion = Completion(
        id=f"0/{p}/{i}",
        prompt_id=str(p),
        round=0,
        index=i,
        prompt_tokens=(p,),
        tokens=tuple(tokens),
        logps=tuple(logps),
        mask=(True,) * len(tokens),
        text="",
        finish="stop",
        policy_version=0,
    )
    return Episode(prompt=Prompt(id=str(p), text=""), completion=completion, feedback=(), reward=reward)


def mixed_episodes() -> list[Episode]:
    """Four groups: spread, all right, all wrong, spread with abstentions; unequal lengths; sampled at the flat policy."""
    rewards = [[1.0, 0.0, -1.0, 0.5], [1.0] * 4, [-1.0] * 4, [0.0, -1.0, 1.0, 1.0]]
    old = -1.4
    return [
        episode(p, i, [(p + i + t) % VOCABULARY for t in range(1 + (p + i) % TIME)], [old] * (1 + (p + i) % TIME), r)
        for p, group in enumerate(rewards)
        for i, r in enumerate(group)
    ]


def given(episodes: list[Episode], algorithm: Algorithm) -> tuple[Batch, dict[str, float]]:
    """A batch with whatever the algorithm asks for."""

    def filled(x: float) -> list[list[float]]:
        return [[x - 0.1 * t for t in range(len(e.completion.tokens))] for e in episodes]

    batch, figures = build_batch(
        episodes,
        algorithm,
        max_tokens=TIME,
        reference=filled(-1.0),
        values=filled(0.3),
        logp_learner=filled(-0.8) if algorithm.importance_cap > 0 else None,
    )
    assert batch is not None
    return batch, figures


def gradient(algorithm: Algorithm, pieces: list[Batch], batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Gradient and figures at a policy away from the sampled one, accumulated over pieces of the batch."""
    policy, sums = Table.start(1.0, torch.float64), {}
    loss = policy_loss(algorithm)
    for piece in pieces:
        doubled = replace(piece, advantage=piece.advantage.double(), logp_old=piece.logp_old.double())
        total, part = loss(policy(piece), doubled, batch.denominators)
        total.backward()
        sums = add_sums(sums, part)
    assert policy.logits.grad is not None
    values = torch.zeros_like(policy.values) if policy.values.grad is None else policy.values.grad
    return torch.cat([policy.logits.grad.flatten(), values.flatten()]), summarise(sums)


@every_algorithm
def test_gradient_accumulation_equals_one_big_batch(name: str) -> None:
    algorithm = resolve(name)
    batch, _ = given(mixed_episodes(), algorithm)
    whole, figures = gradient(algorithm, [batch], batch)
    assert whole.abs().max() > 1e-4
    for limit in (1, 5, 11):
        pieces = list(micro_batches(batch, limit))
        assert len(pieces) > 1
        got, joint = gradient(algorithm, pieces, batch)
        torch.testing.assert_close(got, whole, rtol=1e-6, atol=1e-9)
        assert joint == pytest.approx(figures, rel=1e-5)


@every_algorithm
def test_minibatches_average_to_the_whole(name: str) -> None:
    algorithm = resolve(name)
    batch, _ = given(mixed_episodes(), algorithm)
    whole, _ = gradient(algorithm, [batch], batch)
    parts = minibatches(batch, 3, order=list(reversed(range(len(batch)))))
    mean = torch.stack([gradient(algorithm, [part], part)[0] for part in parts]).mean(dim=0)
    torch.testing.assert_close(mean, whole, rtol=1e-6, atol=1e-9)


@every_algorithm
def test_leaving_out_rows_without_signal_changes_no_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = resolve(name)
    lean, _ = given(mixed_episodes(), algorithm)
    monkeypatch.setattr(Algorithm, "skips_zero_advantage", False)
    full, _ = given(mixed_episodes(), algorithm)
    assert lean.denominators == full.denominators
    if name in {"grpo", "dr_grpo", "gspo", "rloo"}:
        assert len(lean) < len(full)
    got, whole = gradient(algorithm, [lean], lean)[0], gradient(algorithm, [full], full)[0]
    torch.testing.assert_close(got, whole, rtol=1e-6, atol=1e-9)


@every_algorithm
def test_it_learns_a_toy_task(name: str) -> None:
    """First token out of four, chance 1/4; thirty rounds of 4 x 8 samples. PPO trains its values along."""
    algorithm = resolve(name)
    policy, g = Table.start(), torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam([policy.logits, policy.values], lr=0.2)
    loss = policy_loss(algorithm)
    for _ in range(30):
        episodes = policy.sample(8, g)
        values = policy.old_values(episodes) if algorithm.needs_values else None
        batch, _ = build_batch(episodes, algorithm, max_tokens=TIME, values=values)
        for part in [] if batch is None else minibatches(batch, algorithm.minibatches):
            optimiser.zero_grad()
            total, _ = loss(policy(part), part, part.denominators)
            total.backward()
            optimiser.step()
    right = torch.stack([policy.logits[p, 0].softmax(-1)[p % 3 + 1] for p in range(PROMPTS)])
    assert right.mean().item() > 0.85, f"{name}: {right.tolist()}"


def test_rloo_is_scaled_dr_grpo() -> None:
    """n / (n - 1) times the centred reward, n = 4; on policy and at one reduction the gradients have that ratio."""
    rloo, centred = resolve("rloo"), replace(resolve("rloo"), advantage=resolve("dr_grpo").advantage)
    a, b = given(mixed_episodes(), rloo)[0], given(mixed_episodes(), centred)[0]
    torch.testing.assert_close(a.advantage, b.advantage * 4 / 3)
    torch.testing.assert_close(gradient(rloo, [a], a)[0], gradient(centred, [b], b)[0] * 4 / 3)


# Every coefficient of an algorithm, and a case in which it must change what is learned. The two that the loop reads are
# shown where the loop is tested.
BY_THE_LOOP = {"updates_per_round", "minibatches"}
OPTIONS: dict[str, tuple[str, dict[str, object], object]] = {
    "ratio": ("grpo", {}, "sequence"),
    "clip_low": ("grpo", {}, 0.9),
    "clip_high": ("grpo", {}, 3.0),
    "dual_clip": ("grpo", {}, 1.5),
    "kl_coef": ("grpo", {}, 0.5),
    "kl_estimator": ("grpo", {"kl_coef": 0.5}, "k2"),
    "kl_in": ("grpo", {"kl_coef": 0.5}, "reward"),
    "entropy_coef": ("grpo", {}, 0.5),
    "value_coef": ("ppo", {}, 2.0),
    "value_clip": ("ppo", {}, 0.01),
    "gamma": ("ppo", {}, 0.5),
    "lam": ("ppo", {}, 0.5),
    "whiten": ("ppo", {}, False),
    "dynamic_sampling": ("dapo", {}, False),
    "success_above": ("nft", {}, 0.7),
    "positives_per_prompt": ("rest_em", {}, 1),
    "nft_weight": ("nft", {}, "normalised"),
    "nft_eps": ("nft", {}, 0.01),
    "negative_weight": ("grpo", {}, 0.5),
    "overlong_buffer": ("grpo", {}, 2),
    "importance_cap": ("grpo", {}, 1.5),
}


def test_every_option_is_shown() -> None:
    assert OPTIONS.keys() | BY_THE_LOOP == {f.name for f in fields(AlgorithmConfig)} - {"name"}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_what_is_learned(option: str) -> None:
    name, base, value = OPTIONS[option]

    def learned(**overrides: object) -> Tensor:
        algorithm = resolve(name, **overrides)
        batch, _ = given(mixed_episodes(), algorithm)
        return gradient(algorithm, [batch], batch)[0]

    assert not torch.allclose(learned(**base), learned(**base, **{option: value}), rtol=1e-3)


def test_negative_weight_is_read_by_nft_too() -> None:
    full, none = (
        gradient(a, [b], b)[0]
        for a in (resolve("nft"), resolve("nft", negative_weight=0.0))
        for b in [given(mixed_episodes(), a)[0]]
    )
    assert not torch.allclose(full, none)
