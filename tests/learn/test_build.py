from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from triloop.errors import ConfigError
from triloop.learn.algorithms import resolve
from triloop.learn.build import build_batch
from triloop.records import Episode

Make = Callable[..., list[Episode]]


def test_grpo_by_hand(make_episodes: Make) -> None:
    episodes = make_episodes([[1, -1], [0, 1]], lengths=[[2, 3], [1, 4]])
    batch, figures = build_batch(episodes, resolve("grpo"), max_tokens=8)
    assert batch is not None
    torch.testing.assert_close(batch.advantage[:, 0], torch.tensor([1.0, -1.0, -1.0, 1.0]), rtol=1e-4, atol=0)
    assert batch.mask.sum(dim=1).tolist() == [2, 3, 1, 4]
    assert (batch.advantage[~batch.mask] == 0).all()
    assert (batch.logp_old[batch.mask] == -1).all()
    assert batch.positive.tolist() == [True, False, False, True]
    assert batch.success.tolist() == [0.5] * 4
    assert batch.denominators.tokens == 10
    assert batch.denominators.sequences == 4
    assert figures["reward"] == pytest.approx(0.25)
    assert figures["zero_std_share"] == 0
    assert figures["length"] == 2.5
    assert figures["success_share"] == 0.5


def test_groups_without_spread_leave_the_batch_and_stay_in_the_denominators(make_episodes: Make) -> None:
    episodes = make_episodes([[1, 1], [1, -1], [-1, -1]], lengths=[[4, 4], [1, 2], [3, 3]])
    batch, figures = build_batch(episodes, resolve("grpo"), max_tokens=8)
    assert batch is not None
    assert batch.episode == [2, 3]
    assert batch.mask.shape == (2, 2), "padded to what is left"
    assert (batch.denominators.tokens, batch.denominators.sequences) == (17, 6)
    assert figures["zero_std_share"] == pytest.approx(2 / 3)
    assert figures["trained_share"] == pytest.approx(1 / 3)


def test_dynamic_sampling_takes_them_out_of_the_denominators_too(make_episodes: Make) -> None:
    """And keeps the middle one of a group with spread there, though its advantage is zero."""
    episodes = make_episodes([[1, 1, 1], [1, 0, -1]])
    batch, _ = build_batch(episodes, resolve("dapo"), max_tokens=8)
    assert batch is not None
    assert batch.episode == [3, 5]
    assert (batch.denominators.tokens, batch.denominators.sequences) == (9, 3)


@pytest.mark.parametrize("needs", [{"kl_coef": 0.1}, {"entropy_coef": 0.1}])
def test_rows_with_another_gradient_stay(make_episodes: Make, needs: dict[str, float]) -> None:
    episodes = make_episodes([[1, 1], [1, -1]])
    batch, _ = build_batch(episodes, resolve("grpo", **needs), max_tokens=8, reference=[[-1.0] * 3] * 4)
    assert batch is not None
    assert len(batch) == 4


def test_nothing_to_learn_is_no_batch(make_episodes: Make) -> None:
    batch, figures = build_batch(make_episodes([[1, 1], [None, 1]]), resolve("grpo"), max_tokens=8)
    assert batch is None
    assert figures["reward"] == 1
    assert figures["judge_failures"] == 0.25


def test_failed_judgements_count_nowhere(make_episodes: Make) -> None:
    algorithm = resolve("grpo")
    with_failures = make_episodes([[1, None, -1], [math.nan, 1, -1]])
    got, figures = build_batch(with_failures, algorithm, max_tokens=8)
    clean, _ = build_batch([with_failures[i] for i in (0, 2, 4, 5)], algorithm, max_tokens=8)
    assert got is not None
    assert clean is not None
    assert got.episode == [0, 2, 4, 5]
    assert torch.equal(got.advantage, clean.advantage)
    assert got.denominators == clean.denominators
    assert figures["judge_failures"] == pytest.approx(1 / 3)


def test_every_judgement_failed(make_episodes: Make) -> None:
    batch, figures = build_batch(make_episodes([[None, None]]), resolve("reinforce"), max_tokens=8)
    assert batch is None
    assert "reward" not in figures


