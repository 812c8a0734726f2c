from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.packing import Packing, gathered, packing, prefix_tree, spread

SEQUENCES = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8], [3], [6, 7, 8]]


def test_tokens_with_the_same_history_stand_once() -> None:
    ids, where = prefix_tree(SEQUENCES)
    assert ids.tolist() == [5, 6, 7, 8, 9, 3, 6, 7, 8]
    assert where.positions.tolist() == [0, 1, 2, 3, 2, 0, 0, 1, 2]
    assert where.order is not None
    assert where.order.tolist() == [0, 1, 2, 3, 0, 1, 4, 0, 1, 2, 3, 5, 6, 7, 8]
    assert ids[where.order].tolist() == [t for s in SEQUENCES for t in s]
    padded = ids[where.source].view(len(SEQUENCES), where.longest).tolist()
    assert [row[: len(s)] for row, s in zip(padded, SEQUENCES, strict=True)] == SEQUENCES
    assert where.source[where.slots].tolist() == list(range(len(ids)))


def test_packing_shares_nothing() -> None:
    where = packing([2, 1, 3])
    assert where.positions.tolist() == [0, 1, 0, 0, 1, 2]
    assert where.slots.tolist() == [0, 1, 3, 6, 7, 8]
    assert not where.dense
    assert packing([2, 2]).dense


def test_gradient_of_a_token_is_the_sum_over_its_slots() -> None:
    ids, where = prefix_tree([[1, 2], [1, 3, 4]])
    x = torch.arange(len(ids) * 2, dtype=torch.float32).view(-1, 2).requires_grad_()
    weight = torch.ones(where.size, 2)
    weight[2] = 0.0  # behind the end of the first sequence
    (spread(x, where) * weight).sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].tolist() == [2.0, 1.0, 1.0, 1.0]

    y = torch.zeros(where.size, 2, requires_grad=True)
    gathered(y, where).sum().backward()
    assert y.grad is not None
    assert y.grad[:, 0].tolist() == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("window", [None, 2])
def test_sharing_changes_neither_values_nor_gradients(window: int | None) -> None:
    config = DecoderConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        qk_norm=True,
        sliding_window=window,
        sliding_layers=(0,) if window else (),
    )
    decoder = Decoder(config).initialise(3, std=0.3)

    def run(ids: Tensor, where: Packing) -> tuple[Tensor, dict[str, Tensor]]:
        decoder.zero_grad()
        hidden = decoder.packed(ids, where)
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        return hidden.detach(), {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}

    plain = torch.tensor([t for s in SEQUENCES for t in s]), packing([len(s) for s in SEQUENCES])
    one, gradient_one = run(*plain)
    two, gradient_two = run(*prefix_tree(SEQUENCES))
    assert torch.allclose(one, two, atol=1e-5)
    assert gradient_one.keys() == gradient_two.keys()
    for name, gradient in gradient_one.items():
        assert torch.allclose(gradient, gradient_two[name], atol=1e-4), name
