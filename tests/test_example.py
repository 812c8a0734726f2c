"""The loop stands twice: the library's, and one file without it. Both must say the same, number by number."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from loops import tiny
from reading import ROOT
from triloop import rng
from triloop.envs.arithmetic import Arithmetic
from triloop.learn.algorithms import resolve
from triloop.learn.build import build_batch
from triloop.learn.choices import OptimConfig
from triloop.learn.update import policy_loss
from triloop.nn.hf_io import save_pretrained
from triloop.policies.completions import sample_key
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Episode, Feedback

FILE = ROOT / "examples" / "grpo_in_one_file.py"
GROUP, LIMIT, LR, SWEEPS = 4, 12, 1e-2, 2


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo_in_one_file", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("example"))


def test_it_does_without_the_framework() -> None:
    text = FILE.read_text()
    assert "import triloop" not in text and "from triloop" not in text
    assert len(text.splitlines()) < 250


def test_the_problems_are_the_librarys(example: ModuleType) -> None:
    """Its chains parse as the library's problems, and both verifiers agree on right and wrong answers."""
    env, chains = Arithmetic(), __import__("random").Random(0)
    for _ in range(50):
        text, answer = example.problem(chains)
        prompt = env.parse(text)
        assert prompt.answer == answer and 3 <= prompt.level <= 4
        for attempt in (env.right_answer(prompt), *env.wrong_answers(prompt)):
            assert (example.verify(answer, attempt) > 0) == (env.verify(prompt, attempt).value == 1)


def test_same_samples_losses_and_weights(example: ModuleType, base: Path, tmp_path: Path) -> None:
    """Three rounds of two updates: the second update of each has ratios other than 1, and so a loss other than 0."""
    optim = OptimConfig(lr=LR, betas=(0.9, 0.999), weight_decay=0.0, max_grad_norm=1.0)
    policy = NativePolicy.load(base, optim=optim, entropy=False)
    algorithm = resolve("grpo", updates_per_round=SWEEPS)
    sampling = Sampling(max_tokens=LIMIT, slots=64)
    m = example.load(base)
    optimiser = torch.optim.AdamW(list(m.w.values()), lr=LR, betas=(0.9, 0.999), weight_decay=0.0)
    moved = []
    for round in range(3):
        prompts = Arithmetic().prompts("train", 5, seed=0, start=5 * round)
        tag = Tag(seed=3, round=round)
        completions = policy.sample(prompts, GROUP, sampling, tag)
        each = [p for p in prompts for _ in range(GROUP)]
        keys = np.array([sample_key(tag, c.prompt_id, c.index) for c in completions], dtype=np.uint64)
        s = example.sample(m, [p.text for p in each], torch.from_numpy(rng.uniforms(keys, 0, LIMIT)).float())
        assert [c.text for c in completions] == s.texts
        assert [list(c.tokens) for c in completions] == [
            row[keep].tolist() for row, keep in zip(s.tokens, s.mask, strict=True)
        ]
        rewards = [1.0 if len(c.text) % 3 == 1 else -1.0 for c in completions]
        episodes = [
            Episode(prompt=p, completion=c, feedback=(Feedback(value=r),), reward=r)
            for p, c, r in zip(each, completions, rewards, strict=True)
        ]
        batch, _ = build_batch(episodes, algorithm, max_tokens=LIMIT)
        assert batch is not None
        advantage = example.advantages(torch.tensor(rewards), GROUP)
        for _ in range(SWEEPS):
            ours = policy.forward_backward(batch, policy_loss(algorithm))["loss"]
            policy.optim_step(LR)
            theirs = example.update(m, optimiser, s, advantage)
            assert theirs == pytest.approx(ours, abs=1e-5)
            moved.append(abs(theirs))
    assert max(moved) > 1e-2, "the losses compared were all zero"
    save_pretrained(tmp_path, policy.decoder, policy.tokenizer)
    for name, tensor in example.load(tmp_path).w.items():
        torch.testing.assert_close(m.w[name], tensor, atol=1e-4, rtol=1e-3)


def test_it_runs(
    example: ModuleType, base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(FILE), "--base", str(base), "--rounds", "1"])
    example.main()
    said = capsys.readouterr().out
    assert "held out, before" in said and "round   1  reward -1" in said and "held out, after" in said
