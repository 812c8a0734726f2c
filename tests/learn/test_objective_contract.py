"""One suite over every objective on judgements. A new one joins by one line in ``EVERY``; none may be missing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from triloop.errors import ConfigError
from triloop.learn.batch import TokenOutputs, micro_batches, minibatches, pad
from triloop.learn.examples import Demonstration, Example, Preference, Rated
from triloop.learn.judged import JudgedBatch
from triloop.learn.mixture import build_judged, judged_loss, judged_rows, mixture_of
from triloop.learn.objective_config import ObjectiveConfig, ObjectiveName
from triloop.learn.objective_table import OBJECTIVES, Objective, resolve_objective
from triloop.learn.update import add_sums, summarise

PAIRS = [
    "dpo",
    "cdpo",
    "robust_dpo",
    "ipo",
    "simpo",
    "orpo",
    "spin",
    "dpo_davidson",
    "dpo_rao_kupper",
    "pairwise_cringe",
    "reward_bt",
    "reward_davidson",
    "reward_rao_kupper",
]
RATED = [
    "weighted_sft",
    "unlikelihood",
    "cringe",
    "kto",
    "pmpo",
    "pmpo_negative",
    "reward_regression",
    "reward_ordinal",
]
EVERY = ["sft", "span_pg", *RATED, *PAIRS]
every_objective = pytest.mark.parametrize("name", EVERY)
every_pair = pytest.mark.parametrize("name", PAIRS)

PROMPTS, TIME, VOCABULARY = 3, 4, 6
BASELINE = 0.3


def test_none_is_missing() -> None:
    assert set(EVERY) == set(OBJECTIVES) == set(get_args(ObjectiveName))
    assert [n for n in EVERY if OBJECTIVES[n].consumes == "pairs"] == PAIRS
    assert [n for n in EVERY if OBJECTIVES[n].consumes == "rated"] == RATED


@dataclass(frozen=True)
class Table:
    """A policy without generalisation: free logits for each prompt and position, and a value of each position and token."""

    logits: Tensor
    values: Tensor

    @staticmethod
    def start(seed: int = 7, scale: float = 1.0) -> Table:
        g = torch.Generator().manual_seed(seed)
        logits = scale * torch.randn(PROMPTS, TIME, VOCABULARY, generator=g).double()
        values = scale * torch.randn(PROMPTS, TIME, VOCABULARY, generator=g).double()
        return Table(logits.requires_grad_(), values.requires_grad_())

    def __call__(self, batch: JudgedBatch) -> TokenOutputs:
        p, time = torch.tensor([row[0] for row in batch.prompt_tokens], dtype=torch.long), batch.mask.shape[1]
        logp_all = self.logits[p, :time].log_softmax(-1)
        tokens = pad(batch.tokens, time).long()[..., None]
        others = logp_all.scatter(-1, tokens, -math.inf)
        return TokenOutputs(
            logp=logp_all.gather(-1, tokens)[..., 0],
            values=self.values[p, :time].gather(-1, tokens)[..., 0],
            alternatives=others.topk(max(1, batch.alternatives), dim=-1).values,
        )

    def logprobs(self, examples: Sequence[Example]) -> list[list[float]]:
        logp = self.logits.detach().log_softmax(-1)
        return [[float(logp[x[0], t, y]) for t, y in enumerate(tokens)] for x, tokens in judged_rows(examples)]


def row(i: int) -> tuple[int, ...]:
    return tuple((3 * i + t) % VOCABULARY for t in range(1 + i % TIME))


def examples_for(consumes: str) -> list[Example]:
    """Six of them: unequal lengths, weights and strengths, soft labels, ties and abstentions, masks with holes."""
    prompts = [(i % PROMPTS,) for i in range(6)]
    if consumes == "demonstrations":
        masks = [None, (True, False), None, (False, True, True, True), None, None]
        return [
            Demonstration(prompt_tokens=x, tokens=row(i), mask=masks[i], weight=1.0 + i / 4)
            for i, x in enumerate(prompts)
        ]
    if consumes == "pairs":
        p = [1.0, 0.0, 0.5, 0.8, 0.5, 1.0]
        return [
            Preference(
                prompt_tokens=x,
                first=row(i),
                second=row(i + 5),
                p=p[i],
                tie=i == 2,
                margin=0.1 * (i % 2),
                weight=1.0 + i / 4,
            )
            for i, x in enumerate(prompts)
        ]
    values = [1.0, -1.0, 0.0, 0.5, -0.4, 1.0]
    made: list[Example] = []
    for i, x in enumerate(prompts):
        signs = None if consumes == "rated" else [(-1.0, 1.0, 0.0, 0.5)[(i + t) % 4] for t in range(len(row(i)))]
        mask = (True, False) if i == 1 else None
        made.append(Rated(prompt_tokens=x, tokens=row(i), mask=mask, value=values[i], signs=signs, weight=1.0 + i / 4))
    return made


def double(batch: JudgedBatch) -> JudgedBatch:
    floats = {f.name: getattr(batch, f.name) for f in fields(batch)}
    changed = {n: x.double() for n, x in floats.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return replace(batch, **changed)


def given(examples: Sequence[Example], objective: Objective, reference: Table | None = None) -> JudgedBatch:
    logps = (reference or Table.start(3)).logprobs(examples)
    return double(build_judged(examples, objective, reference=logps, old=logps, baseline=BASELINE))


def resolved(name: str, **overrides: Any) -> Objective:
    """With a clip and a KL term where an objective can have them, so that the suite sees them."""
    if name == "span_pg":
        overrides = {"clip": 0.5, "beta": 0.1, "negative_weight": 0.7, **overrides}
    return resolve_objective(name, **overrides)


def gradient(
    objective: Objective, pieces: Sequence[JudgedBatch], whole: JudgedBatch
) -> tuple[Tensor, dict[str, float]]:
    policy, sums, loss = Table.start(), {}, judged_loss(objective)
    for piece in pieces:
        total, part = loss(policy(piece), piece, whole.denominators)
        total.backward()
        sums = add_sums(sums, part)
    both = [torch.zeros_like(x) if x.grad is None else x.grad for x in (policy.logits, policy.values)]
    return torch.cat([g.flatten() for g in both]), summarise(sums)


# ---------------------------------------------------------------------- the contract


@every_objective
def test_gradients_are_those_of_the_value(name: str) -> None:
    """Finite differences in random directions. CRINGE with one alternative: with several, the draw's probabilities carry no
    gradient on purpose."""
    cringe = "alternatives" in OBJECTIVES[name].reads
    objective = resolved(name, **({"alternatives": 1} if cringe else {}))
    batch, start, loss = given(examples_for(objective.consumes), objective), Table.start(), judged_loss(objective)
    slope, _ = gradient(objective, [batch], batch)
    assert slope.abs().max() > 1e-4
    n, g, step = start.logits.numel(), torch.Generator().manual_seed(1), 1e-6

    def value(move: Tensor) -> float:
        logits, values = (x.detach() + m.view(x.shape) for x, m in zip(start_of, (move[:n], move[n:]), strict=True))
        return float(loss(Table(logits, values)(batch), batch, batch.denominators)[0])

    start_of = (start.logits, start.values)
    for _ in range(4):
        way = torch.randn(len(slope), generator=g).double()
        rise = (value(step * way) - value(-step * way)) / (2 * step)
        assert rise == pytest.approx(float(slope @ way), rel=1e-6, abs=1e-8)


@every_objective
def test_micro_batches_change_nothing(name: str) -> None:
    objective = resolved(name)
    batch = given(examples_for(objective.consumes), objective)
    whole, figures = gradient(objective, [batch], batch)
    for limit in (1, 14):
        pieces = list(micro_batches(batch, limit))
        assert len(pieces) > 1
        got, joint = gradient(objective, pieces, batch)
        torch.testing.assert_close(got, whole, rtol=1e-9, atol=1e-12)
        assert joint == pytest.approx(figures, rel=1e-9)


@every_objective
def test_minibatches_average_to_the_whole(name: str) -> None:
    objective = resolved(name)
    batch = given(examples_for(objective.consumes), objective)
    whole, _ = gradient(objective, [batch], batch)
    parts = minibatches(batch, 4, order=[5, 0, 3, 1, 4, 2])
    assert len(parts) == 4
    mean = torch.stack([gradient(objective, [part], part)[0] for part in parts]).mean(dim=0)
    torch.testing.assert_close(mean, whole, rtol=1e-9, atol=1e-12)


@every_objective
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_poison_reaches_neither_value_nor_gradient(name: str, poison: float) -> None:
    objective = resolved(name)
    clean = given(examples_for(objective.consumes), objective)
    hole = ~clean.mask
    assert hole.any()

    def run(fill: float | None) -> tuple[float, list[Tensor]]:
        def put(x: Tensor) -> Tensor:
            where = hole if x.ndim == 2 else hole[..., None].expand_as(x)
            return x.detach() if fill is None else torch.where(where, fill, x.detach())

        outputs = Table.start()(clean)
        assert outputs.values is not None and outputs.alternatives is not None
        assert clean.logp_ref is not None and clean.logp_old is not None
        leaves = [put(x).requires_grad_() for x in (outputs.logp, outputs.values, outputs.alternatives)]
        batch = replace(clean, logp_ref=put(clean.logp_ref), logp_old=put(clean.logp_old), signs=put(clean.signs))
        seen = TokenOutputs(logp=leaves[0], values=leaves[1], alternatives=leaves[2])
        total, sums = judged_loss(objective)(seen, batch, batch.denominators)
        total.backward()
        assert all(math.isfinite(x) for x in summarise(sums).values())
        return total.item(), [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]

    (value, grads), (poisoned, theirs) = run(None), run(poison)
    assert poisoned == value
    for a, b in zip(grads, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def pull(name: str, examples: Sequence[Example]) -> list[float]:
    """Gradient of the loss by each row's summed log-probability (or score), at the reference itself."""
    objective = resolved(name)
    table = Table.start()
    batch = given(examples, objective, table)
    outputs = table(batch)
    assert outputs.values is not None and outputs.alternatives is not None
    logp, values = outputs.logp.detach().requires_grad_(), outputs.values.detach().requires_grad_()
    seen = TokenOutputs(logp=logp, values=values, alternatives=outputs.alternatives.detach())
    judged_loss(objective)(seen, batch, batch.denominators)[0].backward()
    leaf = values if objective.needs_values else logp
    assert leaf.grad is not None
    return leaf.grad.sum(dim=1).tolist()


