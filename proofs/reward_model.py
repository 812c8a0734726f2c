"""Reward models on real preferences and on the attribute world.

    python proofs/reward_model.py [--data FILE] [--seed 0]

Real preferences: 1,500 pairs of Anthropic's HH-RLHF (harmless-base, test part; MIT), five folds. A pair's two dialogues
share all but the last answer, so the prompt is what they share and the texts are the two last answers. The reward model is
``RewardModel`` with a prior on features: hashed word n-grams and plain facts about the answer, beside a small network of
which only the head learns. Beside it: its parts, an ensemble of three, length alone, and bigram TF-IDF with logistic
regression (scikit-learn, where it is installed).

Attribute world: reward models on the weights of base:attributes, from 2,000 noisy simulated pairs of its own answers.

The rules, fixed before the run: (1) the mean of the five folds' held-out pair accuracies is at least 0.59; (2) of the
attribute world's held-out pairs whose true utilities differ by 0.5 or more, the lower end of the 95 % interval of the share
that the model orders rightly is above 0.8. Settings were chosen on the same 1,500 pairs with folds of other seeds; there
are no other pairs to choose them on. Writes docs/proof/reward_model.md and reward_model.json.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import importlib.util
import itertools
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from triloop import rng
from triloop.envs.attributes import Attributes
from triloop.learn.choices import OptimConfig
from triloop.loops.build import describe_machine, policy_path, set_threads
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Prompt
from triloop.sources.reward_audit import audit_scores
from triloop.sources.reward_config import RewardConfig, RewardTraining
from triloop.sources.reward_ensemble import RewardEnsemble
from triloop.sources.reward_examples import RewardPair
from triloop.sources.reward_facts import FACTS, plain_facts
from triloop.sources.reward_features import Features, HashedNgrams, NamedFeatures, join_features
from triloop.sources.reward_model import RewardModel
from triloop.sources.reward_trunk import learned_words, small_trunk
from triloop.stats import wilson

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "hh_rlhf" / "harmless_base_test_1500.jsonl.gz"
GOAL, CLEAR = 0.59, 0.8
FOLDS = 5
TURN = "\n\nAssistant:"
NOISE = 0.15
"""Utility by which an annotator's odds grow by a factor of e."""
QUESTION = "judge {request} {response} ; overall ?"
"""A skill of base:attributes, answered by yes or no."""

Fit = Callable[[list[RewardPair], int], Any]
"""From training pairs and a seed to something with ``score``."""


def read_pairs(path: Path) -> list[RewardPair]:
    """The pairs, the chosen answer first."""
    pairs = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for i, line in enumerate(lines):
            row = json.loads(line)
            letters = zip(row["chosen"], row["rejected"], strict=False)
            shared = sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], letters))
            cut = row["chosen"].rindex(TURN, 0, shared) + len(TURN)
            prompt = Prompt(id=f"hh-{i}", text=row["chosen"][:cut])
            pairs.append(RewardPair(prompt=prompt, first=row["chosen"][cut:], second=row["rejected"][cut:]))
    return pairs


def text_model(
    pairs: Sequence[RewardPair], seed: int, features: Features | None, config: RewardConfig, how: RewardTraining
) -> RewardModel:
    """A small network over the vocabulary of these answers, with these features beside it."""
    words = learned_words([t for e in pairs for t in (e.first, e.second)], 500)
    trunk = small_trunk(words, width=16, layers=1, positions=32, seed=seed)
    return RewardModel(trunk, words, config, features=features, training=replace(how, seed=seed))


NGRAMS = HashedNgrams(bits=15)
NAMED = NamedFeatures(plain_facts, FACTS, scale=0.1)
PRIOR = (
    RewardConfig(train_trunk=False, prior_l2=1.0),
    RewardTraining(optim=OptimConfig(lr=0.02, warmup_steps=0, schedule="linear"), epochs=8, batch=64, held_out=0.0),
)
"""The features' part is convex and has a ridge: it is trained to the end, without pairs held out."""
ALONE = (RewardConfig(), RewardTraining(optim=OptimConfig(lr=1e-3, schedule="linear", weight_decay=0.1), epochs=6))


def fitted(features: Features | None, settings: tuple[RewardConfig, RewardTraining]) -> Fit:
    def fit(pairs: list[RewardPair], seed: int) -> RewardModel:
        model = text_model(pairs, seed, features, *settings)
        model.learn(pairs)
        return model

    return fit


def ensemble(pairs: list[RewardPair], seed: int) -> RewardEnsemble:
    """Three, by their mean."""
    both = join_features(NGRAMS, NAMED)
    out = RewardEnsemble.build(lambda m: text_model(pairs, 100 * seed + m, both, *PRIOR), 3, k=0.0)
    out.learn(pairs)
    return out


