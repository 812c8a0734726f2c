"""The native policy beyond the contract: the decoder it samples with, prefixes, memory, adapters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.small import TAG, decoder, lesson, native, native_lora, prompts, tokenizer
from triloop.errors import ConfigError, WorkError
from triloop.learn.update import supervised_loss
from triloop.nn.lora import lora_modules
from triloop.policies.learner import pick_precision
from triloop.policies.native import NativePolicy, NativeStepper
from triloop.policies.sampling import Sampling


def test_greedy_equals_a_loop_that_computes_everything_again() -> None:
    policy = native()
    for completion in policy.sample(prompts(), 1, Sampling(max_tokens=16, temperature=0.0, slots=3), TAG):
        ids = list(completion.prompt_tokens)
        for token in completion.tokens:
            with torch.no_grad():
                assert token == int(policy.decoder.logits_padded(torch.tensor([ids]))[0, -1].argmax())
            ids.append(token)


@pytest.mark.parametrize("changes", [
    {"sliding_window": 4, "sliding_layers": (0,)}, {"qk_norm": True, "tie_embeddings": False}, {"nope_layers": (1,)},
], ids=["window", "qk-norm", "no rotation"])  # fmt: skip
def test_every_shape_scores_what_it_samples(changes: dict[str, object]) -> None:
    policy = NativePolicy(decoder(**changes), tokenizer())
    done = policy.sample(prompts(), 3, Sampling(max_tokens=16, slots=5), TAG)
    for c, logps in zip(done, policy.logprobs([(c.prompt_tokens, c.tokens) for c in done]), strict=True):
        np.testing.assert_allclose(c.logps, logps, atol=1e-4)


class Counting(NativeStepper):
    """Keeps the prompts that were really computed."""

    def __init__(self, policy: NativePolicy, **options: int) -> None:
        super().__init__(policy.decoder, **options)
        self.computed: list[tuple[int, int]] = []
        inner = self.decoding.prefill

        def prefill(ids: torch.Tensor, lengths: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            self.computed.append((ids.shape[0], int(lengths.sum())))
            return inner(ids, lengths, rows)

        self.decoding.prefill = prefill  # type: ignore[method-assign]


def test_a_group_computes_its_prompt_once() -> None:
    policy = native()
    stepper = Counting(policy)
    policy._completer.complete(stepper, prompts("1+2=", "345"), 16, Sampling(max_tokens=4), TAG, version=0)
    assert stepper.computed == [(2, 7)]


def test_prompts_are_computed_in_bounded_pieces() -> None:
    policy = native()
    stepper = Counting(policy, prefill_tokens=10)
    several = prompts("1+2=", "345", "1", "abc", "9")
    done = policy._completer.complete(stepper, several, 2, Sampling(max_tokens=4), TAG, version=0)
    assert [n for n, _ in stepper.computed] == [2, 2, 1]
    assert [c.tokens for c in done] == [c.tokens for c in policy.sample(several, 2, Sampling(max_tokens=4), TAG)]


def test_the_cache_bounds_the_rows() -> None:
    policy = native()
    row = NativeStepper(policy.decoder).decoding.bytes_per_row(20)
    assert row >= 2 * 2 * 2 * 8 * 20 * 4  # keys and values, layers, heads, width, positions, bytes
    assert NativeStepper(policy.decoder, cache_bytes=5 * row).open(100, 20) == 5
    assert NativeStepper(policy.decoder, cache_bytes=1).open(100, 20) == 1
    sampling = Sampling(max_tokens=8)
    few = native(cache_bytes=5 * row).sample(prompts(), 4, sampling, TAG)
    assert [c.tokens for c in few] == [c.tokens for c in policy.sample(prompts(), 4, sampling, TAG)]


def test_adapters_restart_as_adapters_that_add_nothing() -> None:
    policy, original = native_lora(), native()
    policy.restart_from(original.frozen())
    assert policy.weights_sha256() == original.weights_sha256()
    policy.forward_backward(lesson(), supervised_loss)
    policy.optim_step(1e-2)
    assert policy.weights_sha256() != original.weights_sha256()
    base = dict(original.decoder.named_parameters())
    for name, adapter in lora_modules(policy.decoder).items():
        assert torch.equal(adapter.weight, base[f"{name}.weight"]), "the base never moves"


def test_a_frozen_copy_of_adapters_is_plain() -> None:
    policy = native_lora()
    reference = policy.frozen()
    assert not lora_modules(reference.decoder) and reference.weights_sha256() == policy.weights_sha256()
    assert not any(p.requires_grad for p in reference.decoder.parameters())


def test_a_loss_that_is_not_finite_says_what_to_do() -> None:
    def broken(outputs, batch, denominators):  # type: ignore[no-untyped-def]
        return outputs.logp.sum() * float("nan"), {}

    with pytest.raises(WorkError, match=r"became nan at policy version 0; lower --optim.lr"):
        native().forward_backward(lesson(), broken)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    policy = native()
    before = policy.weights_sha256()
    policy.forward_backward(lesson(), supervised_loss)
    assert policy.decoder.norm.weight.grad is not None
    policy.decoder.norm.weight.grad[0] = float("inf")
    assert not np.isfinite(policy.optim_step(1e-2)["grad_norm"])
    assert policy.weights_sha256() == before and policy.version == 1


@pytest.mark.parametrize("token", [-1, 10_000])
def test_tokens_of_another_tokenizer_are_refused(token: int) -> None:
    with pytest.raises(ConfigError, match=f"token {token}.*another tokenizer"):
        native().logprobs([((5, 6), (7, token))])


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="micro_tokens is -1"):
        native(micro_tokens=-1)
    with pytest.raises(ConfigError, match="precision is 'fp8'"):
        pick_precision("fp8")
    assert pick_precision("fp32") == torch.float32 and pick_precision("bf16") == torch.bfloat16
    assert pick_precision("auto") in (torch.float32, torch.bfloat16)