@every_pair
def test_it_raises_the_preferred_and_lowers_the_other(name: str) -> None:
    first, second = pull(name, [Preference(prompt_tokens=(0,), first=(1, 2), second=(3, 4, 5))])
    assert first < 0 < second
    second, first = pull(name, [Preference(prompt_tokens=(0,), first=(1, 2), second=(3, 4, 5), p=0.0)])
    assert first < 0 < second


NEVER_LOWER = {"weighted_sft"}
NEGATIVES_ALONE = {"pmpo_negative"}
ZERO_PULLS_TO_A_SCORE = {"reward_regression", "reward_ordinal"}


@pytest.mark.parametrize("name", RATED)
def test_it_raises_the_good_lowers_the_bad_and_leaves_the_abstained(name: str) -> None:
    good, bad, abstained = (
        pull(name, [Rated(prompt_tokens=(0,), tokens=(1, 2), value=v)])[0] for v in (1.0, -1.0, 0.0)
    )
    if name in ZERO_PULLS_TO_A_SCORE:
        assert good < abstained < bad
        return
    assert good == pytest.approx(0.0, abs=1e-6) if name in NEGATIVES_ALONE else good < 0
    if name in NEVER_LOWER:
        assert abs(good) > abs(abstained) > abs(bad) > 0
    else:
        assert bad > 0
        assert abstained == pytest.approx(0.0, abs=1e-6)


