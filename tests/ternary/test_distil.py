"""Distillation losses on numbers worked by hand, and what they are blind to."""

from __future__ import annotations

from math import log

import pytest
import torch

from triloop.ternary.distil import feature_cosine, logits_kl

HALVES = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]).log()
QUARTERS = torch.tensor([[[0.25, 0.75], [0.25, 0.75]]]).log()


def test_forward_and_reverse_by_hand() -> None:
    forward = logits_kl(HALVES, QUARTERS)  # of the teacher's quarters from the student's halves
    assert forward.shape == (1, 2)
    assert forward[0, 0].item() == pytest.approx(0.25 * log(0.5) + 0.75 * log(1.5), abs=1e-6)
    assert forward[0, 1].item() == pytest.approx(0, abs=1e-7)
    backward = logits_kl(HALVES, QUARTERS, reverse=True)
    assert backward[0, 0].item() == pytest.approx(0.5 * log(2) + 0.5 * log(2 / 3), abs=1e-6)


def test_a_constant_on_all_logits_changes_nothing() -> None:
    torch.testing.assert_close(logits_kl(HALVES + 3, QUARTERS - 7), logits_kl(HALVES, QUARTERS))


def test_temperature_divides_logits_and_multiplies_its_square() -> None:
    two = logits_kl(HALVES, QUARTERS, temperature=2.0)
    torch.testing.assert_close(two, 4 * logits_kl(HALVES / 2, QUARTERS / 2))


@pytest.mark.parametrize("reverse", [False, True])
def test_gradient_by_hand(reverse: bool) -> None:
    """Forward: q - p. Reverse: q (log q - log p - KL). The teacher has none."""
    student, teacher = HALVES.clone().requires_grad_(), QUARTERS.clone().requires_grad_()
    loss = logits_kl(student, teacher, reverse=reverse)
    loss.sum().backward()
    q, p = HALVES.exp(), QUARTERS.exp()
    kl = loss.detach()[..., None]
    torch.testing.assert_close(student.grad, q * (HALVES - QUARTERS - kl) if reverse else q - p)
    assert teacher.grad is None


def test_tokens_that_are_ruled_out_leak_nothing() -> None:
    ruled = torch.tensor([[0.0, 0.0, float("-inf")]])
    student = torch.tensor([[0.0, 0.0, float("-inf")]], requires_grad=True)
    loss = logits_kl(student, ruled)
    loss.sum().backward()
    assert loss.item() == 0 and student.grad is not None and student.grad.tolist() == [[0, 0, 0]]
    some = torch.zeros(1, 3, requires_grad=True)
    loss = logits_kl(some, ruled)
    loss.sum().backward()
    assert loss.item() == pytest.approx(log(1.5)) and some.grad is not None
    torch.testing.assert_close(some.grad, torch.tensor([[-1 / 6, -1 / 6, 1 / 3]]))


def test_cosine_by_hand() -> None:
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0], [2.0, 2.0]])
    b = torch.tensor([[6.0, 8.0], [0.0, 5.0], [-1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(feature_cosine(a, b), torch.tensor([0.0, 1.0, 2.0, 1 - 0.5**0.5]))


def test_cosine_is_blind_to_size_and_its_gradient_to_outliers() -> None:
    """The gradient's norm is sin / |student|, orthogonal to the student; a teacher's outlier cannot make it larger."""
    student = torch.tensor([[3.0, 4.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, 1.0]])
    for size in (1.0, 1000.0):
        (gradient,) = torch.autograd.grad(feature_cosine(student, teacher * size).sum(), student)
        torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, -0.2]]))
    assert feature_cosine(torch.zeros(1, 3), teacher).item() == 1.0
