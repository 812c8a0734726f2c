"""Numbers by step, worked by hand."""

from __future__ import annotations

import pytest

from triloop.errors import ConfigError
from triloop.ternary.schedule import LayerwiseBlend, depths, trilm


def test_layers_start_one_after_another() -> None:
    """100 steps, spread 0.5, three layers: starts at 0, 25 and 50, 50 steps each."""
    blend = LayerwiseBlend(steps=100, spread=0.5)
    at = {step: [blend.share(step, layer, 3) for layer in range(3)] for step in (0, 25, 50, 75, 100, 1000)}
    assert at == {
        0: [0, 0, 0],
        25: [0.5, 0, 0],
        50: [1, 0.5, 0],
        75: [1, 1, 0.5],
        100: [1, 1, 1],
        1000: [1, 1, 1],
    }


def test_without_spread_all_move_together_and_one_layer_alone() -> None:
    together = LayerwiseBlend(steps=10, spread=0)
    assert [together.share(3, layer, 4) for layer in range(4)] == [0.3] * 4
    assert LayerwiseBlend(steps=10, spread=0.9).share(0, 0, 1) == 0
    assert LayerwiseBlend(steps=7, spread=0.3).share(7, 4, 5) == 1.0  # exactly, whatever the rounding


def test_linears_of_one_layer_move_together() -> None:
    names = ["layers.0.qkv", "layers.0.out", "layers.1.qkv", "head"]
    assert depths(names) == {"layers.0.qkv": 0, "layers.0.out": 0, "layers.1.qkv": 1, "head": 2}
    assert depths(["encoder.layers.0.a", "decoder.layers.0.a", "encoder.layers.0.b"]) == {
        "encoder.layers.0.a": 0,
        "decoder.layers.0.a": 1,
        "encoder.layers.0.b": 0,
    }
    shares = LayerwiseBlend(steps=4, spread=0.5).shares(2, names)
    assert shares == {"layers.0.qkv": 1, "layers.0.out": 1, "layers.1.qkv": 0.5, "head": 0}
    assert LayerwiseBlend(steps=4).shares(2, []) == {}


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 5, "spread": 1.0}, {"steps": 5, "spread": -0.1}])
def test_a_schedule_that_cannot_be(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="a blend needs steps >= 1"):
        LayerwiseBlend(**options)  # type: ignore[arg-type]


def test_trilm_by_hand() -> None:
    """12 steps: the rate's line drops at 6, weight decay ends at 8."""
    seen = [trilm(step, 12, peak=1.2, later_peak=0.6, weight_decay=0.1) for step in (0, 3, 5, 6, 7, 8, 11)]
    rates = [1.2, 0.9, 0.7, 0.3, 0.25, 0.2, 0.05]
    assert [rate for rate, _ in seen] == pytest.approx(rates)
    assert [decay for _, decay in seen] == [0.1, 0.1, 0.1, 0.1, 0.1, 0.0, 0.0]
    with pytest.raises(ConfigError, match="step 12 is not one of 12"):
        trilm(12, 12, peak=1, later_peak=1, weight_decay=0)
