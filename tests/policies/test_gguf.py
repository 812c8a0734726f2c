"""GGUF files: bytes of the ternary blocks by hand, everything reads back equal, what does not fit is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policies import quantised
from triloop.errors import ModelError, TriloopError, UsageError
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.hf_io import load_pretrained
from triloop.nn.hf_names import hf_parts
from triloop.nn.rope import rope_frequencies
from triloop.nn.tokenizer import Tokenizer, word_tokenizer
from triloop.policies.formats.gguf_file import BLOCK, TYPES, GgufReport, write_gguf
from triloop.policies.formats.gguf_read import Gguf, read_gguf
from triloop.policies.formats.gguf_shape import architecture, gguf_name, metadata, rope_factors, rope_order
from triloop.policies.formats.weights import weights_of
from triloop.ternary.convert import linears, set_blend
from triloop.ternary.head import Int8Head

gguf = pytest.importorskip("gguf")


def _same(a: Decoder, b: Decoder) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "own head": ("llama", {"tie_embeddings": False, "head_dim": 16, "norm_eps": 1e-5}),
    "biases": ("llama", {"qkv_bias": True, "out_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {"model_type": "qwen2", "qkv_bias": True, "rope_theta": 1e6}),
    "qwen3": ("qwen3", {"model_type": "qwen3", "qk_norm": True, "head_dim": 32}),
    "smollm3": ("smollm3", {"model_type": "smollm3", "num_layers": 4, "nope_layers": (3,)}),
    "linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "yarn": (
        "qwen2",
        {
            "model_type": "qwen2",
            "qkv_bias": True,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        },
    ),
    "llama3": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
}


@pytest.mark.parametrize(("arch", "changes"), SHAPES.values(), ids=SHAPES)
def test_what_is_read_is_what_was_written(arch: str, changes: dict[str, Any], tmp_path: Path) -> None:
    decoder, words = quantised.plain(**changes), quantised.tokenizer()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.01)
    report = write_gguf(tmp_path / "m.gguf", decoder, words, type="f32")
    assert report.architecture == arch and report.bytes == (tmp_path / "m.gguf").stat().st_size and report.bits == 32
    again, read = read_gguf(tmp_path / "m.gguf")
    _same(decoder, again)
    assert read.files == words.files and again.config == decoder.config
    assert torch.equal(quantised.logits(again), quantised.logits(decoder))
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_half_precision_halves_matrices_only(tmp_path: Path) -> None:
    decoder = quantised.plain()
    report = write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer())
    kinds = {name: t.tensor_type.name for name, t in Gguf(report.path).tensors.items()}
    assert set(kinds.values()) == {"F16", "F32"} and all((k == "F32") == ("norm" in n) for n, k in kinds.items())
    again, _ = read_gguf(report.path)
    for name, parameter in decoder.named_parameters():
        expected = parameter.half().float() if parameter.ndim == 2 else parameter
        assert torch.equal(again.get_parameter(name), expected)
    assert (report.type, report.bits) == ("f16", 16)


def _noted(report: GgufReport) -> list[str]:
    return [note for note in report.notes if "alphabet" not in note]  # without that of the tokenizer


@pytest.mark.parametrize(
    ("type", "rest", "matrix", "notes"),
    [
        ("tq2_0", None, "F16", 1),
        ("tq2_0", "f16", "F16", 1),
        ("tq1_0", "f32", "F32", 0),
        ("f32", "f16", "F16", 1),
        ("f32", None, "F32", 1),
        ("f16", "f32", "F32", 1),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_have_a_type_of_their_own(
    type: str, rest: str | None, matrix: str, notes: int, tied: bool, tmp_path: Path
) -> None:
    decoder = quantised.ternary({"tie_embeddings": tied}, activations="int8-256")
    report = write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type=type, rest=rest)
    kinds = {name: t.tensor_type.name for name, t in Gguf(report.path).tensors.items()}
    assert {kinds.pop(name) for name in ("token_embd.weight", "output.weight") if name in kinds} == {matrix}
    assert ("output.weight" in Gguf(report.path).tensors) != tied
    assert all(k == ("F32" if "norm" in name else TYPES[type][0]) for name, k in kinds.items())
    assert len(_noted(report)) == notes
    if type == "tq2_0":
        assert "--rest f32" in _noted(report)[0]
    embeddings = read_gguf(report.path)[0].embed.weight
    assert torch.equal(embeddings, decoder.embed.weight.half().float() if matrix == "F16" else decoder.embed.weight)
    with pytest.raises(UsageError, match="--rest is 'tq1_0'; expected one of f16, f32"):
        write_gguf(tmp_path / "n.gguf", decoder, quantised.tokenizer(), type=type, rest="tq1_0")


@pytest.mark.parametrize(
    ("activations", "type", "note"),
    [
        ("int8", "tq2_0", "are int8 per token here; llama.cpp quantises them to int8 in blocks of 256 inputs"),
        ("none", "tq1_0", "are not quantised here; llama.cpp quantises them to int8 in blocks"),
        ("int8-256", "f32", "are int8 per token and 256 inputs here; llama.cpp quantises them not at all"),
    ],
)
def test_a_note_tells_what_llama_cpp_rounds(activations: str, type: str, note: str, tmp_path: Path) -> None:
    decoder = quantised.ternary(activations=activations)
    notes = _noted(write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type=type, rest="f32"))
    assert len(notes) == 1 and note in notes[0]


# -------------------------------------------------------------------- names and the rotary order


def test_the_rotary_order_by_hand() -> None:
    """Two heads of four: rows (0, 2), (1, 3) turn together here, neighbours there."""
    assert rope_order(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_turning_neighbours_in_that_order_is_turning_halves_in_ours() -> None:
    x, angle = torch.randn(8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 1.1, 2.0, 0.7])
    halves = torch.cat((x[:4] * angle.cos() - x[4:] * angle.sin(), x[4:] * angle.cos() + x[:4] * angle.sin()))
    y = x[rope_order(1, 8)].view(4, 2)
    turned = torch.stack(
        (y[:, 0] * angle.cos() - y[:, 1] * angle.sin(), y[:, 1] * angle.cos() + y[:, 0] * angle.sin()), 1
    )
    assert torch.equal(turned.reshape(-1), halves[rope_order(1, 8)])


def test_every_tensor_has_the_name_that_the_package_knows() -> None:
    config = DecoderConfig(**{**quantised.SHAPE, "qk_norm": True, "tie_embeddings": False})
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_layers)
    for name in hf_parts(config):
        stem, _, kind = name.rpartition(".")
        assert gguf_name(name) == f"{known.get_name(stem)}.{kind}"


def test_llama3_factors_are_the_ratio_of_frequencies() -> None:
    config = DecoderConfig(**{**quantised.SHAPE, **SHAPES["llama3"][1]})
    factors = rope_factors(config)
    assert factors is not None
    plain, _ = rope_frequencies(64, 10000.0, None, 64)
    scaled, _ = rope_frequencies(64, 10000.0, config.rope_scaling, 64)
    assert torch.allclose(plain / factors, scaled, rtol=1e-6) and factors[0] == 1.0 and factors[-1] == 8.0


def test_yarn_leaves_to_llama_cpp_the_factor_that_it_multiplies_by_itself() -> None:
    """llama.cpp takes attn_factor (0.1 ln 4 + 1); a model that asks for 1 must say 1 / 1.13863."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    config = DecoderConfig(**{**quantised.SHAPE, "rope_scaling": scaling})
    assert metadata(config, "llama")["rope.scaling.attn_factor"] == pytest.approx(1.0)
    own = DecoderConfig(**{**quantised.SHAPE, "rope_scaling": {**scaling, "attention_factor": 1.0, "beta_fast": 16}})
    said = metadata(own, "llama")
    assert said["rope.scaling.attn_factor"] == pytest.approx(1 / (0.1 * math.log(4) + 1))
    assert said["rope.scaling.yarn_beta_fast"] == 16.0 and said["rope.scaling.original_context_length"] == 16


