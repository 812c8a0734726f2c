"""transformers computes with what was exported the logits that the policy computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from policies import quantised
from triloop.errors import ModelError
from triloop.nn.hf_io import load_pretrained, save_pretrained
from triloop.policies.formats.bitnet import save_bitnet, two_bits
from triloop.policies.formats.weights import plain_decoder, weights_of
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