class Shorter:
    """Length alone: the shorter wins."""

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Any:
        return -np.array([len(t) for t in texts], dtype=np.float64)


class Reference:
    """scikit-learn: bigram TF-IDF of the answers and logistic regression of the differences."""

    def __init__(self, pairs: list[RewardPair], seed: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self.words = TfidfVectorizer(ngram_range=(1, 2)).fit([t for e in pairs for t in (e.first, e.second)])
        x = self.words.transform([e.first for e in pairs]) - self.words.transform([e.second for e in pairs])
        sign = np.where(np.arange(len(pairs)) % 2, 1, -1)
        self.line = LogisticRegression(fit_intercept=False, max_iter=300).fit(x.multiply(sign[:, None]).tocsr(), sign)

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Any:
        return self.words.transform(texts) @ self.line.coef_[0]


METHODS: dict[str, Fit] = {
    "n-grams, facts and network": fitted(join_features(NGRAMS, NAMED), PRIOR),
    "the same, three by their mean": ensemble,
    "n-grams and network": fitted(NGRAMS, PRIOR),
    "facts and network": fitted(NAMED, PRIOR),
    "network alone": fitted(None, ALONE),
    "length alone": lambda pairs, seed: Shorter(),
}


def folds(count: int, seed: int) -> list[list[int]]:
    order = rng.generator(seed, "folds").permutation(count).tolist()
    return [order[k::FOLDS] for k in range(FOLDS)]


def cross_validated(name: str, fit: Fit, pairs: list[RewardPair], seed: int) -> dict[str, Any]:
    """Every pair is scored once, by a model that has not seen it."""
    started, each = time.process_time(), []
    first, second = np.zeros(len(pairs)), np.zeros(len(pairs))
    for k, held in enumerate(folds(len(pairs), seed)):
        out = set(held)
        model = fit([e for i, e in enumerate(pairs) if i not in out], k)
        prompts = [pairs[i].prompt for i in held]
        first[held] = model.score(prompts, [pairs[i].first for i in held])
        second[held] = model.score(prompts, [pairs[i].second for i in held])
        each.append(float((first[held] > second[held]).mean()))
    audit = audit_scores(pairs, first, second).as_dict()
    seconds = time.process_time() - started
    return {"method": name, "mean": float(np.mean(each)), "folds": each, "seconds": seconds, "audit": audit}


def real(path: Path, seed: int) -> list[dict[str, Any]]:
    pairs = read_pairs(path)
    methods = dict(METHODS)
    if importlib.util.find_spec("sklearn") is not None:
        methods["bigram TF-IDF, logistic regression"] = Reference
    rows = []
    for name, fit in methods.items():
        rows.append(cross_validated(name, fit, pairs, seed))
        print(f"{name}: {rows[-1]['mean']:.4f} in {rows[-1]['seconds']:.0f} s", flush=True)
    return rows


def simulated(split: str, prompts: int, seed: int, *, noisy: bool) -> tuple[list[RewardPair], Any]:
    """Pairs of the base's own answers, judged by true utility or by a noisy annotator, and by how much they differ."""
    env, base = Attributes(), NativePolicy.load(policy_path("base:attributes"))
    asked = env.prompts(split, prompts, seed=seed)
    tag = Tag(seed=seed, round=0, purpose=split)
    done = base.sample(asked, 2, Sampling(max_tokens=env.max_tokens, stop=env.stop), tag)
    gold = env.gold([p for p in asked for _ in range(2)], [c.text for c in done])
    utility = np.array([f.value for f in gold], dtype=np.float64).reshape(-1, 2)
    lead = utility[:, 0] - utility[:, 1]
    draw = rng.generator(seed, "annotator").random(len(lead))
    chance = 1 / (1 + np.exp(-lead / NOISE)) if noisy else (lead > 0).astype(float)
    pairs = [
        RewardPair(prompt=p, first=a.text, second=b.text, p=float(u < c))
        for p, a, b, u, c in zip(asked, done[::2], done[1::2], draw, chance, strict=True)
    ]
    kept = np.flatnonzero(lead)
    return [pairs[i] for i in kept], np.abs(lead[kept])


def attribute_world(seed: int) -> dict[str, Any]:
    taught, _ = simulated("train", 2300, seed + 1, noisy=True)
    test, gap = simulated("eval", 1200, seed + 2, noisy=False)
    taught = taught[:2000]
    rows = []
    for name, config in (
        ("state after the text", RewardConfig()),
        ("asked, from the base's own answer", RewardConfig(template=QUESTION, answers=("yes", "no"))),
    ):
        model = RewardModel.load(policy_path("base:attributes"), config)
        before = _ordered(model, test, gap, 0.5)
        started, cpu = time.perf_counter(), time.process_time()
        done = model.learn(taught)
        took, busy = time.perf_counter() - started, time.process_time() - cpu
        row = {"method": name, "before": before, "all": _ordered(model, test, gap, 0.0)}
        row |= {"clear": _ordered(model, test, gap, 0.5), "seconds": took, "cpu_seconds": busy, "steps": done.steps}
        row["ece"] = model.audit(test).ece
        rows.append(row)
        print(name, row["clear"], f"{busy:.1f} s", flush=True)
    return {"pairs": len(taught), "test": len(test), "rows": rows}


def _ordered(model: RewardModel, pairs: Sequence[RewardPair], gap: Any, least: float) -> dict[str, Any]:
    chosen = [e for e, g in zip(pairs, gap, strict=True) if g >= least]
    prompts = [e.prompt for e in chosen]
    lead = model.score(prompts, [e.first for e in chosen]) - model.score(prompts, [e.second for e in chosen])
    right = int(sum((d > 0) == (e.p > 0.5) and d != 0 for d, e in zip(lead, chosen, strict=True)))
    found = wilson(right, len(chosen))
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def write(out: Path, facts: dict[str, Any]) -> None:
    """The two files."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "reward_model.json").write_text(json.dumps(facts, indent=1) + "\n")
    machine, world = facts["machine"], facts["attribute_world"]
    verdict = {True: "**holds**", False: "**does not hold**"}
    people = facts["real"][0]["audit"]["longer_wins_people"]
    lines = [
        "# Reward models",
        "",
        "Written by `python proofs/reward_model.py`, whose text says what is measured and by which rules.",
        "",
        f"- date: {facts['date']}",
        f"- machine: {machine['processor']}, {machine['machine']}, {machine['threads']} thread, torch {machine['torch']}",
        f"- rule 1, mean held-out pair accuracy at least {GOAL}: {verdict[facts['holds_real']]}",
        f"- rule 2, clear pairs of the attribute world above {CLEAR}: {verdict[facts['holds_world']]}",
        "",
        "## Real preferences",
        "",
        "HH-RLHF harmless-base, 1,500 pairs, five folds: 1,200 to learn from, 300 held out. The interval is Wilson's over",
        "all 1,500 held-out judgements. Longer wins: share of pairs of unequal length in which the longer answer has the",
        f"higher score; with people it is {people:.3f}. Correlation: of score with words, within pairs. Length",
        "alone prefers the shorter answer (by characters) and gives no probabilities.",
        "",
        "| method | mean accuracy | 95 % | folds | log loss | Brier | ECE | longer wins | correlation | CPU s |",
        "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in facts["real"]:
        a, each = r["audit"], " ".join(f"{x:.3f}" for x in r["folds"])
        sure = (
            "| | |"
            if r["method"].startswith("length")
            else f"| {a['log_loss']:.3f} | {a['brier']:.3f} | {a['ece']:.3f}"
        )
        interval = f"{a['accuracy']['low']:.3f} to {a['accuracy']['high']:.3f}"
        bias = f"{a['longer_wins_model']:.3f} | {a['length_correlation']:+.2f}"
        lines.append(f"| {r['method']} | {r['mean']:.3f} | {interval} | {each} {sure} | {bias} | {r['seconds']:.0f} |")
    lines += [
        "",
        "## Attribute world",
        "",
        f"{world['pairs']:,} pairs of base:attributes' own answers, judged by an annotator who prefers the better one with",
        f"probability sigmoid(difference of utility / {NOISE}); {world['test']:,} held-out pairs, judged truly.",
        "All settings are the defaults.",
        "",
        "| method | differ by 0.5 or more | 95 % | pairs | before learning | all pairs | ECE | steps | CPU s |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in world["rows"]:
        c, whole = r["clear"], r["all"]["value"]
        before = f"{r['before']['value']:.3f}" if r["before"]["value"] else "says 0 of all"
        lines.append(
            f"| {r['method']} | {c['value']:.3f} | {c['low']:.3f} to {c['high']:.3f} | {c['n']} | {before} | "
            f"{whole:.3f} | {r['ece']:.3f} | {r['steps']} | {r['cpu_seconds']:.0f} |"
        )
    (out / "reward_model.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "proof")
    options = parser.parse_args()
    import torch

    set_threads(1)
    world = attribute_world(options.seed)
    rows = real(options.data, options.seed)
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(1, torch.float32, torch.device("cpu")) | {"system": platform.system()},
        "seed": options.seed,
        "goal": GOAL,
        "holds_real": rows[0]["mean"] >= GOAL,
        "holds_world": all(r["clear"]["low"] > CLEAR for r in world["rows"]),
        "real": rows,
        "attribute_world": world,
    }
    write(options.out, facts)


if __name__ == "__main__":
    main()
