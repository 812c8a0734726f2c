"""The parts of rows that can be checked without training."""

from __future__ import annotations

from pathlib import Path

import pytest

from triloop.atlas.bases import TinyBase, cached
from triloop.atlas.compute import Drawn, spent_adaptively, spent_uniformly
from triloop.atlas.lenient import check
from triloop.atlas.truth import COUNT, KNOWN, facts, threshold_errors


def _drawn(answers: str, level: int = 1) -> Drawn:
    """One letter a sample, ``-`` for an unreadable one; each costs 10 tokens; the truth is ``a``."""
    return Drawn(
        level=level, truth="a", answers=tuple(None if c == "-" else c for c in answers), tokens=(10,) * len(answers)
    )


def test_adaptive_spending_by_hand() -> None:
    problems = [_drawn("aaab" + "b" * 12), _drawn("bcaa" + "-a" + "b" * 10, level=2)]
    accuracy, tokens, samples = spent_adaptively(problems, 3)
    assert accuracy == 1.0
    assert samples == {1: 3.0, 2: 6.0}
    assert tokens == (30 + 60) / 2


def test_uniform_spending_interpolates_between_whole_numbers() -> None:
    """Majority of 1 is right on one of two, of 3 on both, of 2 on one (a tie goes to the first)."""
    problems = [_drawn("a" * 16), _drawn("ba" + "a" * 14)]
    assert spent_uniformly(problems, 10) == 0.5
    assert spent_uniformly(problems, 30) == 1.0
    assert spent_uniformly(problems, 25) == pytest.approx(0.75)


def test_the_threshold_of_abstention_holds_on_the_grid() -> None:
    assert threshold_errors() == 0.0


def test_the_facts() -> None:
    world = facts()
    assert len(world) == COUNT == len({name for name, _, _ in world})
    assert sum(level == KNOWN for _, _, level in world) == COUNT // 2
    assert world == facts()


def test_the_flawed_judge_has_its_flaw() -> None:
    assert check("1+2=", "3#3", "3") == 1
    assert check("1+2=", "3#4", "3") == -1
    assert check("1+2=", "3", "3") == 1


def test_a_tiny_base_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lessons: list[int] = []

    def pairs(step: int) -> list[tuple[str, str]]:
        lessons.append(step)
        return [("ab=", "c")]

    base = TinyBase(name="t", recipe="r", chars="abc=", hidden=16, layers=1, steps=2)
    folder = cached(base, pairs)
    assert cached(base, pairs) == folder
    assert lessons == [0, 1]
    assert (folder / "model.safetensors").is_file()
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]