def test_groups_are_by_prompt_wherever_the_episodes_stand(make_episodes: Make) -> None:
    episodes = make_episodes([[1, -1], [-1, 1]])
    batch, _ = build_batch([episodes[i] for i in (0, 2, 1, 3)], resolve("grpo"), max_tokens=8)
    assert batch is not None
    assert batch.episode == [0, 2, 1, 3], "rows: prompt by prompt"
    assert batch.reward.tolist() == [1, -1, -1, 1]


def test_unequal_groups(make_episodes: Make) -> None:
    batch, _ = build_batch(make_episodes([[1, -1, -1], [1, -1]]), resolve("dr_grpo"), max_tokens=8)
    assert batch is not None
    torch.testing.assert_close(batch.advantage[:, 0], torch.tensor([4 / 3, -2 / 3, -2 / 3, 1.0, -1.0]))


def test_what_the_environment_inserted_is_not_trained(make_episodes: Make) -> None:
    episodes = [
        replace(e, completion=replace(e.completion, mask=(True, False, True), logps=(-1.0, 0.0, -1.0)))
        for e in make_episodes([[1, -1]])
    ]
    batch, _ = build_batch(episodes, resolve("grpo"), max_tokens=8)
    assert batch is not None
    assert (batch.advantage[:, 1] == 0).all()
    assert batch.denominators.tokens == 4


def test_a_completion_without_tokens_enters_the_mean_and_needs_no_pass(make_episodes: Make) -> None:
    batch, _ = build_batch(make_episodes([[1, -1]], lengths=[[2, 0]]), resolve("dr_grpo"), max_tokens=8)
    assert batch is not None
    assert batch.episode == [0]
    assert batch.advantage[0].tolist() == [1.0, 1.0]


def test_overlong_penalty_shapes_the_reward(make_episodes: Make) -> None:
    """Equal rewards, lengths 2 and 4 of at most 4, buffer 2: the longer one loses 1."""
    episodes = make_episodes([[1, 1]], lengths=[[2, 4]])
    batch, figures = build_batch(episodes, resolve("dr_grpo", overlong_buffer=2), max_tokens=4)
    assert batch is not None
    assert batch.advantage[:, 0].tolist() == [0.5, -0.5]
    assert batch.reward.tolist() == [1, 1], "as judged"
    assert figures["zero_std_share"] == 1, "of what was judged"


def test_kl_in_the_reward_of_a_group(make_episodes: Make) -> None:
    """k1 over three tokens at 0.5 nats each: the first completion pays 1.5 times the coefficient."""
    algorithm = resolve("dr_grpo", kl_coef=0.1, kl_in="reward", kl_estimator="k1")
    reference = [[-1.5] * 3, [-1.0] * 3]
    batch, _ = build_batch(make_episodes([[1, 1]]), algorithm, max_tokens=8, reference=reference)
    assert batch is not None
    torch.testing.assert_close(batch.advantage[:, 0], torch.tensor([-0.075, 0.075]))


def test_rest_em_keeps_successes_alone(make_episodes: Make) -> None:
    episodes = make_episodes([[1, -1, 1], [0, 0, 0], [1, 1, 1]])
    batch, _ = build_batch(episodes, resolve("rest_em"), max_tokens=8)
    assert batch is not None
    assert batch.episode == [0, 2, 6, 7, 8]
    assert (batch.advantage == 1).all()
    assert batch.denominators.sequences == 5
    capped, _ = build_batch(episodes, resolve("rest_em", positives_per_prompt=2), max_tokens=8)
    assert capped is not None
    assert capped.episode == [0, 2, 6, 7]
    assert capped.denominators.sequences == 4


def test_nft_reads_success(make_episodes: Make) -> None:
    """A group of abstentions and errors has spread in its rewards and no success: nothing to learn from."""
    batch, _ = build_batch(make_episodes([[0, -1], [1, 0]]), resolve("nft"), max_tokens=8)
    assert batch is not None
    assert batch.episode == [2, 3]
    assert batch.positive.tolist() == [True, False]
    assert batch.success.tolist() == [0.5, 0.5]


