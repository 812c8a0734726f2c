"""The rows on quantised networks: each runs, and their helpers count and measure what they say."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from triloop.atlas import quantised, quantised_scaling
from triloop.atlas import text_lab as lab
from triloop.atlas.frame import Context, Row, judge
from triloop.nn.decoder import Decoder
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import linears

ROWS = (*quantised.QUANTISED, *quantised_scaling.SCALING)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_each_row_runs(row: Row, tmp_path: Path) -> None:
    measured = row.run(Context(folder=tmp_path, seeds=(300, 301, 302), share=0.01))
    assert len(measured.baseline) == len(measured.treatment) == len(row.contrasts)
    for values in (*measured.baseline, *measured.treatment):
        assert len(values) == 3 and all(math.isfinite(v) for v in values)
    assert judge(row.contrasts, measured) in (-1, 0, 1)


@pytest.fixture(scope="module")
def small() -> Decoder:
    return lab.start(16, 0)


@pytest.fixture(scope="module", autouse=True)
def text() -> lab.Text:
    return lab.text()


def test_text_is_of_the_alphabet_and_held_out_text_is_other_text(text: lab.Text) -> None:
    assert text.held.shape == (160, lab.TIME + 1)
    assert int(text.learn.min()) >= 0 and int(text.learn.max()) < len(lab.ALPHABET)
    read = "".join(lab.ALPHABET[i] for i in text.learn.tolist())
    problems = {line.split("=")[0] for line in read.split("\n") if "=" in line and "#" in line}
    asked = {
        line.split("=")[0]
        for window in text.held.tolist()
        for line in "".join(lab.ALPHABET[i] for i in window).split("\n")[1:-1]
        if "#" in line
    }
    assert len(problems) > 1000 and len(asked) > 20
    assert not problems & asked


def test_batches_are_a_function_of_the_seed_and_go_on_where_the_first_ended() -> None:
    whole = lab.batches(3, 0, 5)
    assert whole.shape == (5, lab.ROWS, lab.TIME + 1)
    assert torch.equal(whole[2:], lab.batches(3, 2, 3))
    assert not torch.equal(whole, lab.batches(4, 0, 5))


def test_fit_learns_and_shares_weight_decay_out_to_matrices_only(small: Decoder) -> None:
    made = copy.deepcopy(small)
    losses = lab.fit(made, lab.batches(0, 0, 40), lab.Plan(rate=1e-2))
    assert losses[-1] < losses[0] - 0.5 and lab.held_out(made) < lab.held_out(small) - 0.5
    still = copy.deepcopy(small)  # a loss without gradient: only decay moves anything
    plan = lab.Plan(by_update=lambda update: (0.5, 0.1))
    lab.fit(still, lab.batches(0, 0, 1), plan, loss=lambda d, w, u: 0.0 * lab.likelihood(d, w))
    assert torch.allclose(still.embed.weight, 0.95 * small.embed.weight)
    assert torch.equal(still.norm.weight, small.norm.weight)


def test_held_out_is_the_mean_over_all_windows(small: Decoder, text: lab.Text) -> None:
    logits = small.logits_padded(text.held[:, :-1]).detach()
    assert lab.held_out(small) == pytest.approx(
        float(F.cross_entropy(logits.flatten(0, 1), text.held[:, 1:].flatten())), abs=1e-5
    )


@torch.no_grad()
def test_a_network_has_nothing_to_learn_from_itself(small: Decoder) -> None:
    windows = lab.batches(0, 0, 1)[0]
    other = lab.start(16, 1)
    squares = lab.distilled(small, features=lambda a, b: (a - b).square().mean(-1), weight=2.0)
    assert float(squares(small, windows, 0)) == pytest.approx(0.0, abs=1e-6)
    plain = float(lab.distilled(small)(other, windows, 0))
    labels = float(lab.distilled(small, labels=0.5)(other, windows, 0))
    assert plain > 0 and labels - plain == pytest.approx(0.5 * float(lab.likelihood(other, windows)), abs=1e-4)
    (_, mine), (_, theirs) = lab.outputs(other, windows), lab.outputs(small, windows)
    apart = sum(float((a - b).square().mean()) for a, b in zip(mine, theirs, strict=True)) / 4
    assert float(squares(other, windows, 0)) - plain == pytest.approx(2 * apart, rel=1e-3)


def test_moved_and_escaped_by_hand(small: Decoder) -> None:
    config = TernaryConfig(granularity="channel", activations="none")
    before, after = lab.converted(small, config), lab.converted(small, config)
    assert lab.moved(after, small) == 0.0 and quantised.escaped(before, after) == 0.0
    with torch.no_grad():
        for part in linears(after).values():
            part.weight *= 1.5
    assert lab.moved(after, small) == pytest.approx(0.5, rel=1e-5)
    assert quantised.escaped(before, after) == 0.0  # codes do not depend on the scale of a row
    first = next(iter(linears(after)))
    zero = linears(before)[first].quantised().codes == 0
    with torch.no_grad():
        linears(after)[first].weight[zero] = 10.0
    every = sum(int((part.quantised().codes == 0).sum()) for part in linears(before).values())
    assert quantised.escaped(before, after) == pytest.approx(int(zero.sum()) / every)


def test_fixed_ranges_hold_what_was_seen_and_are_not_trained(small: Decoder) -> None:
    made = lab.converted(small, TernaryConfig(activations="elastic", activation_bits=4))
    windows, seen = lab.batches(0, 0, 1)[0], dict[str, torch.Tensor]()
    quantised.fix_range(made, windows)
    part = made.blocks[0].qkv
    hook = part.register_forward_pre_hook(lambda module, given: seen.update(x=given[0].detach()))
    before = part.input_scale.detach().clone()
    lab.fit(made, windows[None], lab.Plan())
    hook.remove()
    assert torch.equal(part.input_scale, before) and not part.input_zero.requires_grad
    codes = ((seen["x"] - part.input_zero) / part.input_scale).detach()
    assert float(codes.min()) == pytest.approx(-8, abs=1e-3) and float(codes.max()) == pytest.approx(7, abs=1e-3)


def test_uneven_weights_have_means_by_group_and_one_channel_stands_out(small: Decoder) -> None:
    made = lab.start(32, 0)
    quantised.uneven(made, 0)
    groups = made.blocks[0].qkv.weight.detach().view(96, 2, quantised.GROUP)
    share = float((groups.mean(2).square().mean() / groups.var(2).mean()).sqrt())
    assert 0.7 < share < 1.4
    sizes = made.blocks[1].down.weight.detach().norm(dim=1)
    assert float(sizes[quantised.CHANNEL] / sizes.median()) == pytest.approx(quantised.OUTLIER, rel=0.4)


def test_sizes_by_hand_and_inner_widths_that_meet_them() -> None:
    config = lab.shape(16)
    inside = 2 * (4 * 16 * 16 + 3 * 16 * 40)
    outputs = 2 * (5 * 16 + 2 * 40)
    rest = len(lab.ALPHABET) * 16 + 5 * 16
    decoder = Decoder(config)
    assert quantised_scaling.size(decoder, "16") == 2 * (inside + rest)
    assert quantised_scaling.size(decoder, "1.58") == math.ceil(inside / 5) + 2 * (rest + outputs)
    for bits, width in quantised_scaling.WIDTHS.items():
        inner = quantised_scaling.inner_for(width, bits, quantised_scaling.BYTES)
        got = quantised_scaling.size(lab.start(width, 0, inner), bits)
        assert abs(got - quantised_scaling.BYTES) < 0.01 * quantised_scaling.BYTES


def test_packed_weights_give_the_same_logits_and_fifth_of_a_byte_each(small: Decoder) -> None:
    made = lab.converted(small, TernaryConfig())
    codes = [part.weight.numel() for part in linears(made).values()]
    assert quantised_scaling.stored(made) == sum(-(-n // 5) + 2 for n in codes)
    assert quantised_scaling.packed_apart(made) < 1e-5
    assert quantised.apart(made, small) > 1e-3 and quantised.apart(small, copy.deepcopy(small)) == 0.0