def test_likelihood_raises_and_spans_move_their_own_tokens_alone() -> None:
    assert pull("sft", [Demonstration(prompt_tokens=(0,), tokens=(1, 2))])[0] < 0
    objective = resolve_objective("span_pg")
    batch = given([Rated(prompt_tokens=(0,), tokens=(1, 2, 3), signs=(1.0, 0.0, -1.0))], objective)
    logp = Table.start()(batch).logp.detach().requires_grad_()
    judged_loss(objective)(TokenOutputs(logp=logp), batch, batch.denominators)[0].backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == [[-0.5, 0.0, 0.5]]


@every_objective
def test_weight_zero_teaches_nothing(name: str) -> None:
    objective = resolved(name)
    examples = examples_for(objective.consumes)
    kept = examples[1:]
    muted = [replace(examples[0], weight=0.0), *kept]
    got, alone = given(muted, objective), given(kept, objective)
    torch.testing.assert_close(
        gradient(objective, [got], got)[0], gradient(objective, [alone], alone)[0], rtol=1e-5, atol=1e-6
    )
    silent = given([replace(e, weight=0.0) for e in examples], objective)
    assert gradient(objective, [silent], silent)[0].abs().max() == 0


@every_objective
def test_an_empty_batch_is_a_loss_of_zero(name: str) -> None:
    objective = resolved(name)
    batch = build_judged([], objective)
    total, sums = judged_loss(objective)(TokenOutputs(logp=torch.zeros(0, 0)), batch, batch.denominators)
    assert total.item() == 0.0
    assert summarise(sums) == {"loss": 0.0, "tokens": 0.0}
    assert list(micro_batches(batch, 5)) == []
    # and a completion without a token is no reason to fail
    hollow = {"demonstrations": Demonstration, "rated": Rated, "spans": Rated}
    kind = objective.consumes
    extra: dict[str, Any] = {"signs": ()} if kind == "spans" else {}
    nothing: Example = (
        Preference(prompt_tokens=(0,), first=(), second=(1,))
        if kind == "pairs"
        else hollow[kind](prompt_tokens=(0,), tokens=(), **extra)
    )
    batch = given([nothing], objective)
    assert math.isfinite(gradient(objective, [batch], batch)[1]["loss"])


