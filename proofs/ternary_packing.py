"""Do ternary matrices come back from packing, and from both file forms, and are products of them exact? 100,000 matrices.

    python proofs/ternary_packing.py [--matrices 100000] [--seed 0]

Rule, fixed before the run: no exception. Every matrix of random shape (1 to 160 rows, 1 to 420 columns) goes through
pack and unpack, to_trits and from_trits, to_two_bits and from_two_bits, and comes back equal; of every tenth a product
with int8 activations equals torch's integer product, and the scaled one equals ``reference`` bit for bit. Matrices are
random, constant, striped by row or column, or zero but for one code; a quarter have groups of odd size.
Writes docs/proof/ternary_packing.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from triloop.bench.measuring import machine
from triloop.kernels import native, ternary
from triloop.kernels.trits import from_trits, to_trits
from triloop.kernels.two_bits import from_two_bits, to_two_bits

OUT = Path(__file__).resolve().parents[1] / "docs/proof/ternary_packing.json"
KINDS = ("random", "constant", "rows", "columns", "one")


def matrix(kind: str, rows: int, columns: int, g: torch.Generator) -> Tensor:
    """Codes of one kind."""
    if kind == "random":
        return torch.randint(-1, 2, (rows, columns), generator=g, dtype=torch.int8)
    if kind == "one":
        codes = torch.zeros(rows, columns, dtype=torch.int8)
        spot = int(torch.randint(rows * columns, (1,), generator=g))
        codes.view(-1)[spot] = 1 if spot % 2 else -1
        return codes
    shape = {"constant": (1, 1), "rows": (rows, 1), "columns": (1, columns)}[kind]
    return torch.randint(-1, 2, shape, generator=g, dtype=torch.int8).expand(rows, columns).contiguous()


def check(index: int, g: torch.Generator) -> bool:
    """One matrix through everything."""
    rows = int(torch.randint(1, 161, (1,), generator=g))
    columns = int(torch.randint(1, 421, (1,), generator=g))
    codes = matrix(KINDS[index % len(KINDS)], rows, columns, g)
    group = int(torch.randint(1, 200, (1,), generator=g)) if index % 4 == 3 else None
    groups = 1 if group is None else -(-columns // min(group, columns))
    scale = torch.rand(rows, groups, generator=g)
    shift = torch.randn(rows, groups, generator=g) if index % 3 == 0 else None
    packed = ternary.pack(codes, scale, shift, group)
    back = ternary.unpack(packed)
    good = torch.equal(back[0], codes) and torch.equal(back[1], scale)
    good &= torch.equal(from_trits(to_trits(codes), columns), codes)
    good &= torch.equal(from_two_bits(to_two_bits(codes), columns), codes)
    if index % 10 == 0:
        x = torch.randn(int(torch.randint(1, 40, (1,), generator=g)), columns, generator=g)
        q = ternary.quantise_rows(x)[0]
        good &= torch.equal(ternary.integer_product(q, packed), q.int() @ codes.int().t())
        good &= torch.equal(ternary.product(x, packed), ternary.reference(x, packed))
    return bool(good)


def main() -> None:
    """Check them all, write the count."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--matrices", type=int, default=100_000)
    p.add_argument("--seed", type=int, default=0)
    options = p.parse_args()
    torch.set_num_threads(1)
    g, start = torch.Generator().manual_seed(options.seed), time.perf_counter()
    failed = [index for index in range(options.matrices) if not check(index, g)]
    facts = {"matrices": options.matrices, "failed": failed, "seed": options.seed, "kernels": native.describe()}
    facts |= {"seconds": round(time.perf_counter() - start, 1), "machine": machine()}
    OUT.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))
    if failed:
        raise SystemExit(f"{len(failed)} of {options.matrices} matrices did not come back")


if __name__ == "__main__":
    main()