# -------------------------------------------------------------------- ternary blocks


def _codes(decoder: Decoder, linear: str) -> tuple[Tensor, Tensor]:
    weight = linears(decoder)[linear].quantised()
    return weight.codes, weight.scale


def _block_tq2(codes: list[int], scale: float) -> bytes:
    """Byte 32 h + m holds codes m, m + 32, m + 64, m + 96 of half h, plus one, two bits each from the lowest."""
    out = [sum((codes[128 * h + m + 32 * n] + 1) << 2 * n for n in range(4)) for h in range(2) for m in range(32)]
    return bytes(out) + torch.tensor([scale]).half().numpy().tobytes()


def _block_tq1(codes: list[int], scale: float) -> bytes:
    """Base 3, first code highest, scaled from 243 to 256 and rounded up: 32 bytes of codes m + 32 n, 16 of m + 16 n, then
    four bytes of four codes m + 4 n and a zero digit."""

    def packed(start: int, wide: int, digits: int) -> list[int]:
        found = []
        for m in range(wide):
            q = sum((codes[start + m + wide * n] + 1) * 3 ** (4 - n) for n in range(digits))
            found.append((q * 256 + 242) // 243)
        return found

    return (
        bytes(packed(0, 32, 5) + packed(160, 16, 5) + packed(240, 4, 4))
        + torch.tensor([scale]).half().numpy().tobytes()
    )


@pytest.mark.parametrize("kind", ["tensor", "channel", "group"])
@pytest.mark.parametrize(("type", "block", "bits"), [("tq1_0", _block_tq1, 1.6875), ("tq2_0", _block_tq2, 2.0625)])
def test_ternary_blocks_are_as_the_format_says(kind: str, type: str, block: Any, bits: float, tmp_path: Path) -> None:
    decoder = quantised.ternary(**quantised.KINDS[kind])
    report = write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type=type)
    assert report.bits == bits
    codes, scale = _codes(decoder, "layers.1.down")
    found = Gguf(report.path).tensors["blk.1.ffn_down.weight"]
    assert found.tensor_type.name == TYPES[type][0] and len(found.data) == 256
    for row in (0, 100, 255):
        expected = b""
        for b in range(2):
            part = codes[row, 256 * b : 256 * b + 256].tolist()
            assert any(part)
            expected += block(part, float(scale[row % scale.shape[0], b % scale.shape[1]]))
        assert found.data[row].tobytes() == expected


