from __future__ import annotations

import math
from collections.abc import Callable

import jaxtyping
import pytest
import torch
from torch import Tensor

from triloop.learn import objectives as o

T2 = [[True, True, False], [True, False, False]]
MASK = torch.tensor(T2)


def t(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def grad(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    loss(x).sum().backward()
    assert x.grad is not None
    return x.grad


ADVANTAGE = t([1.0, -2.0, 3.0], [0.5, 1.0, 1.0])
OTHER = t([-1.1, -0.7, -0.2], [-2.0, -0.3, -1.0])
Q = torch.tensor([0.25, 0.75])
RIGHT = torch.tensor([True, False])

# Each objective as a function of log-probabilities (or values, or entropies) and whatever else it is given per token.
# A new one joins by one line; test_every_objective_is_here fails when one is missing.
OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "negative_log_likelihood": lambda x, other, a: o.negative_log_likelihood(x, MASK),
    "reinforce": lambda x, other, a: o.reinforce(x, a, MASK),
    "clipped_surrogate": lambda x, other, a: o.clipped_surrogate(x, other, a, MASK),
    "sequence_clipped_surrogate": lambda x, other, a: o.sequence_clipped_surrogate(x, other, a, MASK, clip_high=0.5),
    "nft": lambda x, other, a: o.nft(x, other, RIGHT, Q, MASK),
    "kl_k1": lambda x, other, a: o.kl_k1(x, other, MASK),
    "kl_k2": lambda x, other, a: o.kl_k2(x, other, MASK),
    "kl_k3": lambda x, other, a: o.kl_k3(x, other, MASK),
    "entropy_bonus": lambda x, other, a: o.entropy_bonus(x, MASK),
    "value_loss": lambda x, other, a: o.value_loss(x, a, other, MASK, clip=0.2),
    "token_log_ratio": lambda x, other, a: o.token_log_ratio(x, other, MASK),
    "sequence_log_ratio": lambda x, other, a: o.sequence_log_ratio(x, other, MASK),
}
WITHOUT_GRADIENT = {"clip_active", "per_token", "truncated_importance_weight"}
LOGP = t([-1.0, -0.5, -0.3], [-1.5, -0.1, -0.9])


def test_every_objective_is_here() -> None:
    assert OBJECTIVES.keys() | WITHOUT_GRADIENT == set(o.__all__)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_contract_masked_poison_reaches_neither_value_nor_gradient(name: str, poison: float) -> None:
    objective = OBJECTIVES[name]

    def run(fill: float) -> tuple[Tensor, Tensor]:
        x, other, a = (torch.where(MASK, y, fill) for y in (LOGP, OTHER, ADVANTAGE))
        x = x.requires_grad_()
        value = objective(x, other, a)
        value.sum().backward()
        assert x.grad is not None
        return value.detach(), x.grad

    clean, poisoned = run(0.0), run(poison)
    assert torch.equal(clean[0], poisoned[0])
    assert torch.equal(clean[1], poisoned[1])
    assert poisoned[0].isfinite().all()
    assert (poisoned[0][~MASK] == 0).all()
    assert (poisoned[1][~MASK] == 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_contract_a_wrong_shape_is_refused(name: str) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        OBJECTIVES[name](LOGP[:, :2], OTHER, ADVANTAGE)


# These stop a gradient on purpose; their own tests give the gradient by hand.
STRAIGHT_THROUGH = {"nft", "sequence_clipped_surrogate", "sequence_log_ratio"}


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - STRAIGHT_THROUGH))
def test_contract_gradient_equals_finite_differences(name: str) -> None:
    x, other, a = LOGP.double(), OTHER.double(), ADVANTAGE.double()
    assert torch.autograd.gradcheck(lambda y: OBJECTIVES[name](y, other, a), x.requires_grad_())


def test_clipped_surrogate_by_hand() -> None:
    """Four corners of the clip at ratio 2 or 1/2: with clip 0.2 the pessimistic side wins, and takes the gradient."""
    ratio, advantage = t([2.0, 0.5], [2.0, 0.5]), t([1.0, 1.0], [-1.0, -1.0])
    mask = torch.ones(2, 2, dtype=torch.bool)
    loss = lambda x: o.clipped_surrogate(x, torch.zeros(2, 2), advantage, mask, clip_low=0.2, clip_high=0.2)  # noqa: E731
    torch.testing.assert_close(loss(ratio.log()), t([-1.2, -0.5], [2.0, 0.8]))
    # d(-r A)/d logp = -r A where the clip does not hold, 0 where it does
    torch.testing.assert_close(grad(loss, ratio.log()), t([0.0, -0.5], [2.0, 0.0]))
    active = o.clip_active(ratio.log(), advantage, mask, clip_low=0.2, clip_high=0.2)
    assert active.tolist() == [[True, False], [False, True]]


