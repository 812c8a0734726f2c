"""Int8 products: exact to the last bit at every level of the processor, odd shapes, extremes, what is refused."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.levels import CSRC, EMULATED, REAL, library_at, library_with, use
from triloop.errors import UsageError
from triloop.kernels import int8, native, ternary

compiled = pytest.mark.skipif(not native.available(), reason=native.describe())

SHAPES = [(1, 1), (3, 5), (64, 64), (65, 63), (130, 129), (17, 300), (200, 1000), (33, 2049)]
BATCHES = [0, 1, 2, 3, 4, 5, 6, 7, 13, 16, 33, 127, 128, 129, 130]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(rows: int, columns: int) -> Tensor:
    """Rows of different size, one of them of zeros, one with halves among its quotients."""
    w = torch.randn(rows, columns, generator=draws()) * 10 ** torch.empty(rows, 1).uniform_(-2, 2, generator=draws(4))
    if rows > 2:
        w[1] = 0
        w[2] = torch.randint(-254, 255, (columns,), generator=draws(5)) / 2
        w[2, 0] = -127.0
    return w


def activations(n: int, columns: int) -> Tensor:
    x = torch.randn(n, columns, generator=draws(1)) * 10 ** torch.empty(n, 1).uniform_(-3, 3, generator=draws(1))
    if n > 1:
        x[1] = 0
    return x


def exact(x: Tensor, packed: int8.PackedInt8) -> None:
    """Against whole numbers of 64 bits, and two products that are rounded one by one."""
    codes, w_scale = int8.unpack(packed)
    q, scale = ternary.quantise_rows(x)
    truth = (q.long() @ codes.long().t()).float() * w_scale * scale[:, None]
    y = int8.product(x, packed)
    assert y.dtype == torch.float32 and torch.equal(y, truth)
    assert torch.equal(int8.reference(x, packed), truth)


def check_level(monkeypatch: pytest.MonkeyPatch, library: ctypes.CDLL, level: str) -> None:
    use(monkeypatch, library, level)
    for rows, columns in SHAPES:
        packed = int8.pack_weights(weights(rows, columns))
        for n in BATCHES:
            exact(activations(n, columns), packed)


@compiled
@pytest.mark.parametrize("level", REAL)
def test_a_level_of_this_processor(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_level(monkeypatch, library_with(level, "int8_product"), level)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("level", EMULATED)
def test_a_level_in_emulation(level: str, emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    check_level(monkeypatch, emulated, level)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("level", [*EMULATED, "portable", "here"])
@pytest.mark.parametrize("columns", [1536, int8.MOST_COLUMNS])
def test_nothing_overflows(columns: int, level: str, emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest sums there are, of either sign: beyond 2^24, where fp32 would not hold them."""
    if level != "here":
        use(monkeypatch, emulated, level)
    for a in (-127, 127):
        packed = int8.pack(torch.full((65, columns), a, dtype=torch.int8), torch.ones(65))
        for b in (-127.0, 127.0):
            for n in (1, 2, 7):
                y = int8.product(torch.full((n, columns), b), packed)
                assert (y == torch.tensor(a * int(b) * columns).float()).all()


