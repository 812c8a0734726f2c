"""How fast a whole ternary model generates and reads prompts, beside llama.cpp's TQ2_0 and full precision.

    python benchmarks/ternary_generate.py [--models 30m:64 700m:32000] [--batches 1 32 128] [--prompt 512] [--threads 1]
                                          [--only triloop triloop-int8 llama.cpp ...] [--out docs/proof]

Models with random weights, as size:vocabulary. Each has Llama's shape, linears by absmean, embedding tied to the output
head; triloop-int8 is the same model with an int8 output head. llama.cpp reads a model from the GGUF file that ``triloop
export`` writes, through the package llama-cpp-python where that is installed: its output head is the embedding in half
precision, llama.cpp-q8_0 has that of triloop-int8, code by code, in Q8_0, and llama.cpp-q6_k the same rounded to Q6_K by
llama.cpp's own quantiser. fp32 and bf16 are the same latent weights unquantised, multiplied by torch in this package's own
decoder. Contenders take turns, repeat after repeat, in one process. A generation step gives every row of the batch one
token and all its logits; sampling is not timed. After every measurement the logits of llama.cpp are compared with ours:
correlated below 0.99 they are refused. llama.cpp reads no widths as TQ2_0 that are no multiple of 256: at such sizes it is
left out. Writes ternary_generate.md and ternary_generate.json into --out.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from triloop.bench.case import SIZES
from triloop.bench.measuring import Others, machine, table
from triloop.bench.model import config_of, tokenizer_of
from triloop.errors import ModelError
from triloop.kernels.native import describe
from triloop.loops.build import set_threads
from triloop.nn.decoder import Decoder
from triloop.nn.decoding import decoding_of
from triloop.policies.formats.gguf_file import write_gguf
from triloop.policies.ternary import int8_headed, ternarised
from triloop.ternary.config import TernaryConfig

CONTENDERS = ("triloop", "triloop-int8", "llama.cpp", "llama.cpp-q8_0", "llama.cpp-q6_k", "fp32", "bf16")
SHORT = 8
"""Tokens of the prompts before generation."""
ALIKE = 0.99


class Contender(Protocol):
    """One model that was read by one program."""

    def start(self, prompts: Tensor, room: int) -> Tensor:
        """Read ``prompts`` [rows, time]; logits after the last token [rows, vocab]. ``room``: tokens to come."""
        ...

    def step(self, tokens: Tensor, position: int) -> Tensor:
        """One token for every row; the next logits."""
        ...


class Ours:
    """A decoder of this package, quantised or not."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoding = decoding_of(decoder.requires_grad_(False))

    def start(self, prompts: Tensor, room: int) -> Tensor:
        rows, time_ = prompts.shape
        self.decoding.reset(rows, time_ + room)
        return self.decoding.prefill(prompts, torch.full((rows,), time_), torch.arange(rows))

    def step(self, tokens: Tensor, position: int) -> Tensor:
        return self.decoding.decode(tokens, torch.full((len(tokens),), position), position + 1)


class LlamaCpp:
    """llama.cpp by its C interface."""

    def __init__(self, path: Path, threads: int, rows: int, length: int) -> None:
        import llama_cpp as c

        self.c = c
        c.llama_log_set(_QUIET, ctypes.c_void_p(0))
        settings = c.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = rows * length, rows
        settings.n_batch = settings.n_ubatch = max(512, rows)
        settings.n_threads = settings.n_threads_batch = threads
        self.model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
        self.context = c.llama_init_from_model(self.model, settings)
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self.batch = c.llama_batch_init(settings.n_batch, 0, 1)

    def start(self, prompts: Tensor, room: int) -> Tensor:
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        rows, time_ = prompts.shape
        found = []
        for row in range(rows):
            self._fill([(int(t), p, row, p == time_ - 1) for p, t in enumerate(prompts[row])])
            found.append(self._logits(time_ - 1))
        return torch.stack(found)

    def step(self, tokens: Tensor, position: int) -> Tensor:
        self._fill([(int(t), position, row, True) for row, t in enumerate(tokens)])
        return torch.stack([self._logits(row) for row in (0, len(tokens) - 1)])

    def _fill(self, entries: list[tuple[int, int, int, bool]]) -> None:
        b = self.batch
        b.n_tokens = len(entries)
        for i, (token, position, row, logits) in enumerate(entries):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position, 1, logits
            b.seq_id[i][0] = row
        code = self.c.llama_decode(self.context, b)
        if code != 0:
            sys.exit(f"llama.cpp: llama_decode answered {code}")

    def _logits(self, index: int) -> Tensor:
        at = self.c.llama_get_logits_ith(self.context, index)
        return torch.from_numpy(np.ctypeslib.as_array(at, shape=(self.vocab,)).copy())


