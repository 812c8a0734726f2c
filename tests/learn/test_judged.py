"""From examples to a batch to a step of the one trainer."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from triloop.errors import ConfigError
from triloop.learn.batch import TokenOutputs, micro_batches, minibatches, supervised_batch
from triloop.learn.examples import Demonstration, Example, Preference, Rated, chain_of_hindsight, consumer, rows_of
from triloop.learn.likelihood import kl_baseline
from triloop.learn.mixture import (
    Mixture,
    build_judged,
    drift,
    judged_loss,
    judged_rows,
    mismatched_rows,
    mixture_of,
    resolve_mixture,
    scoring_rows,
)
from triloop.learn.objective_config import MixtureConfig, ObjectiveConfig
from triloop.learn.objective_table import resolve_objective
from triloop.learn.update import summarise, supervised_loss
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.tokenizer import char_tokenizer
from triloop.policies.native import NativePolicy
from triloop.policies.statistics import other_tokens, token_statistics

DEMO = Demonstration(prompt_tokens=(4, 5), tokens=(6, 7, 1))
GOOD = Rated(prompt_tokens=(4,), tokens=(8, 1), value=1.0)
BAD = Rated(prompt_tokens=(5,), tokens=(9, 9, 1), value=-1.0)
UNSURE = Rated(prompt_tokens=(6,), tokens=(7,), value=0.0)
SPANS = Rated(prompt_tokens=(4, 4), tokens=(5, 6, 7, 1), signs=(1.0, 0.0, -1.0, 0.0), level="span")
PAIR = Preference(prompt_tokens=(7,), first=(5, 1), second=(6, 8, 1))
TIE = Preference(prompt_tokens=(8,), first=(4, 1), second=(9, 1), p=0.5, tie=True)
MIXED: list[Example] = [PAIR, DEMO, GOOD, TIE, SPANS, BAD, UNSURE, PAIR]

CONFIG = MixtureConfig(
    demonstrations=ObjectiveConfig(name="sft", coefficient=0.5),
    rated=ObjectiveConfig(name="kto"),
    spans=ObjectiveConfig(name="span_pg", clip=0.2),
    pairs=ObjectiveConfig(name="dpo_davidson", coefficient=2.0),
)


@cache
def frozen_weights() -> dict[str, Tensor]:
    return decoder().state_dict()


def decoder() -> Decoder:
    shape = {"num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    config = DecoderConfig(vocab_size=14, hidden_size=16, intermediate_size=24, max_positions=32, **shape)
    return Decoder(config).initialise(0, std=0.3)


def policy(**settings: Any) -> NativePolicy:
    made = decoder()
    made.load_state_dict(frozen_weights())
    return NativePolicy(made, char_tokenizer("0123456789"), entropy=False, **settings)


def scored(p: NativePolicy, examples: Sequence[Example], mixture: Mixture) -> dict[str, Any]:
    """What ``build_judged`` wants, with a reference a little away from the policy."""
    logps = p.logprobs(scoring_rows(examples, mixture))
    return {"reference": [x - 0.1 for x in logps], "old": logps, "baseline": 0.2}


# ---------------------------------------------------------------------- examples


@pytest.mark.parametrize(
    ("kind", "wrong", "says"),
    [
        (Demonstration, {"tokens": (1, 2), "mask": (True,)}, "mask of 1 entries for 2 tokens"),
        (Rated, {"tokens": (1,), "signs": (1.0, 1.0)}, "signs of 2 entries for 1 tokens"),
        (Rated, {"tokens": (1,), "value": 1.5}, "value 1.5"),
        (Rated, {"tokens": (1,), "value": math.nan}, "value nan"),
        (Rated, {"tokens": (1,), "signs": (-2.0,)}, "value -2.0"),
        (Rated, {"tokens": (1,), "weight": -1.0}, "weight=-1.0"),
        (Preference, {"first": (1,), "second": (2,), "p": 1.1}, "p=1.1"),
        (Preference, {"first": (1,), "second": (2,), "tie": True}, "a tie with p=1.0"),
        (Preference, {"first": (1,), "second": (2,), "margin": math.inf}, "margin=inf"),
        (Preference, {"first": (1,), "second": (2,), "weight": math.nan}, "weight=nan"),
    ],
)
def test_an_impossible_example_is_refused(kind: Any, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        kind(prompt_tokens=(1,), **wrong)


def test_who_learns_from_what() -> None:
    assert [consumer(e) for e in (DEMO, GOOD, SPANS, PAIR)] == ["demonstrations", "rated", "spans", "pairs"]
    assert rows_of(PAIR) == [((7,), (5, 1)), ((7,), (6, 8, 1))]


def test_chain_of_hindsight_learns_the_last_output_alone() -> None:
    chain = [((10,), (1, 2, 3)), ((11, 12), (4, 5))]
    made = chain_of_hindsight((9,), chain)
    assert made.tokens == (10, 1, 2, 3, 11, 12, 4, 5)
    assert made.mask == (False,) * 6 + (True, True)
    every = chain_of_hindsight((9,), chain, learn="all")
    assert every.mask == (False, True, True, True, False, False, True, True)
    hidden = chain_of_hindsight((9,), chain, learn="all", hidden=1.0, hidden_token=0)
    assert hidden.tokens == (10, 0, 0, 0, 11, 12, 4, 5)
    assert hidden.mask == (False,) * 6 + (True, True)
    long = chain_of_hindsight((9,), [((), (7,) * 4000), ((), (8,))], hidden=0.15, hidden_token=0, seed=3)
    assert long.tokens.count(0) / 4000 == pytest.approx(0.15, abs=0.02)
    with pytest.raises(ConfigError, match="without an output"):
        chain_of_hindsight((9,), [])


def test_choices_load_no_torch() -> None:
    code = "import sys, triloop.learn.examples, triloop.learn.objective_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# ---------------------------------------------------------------------- the batch


def test_rows_stand_in_the_order_of_the_examples() -> None:
    mixture = resolve_mixture(CONFIG)
    batch = build_judged(MIXED, mixture, **scored(policy(), MIXED, mixture))
    assert batch.tokens == [list(t) for _, t in judged_rows(MIXED)]
    assert batch.example == [0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 7]
    assert batch.units() == [
        range(2),
        range(2, 3),
        range(3, 4),
        range(4, 6),
        *(range(i, i + 1) for i in (6, 7, 8)),
        range(9, 11),
    ]
    assert batch.value.tolist() == [0, 0, 0, 1, 0, 0, 0, -1, 0, 0, 0]
    assert batch.tie.tolist() == [False] * 4 + [True, True] + [False] * 5
    assert batch.signs[6].tolist() == [1, 0, -1, 0]
    assert batch.denominators.sequences == 8


def test_nothing_parts_a_pair() -> None:
    mixture = resolve_mixture(CONFIG)
    batch = build_judged(MIXED, mixture, **scored(policy(), MIXED, mixture))
    for limit in range(1, 40):
        parts = list(micro_batches(batch, limit))
        assert [i for part in parts for i in part.example] == batch.example
        for part in parts:
            pairs = part.rows(part.of("pairs"))
            pairs.pairs()  # raises when torn
            size = sum(len(a) + len(b) for a, b in zip(part.prompt_tokens, part.tokens, strict=True))
            assert size <= limit or len(part.units()) == 1
    parts = minibatches(batch, 3, order=[7, 0, 3, 1, 2, 4, 6, 5])
    assert [i for part in parts for i in part.example] == [7, 7, 0, 0, 3, 3, 1, 2, 4, 6, 5]
    with pytest.raises(ConfigError, match="without its other half"):
        batch.rows([0, 4]).pairs()


def test_scoring_asks_only_where_it_is_needed() -> None:
    mixture = resolve_mixture(replace(CONFIG, spans=ObjectiveConfig(name="span_pg")))
    rows = scoring_rows(MIXED, mixture)
    assert [len(tokens) for _, tokens in rows] == [2, 3, 0, 2, 2, 2, 0, 3, 1, 2, 3]
    assert [x[0] for x in rows] == [x[0] for x in judged_rows(MIXED)]


def test_mismatched_rows_have_a_prompt_of_another() -> None:
    twins = [GOOD, replace(GOOD, tokens=(3, 1)), BAD, SPANS, PAIR]
    assert mismatched_rows(twins) == [((5,), (8, 1)), ((5,), (3, 1)), ((4,), (9, 9, 1))]
    assert mismatched_rows([GOOD]) == [((4,), (8, 1))]
    assert mismatched_rows([PAIR]) == []


def test_drift_is_ktos_baseline() -> None:
    logp, ref = [np.array([-1.0, -1.0]), np.array([-1.0])], [np.array([-2.0, -2.0]), np.array([-4.0])]
    mask = torch.tensor([[True, True], [True, False]])
    padded = [torch.tensor([[-1.0, -1.0], [-1.0, 0.0]]), torch.tensor([[-2.0, -2.0], [-4.0, 0.0]])]
    assert drift(logp, ref) == pytest.approx(2.5) == float(kl_baseline(*padded, mask))
    assert drift(ref, logp) == 0.0
    assert drift([], []) == 0.0


def test_what_is_missing_is_named() -> None:
    kto = resolve_objective("kto")
    logps = [np.zeros(2, np.float32)]
    for given, says in (({"baseline": 0.0}, "needs reference"), ({"reference": logps}, "needs baseline: KTO's z0")):
        with pytest.raises(ConfigError, match=says):
            build_judged([GOOD], kto, **given)
    with pytest.raises(ConfigError, match="needs old"):
        build_judged([SPANS], resolve_objective("span_pg", clip=0.2))
    with pytest.raises(ConfigError, match="no objective learns from pairs; the mixture has rated"):
        build_judged([PAIR], kto)
    with pytest.raises(ConfigError, match="1 rows, expected 2"):
        build_judged([PAIR], resolve_objective("dpo"), reference=logps)
    with pytest.raises(ConfigError, match="1 numbers for a completion of 2 tokens"):
        build_judged([GOOD], kto, reference=[np.zeros(1)], baseline=0.0)
    with pytest.raises(ConfigError, match="two objectives for one kind"):
        mixture_of(kto, resolve_objective("pmpo"))
    with pytest.raises(ConfigError, match="one for rated belongs"):
        Mixture(objectives={"rated": resolve_objective("dpo")})
    with pytest.raises(ConfigError, match="without an objective"):
        MixtureConfig()
    with pytest.raises(ConfigError, match="normalise='kind'"):
        MixtureConfig(pairs=ObjectiveConfig(), normalise="kind")  # type: ignore[arg-type]


def test_a_loss_that_was_not_given_its_head_says_so() -> None:
    for name, example, says in (("reward_bt", PAIR, "add_value_head"), ("cringe", BAD, "gave no other tokens")):
        objective = resolve_objective(name)
        batch = build_judged([example], objective)
        with pytest.raises(ConfigError, match=says):
            judged_loss(objective)(TokenOutputs(logp=torch.zeros(batch.mask.shape)), batch, batch.denominators)


# ---------------------------------------------------------------------- the mixture


def value_of(examples: Sequence[Example], mixture: Mixture, logp: float = -1.0) -> tuple[float, dict[str, float]]:
    batch = build_judged(examples, mixture, reference=[[-1.5] * len(t) for _, t in judged_rows(examples)], baseline=0.0)
    total, sums = judged_loss(mixture)(TokenOutputs(logp=torch.full(batch.mask.shape, logp)), batch, batch.denominators)
    return float(total), summarise(sums)


def two_kinds(**changes: Any) -> Mixture:
    sft, dpo = ObjectiveConfig(name="sft", coefficient=0.5), ObjectiveConfig(name="dpo", beta=0.1)
    return resolve_mixture(MixtureConfig(demonstrations=sft, pairs=dpo, **changes))


# The pair's difference is (2 - 3) 0.5 = -0.5: loss log(1 + e^0.05); the tie's is 0: log 2. A demonstration's nll is 1.
DPO = math.log1p(math.exp(0.05))


def test_each_kind_has_its_own_mean() -> None:
    got, figures = value_of([PAIR, DEMO, TIE], two_kinds())
    want = (DPO + math.log(2)) / 2 + 0.5
    assert got == pytest.approx(want)
    many, _ = value_of([PAIR, TIE, *[DEMO] * 20], two_kinds())
    assert many == pytest.approx(want)
    assert figures["loss"] == pytest.approx(want)
    assert figures["pairs/loss"] + figures["demonstrations/loss"] == pytest.approx(want)


def test_or_every_example_weighs_the_same() -> None:
    pairs = (DPO + math.log(2)) / 2
    got, _ = value_of([PAIR, TIE, *[DEMO] * 8], two_kinds(normalise="examples"))
    assert got == pytest.approx(0.2 * pairs + 0.8 * 0.5)


def test_weights_weigh_within_a_kind() -> None:
    got, _ = value_of([replace(PAIR, weight=3.0), TIE], two_kinds())
    assert got == pytest.approx(0.75 * DPO + 0.25 * math.log(2))


def test_likelihood_is_a_mean_over_tokens() -> None:
    """So a weight of 2 on three tokens beside one token: (2 * 3 + 1) / (2 * 3 + 1)."""
    batch = build_judged([replace(DEMO, weight=2.0), replace(DEMO, tokens=(6,))], resolve_objective("sft"))
    logp = torch.tensor([[-1.0, -1.0, -1.0], [-8.0, 0.0, 0.0]])
    total, _ = judged_loss(resolve_objective("sft"))(TokenOutputs(logp=logp), batch, batch.denominators)
    assert float(total) == pytest.approx((2 * 3 + 8) / 7)


def test_balance_makes_both_signs_the_whole() -> None:
    """PMPO's expectations over the accepted and the rejected: two tokens good, three bad, one unsure."""
    pmpo = resolve_objective("pmpo", balance=True)
    batch = build_judged([GOOD, BAD, UNSURE], pmpo, reference=[[-1.5] * n for n in (2, 3, 1)])
    assert batch.value.tolist() == pytest.approx([6 / 2, -6 / 3, 0.0])
    plain = build_judged([GOOD, BAD, UNSURE], resolve_objective("pmpo"), reference=[[-1.5] * n for n in (2, 3, 1)])
    assert plain.value.tolist() == [1.0, -1.0, 0.0]