def test_clip_higher_leaves_room_above_alone() -> None:
    ratio, mask = t([1.25]), torch.ones(1, 1, dtype=torch.bool)
    for clip_high, expected in [(0.2, 0.0), (0.28, -1.25)]:
        got = grad(
            lambda x, c=clip_high: o.clipped_surrogate(x, t([0.0]), t([1.0]), mask, clip_low=0.2, clip_high=c),
            ratio.log(),
        )
        torch.testing.assert_close(got, t([expected]))


def test_dual_clip_bounds_what_a_negative_advantage_may_cost() -> None:
    mask, ratio = torch.ones(1, 2, dtype=torch.bool), t([10.0, 2.0])
    loss = lambda x: o.clipped_surrogate(x, t([0.0, 0.0]), t([-1.0, -1.0]), mask, dual_clip=3.0)  # noqa: E731
    torch.testing.assert_close(loss(ratio.log()), t([3.0, 2.0]))
    torch.testing.assert_close(grad(loss, ratio.log()), t([0.0, 2.0]))


def test_on_policy_the_surrogate_has_reinforce_gradient() -> None:
    clipped = grad(lambda x: o.clipped_surrogate(x, LOGP, ADVANTAGE, MASK), LOGP)
    torch.testing.assert_close(clipped, grad(lambda x: o.reinforce(x, ADVANTAGE, MASK), LOGP))


def test_a_ratio_beyond_reason_stays_finite() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = o.clipped_surrogate(t([0.0, 0.0]), t([-1e4, -1e4]), t([0.0, -1.0]), mask)
    assert loss.isfinite().all()
    assert loss[0, 0] == 0


def test_sequence_ratio_by_hand() -> None:
    """Row 0: mean log ratio (0.1 + 0.2) / 2; row 1: one token, its own."""
    s = o.sequence_log_ratio(LOGP, OTHER, MASK).exp()
    torch.testing.assert_close(s[0, :2], torch.full((2,), math.exp(0.15)))
    assert s[1, 0] == pytest.approx(math.exp(0.5))


def test_gspo_token_form_has_the_gradient_of_gspo() -> None:
    """Mean over tokens of the token form against eq. 5 written out on the sequence ratio itself."""
    advantage_B = torch.tensor([1.5, -0.5])
    n = MASK.sum(dim=1)

    def token_form(x: Tensor) -> Tensor:
        losses = o.sequence_clipped_surrogate(
            x, OTHER, o.per_token(advantage_B, MASK), MASK, clip_low=1.0, clip_high=9.0
        )
        return losses.sum(dim=1) / n

    def paper(x: Tensor) -> Tensor:
        s = (torch.where(MASK, x - OTHER, 0.0).sum(dim=1) / n).exp()
        return -s * advantage_B

    torch.testing.assert_close(token_form(LOGP), paper(LOGP))
    torch.testing.assert_close(grad(token_form, LOGP), grad(paper, LOGP))


def test_gspo_of_length_one_is_the_token_surrogate() -> None:
    mask = torch.tensor([[True, False, False]] * 2)
    clip = {"clip_low": 0.1, "clip_high": 0.3}
    sequence = lambda x: o.sequence_clipped_surrogate(x, OTHER, ADVANTAGE, mask, **clip)  # noqa: E731
    token = lambda x: o.clipped_surrogate(x, OTHER, ADVANTAGE, mask, **clip)  # noqa: E731
    torch.testing.assert_close(sequence(LOGP), token(LOGP))
    torch.testing.assert_close(grad(sequence, LOGP), grad(token, LOGP))


def test_gspo_clips_whole_completions() -> None:
    advantage = o.per_token(torch.tensor([1.0, 1.0]), MASK)
    got = grad(lambda x: o.sequence_clipped_surrogate(x, OTHER, advantage, MASK, clip_high=0.2), LOGP)
    assert (got[0, :2] != 0).all(), "mean ratio 1.16 is inside"
    assert (got[1] == 0).all(), "ratio 1.65 is outside"


def test_nft_by_hand() -> None:
    """Right: -w log R. Wrong, q = 3/4, R = 1.2: implied (1 - 0.9) / 0.25 = 0.4, raised to eps = 1 in value alone."""
    mask = torch.ones(2, 1, dtype=torch.bool)
    log_r = t([math.log(1.2)], [math.log(1.2)])
    loss = lambda x: o.nft(x, torch.zeros(2, 1), RIGHT, Q, mask, weight="centred", eps=1.0)  # noqa: E731
    torch.testing.assert_close(loss(log_r), t([-0.75 * math.log(1.2)], [0.0]))
    # wrong: d/dx of -w log(implied), implied held at 1: w q R / (1 - q) = 0.25 * 0.75 * 1.2 / 0.25
    torch.testing.assert_close(grad(loss, log_r), t([-0.75], [0.9]))
    small = o.nft(log_r, torch.zeros(2, 1), RIGHT, Q, mask, weight="centred", eps=0.1)
    torch.testing.assert_close(small, t([-0.75 * math.log(1.2)], [-0.25 * math.log(0.4)]))


