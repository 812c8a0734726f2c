"""The device of a run: asked for, recorded, compared; on a GPU a killed run ends as one that was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loops import tiny
from triloop.cli.main import main
from triloop.errors import ConfigError, RunFolderError, UsageError
from triloop.loops import build
from triloop.loops.config import EnvConfig, RunConfig
from triloop.loops.run import evaluate_policy, resume, start
from triloop.store import Run

Copy = Callable[[], Path]
Capture = pytest.CaptureFixture[str]
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_processor_unless_asked(base: Path) -> None:
    assert RunConfig().device == "cpu"
    with build.parts(tiny.config(base)) as made:
        assert made.policy.device.type == made.reference.device.type == made.machine["device"] == "cpu"


@pytest.mark.usefixtures("no_gpu")
def test_auto_needs_no_gpu(base: Path) -> None:
    with build.parts(tiny.config(base, device="auto", precision="fp32")) as made:
        assert made.machine["device"] == "cpu"


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_there_leaves_everything_as_it_was(base: Path, run_dir: Path, copied: Copy) -> None:
    config = tiny.config(base, device="cuda")
    with pytest.raises(UsageError, match="no GPU here; use --device cpu"):
        start(config, run_dir)
    assert not run_dir.exists()
    with pytest.raises(UsageError, match="no GPU here"):
        evaluate_policy(config, 4)
    folder = copied()
    before = (folder / "config.yaml").read_text()
    with pytest.raises(UsageError, match="no GPU here"):
        resume(folder, rounds=8, device="cuda")
    assert (folder / "config.yaml").read_text() == before


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    "words",
    ["run arithmetic --device cuda --out {run}", "eval base:arithmetic --env arithmetic --n 4 --device cuda"],
)
def test_a_gpu_that_is_not_there_is_code_2(words: str, run_dir: Path, capsys: Capture) -> None:
    assert main(words.format(run=run_dir).split()) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err
    assert not run_dir.exists()


def test_only_devices_there_are_can_be_named(copied: Copy, capsys: Capture) -> None:
    assert main(["resume", str(copied()), "--device", "tpu"]) == 2
    assert main(["run", "arithmetic", "--device", "tpu"]) == 2
    assert "tpu" in capsys.readouterr().err


def test_another_device_is_another_condition(copied: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused like other threads are, unless the flag asks for it."""
    folder = copied()
    monkeypatch.setattr(build, "describe_device", lambda device: "cuda (Some GPU, CUDA 12.8)")
    with pytest.raises(RunFolderError, match=r"device was cpu and is now cuda \(Some GPU, CUDA 12.8\)"):
        resume(folder, rounds=7)
    with pytest.warns(UserWarning, match="device was cpu.*from round 7 on this run is not bit-identical"):
        assert resume(folder, rounds=7, device="cpu")["rounds"] == 7
    with Run.open(folder, write=False) as run:
        assert run.config["device"] == "cpu"


def test_a_run_from_before_there_was_a_choice(copied: Copy) -> None:
    """Its configuration names no device; it goes on on the processor, and may be asked to by name."""
    import yaml

    folder = copied()
    path = folder / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    del settings["device"]
    path.write_text(yaml.safe_dump(settings))
    assert resume(folder, rounds=7)["rounds"] == 7
    assert resume(folder, rounds=8, device="cpu")["rounds"] == 8


def test_eval_computes_where_it_is_told(copied: Copy, capsys: Capture) -> None:
    assert main(["eval", str(copied()), "--n", "4", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 4
    with pytest.raises(ConfigError):
        build.load_policy(RunConfig(device="tpu", env=EnvConfig(name="sort")))  # type: ignore[arg-type]


@on_a_gpu
@pytest.mark.parametrize("pipeline", [False, True], ids=["", "pipeline"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_a_gpu_goes_on_bit_exactly(base: Path, tmp_path: Path, precision: str, pipeline: bool) -> None:
    settings = {"device": "cuda", "precision": precision, "pipeline": pipeline}
    whole = start(tiny.config(base, **settings), tmp_path / "whole")
    start(tiny.config(base, rounds=3, **settings), tmp_path / "parts")
    parts = resume(tmp_path / "parts", rounds=6)
    assert parts["weights_sha256"] == whole["weights_sha256"]
    with Run.open(tmp_path / "whole", write=False) as run:
        assert run.environment["device"].startswith("cuda (")
