"""Packed weights: the same numbers after writing and reading, and every fault of the files told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from policies import quantised
from policies.small import TAG, prompts
from triloop.errors import ModelError
from triloop.kernels.trits import from_trits
from triloop.policies.formats.fixed import FixedHead, fixed_linears
from triloop.policies.formats.packed import is_packed, load_packed, save_packed
from triloop.policies.formats.weights import plain_decoder, rows_of, weights_of
from triloop.policies.native import NativePolicy
from triloop.policies.sampling import Sampling
from triloop.ternary.convert import linears
from triloop.ternary.head import Int8Head
from triloop.ternary.quantisers import Quantised

WORDS = quantised.tokenizer()
SMALL = {"hidden_size": 36, "intermediate_size": 52, "num_heads": 3, "num_kv_heads": 3, "head_dim": 14}
"""Widths that no block divides."""


@pytest.mark.parametrize("kind", quantised.KINDS)
@pytest.mark.parametrize("changes", [{}, SMALL], ids=["whole blocks", "odd widths"])
def test_the_same_numbers_come_back(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    decoder = quantised.ternary(changes, **quantised.KINDS[kind])
    report = save_packed(tmp_path / "m", decoder, WORDS)
    again, words = load_packed(tmp_path / "m")
    assert torch.equal(quantised.logits(again), quantised.logits(decoder))
    assert words.files == WORDS.files and not any(p.requires_grad for p in again.parameters())
    for name, linear in linears(decoder).items():
        assert torch.equal(fixed_linears(again)[name].linear.weight.codes, linear.quantised().codes)
        assert torch.equal(fixed_linears(again)[name].linear.weight.scale, linear.quantised().scale)
    assert report.linear_weights == sum(m.weight.numel() for m in linears(decoder).values())
    # and once more from what was read
    save_packed(tmp_path / "again", again, words)
    assert (
        load_file(tmp_path / "again/packed.safetensors").keys() == load_file(tmp_path / "m/packed.safetensors").keys()
    )
    assert torch.equal(quantised.logits(load_packed(tmp_path / "again")[0]), quantised.logits(decoder))


def test_the_size_by_hand(tmp_path: Path) -> None:
    """qkv: 512 rows of 256 inputs, 52 bytes each, and one scale of 4 bytes."""
    report = save_packed(tmp_path / "m", quantised.ternary(), WORDS)
    layer = 512 * 52 + 256 * 52 + 1024 * 52 + 256 * 103 + 4 * 4
    assert report.linear_bytes == 2 * layer and report.bits == 8 * layer / (
        512 * 256 + 256 * 256 + 1024 * 256 + 256 * 512
    )
    assert report.bits < 1.64 and report.bytes == (tmp_path / "m/packed.safetensors").stat().st_size


def test_codes_lie_as_the_format_says(tmp_path: Path) -> None:
    decoder = quantised.ternary()
    save_packed(tmp_path / "m", decoder, WORDS)
    tensors, told = load_file(tmp_path / "m/packed.safetensors"), json.loads((tmp_path / "m/packed.json").read_text())
    assert torch.equal(
        from_trits(tensors["layers.0.down.codes"], 512), linears(decoder)["layers.0.down"].quantised().codes
    )
    assert told["linears"]["layers.0.down"] == {
        "shape": [256, 512], "codes": "trits", "group": 0, "activations": "int8", "activation_bits": 8, "norm_eps": 1e-6,
    }  # fmt: skip
    assert told["sha256"] == hashlib.sha256((tmp_path / "m/packed.safetensors").read_bytes()).hexdigest()
    assert "quantization_config" not in told["config"] and is_packed(tmp_path / "m") and not is_packed(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dense", [torch.float32, torch.float16])
def test_an_int8_head_lies_beside_the_embedding(tied: bool, dense: torch.dtype, tmp_path: Path) -> None:
    """Its codes stay as they are where the embedding, which they may come from, is rounded."""
    decoder = quantised.ternary({"tie_embeddings": tied}, head="int8")
    assert isinstance(decoder.head, Int8Head)
    codes, scale = decoder.head.codes()
    save_packed(tmp_path / "m", decoder, WORDS, dense=dense)
    tensors, told = load_file(tmp_path / "m/packed.safetensors"), json.loads((tmp_path / "m/packed.json").read_text())
    assert torch.equal(tensors["head.codes"], codes) and torch.equal(tensors["head.scale"][:, 0], scale)
    assert "head.weight" not in tensors and tensors["embed.weight"].dtype == dense
    assert told["head"] == {"shape": list(codes.shape)} and not told["config"]["tie_word_embeddings"]
    again, _ = load_packed(tmp_path / "m")
    assert isinstance(again.head, FixedHead)
    hidden = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.logits(hidden), decoder.logits(hidden))
    assert torch.equal(again.output_weight, codes * scale[:, None])
    save_packed(tmp_path / "again", again, WORDS, dense=dense)
    twice = load_file(tmp_path / "again/packed.safetensors")
    assert twice.keys() == tensors.keys() and torch.equal(twice["head.codes"], codes)
    how = Sampling(max_tokens=12)
    policy, packed = NativePolicy(decoder, WORDS), NativePolicy.load(tmp_path / "m")
    if dense == torch.float32:
        assert [c.tokens for c in packed.sample(prompts(), 2, how, TAG)] == [
            c.tokens for c in policy.sample(prompts(), 2, how, TAG)
        ]
    assert packed.weights_sha256() == packed.frozen().weights_sha256()
    scales = packed.decoder.head.packed.scales  # type: ignore[union-attr]
    before = packed.weights_sha256()
    scales[0] *= 2
    assert packed.weights_sha256() != before
    with pytest.raises(ModelError, match="codes and no weights"):
        again.logits(hidden.requires_grad_())


def test_half_precision_of_the_rest(tmp_path: Path) -> None:
    decoder = quantised.ternary()
    save_packed(tmp_path / "m", decoder, WORDS, dense=torch.float16)
    again, _ = load_packed(tmp_path / "m")
    assert torch.equal(again.embed.weight, decoder.embed.weight.half().float()) and again.dtype == torch.float32
    with torch.no_grad():
        decoder.embed.weight[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"embed.weight.*float16.*write float32"):
        save_packed(tmp_path / "n", decoder, WORDS, dense=torch.float16)


def test_a_policy_samples_from_packed_weights_what_it_sampled_before(tmp_path: Path) -> None:
    decoder = quantised.ternary()
    save_packed(tmp_path / "m", decoder, WORDS)
    how = Sampling(max_tokens=12)
    before = NativePolicy(decoder, WORDS, precision=torch.float32).sample(prompts(), 2, how, TAG)
    policy = NativePolicy.load(tmp_path / "m")
    after = policy.sample(prompts(), 2, how, TAG)
    assert [c.tokens for c in after] == [c.tokens for c in before]
    assert [c.logps for c in after] == [pytest.approx(c.logps, abs=1e-6) for c in before]


def test_a_frozen_copy_and_a_digest(tmp_path: Path) -> None:
    decoder = quantised.ternary(granularity="channel")
    for name in ("m", "n"):
        save_packed(tmp_path / name, decoder, WORDS)
        with torch.no_grad():
            linears(decoder)["layers.1.down"].weight[3, 5] += 1.0
    one, other = (NativePolicy.load(tmp_path / name) for name in ("m", "n"))
    copy = one.frozen()
    assert torch.equal(quantised.logits(copy.decoder), quantised.logits(one.decoder))
    assert copy.weights_sha256() == one.weights_sha256() != other.weights_sha256()


def test_blocks_of_activations_need_groups_of_whole_blocks(tmp_path: Path) -> None:
    save_packed(tmp_path / "m", quantised.ternary(granularity="group", group=128), WORDS)
    path = tmp_path / "m/packed.json"
    told = json.loads(path.read_text())
    told["linears"]["layers.0.down"]["activations"] = "int8-256"
    path.write_text(json.dumps(told))
    with pytest.raises(ModelError, match=r"linear layers\.0\.down"):
        load_packed(tmp_path / "m")


def test_packed_weights_cannot_learn(tmp_path: Path) -> None:
    save_packed(tmp_path / "m", quantised.ternary(), WORDS)
    decoder, _ = load_packed(tmp_path / "m")
    decoder.embed.weight.requires_grad_()
    with pytest.raises(ModelError, match="codes and no weights to train"):
        decoder.logits_padded(torch.tensor([[1, 2, 3]]))


def test_a_policy_in_full_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="full precision.*--format hf or gguf"):
        save_packed(tmp_path / "m", quantised.plain(), WORDS)
    assert not (tmp_path / "m").exists()


# -------------------------------------------------------------------- what is between a decoder and its files


def test_rows_of_a_quantised_weight_by_hand() -> None:
    codes = torch.tensor([[1, 0], [-1, 1], [0, -1]], dtype=torch.int8)
    rows = rows_of(Quantised(codes=codes, scale=torch.tensor([[1.0], [2.0], [3.0]])), 1, 2)
    assert rows.dense().tolist() == [[-2.0, 2.0], [0.0, -3.0]]
    assert rows_of(Quantised(codes=codes, scale=torch.tensor([[2.0]])), 2, 1).dense().tolist() == [[0.0, -2.0]]


@pytest.mark.parametrize("quantiser", ["absmean", "dual", "dead-zone", "paretoq-3"])
def test_plain_linears_say_the_same_without_quantised_activations(quantiser: str) -> None:
    decoder = quantised.ternary(quantiser=quantiser, activations="none")
    made = plain_decoder(weights_of(decoder))
    assert not linears(made) and made.config.qkv_bias == (quantiser == "dead-zone")
    ours = quantised.logits(decoder)
    assert (quantised.logits(made) - ours).abs().max() < 1e-5 * ours.abs().max()


# -------------------------------------------------------------------- faults


def _json(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        told = json.loads((folder / "packed.json").read_text())
        edit(told)
        (folder / "packed.json").write_text(json.dumps(told))

    return change


def _file(edit: Callable[[dict[str, torch.Tensor]], Any], *, signed: bool = True) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "packed.safetensors")
        edit(tensors)
        save_file(tensors, folder / "packed.safetensors")
        if signed:
            digest = hashlib.sha256((folder / "packed.safetensors").read_bytes()).hexdigest()
            _json(lambda told: told.update(sha256=digest))(folder)

    return change


def _cut(folder: Path) -> None:
    raw = (folder / "packed.safetensors").read_bytes()
    (folder / "packed.safetensors").write_bytes(raw[:-100])


CODES = "layers.1.out.codes"
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut short": (_cut, "not a complete safetensors file"),
    "gone": (lambda f: (f / "packed.safetensors").unlink(), "the file is missing"),
    "no manifest": (lambda f: (f / "packed.json").write_text("{"), "is not JSON"),
    "format": (_json(lambda t: t.update(format="GGUF")), "format is 'GGUF', expected 'triloop-packed'"),
    "version": (_json(lambda t: t.update(version=2)), "version 2 of the format; this program reads 1"),
    "no sha": (_json(lambda t: t.pop("sha256")), "sha256 is None, expected a str"),
    "changed": (_file(lambda t: t[CODES].add_(1), signed=False), "sha256 differs"),
    "byte": (_file(lambda t: t[CODES][0, 0].fill_(243)), r"layers.1.out.codes: a byte of packed trits is 243"),
    "shape": (_file(lambda t: t.update({CODES: t[CODES][:, 1:].contiguous()})), r"\[256, 51\], expected torch.uint8 \[256"),
    "type": (_file(lambda t: t.update({CODES: t[CODES].to(torch.int16)})), r"is torch.int16 .*expected torch.uint8"),
    "lacking": (_file(lambda t: t.pop("norm.weight")), "lacks tensor norm.weight"),
    "left over": (_file(lambda t: t.update(more=torch.ones(1))), "does not name: more"),
    "not finite": (_file(lambda t: t["layers.0.qkv.scale"].fill_(float("nan"))), "NaN or infinite"),
    "other width": (_json(lambda t: t["linears"]["layers.0.qkv"].update(shape=[512, 255])), r"expected shape \[512, 256\]"),
    "other linear": (_json(lambda t: t["linears"].update(head=t["linears"].pop("layers.0.qkv"))), "has no linear head"),
    "activations": (_json(lambda t: t["linears"]["layers.0.qkv"].update(activations="fp4")), "linear layers.0.qkv is"),
}  # fmt: skip


HEAD_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "tied": (_json(lambda t: t["config"].update(tie_word_embeddings=True)), "expected a config that is not tied"),
    "other shape": (_json(lambda t: t.update(head={"shape": [3, 256]})), r"head is .*its shape \[\d+, 256\]"),
    "no words": (_json(lambda t: t.update(head=None)), "head is None"),
    "not told": (_json(lambda t: t.pop("head")), "lacks tensor head.weight"),
    "-128": (_file(lambda t: t["head.codes"][3, 5].fill_(-128)), "holds a code -128"),
    "no codes": (_file(lambda t: t.pop("head.codes")), "lacks tensor head.codes"),
    "scales": (_file(lambda t: t.update({"head.scale": t["head.scale"][1:].clone()})), "head.scale is torch.float32"),
}


@pytest.mark.parametrize(("change", "message"), HEAD_FAULTS.values(), ids=HEAD_FAULTS)
def test_a_fault_of_the_head_is_told(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    save_packed(tmp_path / "m", quantised.ternary(head="int8"), WORDS)
    change(tmp_path / "m")
    with pytest.raises(ModelError, match=message):
        load_packed(tmp_path / "m")


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    save_packed(tmp_path / "m", quantised.ternary(), WORDS)
    change(tmp_path / "m")
    with pytest.raises(ModelError, match=message):
        load_packed(tmp_path / "m")