@every_pair
def test_swapping_the_two_changes_nothing(name: str) -> None:
    """So no place in a pair is favoured, and a tie pulls both alike."""
    objective = resolved(name)
    examples = [e for e in examples_for("pairs") if isinstance(e, Preference)]
    swapped = [replace(e, first=e.second, second=e.first, p=1.0 - e.p) for e in examples]
    a, b = given(examples, objective), given(swapped, objective)
    torch.testing.assert_close(gradient(objective, [a], a)[0], gradient(objective, [b], b)[0], rtol=1e-5, atol=1e-6)


@every_pair
def test_a_tie_between_equals_is_at_rest(name: str) -> None:
    """At the reference, with the same tokens on both sides, neither is pushed against the other."""
    same = Preference(prompt_tokens=(0,), first=(1, 2), second=(1, 2), p=0.5, tie=True)
    first, second = pull(name, [same])
    assert first == pytest.approx(second)
    if OBJECTIVES[name].nll_coef == 0 and name != "pairwise_cringe":
        assert first == pytest.approx(0.0)


# Every coefficient and a value unlike any default.
OTHER: dict[str, object] = {
    "coefficient": 0.5,
    "beta": 0.7,
    "label_smoothing": 0.3,
    "length_normalised": True,
    "margin": 0.6,
    "nll_coef": 0.4,
    "tie_nu": 1.7,
    "alpha": 0.2,
    "balance": True,
    "desirable_weight": 1.3,
    "undesirable_weight": 1.4,
    "negative_weight": 0.6,
    "alternatives": 2,
    "gate_temperature": 3.0,
    "temperature": 0.9,
    "clip": 0.95,
    "centring": 0.2,
}


