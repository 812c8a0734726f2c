from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triloop.errors import ConfigError, RunFolderError, StoreError, TriloopError
from triloop.store import Run, environment_differences, folder

CONFIG = {
    "recipe": "demo",
    "lr": 1e-05,
    "rounds": 8,
    "text": "é: 'x'\n# no",
    "layers": (1, 2),
    "stop": [],
    "none": None,
}


def test_config_and_environment_come_back(run_dir: Path) -> None:
    Run.create(run_dir, {**CONFIG, "path": Path("a/b")}, {"threads": 2, "torch": "2.13.0"}).close()
    with Run.open(run_dir, write=False) as run:
        assert run.config == {**CONFIG, "layers": [1, 2], "path": "a/b"}
        assert run.environment == {"threads": 2, "torch": "2.13.0"}
        assert run.config_edits() == []
    (run_dir / "config.yaml").write_text((run_dir / "config.yaml").read_text().replace("rounds: 8", "rounds: 9"))
    with Run.open(run_dir, write=False) as run:
        assert run.config["rounds"] == 9
        assert run.config_edits() == ["rounds was 8 and is now 9"]


def test_what_a_file_cannot_hold_is_named(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.model\.layers\[1\] is a object"):
        Run.create(run_dir, {"model": {"layers": [1, object()]}}, {})
    assert not run_dir.exists()


def test_environment_differences_are_sentences() -> None:
    old, new = {"threads": 2, "torch": "2.13.0", "cpu": "x"}, {"threads": 1, "torch": "2.13.0", "gpu": "y"}
    assert environment_differences(old, old) == []
    assert environment_differences(old, new) == [
        "cpu was x and is now not recorded",
        "gpu was not recorded and is now y",
        "threads was 2 and is now 1",
    ]


def _file(path: Path) -> None:
    path.write_text("x")


def _other(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("mine")


def _own_config(path: Path) -> None:
    path.mkdir()
    (path / "config.yaml").write_text("mine: 1")


def _finished(path: Path) -> None:
    Run.create(path, {}, {}).close()


def _foreign_database(path: Path) -> None:
    path.mkdir()
    connection = sqlite3.connect(path / "run.db")
    connection.execute("CREATE TABLE t (x)")
    connection.close()


CREATE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file": (_file, "is a file; choose a folder"),
    "someone's folder": (_other, r"is not empty \(it holds thesis.tex\); choose an empty or new folder with --out"),
    "someone's config": (_own_config, r"is not empty \(it holds config.yaml\)"),
    "a run": (_finished, "holds a run; continue it with `triloop resume .*run`"),
    "under a file": (lambda path: _file(path.parent / "f"), "cannot make the folder"),
}


@pytest.mark.parametrize("case", CREATE)
def test_a_folder_that_is_taken_is_refused_and_left_alone(tmp_path: Path, case: str) -> None:
    prepare, message = CREATE[case]
    path = tmp_path / "run"
    prepare(path)
    target = tmp_path / "f" / "run" if case == "under a file" else path
    before = sorted((p, p.stat().st_size) for p in tmp_path.rglob("*") if p.is_file())
    with pytest.raises(RunFolderError, match=message):
        Run.create(target, {}, {})
    assert sorted((p, p.stat().st_size) for p in tmp_path.rglob("*") if p.is_file()) == before


def test_a_folder_without_permission(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir.mkdir()
    monkeypatch.setattr(folder.os, "access", lambda *_: False)  # tests may run as root, whom no mode keeps out
    with pytest.raises(RunFolderError, match="cannot be written; choose another folder"):
        Run.create(run_dir, {}, {})


def test_an_empty_folder_will_do(run_dir: Path) -> None:
    run_dir.mkdir()
    Run.create(run_dir, {}, {}).close()


@pytest.mark.parametrize(
    "left", [["run.lock"], ["run.lock", ".config.yaml.tmp"], ["run.lock", "config.yaml", "run.db"]]
)
def test_a_creation_cut_short_is_recognised_and_done_again(run_dir: Path, left: list[str]) -> None:
    run_dir.mkdir()
    for name in left:
        (run_dir / name).touch()
    with pytest.raises(RunFolderError, match=r"cut short while it was made.*start the run again"):
        Run.open(run_dir, write=True)
    with Run.create(run_dir, {"a": 1}, {}) as run:
        assert run.config == {"a": 1}


def _newer(path: Path) -> None:
    _finished(path)
    connection = sqlite3.connect(path / "run.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def _truncated(path: Path) -> None:
    with Run.create(path, {}, {}) as run:
        run.commit_checkpoint(1, lambda _: None)
    (path / "run.db").write_bytes((path / "run.db").read_bytes()[:4096])


def _garbage(path: Path) -> None:
    _finished(path)
    (path / "run.db").write_bytes(b"garbage " * 100)


def _config(content: str) -> Callable[[Path], None]:
    def prepare(path: Path) -> None:
        _finished(path)
        (path / "config.yaml").write_text(content)

    return prepare


def _no_config(path: Path) -> None:
    _finished(path)
    (path / "config.yaml").unlink()


OPEN: dict[str, tuple[Callable[[Path], Any], type[TriloopError], str]] = {
    "absent": (lambda path: None, RunFolderError, "does not exist; give the folder of a run"),
    "a file": (_file, RunFolderError, "is a file; give the folder"),
    "someone's folder": (_other, RunFolderError, "is not a run: it has no run.db"),
    "empty": (Path.mkdir, RunFolderError, "is not a run"),
    "foreign database": (_foreign_database, RunFolderError, "not the log of a Triloop run"),
    "newer schema": (_newer, RunFolderError, "written by a newer Triloop.*schema is 99.*update Triloop"),
    "truncated": (_truncated, StoreError, "run.db: .*damaged.*copy the folder"),
    "garbage": (_garbage, StoreError, "not a database.*sqlite3 .*recover"),
    "no config": (_no_config, RunFolderError, "config.yaml is missing; restore it"),
    "broken config": (_config("a: [1"), ConfigError, "config.yaml is not valid YAML: .*line 1"),
    "odd config": (_config("- 1"), ConfigError, "holds list, expected a mapping"),
}


@pytest.mark.parametrize("write", [True, False], ids=["write", "read"])
@pytest.mark.parametrize("case", OPEN)
def test_what_is_not_a_run_is_refused(run_dir: Path, case: str, write: bool) -> None:
    prepare, error, message = OPEN[case]
    prepare(run_dir)
    with pytest.raises(error, match=message):
        Run.open(run_dir, write=write)
    if case not in ("absent", "a file") and (run_dir / "run.lock").exists():
        folder.RunLock.acquire(run_dir / "run.lock").release()


def test_a_network_filesystem_is_warned_of(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_filesystem", lambda path: "nfs4")
    with pytest.warns(RuntimeWarning, match=r"network filesystem \(nfs4\)"):
        Run.create(run_dir, {}, {}).close()


def test_the_filesystem_of_a_path_is_known() -> None:
    assert folder._filesystem(Path("/proc")) in ("proc", "")


def test_a_finished_run_in_a_folder_that_cannot_be_written_is_readable(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triloop.store import database

    Run.create(run_dir, {"a": 1}, {}).close()
    connect = database._connect

    def refuse(path: Path, mode: str) -> sqlite3.Connection:
        if mode == "ro" and "immutable" not in mode:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(path, mode)

    monkeypatch.setattr(database, "_connect", refuse)
    monkeypatch.setattr(database.os, "access", lambda *_: False)
    with Run.open(run_dir, write=False) as run:
        assert run.config == {"a": 1}
