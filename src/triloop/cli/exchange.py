"""``triloop import`` and ``triloop export``: data sets in, data sets and models out."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triloop.cli import forms
from triloop.cli.screen import Screen, json_flag
from triloop.errors import DataError, UsageError

if TYPE_CHECKING:
    from triloop.feedback.interchange import Counts, Reader, Settings
    from triloop.feedback.interchange_records import ImportedItem
    from triloop.store.run import Run

__all__ = ["add", "bring_in", "export"]

_ROWS = ("pairs", "ternary", "labels", "sft")
_SHOWN = 5
"""Faults of rows that are printed; ``--json`` has the first twenty."""


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    _add_import(commands)
    _add_export(commands)


def _add_import(commands: Any) -> None:
    p = commands.add_parser("import", help="read a data set, or a model in GGUF", allow_abbrev=False)
    help_ = "JSONL, JSON (.gz too), Parquet, or a folder of datasets; or a model, FILE.gguf, into --out DIR"
    p.add_argument("file", type=Path, metavar="FILE", help=help_)
    p.add_argument("--out", type=Path, required=True, metavar="DIR|FILE.jsonl", help="where Triloop's own JSONL goes")
    p.add_argument("--form", default="auto", help="what rows mean: auto, pairs, labels, sft, votes, ... (auto)")
    p.add_argument("--columns", default="", metavar="OURS=THEIRS,..", help="your names, as prompt=question,label=stars")
    p.add_argument("--names", default="", metavar="NAME,..", help="columns of rows that are lists: worker,item,label")
    schemes = ("auto", "binary", "ternary", "scalar")
    p.add_argument("--labels", default="auto", choices=schemes, help="what 0 and 1 mean (auto)")
    p.add_argument("--scale", default="", metavar="LOW,HIGH", help="range of marks, mapped to -1 and +1")
    p.add_argument("--words", default="", metavar="WORD=N,..", help="what labels mean, as spam=-1,ham=1")
    p.add_argument("--split", metavar="NAME", help="of a data set that has several")
    p.add_argument("--source", default="", metavar="NAME", help="who judged, where the rows do not say")
    p.add_argument("--consent", default="", metavar="TEXT", help="what the authors allow it to be used for")
    p.add_argument("--skip", action="store_true", help="leave malformed rows out and say how many")
    json_flag(p)
    p.set_defaults(handler=bring_in)


def _add_export(commands: Any) -> None:
    p = commands.add_parser("export", help="a model or judged samples in a form that others read", allow_abbrev=False)
    p.add_argument(
        "run", type=Path, metavar="RUN|MODEL|FILE", help="a run or model folder; for rows an imported file too"
    )
    kinds = "hf: a Hugging Face directory; bitnet: transformers' of a ternary policy; gguf: for llama.cpp; packed (hf)"
    p.add_argument("--format", default="hf", metavar="|".join((*forms.FORMATS, *_ROWS)), help=kinds)
    p.add_argument(
        "--type", metavar="NAME", help="gguf: f32, f16, tq1_0 or tq2_0 (f16); packed: f32 or f16 of the rest (f32)"
    )
    p.add_argument("--rest", metavar="NAME", help="gguf: f16 or f32 of embeddings and output head (as --type; tq: f16)")
    p.add_argument(
        "--out", type=Path, metavar="PATH", help="folder, .gguf, .jsonl or .parquet (RUN/export-FORMAT for models)"
    )
    p.add_argument(
        "--best", action="store_true", help="models: the checkpoint with the best gold score, not the last one"
    )
    p.add_argument(
        "--pairing", default="extremes", choices=("extremes", "all"), help="pairs: best against worst, or all"
    )
    p.add_argument("--tie", type=float, default=0.0, metavar="D", help="pairs: values this close are a tie (0)")
    p.add_argument("--ties", default="drop", choices=("drop", "keep"), help="pairs: ties as rows with tie true (drop)")
    p.add_argument("--dead-zone", type=float, default=0.2, metavar="D", help="values this close to 0 count as 0 (0.2)")
    p.add_argument("--choose", default="best", choices=("best", "accepted"), help="sft: a prompt's best, or all good")
    json_flag(p)
    p.set_defaults(handler=export)


def bring_in(args: argparse.Namespace, screen: Screen) -> int:
    """Normalise a data set into Triloop's own JSONL; a model in GGUF becomes a Hugging Face directory."""
    if args.file.suffix == ".gguf":
        return forms.bring_in(args, screen)
    from triloop.feedback.interchange import Reader, write_items

    reader = Reader(
        args.file,
        form=args.form,
        settings=_settings(args),
        names=[name.strip() for name in args.names.split(",") if name.strip()],
        split=args.split,
        skip=args.skip,
    )
    folder = not args.out.name.endswith((".jsonl", ".jsonl.gz"))
    target = args.out / "items.jsonl" if folder else args.out
    if args.out.is_file() and folder:
        raise UsageError(f"{args.out} is a file and no .jsonl; expected a folder, or a name that ends in .jsonl")
    counts = write_items(target, reader)
    answer = {**_answer(counts), "form": reader.form, "skipped": reader.skipped, "ignored": list(reader.ignored)}
    answer |= {"labels": reader.settings.labels.scheme, "path": str(target), "sha256": _sha256(target)}
    _show(counts, reader, screen)
    screen.say(f"items  {target}")
    screen.answer({**answer, "faults": reader.faults})
    return 0