def test_ppo_reward_arrives_with_the_last_chosen_token(make_episodes: Make) -> None:
    episodes = make_episodes([[1, -1]], lengths=[[2, 3]])
    values = [[0.5, 0.25], [0.0, 0.0, 0.0]]
    batch, _ = build_batch(episodes, resolve("ppo", whiten=False), max_tokens=8, values=values)
    assert batch is not None
    assert batch.advantage.tolist() == [[0.5, 0.75, 0.0], [-1.0, -1.0, -1.0]]
    assert batch.returns is not None
    assert batch.returns.tolist() == [[1.0, 1.0, 0.0], [-1.0, -1.0, -1.0]]


def test_rewards_of_single_tokens_come_on_top(make_episodes: Make) -> None:
    """Rewards (1/4, 1) and (0, 0, -1): returns 5/4, 1 and -1 throughout; a failed judgement takes its tokens' with it."""
    episodes, values = make_episodes([[1, -1]], lengths=[[2, 3]]), [[0.5, 0.25], [0.0, 0.0, 0.0]]
    dense, ppo = [[0.25, 0.0], [0.0, 0.0, 0.0]], resolve("ppo", whiten=False)
    batch, _ = build_batch(episodes, ppo, max_tokens=8, values=values, dense=dense)
    assert batch is not None
    assert batch.advantage.tolist() == [[0.75, 0.75, 0.0], [-1.0, -1.0, -1.0]]
    failed = make_episodes([[None, -1]], lengths=[[2, 3]])
    batch, _ = build_batch(failed, ppo, max_tokens=8, values=values, dense=[[9.0, 9.0], [0.5, 0.0, 0.0]])
    assert batch is not None
    assert batch.advantage.tolist() == [[-0.5, -1.0, -1.0]]
    with pytest.raises(ConfigError, match="need a value head"):
        build_batch(episodes, resolve("grpo"), max_tokens=8, dense=dense)
    with pytest.raises(ConfigError, match="dense: 1 rows for 2 episodes"):
        build_batch(episodes, ppo, max_tokens=8, values=values, dense=dense[:1])


def test_ppo_pays_for_kl_token_by_token(make_episodes: Make) -> None:
    algorithm = resolve("ppo", whiten=False, lam=0.0, kl_coef=0.5, kl_in="reward", kl_estimator="k1")
    batch, _ = build_batch(
        make_episodes([[1]], lengths=[[2]]), algorithm, max_tokens=8, values=[[0.0, 0.0]], reference=[[-2.0, -1.5]]
    )
    assert batch is not None
    assert batch.advantage.tolist() == [[-0.5, 0.75]]


def test_importance_weight_corrects_the_sampler(make_episodes: Make) -> None:
    algorithm = resolve("grpo", importance_cap=1.5)
    learner = [[-1.0, -0.9, 0.0], [-1.0] * 3]
    batch, _ = build_batch(make_episodes([[1, -1]]), algorithm, max_tokens=8, logp_learner=learner)
    assert batch is not None
    assert batch.weight is not None
    torch.testing.assert_close(batch.weight[0], torch.tensor([1.0, math.exp(0.1), 1.5]))
    assert batch.logp_old[0, 2] == 0, "ratios start from the learner's own figures"


def test_what_is_missing_is_named(make_episodes: Make) -> None:
    episodes = make_episodes([[1, -1]])
    with pytest.raises(ConfigError, match="needs reference"):
        build_batch(episodes, resolve("grpo", kl_coef=0.1), max_tokens=8)
    with pytest.raises(ConfigError, match="needs values"):
        build_batch(episodes, resolve("ppo"), max_tokens=8)
    with pytest.raises(ConfigError, match="needs logp_learner"):
        build_batch(episodes, resolve("grpo", importance_cap=2.0), max_tokens=8)
    with pytest.raises(ConfigError, match="first mismatch at row 1"):
        build_batch(episodes, resolve("grpo"), max_tokens=8, reference=[[0.0] * 3, [0.0]])
    with pytest.raises(ConfigError, match="without episodes"):
        build_batch([], resolve("grpo"), max_tokens=8)
