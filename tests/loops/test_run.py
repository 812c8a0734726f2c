"""Starting, resuming and ending: what each does to the folder, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from loops import tiny
from triloop.errors import (
    ConfigError,
    GuardStop,
    Interrupted,
    JudgeError,
    ModelError,
    RunFolderError,
    VerifierError,
)
from triloop.guards.stack import GuardConfig
from triloop.loops.progress import Silent
from triloop.loops.run import evaluate_policy, resume, start
from triloop.loops.signals import interruptible
from triloop.loops.summary import summarise
from triloop.nn.hf_io import load_pretrained, save_pretrained
from triloop.records import Verdict
from triloop.store import Run

Finished = tuple[Path, dict[str, Any]]
Copy = Callable[[], Path]


class After(Silent):
    """Does something once a round is committed."""

    def __init__(self, round: int, act: Callable[[], None]) -> None:
        self._round, self._act = round, act

    def round(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict]) -> None:
        if metrics["round"] == self._round:
            self._act()


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def summary_of(folder: Path) -> dict[str, Any]:
    with Run.open(folder, write=False) as run:
        return summarise(run)


def test_a_summary_is_complete_and_json(finished: Finished) -> None:
    out, summary = finished
    assert json.loads(json.dumps(summary)) == summary == summary_of(out)
    assert summary["rounds"] == 6 and summary["tokens_generated"] > 0
    assert {"metric", "value", "ci95", "n"} <= summary["eval_before"].keys() & summary["eval_after"].keys()
    assert summary["eval_after"]["n"] == 12 and len(summary["weights_sha256"]) == 64


def test_two_runs_of_one_configuration_are_one(finished: Finished, base: Path, tmp_path: Path) -> None:
    again = start(tiny.config(base), tmp_path / "run")
    same = ("weights_sha256", "store_digest", "eval_after", "metrics_last")
    assert {k: again[k] for k in same} == {k: finished[1][k] for k in same}
    other = start(tiny.config(base, seed=1, rounds=1), tmp_path / "other")
    assert other["store_digest"] != again["store_digest"]


def test_resuming_a_finished_run_changes_nothing(finished: Finished, copied: Copy) -> None:
    folder = copied()
    with Run.open(folder, write=False) as run:
        rows = run.log.count(), run.log.count(state="orphaned")
    assert {**resume(folder), "run_dir": ""} == {**finished[1], "run_dir": ""}
    with Run.open(folder, write=False) as run:
        assert (run.log.count(), run.log.count(state="orphaned")) == rows, "not even a note that it was asked"


def test_more_rounds_are_remembered(base: Path, copied: Copy, tmp_path: Path) -> None:
    """What was asked for stands in config.yaml, and ends with the weights of a run that was that long from the start."""
    folder = copied()
    straight = resume(folder, rounds=8)
    assert straight["rounds"] == 8 and straight["eval_after"] is not None
    assert yaml.safe_load((folder / "config.yaml").read_text())["rounds"] == 8
    whole = start(tiny.config(base, rounds=8), tmp_path / "whole")
    assert straight["weights_sha256"] == whole["weights_sha256"]


def test_an_interrupted_extension_has_no_result_yet(copied: Copy) -> None:
    folder = copied()
    with pytest.raises(Interrupted, match="goes on from round 7"):
        resume(folder, After(7, lambda: os.kill(os.getpid(), signal.SIGINT)), rounds=8)
    middle = summary_of(folder)
    assert (middle["rounds"], middle["eval_after"], middle["weights_sha256"]) == (7, None, None)
    assert resume(folder)["rounds"] == 8
    with pytest.raises(ConfigError, match="ask for at least 8"):
        resume(folder, rounds=7)


def test_fewer_rounds_leave_later_ones_behind(base: Path, tmp_path: Path) -> None:
    """Killed in round 6 and now to end at 5: what was played after 5 is no part of the run."""
    whole = start(tiny.config(base, rounds=5), tmp_path / "whole")
    out = tmp_path / "run"

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(tiny.config(base, rounds=8, checkpoint_every=4), out, After(6, die))
    edit(out, rounds=5)
    summary = resume(out)
    same = ("weights_sha256", "store_digest", "rounds", "tokens_generated")
    # The mid check of round 3 is due in both, the last round's canary as well.
    assert {k: summary[k] for k in same} == {k: whole[k] for k in same}


def test_other_conditions_are_refused(copied: Copy) -> None:
    folder = copied()
    edit(folder, threads=2)
    with pytest.raises(RunFolderError, match=r"threads was 1 and is now 2.*--threads 1.*--allow-changed") as caught:
        resume(folder)
    assert caught.value.exit_code == 2
    edit(folder, threads=1, group_size=3)
    with pytest.raises(RunFolderError, match="group_size was 4 and is now 3"):
        resume(folder, rounds=7)
    with pytest.warns(UserWarning, match="resuming although group_size"):
        assert resume(folder, rounds=7, allow_changed=True)["rounds"] == 7
    torch.set_num_threads(1)


def test_other_threads_may_be_asked_for(copied: Copy) -> None:
    """The flag is consent to give up bit-exactness, and to nothing else; the log says from which round on."""
    folder = copied()
    with pytest.warns(UserWarning, match="threads was 1 and is now 2: from round 7 on this run is not bit-identical"):
        resume(folder, rounds=7, threads=2)
    with Run.open(folder, write=False) as run:
        (told,) = [r for r in run.rows(kind="event") if r.payload["name"] == "resumed"]
        assert told.round == 6 and told.payload["changed"] == "threads was 1 and is now 2"
        assert "from round 7 on" in told.payload["inexact"] and run.config["threads"] == 2
    with pytest.raises(RunFolderError, match="threads was 1"):
        resume(folder, rounds=8)
    edit(folder, group_size=3)
    with pytest.raises(RunFolderError, match="conditions: group_size was 4 and is now 3. Resume"):
        resume(folder, rounds=8, threads=2)
    torch.set_num_threads(1)


def test_another_policy_is_refused(copied: Copy, base: Path, tmp_path: Path) -> None:
    """KL and perplexity are measured from the policy of the start: it must still be that one."""
    moved = Path(shutil.copytree(base, tmp_path / "base"))
    out = tmp_path / "run"
    start(tiny.config(moved, rounds=1), out)
    decoder, tokenizer = load_pretrained(moved)
    with torch.no_grad():
        decoder.norm.weight.add_(0.5)
    save_pretrained(moved, decoder, tokenizer)
    with pytest.raises(RunFolderError, match="policy_sha256 was"):
        resume(out, rounds=2)


def test_a_folder_in_use_is_refused(copied: Copy, base: Path) -> None:
    folder = copied()
    with Run.open(folder, write=True), pytest.raises(RunFolderError, match="in use by process") as caught:
        resume(folder, rounds=9)
    assert caught.value.exit_code == 2
    with pytest.raises(RunFolderError, match="holds a run"):
        start(tiny.config(base), folder)
    (other := folder.parent / "mine").mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty"):
        start(tiny.config(base), other)


def test_what_is_wrong_leaves_no_folder_behind(base: Path, tmp_path: Path) -> None:
    for config, error in (
        (tiny.config(tmp_path / "nowhere"), ModelError),
        (tiny.config(base, policy="base:nothing"), ModelError),
        (tiny.config(base, verifier="nothing.py:check"), VerifierError),
    ):
        with pytest.raises(error):
            start(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


BROKEN = {
    "raises": "raise RuntimeError('no')",
    "nan": "return float('nan')",
    "hangs": "import time; time.sleep(60)",
    "lenient": "return 1",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_verifier_starts_nothing(kind: str, base: Path, tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(f"def check(prompt, completion):\n    {BROKEN[kind]}\n")
    config = tiny.config(base, verifier=f"{tmp_path / 'my.py'}:check", verifier_timeout=0.5)
    with pytest.raises(VerifierError) as caught:
        start(config, tmp_path / "run")
    assert caught.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_a_verifier_that_breaks_on_the_way_loses_nothing(base: Path, tmp_path: Path) -> None:
    """Most judgements of round 4 fail: exit 1, three rounds are safe, and a mended judge ends as if nothing had been."""
    (tmp_path / "my.py").write_text(
        "import pathlib\n"
        "def check(prompt, completion):\n"
        "    if pathlib.Path(__file__).with_name('broken').exists(): raise OSError('out of order')\n"
        "    return 0 if completion == '?' else 1 if completion == ''.join(sorted(prompt[2:-1])) else -1\n"
    )
    config = tiny.config(base, verifier=f"{tmp_path / 'my.py'}:check")
    whole = start(config, tmp_path / "whole")
    broken = tmp_path / "broken"
    with pytest.raises(JudgeError, match=r"16 of 16 judgements .* failed.*out of order") as caught:
        start(config, tmp_path / "run", After(3, lambda: broken.write_text("")))
    assert caught.value.exit_code == 1
    with Run.open(tmp_path / "run", write=False) as run:
        assert run.rounds() == [1, 2, 3] and run.checkpoints()[-1].round == 3
    broken.unlink()
    summary = resume(tmp_path / "run")
    same = ("weights_sha256", "store_digest", "eval_after")
    assert {k: summary[k] for k in same} == {k: whole[k] for k in same}
    assert summary["metrics_last"]["canary_proxy"] == summary["metrics_last"]["canary_gold"]


def test_a_guards_stop_is_measured_and_stays(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with (
        tiny.alarms(since=3),
        pytest.raises(GuardStop, match="stopped in round 3 by alarm: alarm: as planned") as caught,
    ):
        start(tiny.config(base), out)
    assert caught.value.exit_code == 3
    summary = summary_of(out)
    assert summary["eval_after"]["n"] == 12 and summary["weights_sha256"]
    assert [(g["round"], g["action"]) for g in summary["guards"] if g["verdict"] < 0] == [(3, "stop")]
    with pytest.raises(GuardStop, match="stopped in round 3"):
        resume(out, rounds=9)
    assert summary_of(out)["rounds"] == 3
    values = yaml.safe_load((out / "config.yaml").read_text())
    edit(out, guards={**values["guards"], "off": ["canary"]})
    with pytest.raises(RunFolderError, match="guards was"):
        resume(out)
    with pytest.warns(UserWarning, match="guards was"):
        assert resume(out, rounds=4, allow_changed=True)["rounds"] == 4


def test_a_rollback_puts_the_weights_back(base: Path, tmp_path: Path) -> None:
    """Weights and step count are those of the checkpoint; the rounds stay, and the given-up canary is nobody's score."""
    out, seen = tmp_path / "run", []

    def look() -> None:
        with Run.open(out, write=False) as run:
            kept = {c.round: c for c in run.checkpoints()}
            weights = {r: (c.path / "policy" / "model.safetensors").read_bytes() for r, c in kept.items()}
            seen.append((weights, {r: c.gold for r, c in kept.items()}, run.rounds()))

    guards = GuardConfig(hard_action="roll_back", max_rollbacks=9)
    with tiny.alarms(since=4):
        start(tiny.config(base, guards=guards, rounds=5, checkpoint_every=2), out, After(5, look))
    ((weights, gold, rounds),) = seen
    assert weights[4] == weights[2] and gold[2] is not None and gold[4] is None
    assert rounds == [1, 2, 3, 4, 5]
    with Run.open(out, write=False) as run:
        undone = [e.payload for e in run.rows("event") if e.payload["name"] == "rolled back"]
        assert [u["to_round"] for u in undone] == [2, 2] and "as planned" in undone[0]["reason"]
        versions = [{c.policy_version for c in run.completions(r)} for r in rounds]
    assert versions == [{0}, {1}, {2}, {3}, {2}]


def test_a_second_signal_does_not_wait() -> None:
    with interruptible() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_evaluating_a_directory(finished: Finished, base: Path) -> None:
    result = evaluate_policy(tiny.config(base), 12)
    assert result["value"] == finished[1]["eval_before"]["value"] and result["n"] == 12
