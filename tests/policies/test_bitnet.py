"""transformers computes with what was exported the logits that the policy computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from policies import quantised
from triloop.errors import ModelError
from triloop.nn.hf_io import load_pretrained, save_pretrained
from triloop.policies.formats.bitnet import save_bitnet, two_bits
from triloop.policies.formats.bitnet_read import from_quarters, is_bitnet, load_bitnet
from triloop.policies.formats.fixed import fixed_linears
from triloop.policies.formats.packed import load_packed, save_packed
from triloop.policies.formats.weights import plain_decoder, weights_of
from triloop.policies.native import NativePolicy
from triloop.ternary.head import Int8Head

WORDS = quantised.tokenizer()
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "own head": {"tie_embeddings": False},
    "qwen2": {"model_type": "qwen2", "qkv_bias": True},
    "qwen3": {"model_type": "qwen3", "qk_norm": True},
}
IDS = (1, 5, 9, 4, 17, 8, 8, 20, 6, 11)


def _theirs(folder: Path) -> tuple[Any, torch.Tensor]:
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    # The BitLinear of transformers compiles three functions at first use; what they compute is the same without.
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return model, model(torch.tensor([IDS])).logits


def test_two_bits_by_hand() -> None:
    """Rows 0 to 3 share a byte: codes 1, 0, -1, 1 are digits 2, 1, 0, 2: 2 + 1 * 4 + 0 * 16 + 2 * 64."""
    codes = torch.tensor([[1, -1], [0, -1], [-1, -1], [1, 0]], dtype=torch.int8)
    assert two_bits(codes).tolist() == [[134, 64]]


def test_rows_a_quarter_apart_share_a_byte() -> None:
    codes = torch.zeros(8, 1, dtype=torch.int8)
    codes[3] = 1
    assert two_bits(codes).tolist() == [[85], [85 + 4]]


def _assert_alike(theirs: torch.Tensor, ours: torch.Tensor) -> None:
    """Equal but for rounding. Sums of another order may bring an activation half way between two int8 codes to the other
    side, which moves what follows by a step of those codes; most positions have none of these."""
    apart = (theirs - ours).abs().amax(-1)[0] / ours.abs().max()
    assert apart.median() < 1e-6 and apart.max() < 0.1, apart


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_bitnet_gives_our_logits(changes: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    decoder = quantised.ternary(changes)
    size = save_bitnet(tmp_path / "m", decoder, WORDS)
    model, theirs = _theirs(tmp_path / "m")
    assert type(model.model.layers[1].mlp.down_proj).__name__ == "BitLinear"
    _assert_alike(theirs, quantised.logits(decoder, IDS))
    assert size == sum(t.nbytes for t in load_file(tmp_path / "m/model.safetensors").values())


def test_a_bias_of_the_quantiser_goes_with_it(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    decoder = quantised.ternary(quantiser="dead-zone", granularity="tensor")
    save_bitnet(tmp_path / "m", decoder, WORDS)
    _, theirs = _theirs(tmp_path / "m")
    assert json.loads((tmp_path / "m/config.json").read_text())["attention_bias"]
    _assert_alike(theirs, quantised.logits(decoder, IDS))


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_plain_weights_give_our_logits_without_quantised_activations(changes: dict[str, Any], tmp_path: Path) -> None:
    decoder = quantised.ternary(changes, activations="none", granularity="channel")
    save_pretrained(tmp_path / "m", plain_decoder(weights_of(decoder)), WORDS)
    _, theirs = _theirs(tmp_path / "m")
    ours = quantised.logits(decoder, IDS)
    assert (theirs - ours).abs().max() < 1e-5 * ours.abs().max()
    assert (quantised.logits(load_pretrained(tmp_path / "m")[0], IDS) - ours).abs().max() < 1e-5


def test_an_int8_head_is_written_as_what_it_stands_for(tmp_path: Path) -> None:
    """Its inputs are not quantised there, which moves a logit by about a hundredth of the largest."""
    pytest.importorskip("accelerate")
    decoder = quantised.ternary(head="int8")
    assert isinstance(decoder.head, Int8Head)
    save_bitnet(tmp_path / "m", decoder, WORDS)
    model, theirs = _theirs(tmp_path / "m")
    codes, scale = decoder.head.codes()
    assert torch.equal(model.lm_head.weight, codes * scale[:, None])
    assert torch.equal(model.model.embed_tokens.weight, decoder.embed.weight)
    ours = quantised.logits(decoder, IDS)
    apart = (theirs - ours).abs().amax(-1)[0] / ours.abs().max()
    assert 0 < apart.median() < 0.02
    plain = plain_decoder(weights_of(decoder))
    assert torch.equal(plain.output_weight, codes * scale[:, None]) and not plain.config.tie_embeddings


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "scales": ({}, {"granularity": "channel"}, "256 scales, and BitLinear one"),
    "shift": ({}, {"quantiser": "dual", "granularity": "tensor"}, "adds a shift"),
    "codes": ({}, {"quantiser": "paretoq-4", "granularity": "tensor"}, "beyond -1, 0 and 1"),
    "activations": ({}, {"activations": "none"}, "takes activations none"),
    "blocks": ({}, {"activations": "int8-256"}, "takes activations int8-256"),
    "norm": ({}, {"norm": True}, "norm of its own"),
    "rows": ({"intermediate_size": 510}, {}, "510 outputs, no multiple of 4"),
}


@pytest.mark.parametrize(("changes", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_bitlinear_cannot_say_is_refused(
    changes: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        save_bitnet(tmp_path / "m", quantised.ternary(changes, **settings), WORDS)
    assert not (tmp_path / "m").exists()


def test_a_policy_in_full_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="full precision"):
        save_bitnet(tmp_path / "m", quantised.plain(), WORDS)


# -------------------------------------------------------------------- in


def _edited(folder: Path, tensors: dict[str, Any] | None = None, **settings: Any) -> None:
    """``tensors``: functions of the old ones, None to leave one out; ``settings`` of quantization_config."""
    held = load_file(folder / "model.safetensors")
    for name, change in (tensors or {}).items():
        old = held.pop(name, None)
        if change is not None:
            held[name] = change(old)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    said["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(said))


PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")


def _uneven(folder: Path, changes: dict[str, Any]) -> None:
    """A directory whose linears have a scale each, as quantising each by itself gives."""
    save_bitnet(folder, quantised.ternary(changes), WORDS)
    _edited(
        folder,
        {
            f"model.layers.{i}.{part}.weight_scale": lambda old, by=0.6 + 0.3 * k + 0.1 * i: old * by
            for i in range(2)
            for k, part in enumerate(PARTS)
        },
    )


def test_bits_of_rows_come_back() -> None:
    codes = torch.randint(-1, 2, (12, 7), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    assert torch.equal(from_quarters(two_bits(codes)), codes)


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_a_directory_with_a_scale_for_each_linear_gives_transformers_logits(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    _uneven(tmp_path / "m", changes)
    assert is_bitnet(tmp_path / "m")
    decoder, words = load_bitnet(tmp_path / "m")
    _, theirs = _theirs(tmp_path / "m")
    _assert_alike(theirs, quantised.logits(decoder, IDS))
    assert words.encode("12+ab") == WORDS.encode("12+ab")
    scale = fixed_linears(decoder)["layers.1.qkv"].linear.weight.scale
    assert scale.shape == (512, 1) and [len(s.unique()) for s in scale.split([256, 128, 128])] == [1, 1, 1]
    assert len(scale.unique()) == 3 and fixed_linears(decoder)["layers.0.down"].linear.weight.scale.shape == (1, 1)
    again = load_file(tmp_path / "m/model.safetensors")
    save_bitnet(tmp_path / "n", decoder, words)
    for name, tensor in load_file(tmp_path / "n/model.safetensors").items():
        torch.testing.assert_close(tensor, again[name], rtol=1e-6, atol=0, msg=name)


def test_a_policy_of_such_a_directory_samples_and_is_written_again(tmp_path: Path) -> None:
    _uneven(tmp_path / "m", {"qkv_bias": True, "out_bias": True, "mlp_bias": True})
    policy = NativePolicy.load(tmp_path / "m")
    assert policy.weights_sha256() == NativePolicy.load(tmp_path / "m").weights_sha256()
    save_packed(tmp_path / "packed", policy.decoder, policy.tokenizer)
    ours = quantised.logits(policy.decoder, IDS)
    assert torch.equal(quantised.logits(load_packed(tmp_path / "packed")[0], IDS), ours)


def test_what_we_wrote_reads_back_as_the_same_policy(tmp_path: Path) -> None:
    decoder = quantised.ternary(quantiser="dead-zone", granularity="tensor")
    save_bitnet(tmp_path / "m", decoder, WORDS)
    torch.testing.assert_close(quantised.logits(load_bitnet(tmp_path / "m")[0]), quantised.logits(decoder))


DOWN = "model.layers.1.mlp.down_proj.weight"
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "kind": ({}, {"linear_class": "autobitlinear"}, "linear_class 'autobitlinear'; packed weights of BitLinear"),
    "mode": ({}, {"quantization_mode": "online"}, "quantization_mode 'online'"),
    "norm": ({}, {"use_rms_norm": True}, "use_rms_norm True"),
    "unpacked": ({DOWN: lambda t: torch.zeros(256, 512)}, {}, f"{DOWN} is not packed"),
    "no scale": ({f"{DOWN}_scale": None}, {}, f"{DOWN} is not packed with a scale"),
    "digit": ({DOWN: lambda t: t | 3}, {}, f"{DOWN} holds the digit 3"),
    "shape": ({DOWN: lambda t: t[:-1].clone()}, {}, "config.json asks for"),
    "two scales": ({f"{DOWN}_scale": lambda t: t.repeat(2)}, {}, "expected one positive number"),
    "scale": ({f"{DOWN}_scale": lambda t: -t}, {}, "expected one positive number"),
    "missing": ({DOWN: None}, {}, f"Missing: {DOWN}"),
    "left over": ({"model.extra.weight": lambda t: torch.zeros(2)}, {}, "Not expected: model.extra.weight"),
}


@pytest.mark.parametrize(("tensors", "settings", "message"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_with_a_directory_is_told(
    tensors: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_bitnet(tmp_path / "m", quantised.ternary(), WORDS)
    _edited(tmp_path / "m", tensors, **settings)
    with pytest.raises(ModelError, match=message):
        load_bitnet(tmp_path / "m")


def test_other_directories_are_not_taken_for_it(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", quantised.plain(), WORDS)
    assert not is_bitnet(tmp_path / "m") and not is_bitnet(tmp_path / "none")