def test_figures_by_hand() -> None:
    mixture = resolve_mixture(CONFIG)
    rows = judged_rows(MIXED)
    flat = [[-1.5] * len(t) for _, t in rows]
    batch = build_judged(MIXED, mixture, reference=flat, old=flat, baseline=0.0)
    logp = torch.full(batch.mask.shape, -1.0)
    logp[6] = torch.tensor([-1.0, -9.0, -3.0, -9.0])  # spans
    _, sums = judged_loss(mixture)(TokenOutputs(logp=logp), batch, batch.denominators)
    got = summarise(sums)
    assert {k: v for k, v in got.items() if k.startswith("pairs/") and k != "pairs/loss"} == pytest.approx(
        {"pairs/nll": 1.0, "pairs/accuracy": 0.0, "pairs/lead": -0.5, "pairs/tie_gap": 0.0}
    )
    assert (got["rated/good"], got["rated/bad"], got["rated/abstained"]) == pytest.approx((1.0, 1.5, 0.5))
    assert (got["spans/good"], got["spans/bad"], got["spans/nll"]) == pytest.approx((-1.0, -3.0, 5.5))
    assert got["demonstrations/nll"] == pytest.approx(1.0)
    assert got["tokens"] == 27


# ---------------------------------------------------------------------- with the trainer


