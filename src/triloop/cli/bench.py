"""``triloop bench rollout|train|loop``: how fast this machine samples and learns, and how near that is to its limit."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from triloop.bench.case import DEFINITION, NAMES, SIZES, Case
from triloop.cli.screen import Screen, json_flag

__all__ = ["add", "bench"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    p = commands.add_parser(
        "bench",
        help="measure speed and memory: rollout, train, loop",
        description="\n".join(f"  {name:8} {text}" for name, text in NAMES.items()),
        epilog=DEFINITION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    case = Case(name="rollout")
    p.add_argument("name", nargs="?", metavar="NAME", help="rollout, train or loop; without it, the names")
    p.add_argument("--size", default=case.size, help=f"{', '.join(SIZES)} parameters [{case.size}]")
    p.add_argument("--batch", type=int, default=case.batch, metavar="N", help=f"completions [{case.batch}]")
    p.add_argument("--length", type=int, default=case.length, metavar="N", help=f"new tokens of each [{case.length}]")
    p.add_argument("--vocab", type=int, default=case.vocab, metavar="N", help=f"tokens to choose from [{case.vocab}]")
    p.add_argument(
        "--threads",
        type=int,
        default=case.threads,
        metavar="N",
        help="processor threads [0: 1 or all, whichever is faster]",
    )
    p.add_argument("--precision", default=case.precision, help="auto, fp32 or bf16 [auto]: of the matrix products")
    p.add_argument("--ternary", default="", metavar="QUANTISER", help="with quantised linears, e.g. absmean [none]")
    p.add_argument("--ternary-head", default="full", metavar="KIND", help="full or int8: the output head then [full]")
    p.add_argument("--device", default=case.device, help="cpu or cuda [cpu]")
    p.add_argument("--repeats", type=int, default=0, metavar="N", help="counted runs [0: up to 3 in about ten seconds]")
    json_flag(p)
    p.set_defaults(handler=bench)


def bench(args: argparse.Namespace, screen: Screen) -> int:
    """List the benchmarks, or run one."""
    if args.name is None:
        screen.table("", ["benchmark", "measures"], [[name, text] for name, text in NAMES.items()])
        screen.answer({"benchmarks": list(NAMES)})
        return 0
    fields = (
        "name",
        "size",
        "batch",
        "length",
        "vocab",
        "threads",
        "precision",
        "ternary",
        "ternary_head",
        "device",
        "repeats",
    )
    case = Case(**{field: getattr(args, field) for field in fields})
    from triloop.bench.run import bench as measure

    found = measure(case, screen.note)
    screen.table("", ["", ""], _rows(found))
    screen.answer(found)
    return 0


def _rows(r: Mapping[str, Any]) -> list[list[str]]:
    """The figures in words."""
    floor, limit = r["floor"], r["limit"]
    bound = "matrix products" if floor["products_seconds"] >= floor["memory_seconds"] else "memory traffic"
    rates = {"decoding": limit["decode_flops_per_second"], "learning": limit["learn_flops_per_second"]}
    limits = [f"{rate / 1e9:,.0f} GFLOP/s {name}" for name, rate in rates.items() if rate]
    split = ", ".join(f"{name} {seconds:.3g}" for name, seconds in r["split"].items())
    kind = f", linears by {r['ternary']}, head {r['ternary_head']}" if r["ternary"] else ""
    others = f"{r['other_cores']:.2f} cores" + ("" if r["clean"] else ": not clean, measure again on a quiet machine")
    return [
        ["model", f"{r['size']}: {r['parameters']:,} parameters{kind}, {r['vocab']:,} tokens of vocabulary"],
        ["work", f"{r['batch']} completions of {r['length']} tokens"],
        ["machine", f"{r['machine']['processor']}, {r['threads']} threads, {r['device']} {r['precision']}"],
        ["kernels", r["kernels"]],
        ["tokens/s", f"{r['tokens_per_second']:,.0f}"],
        ["completions/s", f"{r['completions_per_second']:,.1f}"],
        ["seconds", f"{r['seconds']:.3g}, median of {len(r['seconds_each'])} ({split})"],
        [
            "products",
            f"{r['products_share']:.0%} of it in torch's matrix products; {r['rest_seconds']:.3g} s in everything else",
        ],
        ["roofline share", f"{r['roofline_share']:.1%} of the limit by {bound}"],
        ["limit", f"{', '.join(limits)}, {limit['bytes_per_second'] / 1e9:.0f} GB/s"],
        ["peak memory", f"{r['peak_memory_bytes'] / 2**20:,.0f} MiB"],
        ["others used", others],
    ]