def _silent(level: int, text: bytes, data: Any) -> None:
    """Its words about every tensor are not wanted."""


_QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_silent)


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", type=model, nargs="+", default=[("30m", 64), ("700m", 32_000)], metavar="SIZE:VOCAB")
    p.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128])
    p.add_argument("--steps", type=int, default=8, help="tokens of every row in one measurement")
    p.add_argument("--prompt", type=int, default=512, help="tokens of the prompt whose reading is timed")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument(
        "--limit", type=float, default=30.0, help="seconds of a first measurement above which one is left out"
    )
    p.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    p.add_argument("--out", type=Path)
    return p.parse_args()


def model(text: str) -> tuple[str, int]:
    """A size and a vocabulary."""
    size, _, vocab = text.partition(":")
    if size not in SIZES or not vocab.isdecimal() or int(vocab) < 64:
        raise argparse.ArgumentTypeError(f"{text!r}: expected SIZE:VOCAB with one of {', '.join(SIZES)}, 64 or more")
    return size, int(vocab)


def make(
    options: argparse.Namespace, size: str, vocab: int, folder: Path
) -> dict[str, Callable[[int, int], Contender]]:
    """What opens each contender for so many rows of so many tokens."""
    config = replace(config_of(size, vocab), tie_embeddings=True)
    plain = Decoder(config).initialise(1234)
    ternary = ternarised(copy.deepcopy(plain), TernaryConfig())
    # The same parameters, in memory once.
    int8 = int8_headed(copy.deepcopy(ternary, {id(p): p for p in ternary.parameters()}))
    made: dict[str, Callable[[int, int], Contender]] = {
        "triloop": lambda rows, length: Ours(ternary),
        "triloop-int8": lambda rows, length: Ours(int8),
        "fp32": lambda rows, length: Ours(plain),
    }
    if any(name.startswith("llama.cpp") for name in options.only):
        try:
            for name, path in gguf_files(ternary, int8, vocab, folder / size).items():
                made[name] = partial(LlamaCpp, path, options.threads)
        except ImportError:
            print("left out: llama.cpp (pip install llama-cpp-python)", file=sys.stderr)
        except ModelError as error:
            print(f"left out at {size}: llama.cpp ({error})", file=sys.stderr)
    if "bf16" in options.only:
        half = copy.deepcopy(plain).to(torch.bfloat16)
        made["bf16"] = lambda rows, length: Ours(half)
    return {name: made[name] for name in ("triloop", *(o for o in options.only if o != "triloop")) if name in made}


def gguf_files(ternary: Decoder, int8: Decoder, vocab: int, stem: Path) -> dict[str, Path]:
    """The files that llama.cpp reads, by contender."""
    import llama_cpp as c

    kinds = ("", "-q8_0", "-q6_k")
    plain, q8, q6 = (stem.with_name(f"{stem.name}{kind}.gguf") for kind in kinds)
    write_gguf(plain, ternary, tokenizer_of(vocab), type="tq2_0")
    write_gguf(q8, int8, tokenizer_of(vocab), type="tq2_0")
    settings = c.llama_model_quantize_default_params()
    settings.nthread, settings.ftype, settings.allow_requantize = 1, c.LLAMA_FTYPE_MOSTLY_TQ2_0, True
    settings.output_tensor_type, settings.token_embedding_type = c.GGML_TYPE_Q6_K, c.GGML_TYPE_F16
    c.llama_log_set(_QUIET, ctypes.c_void_p(0))
    code = c.llama_model_quantize(str(q8).encode(), str(q6).encode(), ctypes.byref(settings))
    if code != 0:
        sys.exit(f"llama.cpp: llama_model_quantize answered {code}")
    return {f"llama.cpp{kind}": path for kind, path in zip(kinds, (plain, q8, q6), strict=True)}


def read(contender: Contender, prompts: Tensor) -> tuple[float, Tensor]:
    """Seconds of reading the prompts, and the logits after them."""
    t0 = time.perf_counter()
    logits = contender.start(prompts, 1)
    return time.perf_counter() - t0, logits.float().clone()


def generate(contender: Contender, prompts: Tensor, steps: int) -> tuple[float, Tensor]:
    """Seconds of ``steps`` steps after one that is not counted, and the first and the last row's logits."""
    draw = torch.Generator().manual_seed(7)
    tokens = torch.randint(4, 60, (steps + 1, len(prompts)), generator=draw)
    contender.start(prompts, steps + 1)
    contender.step(tokens[0], prompts.shape[1])
    logits = torch.empty(0)
    t0 = time.perf_counter()
    for i in range(1, steps + 1):
        logits = contender.step(tokens[i], prompts.shape[1] + i)
    return time.perf_counter() - t0, logits[[0, -1]].float().clone()


