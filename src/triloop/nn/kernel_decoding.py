"""A decoder with a cache, on the processor: compiled kernels multiply in fp32, torch in bf16, and compiled kernels do the
rest of a step without allocating anything; all steps share one set of buffers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from triloop.kernels import native, panels
from triloop.kernels.calls import Call, Count, Place, Program
from triloop.kernels.products import OwnProduct
from triloop.nn.answers import NONE, Answers
from triloop.nn.decoder import Decoder, Layer, Projection, RMSNorm, multiplied
from triloop.nn.packing import packing
from triloop.nn.pages import Pages

__all__ = ["KernelDecoding", "projections"]

DEPTH = 16
"""What lengths and the depth of values are rounded up to (csrc/decode.inc)."""

PLAIN_HEAD = 4096
"""Up to this vocabulary the output head multiplies in fp32, as the learner's does: it is a small part of a step."""

HEAD_BLOCK = 1024
"""Tokens of a larger vocabulary multiplied at once: 1.1 to 1.7 times as fast as all of 32,000, at 4 to 256 rows."""

LAID_OUT = 1 << 29
"""Most bytes of weights that are laid out a second time for fast products (``kernels.panels``)."""

HEAD = 0
"""Which of them is the output head's; the others go by the ids of their modules."""

APART = 1 << 23
"""Up to so many bytes of weights each thread makes a whole step for rows of its own, and reads all weights for it; above,
threads share out every product."""

FEW = 16
"""Rows below which they do so in any case."""

KEPT = 1 << 25
"""Most bytes of these, and of the cache, that stay between rollouts, when the learner needs memory."""


def projections(decoder: Decoder) -> list[nn.Module]:
    """The matrices of all layers, as modules."""
    return [m for layer in decoder.blocks for m in (layer.qkv, layer.out, layer.gate_up, layer.down)]