@pytest.mark.parametrize("weight", ["normalised", "centred"])
def test_nft_on_policy_has_the_gradient_of_grpo(weight: str) -> None:
    """Section 4 of the paper: normalised is GRPO, centred is Dr. GRPO."""
    success = torch.tensor([0.25, 0.25, 0.25, 0.25])
    right = torch.tensor([False, True, False, False])
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    logp = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)) - 2
    centred = right.float() - success
    advantage = centred / (success * (1 - success)).sqrt() if weight == "normalised" else centred
    nft = grad(lambda x: o.nft(x, logp, right, success, mask, weight=weight), logp)  # type: ignore[arg-type]
    grpo = grad(lambda x: o.clipped_surrogate(x, logp, o.per_token(advantage, mask), mask), logp)
    torch.testing.assert_close(nft, grpo)


def test_nft_learns_nothing_from_prompts_all_right_or_all_wrong() -> None:
    success = torch.tensor([1.0, 0.0])
    loss = lambda x: o.nft(x, OTHER, RIGHT, success, MASK, weight="normalised")  # noqa: E731
    assert (loss(LOGP) == 0).all()
    assert (grad(loss, LOGP) == 0).all()


def test_nft_negative_weight_scales_wrong_answers_alone() -> None:
    full, none = (o.nft(LOGP, OTHER + 0.9, RIGHT, Q, MASK, negative_weight=w, eps=0.1) for w in (1.0, 0.0))
    assert torch.equal(full[0], none[0])
    assert full[1, 0] != 0
    assert none[1, 0] == 0


def test_kl_estimators_by_hand() -> None:
    """log p - log q = ln 2: k1 = ln 2, k2 = ln(2)^2 / 2, k3 = 1/2 - 1 + ln 2."""
    p, q, mask = t([math.log(0.5)]), t([math.log(0.25)]), torch.ones(1, 1, dtype=torch.bool)
    assert o.kl_k1(p, q, mask).item() == pytest.approx(math.log(2))
    assert o.kl_k2(p, q, mask).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert o.kl_k3(p, q, mask).item() == pytest.approx(math.log(2) - 0.5)


def test_kl_estimators_in_expectation() -> None:
    """Summed over all outcomes: k1 and k3 give the KL; as losses k1 pulls nowhere, k2 like KL(p||q), k3 like KL(q||p)."""
    logits = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64, requires_grad=True)
    logq = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    logp = logits.log_softmax(0)
    p = logp.detach().exp()
    kl_pq, kl_qp = (logp.exp() * (logp - logq)).sum(), (logq.exp() * (logq - logp)).sum()

    def expected(k: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        mask = torch.ones(3, 1, dtype=torch.bool)
        return (p * k(logits.log_softmax(0)[:, None], logq[:, None], mask)[:, 0]).sum()

    def pull(x: Tensor) -> Tensor:
        return torch.autograd.grad(x, logits, retain_graph=True)[0]

    torch.testing.assert_close(expected(o.kl_k1), kl_pq)
    torch.testing.assert_close(expected(o.kl_k3), kl_pq)
    torch.testing.assert_close(pull(expected(o.kl_k1)), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(pull(expected(o.kl_k2)), pull(kl_pq))
    torch.testing.assert_close(pull(expected(o.kl_k3)), pull(kl_qp))


def test_value_loss_by_hand() -> None:
    """Return 1, old value 0, clip 0.2. At V = 0.5 the clipped error (0.2 - 1)^2 is worse and has no gradient."""
    mask, values, g, old = torch.ones(1, 3, dtype=torch.bool), t([0.1, 0.5, -0.5]), t([1.0] * 3), t([0.0] * 3)
    loss = lambda x: o.value_loss(x, g, old, mask, clip=0.2)  # noqa: E731
    torch.testing.assert_close(loss(values), t([0.405, 0.32, 1.125]))
    torch.testing.assert_close(grad(loss, values), t([-0.9, 0.0, -1.5]))
    free = grad(lambda x: o.value_loss(x, g, old, mask), values)
    torch.testing.assert_close(free, t([-0.9, -0.5, -1.5]))


def test_truncated_importance_weight_by_hand() -> None:
    learner = t([math.log(0.5), math.log(0.2)]).requires_grad_()
    sampler = t([math.log(0.1), math.log(0.4)])
    mask = torch.tensor([[True, True]])
    weight = o.truncated_importance_weight(learner, sampler, mask, cap=2.0)
    torch.testing.assert_close(weight, t([2.0, 0.5]))
    assert not weight.requires_grad
    poisoned = o.truncated_importance_weight(t([math.nan, 0.0]), sampler, torch.tensor([[False, False]]), cap=2.0)
    assert (poisoned == 0).all()


def test_entropy_bonus_raises_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1, keepdim=True)
    o.entropy_bonus(entropy, torch.ones(1, 1, dtype=torch.bool)).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] > 0, "descending lowers the likeliest logit"
