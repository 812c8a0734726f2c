"""The rows on communication in few bits: each runs, and their data and losses are what they say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from triloop.atlas import comms
from triloop.atlas.frame import Context, judge


@pytest.mark.slow
@pytest.mark.parametrize("row", comms.COMMUNICATION, ids=lambda row: row.id)
def test_each_row_runs(row: comms.Row, tmp_path: Path) -> None:
    share = {"S021": 0.05, "S004": 0.03, "S056": 0.05}[row.id]
    measured = row.run(Context(folder=tmp_path, seeds=(0, 1, 2), share=share))
    assert len(measured.baseline) == len(measured.treatment) == len(row.contrasts)
    for values in (*measured.baseline, *measured.treatment):
        assert len(values) == 3 and all(math.isfinite(v) for v in values)
    assert judge(row.contrasts, measured) in (-1, 0, 1)


def test_quadratics_are_uneven_and_convex() -> None:
    h, b = comms.quadratics(0)
    assert h.shape == b.shape == (100, 10) and bool((h > 0).all())
    constants = h.amax(dim=1)
    assert float(constants.square().mean().sqrt() / constants.mean()) > 1.3


def test_voters_have_different_classes() -> None:
    voters, (x, y) = comms.clusters(0)
    assert len(voters) == 20 and x.shape == (2000, 32) and set(y.tolist()) == set(range(10))
    shares = torch.stack([torch.bincount(labels, minlength=10) for _, labels in voters]) / 300
    assert float(shares.max(dim=1).values.median()) > 0.25
