"""Models out as Hugging Face directories, BitNet directories, GGUF files and packed weights, and GGUF files in."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triloop.cli.screen import Screen
from triloop.errors import RunFolderError, StoreError, UsageError

if TYPE_CHECKING:
    from triloop.nn.decoder import Decoder
    from triloop.nn.tokenizer import Tokenizer

__all__ = ["FORMATS", "bring_in", "export"]

FORMATS = ("hf", "bitnet", "gguf", "packed")
_TYPES = {"gguf": ("f32", "f16", "tq1_0", "tq2_0"), "packed": ("f32", "f16")}
_DEFAULT = {"gguf": "f16", "packed": "f32"}
_RESTS = ("f16", "f32")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where the model lies."""

    path: Path
    said: str
    facts: Mapping[str, Any]


def export(args: argparse.Namespace, screen: Screen) -> int:
    """Write the model of a run's checkpoint, or of a model directory, in the form that ``--format`` names."""
    kinds = _TYPES.get(args.format, ())
    if args.type is not None and args.type not in kinds:
        ours = f"expected one of {', '.join(kinds)}" if kinds else f"--format {args.format} has no types; leave it out"
        raise UsageError(f"--type is {args.type!r}; {ours}")
    if args.rest is not None and (args.format != "gguf" or args.rest not in _RESTS):
        raise UsageError(f"--rest is {args.rest!r}; expected one of {', '.join(_RESTS)}, with --format gguf")
    source = _source(args)
    target = args.out if args.out is not None else _beside(args)
    if args.format != "gguf" and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already and not empty; choose another folder with --out")
    facts = _write(args, source, target)
    screen.say(f"{source.said}  {target}")
    for key, name in (("bytes", "bytes"), ("bits", "bits a weight of the layers' linears")):
        if key in facts:
            screen.say(f"  {facts[key]:,.4g} {name}" if isinstance(facts[key], float) else f"  {facts[key]:,} {name}")
    for note in facts.get("notes", ()):
        screen.note(f"note: {note}")
    screen.answer({"format": args.format, **source.facts, **facts, "path": target})
    return 0


def bring_in(args: argparse.Namespace, screen: Screen) -> int:
    """A GGUF file as a Hugging Face directory of plain weights in fp32."""
    from triloop.nn.hf_io import save_pretrained
    from triloop.policies.formats.gguf_read import read_gguf

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UsageError(f"{args.out} is there already and not empty; choose another folder with --out")
    decoder, tokenizer = read_gguf(args.file)
    save_pretrained(args.out, decoder, tokenizer)
    count = decoder.config.parameters
    screen.say(f"model of {count:,} weights  {args.out}")
    screen.answer({"form": "gguf", "parameters": count, "model_type": decoder.config.model_type, "path": args.out})
    return 0


def _beside(args: argparse.Namespace) -> Path:
    if not (args.run / "run.db").is_file():
        raise UsageError(f"--format {args.format} of a model needs a place to write to; give --out")
    return Path(args.run / ("export.gguf" if args.format == "gguf" else f"export-{args.format}"))


def _source(args: argparse.Namespace) -> _Source:
    from triloop.loops.build import policy_path
    from triloop.store.run import Run

    path = policy_path(str(args.run))
    if path.is_dir() and not (path / "run.db").is_file() and any(path.glob("*.safetensors")):
        if args.best:
            raise UsageError(f"--best chooses among a run's checkpoints, and {args.run} is a model; leave it out")
        return _Source(path=path, said=f"model {args.run}", facts={})
    with Run.open(args.run, write=False) as run:
        found = run.best_checkpoint() if args.best else run.latest_checkpoint()
        if found is None:
            kind = "scored checkpoint: run it with canary_every above 0" if args.best else "intact checkpoint yet"
            raise RunFolderError(f"{args.run} has no {kind}, so there is no model to export")
    facts = {"round": found.round, "gold": found.gold}
    return _Source(path=found.path / "policy", said=f"model of round {found.round}", facts=facts)


def _write(args: argparse.Namespace, source: _Source, target: Path) -> dict[str, Any]:
    from triloop.policies.native import NativePolicy

    if args.format == "hf" and _is_plain(source.path):
        _copy(source.path, target)
        return {}
    policy = NativePolicy.load(source.path)
    kind = args.type or _DEFAULT.get(args.format, "")
    if args.format == "gguf":
        return _gguf(target, policy.decoder, policy.tokenizer, kind, args.rest)
    return _WRITERS[args.format](target, policy.decoder, policy.tokenizer, kind)


def _is_plain(path: Path) -> bool:
    """Whether transformers reads the directory as it is: any but packed weights and a ternary policy's latent ones."""
    from triloop.nn.hf_config import LATENT
    from triloop.nn.tokenizer import read_json
    from triloop.policies.formats.packed import is_packed

    if is_packed(path):
        return False
    how = read_json(path / "config.json").get("quantization_config")
    return not (isinstance(how, dict) and how.get("quant_method") == LATENT)


def _hf(target: Path, decoder: Decoder, tokenizer: Tokenizer, _: str) -> dict[str, Any]:
    from triloop.nn.hf_io import save_pretrained
    from triloop.policies.formats.weights import plain_decoder, weights_of

    weights = weights_of(decoder)
    save_pretrained(target, plain_decoder(weights), tokenizer)
    lost = f"activations, {weights.activations} here, are not quantised there"
    return {"notes": [*([] if weights.activations == "none" else [lost]), *_head_note(decoder)]}


def _bitnet(target: Path, decoder: Decoder, tokenizer: Tokenizer, _: str) -> dict[str, Any]:
    from triloop.policies.formats.bitnet import save_bitnet

    return {"bytes": save_bitnet(target, decoder, tokenizer), "notes": _head_note(decoder)}


def _head_note(decoder: Decoder) -> list[str]:
    """What becomes of an int8 output head where transformers computes."""
    from triloop.policies.formats.fixed import FixedHead
    from triloop.ternary.head import Int8Head

    if not isinstance(decoder.head, Int8Head | FixedHead):
        return []
    return ["the int8 output head is written as the numbers that it stands for; its inputs are not quantised there"]


def _gguf(target: Path, decoder: Decoder, tokenizer: Tokenizer, kind: str, rest: str | None) -> dict[str, Any]:
    from triloop.policies.formats.gguf_file import write_gguf

    report = write_gguf(target, decoder, tokenizer, type=kind, rest=rest, name=target.stem)
    facts = {"type": kind, "architecture": report.architecture, "bytes": report.bytes}
    return {**facts, "bits": report.bits, "notes": list(report.notes)}


def _packed(target: Path, decoder: Decoder, tokenizer: Tokenizer, kind: str) -> dict[str, Any]:
    import torch

    from triloop.policies.formats.packed import save_packed

    dtype = torch.float16 if kind == "f16" else torch.float32
    report = save_packed(target, decoder, tokenizer, dense=dtype)
    return {"type": kind, "bytes": report.bytes, "bits": report.bits}


_WRITERS = {"hf": _hf, "bitnet": _bitnet, "packed": _packed}


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise StoreError(f"the model could not be written to {target} ({error}); free space or choose --out") from error
