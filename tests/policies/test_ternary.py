"""Ternary policies: made, sampled from packed weights, learned, written and read again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from triloop.errors import ConfigError, ModelError
from triloop.kernels import native
from triloop.learn.choices import OptimConfig
from triloop.loops.supervised import supervised
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.decoding import KernelDecoding, decoding_of
from triloop.nn.hf_io import load_pretrained
from triloop.nn.tokenizer import char_tokenizer
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.policies.statistics import token_statistics
from triloop.policies.ternary import EXTRA, sha256
from triloop.records import Prompt
from triloop.sources.reward_model import RewardModel
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import linears
from triloop.ternary.head import Int8Head

SHAPE = DecoderConfig(
    vocab_size=16, hidden_size=40, intermediate_size=72, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=10
)
EVERY = (
    TernaryConfig(),
    TernaryConfig(granularity="channel"),
    TernaryConfig(quantiser="twn"),
    TernaryConfig(quantiser="dead-zone"),
    TernaryConfig(quantiser="dual"),
    TernaryConfig(granularity="group", group=16),
    TernaryConfig(quantiser="paretoq-2"),
    TernaryConfig(norm=True),
    TernaryConfig(activations="none"),
    TernaryConfig(activations="int8-256"),
    TernaryConfig(head="int8"),
)
every = pytest.mark.parametrize(
    "config", EVERY, ids=lambda c: f"{c.quantiser}-{c.shared_by}-{c.activations}-{c.norm}-{c.head}"
)


def fresh(config: TernaryConfig | None = None, seed: int = 3) -> NativePolicy:
    decoder = Decoder(SHAPE).initialise(seed, std=0.3)
    policy = NativePolicy(decoder, char_tokenizer("abcdefghij"), optim=OptimConfig(lr=3e-3), entropy=False)
    if config is not None:
        policy.ternarise(config)
    return policy


def drawn(policy: NativePolicy, n: int = 6):
    prompts = [Prompt(id=str(i), text="abcdefg"[: i + 1]) for i in range(5)]
    return policy.sample(prompts, n, Sampling(max_tokens=9), Tag(seed=0, round=0, purpose="train"))


ALIKE = 1e-5 if native.available() else 0.15
"""Nats. Without compiled kernels sums go in another order, and now and then an activation is rounded the other way."""


def scored(policy: NativePolicy, completions):
    return policy.logprobs([(c.prompt_tokens, c.tokens) for c in completions])


def taught(policy: NativePolicy, steps: int) -> NativePolicy:
    rows = [([1, 2, 3], [4, 5, 6, 7]), ([2, 2], [8, 1])]
    return supervised(policy, lambda step: rows, steps, OptimConfig(lr=3e-3))


@every
def test_what_is_sampled_is_what_is_scored(config):
    policy = fresh(config)
    if native.available():
        assert isinstance(decoding_of(policy.decoder), KernelDecoding)
    completions = drawn(policy)
    for c, logps in zip(completions, scored(policy, completions), strict=True):
        assert np.array(c.logps) == pytest.approx(logps, abs=ALIKE)
    # and it is not what the weights behind the codes would say
    plain = fresh()
    assert abs(np.concatenate(scored(plain, completions)) - np.concatenate(scored(policy, completions))).max() > 0.05


def gap(policy: NativePolicy) -> np.ndarray:
    completions = drawn(policy, 40)
    said = zip(completions, scored(policy, completions), strict=True)
    return np.concatenate([abs(np.array(c.logps) - logps) for c, logps in said])


@pytest.mark.skipif(not native.available(), reason=native.describe())
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["full", "int8"])
def test_sampler_and_learner_agree_as_proofs_mismatch_says(head, tied):
    """An int8 head multiplies in whole numbers, so it may be as large as one likes."""
    decoder = Decoder(replace(SHAPE, vocab_size=1000, tie_embeddings=tied)).initialise(3, std=0.3)
    policy = NativePolicy(decoder, char_tokenizer("abcdefghij"))
    policy.ternarise(TernaryConfig(head=head))
    found = gap(taught(policy, 3))
    assert len(found) > 500 and found.max() == 0


@pytest.mark.parametrize("entropy", [True, False])
def test_slices_of_the_logits_change_nothing(entropy):
    """Log-probabilities to the last bit; gradients but for the order of their sum."""
    policy = fresh(TernaryConfig(head="int8"))
    decoder = policy.decoder
    hidden = torch.randn(11, 40, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets, found = torch.arange(11) % 16, []
    for whole in (1 << 24, 16 * 3):
        sizes = {"vocab_size": 16, "temperature": 0.7, "entropy": entropy, "whole": whole}
        logps, entropies = token_statistics(decoder.logits, hidden, targets, **sizes)
        gradients = torch.autograd.grad(logps.sum() + 0.1 * entropies.sum(), (hidden, decoder.embed.weight))
        found.append((logps.detach(), entropies.detach(), *gradients))
    (a, b, *one), (c, d, *two) = found
    assert torch.equal(a, c) and torch.equal(b, d)
    for x, y in zip(one, two, strict=True):
        torch.testing.assert_close(x, y)


def test_a_ternary_policy_is_given_an_int8_head(tmp_path):
    policy = fresh(TernaryConfig(granularity="channel"))
    before, weights = drawn(policy), policy.weights_sha256()
    policy.use_int8_head()
    policy.use_int8_head()
    assert isinstance(policy.decoder.head, Int8Head) and policy.weights_sha256() == weights
    assert [c.logps for c in drawn(policy)] != [c.logps for c in before]
    policy.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert told["head"] == "int8" and told["granularity"] == "channel"
    assert isinstance(NativePolicy.load(tmp_path).decoder.head, Int8Head)
    with pytest.raises(ConfigError, match="belongs to a ternary policy"):
        fresh().use_int8_head()


def test_a_policy_that_has_sampled_becomes_ternary():
    policy = fresh()
    drawn(policy)
    policy.ternarise(TernaryConfig(head="int8"))
    completions = drawn(policy)
    for c, logps in zip(completions, scored(policy, completions), strict=True):
        assert np.array(c.logps) == pytest.approx(logps, abs=ALIKE)


def test_an_untied_int8_head_is_stored_by_its_usual_name(tmp_path):
    decoder = Decoder(replace(SHAPE, tie_embeddings=False)).initialise(3, std=0.3)
    policy = NativePolicy(decoder, char_tokenizer("abcdefghij"))
    policy.ternarise(TernaryConfig(head="int8"))
    completions = drawn(policy)
    policy.save_pretrained(tmp_path)
    assert not (tmp_path / EXTRA).exists()
    again = NativePolicy.load(tmp_path)
    assert torch.equal(again.decoder.output_weight, policy.decoder.output_weight)
    for a, b in zip(scored(policy, completions), scored(again, completions), strict=True):
        assert np.array_equal(a, b)
    frozen = policy.frozen()
    taught(policy, 3)
    assert not torch.equal(frozen.decoder.output_weight, policy.decoder.output_weight)
    frozen.follow(policy)
    for a, b in zip(scored(policy, completions), scored(frozen, completions), strict=True):
        assert np.array_equal(a, b)


@every
def test_learns_and_samples_from_what_it_learned(config):
    policy = fresh(config)
    row = [((1, 2, 3), (4, 5, 6, 7))]
    before = policy.logprobs(row)[0].sum()
    drawn(policy)  # packs the weights of before
    taught(policy, 60)
    assert policy.logprobs(row)[0].sum() > before + 1.0
    completions = drawn(policy)
    for c, logps in zip(completions, scored(policy, completions), strict=True):
        assert np.array(c.logps) == pytest.approx(logps, abs=ALIKE)


@every
def test_directory_gives_the_same_policy_back(config, tmp_path):
    policy = taught(fresh(config), 5)
    completions = drawn(policy)
    policy.save_pretrained(tmp_path / "p")
    again = NativePolicy.load(tmp_path / "p")
    assert again.weights_sha256() == policy.weights_sha256()
    assert [m.config for m in linears(again.decoder).values()] == [replace(config, head="full")] * 8
    assert isinstance(again.decoder.head, Int8Head) == (config.head == "int8")
    for a, b in zip(scored(policy, completions), scored(again, completions), strict=True):
        assert np.array_equal(a, b)
    assert [c.tokens for c in drawn(again)] == [c.tokens for c in completions]
    # written over by one that learns nothing besides its weights, nothing of before is left
    fresh(TernaryConfig()).save_pretrained(tmp_path / "p")
    assert not (tmp_path / "p" / EXTRA).exists()


@every
def test_state_goes_on_to_the_same_bits(config, tmp_path):
    policy = taught(fresh(config), 4)
    policy.save_state(tmp_path)
    taught(policy, 4)
    other = fresh(config, seed=9)
    other.load_state(tmp_path)
    taught(other, 4)
    assert other.weights_sha256() == policy.weights_sha256()


def test_copies_stand_still_while_the_policy_learns():
    policy = fresh(TernaryConfig(quantiser="dual"))
    still = policy.frozen()
    row = [((1, 2, 3), (4, 5, 6, 7))]
    before = policy.logprobs(row)[0]
    assert np.array_equal(still.logprobs(row)[0], before)
    taught(policy, 5)
    assert np.array_equal(still.logprobs(row)[0], before)
    assert not np.array_equal(policy.logprobs(row)[0], before)
    still.follow(policy)
    assert np.array_equal(still.logprobs(row)[0], policy.logprobs(row)[0])


def test_reward_model_on_a_ternary_trunk_is_ternary(tmp_path):
    model = RewardModel.of(fresh(TernaryConfig(quantiser="dual")))
    assert linears(model.network.decoder)
    model.save_state(tmp_path)
    other = RewardModel.of(fresh(TernaryConfig(quantiser="dual"), seed=8))
    assert sha256(other.network.decoder) != sha256(model.network.decoder)
    other.load_state(tmp_path)
    assert sha256(other.network.decoder) == sha256(model.network.decoder)
    assert other.score([Prompt(id="0", text="abc")], ["def"]) == model.score([Prompt(id="0", text="abc")], ["def"])


def test_refuses():
    policy = fresh(TernaryConfig())
    with pytest.raises(ConfigError, match="ternary already"):
        policy.ternarise(TernaryConfig())
    adapted = fresh()
    adapted.add_lora(2, 4.0)
    with pytest.raises(ConfigError, match="LoRA"):
        adapted.ternarise(TernaryConfig())
    with pytest.raises(ModelError, match="ternary"):
        policy.add_lora(2, 4.0)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda d: d["quantization_config"].update(quantiser="nonesuch"), "nonesuch"),
        (lambda d: d["quantization_config"].update(colour="red"), "colour"),
        (lambda d: d["quantization_config"].update(group=-3), "group"),
        (lambda d: d["quantization_config"].update(norm_eps="small"), "quantization_config"),
    ],
)
def test_damaged_settings_are_told(spoil, told, tmp_path):
    fresh(TernaryConfig()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    spoil(said)
    path.write_text(json.dumps(said))
    with pytest.raises(ModelError, match=told):
        NativePolicy.load(tmp_path)


def test_damaged_extra_is_told(tmp_path):
    fresh(TernaryConfig(quantiser="dual")).save_pretrained(tmp_path)
    extra = tmp_path / EXTRA
    whole = extra.read_bytes()
    extra.write_bytes(whole[:-7])
    with pytest.raises(ModelError, match=EXTRA):
        NativePolicy.load(tmp_path)
    extra.unlink()
    with pytest.raises(ModelError, match="missing"):
        NativePolicy.load(tmp_path)
    fresh(TernaryConfig(norm=True)).save_pretrained(tmp_path / "other")
    Path(tmp_path / "other" / EXTRA).rename(extra)
    with pytest.raises(ModelError, match="does not fit"):
        NativePolicy.load(tmp_path)


def test_latent_weights_are_not_taken_for_a_model(tmp_path):
    fresh(TernaryConfig()).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="ternary policy"):
        load_pretrained(tmp_path)
    decoder, _ = load_pretrained(tmp_path, latent=True)
    assert all(isinstance(m, torch.nn.Linear) for layer in decoder.blocks for m in (layer.qkv, layer.down))
