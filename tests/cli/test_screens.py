"""What a run looks like while it goes: plain lines, and the live screen drawn into a file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from report.fake_run import ENVIRONMENT, make
from triloop.cli.figures import Alarms, clock, figures, size
from triloop.cli.live import Live, braille, sparkline
from triloop.cli.plain import Plain
from triloop.loops.config import RunConfig
from triloop.loops.progress import Progress
from triloop.loops.stages import STAGES, Stage
from triloop.records import Verdict

FACTS = {"parameters": 1_070_000, "threads": 2, "precision": "float32", "resumed_from": None}


def _play(progress: Progress, folder: Path) -> None:
    progress.started(RunConfig(recipe="demo", rounds=40), folder, FACTS)
    progress.stage("preflight")
    progress.evaluated("before", {"metric": "pass@1", "value": 0.33, "ci95": [0.29, 0.37], "n": 512})
    for round in range(1, 41):
        verdicts = [Verdict(guard="kl", round=round, value=0 if round < 3 else 1, reason="fine")]
        if round in (8, 9):
            told = "the [bold]reward[/bold] is gamed"
            samples = ("8/8-0/0", "8/8-0/1")
            verdicts.append(Verdict(guard="canary", round=round, value=-1, reason=told, action="warn", samples=samples))
        metrics = {"round": round, "rounds": 40, "reward": round / 40, "kl": 0.01, "entropy": 0.5, "seconds": 0.1}
        progress.round({**metrics, "tokens_per_second": 9000.0}, verdicts)
    progress.evaluated("after", {"metric": "pass@1", "value": 0.9, "ci95": [0.87, 0.92], "n": 512})
    progress.finished({})


def test_plain_lines(run_dir: Path) -> None:
    make(run_dir, stop=8)
    lines: list[str] = []
    _play(Plain(lines.append), run_dir)
    assert 20 <= sum(line.startswith("round") for line in lines) <= 24
    assert sum(line.startswith("ALARM") for line in lines) == 1, "an alarm that goes on is told once"
    assert any("before" in line and "0.330 [0.290, 0.370]" in line for line in lines)
    assert "1.07M parameters" in lines[0]
    assert any("script" in line for line in lines) is False
    assert any("8*3" in line for line in lines), "the samples behind the alarm"
    assert any("left" in line for line in lines)


def test_live_screen(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    make(run_dir, stop=8)
    stream = io.StringIO()
    live = Live(stream)
    _play(live, run_dir)
    live.close()
    shown = stream.getvalue()
    assert "the [bold]reward[/bold] is gamed" in shown, "text of a run is never markup"
    assert "8*3" in shown
    for word in ("round 40/40", "held-out", "90.0 %  [87, 92]", "guards", "kl", "canary", "tokens/s"):
        assert word in shown, word


def test_a_reason_does_not_steer_the_terminal(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    live = Live(stream)
    alarm = Verdict(guard="canary", round=1, value=-1, reason="\x1b]0;owned\x07 [red]x[/nope]", action="stop")
    live.started(RunConfig(), run_dir, FACTS)
    live.round({"round": 1.0, "reward": 0.0}, [alarm])
    live.close()
    assert "[red]x[/nope]" in stream.getvalue()
    assert "\x1b]0;" not in stream.getvalue() and "\x07" not in stream.getvalue()


def test_alarms_that_go_on_are_told_once_and_a_stop_always() -> None:
    alarms = Alarms()

    def verdict(value: int, action: str = "warn") -> list[Verdict]:
        return [Verdict(guard="kl", round=1, value=value, reason="", action=action)]  # type: ignore[arg-type]

    told = [
        len(alarms.fresh(v))
        for v in (verdict(-1), verdict(-1), [], verdict(-1), verdict(-1, "stop"), verdict(1), verdict(-1))
    ]
    assert told == [1, 0, 0, 0, 1, 0, 1]


def _dots(lines: list[str]) -> Iterator[int]:
    return (bin(ord(c) - 0x2800).count("1") for line in lines for c in line)


def test_braille_curve() -> None:
    lines = braille([0.0, 1.0], 1, 1)
    assert lines == [chr(0x2800 + 0x40 + 0x08 + 0x10 + 0x20 + 0x80)], "from the lowest dot up to the highest"
    half = braille([0.0] * 5, 4, 2, total=10)
    assert [len(line) for line in half] == [4, 4]
    assert sum(_dots(half)) == 4, "half of eight columns"
    assert sum(_dots(braille([], 3, 2))) == 0


def test_smaller_steps_are_said_and_whole_ones_are_not() -> None:
    assert ("learning rate", "× 0.25") in figures({"reward": 0.5, "lr_scale": 0.25})
    assert [name for name, _ in figures({"reward": 0.5, "lr_scale": 1.0})] == ["reward"]


def test_a_round_of_a_stage_says_which_and_what_it_found() -> None:
    def at(stage: Stage) -> float:
        return float(STAGES.index(stage))

    collected = {"generation": 2.0, "stage": at("collect"), "judgements": 1024.0, "tokens_per_second": 0.0}
    assert figures(collected) == [("generation", "2 collect"), ("judgements", "1,024")]
    trained = {"generation": 2.0, "stage": at("reward"), "reward_model_held_accuracy": 0.714}
    assert figures(trained) == [("generation", "2 reward"), ("right on new pairs", "0.71")]
    assert ("gate", "0.250") in figures({"generation": 2.0, "stage": at("gate"), "gate_value": 0.25})


def test_small_figures() -> None:
    assert sparkline([0, 1, 2], 8) == "▁▅█"
    assert sparkline([], 8) == ""
    assert (clock(45), clock(200), clock(3900)) == ("45 s", "3:20", "1:05:00")
    assert (size(1_070_000), size(260_000), size(None)) == ("1.07M", "260k", "?")
    assert ENVIRONMENT["threads"] == 2