@pytest.mark.parametrize("type", ["tq1_0", "tq2_0"])
def test_codes_and_scales_come_back(type: str, tmp_path: Path) -> None:
    decoder = quantised.ternary(granularity="channel")
    weights = weights_of(decoder)
    file = Gguf(write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type=type).path)
    for name, part in weights.parts().items():
        expected = weights.quantised(part)
        if expected is None:
            continue
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
        order = rope_order(heads, 64) if heads else torch.arange(part.shape[0])
        half = expected.scale.half().float()[order]
        assert torch.equal(file.tensor(gguf_name(name), part.shape), expected.codes[order] * half)


@pytest.mark.parametrize("type", ["TQ1_0", "TQ2_0"])
def test_a_hundred_thousand_blocks_come_back(type: str) -> None:
    """Of any density, and the extremes; scales over all normal half-precision numbers."""
    g = torch.Generator().manual_seed(7)
    kind = gguf.GGMLQuantizationType[type]
    for chunk in range(10):
        density = torch.rand(10_000, 1, generator=g)
        sign = torch.where(torch.rand(10_000, BLOCK, generator=g) < 0.5, -1.0, 1.0)
        codes = sign * (torch.rand(10_000, BLOCK, generator=g) < density)
        codes[0], codes[1], codes[2] = 0, 1, -1
        codes[3] = (torch.arange(BLOCK) == 25 * chunk).float()
        codes[4] = -codes[3]
        scale = 2.0 ** (torch.rand(10_000, 1, generator=g) * 29.9 - 14)
        packed = gguf.quants.quantize((codes * scale).numpy(), kind)
        assert torch.equal(torch.from_numpy(gguf.quants.dequantize(packed, kind)), codes * scale.half().float())


