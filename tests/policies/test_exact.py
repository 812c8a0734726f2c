"""In fp32 on the processor what is sampled is what is learned: the same log-probabilities to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from triloop.kernels.native import available
from triloop.loops.build import policy_path
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Prompt

pytestmark = pytest.mark.skipif(not available(), reason="the compiled kernels are not built")

POLICIES = ("base:arithmetic", "base:countdown-ternary")


def prompts(policy: NativePolicy, count: int) -> list[Prompt]:
    """Texts of different lengths, which begin alike."""
    text = "".join(sorted(c for c in policy.tokenizer.decode(list(range(40))) if c.isalnum()))
    return [Prompt(id=str(i), text=(text * 4)[: 3 + 2 * i]) for i in range(count)]


def sample(policy: NativePolicy, given: list[Prompt], **options: object) -> list[Completion]:
    settings: dict[str, object] = {"max_tokens": 30} | options
    return policy.sample(given, 8, Sampling(**settings), Tag(seed=3, round=1))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_learner_reads_what_the_sampler_said(name: str, temperature: float) -> None:
    policy = NativePolicy.load(policy_path(name))
    done = sample(policy, prompts(policy, 9), temperature=temperature, slots=20)
    items = [(c.prompt_tokens, c.tokens) for c in done]
    scored = policy.logprobs(items, temperature=temperature or 1.0)
    said = [np.array(c.logps, np.float32) for c in done]
    assert sum(map(len, said)) > 300
    for a, b in zip(scored, said, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", POLICIES)
def test_company_changes_nothing(name: str) -> None:
    """A completion is the same alone, in a crowd, and in few slots."""
    policy = NativePolicy.load(policy_path(name))
    given = prompts(policy, 9)
    crowd = sample(policy, given)
    few = sample(policy, given, slots=5)
    alone = [c for p in given for c in sample(policy, [p])]
    for other in (few, alone):
        assert [(c.tokens, c.logps) for c in other] == [(c.tokens, c.logps) for c in crowd]
