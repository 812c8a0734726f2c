"""Hooks over gloo with two processes: the simulator's numbers to the last bit, also after a resume; a killed worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import comms_worker as worker
from triloop.comms.compressors import TopK
from triloop.comms.group import Group
from triloop.comms.hooks import Link
from triloop.comms.schemes import EF21, TernGrad
from triloop.comms.simulate import Fleet, train
from triloop.errors import ConfigError, WorkError

PROGRAM = Path(worker.__file__)
TRAINED = [name for name in worker.SCHEMES if not name.startswith("fedvote")]


def _start(task: str, rank: int, meeting: str, folder: Path, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), task, str(rank), "2", meeting, str(folder)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two real processes say of every scheme."""
    folder = tmp_path_factory.mktemp("workers")
    processes = [_start("agree", rank, f"file://{folder}/meeting", folder) for rank in range(2)]
    try:
        for process in processes:
            _, err = process.communicate(timeout=240)
            assert process.returncode == 0, err
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", worker.SCHEMES)
def test_workers_agree_with_each_other_and_with_the_simulator(found: list[dict[str, Any]], name: str) -> None:
    fleet = Fleet(scheme=worker.SCHEMES[name], workers=2, seed=5)
    for step in range(3):
        both = [worker.vectors(rank, step) for rank in range(2)]
        expected = fleet.exchange({key: torch.stack([b[key] for b in both]) for key in both[0]})
        for said in (f[name]["said"][step] for f in found):
            for key, x in expected.items():
                assert torch.equal(said[key], x), f"{name}, step {step}, {key}"
    assert [f[name]["said_bits"] for f in found] == [fleet.bits] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_ddp_trains_as_the_simulator_does(found: list[dict[str, Any]], name: str) -> None:
    model = worker.net()
    fleet = Fleet(scheme=worker.SCHEMES[name], workers=2, seed=5)

    def loss(model: torch.nn.Module, rank: int, step: int) -> torch.Tensor:
        x, y = worker.batch(rank, step)
        return (model(x) - y).square().mean()

    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(model, loss, fleet, optimiser, worker.STEPS)
    for weights in (f[name]["weights"] for f in found):
        for key, p in model.named_parameters():
            assert torch.equal(weights[key], p.detach()), f"{name}: {key}"
    assert [f[name]["bits"] for f in found] == [fleet.bits] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_resumed_run_has_the_same_bits(found: list[dict[str, Any]], name: str) -> None:
    """Rebuilt half way, where DDP begins again with other buckets."""
    for f in found:
        assert f[name]["resumed_bits"] == f[name]["bits"]
        for key, x in f[name]["weights"].items():
            assert torch.equal(f[name]["resumed"][key], x), f"{name}: {key}"


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, 0])
def test_a_killed_worker_ends_the_other_with_its_name(tmp_path: Path, lost: int) -> None:
    """By torchrun's variables, where the store dies with rank 0, and by a file."""
    if lost == 0:
        port = _free_port()
        env = [{"RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for r in range(2)]
        processes = [_start("train", r, "env://", tmp_path, **env[r]) for r in range(2)]
    else:
        processes = [_start("train", r, f"file://{tmp_path}/meeting", tmp_path) for r in range(2)]
    left = processes[1 - lost]
    try:
        assert left.stdout is not None
        assert any("step 3" in line for line in left.stdout), "it never came to step 3"
        processes[lost].kill()
        began = time.monotonic()
        _, err = left.communicate(timeout=60)
        took = time.monotonic() - began
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert left.returncode == 1
    said = next(line for line in err.splitlines() if "WorkError: worker" in line)
    assert f"worker {1 - lost} of 2 failed" in said and f"rank {lost} does not answer" in said
    assert "start all workers again" in said and "time-out 3 s" in said
    assert took < 30, "three time-outs and the end of an interpreter"


def _free_port() -> str:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


# ------------------------------------------------------------------ without processes

ALONE = Group(rank=0, size=1, timeout=1.0)


def test_survivors_of_three_name_the_same_worker() -> None:
    """Ranks 0 and 2 see their transport fail at different times; 1 never says a word."""
    import threading

    store = torch.distributed.HashStore()
    said: dict[int, str] = {}

    def survive(rank: int, late: float) -> None:
        time.sleep(late)
        group = Group(rank=rank, size=3, timeout=0.2, store=store)
        try:
            with group.guarded("a test"):
                raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
        except WorkError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=survive, args=(0, 0.0)), threading.Thread(target=survive, args=(2, 1.0))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(said) == [0, 2]
    for rank, text in said.items():
        assert f"worker {rank} of 3 failed while a test: rank 1 does not answer" in text


def test_one_that_wakes_up_too_late_is_told() -> None:
    store = torch.distributed.HashStore()
    store.set("triloop-comms/verdict", "1")
    with pytest.raises(WorkError, match="this worker was too late"):
        with Group(rank=1, size=2, timeout=0.2, store=store).guarded("a test"):
            raise RuntimeError("gloo: Timed out")


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"), ALONE.guarded("a test"):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(WorkError, match="cannot be told"), ALONE.guarded("a test"):
        raise RuntimeError("gloo: Connection closed by peer")


def test_no_group_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from triloop.comms.group import join

    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="torchrun"):
        join()
    with pytest.raises(ConfigError, match="above 0"):
        join(timeout=0)
    with pytest.raises(ConfigError, match="join first"):
        Group.current(3.0)


def test_state_of_another_scheme_is_refused() -> None:
    link = Link(scheme=TernGrad(), group=ALONE, seed=1)
    link.exchange({"w": torch.ones(3)})
    state = link.state_dict()
    with pytest.raises(ConfigError, match=r"of scheme 'TernGrad.*same scheme, seed"):
        Link(scheme=EF21(compressor=TopK(share=0.1)), group=ALONE, seed=1).load_state_dict(state)
    with pytest.raises(ConfigError, match="seed 1"):
        Link(scheme=TernGrad(), group=ALONE, seed=2).load_state_dict(state)


def test_saved_state_is_a_copy() -> None:
    link = Link(scheme=EF21(compressor=TopK(share=0.5)), group=ALONE)
    link.exchange({"w": torch.tensor([3.0, 2.0])})
    state = link.state_dict()
    link.exchange({"w": torch.tensor([3.0, 2.0])})
    assert state["own"]["w"]["known"].tolist() == [[3.0, 0.0]] and state["steps"] == {"w": 1}


def test_a_number_that_is_not_finite_is_not_sent() -> None:
    link = Link(scheme=TernGrad(), group=ALONE)
    link.exchange({"w": torch.ones(2)})
    with pytest.raises(WorkError, match="worker 0, step 1: w has a number that is not finite"):
        link.exchange({"w": torch.tensor([1.0, float("nan")])})
    assert link.bits == 8 + 32


@pytest.mark.slow
def test_the_documented_script_runs_under_torchrun(tmp_path: Path) -> None:
    text = (PROGRAM.parents[1] / "docs" / "comms.md").read_text(encoding="utf-8")
    script = tmp_path / "train.py"
    script.write_text(text.split("```python\n")[1].split("```")[0])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", _free_port()]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"rank (\d): loss ([\d.]+)", done.stdout)  # the two may share a line: they write to one pipe
    assert sorted(rank for rank, _ in said) == ["0", "1"], done.stdout
    assert max(float(loss) for _, loss in said) < 1.5, "a constant is off by 3.5"
