"""The GPU's kernel gives the processor's numbers to the last bit: in Triton's interpreter, and on a real one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from triloop.kernels import ternary, ternary_triton
from triloop.ternary.config import TernaryConfig
from triloop.ternary.linear import TernaryLinear

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton: pip install triton")

CASES = "[(1, 1, 1, None), (3, 65, 130, None), (17, 64, 64, 40), (5, 200, 300, 64), (16, 33, 2049, 100)]"

COMPARED = f"""
import torch
from triloop.kernels import ternary, ternary_triton
from triloop.kernels.rows import torch_blocks
assert ternary_triton.usable("cpu")
for n, rows, columns, group in {CASES}:
    draw = torch.Generator().manual_seed(n)
    codes = torch.randint(-1, 2, (rows, columns), generator=draw, dtype=torch.int8)
    groups = 1 if group is None else -(-columns // group)
    scale, shift = torch.rand(rows, groups, generator=draw), torch.randn(rows, groups, generator=draw)
    for s, b in ((scale, shift), (scale, None), (torch.tensor(0.03), None)):
        packed = ternary.pack(codes, s, b, group)
        x = torch.randn(n, columns, generator=draw) * 3
        q, row_scale = ternary.quantise_rows(x)
        sizes = dict(rows=packed.rows, group=packed.group)
        y = ternary_triton.multiply(q, row_scale, packed.tiles, packed.scales, packed.shifts, **sizes)
        assert torch.equal(y, ternary.reference(x, packed)), (n, rows, columns, group)
        if group in (None, 64):
            block = group or 256
            q, row_scale = torch_blocks(x, block)
            y = ternary_triton.multiply(q, row_scale, *(packed.tiles, packed.scales, packed.shifts), **sizes, block=block)
            assert torch.equal(y, ternary.reference(x, packed, block=block)), (n, rows, columns, group)
print("equal")
"""


@triton
def test_the_interpreter_gives_the_same_bits() -> None:
    """In a process of its own: Triton decides at its import whether it interprets."""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", COMPARED], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


def test_a_processor_does_without() -> None:
    assert not ternary_triton.usable("cpu")


def test_a_device_without_triton_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("triton")

    monkeypatch.setattr(ternary_triton, "_kernel", missing)
    ternary_triton.usable.cache_clear()
    assert not ternary_triton.usable("meta")
    ternary_triton.usable.cache_clear()


def test_moved_keeps_the_matrix() -> None:
    codes = torch.tensor([[1, 0, -1], [0, 1, 1]], dtype=torch.int8)
    packed = ternary.pack(codes, torch.tensor([0.5, 2.0]))
    there = ternary.moved(packed, "meta")
    assert there.tiles.device.type == there.scales.device.type == "meta" and there.shifts is None
    assert torch.equal(ternary.unpack(ternary.moved(packed, "cpu"))[0], codes)


@gpu
def test_a_gpu_gives_the_same_bits() -> None:
    """By Triton where it works there, else by torch."""
    draw = torch.Generator().manual_seed(3)
    for n, rows, columns in ((1, 64, 64), (33, 130, 300)):
        codes = torch.randint(-1, 2, (rows, columns), generator=draw, dtype=torch.int8)
        packed, x = ternary.pack(codes, torch.rand(rows, generator=draw)), torch.randn(n, columns, generator=draw)
        there = ternary.product(x.cuda(), ternary.moved(packed, "cuda"))
        assert torch.equal(there.cpu(), ternary.product(x, packed))
        there = ternary.product(x.cuda(), ternary.moved(packed, "cuda"), block=256)
        assert torch.equal(there.cpu(), ternary.product(x, packed, block=256))
    layer = TernaryLinear.of(torch.nn.Linear(96, 80), TernaryConfig()).requires_grad_(False)
    x = torch.randn(7, 96, generator=draw)
    here = layer(x)
    assert torch.equal(layer.cuda()(x.cuda()).cpu(), here)