class KernelDecoding:
    """On the processor, by compiled kernels; products in bf16, and with weights that are too large to lay out, are torch's.

    The residual stream is fp32, everything else has the decoder's dtype. A step is a list of calls with fixed addresses:
    one program where all of them are the kernels', else a list for each number of rows. Rows are rounded up to a multiple
    of 4 where there are as many.
    """

    paged = True

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.rows, self.length, self.kept = decoder, 0, 0, torch.empty(0, dtype=torch.long)
        self._room = 0
        self._made_for: tuple[int, ...] = ()
        self._steps: dict[tuple[int, bool], list[Callable[[], object]]] = {}
        self._programs: dict[bool, Program | None] = {}
        self._count = ctypes.c_long()  # rows of the step at hand, which calls look up
        self._answers: Answers | None = None
        self._kept_in: Answers | None = None  # whose memory the calls of steps that keep answers write
        self._pages = Pages(0, 0, 1)
        self._cache: list[tuple[Tensor, ...]] = []  # keys, and values, of each layer [pages, numbers of a page]
        self._cache_lies = torch.empty(0)  # [2, layers] the addresses that steps are made for
        self._panels: dict[int, Tensor] = {}
        self._small = False  # whether each thread makes a whole step for rows of its own
        self._own = any(isinstance(m, OwnProduct) for m in decoder.modules())
        self._t = native.suffix(decoder.dtype)
        self._write = native.function("cache_write" + self._t, "pppppppfppiiiiii")
        self._copy = native.function("cache_copy" + self._t, "pppiiii")

    # ------------------------------------------------------------------ memory

    def bytes_per_row(self, length: int) -> int:
        c = self.decoder.config
        return (
            c.num_layers * c.num_kv_heads * (c.head_dim + _up(c.head_dim)) * _up(length) * self.decoder.dtype.itemsize
        )

    def reset(self, rows: int, length: int) -> None:
        length = _up(length)
        stamp = (torch.get_num_threads(), length, *(p.data_ptr() for p in self.decoder.parameters()))
        if stamp != self._made_for or rows > self._room:
            self._allocate(rows, length)
            self._made_for = stamp
            self._forget_steps()
        if self._own:
            self._forget_steps()  # their calls hold weights as they stood when the calls were made
        if not self._cache:
            self._allocate_cache()
        self._pages.clear()
        if self.decoder.dtype != torch.float32:
            self._copy_small()
        self._lay_out()
        self.rows, self._small = rows, self._weight_bytes <= APART

    def keep(self, answers: Answers | None) -> bool:
        self._answers = answers if self._laid_out else None
        if self._answers not in (None, self._kept_in):
            self._kept_in = self._answers
            self._forget_steps()
        return self._answers is not None

    def rest(self) -> None:
        if sum(p.nbytes for p in self._panels.values()) > KEPT:
            for p in self._panels.values():
                native.let_go(p)
        if sum(c.nbytes for kind in self._cache for c in kind) > KEPT:
            self._cache = []  # a learner's tensors take their place, and they the place of those

    def _forget_steps(self) -> None:
        self._steps, self._programs = {}, {}

    @property
    def _laid_out(self) -> bool:
        """Whether all projections are the kernels'."""
        return all(id(m) in self._panels for m in projections(self.decoder))

    def _lay_out(self) -> None:
        """The weights as they stand now, for products in fp32; none when they are too large to be held twice."""
        plain = {id(m): m.weight.detach() for m in projections(self.decoder) if isinstance(m, nn.Linear)}
        head = {} if self._own_head is not None else {HEAD: self._head}
        weights = {k: w for k, w in (head | plain).items() if w.dtype == torch.float32}
        if sum(w.nbytes for w in weights.values()) > LAID_OUT:
            weights = {}
        if self._panels.keys() != weights.keys():
            self._panels = {k: panels.room(*w.shape) for k, w in weights.items()}
            self._forget_steps()
        for key, weight in weights.items():
            panels.lay_out(weight, self._panels[key])

    @property
    def _weight_bytes(self) -> int:
        """What a step reads of them."""
        return self.decoder.config.parameters // 4 if self._own else sum(p.nbytes for p in self._panels.values())

    def _copy_small(self) -> None:
        """Bring the fp32 copies of small tensors up to date."""
        for norm, copy in self._norms.values():
            copy.copy_(norm.weight)
        if self._own_head is None:
            self._head.copy_(self.decoder.output_weight)

    def _allocate(self, rows: int, length: int) -> None:
        d, c = self.decoder, self.decoder.config
        kind = d.dtype
        self._room, self.length, self._threads = rows, length, torch.get_num_threads()
        self._cache, self._pages = [], Pages(rows, length, _page_size())
        self._cos, self._sin = d.turns(length)
        wide = _up(rows, 4)
        self._token, self._position = torch.zeros(wide, dtype=torch.long), torch.zeros(wide, dtype=torch.long)
        self._x, self._normed = torch.zeros(wide, c.hidden_size), torch.zeros(wide, c.hidden_size, dtype=kind)
        self._slots = torch.full((wide,), NONE)
        self._delta, self._last = torch.zeros_like(self._normed), torch.zeros_like(self._x)
        self._qkv = torch.zeros(wide, c.qkv_size, dtype=kind)
        self._mixed = torch.zeros(wide, c.num_heads * c.head_dim, dtype=kind)
        self._gate_up = torch.zeros(wide, 2 * c.intermediate_size, dtype=kind)
        self._inner = torch.zeros(wide, c.intermediate_size, dtype=kind)
        # Of fp32 weights these are the weights themselves.
        self._own_head, kind = _own_product(d.head), torch.float32
        if self._own_head is None:
            small = c.vocab_size <= PLAIN_HEAD
            self._head = d.output_weight.detach().float() if small else d.output_weight.detach()
            kind = self._head.dtype
        self._logits = torch.zeros(wide, c.vocab_size, dtype=kind)
        self._norms = {id(m): (m, m.weight.detach().float()) for m in d.modules() if isinstance(m, RMSNorm)}

    def _allocate_cache(self) -> None:
        c, kind = self.decoder.config, self.decoder.dtype
        numbers = [c.num_kv_heads * self._pages.size * depth for depth in (c.head_dim, _up(c.head_dim))]
        self._cache = [
            tuple(torch.empty(self._pages.total, n, dtype=kind) for _ in range(c.num_layers)) for n in numbers
        ]
        lies = torch.tensor([[x.data_ptr() for x in k] for k in self._cache])
        if not torch.equal(lies, self._cache_lies):  # often it lies where it was, and the calls are still right
            self._cache_lies = lies
            self._forget_steps()

    # ------------------------------------------------------------------ rows

    @torch.no_grad()
    def prefill(self, ids: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
        """As the learner reads sequences, to the last bit where it runs on the same kernels."""
        d, c = self.decoder, self.decoder.config
        where = packing(lengths.tolist())
        row = rows.repeat_interleave(lengths)
        self._pages.start(rows.numpy(), lengths.numpy())

        if self._answers is not None:
            self.kept = self._answers.take(torch.ones_like(row, dtype=torch.bool))

        def answer(index: int, name: Projection, module: nn.Module, x: Tensor) -> Tensor:
            kept = None if self._answers is None else self._answers.lines(index, name, self.kept)
            y = self._answer(index, name, module, x, kept)
            if self._answers is not None and kept is None:
                self._answers.keeper(index, name, y, self.kept)()
            if name == "qkv":
                cos, sin, _, key_norm = self._turned(d.blocks[index])
                given = (y, row, where.positions, self._pages.table, cos, sin, key_norm)
                into = [x[index] for x in self._cache]
                sizes = (len(row), c.num_heads, c.num_kv_heads, c.head_dim, self._pages.width, self._threads)
                self._write(*map(native.pointer, given), c.norm_eps, *map(native.pointer, into), *sizes)
            return y

        seen = torch.arange(ids.shape[1])[None, :] < lengths[:, None]
        hidden = d.packed(ids[seen], where, answer)
        last = hidden[lengths.cumsum(0) - 1]
        if self._own_head is not None:
            return d.logits(last)
        if HEAD not in self._panels:
            return last.to(self._head.dtype) @ self._head.t()
        logits = torch.empty(len(last), len(self._head))
        panels.prepared(last.float(), self._panels[HEAD], None, logits)()
        return logits

    def _answer(self, index: int, name: Projection, module: nn.Module, x: Tensor, into: Tensor | None) -> Tensor:
        if id(module) not in self._panels:
            return multiplied(index, name, module, x).contiguous()
        assert isinstance(module, nn.Linear)
        y = x.new_empty(len(x), module.out_features) if into is None else into
        self._product(x.contiguous(), module, y)()
        return y

    def _turned(self, layer: Layer) -> tuple[Tensor | None, ...]:
        """What turns and norms the layer's heads: cos, sin, norm of queries, norm of keys."""
        norms = [None if m is None else self._norms[id(m)][1] for m in (layer.q_norm, layer.k_norm)]
        return *((self._cos, self._sin) if layer.rotary else (None, None)), *norms

    def arrange(self, sources: Tensor, lengths: Tensor) -> None:
        into, old = map(torch.from_numpy, self._pages.arrange(sources.numpy(), lengths.numpy()))
        for memory, lies in zip(self._cache if len(into) else (), self._cache_lies, strict=False):
            sizes = (len(into), len(memory), memory[0].shape[1], self._threads)
            self._copy(*map(native.pointer, (into, old, lies)), *sizes)

    # ------------------------------------------------------------------ a step

    @torch.no_grad()
    def decode(self, tokens: Tensor, positions: Tensor, span: int) -> Tensor:
        assert self._cache, "reset comes first"
        n = len(tokens)
        self._pages.reach(positions.numpy())
        wide = n if self.rows < 4 else _up(n, 4)  # one row alone is a product with a vector, several times as fast
        self._token[:n], self._position[:n] = tokens, positions
        self._token[n:wide], self._position[n:wide] = 0, 0
        if self._answers is not None:
            self.kept = self._slots[:n] = self._answers.take(positions > 0)
            self._slots[n:wide] = NONE
        self._count.value = wide
        self._run(wide, self._answers is not None)
        return self._logits[:n]

    def _run(self, wide: int, keeps: bool) -> None:
        if keeps not in self._programs:
            calls = self._step(len(self._x))
            own = [c for c in calls if isinstance(c, Call)]
            self._programs[keeps] = Program(own) if len(own) == len(calls) else None
        program = self._programs[keeps]
        if program is not None:
            program(wide, apart=wide >= FEW and self._small)
            return
        if (wide, keeps) not in self._steps:
            self._steps[wide, keeps] = self._step(wide)
        for call in self._steps[wide, keeps]:
            call()

    def _step(self, n: int) -> list[Callable[[], object]]:
        """The calls of a step for the first n rows, or for as many as ``_count`` then says, which are at most n."""
        d = self.decoder
        x, normed, last = self._x[:n], self._normed[:n], self._last[:n]
        blocks = d.blocks
        calls = [self._look_up(n), self._norm(x, None, blocks[0].norm1, normed)]
        for i, layer in enumerate(blocks):
            following = blocks[i + 1].norm1 if i + 1 < len(blocks) else d.norm
            calls += self._layer(i, layer, n, following, normed if i + 1 < len(blocks) else last)
        if self._logits.dtype == last.dtype:
            calls += self._read_out(last, n)
        else:
            calls.append(partial(normed.copy_, last))
            calls += self._read_out(normed, n)
        return calls

    def _look_up(self, n: int) -> Callable[[], object]:
        embed, token, x = self.decoder.embed.weight.detach(), self._token[:n], self._x[:n]
        if embed.dtype == torch.float32:
            return Call("look_up", "prrnit", (embed, token, x, self._count, x.shape[1]))
        return lambda: x.copy_(embed.index_select(0, token))

    def _read_out(self, x: Tensor, n: int) -> list[Callable[[], object]]:
        """The logits. A large head goes block by block: products of few rows first copy the matrix, best within a cache."""
        if self._own_head is not None:
            return [self._own_head.into(x, self._logits[:n])]
        if HEAD in self._panels:
            return [panels.prepared(x, self._panels[HEAD], None, self._logits[:n], self._count)]
        vocab = len(self._head)
        block = vocab if vocab <= PLAIN_HEAD else HEAD_BLOCK
        parts = [slice(i, min(i + block, vocab)) for i in range(0, vocab, block)]
        return [partial(torch.mm, x, self._head[part].t(), out=self._logits[:n, part]) for part in parts]

    def _layer(self, i: int, layer: Layer, n: int, following: RMSNorm, into: Tensor) -> list[Callable[[], object]]:
        normed, x, delta = self._normed[:n], self._x[:n], self._delta[:n]
        qkv, gate_up, rows = self._qkv[:n], self._gate_up[:n], self._count
        return [
            self._product(normed, layer.qkv, qkv, rows),
            *self._keeper(i, "qkv", qkv),
            self._attend(i, layer),
            self._product(self._mixed[:n], layer.out, delta, rows),
            *self._keeper(i, "out", delta),
            self._norm(x, delta, layer.norm2, normed),
            self._product(normed, layer.gate_up, gate_up, rows),
            *self._keeper(i, "gate_up", gate_up),
            self._swiglu(),
            self._product(self._inner[:n], layer.down, delta, rows),
            *self._keeper(i, "down", delta),
            self._norm(x, delta, following, into),
        ]

    def _keeper(self, i: int, name: Projection, rows: Tensor) -> list[Callable[[], object]]:
        return [] if self._answers is None else [self._answers.keeper(i, name, rows, self._slots, self._count)]

    def _product(self, x: Tensor, layer: nn.Module, out: Tensor, count: Count | None = None) -> Callable[[], object]:
        if isinstance(layer, OwnProduct):
            return layer.into(x, out)
        assert isinstance(layer, nn.Linear)
        own = {name: p.detach() for name, p in layer.named_parameters()}
        weight, bias = own["weight"], own.get("bias")
        if id(layer) in self._panels:
            return panels.prepared(x, self._panels[id(layer)], bias, out, count)
        if bias is None:
            return partial(torch.mm, x, weight.t(), out=out)
        return partial(torch.addmm, bias, x, weight.t(), out=out)

    def _norm(self, x: Tensor, delta: Tensor | None, norm: RMSNorm, out: Tensor) -> Callable[[], object]:
        kind = self._t + (".float" if out.dtype != self.decoder.dtype else "")
        given = (x, delta, self._norms[id(norm)][1], self.decoder.config.norm_eps, out)
        return Call("norm" + kind, "rrpfrnit", (*given, self._count, x.shape[1]))

    def _swiglu(self) -> Callable[[], object]:
        given = (self._gate_up, self._inner, self._count, self._inner.shape[1])
        return Call("swiglu" + self._t, "rrnit", given)

    def _attend(self, i: int, layer: Layer) -> Callable[[], object]:
        before = (self._qkv, self._position, self._pages.table, *self._turned(layer), self.decoder.config.norm_eps)
        keys, values = (Place.of(x[i]) for x in self._cache)  # the cache may go while steps stay
        sizes = (self._count, layer.heads, layer.kv_heads, layer.dim, self._pages.width, layer.window or 0)
        return Call(
            "attend_step" + self._t,
            "rrrppppfpprniiiiift",
            (*before, keys, values, self._mixed, *sizes, layer.dim**-0.5),
        )


def _own_product(module: object) -> OwnProduct | None:
    return module if isinstance(module, OwnProduct) else None


def _page_size() -> int:
    size = torch.empty(1, dtype=torch.long)
    native.function("page_size", "p")(native.pointer(size))
    return int(size)


def _up(number: int, to: int = DEPTH) -> int:
    return -(-number // to) * to