def grads(p: NativePolicy) -> Tensor:
    return torch.cat([x.grad.flatten() for x in p.decoder.parameters() if x.grad is not None])


@pytest.mark.parametrize("rated", ["kto", "cringe", "pmpo"])
def test_one_trainer_for_all_kinds_under_any_micro_batching(rated: str) -> None:
    mixture = resolve_mixture(replace(CONFIG, rated=ObjectiveConfig(name=rated)))  # type: ignore[arg-type]
    seen = []
    for limit in (1, 12, 10_000):
        p = policy(micro_tokens=limit)
        batch = build_judged(MIXED, mixture, **scored(p, MIXED, mixture))
        seen.append((p.forward_backward(batch, judged_loss(mixture)), grads(p)))
    for figures, gradient in seen[1:]:
        assert figures == pytest.approx(seen[0][0], rel=1e-4, abs=1e-5)
        torch.testing.assert_close(gradient, seen[0][1], rtol=1e-3, atol=1e-6)
    assert seen[0][1].abs().max() > 1e-3


def test_sft_is_the_supervised_loss() -> None:
    """To the bit: the same likelihood through the same pass."""
    demos = [DEMO, replace(DEMO, tokens=(8, 9, 9, 1), mask=(False, True, True, True)), replace(DEMO, tokens=(1,))]
    a, b = policy(), policy()
    figures = a.forward_backward(build_judged(demos, resolve_objective("sft")), judged_loss(resolve_objective("sft")))
    masks = [[True] * len(d.tokens) if d.mask is None else list(d.mask) for d in demos]
    plain = supervised_batch([d.prompt_tokens for d in demos], [d.tokens for d in demos], masks)
    theirs = b.forward_backward(plain, supervised_loss)
    assert figures["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    torch.testing.assert_close(grads(a), grads(b), rtol=1e-5, atol=1e-7)


def test_a_mixture_moves_everything_where_it_was_told_to() -> None:
    mixture = resolve_mixture(CONFIG)
    p = policy()
    frozen = p.frozen()
    rows = scoring_rows(MIXED, mixture)
    first: dict[str, float] = {}
    for _ in range(30):
        baseline = drift(p.logprobs(mismatched_rows(MIXED)), frozen.logprobs(mismatched_rows(MIXED)))
        batch = build_judged(MIXED, mixture, reference=frozen.logprobs(rows), old=p.logprobs(rows), baseline=baseline)
        figures = p.forward_backward(batch, judged_loss(mixture))
        first = first or figures
        p.optim_step(3e-3)
    assert figures["pairs/accuracy"] == 1.0 and figures["pairs/lead"] > first["pairs/lead"] == 0.0
    assert figures["rated/good"] > 0 > figures["rated/bad"]
    assert figures["spans/good"] > first["spans/good"] and figures["spans/bad"] < first["spans/bad"]
    assert figures["demonstrations/nll"] < first["demonstrations/nll"]


def test_a_scalar_head_learns_pairs_and_ratings_together() -> None:
    pairs, rated = ObjectiveConfig(name="reward_davidson"), ObjectiveConfig(name="reward_ordinal")
    mixture = resolve_mixture(MixtureConfig(pairs=pairs, rated=rated))
    examples = [PAIR, TIE, GOOD, BAD, UNSURE]
    p = policy()
    p.add_value_head()
    for _ in range(40):
        figures = p.forward_backward(build_judged(examples, mixture), judged_loss(mixture))
        p.optim_step(1e-2)
    assert figures["pairs/accuracy"] == 1.0
    assert figures["rated/good"] > 0.5 and figures["rated/bad"] < -0.5
    assert figures["pairs/tie_gap"] < figures["pairs/lead"]


def test_other_tokens_are_the_best_that_did_not_come() -> None:
    g = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(7, 5, generator=g), torch.randn(6, 5, generator=g)
    targets = torch.tensor([0, 1, 2, 3, 4, 6])
    options: dict[str, Any] = {"vocab_size": 7, "temperature": 0.8}
    got = other_tokens(lambda h: h @ weight.T, hidden, targets, count=6, whole=14, **options)
    own, _ = token_statistics(lambda h: h @ weight.T, hidden, targets, entropy=False, **options)
    assert (got.diff(dim=1) <= 0).all()
    torch.testing.assert_close(got.exp().sum(dim=1) + own.exp(), torch.ones(6))
    assert other_tokens(lambda h: h @ weight.T, hidden, targets, count=99, **options).shape == (6, 6)
