"""The training pass's kernels against torch's expressions: values, gradients, threads, instruction sets, no kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triloop.kernels import native, train
from triloop.nn import decoder as decoder_module
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.packing import Packing, packing, prefix_tree
from triloop.nn.rope import rotate
from triloop.policies.statistics import token_statistics

compiled = pytest.mark.skipif(not native.available(), reason=native.describe())
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])

TREES: dict[str, list[list[int]]] = {
    "one token": [[3]],
    "single tokens": [[3], [4], [3], [5]],
    "roots and shared beginnings": [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8, 2, 2, 1], [3], [6, 7, 8], [5, 6, 7, 1]],
    "longer than a tile": [[7] * 5 + list(range(70)), [7] * 5 + list(range(40, 0, -1)), list(range(9))],
    # more than one chunk, with a beginning that all share and beginnings that some share
    "chunks": [[1, 2, 3, *([i // 3] * 4), *range(i, i + 60)] for i in range(11)],
}


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(mine: Tensor | None, exact: Tensor | None, dtype: torch.dtype, *, fp32: float = 2e-6) -> None:
    """Within the type's rounding, as a share of the largest number."""
    assert mine is not None and exact is not None
    mine, exact = mine.detach(), exact.detach()
    share = fp32 if dtype == torch.float32 else 1e-2
    bound = share * max(1.0, float(exact.abs().max()))
    assert mine.shape == exact.shape
    assert float((mine.double() - exact.double()).abs().max()) <= bound


def grown(*tensors: Tensor) -> list[Tensor]:
    """In fp64, to be differentiated by torch."""
    return [t.detach().double().requires_grad_() for t in tensors]


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


# ---------------------------------------------------------------------- norm and gate


@compiled
@both_types
@pytest.mark.parametrize("shape", [(1, 1), (3, 24), (67, 13), (130, 128)], ids=str)
@pytest.mark.parametrize("exact", [False, True])
def test_add_norm(shape: tuple[int, int], dtype: torch.dtype, exact: bool) -> None:
    x, delta, weight = numbers(*shape), numbers(*shape, seed=1, dtype=dtype), 1 + numbers(shape[1], seed=2)
    mine, truth = leaves(x, delta, weight), grown(x, delta, weight)
    kind = torch.float32 if exact else dtype
    total, out = train.AddNorm.apply(*mine, 1e-5, kind)
    assert total.dtype == torch.float32 and out.dtype == kind
    sums = truth[0] + truth[1]
    normed = sums / (sums.square().mean(-1, keepdim=True) + 1e-5).sqrt() * truth[2]
    close(total, sums, torch.float32)
    close(out, normed, kind)
    a, b = numbers(*shape, seed=3), numbers(*shape, seed=4)
    (total * a).sum().backward(retain_graph=True)  # first the one answer alone, then both
    assert mine[0].grad is not None and torch.equal(mine[0].grad, a)
    for t in mine:
        t.grad = None
    ((total * a).sum() + (out.float() * b).sum()).backward()
    ((sums * a).sum() + (normed * b).sum()).backward()
    for m, t in zip(mine, truth, strict=True):
        close(m.grad, t.grad, dtype, fp32=1e-5)


@compiled
@both_types
def test_add_norm_of_nothing_added(dtype: torch.dtype) -> None:
    x, weight = numbers(5, 24), 1 + numbers(24, seed=2)
    mine, truth = leaves(x, weight), grown(x, weight)
    total, out = train.AddNorm.apply(mine[0], None, mine[1], 1e-5, dtype)
    assert torch.equal(total, x)
    ((total * 2).sum() + out.float().sin().sum()).backward()
    normed = truth[0] / (truth[0].square().mean(-1, keepdim=True) + 1e-5).sqrt() * truth[1]
    ((truth[0] * 2).sum() + normed.sin().sum()).backward()
    for m, t in zip(mine, truth, strict=True):
        close(m.grad, t.grad, dtype, fp32=1e-5)