def test_a_block_of_zeros_is_zeros(tmp_path: Path) -> None:
    decoder = quantised.ternary()
    with torch.no_grad():
        linears(decoder)["layers.0.down"].weight[3, :256] = 0
    file = Gguf(write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type="tq1_0").path)
    row = file.tensor("blk.0.ffn_down.weight", (256, 512))[3]
    assert not row[:256].any() and row[256:].any()


def test_a_bias_that_a_quantiser_adds_is_written(tmp_path: Path) -> None:
    decoder = quantised.ternary(**quantised.KINDS["dead zone"])
    file = Gguf(write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type="tq2_0").path)
    bias = linears(decoder)["layers.0.qkv"].fused_bias()
    assert bias is not None and bool(bias.any())
    assert torch.equal(file.tensor("blk.0.attn_v.bias", (128,)), bias[384:])
    assert torch.equal(file.tensor("blk.0.attn_q.bias", (256,)), bias[:256][rope_order(4, 64)])


@pytest.mark.parametrize("tied", [True, False])
def test_an_int8_head_keeps_its_codes_beside_ternary_linears(tied: bool, tmp_path: Path) -> None:
    """Q8_0 by hand: two bytes of the row's scale in half precision, then 32 codes, block after block."""
    decoder = quantised.ternary({"tie_embeddings": tied}, head="int8")
    assert isinstance(decoder.head, Int8Head)
    codes, scale = decoder.head.codes()
    report = write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type="tq2_0")
    assert any("head is written as Q8_0" in note for note in report.notes)
    file = Gguf(report.path)
    head = file.tensors["output.weight"]
    assert head.tensor_type.name == "Q8_0" and file.tensors["token_embd.weight"].tensor_type.name == "F16"
    for row in (0, 9):
        block = codes[row, 32:64].numpy().tobytes()
        assert head.data[row].tobytes()[34:68] == scale[row].half().numpy().tobytes() + block
    expected = codes * scale.half().float()[:, None]
    assert torch.equal(file.tensor("output.weight", tuple(codes.shape)), expected)
    again, _ = read_gguf(report.path)
    assert torch.equal(again.output_weight, expected)
    assert torch.equal(again.embed.weight, decoder.embed.weight.half().float())


@pytest.mark.parametrize("type", ["f32", "f16"])
def test_an_int8_head_is_written_as_what_it_stands_for(type: str, tmp_path: Path) -> None:
    decoder = quantised.ternary(head="int8")
    assert isinstance(decoder.head, Int8Head)
    report = write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type=type)
    assert any(f"head is written as {type.upper()}" in note for note in report.notes)
    codes, scale = decoder.head.codes()
    dense = codes * scale[:, None]
    found = Gguf(report.path).tensor("output.weight", tuple(codes.shape))
    assert torch.equal(found, dense if type == "f32" else dense.half().float())


def test_a_head_whose_scales_half_precision_cannot_hold_is_f16(tmp_path: Path) -> None:
    decoder = quantised.ternary(head="int8")
    with torch.no_grad():
        decoder.embed.weight[7] *= 1e-4
    report = write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type="tq2_0")
    assert Gguf(report.path).tensors["output.weight"].tensor_type.name == "F16"
    assert any("head is written as F16" in note for note in report.notes)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "width": ({"intermediate_size": 384}, {}, "tq1_0", "layers.0.down has 384 inputs.*multiple of 256"),
    "groups": ({}, {"granularity": "group", "group": 128}, "tq2_0", "every 128 inputs"),
    "shift": ({}, {"quantiser": "dual"}, "tq2_0", "adds a shift"),
    "codes": ({}, {"quantiser": "paretoq-2"}, "tq2_0", "beyond -1, 0 and 1"),
    "norm": ({}, {"norm": True}, "f16", "norm of its own"),
}


