from __future__ import annotations

from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch

from triloop.errors import ConfigError
from triloop.learn.batch import Batch, micro_batches, minibatches, pad, supervised_batch

LENGTHS = [3, 1, 4, 2]


@pytest.fixture
def batch() -> Batch:
    made = supervised_batch([[9, 9]] * 4, [[i] * n for i, n in enumerate(LENGTHS)])
    g = torch.Generator().manual_seed(0)
    return replace(made, logp_old=torch.randn(4, 4, generator=g), weight=torch.rand(4, 4, generator=g))


def test_pad() -> None:
    rows = [[1.0, 2.0], np.array([3.0]), torch.tensor([4.0, 5.0, 6.0]), []]
    assert pad(rows).tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6], [0, 0, 0]]
    assert pad([[1.0]], 3).shape == (1, 3)
    assert pad([]).shape == (0, 0)


def test_rows_keeps_order_and_trims(batch: Batch) -> None:
    part = batch.rows([3, 1])
    assert part.tokens == [[3, 3], [1]]
    assert part.mask.tolist() == [[True, True], [True, False]]
    assert torch.equal(part.logp_old, batch.logp_old[[3, 1], :2])
    assert part.weight is not None
    assert part.logp_ref is None
    assert part.episode == [3, 1]
    assert part.denominators == batch.denominators


def test_micro_batches_cover_every_row_once_within_the_limit(batch: Batch) -> None:
    for limit in range(1, 20):
        parts = list(micro_batches(batch, limit))
        assert [i for part in parts for i in part.episode] == [0, 1, 2, 3]
        assert all(part.token_count() <= limit or len(part) == 1 for part in parts)
    assert [len(p) for p in micro_batches(batch, 8)] == [2, 1, 1]
    assert [len(p) for p in micro_batches(batch, 10**6)] == [4]
    with pytest.raises(ConfigError, match="micro-batch"):
        list(micro_batches(batch, 0))


def test_tokens_that_are_computed_once_count_once() -> None:
    """Three groups of two rows: prompt of 3, then 1 + 2, 2 + 2 and 2 + 4 tokens, which begin alike for one or two."""
    prompts = [[1, 2, 3]] * 2 + [[1, 2, 4]] * 2 + [[5, 2, 3]] * 2
    batch = supervised_batch(prompts, [[7], [7, 8], [7, 8], [9, 8], [6, 6], [6, 6, 6, 6]])
    counts = [4, 5, 8, 10, 15, 17]  # histories in the first so many rows
    for limit in range(1, 20):
        first = next(micro_batches(batch, limit, shared=100))
        assert len(first) == max(1, sum(n <= limit for n in counts))
    assert [len(p) for p in micro_batches(batch, 6, shared=100)] == [2, 1, 1, 1, 1], (
        "each piece counts its own histories"
    )
    assert [len(p) for p in micro_batches(batch, 7, shared=100)] == [2, 2, 2]
    assert [p.episode for p in micro_batches(batch, 14)] == [[0, 1, 2], [3, 4], [5]]
    assert [p.episode for p in micro_batches(batch, 14, shared=5)] == [[0, 1, 2, 3], [4, 5]], "the last row is too long"


def test_micro_batches_of_nothing(batch: Batch) -> None:
    assert list(micro_batches(batch.rows([]), 10)) == []


def test_minibatches_share_the_denominators(batch: Batch) -> None:
    parts = minibatches(batch, 3, order=[2, 0, 3, 1])
    assert [i for part in parts for i in part.episode] == [2, 0, 3, 1]
    assert all(part.denominators.tokens == pytest.approx(10 / 3) for part in parts)
    assert all(part.denominators.max_tokens == 4 for part in parts)
    assert len(minibatches(batch, 9)) == 4
    with pytest.raises(ConfigError, match="permutation"):
        minibatches(batch, 2, order=[0, 1])


def test_tensors_must_fit_each_other(batch: Batch) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        replace(batch, logp_old=torch.zeros(4, 3))


def test_supervised_batch_masks() -> None:
    made = supervised_batch([[1], [1]], [[5, 6], [7]], masks=[[False, True], [True]])
    assert made.mask.tolist() == [[False, True], [True, False]]
    assert made.denominators.tokens == 2