@compiled
@both_types
@pytest.mark.parametrize("shape", [(1, 1), (3, 13), (40, 384)], ids=str)
def test_swiglu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    given = 3 * numbers(shape[0], 2 * shape[1], dtype=dtype)
    (mine,), (truth,) = leaves(given), grown(given)
    out = train.SwiGLU.apply(mine)
    gate, up = truth.chunk(2, -1)
    plain = F.silu(gate) * up
    close(out, plain, dtype)
    weight = numbers(*shape, seed=1, dtype=dtype)
    (out * weight).sum().backward()
    (plain * weight.double()).sum().backward()
    close(mine.grad, truth.grad, dtype)


# ---------------------------------------------------------------------- attention


def plain_attention(
    joint: Tensor,
    norms: Sequence[Tensor],
    where: Packing,
    s: train.AttentionShape,
    angles: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Sequence by sequence, by the definition."""
    heads = joint.view(len(joint), -1, s.dim)
    q, k, v = heads.split((s.heads, s.kv_heads, s.kv_heads), 1)
    if norms:
        q, k = (x / (x.square().mean(-1, keepdim=True) + s.eps).sqrt() * n for x, n in zip((q, k), norms, strict=True))
    if angles is not None:
        cos, sin = (a.to(joint)[where.positions] for a in angles)
        wide = torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]
        q, k = rotate(q, *wide), rotate(k, *wide)
    order = torch.arange(len(joint)) if where.order is None else where.order
    out = torch.zeros(len(joint), s.heads, s.dim, dtype=joint.dtype)
    for tokens in order.split(list(where.lengths)):
        at = torch.arange(len(tokens))
        seen = at[:, None] >= at
        if s.window:
            seen &= at[:, None] - at < s.window
        keys, values = (x[tokens].repeat_interleave(s.heads // s.kv_heads, 1) for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q[tokens], keys) * s.dim**-0.5
        mixed = torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values)
        out = out.index_put((tokens,), mixed)
    return out.flatten(1)


def turns(longest: int, dim: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(longest)[:, None] * torch.linspace(1, 0.01, dim // 2)
    return angle.cos(), angle.sin()


SHAPES = {
    "dim 8": train.AttentionShape(2, 2, 8),
    "dim 24, grouped": train.AttentionShape(6, 2, 24),
    "dim 64, window": train.AttentionShape(2, 1, 64, window=5),
    "dim 20, window of one": train.AttentionShape(3, 3, 20, window=1),
    "dim 32, window over a tile": train.AttentionShape(2, 2, 32, window=37),
}


def attention_case(
    tree: str, shape: str, dtype: torch.dtype, *, normed: bool, rotary: bool
) -> tuple[list[Tensor], Packing, train.AttentionShape, tuple[Tensor, Tensor] | None]:
    ids, where = prefix_tree(TREES[tree])
    s = SHAPES[shape]
    joint = numbers(len(ids), (s.heads + 2 * s.kv_heads) * s.dim, dtype=dtype)
    norms = [1 + numbers(s.dim, seed=i) for i in (1, 2)] if normed else []
    return [joint, *norms], where, s, turns(where.longest, s.dim) if rotary else None


def compiled_attention(
    given: Sequence[Tensor], where: Packing, s: train.AttentionShape, angles: tuple[Tensor, Tensor] | None
) -> Tensor:
    joint, *norms = given
    return train.Attention.apply(
        joint, *(norms or (None, None)), where.walk, where.positions, *(angles or (None, None)), s
    )


@compiled
@both_types
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(("normed", "rotary"), [(True, True), (True, False), (False, True)])
def test_attention(tree: str, shape: str, dtype: torch.dtype, normed: bool, rotary: bool) -> None:
    given, where, s, angles = attention_case(tree, shape, dtype, normed=normed, rotary=rotary)
    mine, truth = leaves(*given), grown(*given)
    out, plain = compiled_attention(mine, where, s, angles), plain_attention(truth[0], truth[1:], where, s, angles)
    assert out.dtype == dtype
    close(out, plain, dtype)
    weight = numbers(*out.shape, seed=5, dtype=dtype)
    (out * weight).sum().backward()
    (plain * weight.double()).sum().backward()
    for m, t in zip(mine, truth, strict=True):
        close(m.grad, t.grad, dtype, fp32=2e-5)


@compiled
def test_attention_without_sharing() -> None:
    where = packing([3, 1, 5])
    s = train.AttentionShape(4, 2, 8)
    (mine,), (truth,) = leaves(numbers(9, 64)), grown(numbers(9, 64))
    angles = turns(5, 8)
    out, plain = compiled_attention([mine], where, s, angles), plain_attention(truth, [], where, s, angles)
    close(out, plain, torch.float32)


@compiled
def test_the_tree_is_that_of_the_plain_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    for sequences in TREES.values():
        ids, where = prefix_tree(sequences)
        with monkeypatch.context() as m:
            m.setattr(native, "available", lambda: False)
            plain_ids, plain = prefix_tree(sequences)
        assert torch.equal(ids, plain_ids) and where.lengths == plain.lengths
        for name in ("positions", "slots", "source", "order"):
            assert torch.equal(getattr(where, name), getattr(plain, name)), name


# ---------------------------------------------------------------------- statistics


@compiled
@both_types
@pytest.mark.parametrize("vocab", [1, 11, 64, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_statistics(vocab: int, temperature: float, dtype: torch.dtype) -> None:
    logits = 5 * numbers(9, vocab, dtype=dtype)
    targets = torch.randint(0, vocab, (9,), generator=torch.Generator().manual_seed(1))
    (mine,), (truth,) = leaves(logits), grown(logits)
    logps, entropies = train.TokenStatistics.apply(mine, targets, temperature, True)
    every = torch.log_softmax(truth / temperature, -1)
    plain, spread = every.gather(1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)
    close(logps, plain, torch.float32)
    close(entropies, spread, torch.float32, fp32=5e-6)
    weights = numbers(9, seed=2), numbers(9, seed=3)
    ((logps * weights[0]).sum() + (entropies * weights[1]).sum()).backward(retain_graph=True)
    ((plain * weights[0]).sum() + (spread * weights[1]).sum()).backward(retain_graph=True)
    close(mine.grad, truth.grad, dtype, fp32=1e-5)
    mine.grad = truth.grad = None
    entropies.sum().backward()  # one of the two alone
    spread.sum().backward()
    close(mine.grad, truth.grad, dtype, fp32=1e-5)


@compiled
def test_a_nan_among_logits_is_not_hidden() -> None:
    logits, targets = numbers(2, 40), torch.tensor([3, 3])
    logits[0, 20] = torch.nan
    logps, entropies = train.TokenStatistics.apply(logits, targets, 1.0, True)
    assert logps.isnan().tolist() == entropies.isnan().tolist() == [True, False]


@compiled
def test_logits_that_are_ruled_out() -> None:
    logits, targets = torch.tensor([[0.0, -torch.inf, 0.0]]).requires_grad_(), torch.tensor([2])
    logps, entropies = train.TokenStatistics.apply(logits, targets, 1.0, True)
    assert logps.item() == pytest.approx(-0.6931472) and entropies.item() == pytest.approx(0.6931472)
    (logps + entropies).sum().backward()
    close(logits.grad, torch.tensor([[-0.5, 0.0, 0.5]]), torch.float32)


# ---------------------------------------------------------------------- threads, instruction sets, no kernels


def everything(dtype: torch.dtype) -> list[Tensor]:
    """Answers and gradients of a decoder and of the statistics, large enough for two threads to share the work."""
    config = DecoderConfig(
        vocab_size=50,
        hidden_size=72,
        intermediate_size=100,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        head_dim=12,
        qk_norm=True,
        sliding_window=9,
        sliding_layers=(0,),
        nope_layers=(1,),
    )
    decoder = Decoder(config).initialise(1, std=0.2)
    draw = torch.Generator().manual_seed(7)
    rows = [[1, i % 2, i % 5, *torch.randint(0, 50, (20 + i,), generator=draw).tolist()] for i in range(40)]
    ids, where = prefix_tree(rows)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden = decoder.packed(ids, where)
    targets = torch.tensor([t for row in rows for t in row])
    logps, entropies = token_statistics(
        decoder.logits, hidden, targets, vocab_size=50, temperature=0.9, entropy=True, whole=50 * 500
    )
    (logps.mean() + 0.1 * entropies.mean()).backward()
    gradients = [p.grad for p in decoder.parameters()]
    assert all(g is not None for g in gradients)
    return [hidden.detach(), logps.detach(), entropies.detach(), *(g for g in gradients if g is not None)]


@compiled
@both_types
def test_threads_change_no_bit_of_a_kernel(dtype: torch.dtype) -> None:
    def results() -> list[Tensor]:
        given, where, s, angles = attention_case("chunks", "dim 24, grouped", dtype, normed=True, rotary=True)
        mine = leaves(*given)
        out = compiled_attention(mine, where, s, angles)
        (out * numbers(*out.shape, seed=5, dtype=dtype)).sum().backward()
        x, delta, weight, both, logits = leaves(
            numbers(700, 72),
            numbers(700, 72, seed=1, dtype=dtype),
            numbers(72, seed=2),
            numbers(700, 72, seed=3, dtype=dtype),
            numbers(700, 72, seed=4, dtype=dtype),
        )
        total, normed = train.AddNorm.apply(x, delta, weight, 1e-6, dtype)
        gated = train.SwiGLU.apply(both)
        statistics = train.TokenStatistics.apply(logits, torch.arange(700) % 72, 0.8, True)
        answers = [total, normed, gated, *statistics]
        sum(y.float().sin().sum() for y in answers).backward()  # type: ignore[union-attr]
        gradients = [t.grad for t in (*mine, x, delta, weight, both, logits)]
        return [out.detach(), *(y.detach() for y in answers), *(g for g in gradients if g is not None)]

    one = results()
    torch.set_num_threads(2)
    two = results()
    assert len(one) == 14
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def elsewhere(path: Path, dtype: torch.dtype, **environment: str) -> list[Tensor]:
    """``everything`` of another process."""
    code = (
        f"import sys, torch; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        f"torch.set_num_threads(1); import test_train; torch.save(test_train.everything({dtype}), {str(path)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded: list[Tensor] = torch.load(path)
    return loaded


def near(mine: Sequence[Tensor], other: Sequence[Tensor], share: float) -> None:
    for a, b in zip(mine, other, strict=True):
        assert float((a - b).norm()) <= share * float(b.norm()) + 1e-12


@compiled
@pytest.mark.parametrize("level", ["default", "avx2"])
def test_every_instruction_set_agrees(level: str, tmp_path: Path) -> None:
    near(elsewhere(tmp_path / "x", torch.float32, TRILOOP_CPU=level), everything(torch.float32), 1e-5)
    near(elsewhere(tmp_path / "y", torch.bfloat16, TRILOOP_CPU=level), everything(torch.bfloat16), 0.03)


@compiled
@both_types
def test_without_the_kernels_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    without = elsewhere(tmp_path / "x", dtype, TRILOOP_KERNELS="off")
    near(everything(dtype), without, 1e-5 if dtype == torch.float32 else 0.05)


@compiled
def test_long_sequences_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_answers = everything(torch.float32)
    monkeypatch.setattr(decoder_module, "COMPILED", 30)
    monkeypatch.setattr(train.Attention, "apply", None)
    near(everything(torch.float32), compiled_answers, 1e-5)


@compiled
@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.float32, "meta")])
def test_other_numbers_are_left_to_torch(dtype: torch.dtype, device: str) -> None:
    assert not train.usable(torch.zeros(1, dtype=dtype, device=device))
