"""The two ways to decode say the same, whatever the shape of the decoder."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from triloop.kernels.native import available
from triloop.nn import kernel_decoding as decoding_module
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.decoding import Decoding, KernelDecoding, TorchDecoding, decoding_of, padded
from triloop.nn.lora import LoraLinear
from triloop.nn.packing import packing
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import ternarise
from triloop.ternary.head import Int8Head

pytestmark = pytest.mark.skipif(not available(), reason="the compiled kernels are not built")

SHAPES: dict[str, dict[str, object]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2, "num_heads": 6, "head_dim": 8},
    "odd head": {"head_dim": 6, "hidden_size": 20, "intermediate_size": 37},
    "wide head": {"head_dim": 80, "num_heads": 2, "num_kv_heads": 1},
    "biases": {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
    "qk norm": {"qk_norm": True, "tie_embeddings": False},
    "window": {"sliding_window": 5, "sliding_layers": (1,)},
    "window over tiles": {"sliding_window": 19, "sliding_layers": (0, 1)},
    "no rotation": {"nope_layers": (1,)},
    "scaled rotation": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "large vocabulary": {"vocab_size": 5003},
}
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]


def decoder(**changes: object) -> Decoder:
    shape: dict[str, object] = {
        "vocab_size": 31,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_layers": 2,
        "num_heads": 3,
        "num_kv_heads": 3,
        "head_dim": 8,
        "max_positions": 128,
    }
    model = Decoder(DecoderConfig(**(shape | changes)))  # type: ignore[arg-type]
    model.initialise(0, std=0.3)
    g = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.ndim == 1:  # norms and biases that do something
            p.data += 0.3 * torch.randn(p.shape, generator=g)
    return model


def run(decoding: Decoding, steps: int = 40) -> torch.Tensor:
    """Logits of a prefill, of two rows that part and of many steps; [steps + 1, 4, vocab]."""
    decoding.reset(6, 64)
    rows = torch.tensor([2, 0, 1])
    out = [torch.zeros(4, decoding.decoder.config.vocab_size)]  # type: ignore[attr-defined]
    out[0][rows] = decoding.prefill(*padded(PROMPTS), rows).float()
    positions = torch.tensor([1, 6, 3, 3])
    decoding.arrange(torch.tensor([0, 1, 2, 2]), positions)
    out[0][3] = out[0][2]
    for step in range(steps):
        tokens = torch.tensor([(7 * step + 5 * r) % 31 for r in range(4)])
        if step == 20:
            positions[1] = 0  # free from now on
        out.append(decoding.decode(tokens, positions, int(positions.max()) + 1).float().clone())
        out[-1][positions == 0] = 0
        positions += positions > 0
    return torch.stack(out).detach()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernels_equal_torch(shape: dict[str, object]) -> None:
    model = decoder(**shape)
    torch.testing.assert_close(run(KernelDecoding(model)), run(TorchDecoding(model)), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", ["plain", "qk norm", "large vocabulary"])
def test_bf16_differs_from_fp32_by_its_rounding_only(shape: str) -> None:
    model = decoder(**SHAPES[shape])
    exact = run(TorchDecoding(model)).log_softmax(-1)
    low = Decoder(model.config)
    low.load_state_dict(model.state_dict())
    found = run(KernelDecoding(low.to(torch.bfloat16))).log_softmax(-1)
    reference = run(TorchDecoding(low)).log_softmax(-1)
    error, expected = (found - exact).abs().mean(), (reference - exact).abs().mean()
    assert error < 0.1
    assert error < 1.1 * expected, "no further off than torch in the same precision"


@pytest.mark.parametrize("ternary", [False, True])
def test_threads_do_not_change_a_bit(ternary: bool) -> None:
    model = decoder(hidden_size=96, intermediate_size=300, num_heads=12, num_kv_heads=12)
    if ternary:
        ternarise(model, TernaryConfig())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(KernelDecoding(model))
        torch.set_num_threads(2)
        two = run(KernelDecoding(model))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(one, two, atol=0, rtol=0)


def steps_and_pass(model: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a prefill and of steps after it, and those of the training pass over the same tokens."""
    tokens = torch.randint(0, 31, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = model.packed(tokens.reshape(-1), packing([40, 40])).view(2, 40, -1)
        decoding = KernelDecoding(model)
        decoding.reset(2, 64)
        first = decoding.prefill(tokens[:, :7], torch.tensor([7, 7]), torch.arange(2))
        later = [decoding.decode(tokens[:, at], torch.tensor([at, at]), at + 1).clone() for at in range(7, 40)]
        return torch.stack([first, *later]), model.logits(whole[:, 6:].transpose(0, 1).reshape(68, -1)).view(34, 2, -1)


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_gives_the_training_pass_to_the_last_bit(shape: str, ternary: bool) -> None:
    """Every product, norm and sum of a step goes in the order of the training pass, for whatever number of rows."""
    model = decoder(**SHAPES[shape])
    if ternary:
        ternarise(model, TernaryConfig())
    torch.testing.assert_close(*steps_and_pass(model), atol=0, rtol=0)


def test_weights_too_large_to_be_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch multiplies: the same numbers but for the order of sums."""
    model = decoder(mlp_bias=True)
    monkeypatch.setattr(decoding_module, "LAID_OUT", 0)
    torch.testing.assert_close(*steps_and_pass(model), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kept", [0, 1 << 25])
def test_rest_changes_nothing(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_module, "KEPT", kept)
    decoding = KernelDecoding(decoder(intermediate_size=1000))
    before = run(decoding)
    decoding.rest()
    if sys.platform == "linux":  # pages that went back to the system read as zeros
        largest = max(decoding._panels.values(), key=len)
        assert len(largest) > 20_000 and bool(largest[4096:-4096].any()) == bool(kept)
    torch.testing.assert_close(run(decoding), before, atol=0, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vocab", [31, 5000])
def test_with_an_int8_head_the_logits_are_the_training_pass_to_the_last_bit(tied: bool, vocab: int) -> None:
    model = decoder(tie_embeddings=tied, vocab_size=vocab)
    ternarise(model, TernaryConfig())
    model.head = Int8Head(model.embed if model.head is None else model.head)
    tokens = torch.randint(0, 31, (5, 40), generator=torch.Generator().manual_seed(3))
    whole = model.logits_padded(tokens)
    decoding = decoding_of(model)
    assert isinstance(decoding, KernelDecoding)
    for count in (5, 1):  # rows that pass together, and one alone
        decoding.reset(count, 64)
        first = decoding.prefill(tokens[:count, :7], torch.full((count,), 7), torch.arange(count))
        steps = ((tokens[:count, at], torch.full((count,), at), at + 1) for at in range(7, 40))
        found = torch.stack([first, *(decoding.decode(*step).clone() for step in steps)], 1)
        assert torch.equal(found, whole[:count, 6:])
    with torch.no_grad():
        model.output_weight.mul_(torch.linspace(-1, 1, vocab)[:, None])
    expected = model.logits_padded(tokens[:1])[:, 6]
    decoding.reset(1, 64)
    found = decoding.prefill(tokens[:1, :7], torch.tensor([7]), torch.arange(1))
    assert torch.equal(found, expected) and not torch.equal(found, first)


def test_a_ternary_head_is_multiplied_as_it_is_trained() -> None:
    model = decoder(tie_embeddings=False)
    ternarise(model, TernaryConfig(), ("*",))
    tokens = torch.randint(0, 31, (2, 20), generator=torch.Generator().manual_seed(3))
    decoding = KernelDecoding(model)
    decoding.reset(2, 32)
    first = decoding.prefill(tokens[:, :7], torch.tensor([7, 7]), torch.arange(2))
    later = decoding.decode(tokens[:, 7], torch.tensor([7, 7]), 8)
    assert torch.equal(torch.stack([first, later], 1), model.logits_padded(tokens)[:, 6:8])


def test_an_int8_head_in_bf16() -> None:
    model = decoder().to(torch.bfloat16)
    model.head = Int8Head(model.embed)
    one, two = run(KernelDecoding(model)), run(TorchDecoding(model))
    assert one.dtype == two.dtype == torch.float32
    assert (one - two).abs().max() < 0.05 * two.abs().max()


def test_new_weights_are_seen_at_the_next_reset() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = decoder(tie_embeddings=False).to(dtype)
        decoding = KernelDecoding(model)
        before = run(decoding)
        torch.testing.assert_close(run(decoding), before, atol=0, rtol=0)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5)
        changed = run(decoding)
        assert not torch.allclose(changed, before)
        torch.testing.assert_close(changed, run(KernelDecoding(model)), atol=0, rtol=0)


def test_larger_and_smaller_rooms() -> None:
    model = decoder()
    decoding = KernelDecoding(model)
    for rows, length in ((6, 64), (2, 16), (30, 100), (6, 64)):
        decoding.reset(rows, length)
        assert decoding.rows == rows
    torch.testing.assert_close(run(decoding), run(KernelDecoding(model)), atol=0, rtol=0)


def test_what_kernels_cannot_read_goes_to_torch() -> None:
    assert isinstance(decoding_of(decoder()), KernelDecoding)
    assert isinstance(decoding_of(decoder().double()), TorchDecoding)
    adapted = decoder()
    adapted.blocks[1].down = LoraLinear(adapted.blocks[1].down, rank=2, alpha=4.0)
    assert isinstance(decoding_of(adapted), TorchDecoding), "one adapter anywhere is enough"


@pytest.mark.parametrize("level", ["default", "avx2"])
def test_lower_levels_of_the_processor(level: str) -> None:
    program = """
import sys; sys.path.insert(0, "tests")
import torch
from nn.test_decoding import SHAPES, decoder, run
from triloop.nn.decoding import KernelDecoding, TorchDecoding
from triloop.nn.lora import LoraLinear
from triloop.nn.packing import packing
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import ternarise
from triloop.ternary.head import Int8Head
for shape in SHAPES.values():
    model = decoder(**shape)
    torch.testing.assert_close(run(KernelDecoding(model)), run(TorchDecoding(model)), atol=2e-4, rtol=1e-4)
from triloop.kernels.native import describe
print(describe())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TRILOOP_CPU": level}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith((level, "default"))
