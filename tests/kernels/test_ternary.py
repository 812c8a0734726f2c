"""Ternary products: exact to the last bit at every level of the processor, odd shapes, extremes, what is refused."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.levels import CSRC, EMULATED, REAL, library_at, library_with, use
from triloop.errors import UsageError
from triloop.kernels import native, ternary

compiled = pytest.mark.skipif(not native.available(), reason=native.describe())

SHAPES = [(1, 1), (3, 5), (64, 64), (65, 63), (130, 129), (17, 300), (200, 1000), (33, 2049)]
BATCHES = [0, 1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 31, 32, 33, 48, 64, 65, 127, 128, 129, 130]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes_of(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 2, (rows, columns), generator=draws(seed), dtype=torch.int8)


def activations(n: int, columns: int, seed: int = 1) -> Tensor:
    """Rows of very different size, with halves among the quotients, a row of zeros and a tiny one."""
    x = torch.randn(n, columns, generator=draws(seed)) * 10 ** torch.empty(n, 1).uniform_(-3, 3, generator=draws(seed))
    if n > 2:
        x[1] = 0
        x[2] *= 1e-30
    if n > 3:
        x[3] = torch.randint(-254, 255, (columns,), generator=draws(seed)) / 2
        x[3, 0] = 127.0
    return x


def scales(rows: int, columns: int, kind: str) -> tuple[Tensor, Tensor | None, int | None]:
    if kind == "tensor":
        return torch.tensor(0.037), None, None
    if kind == "row":
        return torch.rand(rows, generator=draws(2)), torch.randn(rows, generator=draws(3)), None
    group = int(kind)
    shape = rows, -(-columns // min(group, columns))
    return torch.rand(shape, generator=draws(2)), torch.randn(shape, generator=draws(3)), group


def exact(packed: ternary.PackedTernary, codes: Tensor, x: Tensor) -> None:
    """Quantisation, integer sums and the scaled answer, each to the last bit."""
    y = ternary.product(x, packed)
    assert y.shape == (len(x), packed.rows) and y.dtype == torch.float32
    assert torch.equal(y, ternary.reference(x, packed))
    q, scale = ternary.quantise_rows(x)
    assert torch.equal(ternary.integer_product(q, packed), q.int() @ codes.int().t())
    if len(x):
        assert torch.equal(q, torch.round(x / scale[:, None]).to(torch.int8))
        assert torch.equal(scale, torch.clamp(x.abs().amax(1), min=1e-5) / torch.full((len(x),), 127.0))


# ---------------------------------------------------------------------- every level


def check_level(monkeypatch: pytest.MonkeyPatch, library: ctypes.CDLL, level: str) -> None:
    """Packing by this level, then products by it, over shapes and batches that are multiples of nothing."""
    use(monkeypatch, library, level)
    for rows, columns in SHAPES:
        codes = codes_of(rows, columns)
        for kind in ("tensor", "row", "32", "64", "100", "128"):
            scale, shift, group = scales(rows, columns, kind)
            packed = ternary.pack(codes, scale, shift, group)
            assert torch.equal(packed.tiles, ternary._tiles(codes, packed))
            assert torch.equal(ternary.unpack(packed)[0], codes)
            for n in BATCHES if kind == "row" else (1, 5, 33):
                exact(packed, codes, activations(n, columns))
            for block in (64, 128, 256):
                if packed.groups == 1 or packed.group % block == 0:
                    x = activations(5, columns)
                    assert torch.equal(
                        ternary.product(x, packed, block=block), ternary.reference(x, packed, block=block)
                    )


@compiled
@pytest.mark.parametrize("level", REAL)
def test_a_level_of_this_processor(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_level(monkeypatch, library_with(level, "ternary_product"), level)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("level", EMULATED)
def test_a_level_in_emulation(level: str, emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    check_level(monkeypatch, emulated, level)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("level", [*EMULATED, "here"])
@pytest.mark.parametrize("columns", [6912, 16384, 50_000])
def test_nothing_overflows(columns: int, level: str, emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest sums there are: all weights of one sign by all activations at either end, in long rows."""
    if level != "here":
        use(monkeypatch, emulated, level)
    for sign in (-1, 0, 1):
        codes = torch.full((65, columns), sign, dtype=torch.int8)
        packed = ternary.pack(codes, 1.0)
        for value in (-128, -127, 127):
            for n in (1, 4, 33):
                q = torch.full((n, columns), value, dtype=torch.int8)
                assert (ternary.integer_product(q, packed) == sign * value * columns).all()
    alternating = torch.tensor([127, -128] * (columns // 2), dtype=torch.int8).repeat(5, 1)
    codes = torch.tensor([1, -1] * (columns // 2), dtype=torch.int8).repeat(70, 1)
    assert (ternary.integer_product(alternating, ternary.pack(codes, 1.0)) == 255 * (columns // 2)).all()


@compiled
def test_the_emulated_library_picks_its_highest_level(emulated: ctypes.CDLL) -> None:
    """The self-check at load compares sums with plain loops and lets a right level through."""
    emulated.triloop_ternary_level.restype = ctypes.c_char_p
    assert emulated.triloop_ternary_level() == b"amx"


def test_a_level_with_wrong_sums_is_stepped_over(tmp_path: Path) -> None:
    """One bit off in one level: the library takes the next one down."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    source = tmp_path / "csrc"
    shutil.copytree(CSRC, source)
    amx = source / "ternary_amx.inc"
    text = amx.read_text()
    assert "TILE_DOT(3, 5, 7);" in text
    amx.write_text(text.replace("TILE_DOT(3, 5, 7);", ""))
    out = tmp_path / "wrong.so"
    flags = ["-O1", "-std=c++17", "-fPIC", "-shared", "-DTRILOOP_EMULATE"]
    subprocess.run([compiler, *flags, str(source / "ternary.cpp"), "-o", str(out)], check=True)
    library = library_at(out)
    library.triloop_ternary_level.restype = ctypes.c_char_p
    assert library.triloop_ternary_level() == b"vnni"


@compiled
@pytest.mark.parametrize("wish", ["default", "avx2", "avx512", "amx"])
def test_the_environment_lowers_the_level(wish: str) -> None:
    program = "from triloop.kernels import ternary; print(ternary.level())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TRILOOP_CPU": wish},
        capture_output=True,
        text=True,
        check=True,
    )
    allowed = {
        "default": ("portable",),
        "avx2": ("portable", "avx2", "neon"),
        "avx512": REAL[:4] + REAL[5:],
        "amx": REAL,
    }
    assert done.stdout.strip() in allowed[wish]


# ---------------------------------------------------------------------- the product


@compiled
@pytest.mark.parametrize("kind", ["tensor", "row", "64", "96", "256"])
def test_threads_change_nothing(kind: str) -> None:
    rows, columns = 700, 900
    scale, shift, group = scales(rows, columns, kind)
    packed, x = ternary.pack(codes_of(rows, columns), scale, shift, group), activations(130, columns)
    block = partial(ternary.product, block=64 if kind in ("64", "96") else 256)
    calls = [ternary.product, ternary.float_product, *([] if kind == "96" else [block])]
    one = [f(x[:n], packed) for f in calls for n in (1, 3, 130)]
    torch.set_num_threads(2)
    two = [f(x[:n], packed) for f in calls for n in (1, 3, 130)]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_by_hand() -> None:
    """Two rows of three weights; 0.5 and 2.5 steps go to the even neighbour."""
    codes = torch.tensor([[1, -1, 0], [1, 1, 1]], dtype=torch.int8)
    packed = ternary.pack(codes, torch.tensor([0.5, 2.0]), torch.tensor([0.0, 1.0]))
    x = torch.tensor([[127.0, 2.5, -0.5]])
    q, scale = ternary.quantise_rows(x)
    assert q.tolist() == [[127, 2, 0]] and scale.tolist() == [1.0]
    assert ternary.integer_product(q, packed).tolist() == [[125, 129]]
    assert ternary.product(x, packed).tolist() == [[62.5, 129 * 2.0 + 129 * 1.0]]
    assert ternary.float_product(x, packed).tolist() == [[62.25, 258.0 + 129.0]]


def test_rows_do_not_know_of_each_other() -> None:
    packed, x = ternary.pack(codes_of(130, 200), 0.1), activations(40, 200)
    whole, floats = ternary.product(x, packed), ternary.float_product(x, packed)
    for i in (0, 5, 39):
        assert torch.equal(whole[i : i + 1], ternary.product(x[i : i + 1], packed))
        if native.available():
            assert torch.equal(floats[i : i + 1], ternary.float_product(x[i : i + 1], packed))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_in_its_row(value: float) -> None:
    packed, x = ternary.pack(codes_of(70, 90), 0.1), activations(6, 90)
    clean = ternary.product(x, packed)
    x[2, 88] = value
    y = ternary.product(x, packed)
    assert y[2].isnan().all() and ternary.reference(x, packed)[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(y[others], clean[others])
    q, scale = ternary.quantise_rows(x)
    assert scale[2].isnan() and not q[2].any()


@pytest.mark.parametrize("kind", ["tensor", "row", "64", "100"])
@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_float_product(kind: str, n: int) -> None:
    rows, columns = 77, 330
    scale, shift, group = scales(rows, columns, kind)
    codes, x = codes_of(rows, columns), activations(n, columns)
    packed = ternary.pack(codes, scale, shift, group)
    weight = codes.double() * ternary._by_column(packed.scale.double().expand(rows, -1), packed)
    if packed.shift is not None:
        weight = weight + ternary._by_column(packed.shift.double().expand(rows, -1), packed)
    truth = x.double() @ weight.t()
    bound = 1e-5 * (x.double().abs() @ weight.abs().t()) + 1e-30
    assert ((ternary.float_product(x, packed) - truth).abs() <= bound).all()


def test_out_and_prepared() -> None:
    packed, x = ternary.pack(codes_of(70, 90), 0.1), activations(5, 90)
    out = torch.full((5, 70), float("nan"))
    assert ternary.product(x, packed, out) is out
    assert torch.equal(out, ternary.reference(x, packed))
    call = ternary.prepared(x, packed, out)
    x.mul_(3)
    truth = ternary.reference(x, packed)
    del packed, x  # the call keeps what it reads
    call()
    assert torch.equal(out, truth)


def test_half_precision_activations_are_taken_as_they_are() -> None:
    packed, x = ternary.pack(codes_of(70, 90), 0.1), activations(5, 90).bfloat16()
    assert torch.equal(ternary.product(x, packed), ternary.reference(x.float(), packed))


# ---------------------------------------------------------------------- packing


def test_many_matrices_go_there_and_back() -> None:
    """Quick version of proofs/ternary_packing.py."""
    for seed in range(150):
        g = draws(seed)
        rows, columns = (int(v) for v in torch.randint(1, 200, (2,), generator=g))
        kind = seed % 5
        codes = codes_of(rows, columns, seed) if kind < 2 else torch.full((rows, columns), kind - 3, dtype=torch.int8)
        group = None if seed % 2 else int(torch.randint(1, 150, (1,), generator=g))
        groups = 1 if group is None else -(-columns // min(group, columns))
        scale = torch.rand(rows, groups, generator=g)
        packed = ternary.pack(codes, scale, None, group)
        back, same, shift = ternary.unpack(packed)
        assert torch.equal(back, codes) and torch.equal(same, scale) and shift is None


@pytest.mark.parametrize("kind", ["tensor", "row", "64", "100"])
def test_weights_are_rounded_as_torch_rounds(kind: str) -> None:
    rows, columns = 70, 330
    scale, _, group = scales(rows, columns, kind)
    weight = torch.randn(rows, columns, generator=draws(5)) * 0.4
    weight[0, :4] = torch.tensor([0.5, -0.5, 0.50001, 1.5]) * scale.reshape(-1)[0]  # a half rounds to zero
    packed = ternary.pack_weights(weight, scale, group)
    divisor = ternary._by_column(packed.scale.expand(rows, -1), packed)
    codes = torch.round(weight / divisor).clamp(-1, 1).to(torch.int8)
    assert torch.equal(ternary.unpack(packed)[0], codes)
    assert torch.equal(packed.tiles, ternary.pack(codes, scale, None, group).tiles)


def test_size() -> None:
    """Two bits a weight, and what odd shapes are filled up with."""
    packed = ternary.pack(codes_of(6912 // 4, 2560), 0.1)
    assert packed.bytes == 6912 * 2560 // 16 + 4
    assert ternary.pack(codes_of(1, 1), 0.1).bytes == 1024 + 4


@pytest.mark.parametrize("code", [2, -2, 127, -128])
def test_other_codes_are_refused(code: int) -> None:
    for spot in ((0, 0), (64, 69)):
        codes = codes_of(65, 70)
        codes[spot] = code
        with pytest.raises(UsageError, match=f"{code}"):
            ternary.pack(codes, 1.0)


def test_weights_without_a_quotient_are_refused() -> None:
    weight = torch.ones(3, 70)
    weight[1, 69] = float("nan")
    with pytest.raises(UsageError, match="not all numbers"):
        ternary.pack_weights(weight, 0.1)
    with pytest.raises(UsageError, match="not all numbers"):
        ternary.pack_weights(torch.zeros(2, 2), 0.0)


@pytest.mark.parametrize(
    ("scale", "shift", "group", "match"),
    [
        (torch.ones(4), None, None, "scale of shape"),
        (torch.ones(3, 2), None, 8, "scale of shape"),
        (torch.ones(3), torch.ones(3, 3), 64, "shift of shape"),
        (torch.ones(1, 1, 1), None, None, "two dimensions"),
        (torch.ones(3), None, 0, "group 0"),
    ],
)
def test_wrong_scales_are_refused(scale: Tensor, shift: Tensor | None, group: int | None, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        ternary.pack(codes_of(3, 70), scale, shift, group)


def test_wrong_shapes_are_refused() -> None:
    packed = ternary.pack(codes_of(3, 70), 1.0)
    with pytest.raises(UsageError, match="expected \\[n, 70\\]"):
        ternary.product(torch.ones(2, 71), packed)
    with pytest.raises(UsageError, match="98304 columns"):
        ternary.pack(torch.zeros(1, 98_305, dtype=torch.int8), 1.0)
    grouped = ternary.pack(codes_of(3, 400), torch.ones(3, 4), group=128)
    for block in (-64, 100, 256):
        for call in (ternary.product, ternary.reference):
            with pytest.raises(UsageError, match=f"blocks of {block} activations for groups of 128"):
                call(torch.ones(2, 400), grouped, block=block)


def test_without_the_library_everything_is_the_same(tmp_path: Path) -> None:
    """Products, packing and quantisation by torch alone, in a process of its own."""
    program = (
        "import sys, torch; from triloop.kernels import ternary as t; assert t.level() == 'torch'\n"
        "codes, scale, shift, x = torch.load(sys.argv[1])\n"
        "p = t.pack(codes, scale, shift, 100); q, s = t.quantise_rows(x)\n"
        "w = t.pack_weights(x[:, :90] * 0.01, 0.02, None)\n"
        "torch.save((p.tiles, t.unpack(p)[0], t.product(x, p), q, s, t.integer_product(q, p), w.tiles), sys.argv[2])"
    )
    codes, x = codes_of(70, 330), activations(9, 330)
    scale, shift, _ = scales(70, 330, "100")
    torch.save((codes, scale, shift, x), tmp_path / "in")
    env = os.environ | {"TRILOOP_KERNELS": "off"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "in"), str(tmp_path / "out")], env=env, check=True)
    packed, (q, s) = ternary.pack(codes, scale, shift, 100), ternary.quantise_rows(x)
    weights = ternary.pack_weights(x[:, :90] * 0.01, 0.02)
    mine = (packed.tiles, codes, ternary.product(x, packed), q, s, ternary.integer_product(q, packed), weights.tiles)
    assert all(torch.equal(a, b) for a, b in zip(torch.load(tmp_path / "out"), mine, strict=True))
