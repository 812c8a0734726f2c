"""Who multiplies beside Triloop in ``ternary.py``: torch's own products, and low-bit kernels of others where installed.

A contender is made from codes [rows, columns] in {-1, 0, 1} and activations [m, columns], and gives a function that runs
one product for each copy of the weights, and the last product's answer. One that is not installed raises ImportError.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triloop.kernels import ternary

__all__ = ["CONTENDERS", "Contender"]

BLOCK = 128
"""Weights that share a scale where a format asks for one."""


@dataclass
class Contender:
    """Products over several copies of one matrix, by turns: run() does ``copies`` of them."""

    run: Callable[[], object]
    answer: Callable[[], Any]
    copies: int
    reads: float
    """Bytes of weights that one product reads."""
    whole_numbers: bool = False
    """Multiplies int8 activations that it is given, instead of the numbers themselves."""


def _in_turn(calls: list[Callable[[], object]]) -> Callable[[], object]:
    def run() -> None:
        for call in calls:
            call()

    return run


def triloop(codes: Tensor, x: Tensor, copies: int, threads: int) -> Contender:
    packed = [ternary.pack(codes, 1.0) for _ in range(copies)]
    out = torch.full((len(x), len(codes)), float("nan"))
    calls = [ternary.prepared(x, p, out) for p in packed]
    return Contender(lambda: _in_turn(calls)(), lambda: out, copies, packed[0].tiles.numel())


def triloop_floats(codes: Tensor, x: Tensor, copies: int, threads: int) -> Contender:
    packed, last = [ternary.pack(codes, 1.0) for _ in range(copies)], [torch.empty(0)]

    def run() -> None:
        for p in packed:
            last[0] = ternary.float_product(x, p)

    return Contender(run, lambda: last[0], copies, packed[0].tiles.numel())


def _torch(weights: list[Tensor], multiply: Callable[[Tensor], Tensor], whole: bool = False) -> Contender:
    last = [torch.empty(0)]

    def run() -> None:
        for w in weights:
            last[0] = multiply(w)

    reads = weights[0].numel() * weights[0].element_size()
    return Contender(run, lambda: last[0], len(weights), reads, whole)


def torch_fp32(codes: Tensor, x: Tensor, copies: int, threads: int) -> Contender:
    return _torch([codes.float() for _ in range(copies)], lambda w: torch.nn.functional.linear(x, w))


def torch_bf16(codes: Tensor, x: Tensor, copies: int, threads: int) -> Contender:
    half = x.bfloat16()
    return _torch([codes.bfloat16() for _ in range(copies)], lambda w: torch.nn.functional.linear(half, w))


def torch_int8(codes: Tensor, x: Tensor, copies: int, threads: int) -> Contender:
    """Quantised activations are given to it: it has less to do than the others."""
    q = ternary.quantise_rows(x)[0]
    return _torch([codes.clone().t() for _ in range(copies)], lambda w: torch._int_mm(q, w), whole=True)


def onnxruntime(codes: Tensor, x: Tensor, copies: int, threads: int) -> Contender:
    """MatMulNBits of two bits, with activations quantised inside (accuracy level 4)."""
    import onnx
    import onnxruntime as ort

    rows, columns = codes.shape
    blocks = columns // BLOCK
    digits = (codes.numpy() + 2).astype(np.uint8).reshape(rows, blocks, BLOCK // 4, 4)  # zero point 2
    packed = digits[..., 0] | digits[..., 1] << 2 | digits[..., 2] << 4 | digits[..., 3] << 6
    made, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    node = onnx.helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=2,
        block_size=BLOCK,
        accuracy_level=4,
    )
    weights = {"w": packed, "s": np.ones(rows * blocks, np.float32)}
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [made("x", kinds.FLOAT, [None, columns])],
        [made("y", kinds.FLOAT, [None, rows])],
        [onnx.numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    versions = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=8).SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if copies > 1:  # every session has threads of its own: those of the others must not spin meanwhile
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = [ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for _ in range(copies)]
    given, last = {"x": x.numpy()}, [np.empty(0)]

    def run() -> None:
        for session in sessions:
            last[0] = session.run(None, given)[0]

    return Contender(run, lambda: last[0], copies, packed.nbytes)


def auto_round(codes: Tensor, x: Tensor, copies: int, threads: int) -> Contender:
    """Weights of two bits with scales for 128 columns and int8 products, of auto-round-lib."""
    import auto_round_kernel as ark

    os.environ["BTLA_NUM_THREADS"] = str(threads)
    rows, columns = codes.shape
    scales, zeros = torch.ones(columns // BLOCK, rows), torch.zeros(columns // BLOCK, rows, dtype=torch.int8)
    kind = (BLOCK, "int8", "int2", "fp32", False)
    blobs = [ark.repack_quantized_weight(codes.t().contiguous(), scales, zeros, *kind) for _ in range(copies)]
    bias, last = torch.zeros(rows), [torch.empty(0)]

    def run() -> None:
        for blob in blobs:
            last[0] = ark.woqgemm(x, blob, bias, rows, columns, *kind)

    return Contender(run, lambda: last[0], copies, rows * columns / 4)


class _Init(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("bare", ctypes.c_bool)]


class _Ggml:
    """The functions of llama.cpp's tensor library that a list of products needs, by their C names without ``ggml_``."""

    def __init__(self, folder: Path) -> None:
        names = ("libggml-base.so", "libggml-cpu.so", "libggml.so")
        paths = [next(iter(sorted(folder.rglob(name))), None) for name in names]
        if None in paths:
            raise ImportError(f"no shared libraries of ggml under the folder {folder.name}")
        self._libraries = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in paths]

    def call(self, name: str, answer: Any, *arguments: Any) -> Any:
        """Integers go as 64 bits unless they come wrapped; addresses come back whole."""
        function = next(f for lib in self._libraries if (f := getattr(lib, f"ggml_{name}", None)) is not None)
        function.restype = answer
        return function(*[ctypes.c_int64(a) if isinstance(a, int) else a for a in arguments])