def test_a_level_with_wrong_sums_is_stepped_over(tmp_path: Path) -> None:
    """One sign lost in one level: the library takes the next one down."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    source = tmp_path / "csrc"
    shutil.copytree(CSRC, source)
    dots = source / "int8_dot.inc"
    text = dots.read_text()
    right = "Ops::CUMULATIVE ? 128 : 0"
    assert right in text
    dots.write_text(text.replace(right, "Ops::WIDTH == 64 ? 127 : Ops::CUMULATIVE ? 128 : 0"))
    out = tmp_path / "wrong.so"
    flags = ["-O1", "-std=c++17", "-fPIC", "-shared", "-DTRILOOP_EMULATE"]
    subprocess.run([compiler, *flags, str(source / "ternary.cpp"), "-o", str(out)], check=True)
    library = library_at(out)
    library.triloop_ternary_level.restype = ctypes.c_char_p
    assert library.triloop_ternary_level() == b"neon"


def test_by_hand() -> None:
    """Scales 1/127 and 2/127; 127 * 0.5 = 63.5 and 1.5 steps go to the even neighbour."""
    packed = int8.pack_weights(torch.tensor([[1.0, -0.5], [2.0, 3 / 127]]))
    codes, scale = int8.unpack(packed)
    assert codes.tolist() == [[127, -64], [127, 2]]
    assert torch.equal(scale, torch.tensor([1.0, 2.0]) / torch.tensor(127.0))
    one = torch.tensor([[127.0, -2.5]])  # codes 127 and -2 of scale 1
    expected = torch.tensor([127 * 127 + 128, 127 * 127 - 4]).float() * scale
    assert torch.equal(int8.product(one, packed), expected[None])


def test_rows_of_zeros_and_padding_give_zeros() -> None:
    packed = int8.pack_weights(torch.zeros(3, 70))
    assert not int8.product(activations(5, 70), packed).any()
    assert int8.pack_weights(torch.ones(65, 65)).tiles[1, :, 1:].count_nonzero() == 0


@compiled
def test_threads_and_other_rows_change_nothing() -> None:
    packed, x = int8.pack_weights(weights(700, 900)), activations(130, 900)
    one = [int8.product(x[:n], packed) for n in (1, 3, 130)]
    torch.set_num_threads(2)
    try:
        two = [int8.product(x[:n], packed) for n in (1, 3, 130)]
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    for i in (0, 5, 129):
        assert torch.equal(one[2][i : i + 1], int8.product(x[i : i + 1], packed))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_in_its_row(value: float) -> None:
    w, x = weights(70, 90), activations(6, 90)
    clean = int8.product(x, int8.pack_weights(w))
    w[69, 3] = x[4, 89] = value
    y = int8.product(x, int8.pack_weights(w))
    assert y[4].isnan().all() and y[:, 69].isnan().all()
    rest = [0, 1, 2, 3, 5]
    assert torch.equal(y[rest, :69], clean[rest, :69])


def test_packing_there_and_back() -> None:
    for rows, columns in SHAPES:
        codes = torch.randint(-127, 128, (rows, columns), generator=draws(), dtype=torch.int8)
        scale = torch.rand(rows, generator=draws(2))
        packed = int8.pack(codes, scale)
        again, scales = int8.unpack(packed)
        assert torch.equal(again, codes) and torch.equal(scales, scale)
    w = weights(70, 330)
    codes, scale = ternary.quantise_rows(w)
    assert torch.equal(int8.pack(codes, scale).tiles, int8.pack_weights(w).tiles)


def test_size() -> None:
    """A byte a weight and four for a row; the layout by hand."""
    packed = int8.pack(torch.arange(64, dtype=torch.int8)[:, None].repeat(1, 64), torch.ones(64))
    assert packed.bytes == 64 * 64 + 64 * 4
    assert packed.tiles.view(-1)[:8].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert packed.tiles.view(-1)[256 + 4 * 9 : 256 + 4 * 9 + 4].tolist() == [9] * 4


def test_what_does_not_fit_is_refused() -> None:
    ok = torch.ones(3, 70, dtype=torch.int8)
    with pytest.raises(UsageError, match="-128"):
        int8.pack(ok * -128, torch.ones(3))
    with pytest.raises(UsageError, match="scale for each row"):
        int8.pack(ok, torch.ones(2))
    with pytest.raises(UsageError, match="65536"):
        int8.pack(torch.zeros(1, 65_537, dtype=torch.int8), torch.ones(1))
    with pytest.raises(UsageError, match="65537 columns"):
        int8.pack_weights(torch.zeros(1, 65_537))
    with pytest.raises(UsageError, match="expected \\[n, 70\\]"):
        int8.product(torch.ones(2, 71), int8.pack(ok, torch.ones(3)))


def test_without_the_library_everything_is_the_same(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from triloop.kernels import int8 as t, native; assert not native.available()\n"
        "w, x = torch.load(sys.argv[1])\n"
        "p = t.pack_weights(w); out = torch.empty(len(x), len(w)); t.prepared(x, p, out)()\n"
        "torch.save((p.tiles, p.scales, t.product(x, p), out), sys.argv[2])"
    )
    w, x = weights(70, 1500), activations(9, 1500)
    torch.save((w, x), tmp_path / "in")
    env = os.environ | {"TRILOOP_KERNELS": "off"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "in"), str(tmp_path / "out")], env=env, check=True)
    packed = int8.pack_weights(w)
    mine = (packed.tiles, packed.scales, int8.product(x, packed), int8.product(x, packed))
    assert all(torch.equal(a, b) for a, b in zip(torch.load(tmp_path / "out"), mine, strict=True))


def test_moved_to_a_device_it_multiplies_there() -> None:
    packed = int8.moved(int8.pack_weights(weights(70, 90)), "meta")
    assert packed.tiles.device.type == packed.scales.device.type == "meta"
    with pytest.raises(UsageError, match="on cpu"):
        int8.product(activations(2, 90), packed)
