"""llama.cpp itself, where its Python binding is installed: logits of every architecture, tokens of every tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies import quantised
from policies.test_gguf import SHAPES
from policies.test_gguf_vocab import RULES, TEXTS
from triloop.nn.hf_io import load_pretrained
from triloop.nn.tokenizer import Tokenizer
from triloop.policies.formats.gguf_file import write_gguf

llama_cpp = pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")
IDS = [1, *((i * 7) % 21 + 1 for i in range(50))]


def _logits(path: Path, ids: list[int]) -> np.ndarray[Any, Any]:
    model = llama_cpp.Llama(str(path), n_ctx=64, verbose=False, n_threads=1, type_k=0, type_v=0, logits_all=True)
    model.eval(ids)
    found = np.array(model.scores[: len(ids)])
    model.close()
    return found


OWN_FACTOR = {"rope_scaling": {**SHAPES["yarn"][1]["rope_scaling"], "attention_factor": 1.4, "beta_fast": 20.0}}


@pytest.mark.parametrize("changes", [*(c for _, c in SHAPES.values()), OWN_FACTOR], ids=[*SHAPES, "own factor"])
def test_every_architecture_gives_our_logits(changes: dict[str, Any], tmp_path: Path) -> None:
    decoder = quantised.plain(**changes)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(2))
    path = write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type="f32").path
    ours = quantised.logits(decoder, IDS)[0].numpy()
    assert np.abs(_logits(path, IDS) - ours).max() < 1e-5 * np.abs(ours).max()


@pytest.mark.parametrize(("type", "within"), [("f32", 1e-5), ("f16", 2e-3), ("tq1_0", 0.05), ("tq2_0", 0.05)])
def test_a_ternary_policy_gives_our_logits(type: str, within: float, tmp_path: Path) -> None:
    """With unquantised activations; tq types round them to int8 in blocks of 256."""
    decoder = quantised.ternary(quantiser="dead-zone", activations="none")
    path = write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type=type).path
    ours = quantised.logits(decoder, IDS)[0].numpy()
    assert np.abs(_logits(path, IDS) - ours).max() < within * np.abs(ours).max()


@pytest.mark.parametrize("settings", [{}, {"granularity": "channel"}, {"granularity": "group", "group": 256}], ids=str)
@pytest.mark.parametrize("type", ["tq1_0", "tq2_0"])
def test_activations_in_blocks_are_llama_cpps_own(type: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """The same whole numbers and scales. Sums of another order between the products may bring an activation half way
    between two codes to the other side, from which on all differs: most tokens by themselves have none."""
    decoder = quantised.ternary(activations="int8-256", **settings)
    path = write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type=type, rest="f32").path
    apart = []
    for token in range(1, 21):
        ours = quantised.logits(decoder, [token])[0].numpy()
        apart.append(np.abs(_logits(path, [token]) - ours).max() / np.abs(ours).max())
    assert np.median(apart) < 1e-6 and max(apart) < 0.1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("type", "within"), [("f32", 0.02), ("tq2_0", 0.06)])
def test_an_int8_head_gives_our_logits(type: str, within: float, tied: bool, tmp_path: Path) -> None:
    """llama.cpp reads the head's input in full precision, or in blocks of 32; the policy in int8 per token."""
    decoder = quantised.ternary({"tie_embeddings": tied}, activations="none", head="int8")
    path = write_gguf(tmp_path / "m.gguf", decoder, quantised.tokenizer(), type=type).path
    ours = quantised.logits(decoder, IDS)[0].numpy()
    assert np.abs(_logits(path, IDS) - ours).max() < within * np.abs(ours).max()


def _same_tokens(tokenizer: Tokenizer, rows: int, path: Path) -> None:
    write_gguf(path, quantised.plain(vocab_size=rows, num_layers=1), tokenizer)
    model = llama_cpp.Llama(str(path), n_ctx=64, verbose=False, n_threads=1)
    for text in [*TEXTS, "it's THEY'RE 1234567 x\r\n\r\n  end   ", "don't  stop!!\n\n\nnow", "\t tab"]:
        assert model.tokenize(text.encode(), add_bos=True, special=True) == tokenizer.encode(text), text
    assert model.token_eos() in tokenizer.eos_ids
    model.close()


@pytest.mark.parametrize("pre", RULES)
def test_byte_level_tokenizers_cut_alike(pre: str, tmp_path: Path) -> None:
    rule, ignore = RULES[pre]
    tokenizer = quantised.byte_level(rule, ignore_merges=ignore)
    _same_tokens(tokenizer, tokenizer.vocab_size, tmp_path / "m.gguf")


def test_stories260k_cuts_alike(shared: Path, tmp_path: Path) -> None:
    _, tokenizer = load_pretrained(shared / "models/stories260K")
    _same_tokens(tokenizer, 512, tmp_path / "m.gguf")