def _ggml(kind: int, codes: Tensor, x: Tensor, copies: int, threads: int) -> Contender:
    folder = os.environ.get("LLAMA_CPP_BUILD")
    if not folder:
        raise ImportError("LLAMA_CPP_BUILD names no folder with a build of llama.cpp (shared libraries)")
    g, address, size = _Ggml(Path(folder)), ctypes.c_void_p, ctypes.c_size_t
    rows, columns = codes.shape
    weights = codes.float().numpy()

    def pointer(value: Any) -> ctypes.c_void_p:
        return ctypes.c_void_p(value)

    row = g.call("row_size", size, ctypes.c_int(kind), columns)
    data = np.empty(row * rows, np.uint8)
    source, sink = pointer(weights.ctypes.data), pointer(data.ctypes.data)
    g.call("quantize_chunk", size, ctypes.c_int(kind), source, sink, 0, rows, columns, pointer(None))
    overhead = g.call("tensor_overhead", size)
    graph_size = g.call("graph_overhead_custom", size, copies + 8, ctypes.c_bool(False))
    room = overhead * (2 * copies + 8) + graph_size
    context = pointer(g.call("init", address, _Init(room, None, True)))
    new = [pointer(g.call("new_tensor_2d", address, context, ctypes.c_int(kind), columns, rows)) for _ in range(copies)]
    into = pointer(g.call("new_tensor_2d", address, context, ctypes.c_int(0), columns, len(x)))
    products = [pointer(g.call("mul_mat", address, context, w, into)) for w in new]
    graph = pointer(g.call("new_graph_custom", address, context, copies + 8, ctypes.c_bool(False)))
    for y in products:
        g.call("build_forward_expand", None, graph, y)
    kept = pointer(g.call("backend_cpu_buffer_type", address))
    g.call("backend_alloc_ctx_tensors_from_buft", address, context, kept)
    for w in new:
        g.call("backend_tensor_set", None, w, sink, 0, data.nbytes)
    g.call("backend_tensor_set", None, into, pointer(x.data_ptr()), 0, x.numel() * 4)
    backend = pointer(g.call("backend_cpu_init", address))
    g.call("backend_cpu_set_n_threads", None, backend, ctypes.c_int(threads))

    def answer() -> Tensor:
        out = torch.full((len(x), rows), float("nan"))
        g.call("backend_tensor_get", None, products[-1], pointer(out.data_ptr()), 0, out.numel() * 4)
        return out

    return Contender(
        lambda: g.call("backend_graph_compute", ctypes.c_int, backend, graph), answer, copies, float(data.nbytes)
    )


def llama_tq2(codes: Tensor, x: Tensor, copies: int, threads: int) -> Contender:
    """llama.cpp's TQ2_0, 2.06 bits a weight; LLAMA_CPP_BUILD names the folder of a build."""
    return _ggml(35, codes, x, copies, threads)


def llama_tq1(codes: Tensor, x: Tensor, copies: int, threads: int) -> Contender:
    """llama.cpp's TQ1_0, 1.69 bits a weight."""
    return _ggml(34, codes, x, copies, threads)


CONTENDERS: dict[str, Callable[[Tensor, Tensor, int, int], Contender]] = {
    "triloop": triloop,
    "triloop, fp32 activations": triloop_floats,
    "torch fp32": torch_fp32,
    "torch bf16": torch_bf16,
    "torch int8": torch_int8,
    "onnxruntime 2 bit": onnxruntime,
    "auto-round int2": auto_round,
    "llama.cpp TQ2_0": llama_tq2,
    "llama.cpp TQ1_0": llama_tq1,
}
