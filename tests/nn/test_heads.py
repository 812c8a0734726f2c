from __future__ import annotations

import pytest
import torch

from triloop.nn.decoder import packing
from triloop.nn.heads import ScalarHead, at_last_token


def test_starts_at_zero_and_is_a_dot_product() -> None:
    head = ScalarHead(3)
    hidden = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
    assert head(hidden).tolist() == [0.0, 0.0]
    head.weight.data = torch.tensor([1.0, 0.0, 2.0])
    assert head.bias is not None
    head.bias.data.fill_(0.5)
    assert head(hidden).tolist() == [7.5, 0.5]
    assert head(hidden[None]).shape == (1, 2) and head(hidden[0]).shape == ()


def test_gradient_by_hand() -> None:
    head = ScalarHead(2)
    head(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert head.weight.grad is not None and head.weight.grad.tolist() == [4.0, 6.0]
    assert head.bias is not None and head.bias.grad is not None and head.bias.grad.item() == 2.0
    assert set(dict(ScalarHead(2, bias=False).named_parameters())) == {"weight"}


def test_bf16_hidden_states_give_fp32_values() -> None:
    head = ScalarHead(2)
    head.weight.data.fill_(1.0)
    assert head(torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16)).tolist() == [257.0]


def test_wrong_width_is_refused() -> None:
    with pytest.raises(RuntimeError):
        ScalarHead(3)(torch.zeros(2, 4))


def test_at_last_token() -> None:
    where = packing([2, 1, 3])
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], requires_grad=True)
    ends = at_last_token(values, where)
    assert ends.tolist() == [1.0, 2.0, 5.0]
    ends.sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