@pytest.mark.parametrize(("changes", "settings", "type", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], settings: dict[str, Any], type: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        write_gguf(tmp_path / "m.gguf", quantised.ternary(changes, **settings), quantised.tokenizer(), type=type)
    assert not list(tmp_path.iterdir())


def test_scales_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    decoder = quantised.ternary(quantiser="paretoq-1.58")
    with torch.no_grad():
        scale = linears(decoder)["layers.1.out"].weight_scale
        assert scale is not None
        scale.mul_(1e-5)
    with pytest.raises(ModelError, match=r"layers.1.out has scales.*half precision"):
        write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type="tq2_0")


def test_a_policy_that_is_not_ternary_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="full precision.*f16, or train a ternary policy"):
        write_gguf(tmp_path / "m.gguf", quantised.plain(), quantised.tokenizer(), type="tq1_0")
    with pytest.raises(UsageError, match="q4_0.*expected one of f32, f16, tq1_0, tq2_0"):
        write_gguf(tmp_path / "m.gguf", quantised.plain(), quantised.tokenizer(), type="q4_0")
    half_way = quantised.ternary(gradual=True)
    set_blend(half_way, 0.5)
    with pytest.raises(ModelError, match=r"0\.5 of its gradual schedule"):
        write_gguf(tmp_path / "m.gguf", half_way, quantised.tokenizer())


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    decoder = quantised.plain()
    with torch.no_grad():
        decoder.blocks[1].down.weight[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"blk.1.ffn_down.weight.*half precision"):
        write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type="f16")
    assert not list(tmp_path.iterdir())


SHAPES_REFUSED = {
    "window": ({"sliding_window": 8, "sliding_layers": (0, 1)}, "sees 8 of 64"),
    "nope": ({"nope_layers": (0,)}, "every 4th layer"),
    "norms and biases": ({"qk_norm": True, "qkv_bias": True}, "qwen3 has none"),
}


@pytest.mark.parametrize(("changes", "message"), SHAPES_REFUSED.values(), ids=SHAPES_REFUSED)
def test_shapes_without_an_architecture_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        architecture(DecoderConfig(**{**quantised.SHAPE, **changes}))


def test_a_word_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="one token per word"):
        write_gguf(tmp_path / "m.gguf", quantised.plain(vocab_size=6), word_tokenizer(["a", "b"]))


# -------------------------------------------------------------------- faults of a file


def _fault(name: str, raw: bytes) -> bytes:
    edits: dict[str, bytes] = {
        "cut": raw[:-2000],
        "cut in the keys": raw[:300],
        "magic": b"GGML" + raw[4:],
        "version": raw[:4] + b"\x63" + raw[5:],
        "architecture": raw.replace(
            b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00mamba", 1
        ),
        "tensor": raw.replace(b"blk.1.attn_v.weight", b"blk.1.attn_x.weight", 1),
        "empty": b"",
    }
    return edits[name]


@pytest.mark.parametrize("name", ["cut", "cut in the keys", "magic", "version", "architecture", "tensor", "empty"])
def test_a_damaged_file_is_told(name: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", quantised.plain(), quantised.tokenizer()).path
    raw = path.read_bytes()
    changed = _fault(name, raw)
    assert changed != raw
    path.write_bytes(changed)
    with pytest.raises(ModelError, match="m.gguf"):
        read_gguf(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        read_gguf(tmp_path / "none.gguf")


def test_a_folder_is_no_place_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        write_gguf(tmp_path, quantised.plain(), quantised.tokenizer())


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(TriloopError, match=r"pip install 'triloop\[gguf\]'"):
        write_gguf(tmp_path / "m.gguf", quantised.plain(), quantised.tokenizer())


@pytest.mark.parametrize("type", ["f32", "f16"])
def test_stories260k_comes_back(type: str, shared: Path, tmp_path: Path) -> None:
    decoder, words = load_pretrained(shared / "models/stories260K")
    report = write_gguf(tmp_path / "m.gguf", decoder, words, type=type)
    again, read = read_gguf(report.path)
    assert isinstance(read, Tokenizer) and read.files == words.files and report.notes == ()
    for name, parameter in decoder.named_parameters():
        half = type == "f16" and parameter.ndim == 2
        assert torch.equal(again.get_parameter(name), parameter.half().float() if half else parameter)
