"""Values worked by hand, closed forms, and the numbers of TRL and ParlAI (fixtures say where each comes from)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from triloop.learn import likelihood as lk
from triloop.learn import preferences as pf

FIXTURES = Path(__file__).parent / "fixtures"
TRL: dict[str, Any] = json.loads((FIXTURES / "trl.json").read_text(encoding="utf-8"))
CRINGE: dict[str, Any] = json.loads((FIXTURES / "parlai_cringe.json").read_text(encoding="utf-8"))

LOGP, REF = (torch.tensor(TRL[name], dtype=torch.float64) for name in ("logp", "logp_ref"))
LENGTHS = torch.tensor(TRL["lengths"])
MASK = torch.arange(LOGP.shape[1]) < LENGTHS[:, None]
ONE, NO_TIE = torch.ones(4).double(), torch.zeros(4, dtype=torch.bool)


def t(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def close(got: Tensor, want: list[float] | Tensor, rel: float = 1e-9) -> None:
    expected = torch.as_tensor(want, dtype=torch.float64)
    torch.testing.assert_close(got.double(), expected, rtol=rel, atol=rel)


def difference(x: Tensor) -> Tensor:
    return x[:4] - x[4:]


RATIO = lk.sequence_sum(LOGP, MASK) - lk.sequence_sum(REF, MASK)
MEAN = lk.sequence_mean_logp(LOGP, MASK)


# ---------------------------------------------------------------------- TRL


def test_dpo_is_trls() -> None:
    case = TRL["losses"]["dpo"]
    close(pf.logistic(case["beta"] * difference(RATIO), ONE), case["values"])


def test_robust_dpo_is_trls() -> None:
    case = TRL["losses"]["robust_dpo"]
    p = pf.debiased(ONE, label_smoothing=case["label_smoothing"])
    close(pf.logistic(case["beta"] * difference(RATIO), p), case["values"])


def test_ipo_is_trls() -> None:
    """TRL divides by the tokens; the formula takes whichever difference it is given."""
    case = TRL["losses"]["ipo"]
    mean_ratio = MEAN - lk.sequence_mean_logp(REF, MASK)
    close(pf.squared(difference(mean_ratio), ONE, beta=case["beta"]), case["values"])


def test_smoothed_logistic_is_trls_cpo() -> None:
    case = TRL["losses"]["cpo"]
    p = pf.smoothed(ONE, label_smoothing=case["label_smoothing"])
    close(pf.logistic(case["beta"] * difference(lk.sequence_sum(LOGP, MASK)), p), case["values"])


def test_simpo_is_trls() -> None:
    case = TRL["losses"]["simpo"]
    close(pf.logistic(case["beta"] * difference(MEAN), ONE, case["margin"]), case["values"])


def test_orpo_is_trls_odds_ratio() -> None:
    """TRL adds the likelihood of prompt and completion; ours is of the completion. The odds ratio is the same."""
    case = TRL["losses"]["orpo"]
    close(case["beta"] * pf.logistic(difference(pf.log_odds(MEAN)), ONE), case["values"], rel=1e-5)


def test_kto_is_trls() -> None:
    case = TRL["losses"]["kto"]
    value = torch.where(torch.tensor(case["labels"]) > 0, 1.0, -1.0).double()
    options = {"baseline": case["baseline"], "beta": case["beta"], "undesirable_weight": case["undesirable_weight"]}
    close(lk.kto(RATIO, value, **options), case["values"])


def test_the_reward_loss_is_trls() -> None:
    case = TRL["losses"]["reward_bt"]
    s = t(*case["scores"])
    loss = pf.logistic(difference(s), ONE, t(*case["margins"])) + case["centring"] * pf.centring(s[:4], s[4:])
    close(loss, case["values"])


# ---------------------------------------------------------------------- ParlAI


def others(k: int) -> tuple[Tensor, Tensor, Tensor]:
    logp = torch.tensor(CRINGE["logits"], dtype=torch.float64).log_softmax(-1)
    tokens = torch.tensor(CRINGE["tokens"])[:, None]
    own = logp.gather(1, tokens)
    best = logp.scatter(1, tokens, -math.inf).topk(k).values
    return own, best[:, None], torch.ones_like(own, dtype=torch.bool)


def test_contrast_is_parlais_for_one_alternative() -> None:
    close(lk.contrast(*others(1))[:, 0], CRINGE["top_1"], rel=1e-6)


def test_contrast_is_the_mean_of_parlais_draws() -> None:
    """Of several alternatives ParlAI draws one: its mean over many draws has that error, about 1 / sqrt(draws)."""
    torch.testing.assert_close(
        lk.contrast(*others(3))[:, 0], t(*CRINGE["top_3_mean"]), rtol=0.0, atol=4 / math.sqrt(CRINGE["draws"])
    )


def test_contrast_by_hand() -> None:
    """Alternatives half and half: mean of -log sigmoid(s+ - s-); the token falls, the alternatives rise."""
    logp = torch.log(torch.tensor([[0.5, 0.1]])).requires_grad_()
    alternatives = torch.log(torch.tensor([[[0.25, 0.25], [0.4, 0.4]]])).requires_grad_()
    loss = lk.contrast(logp, alternatives, torch.tensor([[True, False]]))
    close(loss.detach(), [[math.log(3.0), 0.0]], rel=1e-6)
    loss.sum().backward()
    assert logp.grad is not None and alternatives.grad is not None
    close(logp.grad, [[2 / 3, 0.0]], rel=1e-6)
    close(alternatives.grad, [[[-1 / 3, -1 / 3], [0.0, 0.0]]], rel=1e-6)


# ---------------------------------------------------------------------- pairs by hand


def test_logistic_by_hand() -> None:
    d, p = t(0.0, 2.0, 2.0, -1.0), t(1.0, 1.0, 0.0, 0.5)
    soft = 0.5 * math.log(1 + math.e) + 0.5 * math.log(1 + math.exp(-1))
    close(pf.logistic(d, p), [math.log(2), math.log1p(math.exp(-2)), math.log1p(math.exp(2)), soft])
    close(pf.logistic(t(3.0), t(1.0), t(1.0)), pf.logistic(t(2.0), t(1.0)))
    close(pf.logistic(t(-3.0), t(0.0), t(1.0)), pf.logistic(t(2.0), t(1.0)))


def test_labels_smoothed_and_back() -> None:
    p = t(0.0, 0.3, 0.5, 1.0)
    close(pf.smoothed(p, label_smoothing=0.1), [0.1, 0.34, 0.5, 0.9])
    close(pf.debiased(pf.smoothed(p, label_smoothing=0.2), label_smoothing=0.2), p)


def test_robust_dpo_is_unbiased() -> None:
    """Its mean over labels flipped with chance e is the loss on clean labels."""
    d, e = t(0.7, -1.2), 0.2
    clean, flipped = (pf.logistic(d, pf.debiased(x, label_smoothing=e)) for x in (t(1.0, 1.0), t(0.0, 0.0)))
    close((1 - e) * clean + e * flipped, pf.logistic(d, t(1.0, 1.0)))


def test_ipo_has_a_target() -> None:
    close(pf.squared(t(5.0, -5.0, 0.0, 1.0), t(1.0, 0.0, 0.5, 1.0), beta=0.1), [0.0, 0.0, 0.0, 16.0])


def test_davidson_by_hand() -> None:
    """nu = 1 between equals: 1/4, 1/4, and 1/2 for the tie. d = 2, nu = 1/2: weights e, 1/e and 1."""
    zero, win, tie = t(0.0, 0.0, 0.0), t(1.0, 0.0, 0.5), torch.tensor([False, False, True])
    close(pf.davidson(zero, win, tie), [math.log(4), math.log(4), math.log(2)])
    total = math.e + 1 / math.e + 1
    close(pf.davidson(zero + 2, win, tie, nu=0.5), [math.log(total) - 1, math.log(total) + 1, math.log(total)])
    close(pf.davidson(t(0.7), t(1.0), torch.tensor([False]), nu=1e-9), pf.logistic(t(0.7), t(1.0)), rel=1e-6)


def test_rao_kupper_by_hand() -> None:
    """nu = 3 between equals: 1/4, 1/4, and 1/2 for the tie."""
    zero, win, tie = t(0.0, 0.0, 0.0), t(1.0, 0.0, 0.5), torch.tensor([False, False, True])
    close(pf.rao_kupper(zero, win, tie), [math.log(4), math.log(4), math.log(2)])
    a, d = math.log(2), 1.5
    first, second = sigmoid(d - a), sigmoid(-d - a)
    close(pf.rao_kupper(zero + d, win, tie, nu=2.0), [-math.log(x) for x in (first, second, 3 * first * second)])
    close(pf.rao_kupper(t(0.7), t(1.0), torch.tensor([False]), nu=1 + 1e-9), pf.logistic(t(0.7), t(1.0)), rel=1e-6)


@pytest.mark.parametrize("model", [pf.davidson, pf.rao_kupper])
@pytest.mark.parametrize("nu", [1.5, 4.0])
def test_three_outcomes_are_all_there_are(model: Any, nu: float) -> None:
    d = t(-2.0, 0.0, 0.3, 5.0)
    win, lose, half = ONE, 0 * ONE, 0.5 * ONE
    chances = [(-model(d, p, tie, nu=nu)).exp() for p, tie in ((win, NO_TIE), (lose, NO_TIE), (half, ~NO_TIE))]
    close(torch.stack(chances).sum(dim=0), ONE)


@pytest.mark.parametrize("model", [pf.davidson, pf.rao_kupper])
def test_a_tie_pulls_the_difference_to_zero(model: Any) -> None:
    d = t(-1.0, 0.0, 2.0).requires_grad_()
    model(d, t(0.5, 0.5, 0.5), torch.tensor([True] * 3), nu=2.0).sum().backward()
    assert d.grad is not None
    assert d.grad[0] < 0 and d.grad[1].abs() < 1e-12 and d.grad[2] > 0


def test_ordinal_is_rao_kupper_against_zero() -> None:
    s, v = t(0.4, 0.4, 0.4), t(1.0, -0.2, 0.0)
    want = pf.rao_kupper(s, t(1.0, 0.0, 0.5), torch.tensor([False, False, True]), nu=2.0)
    close(pf.ordinal(s, v, nu=2.0), want)


def test_gate_and_odds_by_hand() -> None:
    close(pf.cringe_gate(t(3.0, 1.0), margin=1.0, temperature=2.0), [sigmoid(-1.0), 0.5])
    close(pf.log_odds(t(math.log(0.75), math.log(0.2))), [math.log(3), math.log(0.25)])
    close(pf.centring(t(1.0), t(-3.0)), [4.0])


# ---------------------------------------------------------------------- single completions by hand

M = torch.tensor([[True, True, False], [True, False, False]])


def rows(*x: list[float]) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_sums_and_means() -> None:
    x = rows([1.0, 2.0, math.nan], [5.0, math.inf, -math.inf])
    close(lk.sequence_sum(x, M), [3.0, 5.0])
    close(lk.sequence_mean_logp(x, M), [1.5, 5.0])
    assert lk.sequence_mean_logp(x, torch.zeros_like(M)).tolist() == [0.0, 0.0]


def test_the_last_token_is_read() -> None:
    x = rows([1.0, 2.0, math.nan], [5.0, math.nan, 7.0])
    close(lk.at_last_token(x, M), [2.0, 5.0])
    close(lk.at_last_token(x, torch.tensor([[True, False, False], [False, False, True]])), [1.0, 7.0])
    assert lk.at_last_token(x, torch.zeros_like(M)).tolist() == [0.0, 0.0]
    assert lk.at_last_token(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)).tolist() == [0.0, 0.0]


def test_log_complement_near_certainty() -> None:
    p = t(1e-12, 0.25, 0.5, 0.75, 1 - 1e-5)
    close(lk.log_complement(p.log()), torch.log1p(-p), rel=1e-9)
    certain = torch.zeros(2, requires_grad=True)
    out = lk.log_complement(certain)
    close(out.detach(), [math.log(1e-6)] * 2, rel=1e-4)
    out.sum().backward()
    assert certain.grad is not None
    assert (certain.grad < -1e5).all() and certain.grad.isfinite().all()


def test_unlikelihood_by_hand() -> None:
    logp = rows([math.log(0.5), math.log(0.25), math.nan], [math.log(0.75), 0.0, 0.0])
    got = lk.unlikelihood(logp, t(0.5, -1.0), M, negative_weight=2.0)
    close(got, rows([0.5 * math.log(2), 0.5 * math.log(4), 0.0], [2 * math.log(4), 0.0, 0.0]))
    assert lk.unlikelihood(logp, t(0.0, 0.0), M).abs().sum() == 0


def test_reward_weights() -> None:
    close(lk.reward_weight(t(1.0, 0.0, -1.0), temperature=0.5), [1.0, math.exp(-2), math.exp(-4)])


def test_kto_by_hand() -> None:
    """At the baseline all losses are a half of their weights; strength weighs, an abstention has none."""
    options = {"baseline": 2.0, "beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 3.0}
    close(lk.kto(t(2.0, 2.0, 2.0, 2.0), t(1.0, -1.0, 0.0, 0.5), **options), [0.5, 1.5, 0.0, 0.25])
    close(lk.kto(t(4.0, 4.0), t(1.0, -1.0), **options), [sigmoid(-1.0), 3 * sigmoid(1.0)])


def test_kl_baseline() -> None:
    a, b = rows([-1.0, -1.0, math.nan], [-1.0, 0.0, 0.0]), rows([-2.0, -2.0, math.nan], [-4.0, 0.0, 0.0])
    assert lk.kl_baseline(a, b, M).item() == pytest.approx(2.5)
    assert lk.kl_baseline(b, a, M).item() == 0.0


def test_pmpo_by_hand() -> None:
    """p = 1/2, reference 1/4: r = 2, KL term 1 - log 2."""
    logp, ref = rows([math.log(0.5)]), rows([math.log(0.25)])
    here, kl = torch.tensor([[True]]), 1 - math.log(2)
    for value, want in ((1.0, 0.3 * math.log(2)), (-1.0, -0.7 * math.log(2)), (0.0, 0.0)):
        close(lk.pmpo(logp, ref, t(value), here, alpha=0.3, beta=0.8), [[want + 0.8 * kl]])


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.8), (0.0, 2.0)])
def test_pmpo_finds_its_closed_form(alpha: float, beta: float) -> None:
    """One token, rows at the reference's own frequencies: p = (beta ref + alpha D_a - (1 - alpha) D_r) / their sum, with D
    the rows' shares."""
    ref = t(0.2, 0.3, 0.4, 0.1)
    drawn = torch.tensor([0] * 2 + [1] * 3 + [2] * 4 + [3])
    value = t(*[1.0] * 2, *[-1.0, 0.0, 0.0], *[-1.0, 1.0, 1.0, 0.0], 0.0)
    here, logits = torch.ones(10, 1, dtype=torch.bool), ref.log().clone().requires_grad_()
    optimiser = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure() -> Tensor:
        optimiser.zero_grad()
        logp = logits.log_softmax(-1)[drawn][:, None]
        loss = lk.pmpo(logp, ref.log()[drawn][:, None], value, here, alpha=alpha, beta=beta).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    accepted = torch.bincount(drawn, weights=(value > 0).double()) / 10
    rejected = torch.bincount(drawn, weights=(value < 0).double()) / 10
    pulled = beta * ref + alpha * accepted - (1 - alpha) * rejected
    close(logits.detach().softmax(-1), pulled / pulled.sum(), rel=1e-4)


def test_pmpo_from_negatives_alone_is_bounded_only_when_held() -> None:
    """A rejected token rests at ref (1 - (1 - alpha) / beta)."""
    ref, here = rows([math.log(0.5)]), torch.tensor([[True]])

    def slope(logp: float, beta: float) -> float:
        x = rows([logp]).requires_grad_()
        lk.pmpo(x, ref, t(-1.0), here, alpha=0.0, beta=beta).sum().backward()
        assert x.grad is not None
        return float(x.grad)

    assert slope(math.log(0.25), 2.0) == pytest.approx(0.0, abs=1e-12)
    assert slope(math.log(0.01), 2.0) < 0 < slope(math.log(0.4), 2.0)
    assert slope(-10.0, 0.5) > 0


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        pf.davidson(t(0.0, 1.0), t(1.0, 1.0, 1.0), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(jaxtyping.TypeCheckError):
        lk.kto(t(0.0, 1.0), t(1.0), baseline=0.0)
