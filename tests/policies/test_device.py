"""Where a policy computes: what is asked for is there, or the error says what to do; and a GPU keeps every promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.small import TAG, Make, decoder, lesson, prompts, tokenizer
from triloop.errors import ConfigError, UsageError
from triloop.kernels import train
from triloop.learn.update import supervised_loss
from triloop.nn.decoding import TorchDecoding, decoding_of
from triloop.policies.devices import describe_device, exact, pick_device
from triloop.policies.learner import pick_precision
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Policy
from triloop.policies.sampling import Sampling

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))
every_device = pytest.mark.parametrize("device", ["cpu", CUDA])


def test_a_gpu_that_is_not_there_is_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"device is cuda.*no GPU here; use --device cpu") as caught:
        pick_device("cuda")
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="device is 'tpu'; expected auto, cpu or cuda"):
        pick_device("tpu")


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")


def test_the_precision_is_the_device_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU in the machine says nothing of a policy that computes on the processor."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert pick_precision("auto") == pick_precision("auto", "cpu") == torch.float32
    assert pick_precision("auto", "cuda") == torch.bfloat16
    assert pick_precision("fp32", "cuda") == torch.float32


def test_what_a_device_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_device(torch.device("cpu")) == "cpu", "runs of before are resumed by this name"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert describe_device(torch.device("cuda")) == "cuda (Some GPU, CUDA 12.8)"


def test_only_a_gpu_is_made_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    with exact(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(KeyError), exact(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled(), "it is as before, whatever happened"


@every_device
def test_everything_is_where_it_was_asked_for(device: str, tmp_path: Path) -> None:
    """Weights, value head, adapters, the sampler's copy, the reference, and what a checkpoint is read into."""
    NativePolicy(decoder(), tokenizer()).save_pretrained(tmp_path / "model")
    policy = NativePolicy.load(tmp_path / "model", device=device, precision=torch.bfloat16)
    policy.add_value_head()
    policy.add_lora(rank=2, alpha=4.0)
    policy.forward_backward(lesson(), supervised_loss)
    policy.optim_step(1e-2)
    policy.save_state(tmp_path)
    policy.load_state(tmp_path)
    for each in (policy, policy.frozen()):
        assert each.device.type == device
        assert {p.device.type for p in each.decoder.parameters()} == {device}
        assert {p.device.type for p in each._sampler().parameters()} == {device}
    moments = {t.device.type for s in policy.learner._adamw().state.values() for t in s.values()}
    assert moments == {device}


def test_a_transformers_model_too(gpt2: Path) -> None:
    from triloop.policies.transformers_backend import load_transformers

    assert load_transformers(gpt2, device="cpu").device.type == "cpu"


# -------------------------------------------------------------------- on a GPU

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def moved(make: Make, **settings: Any) -> Policy:
    """The policy of ``make``, on the GPU."""
    policy = make(**settings)
    module = policy.decoder if isinstance(policy, NativePolicy) else policy.model.module  # type: ignore[attr-defined]
    module.to("cuda")
    return policy


@on_a_gpu
def test_kernels_are_for_the_processor_alone() -> None:
    assert not train.usable(torch.zeros(2, device="cuda"))
    assert isinstance(decoding_of(decoder().to("cuda")), TorchDecoding)


@on_a_gpu
def test_a_gpu_samples_scores_and_learns_as_the_processor_does(make: Make) -> None:
    here, there = make(), moved(make)
    sampling = Sampling(max_tokens=16)
    ours, theirs = here.sample(prompts(), 8, sampling, TAG), there.sample(prompts(), 8, sampling, TAG)
    same = [a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True)]
    assert sum(same) >= 0.9 * len(same), "a random number seldom lies between two roundings"
    rows = [(c.prompt_tokens, c.tokens) for c in ours]
    for a, b in zip(here.logprobs(rows), there.logprobs(rows), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    for policy in (here, there):
        policy.forward_backward(lesson(), supervised_loss)
    assert here.optim_step(1e-2)["grad_norm"] == pytest.approx(there.optim_step(1e-2)["grad_norm"], rel=1e-3)


@on_a_gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_going_on_on_a_gpu_is_bit_equal(make: Make, precision: torch.dtype, tmp_path: Path) -> None:
    def steps(policy: Policy, seeds: range) -> None:
        for seed in seeds:
            policy.forward_backward(lesson(seed, rows=64), supervised_loss)
            policy.optim_step(1e-2)

    through, resumed = (moved(make, precision=precision) for _ in range(2))
    steps(through, range(3))
    through.save_state(tmp_path)
    steps(through, range(3, 6))
    resumed.load_state(tmp_path)
    steps(resumed, range(3, 6))
    assert resumed.weights_sha256() == through.weights_sha256()
    sampling = Sampling(max_tokens=12)
    assert resumed.sample(prompts(), 4, sampling, TAG) == through.sample(prompts(), 4, sampling, TAG)
