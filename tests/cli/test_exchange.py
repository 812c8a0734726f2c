"""``triloop import`` and ``triloop export`` from outside: files, counts, messages, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from report.fake_run import episode, make
from triloop.cli.main import main
from triloop.feedback.interchange import read_items
from triloop.feedback.kinds import Edit, Pair, write
from triloop.loops.build import policy_path
from triloop.nn.hf_io import load_pretrained, weights_sha256
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Prompt
from triloop.store import Run, episode_rows, feedback_row
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import linears

Capture = pytest.CaptureFixture[str]


def _write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _told(capture: Capture) -> dict[str, Any]:
    out = capture.readouterr().out
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return _write(
        tmp_path / "pairs.jsonl", [{"prompt": f"p{k}", "chosen": "a", "rejected": "b", "id": k} for k in range(3)]
    )


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Two rounds of one prompt with four samples each, one of them a failure, one compared and edited by a person."""
    path = tmp_path / "judged"
    with Run.create(path, {}, {}) as run:
        for round in (1, 2):
            drawn = [episode(round, "p", k, f"answer {k}", v) for k, v in enumerate((1.0, 0.5, -1.0, None))]
            run.append(episode_rows(drawn))
        run.append(episode_rows([episode(1, "held-out", 0, "secret", 1.0)], purpose="eval"))
        pair = write(Pair(-1), source="person:anna", about=("2/p/0", "2/p/1"))
        edit = write(Edit("answer 3, mended"), source="person:anna")
        run.append([feedback_row(pair, "2/p/0", 2, "anna"), feedback_row(edit, "2/p/3", 2, "anna")], durable=True)
    return path


def test_import_says_what_it_found(pairs: Path, tmp_path: Path, capsys: Capture) -> None:
    assert (
        main(["import", str(pairs), "--out", str(tmp_path / "set"), "--source", "crowd", "--consent", "all", "--json"])
        == 0
    )
    told = _told(capsys)
    assert told["path"] == str(tmp_path / "set" / "items.jsonl")
    assert (told["form"], told["items"], told["responses"], told["feedback"]) == ("pairs", 3, 6, {"pair": 3})
    assert told["ignored"] == ["id"] and told["skipped"] == 0 and len(told["sha256"]) == 64
    items = list(read_items(told["path"]))
    assert [f.source for i in items for f in i.feedback] == ["crowd"] * 3 and items[0].feedback[0].consent == "all"
    assert main(["import", str(pairs), "--out", str(tmp_path / "one.jsonl.gz")]) == 0
    shown = capsys.readouterr().out
    assert "feedback, pair" in shown and "columns without a meaning here: id" in shown


def test_import_reads_labels_as_it_is_told(tmp_path: Path, capsys: Capture) -> None:
    path = _write(tmp_path / "l.jsonl", [{"q": "p", "completion": str(k), "stars": k} for k in (1, 3, 5)])
    words = ["import", str(path), "--out", str(tmp_path / "l1.jsonl"), "--columns", "prompt=q,label=stars"]
    assert main([*words, "--scale", "1,5"]) == 0
    assert [i.feedback[0].value for i in read_items(tmp_path / "l1.jsonl")] == [-1.0, 0.0, 1.0]
    crowd = _write(tmp_path / "crowd.jsonl", [[7, 1, "ham"], [8, 1, "spam"]])
    listed = ["import", str(crowd), "--out", str(tmp_path / "c.jsonl"), "--names", "worker,item,label"]
    assert main([*listed, "--words", "spam=-1,ham=1"]) == 0
    assert [f.value for i in read_items(tmp_path / "c.jsonl") for f in i.feedback] == [1.0, -1.0]
    zeros = _write(tmp_path / "z.jsonl", [{"prompt": "p", "completion": "c", "label": k} for k in (0, 1)])
    capsys.readouterr()
    assert main(["import", str(zeros), "--out", str(tmp_path / "z1.jsonl")]) == 2
    assert "--labels binary" in capsys.readouterr().err
    for scheme, value in (("binary", -1.0), ("ternary", 0.0)):
        assert main(["import", str(zeros), "--out", str(tmp_path / f"{scheme}.jsonl"), "--labels", scheme]) == 0
        assert next(iter(read_items(tmp_path / f"{scheme}.jsonl"))).feedback[0].value == value


