"""What this machine can do at best, measured beside the work: matrix products at the model's shapes, and reading memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from triloop.bench.work import Work
from triloop.kernels import panels, ternary
from triloop.nn.decoder import DecoderConfig

__all__ = ["Floor", "Limits", "faster_threads", "floor", "measure_limits"]

_SECONDS = 0.15
"""Spent on each product."""
MOST_ROWS = 2048
MOST_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The highest rates seen."""

    decode: float
    """FLOP/s of products with as many rows as a decode step has."""
    learn: float
    """The same with as many rows as a training pass has."""
    bandwidth: float
    """Bytes read a second."""

    def best(self, other: Limits) -> Limits:
        """The higher of each: what can be done was done at least once."""
        return Limits(
            decode=max(self.decode, other.decode),
            learn=max(self.learn, other.learn),
            bandwidth=max(self.bandwidth, other.bandwidth),
        )


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Seconds that the work takes at the limits."""

    products: float
    memory: float

    @property
    def seconds(self) -> float:
        """The larger one: arithmetic and traffic may overlap."""
        return max(self.products, self.memory)

    def __add__(self, other: Floor) -> Floor:
        return Floor(products=self.products + other.products, memory=self.memory + other.memory)


def floor(work: Work, rate: float, bandwidth: float) -> Floor:
    """At ``rate`` FLOP/s and ``bandwidth`` bytes a second."""
    return Floor(products=work.flops / rate, memory=work.bytes / bandwidth)


def measure_limits(
    c: DecoderConfig,
    dtype: torch.dtype,
    device: str,
    *,
    rows: int,
    tokens: int,
    traffic: float,
    packed: bool = False,
) -> Limits:
    """Limits for decode steps of ``rows`` rows and passes of ``tokens`` tokens (0: there are none, the rate is that of
    decoding, and the other way round), and for going through ``traffic`` bytes. ``packed``: decoding is by the kernels for
    ternary weights."""
    rates = {n: _products(c, min(n, MOST_ROWS), dtype, device) for n in {rows, tokens} - {0}}
    decode, learn = rates.get(rows or tokens, 0.0), rates.get(tokens or rows, 0.0)
    if packed and rows:
        decode = _products(c, min(rows, MOST_ROWS), dtype, device, packed=True)
    return Limits(decode=decode, learn=learn, bandwidth=_bandwidth(traffic, device))


def faster_threads(c: DecoderConfig, dtype: torch.dtype, *, rows: int, all_cores: int) -> int:
    """One thread or all cores, whichever multiplies faster just now; left set. While another process holds a core, all
    threads wait for the one that runs there at the end of every product."""
    seconds = {}
    x = torch.randn(min(rows, MOST_ROWS), c.hidden_size).to(dtype)
    weight = torch.randn(2 * c.intermediate_size, c.hidden_size).to(dtype)
    for threads in {1, all_cores}:
        torch.set_num_threads(threads)
        _least_seconds(lambda: F.linear(x, weight), "cpu")
        calls, t0 = 0, perf_counter()
        while perf_counter() - t0 < _SECONDS:
            F.linear(x, weight)
            calls += 1
        seconds[threads] = (perf_counter() - t0) / calls  # the mean: here the bad moments count
    found = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(found)
    return found


def _products(c: DecoderConfig, rows: int, dtype: torch.dtype, device: str, packed: bool = False) -> float:
    """FLOP/s of the qkv and the gate-and-up projection together: each as often as it occurs, so weighted by FLOPs."""
    flops = seconds = 0.0
    x = torch.randn(rows, c.hidden_size, device=device).to(dtype)
    for width in (c.qkv_size, 2 * c.intermediate_size):
        flops += 2 * rows * c.hidden_size * width
        ways = [_packed_product(x, width)] if packed else _plain_products(x, width)
        seconds += min(_least_seconds(way, device) for way in ways)
    return flops / seconds


def _plain_products(x: Tensor, width: int) -> list[Callable[[], object]]:
    """torch's, and in fp32 on the processor also ours."""
    weight = torch.randn(width, x.shape[1], device=x.device).to(x.dtype)
    out = torch.empty(len(x), width, device=x.device, dtype=x.dtype)
    ways: list[Callable[[], object]] = [lambda: torch.mm(x, weight.t(), out=out)]
    if panels.usable(x, weight):
        laid_out = panels.lay_out(weight, panels.room(*weight.shape))
        ways += [panels.prepared(x, laid_out, None, out), lambda: panels.multiply(x, weight, right_across=True)]
    return ways


def _packed_product(x: Tensor, width: int) -> Callable[[], object]:
    """Quantising the rows included."""
    codes = torch.randint(-1, 2, (width, x.shape[1]), dtype=torch.int8)
    return ternary.prepared(x.float().cpu(), ternary.pack(codes, 1.0), torch.empty(len(x), width))


def _bandwidth(traffic: float, device: str) -> float:
    """Bytes a second of the faster of two ways to read a matrix once: its sum, and a product with a vector."""
    width = 1024
    height = max(64, int(min(traffic, MOST_BYTES)) // (4 * width))
    matrix = torch.ones(height, width, device=device)
    vector, out = torch.ones(width, device=device), torch.empty(height, device=device)
    ways: tuple[Callable[[], object], ...] = (matrix.sum, lambda: torch.mv(matrix, vector, out=out))
    return 4 * height * width / min(_least_seconds(way, device) for way in ways)


def _least_seconds(call: Callable[[], object], device: str) -> float:
    """Of one call: the fastest of those that fit into ``_SECONDS``, at least three. On a GPU several are timed at once."""
    cuda = device == "cuda"
    at_once = 20 if cuda else 1
    least, end = float("inf"), perf_counter() + _SECONDS
    done = -1  # the first is not counted
    while done < 3 or perf_counter() < end:
        t0 = perf_counter()
        for _ in range(at_once):
            call()
        if cuda:
            torch.cuda.synchronize()
        if done >= 0:
            least = min(least, (perf_counter() - t0) / at_once)
        done += 1
    return least
