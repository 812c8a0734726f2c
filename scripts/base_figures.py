"""What ``train_bases.py`` measures of a base besides the score of its held-out answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triloop import rng
from triloop.envs import attributes_skills as skills
from triloop.envs.attributes import MEDIOCRE, Attributes
from triloop.envs.attributes_language import ATTRIBUTES, blamed
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Prompt

__all__ = ["attributes", "auc"]

_N = 300


def attributes(world: Attributes, policy: NativePolicy) -> dict[str, object]:
    """Spread of answers, and how far each skill of the attribute world's base can be relied on, on held-out requests."""
    prompts = world.prompts("eval", _N, seed=1)
    draw = rng.generator("figures", world.name)

    def responses() -> list[str]:
        """Each of its own quality, from an expert's to worse than the base's own."""
        scales = (1.4 * draw.random(len(prompts))).tolist()
        return [
            world.demonstration(p, draw, rates={name: scale * rate for name, rate in MEDIOCRE.items()})
            for p, scale in zip(prompts, scales, strict=True)
        ]

    first, second = responses(), responses()
    return {
        "answers": _answers(world, policy),
        "ask": _ask(world, policy, prompts, first, reason=False),
        "ask-reason": _ask(world, policy, prompts, first, reason=True),
        "compare": _compare(policy, prompts, first, second, reason=False),
        "compare-reason": _compare(policy, prompts, first, second, reason=True),
        "rate": _rate(policy, prompts, first),
        **_write(world, policy, prompts, first),
    }


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Chance that a true example scores above a false one, ties half; NaN without both."""
    x, y = np.asarray(scores, float), np.asarray(labels, bool)
    higher = (x[y][:, None] > x[~y][None, :]).mean() if y.any() and not y.all() else float("nan")
    return float(higher + 0.5 * (x[y][:, None] == x[~y][None, :]).mean()) if y.any() and not y.all() else higher


def _answers(world: Attributes, policy: NativePolicy) -> dict[str, float]:
    prompts = world.prompts("eval", 64, seed=2)
    sampling = Sampling(max_tokens=world.max_tokens)
    done = policy.sample(prompts, 8, sampling, Tag(seed=2, round=0, purpose="figures"))
    judged = world.gold([p for p in prompts for _ in range(8)], [c.text for c in done])
    values = np.array([f.value for f in judged], dtype=float).reshape(-1, 8)
    return {
        "mean": values.mean(),
        "spread within groups of 8": values.std(axis=1).mean(),
        "above 0.6": (values > 0.6).mean(),
        "best of 8": values.max(axis=1).mean(),
        "ended": float(np.mean([c.finish == "stop" for c in done])),
    }


def _logits(policy: NativePolicy, asked: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """log p of each answer word, shape [asked, answers]."""
    encode = policy.tokenizer.encode
    items = [(encode(text), encode(word)) for text in asked for word in answers]
    return np.array([row[0] for row in policy.logprobs(items)], dtype=float).reshape(len(asked), len(answers))


def _sampled(policy: NativePolicy, asked: Sequence[str], most: int) -> list[str]:
    prompts = [Prompt(id=str(k), text=text) for k, text in enumerate(asked)]
    return [
        c.text for c in policy.sample(prompts, 1, Sampling(max_tokens=most), Tag(seed=3, round=0, purpose="figures"))
    ]


def _ask(
    world: Attributes, policy: NativePolicy, prompts: Sequence[Prompt], texts: Sequence[str], *, reason: bool
) -> dict[str, dict[str, float]]:
    out = {}
    for principle in [*skills.PRINCIPLES, *skills.HELD_OUT]:
        if reason and principle in skills.HELD_OUT:
            continue
        asked = [skills.ask(p, t, principle, reason=reason) for p, t in zip(prompts, texts, strict=True)]
        right = [skills.verdict(said) for _, said in asked]
        said = _sampled(policy, [a for a, _ in asked], 24)
        row = {"sampled": float(np.mean([skills.verdict(s) == r for s, r in zip(said, right, strict=True)]))}
        if not reason:
            yes, no = _logits(policy, [a for a, _ in asked], ("yes", "no")).T
            row |= {
                "auc": auc(list(yes - no), [r == "yes" for r in right]),
                "greedy": float(
                    np.mean([("yes" if y > n else "no") == r for y, n, r in zip(yes, no, right, strict=True)])
                ),
                "yes": float(np.mean([r == "yes" for r in right])),
            }
        out[principle] = row
    return out


def _compare(
    policy: NativePolicy, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], *, reason: bool
) -> dict[str, dict[str, float]]:
    out = {}
    words = skills.SKILLS["compare"].answers
    for principle in skills.PRINCIPLES:
        asked = [skills.compare(*x, principle, reason=reason) for x in zip(prompts, first, second, strict=True)]
        right = [skills.verdict(said, words) for _, said in asked]
        said = _sampled(policy, [a for a, _ in asked], 40)
        row = {"sampled": float(np.mean([skills.verdict(s, words) == r for s, r in zip(said, right, strict=True)]))}
        if not reason:
            logits = _logits(policy, [a for a, _ in asked], words)
            decided = [k for k, r in enumerate(right) if r != "none"]
            row |= {
                "greedy": float(np.mean([words[k] == r for k, r in zip(logits.argmax(axis=1), right, strict=True)])),
                "a or b": float(np.mean([("A" if logits[k, 0] > logits[k, 1] else "B") == right[k] for k in decided])),
                "ties": 1 - len(decided) / len(right),
            }
        out[principle] = row
    return out


def _rate(policy: NativePolicy, prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, float]:
    asked = [skills.rate(p, t) for p, t in zip(prompts, texts, strict=True)]
    digits = _logits(policy, [a for a, _ in asked], tuple("0123456789"))
    p = np.exp(digits - digits.max(axis=1, keepdims=True))
    mean = (p / p.sum(axis=1, keepdims=True)) @ np.arange(10)
    right = np.array([int(said) for _, said in asked])
    return {"correlation": float(np.corrcoef(mean, right)[0, 1]), "mean error": float(np.abs(mean - right).mean())}


def _write(
    world: Attributes, policy: NativePolicy, prompts: Sequence[Prompt], texts: Sequence[str]
) -> dict[str, dict[str, float]]:
    asked = [skills.criticise(p, t) for p, t in zip(prompts, texts, strict=True)]
    said = _sampled(policy, [a for a, _ in asked], 40)
    truth = [blamed(right) for _, right in asked]
    hits = sum(len(blamed(s) & t) for s, t in zip(said, truth, strict=True))
    named, wanted = sum(len(blamed(s)) for s in said), sum(map(len, truth))
    out = {
        "critique": {
            "exact": float(np.mean([s.strip() == right for s, (_, right) in zip(said, asked, strict=True)])),
            "precision": hits / max(1, named),
            "recall": hits / max(1, wanted),
        }
    }
    faulty = [k for k, t in enumerate(truth) if t]
    for kind, critiques in (("revise", [right for _, right in asked]), ("revise by own critique", said)):
        requests = [skills.revise(prompts[k], texts[k], critiques[k]) for k in faulty]
        revised = _sampled(policy, [r for r, _ in requests], 36)
        before = world.gold([prompts[k] for k in faulty], [texts[k] for k in faulty])
        after = world.gold([prompts[k] for k in faulty], revised)
        value = np.array([[b.value, a.value] for b, a in zip(before, after, strict=True)], dtype=float)
        mended = [
            after[j].breakdown[name] == 1 for j, k in enumerate(faulty) for name in ATTRIBUTES if name in truth[k]
        ]
        out[kind] = {
            "before": value[:, 0].mean(),
            "after": value[:, 1].mean(),
            "better": float((value[:, 1] > value[:, 0]).mean()),
            "worse": float((value[:, 1] < value[:, 0]).mean()),
            "defects mended": float(np.mean(mended)),
        }
    return out