def test_import_skips_only_when_told(tmp_path: Path, capsys: Capture) -> None:
    path = _write(tmp_path / "x.jsonl", [{"prompt": "p", "completion": "c", "label": v} for v in (True, "meh", False)])
    assert main(["import", str(path), "--out", str(tmp_path / "o.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "x.jsonl:2: label is 'meh'" in error and "--skip" in error
    assert not (tmp_path / "o.jsonl").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["x.jsonl"]
    assert main(["import", str(path), "--out", str(tmp_path / "o.jsonl"), "--skip", "--json"]) == 0
    told = _told(capsys)
    assert told["items"] == 2 and told["skipped"] == 1 and "x.jsonl:2" in told["faults"][0]


WRONG = {
    "missing": ("import {tmp}/no.jsonl --out {tmp}/o.jsonl", "no such file"),
    "no out": ("import {pairs}", "--out"),
    "taken": ("import {pairs} --out {pairs}", "there already"),
    "form": ("import {pairs} --out {tmp}/o.jsonl --form pears", "expected auto or one of"),
    "columns": ("import {pairs} --out {tmp}/o.jsonl --columns prompt", "expected NAME=VALUE"),
    "our column": ("import {pairs} --out {tmp}/o.jsonl --columns colour=c", "no column 'colour'"),
    "scale": ("import {pairs} --out {tmp}/o.jsonl --scale 5,1", "lowest and the highest"),
    "scale word": ("import {pairs} --out {tmp}/o.jsonl --scale a,b", "number is expected"),
    "words": ("import {pairs} --out {tmp}/o.jsonl --words spam=2", "in [-1, 1]"),
    "labels": ("import {pairs} --out {tmp}/o.jsonl --labels stars", "invalid choice"),
    "format": ("export {run} --format csv --out {tmp}/o.jsonl", "expected one of hf, bitnet, gguf, packed, pairs"),
    "type": (
        "export base:sort --format gguf --type q4_0 --out {tmp}/o.jsonl",
        "expected one of f32, f16, tq1_0, tq2_0",
    ),
    "type of none": ("export base:sort --format hf --type f16 --out {tmp}/o.jsonl", "has no types"),
    "rest": (
        "export base:sort --format gguf --rest tq1_0 --out {tmp}/o.jsonl",
        "--rest is 'tq1_0'; expected one of f16, f32",
    ),
    "rest of another": ("export base:sort --format packed --rest f32 --out {tmp}/o.jsonl", "with --format gguf"),
    "rest of rows": ("export {run} --format pairs --rest f16 --out {tmp}/o.jsonl", "are of models"),
    "type of rows": ("export {run} --format pairs --type f16 --out {tmp}/o.jsonl", "are of models"),
    "best of a model": ("export base:sort --format gguf --best --out {tmp}/o.jsonl", "and base:sort is a model"),
    "nowhere": ("export base:sort --format gguf", "give --out"),
    "no base": ("export base:nothing --format gguf --out {tmp}/o.jsonl", "choose one of base:"),
    "not ternary": ("export base:sort --format packed --out {tmp}/o.jsonl", "full precision"),
    "no file": ("export {run} --format pairs", "--out FILE.jsonl"),
    "kind of file": ("export {run} --format pairs --out {tmp}/o.txt", "names no format"),
    "tie": ("export {run} --format pairs --out {tmp}/o.jsonl --tie -1", "from 0 to 2"),
    "dead zone": ("export {run} --format ternary --out {tmp}/o.jsonl --dead-zone 2", "from 0 to 1"),
    "no run": ("export {tmp}/none --format pairs --out {tmp}/o.jsonl", "does not exist"),
    "hf of a file": ("export {pairs} --format hf", "run"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_use(words: str, message: str, pairs: Path, judged: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(words.format(tmp=tmp_path, pairs=pairs, run=judged).split()) == 2
    caught = capsys.readouterr()
    assert caught.out == "" and caught.err.startswith("error: ") and message in caught.err
    assert not (tmp_path / "o.jsonl").exists()


def test_export_pairs_of_a_run(judged: Path, tmp_path: Path, capsys: Capture) -> None:
    """Round 1 by values; in round 2 the person's word and edit come first. Held-out samples stay out."""
    out = tmp_path / "pairs.jsonl"
    assert main(["export", str(judged), "--format", "pairs", "--out", str(out), "--json"]) == 0
    told = _told(capsys)
    assert told == {"format": "pairs", "rows": 4, "prompts": 2, "left_out": {}, "path": str(out)}
    found = [(row["chosen"], row["rejected"]) for row in _rows(out)]
    assert found == [
        ("answer 0", "answer 2"),
        ("answer 1", "answer 0"),
        ("answer 3, mended", "answer 3"),
        ("answer 0", "answer 2"),
    ]
    assert _rows(out)[0]["prompt"].startswith("Make 24 from")
    assert (
        main(["export", str(judged), "--format", "pairs", "--out", str(tmp_path / "all.jsonl"), "--pairing", "all"])
        == 0
    )
    assert "7 rows of pairs from 2 prompts" in capsys.readouterr().out
    kept = ["export", str(judged), "--format", "pairs", "--out", str(tmp_path / "ties.jsonl"), "--pairing", "all"]
    assert main([*kept, "--tie", "0.5", "--ties", "keep"]) == 0
    assert sum(row["tie"] for row in _rows(tmp_path / "ties.jsonl")) == 1  # answers 0 and 1 of round 1


def test_export_labels_and_demonstrations_of_a_run(judged: Path, tmp_path: Path, capsys: Capture) -> None:
    assert (
        main(
            [
                "export",
                str(judged),
                "--format",
                "ternary",
                "--out",
                str(tmp_path / "t.jsonl"),
                "--dead-zone",
                "0.5",
                "--json",
            ]
        )
        == 0
    )
    assert _told(capsys)["left_out"] == {"no number was said of it": 2}
    assert [row["label"] for row in _rows(tmp_path / "t.jsonl")] == [1, 0, -1] * 2
    assert (
        main(["export", str(judged), "--format", "labels", "--out", str(tmp_path / "l.jsonl"), "--dead-zone", "0.5"])
        == 0
    )
    assert [row["label"] for row in _rows(tmp_path / "l.jsonl")] == [True, False] * 2
    for choose, n in (("best", 3), ("accepted", 5)):
        out = tmp_path / f"{choose}.jsonl"
        assert main(["export", str(judged), "--format", "sft", "--out", str(out), "--choose", choose]) == 0
        assert len(_rows(out)) == n and "answer 3, mended" in {row["completion"] for row in _rows(out)}


def test_export_to_parquet_is_imported_again(judged: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "pairs.parquet"
    assert main(["export", str(judged), "--format", "pairs", "--out", str(out)]) == 0
    assert main(["import", str(out), "--out", str(tmp_path / "back")]) == 0
    assert len(list(read_items(tmp_path / "back" / "items.jsonl"))) == 4


def test_an_imported_folder_is_exported(pairs: Path, tmp_path: Path) -> None:
    assert main(["import", str(pairs), "--out", str(tmp_path / "set")]) == 0
    assert main(["export", str(tmp_path / "set"), "--format", "sft", "--out", str(tmp_path / "sft.jsonl")]) == 0
    assert _rows(tmp_path / "sft.jsonl") == [{"prompt": f"p{k}", "completion": "a"} for k in range(3)]


def test_nothing_to_export_is_said(tmp_path: Path, capsys: Capture) -> None:
    prompts = _write(tmp_path / "p.jsonl", [{"prompt": "p"}])
    assert main(["export", str(prompts), "--format", "pairs", "--out", str(tmp_path / "o.jsonl")]) == 2
    assert "1 prompts give no row of format pairs" in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


def test_export_hf(run_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    make(run_dir)
    assert main(["export", str(run_dir), "--format", "hf", "--out", str(tmp_path / "m"), "--best", "--json"]) == 0
    assert _told(capsys)["format"] == "hf"
    assert (tmp_path / "m" / "config.json").is_file()


def test_a_model_goes_out_as_gguf_and_comes_back(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("gguf")
    out, again = str(tmp_path / "m.gguf"), str(tmp_path / "again")
    assert main(["export", "base:sort", "--format", "gguf", "--type", "f32", "--out", out, "--json"]) == 0
    told = _told(capsys)
    assert (told["type"], told["bits"], told["bytes"]) == ("f32", 32.0, Path(out).stat().st_size)
    assert "unknown token" in told["notes"][0]
    assert main(["import", out, "--out", again]) == 0
    base, read = load_pretrained(policy_path("base:sort"))[0], load_pretrained(again)[0]
    assert (
        weights_sha256(base) == weights_sha256(read)
        and f"{base.config.parameters:,} weights" in capsys.readouterr().out
    )
    assert main(["import", out, "--out", again]) == 2
    assert "there already and not empty" in capsys.readouterr().err


def test_what_gguf_cannot_say_is_told(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("gguf")
    assert main(["export", "base:attributes", "--format", "gguf", "--out", str(tmp_path / "m.gguf")]) == 2
    assert "one token per word" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "m.gguf"), "--out", str(tmp_path / "m")]) == 2
    assert "does not exist" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", ["full", "int8"])
def test_a_ternary_model_goes_out_in_every_form(head: str, tmp_path: Path, capsys: Capture) -> None:
    model = tmp_path / "model"
    policy = NativePolicy.load(policy_path("base:sort"))
    policy.ternarise(TernaryConfig(head=head))
    policy.save_pretrained(model)
    for form in ("hf", "bitnet", "packed"):
        assert main(["export", str(model), "--format", form, "--out", str(tmp_path / form), "--json"]) == 0
        told = _told(capsys)
        assert told["format"] == form
        said = any("int8 output head is written as the numbers" in note for note in told.get("notes", ()))
        assert said == (head == "int8" and form != "packed")
    prompts = [Prompt(id="p", text="312>")]
    ours = policy.sample(prompts, 4, Sampling(max_tokens=8), Tag(seed=1, round=0))
    packed = NativePolicy.load(tmp_path / "packed").sample(prompts, 4, Sampling(max_tokens=8), Tag(seed=1, round=0))
    assert [c.tokens for c in packed] == [c.tokens for c in ours]
    assert not linears(load_pretrained(tmp_path / "hf")[0])
    pytest.importorskip("gguf")
    assert main(["export", str(model), "--format", "gguf", "--type", "tq2_0", "--out", str(tmp_path / "m.gguf")]) == 2
    assert "layers.0.qkv has 64 inputs" in capsys.readouterr().err


def test_embeddings_and_head_are_written_in_the_type_that_is_asked_for(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("gguf")
    from triloop.policies.formats.gguf_read import Gguf

    for rest, kind in ((None, "F16"), ("f32", "F32"), ("f16", "F16")):
        asked = ["--rest", rest] if rest else []
        assert main(["export", "base:sort", "--format", "gguf", *asked, "--out", str(tmp_path / "m.gguf")]) == 0
        tensors = Gguf(tmp_path / "m.gguf").tensors
        assert tensors["token_embd.weight"].tensor_type.name == kind
        assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "F16"


def test_a_run_says_where_its_models_go(run_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    """Without --out beside the run, named by the form."""
    pytest.importorskip("gguf")

    def save(folder: Path) -> None:
        NativePolicy.load(policy_path("base:sort")).save_pretrained(folder / "policy")

    with Run.create(run_dir, {}, {}) as run:
        run.commit_checkpoint(3, save)
    assert main(["export", str(run_dir), "--format", "gguf", "--json"]) == 0
    told = _told(capsys)
    assert told["path"] == str(run_dir / "export.gguf") and told["round"] == 3 and told["type"] == "f16"