def alike(a: Tensor, b: Tensor) -> float:
    """The lowest correlation of the logits of one row."""
    return min(float(torch.corrcoef(torch.stack(rows))[0, 1]) for rows in zip(a, b, strict=True))


def measured(options: argparse.Namespace, opened: dict[str, Callable[[int, int], Contender]]) -> list[dict[str, Any]]:
    found = []
    works = [("generate", n) for n in options.batches] + [("read", 1)]
    for work, rows in works:
        reading = work == "read"
        prompts = torch.randint(4, 60, (rows, options.prompt if reading else SHORT))
        length = prompts.shape[1] + (1 if reading else options.steps + 1)
        contenders = {name: open_(rows, length) for name, open_ in opened.items()}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        logits: dict[str, Tensor] = {}
        slow: set[str] = set()
        for repeat in range(options.repeats + 1):
            for name, contender in contenders.items():
                if reading:
                    spent, logits[name] = read(contender, prompts)
                else:
                    spent, logits[name] = generate(contender, prompts, options.steps)
                if repeat:  # the first one warms up
                    seconds[name].append(spent)
                elif spent > options.limit:
                    print(f"left out: {name}, {work} {rows}: the first measurement took {spent:.0f} s", file=sys.stderr)
                    slow.add(name)
            contenders = {name: c for name, c in contenders.items() if name not in slow}
        tokens = options.prompt if reading else rows * options.steps
        for name in contenders:
            likeness = alike(logits["triloop"], logits[name])
            if name.startswith("llama.cpp") and not likeness >= ALIKE:
                sys.exit(f"llama.cpp's logits are correlated {likeness:.3f} with ours: it computed something else")
            middle = {who: statistics.median(seconds[who]) for who in contenders}
            found.append(
                {
                    "work": "prompt" if reading else f"batch {rows}",
                    "contender": name,
                    "tokens_per_second": tokens / statistics.median(seconds[name]),
                    "seconds": seconds[name],
                    "times": middle[name] / middle["triloop"],
                    "times_int8": middle[name] / middle["triloop-int8"] if "triloop-int8" in middle else None,
                    "correlation": likeness,
                }
            )
            print(f"{found[-1]['work']}, {name}: {found[-1]['tokens_per_second']:.1f} tokens/s", file=sys.stderr)
    return found


HEAD = ("model", "work", "program", "tokens/s", "Triloop is so many times as fast", "with an int8 head")


def page(answer: dict[str, Any]) -> str:
    """The table with what it depends on."""
    about, cells = answer["machine"], answer["cells"]
    rows = [
        (c["model"], c["work"], c["contender"], f"{c['tokens_per_second']:,.1f}", f"{c['times']:.2f}", _times(c))
        for c in cells
    ]
    return "\n".join(
        (
            "# Ternary models from end to end",
            "",
            "Written by `python benchmarks/ternary_generate.py --out docs/proof`, whose text says what is measured. Only",
            "figures of one line's model and work compare: programs took turns there, and the machine is shared.",
            "",
            f"- date: {answer['date']}",
            f"- machine: {about['processor']}, {about['cores']} cores, {answer['threads']} threads used; kernels: "
            f"{answer['kernels']}",
            f"- others used {answer['other_cores']} cores meanwhile",
            "",
            table(rows, HEAD, markdown=True),
            "",
        )
    )


def _times(cell: dict[str, Any]) -> str:
    return "" if cell["times_int8"] is None else f"{cell['times_int8']:.2f}"


def main() -> None:
    options = arguments()
    set_threads(options.threads)
    others, cells = Others(), []
    with tempfile.TemporaryDirectory(prefix="triloop-bench-") as folder, torch.no_grad():
        for size, vocab in options.models:
            opened = make(options, size, vocab, Path(folder))
            cells += [{"model": f"{size}, {vocab:,} tokens", **c} for c in measured(options, opened)]
    answer = {
        "date": time.strftime("%Y-%m-%d"),
        "threads": options.threads,
        "machine": machine(),
        "kernels": describe(),
        "other_cores": round(others.cores(), 2),
        "cells": cells,
    }
    print(page(answer))
    if options.out:
        (options.out / "ternary_generate.json").write_text(json.dumps(answer, indent=1) + "\n")
        (options.out / "ternary_generate.md").write_text(page(answer))


if __name__ == "__main__":
    main()
