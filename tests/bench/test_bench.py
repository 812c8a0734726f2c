"""The command: its one JSON object, its errors, and that what it measures is what was asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from triloop.bench import run
from triloop.bench.case import Case
from triloop.bench.limits import faster_threads, measure_limits
from triloop.bench.measuring import Others, machine, peak_bytes, table
from triloop.bench.model import config_of
from triloop.bench.rollout import Rollout
from triloop.cli.main import main
from triloop.errors import UsageError, WorkError
from triloop.policies.protocol import Tag

Capture = pytest.CaptureFixture[str]

PROMISED = {
    *("size", "batch", "length", "tokens_per_second", "completions_per_second", "roofline_share", "peak_memory_bytes"),
    *("parameters", "vocab", "threads", "precision", "instructions", "other_cores", "clean", "split", "limit", "floor"),
}
SPLITS = {
    "rollout": {"rollout"},
    "train": {"credit", "forward_backward", "optimiser"},
    "loop": {"rollout", "judge", "learn", "watch", "store"},
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits are measured for a moment only."""
    monkeypatch.setattr("triloop.bench.limits._SECONDS", 0.002)


def _run(words: str, capsys: Capture) -> dict[str, Any]:
    assert main(["bench", *words.split(), "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert "measuring" in err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("name", SPLITS)
def test_json(name: str, capsys: Capture) -> None:
    r = _run(f"{name} --size 0.2m --batch 8 --length 4 --threads 1 --precision fp32 --repeats 2", capsys)
    assert set(r) >= PROMISED
    assert (r["size"], r["batch"], r["length"], r["vocab"], r["threads"], r["precision"]) == (
        "0.2m",
        8,
        4,
        64,
        1,
        "fp32",
    )
    assert set(r["split"]) == SPLITS[name]
    assert len(r["seconds_each"]) == 2
    assert r["seconds"] > 0
    assert r["completions_per_second"] == pytest.approx(8 / r["seconds"])
    assert r["tokens_per_second"] == pytest.approx(32 / r["seconds"])
    assert r["roofline_share"] == pytest.approx(r["floor"]["seconds"] / r["seconds"])
    assert r["floor"]["seconds"] == max(r["floor"]["products_seconds"], r["floor"]["memory_seconds"]) > 0
    assert r["peak_memory_bytes"] > 50e6
    assert r["clean"] == (r["other_cores"] <= 0.1)
    assert 0 < r["products_seconds"] == pytest.approx(r["products_share"] * r["seconds"])
    assert r["rest_seconds"] == pytest.approx(max(0, r["seconds"] - r["products_seconds"]))
    assert (r["limit"]["decode_flops_per_second"] is None) == (name == "train")
    assert (r["limit"]["learn_flops_per_second"] is None) == (name == "rollout")


def test_a_table_for_people(capsys: Capture) -> None:
    words = "bench rollout --size 0.2m --batch 4 --length 2 --vocab 100 --threads 1 --repeats 1"
    assert main(words.split()) == 0
    out = capsys.readouterr().out
    for word in (
        "tokens/s",
        "completions/s",
        "roofline share",
        "in torch's matrix products",
        "peak memory",
        "others used",
        "4 completions of 2 tokens",
    ):
        assert word in out


def test_names(capsys: Capture) -> None:
    assert main(["bench", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"benchmarks": ["rollout", "train", "loop"]}


def test_help_defines_the_share(capsys: Capture) -> None:
    assert main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    assert "roofline_share is floor / measured seconds" in out
    assert "0.2m, 1m, 5m, 30m, 100m" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rolout", "did you mean rollout?"),
        ("rollout --size 7m", "--size is '7m'; expected one of 0.2m, 1m, 5m, 30m, 100m"),
        ("rollout --batch 0", "--batch is 0"),
        ("rollout --batch 12", "multiple of 8"),
        ("loop --batch 4", "multiple of 8"),
        ("rollout --batch many", "--batch"),
        ("rollout --length 0", "--length is 0"),
        ("rollout --length 4096", "the models have 4096 positions"),
        ("train --vocab 10", "--vocab is 10"),
        ("train --precision fp64", "auto, fp32, bf16"),
        ("train --device tpu", "cpu, cuda"),
        ("train --threads -1", "--threads is -1"),
        ("rollout --bacth 3", "Did you mean --batch?"),
    ],
)
def test_wrong_use_is_code_2(words: str, message: str, capsys: Capture) -> None:
    assert main(["bench", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "rollout", "--device", "cuda"]) == 2
    assert "finds no GPU" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu(capsys: Capture) -> None:
    r = _run("rollout --size 0.2m --batch 8 --length 4 --device cuda --repeats 1", capsys)
    assert r["device"] == "cuda"
    assert r["tokens_per_second"] > 0


def test_threads_are_as_they_were() -> None:
    before = torch.get_num_threads()
    run.bench(Case(name="rollout", size="0.2m", batch=1, length=2, threads=2, repeats=1), lambda text: None)
    assert torch.get_num_threads() == before


def test_wrong_work_is_no_figure() -> None:
    rollout = Rollout(Case(name="rollout", size="0.2m", batch=2, length=3, precision="fp32"))
    done = rollout.policy.sample(rollout.prompts, 2, rollout.sampling, Tag(seed=0, round=0))
    with pytest.raises(WorkError, match="3 tokens were generated instead of 6"):
        rollout._check(done[:1])


def test_limits_are_rates() -> None:
    c = config_of("0.2m")
    found = measure_limits(c, torch.float32, "cpu", rows=8, tokens=0, traffic=1e5)
    assert found.decode == found.learn > 1e6
    assert found.bandwidth > 1e6
    assert faster_threads(c, torch.float32, rows=8, all_cores=1) == 1


def test_a_case_is_checked_when_it_is_made() -> None:
    assert Case(name="rollout", batch=4).group == 4
    assert Case(name="rollout", batch=64).group == 8
    with pytest.raises(UsageError, match="expected 1 to 4088"):
        Case(name="rollout", length=4089)


def test_who_else_used_the_cores() -> None:
    others = Others()
    sum(range(200_000))
    assert others.cores() >= 0
    assert peak_bytes() > 10e6
    assert {"processor", "cores", "instructions"} <= set(machine())
    assert table([["a", 1.5], ["b", 1000.0]], ["x", "y"], markdown=True).splitlines()[1] == "| - | ---: |"


def test_ternary_linears_are_measured_by_their_own_limits(capsys: Capture) -> None:
    r = _run("rollout --size 0.2m --batch 8 --length 4 --threads 1 --ternary absmean --repeats 1", capsys)
    assert r["ternary"] == "absmean" and r["limit"]["decode_flops_per_second"] > 0
    whole = _run(
        "rollout --size 0.2m --batch 8 --length 4 --threads 1 --ternary absmean --ternary-head int8 --repeats 1", capsys
    )
    assert (r["ternary_head"], whole["ternary_head"]) == ("full", "int8")
    assert main(["bench", "rollout", "--ternary-head", "int8"]) == 2
    assert "give --ternary as well" in capsys.readouterr().err
    assert main(["bench", "rollout", "--ternary", "absmeen"]) == 2
    assert "did you mean absmean?" in capsys.readouterr().err
    assert main(["bench", "rollout", "--ternary", "paretoq-4"]) == 2
