"""The transformers backend against transformers itself, over several architectures, and what it refuses."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.small import TAG, foreign_directory, lesson, native, prompts
from triloop.errors import ConfigError, ModelError
from triloop.learn.update import supervised_loss
from triloop.policies.native import NativePolicy
from triloop.policies.sampling import Sampling
from triloop.policies.transformers_backend import TransformersPolicy, load_transformers

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "bloom", "gemma2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_directory(tmp_path_factory.mktemp("foreign") / request.param, request.param)


def test_greedy_equals_generate(folder: Path) -> None:
    """Prompts of unequal length, rows that end early: padding and compaction change nothing."""
    policy = load_transformers(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for completion in policy.sample(prompts(), 2, Sampling(max_tokens=12, temperature=0.0, slots=4), TAG):
        ids = torch.tensor([completion.prompt_tokens])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert out[0, ids.shape[1] :].tolist() == list(completion.tokens)


def test_it_scores_what_it_samples_and_learns(folder: Path) -> None:
    policy = load_transformers(folder)
    done = policy.sample(prompts(), 6, Sampling(max_tokens=20, slots=9), TAG)
    assert len({len(c.tokens) for c in done}) > 1, "some rows end before others"
    scored = policy.logprobs([(c.prompt_tokens, c.tokens) for c in done])
    for completion, logps in zip(done, scored, strict=True):
        np.testing.assert_allclose(completion.logps, logps, atol=1e-4)
    first = policy.forward_backward(lesson(), supervised_loss)["nll"]
    policy.optim_step(1e-2)
    assert policy.forward_backward(lesson(), supervised_loss)["nll"] < first


def test_models_that_cap_their_logits_are_found_out(folder: Path) -> None:
    policy = load_transformers(folder)
    assert policy.model.plain_head is (folder.name != "gemma2")
    if folder.name == "gemma2":
        with pytest.raises(ModelError, match="gemma2 gives no last hidden state"):
            policy.add_value_head()


def test_nothing_drops_out(gpt2: Path) -> None:
    """GPT-2's config asks for dropout; ratios between two forward passes of one policy must be 1."""
    policy = load_transformers(gpt2)
    assert policy.model.config.resid_pdrop > 0
    a, b = (policy.forward_backward(lesson(), supervised_loss)["nll"] for _ in range(2))
    assert a == b


def test_a_group_computes_its_prompt_once(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_transformers(gpt2)
    seen: list[tuple[int, ...]] = []
    kind, inner = type(policy.model), type(policy.model).features

    def features(self: Any, ids: torch.Tensor, **rest: Any) -> Any:
        seen.append(tuple(ids.shape))
        return inner(self, ids, **rest)

    monkeypatch.setattr(kind, "features", features)
    policy.sample(prompts("1+2=", "345"), 8, Sampling(max_tokens=3), TAG)
    assert seen[0] == (2, 4) and seen[1] == (16, 1)


def test_what_it_cannot_do_it_says(gpt2: Path) -> None:
    policy = load_transformers(gpt2)
    with pytest.raises(ConfigError, match="lora_rank is 8, but the transformers backend"):
        policy.add_lora(8, 16.0)
    with pytest.raises(ConfigError, match="sequence of 70 tokens cannot be scored: the model has 64"):
        policy.logprobs([([5] * 30, [5] * 41)])


def test_the_cache_bounds_the_rows(gpt2: Path) -> None:
    whole, few = load_transformers(gpt2), load_transformers(gpt2, cache_bytes=3 * 2 * 2 * 32 * 4 * 20)
    sampling = Sampling(max_tokens=14)
    assert [c.tokens for c in few.sample(prompts(), 3, sampling, TAG)] == [
        c.tokens for c in whole.sample(prompts(), 3, sampling, TAG)
    ]


def test_both_backends_are_one_policy(tmp_path: Path) -> None:
    """A directory of the Llama family behind either: the same hash, the same scores, the same samples."""
    native().save_pretrained(tmp_path)
    ours, theirs = NativePolicy.load(tmp_path), load_transformers(tmp_path)
    assert ours.weights_sha256() == theirs.weights_sha256() and ours.parameters == theirs.parameters
    sampling = Sampling(max_tokens=12, slots=6)
    done = ours.sample(prompts(), 3, sampling, TAG)
    for a, b in zip(done, theirs.sample(prompts(), 3, sampling, TAG), strict=True):
        assert a.tokens == b.tokens and a.text == b.text
        np.testing.assert_allclose(a.logps, b.logps, atol=1e-4)
    for policy in (ours, theirs):
        policy.forward_backward(lesson(), supervised_loss)
    assert ours.optim_step(1e-3)["grad_norm"] == pytest.approx(theirs.optim_step(1e-3)["grad_norm"], rel=1e-4)


# -------------------------------------------------------------------- what it refuses


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"directory .*nowhere does not exist; give the path"):
        load_transformers(tmp_path / "nowhere")


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*config.json"):
        load_transformers(tmp_path)


def test_no_causal_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds BertForMaskedLM, which is no causal language model"):
        load_transformers(foreign_directory(tmp_path / "bert", "bert"))


def test_an_unknown_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(ModelError, match="cannot be read by transformers"):
        load_transformers(tmp_path)


def test_missing_and_damaged_weights(tmp_path: Path) -> None:
    folder = foreign_directory(tmp_path / "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(ModelError, match=r"lack \d+ of the model's tensors, such as transformer.h.2"):
        load_transformers(folder)
    (folder / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ModelError, match="cannot be read by transformers"):
        load_transformers(folder)


def test_without_transformers(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModelError, match=r"pip install 'triloop\[hf\]'"):
        load_transformers(gpt2)


def test_the_loader_gives_a_policy(gpt2: Path) -> None:
    policy = load_transformers(gpt2, entropy=False)
    assert isinstance(policy, TransformersPolicy) and not policy.settings.entropy
    assert policy.parameters == sum(p.numel() for p in policy.model.module.parameters())