def test_every_coefficient_is_shown() -> None:
    assert OTHER.keys() == {f.name for f in fields(ObjectiveConfig)} - {"name"}
    own = {"consumes", "loss", "strength", "reads", "reference", "per", "needs_baseline", "needs_values"}
    assert OTHER.keys() | own == {f.name for f in fields(Objective)}


@every_objective
def test_a_coefficient_is_read_exactly_where_it_says(name: str) -> None:
    def learned(**overrides: object) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            objective = resolved(name, **overrides)
        batch = given(examples_for(objective.consumes), objective)
        return gradient(objective, [batch], batch)[0]

    base = learned()
    for field, value in OTHER.items():
        if field == "length_normalised" and OBJECTIVES[name].length_normalised:
            value = False
        changed = not torch.allclose(learned(**{field: value}), base, rtol=1e-6, atol=1e-9)
        assert changed == (field in (*OBJECTIVES[name].reads, "coefficient")), field


def test_an_unread_coefficient_warns() -> None:
    with pytest.warns(UserWarning, match="simpo does not read: tie_nu"):
        resolve_objective("simpo", tie_nu=2.0)


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("dop", {}, "expected one of .*did you mean dpo"),
        ("dpo", {"bta": 0.1}, "unknown; did you mean beta"),
        ("dpo", {"beta": -0.1}, "beta=-0.1: expected a number, at least 0.0"),
        ("dpo", {"beta": 0.0}, "teaches nothing"),
        ("robust_dpo", {"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ("cringe", {"alternatives": 0}, "alternatives=0: expected a whole number, at least 1"),
        ("dpo_rao_kupper", {"tie_nu": 1.0}, "no judgement is ever a tie"),
    ],
)
def test_a_wrong_choice_is_refused(name: str, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve_objective(name, **wrong)


@every_objective
def test_it_learns_a_toy_task(name: str) -> None:
    """The good token out of six, after the objective's own kind of feedback on single tokens drawn from the start."""
    objective = resolve_objective(name)
    start, reference = Table.start(scale=0.0), Table.start(scale=0.0)
    good = {x: x % VOCABULARY for x in range(PROMPTS)}
    examples: list[Example] = []
    for x in range(PROMPTS):
        for y in range(VOCABULARY):
            value = 1.0 if y == good[x] else -1.0
            if objective.consumes == "pairs":
                examples += [Preference(prompt_tokens=(x,), first=(good[x],), second=(y,))] if y != good[x] else []
            elif objective.consumes == "demonstrations":
                examples += [Demonstration(prompt_tokens=(x,), tokens=(good[x],))] if y == good[x] else []
            else:
                signs = (value,) if objective.consumes == "spans" else None
                examples.append(Rated(prompt_tokens=(x,), tokens=(y,), value=value, signs=signs))
    batch = given(examples, objective, reference)
    optimiser, loss = torch.optim.Adam([start.logits, start.values], lr=0.25), judged_loss(mixture_of(objective))
    for _ in range(25):
        optimiser.zero_grad()
        loss(start(batch), batch, batch.denominators)[0].backward()
        optimiser.step()
    answers = start.values if objective.needs_values else start.logits
    chance = torch.stack([answers[x, 0].softmax(-1)[good[x]] for x in range(PROMPTS)])
    assert chance.min() > 1.5 / VOCABULARY, chance.tolist()
    assert all(int(answers[x, 0].argmax()) == good[x] for x in range(PROMPTS))
