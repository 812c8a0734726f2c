"""A program gives what its calls give one by one, for any number of rows, however threads share them."""

from __future__ import annotations

import ctypes

import pytest
import torch

from triloop.kernels import native, panels
from triloop.kernels.calls import Call, Place, Program

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels are not built")

MOST, WIDTH, INNER = 40, 24, 36


class Step:
    """Look up, multiply, gate, multiply, keep: as a decoding step does."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.count = ctypes.c_long(MOST)
        self.table, self.ids = torch.randn(50, WIDTH), torch.randint(50, (MOST,))
        self.slots = torch.randperm(MOST)
        up, down = torch.randn(2 * INNER, WIDTH), torch.randn(WIDTH, INNER)
        self.x, self.both = torch.zeros(MOST, WIDTH), torch.zeros(MOST, 2 * INNER)
        self.inner, self.out, self.kept = torch.zeros(MOST, INNER), torch.zeros(MOST, WIDTH), torch.zeros(MOST, WIDTH)
        weights = [panels.lay_out(w, panels.room(*w.shape)) for w in (up, down)]
        self.calls = [
            Call("look_up", "prrnit", (self.table, self.ids, self.x, self.count, WIDTH)),
            panels.prepared(self.x, weights[0], torch.randn(2 * INNER), self.both, self.count),
            Call("swiglu", "rrnit", (self.both, self.inner, self.count, INNER)),
            panels.prepared(self.inner, weights[1], None, self.out, self.count),
            Call("keep_rows", "rrpnit", (self.out, self.slots, Place.of(self.kept), self.count, WIDTH)),
        ]

    def cleared(self) -> None:
        for t in (self.x, self.both, self.inner, self.out, self.kept):
            t.zero_()

    def answers(self) -> list[torch.Tensor]:
        return [t.clone() for t in (self.x, self.both, self.inner, self.out, self.kept)]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("apart", [True, False])
def test_a_program_is_its_calls(threads: int, apart: bool) -> None:
    step, before = Step(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        program = Program(step.calls)
        for rows in (1, 2, 3, 7, 16, 39, MOST):
            step.cleared()
            step.count.value = rows
            for call in step.calls:
                call()
            wanted = step.answers()
            assert not wanted[3][rows:].any() and wanted[3][:rows].any()
            step.cleared()
            step.count.value = -1  # a program is told, and does not look
            program(rows, apart=apart)
            for got, expected in zip(step.answers(), wanted, strict=True):
                assert torch.equal(got, expected)
    finally:
        torch.set_num_threads(before)


def test_numbers_keep_their_fractions() -> None:
    x, weight, out = torch.randn(3, 8), torch.rand(8), torch.zeros(3, 8)
    Program([Call("norm", "rrpfrnit", (x.clone(), None, weight, 0.37, out, 3, 8))])(3, apart=False)
    expected = x / (x.square().mean(1, keepdim=True) + 0.37).sqrt() * weight
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


def test_memory_must_be_contiguous() -> None:
    x = torch.zeros(8, 6).t()
    with pytest.raises(AssertionError, match="strides"):
        Program([Call("swiglu", "rrnit", (x, torch.zeros(6, 4), 6, 4))])
    with pytest.raises(KeyError, match="no compiled kernel"):
        Program([Call("no such kernel", "n", (1,))])
