"""Activations in blocks: llama.cpp's own steps one by one, numbers by hand, what is no number, and without the library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from triloop.kernels import ternary
from triloop.kernels.rows import BLOCK, quantise_blocks, quantise_rows, torch_blocks, torch_rows


def draw(n: int, columns: int, seed: int = 0) -> Tensor:
    """Rows of very different size, with blocks of zeros and tiny ones."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, columns, generator=g) * 10 ** torch.empty(n, 1).uniform_(-6, 6, generator=g)
    x[-1] = 0
    x[-2, :BLOCK] = 1e-38
    return x


def q8_k(x: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """One block by the steps of quantize_row_q8_K_ref (ggml-quants.c), each in fp32: the extreme with its sign, iscale =
    -127 / max, nearest_int by the sum with 1.5 * 2^23, at most 127, d = 1 / iscale."""
    extreme = np.float32(0)
    for v in x:
        if abs(v) > abs(extreme):
            extreme = v
    if not extreme:
        return np.zeros(len(x), np.int8), np.float32(0)
    iscale = np.float32(-127) / extreme
    sums = (iscale * x).astype(np.float32) + np.float32(12582912)
    whole = (sums.view(np.int32) & 0x007FFFFF) - 0x00400000
    return np.minimum(127, whole).astype(np.int8), np.float32(1) / iscale


def test_blocks_are_llama_cpps_but_for_the_sign_of_both() -> None:
    x = draw(12, 3 * BLOCK)
    x[3, 5] = -x[3, :BLOCK].abs().max()  # the same magnitude twice, of either sign
    x[4, :BLOCK] = torch.arange(BLOCK) - 127.5  # halves
    q, scale = quantise_blocks(x)
    assert q.dtype == torch.int8 and scale.shape == (12, 3)
    signs = set()
    for t in range(12):
        for b in range(3):
            part = slice(b * BLOCK, (b + 1) * BLOCK)
            if 0 < float(x[t, part].abs().max()) < 4e-37:
                assert scale[t, b] == 0 and not q[t, part].any()  # there iscale is infinite, and d 0
                continue
            codes, d = q8_k(x[t, part].numpy())
            sign = -1 if d < 0 else 1
            signs.add(sign)
            assert np.array_equal(q[t, part].numpy() * sign, codes) and scale[t, b] == float(d) * sign
    assert signs == {-1, 1}


@pytest.mark.parametrize("columns", [1, 64, 255, 256, 300, 1100])
@pytest.mark.parametrize("n", [2, 9])
def test_torch_gives_the_same_bits(columns: int, n: int) -> None:
    x = draw(n, columns, columns)
    for a, b in zip((*quantise_blocks(x), *quantise_rows(x)), (*torch_blocks(x, BLOCK), *torch_rows(x)), strict=True):
        assert a.shape == b.shape and torch.equal(a, b)


def test_by_hand() -> None:
    """Two blocks, the second short, of one row: 254 steps of 0.5, and 127 of 2."""
    x = torch.zeros(1, BLOCK + 2)
    x[0, 0], x[0, 1], x[0, 2], x[0, -2], x[0, -1] = -63.5, 1.25, 0.75, 254.0, 5.0
    q, scale = quantise_blocks(x)
    assert scale.tolist() == [[0.5, 2.0]]
    assert q[0, :4].tolist() == [-127, 2, 2, 0] and q[0, -2:].tolist() == [127, 2]  # 2.5 and 1.5 go to even
    packed = ternary.pack(torch.ones(1, BLOCK + 2, dtype=torch.int8), 3.0, 0.5)
    assert ternary.product(x, packed, block=BLOCK).tolist() == [[3.5 * 0.5 * -123 + 3.5 * 2 * 129]]


def test_a_row_of_one_block_is_the_product_per_token_but_for_rounding() -> None:
    x = torch.randn(5, BLOCK, generator=torch.Generator().manual_seed(1))
    packed = ternary.pack((torch.arange(40 * BLOCK).view(40, BLOCK) % 3 - 1).to(torch.int8), 0.1)
    torch.testing.assert_close(ternary.product(x, packed, block=BLOCK), ternary.product(x, packed), rtol=0, atol=0.02)


def test_blocks_lose_less_than_rows_where_sizes_differ() -> None:
    x = torch.randn(4, 4 * BLOCK, generator=torch.Generator().manual_seed(2)) * torch.tensor(
        [0.01, 0.1, 1, 10]
    ).repeat_interleave(BLOCK)
    q, scale = quantise_blocks(x)
    blocks = (q * scale.repeat_interleave(BLOCK, 1) - x)[:, :BLOCK].abs().max()
    q, row = quantise_rows(x)
    assert blocks < 0.01 * (q * row[:, None] - x)[:, :BLOCK].abs().max()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_spoils_its_block_and_the_answers_of_its_row(value: float) -> None:
    x = torch.randn(3, 2 * BLOCK, generator=torch.Generator().manual_seed(3))
    packed = ternary.pack(torch.ones(70, 2 * BLOCK, dtype=torch.int8), 0.1)
    clean = ternary.product(x, packed, block=BLOCK)
    x[1, 300] = value
    q, scale = quantise_blocks(x)
    assert scale[1, 1].isnan() and not q[1, BLOCK:].any() and scale[1, 0].isfinite() and q[1, :BLOCK].any()
    for y in (ternary.product(x, packed, block=BLOCK), ternary.reference(x, packed, block=BLOCK)):
        assert y[1].isnan().all() and torch.equal(y[[0, 2]], clean[[0, 2]])


def test_out_and_prepared() -> None:
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(4))
    packed, out = ternary.pack(torch.ones(7, 300, dtype=torch.int8), 0.1), torch.empty(5, 7)
    assert ternary.product(x, packed, out, block=BLOCK) is out
    assert torch.equal(out, ternary.reference(x, packed, block=BLOCK))
    call = ternary.prepared(x, packed, out, block=BLOCK)
    x.mul_(3)
    call()
    assert torch.equal(out, ternary.reference(x, packed, block=BLOCK))


def test_without_the_library_everything_is_the_same(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from triloop.kernels import rows, ternary as t; assert t.level() == 'torch'\n"
        "x = torch.load(sys.argv[1]); p = t.pack((x[:9] > 0).to(torch.int8), 0.3, 0.1)\n"
        "out = torch.empty(12, 9); t.prepared(x, p, out, block=256)()\n"
        "torch.save((*rows.quantise_blocks(x), t.product(x, p, block=256), out), sys.argv[2])"
    )
    x = draw(12, 600)
    torch.save(x, tmp_path / "in")
    env = os.environ | {"TRILOOP_KERNELS": "off"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "in"), str(tmp_path / "out")], env=env, check=True)
    y = ternary.product(x, ternary.pack((x[:9] > 0).to(torch.int8), 0.3, 0.1), block=BLOCK)
    assert all(
        torch.equal(a, b) for a, b in zip(torch.load(tmp_path / "out"), (*quantise_blocks(x), y, y), strict=True)
    )
