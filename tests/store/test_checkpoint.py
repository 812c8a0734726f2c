from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from triloop.errors import ConfigError, StoreError
from triloop.store import Retention, Run
from triloop.store.checkpoint import best, outdated, verify


def writer(content: bytes = b"weights") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "model.bin").write_bytes(content)
        (folder / "sub" / "optimizer.bin").write_bytes(content * 2)

    return write


@pytest.fixture
def run(run_dir: Path) -> Iterator[Run]:
    with Run.create(run_dir, {}, {}) as run:
        yield run


def folders(run: Run) -> list[str]:
    return sorted(p.name for p in (run.path / "checkpoints").iterdir())


def test_what_was_written_comes_back(run: Run) -> None:
    assert run.latest_checkpoint() is None
    assert run.best_checkpoint() is None
    made = run.commit_checkpoint(3, writer(b"abc"), gold=0.5)
    assert run.latest_checkpoint() == run.best_checkpoint() == made
    assert made.path.name == "round_000003"
    assert (made.path / "model.bin").read_bytes() == b"abc"
    verify(made)


def test_equal_files_have_equal_hashes(run: Run, tmp_path: Path) -> None:
    with Run.create(tmp_path / "other", {}, {}) as other:
        assert run.commit_checkpoint(1, writer()).sha256 == other.commit_checkpoint(1, writer()).sha256
        assert run.commit_checkpoint(2, writer()).sha256 != other.commit_checkpoint(2, writer(b"x")).sha256


def test_best_and_last_two_stay(run: Run) -> None:
    for round, gold in enumerate([0.1, 0.8, 0.3, float("nan"), None, 0.8, 0.2]):
        run.commit_checkpoint(round, writer(), gold=gold)
    assert folders(run) == ["round_000001", "round_000005", "round_000006"]
    assert [c.round for c in run.checkpoints()] == [1, 5, 6]
    top = run.best_checkpoint()
    assert top is not None
    assert top.round == 1, "the earliest of equals is nearest to the original policy"


def test_retention_is_a_choice(run: Run) -> None:
    for round in range(5):
        run.commit_checkpoint(round, writer(), gold=-round, retention=Retention(last=10))
    stored = run.checkpoints()
    assert [c.round for c in outdated(stored, Retention(last=1, best=False))] == [0, 1, 2, 3]
    assert [c.round for c in outdated(stored, Retention(last=1, best=False, first=True))] == [1, 2, 3]
    assert [c.round for c in outdated(stored, Retention(last=2))] == [1, 2]
    assert outdated([], Retention(first=True)) == []
    assert best([]) is None
    with pytest.raises(ConfigError, match="last >= 1"):
        Retention(last=0)


def test_a_round_committed_again_replaces_the_first(run: Run) -> None:
    run.commit_checkpoint(2, writer(b"one"))
    second = run.commit_checkpoint(2, writer(b"two"))
    assert folders(run) == [second.path.name] == ["round_000002-1"]
    assert run.latest_checkpoint() == second
    third = run.commit_checkpoint(2, writer(b"three"))
    assert folders(run) == [third.path.name] == ["round_000002"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "bit": ("model.bin", flip, "model.bin is corrupt: its content"),
    "cut": ("sub/optimizer.bin", truncate, "optimizer.bin is corrupt: it has 13 bytes, 14 were written"),
    "gone": ("model.bin", Path.unlink, "model.bin is missing from the checkpoint of round 2"),
    "manifest": ("manifest.json", flip, "manifest.json is corrupt"),
    "no manifest": ("manifest.json", Path.unlink, "manifest.json is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(run: Run, kind: str) -> None:
    file, spoil, message = DAMAGE[kind]
    run.commit_checkpoint(1, writer(b"earlier"), gold=0.1)
    newest = run.commit_checkpoint(2, writer(), gold=0.9)
    spoil(newest.path / file)
    assert message in run.damage()[0]
    run.close()
    with Run.open(run.path, write=True) as again:
        with pytest.warns(RuntimeWarning, match=f"{message}.*an earlier checkpoint is used"):
            found = again.latest_checkpoint()
        assert found is not None
        assert found.round == 1
        with warnings.catch_warnings():  # told once
            warnings.simplefilter("error")
            assert again.best_checkpoint() == found
        again.commit_checkpoint(2, writer())
        assert folders(again) == ["round_000001", "round_000002-1"], (
            "the damaged one went when its round was made again"
        )


def test_all_damaged_means_from_the_start(run: Run) -> None:
    flip(run.commit_checkpoint(1, writer()).path / "model.bin")
    with Run.open(run.path, write=False) as reader, pytest.warns(RuntimeWarning, match="corrupt"):
        assert reader.latest_checkpoint() is None
    assert len(run.checkpoints()) == 1, "a reader changes nothing"


def test_leftovers_of_a_dead_writer_are_swept_and_nothing_else(run: Run) -> None:
    run.commit_checkpoint(1, writer())
    for name in (".staging-000002-77", "round_000002", "notes"):
        (run.path / "checkpoints" / name).mkdir()
    run.close()
    Run.open(run.path, write=False).close()
    assert len(folders(run)) == 4, "a reader sweeps nothing"
    Run.open(run.path, write=True).close()
    assert folders(run) == ["notes", "round_000001"]


def test_a_failing_writer_leaves_the_former_checkpoint(run: Run) -> None:
    first = run.commit_checkpoint(1, writer())

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise ZeroDivisionError("the caller's own mistake")

    with pytest.raises(ZeroDivisionError):
        run.commit_checkpoint(2, fail)
    assert run.latest_checkpoint() == first
    assert folders(run) == ["round_000001"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
    ],
    ids=["os", "library"],
)
def test_a_full_disk_under_the_callers_writer(run: Run, error: Exception) -> None:
    first = run.commit_checkpoint(1, writer())

    def fail(folder: Path) -> None:
        raise error

    with pytest.raises(StoreError, match=r"the disk is full: .*free space and `triloop resume .*run`"):
        run.commit_checkpoint(2, fail)
    assert run.latest_checkpoint() == first


def test_the_manifests_name_is_taken(run: Run) -> None:
    with pytest.raises(StoreError, match=r"may not hold a file named manifest\.json"):
        run.commit_checkpoint(1, lambda folder: (folder / "manifest.json").touch())