def export(args: argparse.Namespace, screen: Screen) -> int:
    """Write a model in another form, or judged samples as rows."""
    if args.format in forms.FORMATS:
        return forms.export(args, screen)
    if args.format not in _ROWS:
        raise UsageError(f"--format is {args.format!r}; expected one of {', '.join((*forms.FORMATS, *_ROWS))}")
    if args.type is not None or args.rest is not None or args.best:
        raise UsageError(f"--type, --rest and --best are of models; --format {args.format} writes rows, leave them out")
    return _rows(args, screen)


def _rows(args: argparse.Namespace, screen: Screen) -> int:
    from triloop.feedback.interchange_export import EXPORTS, Export
    from triloop.feedback.interchange_files import writing

    for name, value, most in (("--tie", args.tie, 2.0), ("--dead-zone", args.dead_zone, 1.0)):
        if not 0.0 <= value <= most:
            raise UsageError(f"{name} is {value:g}; expected a number from 0 to {most:g}")
    if args.out is None:
        raise UsageError(f"--format {args.format} needs a file to write; give --out FILE.jsonl or FILE.parquet")
    how = Export(pairing=args.pairing, tie=args.tie, ties=args.ties, dead_zone=args.dead_zone, choice=args.choose)
    items = rows = 0
    with writing(args.out) as put:
        for item in _items(args.run):
            items += 1
            for row in EXPORTS[args.format](how, item):
                rows += 1
                put(row)
        if not rows:
            why = "; ".join(f"{n:,} left out: {reason}" for reason, n in how.left_out.items()) or "nothing was judged"
            raise DataError(f"{args.run}: {items:,} prompts give no row of format {args.format} ({why})")
    screen.say(f"{rows:,} rows of {args.format} from {items:,} prompts  {args.out}")
    for reason, n in sorted(how.left_out.items()):
        screen.say(f"  {n:,} left out: {reason}")
    left_out = dict(sorted(how.left_out.items()))
    screen.answer({"format": args.format, "rows": rows, "prompts": items, "left_out": left_out, "path": args.out})
    return 0


def _items(path: Path) -> Iterator[ImportedItem]:
    """Of a run's training samples, round by round, or of a file."""
    if path.is_dir() and not (path / "run.db").is_file() and (path / "items.jsonl").is_file():
        path = path / "items.jsonl"
    if path.is_file():
        from triloop.feedback.interchange import read_items

        yield from read_items(path)
        return
    from triloop.store.run import Run

    with Run.open(path, write=False) as run:
        yield from _judged(run)


def _judged(run: Run) -> Iterator[ImportedItem]:
    from triloop.feedback.interchange_export import grouped

    for round in run.log.rounds("completion"):
        drawn = run.completions(round)
        yield from grouped(run.prompts(c.prompt_id for c in drawn), drawn, run.feedback(round))


def _settings(args: argparse.Namespace) -> Settings:
    from triloop.feedback.interchange import Labels, Settings

    words = {word.casefold(): _number("--words", n) for word, n in _pairs("--words", args.words)}
    wrong = [word for word, n in words.items() if not -1 <= n <= 1]
    if wrong:
        raise UsageError(f"--words gives {wrong[0]!r} the value {words[wrong[0]]:g}; expected a number in [-1, 1]")
    scale = None
    if args.scale:
        ends = args.scale.split(",")
        if len(ends) != 2 or not _number("--scale", ends[0]) < _number("--scale", ends[1]):
            raise UsageError(f"--scale is {args.scale!r}; expected the lowest and the highest mark, such as 1,5")
        scale = (_number("--scale", ends[0]), _number("--scale", ends[1]))
    return Settings(
        columns=dict(_pairs("--columns", args.columns)),
        labels=Labels(scheme=args.labels, words=words, scale=scale),
        source=args.source,
        consent=args.consent,
    )


def _pairs(flag: str, text: str) -> list[tuple[str, str]]:
    found = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.rpartition("=")
        if not (name.strip() and equals and value.strip()):
            raise UsageError(f"{flag} has {part!r}; expected NAME=VALUE, several divided by commas")
        found.append((name.strip(), value.strip()))
    return found


def _number(flag: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise UsageError(f"{flag} has {text!r} where a number is expected") from error
    if not abs(number) < float("inf"):
        raise UsageError(f"{flag} has {text!r}; expected a finite number")
    return number


def _answer(counts: Counts) -> dict[str, Any]:
    return {
        "items": counts.items,
        "responses": counts.responses,
        "demonstrations": counts.demonstrations,
        "feedback": dict(sorted(counts.feedback.items())),
        "failed": counts.failed,
        "sources": len(counts.sources),
    }


def _show(counts: Counts, reader: Reader, screen: Screen) -> None:
    rows: Sequence[tuple[str, int]] = (
        ("items", counts.items),
        ("responses", counts.responses),
        ("demonstrations", counts.demonstrations),
        *((f"feedback, {kind}", n) for kind, n in sorted(counts.feedback.items())),
        ("judges", len(counts.sources)),
        ("rows skipped", reader.skipped),
    )
    screen.table("", [f"form {reader.form}", "number"], [[name, f"{n:,}"] for name, n in rows if n])
    if reader.ignored:
        screen.say(f"columns without a meaning here: {', '.join(reader.ignored)}")
    for fault in reader.faults[:_SHOWN]:
        screen.note(f"skipped {fault}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
