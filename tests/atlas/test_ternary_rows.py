"""The rows on ternary networks: each runs in a quick form, and its data are what it says."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from triloop.atlas.frame import Context, Row, judge
from triloop.atlas.ternary_blocks import BACKBONES, BLOCKS, MIXTURE
from triloop.atlas.ternary_search import PACKED, SEARCH, SEARCHED
from triloop.atlas.ternary_shapes import ENOUGH, SHAPES, accuracy, documents, made, reversed_text, walks
from triloop.atlas.ternary_towers import COLOURS, FORMS, TWO_TOWERS, scenes
from triloop.ternary.convert import linears

ROWS = (ENOUGH, TWO_TOWERS, *BLOCKS, *SEARCHED)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_each_row_runs(row: Row, tmp_path: Path) -> None:
    measured = row.run(Context(folder=tmp_path, seeds=(0, 1, 2), share=0.1 if row is SEARCH else 0.02))
    assert len(measured.baseline) == len(measured.treatment) == len(row.contrasts)
    for values in (*measured.baseline, *measured.treatment):
        assert len(values) == 3 and all(math.isfinite(v) for v in values)
    assert judge(row.contrasts, measured) in (-1, 0, 1)


def test_the_rows_are_told_apart() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert {row.id for row in (ENOUGH, TWO_TOWERS, MIXTURE, SEARCH, BACKBONES, PACKED)} == {row.id for row in ROWS}


@pytest.mark.slow
def test_packed_products_are_exact_in_a_small_form(tmp_path: Path) -> None:
    measured = PACKED.run(Context(folder=tmp_path, seeds=(7, 8, 9), share=0.05))
    assert measured.treatment[0] == [0.0] * 3
    assert measured.treatment[1] == [2.0] * 3
    assert all(1.585 < bits < 1.67 for bits in measured.treatment[2])


# ---------------------------------------------------------------------- data


def test_counts_of_words_tell_topics() -> None:
    counts, labels = documents(0, 500, "t")
    assert bool((counts.sum(dim=1) == 24).all()) and len(set(labels.tolist())) == 20
    again, _ = documents(0, 500, "t")
    other, _ = documents(0, 500, "u")
    assert torch.equal(counts, again) and not torch.equal(counts, other)


def test_masked_letters_stand_under_masks_alone() -> None:
    shown, hidden = walks(0, 300, "t")
    assert torch.equal(hidden != -100, shown == 12)
    assert bool((hidden != -100).any(dim=1).all())
    text = torch.where(hidden == -100, shown, hidden)
    after = {(a, b) for row in text for a, b in itertools.pairwise(row.tolist())}
    assert max(sum(1 for a, _ in after if a == first) for first in range(12)) <= 4


def test_reversed_text_is_a_cipher_backwards() -> None:
    source, said, target = reversed_text(0, 200, "t")
    pairs = {(int(a), int(b)) for a, b in zip(source.flip(1).flatten(), target.flatten(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 12
    assert torch.equal(said[:, 1:], target[:, :-1]) and set(said[:, 0].tolist()) == {12}


def test_pictures_differ_by_what_their_captions_say() -> None:
    numbers = torch.tensor([0, 1, FORMS, FORMS * COLOURS])
    pictures, words = scenes(0, numbers)
    assert pictures.shape == (4, 16, 48)
    assert words.tolist() == [
        [0, FORMS, FORMS + COLOURS],
        [1, FORMS, FORMS + COLOURS],
        [0, FORMS + 1, FORMS + COLOURS],
        [0, FORMS, FORMS + COLOURS + 1],
    ]
    many, _ = scenes(1, torch.zeros(400, dtype=torch.int64))
    corner = many.mean(dim=0).view(4, 4, 48).mean(dim=-1)
    assert float(corner[:2, :2].mean()) > 5 * abs(float(corner[2:, 3:].mean()))


# ---------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", SHAPES)
def test_every_linear_but_the_head_is_ternary(name: str) -> None:
    shape = SHAPES[name]
    model = made(0, lambda: shape.build(8), "absmean")
    plain = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert plain == {"head"} and len(linears(model)) >= 2
    data = shape.data(0, 8, "t")
    assert 0 <= accuracy(model, data) <= 1


def test_answers_that_are_not_asked_for_do_not_count() -> None:
    class Says(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(3)[x]

    data = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, -100]])
    assert accuracy(Says(), data) == 0.5
