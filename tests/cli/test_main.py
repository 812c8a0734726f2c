"""The command line from outside: messages, exit codes, and nothing but JSON under ``--json``."""

from __future__ import annotations

import gzip
import json
import re
import resource
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from report.fake_run import make
from triloop.cli.main import main
from triloop.errors import GuardStop, Interrupted, StoreError, TriloopError
from triloop.loops.config import RunConfig

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class _Recipe:
    name: str
    summary: str
    config: Callable[[], RunConfig]
    own: Callable[[], RunConfig] | None = None


@pytest.fixture(autouse=True)
def _recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes of our own, so that these tests depend on no real one."""
    table = types.ModuleType("triloop.recipes.table")
    made = [_Recipe("demo", "learn", lambda: RunConfig(recipe="demo", rounds=5)), _Recipe("sort", "s", RunConfig)]
    made += [_Recipe("learn", "l", lambda: RunConfig(recipe="learn", rounds=5))]
    made += [_Recipe("planted", "a hole", lambda: RunConfig(recipe="planted", rounds=3))]
    vars(table)["RECIPES"] = {r.name: r for r in made}
    monkeypatch.setitem(sys.modules, "triloop.recipes.table", table)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """A loop that writes a made-up run; ``rounds`` says how it ends. Returns the configurations that it was given."""
    seen: list[RunConfig] = []
    ends: dict[int, TriloopError | Exception] = {
        3: GuardStop("stopped by canary"),
        4: Interrupted("interrupted in round 2"),
        5: StoreError("the disk is full"),
        6: ZeroDivisionError("by zero"),
    }

    def start(config: RunConfig, out: Path, progress: object) -> dict[str, Any]:
        seen.append(config)
        print("a library that prints")
        make(
            out,
            rounds=config.rounds,
            done=2 if config.rounds in (4, 5, 6) else None,
            stop=3 if config.rounds == 3 else None,
        )
        if config.rounds in ends:
            raise ends[config.rounds]
        return {"recipe": config.recipe, "run_dir": str(out), "rounds": config.rounds, "loss": float("nan")}

    module = types.ModuleType("triloop.loops.run")
    vars(module).update(start=start, resume=lambda run, progress, **how: {"resumed": str(run), **how})
    monkeypatch.setitem(sys.modules, "triloop.loops.run", module)
    return seen


def _one_json(capture: Capture) -> dict[str, Any]:
    out = capture.readouterr().out
    assert out.count("\n") == 1, f"more than one line: {out}"
    found: dict[str, Any] = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return found


WRONG = {
    "no recipe": ("run", "Choose one of demo"),
    "recipe": ("run demmo", "did you mean 'demo'"),
    "flag": ("run demo --grup-size 3", "Did you mean --group-size?"),
    "dotted flag": ("run demo --lr-floor 3", "Did you mean --optim.lr-floor?"),
    "value": ("run demo --rounds ten", "expected a whole number"),
    "no policy": ("run demo --policy=", "needs a model"),
    "bounds": ("run demo --rounds 0", "expected at least 1"),
    "no file": ("run missing.yaml", "cannot be read"),
    "no function": ("run missing.py:f", "does not exist"),
    "argument": ("run demo again", "unexpected argument 'again'"),
    "command": ("rum", "invalid choice"),
    "flag of another": ("report x --fromat", "`triloop report --help`"),
    "format": ("export x --format nonesuch", "gguf"),
    "no run": ("report {tmp}/nothing", "does not exist"),
    "no run to resume": ("resume {tmp}", "is not a run"),
    "no env": ("score {tmp}/x.jsonl", "--env"),
    "no data": ("score {tmp}/x.jsonl --env countdown", "cannot be read"),
    "unknown env": ("score {tmp}/x.jsonl --env countdwn", "did you mean 'countdown'"),
    "budget": ("compare grpo --env sort --budget 2Q", "such as 500k"),
    "no task": ("compare grpo --budget 2k", "--env countdown"),
    "method": ("compare grppo --env sort --budget 2k", "did you mean grpo"),
    "method lists": ("compare dpp grpo --env sort --budget 2k", "Algorithms: reinforce, "),
    "objective lists": ("compare dpp grpo --env sort --budget 2k", "Objectives on judgements: weighted_sft, "),
    "no policy method": ("compare reward_bt grpo --env sort --budget 2k", "answers nothing"),
    "later": ("serve", "not in this release"),
    "benchmark": ("bench nothing", "no benchmark"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_use_is_code_2_and_one_message(words: str, message: str, tmp_path: Path, capsys: Capture) -> None:
    assert main(words.format(tmp=tmp_path).split()) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.startswith("error: ")
    assert caught.err.count("\n") == 1
    assert message in caught.err


def test_wrong_use_under_json_is_an_object(capsys: Capture) -> None:
    assert main(["run", "demo", "--rounds", "0", "--json"]) == 2
    told = _one_json(capsys)
    assert told["exit_code"] == 2
    assert told["error"]["type"] == "ConfigError"
    assert "rounds" in told["error"]["message"]


def test_run_hands_on_the_settings_and_prints_one_object(loop: list[RunConfig], run_dir: Path, capsys: Capture) -> None:
    words = [
        "run",
        "learn",
        "--rounds",
        "12",
        "--lr",
        "1e-3",
        "--env",
        "sort",
        "--seed=4",
        "--out",
        str(run_dir),
        "--json",
    ]
    assert main(words) == 0
    assert _one_json(capsys) == {"recipe": "learn", "run_dir": str(run_dir), "rounds": 12, "loss": None}
    (config,) = loop
    assert (config.rounds, config.optim.lr, config.env.name, config.seed) == (12, 1e-3, "sort", 4)
    assert (run_dir / "report.html").is_file()


def test_run_for_people_ends_with_the_report(loop: list[RunConfig], run_dir: Path, capsys: Capture) -> None:
    assert main(["run", "learn", "--rounds", "12", "--out", str(run_dir)]) == 0
    assert f"report  {run_dir / 'report.html'}" in capsys.readouterr().out


def test_the_demo_has_a_second_act(loop: list[RunConfig], run_dir: Path, capsys: Capture) -> None:
    words = ["run", "demo", "--rounds", "12", "--seed", "7", "--out", str(run_dir)]
    assert main([*words, "--json"]) == 0
    planted = _one_json(capsys)["planted"]
    assert (planted["caught"], planted["round"], planted["guards"]) == (True, 3, ["canary"])
    assert (run_dir / "planted" / "report.html").is_file()
    assert [(c.recipe, c.rounds, c.seed) for c in loop] == [("demo", 12, 7), ("planted", 3, 7)]


def test_a_hack_that_is_not_caught_is_a_failure(
    loop: list[RunConfig], run_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triloop.cli.second_act.FOLLOWS", {"demo": "learn"})
    table = sys.modules["triloop.recipes.table"]
    monkeypatch.setitem(
        vars(table)["RECIPES"], "learn", _Recipe("learn", "x", lambda: RunConfig(recipe="x", rounds=12))
    )
    assert main(["run", "demo", "--rounds", "12", "--out", str(run_dir)]) == 1
    assert "was not caught" in capsys.readouterr().err


def test_a_folder_of_its_own_without_out(
    loop: list[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "learn", "--rounds", "2"]) == 0
    assert main(["run", "learn", "--rounds", "2"]) == 0
    assert len(list((tmp_path / "runs").glob("learn-*/report.html"))) == 2


@pytest.mark.parametrize(("rounds", "code", "kind"), [(3, 3, "GuardStop"), (4, 130, "Interrupted")])
def test_an_early_end_keeps_summary_and_report(
    rounds: int, code: int, kind: str, loop: list[RunConfig], run_dir: Path, capsys: Capture
) -> None:
    assert main(["run", "demo", "--rounds", str(rounds), "--out", str(run_dir), "--json"]) == code
    told = _one_json(capsys)
    assert told["error"]["type"] == kind
    assert told["exit_code"] == code
    assert told["eval_before"]["n"] == 512
    assert (run_dir / "report.html").is_file()


def test_failed_work_is_code_1(loop: list[RunConfig], run_dir: Path, capsys: Capture) -> None:
    assert main(["run", "demo", "--rounds", "5", "--out", str(run_dir)]) == 1
    assert "the disk is full" in capsys.readouterr().err


def test_a_defect_is_one_line_and_a_file(loop: list[RunConfig], run_dir: Path, capsys: Capture) -> None:
    assert main(["run", "demo", "--rounds", "6", "--out", str(run_dir), "--json"]) == 1
    (kept,) = run_dir.glob("triloop-error-*.txt")
    assert "ZeroDivisionError" in kept.read_text()
    caught = capsys.readouterr()
    assert str(kept) in caught.err
    assert "Traceback" not in caught.err
    assert json.loads(caught.out)["exit_code"] == 1


def test_a_configuration_file_and_a_function(loop: list[RunConfig], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "c.yaml").write_text("recipe: learn\nrounds: 12\noptim: {lr: 0.001}\n")
    assert main(["run", str(tmp_path / "c.yaml"), "--seed", "3", "--out", str(tmp_path / "a")]) == 0
    (tmp_path / "mine.py").write_text(
        "from triloop.loops.config import RunConfig\ndef recipe():\n    return RunConfig(recipe='mine', rounds=12)\n"
        "def wrong():\n    return 3\ndef broken():\n    return 1 / 0\n"
    )
    assert main(["run", f"{tmp_path}/mine.py:recipe", "--out", str(tmp_path / "b")]) == 0
    assert main(["run", str(tmp_path / "b"), "--out", str(tmp_path / "c")]) == 0, "a run's folder starts it again"
    assert [(c.recipe, c.rounds, c.seed, c.optim.lr) for c in loop[:2]] == [
        ("learn", 12, 3, 1e-3),
        ("mine", 12, 0, RunConfig().optim.lr),
    ]
    for name, message in {"wrong": "returned int", "broken": "ZeroDivisionError", "none": "no function"}.items():
        assert main(["run", f"{tmp_path}/mine.py:{name}"]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("rouns: 3\n")
    assert main(["run", str(tmp_path / "bad.yaml")]) == 2
    assert "rouns" in capsys.readouterr().err


def test_resume_passes_on_its_flags(loop: list[RunConfig], run_dir: Path, capsys: Capture) -> None:
    make(run_dir, done=3)
    flags = ["--rounds", "20", "--threads", "2", "--device", "cpu", "--allow-changed"]
    assert main(["resume", str(run_dir), *flags, "--json"]) == 0
    asked = {"rounds": 20, "generations": None, "threads": 2, "device": "cpu", "allow_changed": True}
    assert _one_json(capsys) == {"resumed": str(run_dir), **asked}
    assert main(["resume", str(run_dir), "--threads", "0"]) == 2
    assert "--threads is 0; expected at least 1" in capsys.readouterr().err


def test_report_and_export(run_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    make(run_dir)
    assert main(["report", str(run_dir), "--json"]) == 0
    assert _one_json(capsys)["report"] == str(run_dir / "report.html")
    target = tmp_path / "model"
    assert main(["export", str(run_dir), "--out", str(target), "--json"]) == 0
    assert _one_json(capsys)["round"] == 12
    assert (target / "config.json").is_file()
    assert main(["export", str(run_dir), "--out", str(target)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_compare_pairs_the_same_problems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    """The second method passes two more of the five problems at each seed."""
    started: list[str] = []

    def start(config: RunConfig, out: Path, progress: object) -> dict[str, Any]:
        started.append(out.name)
        assert config.token_budget == (0 if out.name.startswith("sft") else 2000)
        make(out, config=config, lucky=99 if config.algorithm.name == "dapo" else 2)
        return {}

    module = types.ModuleType("triloop.loops.run")
    vars(module).update(start=start, resume=None)
    monkeypatch.setitem(sys.modules, "triloop.loops.run", module)
    words = [
        "compare",
        "grpo",
        "dapo",
        "--env",
        "sort",
        "--budget",
        "2k",
        "--seeds",
        "0",
        "1",
        "--out",
        str(tmp_path / "c"),
    ]
    assert main([*words, "--json"]) == 0
    told = _one_json(capsys)
    first, second, *baselines = told["rows"]
    assert [(b["method"], b["baseline"]) for b in baselines] == [("sft", True), ("rejection", True)]
    assert "grpo" in Path(told["plot"]).read_text()
    assert (first["method"], first["difference"]) == ("grpo", None)
    assert (first["value"], second["value"], second["n"]) == (0.4, 0.8, 10)
    assert second["difference"]["value"] == pytest.approx(0.4)
    assert second["difference"]["n"] == 10
    runs = [f"{method}-seed{seed}" for method in ("grpo", "dapo", "rejection", "sft") for seed in (0, 1)]
    assert started == runs, "sft is last, for it gets as many labels as the others bought"
    assert main(words) == 0, "finished runs are taken as they are"
    assert len(started) == 8
    said = capsys.readouterr().out
    assert "minus grpo" in said and "sft (baseline)" in said and "labels" in said
    assert main([*words, "--lr", "0.1"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_score(tmp_path: Path, capsys: Capture) -> None:
    rows = [
        {"question": "What is 2 + 2?", "completion": "2 + 2 = 4\n#### 4", "answer": "#### 4", "is_correct": True},
        {"question": "What is 2 + 3?", "completion": "#### 6", "answer": "#### 5", "is_correct": True},
    ]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert main(["score", str(tmp_path / "rows.jsonl.gz"), "--env", "gsm8k", "--json"]) == 0
    told = _one_json(capsys)
    assert [row["value"] for row in told["rows"]] == [1, -1]
    assert told["mean"] == 0
    assert told["agreement"]["agreed"] == 1
    assert main(["score", str(tmp_path / "rows.jsonl.gz"), "--env", "gsm8k"]) == 0
    said = capsys.readouterr().out
    assert "agrees with 1 of 2" in said
    assert "labelled right" in said


@pytest.mark.parametrize("text", ["", "{\n", '{"question": "q"}\n', "[1]\n"])
def test_score_of_a_malformed_file_is_code_2(text: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    assert main(["score", str(tmp_path / "rows.jsonl"), "--env", "gsm8k", "--json"]) == 2
    assert _one_json(capsys)["error"]["type"] == "DataError"


def test_a_verifier_that_cannot_be_loaded_is_code_2(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "completion": "c", "answer": "1"}\n')
    words = ["score", str(tmp_path / "rows.jsonl"), "--env", "gsm8k", "--verifier", f"{tmp_path}/no.py:check"]
    assert main(words) == 2
    assert "no.py" in capsys.readouterr().err


NASTY = "[red]x[/nope] <script>alert(1)</script> \\x1b[31m\\x1b]0;owned\\x07 \\u202e \\ud800"
"""As it stands in a verifier's source: markup, a terminal's commands, a direction mark, half a character."""


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_verifier_says_does_not_steer_the_terminal(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """And a file of which every judgement failed says why, with exit code 1; the rows are in the JSON all the same."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "completion": "c", "answer": "1"}\n')
    (tmp_path / "my.py").write_text(f"def check(prompt, completion):\n    raise ValueError('{NASTY}')\n")
    monkeypatch.setattr("triloop.cli.screen.coloured", lambda stream: terminal)
    words = ["score", str(tmp_path / "rows.jsonl"), "--env", "jsonl", "--verifier", f"{tmp_path / 'my.py'}:check"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert "all 1 judgements of verifier:my.py:check failed; the first: ValueError: [red]x[/nope] <script>" in err
    for said in (out, err):
        bare = re.sub(r"\x1b\[[0-9;]*m", "", said) if terminal else said  # rich's own colours
        assert not {"\x1b", "\x07", "\u202e", "\ud800"} & set(bare) and "\x1b[31m\x1b" not in said
    assert main([*words, "--json"]) == 1
    told = _one_json(capsys)
    assert told["rows"][0]["value"] is None and told["mean"] is None and told["exit_code"] == 1
    assert "\ud800" in told["rows"][0]["reason"] and "\x1b" in told["rows"][0]["reason"]


@pytest.mark.parametrize("methods", [["grpo"], ["grpo", "grpo"], ["grpo", "dapo", "grpo"]])
def test_compare_needs_two_methods(methods: list[str], tmp_path: Path, capsys: Capture) -> None:
    words = ["compare", *methods, "--env", "sort", "--budget", "2k", "--out", str(tmp_path / "c")]
    assert main(words) == 2
    assert "at least two methods, each named once" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_an_endless_evaluation_is_refused(capsys: Capture) -> None:
    assert main(["eval", "base:arithmetic", "--env", "arithmetic", "--n", "999999999999999999999"]) == 2
    assert "expected 1 to 1,000,000 problems" in capsys.readouterr().err


def test_an_emptied_log_is_called_empty(run_dir: Path, capsys: Capture) -> None:
    make(run_dir)
    for file in run_dir.glob("run.db*"):
        file.unlink()
    (run_dir / "run.db").touch()
    for words in (["report"], ["resume"], ["eval", "--n", "4"], ["export"]):
        assert main([words[0], str(run_dir), *words[1:]]) == 2
        assert "run.db is empty: nothing of a run is in it; restore it" in capsys.readouterr().err


def test_help_names_every_command_and_every_setting(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in (
        "run",
        "resume",
        "eval",
        "score",
        "report",
        "compare",
        "export",
        "import",
        "atlas",
        "bench",
        "doctor",
        "serve",
    ):
        assert f"\n    {command} " in text
    assert main([]) == 0
    capsys.readouterr()
    assert main(["run", "demo", "--help"]) == 0
    assert "--rounds a whole number  [5]" in capsys.readouterr().out


def test_doctor(capsys: Capture) -> None:
    assert main(["doctor", "--json"]) == 0
    told = _one_json(capsys)
    assert told["ok"] is True
    assert {
        "python",
        "torch",
        "threads",
        "cpu_capability",
        "memory_gib",
        "disk_free_gib",
        "sqlite",
        "extras",
    } <= told.keys()


def test_help_is_quick() -> None:
    """Under 0.3 s of processor time: what the clock says depends on who else is at work."""
    best = min(_processor_seconds(["--help"]) for _ in range(3))
    assert best < 0.3, f"{best:.2f} s"


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m triloop run --help 2>&1 >&3 3>&- | cat"
    done = subprocess.run(
        ["bash", "-c", f"{{ {command}; }} 3> >(head -1 > /dev/null)"], capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stdout + done.stderr


def _processor_seconds(words: list[str]) -> float:
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "triloop", *words], check=True, capture_output=True, timeout=60)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
