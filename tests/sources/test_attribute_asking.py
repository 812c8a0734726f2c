"""Judges, critics and users over the real base of the attribute world, against its known truth."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean

import pytest

from triloop import rng
from triloop.envs.attributes import MEDIOCRE, Attributes
from triloop.envs.attributes_skills import holds
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.sources.attribute_asking import (
    ATTRIBUTE_ASKING,
    ATTRIBUTE_RATING,
    ATTRIBUTE_REASONING,
    ATTRIBUTE_TEMPLATES,
    ONE_TO_NINE,
    OVERALL,
    RULES,
)
from triloop.sources.debias import KnownPair, KnownText, measure_bias, measure_scores
from triloop.sources.lm_critic import PolicyCritic, PolicyReviser, Writing, improve_by_critique
from triloop.sources.lm_judge import RubricJudge, ScaleJudge, YesNoJudge
from triloop.sources.lm_pairs import Comparing, PairwiseJudge
from triloop.sources.users import ATTRIBUTE_PHRASES, Dialogues, Persona, UserSimulator, attribute_situation

BASE = Path(str(files("triloop") / "bases" / "attributes"))
pytestmark = pytest.mark.skipif(not (BASE / "model.safetensors").is_file(), reason="the base is not there")

N = 100
WORLD = Attributes()
PROMPTS = WORLD.prompts("eval", N, seed=0)


@cache
def base():
    return NativePolicy.load(BASE)


@cache
def responses(seed):
    draw = rng.generator(seed, "responses")
    rates = ({k: 1.1 * draw.random() * v for k, v in MEDIOCRE.items()} for _ in PROMPTS)
    return [WORLD.demonstration(p, draw, rates=r) for p, r in zip(PROMPTS, rates, strict=True)]


def utility(texts):
    return [f.value for f in WORLD.gold(PROMPTS, texts)]


def scored(judge, truth):
    texts = responses(1)
    return measure_scores(
        judge, [KnownText(prompt=p, text=t, truth=v) for p, t, v in zip(PROMPTS, texts, truth, strict=True)]
    )


@pytest.mark.parametrize(("name", "least"), [("coverage", 0.8), ("polite", 0.95), ("clean", 0.95), ("overall", 0.9)])
def test_yes_no_agrees_with_the_truth(name, least):
    principle = OVERALL if name == "overall" else RULES.named(name).principles[0]
    kept = [holds(name, WORLD.attributes(p, t)) for p, t in zip(PROMPTS, responses(1), strict=True)]
    report = scored(YesNoJudge(base(), principle, ATTRIBUTE_ASKING), [1.0 if x else -1.0 for x in kept])
    assert report.failures == 0 and report.auc > least, report


def test_rubric_and_scale_follow_the_utility():
    truth = utility(responses(1))
    rubric = scored(RubricJudge(base(), RULES, ATTRIBUTE_ASKING), truth)
    scale = scored(ScaleJudge(base(), OVERALL, ONE_TO_NINE, ATTRIBUTE_RATING), truth)
    assert rubric.correlation > 0.7 and scale.correlation > 0.8, (rubric, scale)


def test_pairs_agree_with_the_truth_and_position_bias_is_small():
    first, second = responses(1), responses(2)
    rows = zip(PROMPTS, first, second, utility(first), utility(second), strict=True)
    items = [KnownPair(prompt=p, first=a, second=b, truth=u - v) for p, a, b, u, v in rows]
    one = measure_bias(PairwiseJudge(base(), OVERALL, ATTRIBUTE_ASKING, Comparing(orders="given")), items)
    assert one.accuracy.low > 0.75 and abs(one.position.value) < 0.15, one
    both = measure_bias(PairwiseJudge(base(), OVERALL, ATTRIBUTE_ASKING), items)
    assert both.position.value == pytest.approx(0.0, abs=1e-5) and both.flips.value == 0.0


def test_reasoning_first_gives_reasons_and_agrees():
    judge = YesNoJudge(base(), RULES.named("clean").principles[0], ATTRIBUTE_REASONING, sampler=base())
    texts = responses(1)[:40]
    told = judge.judge(PROMPTS[:40], texts)
    truth = [WORLD.attributes(p, t)["clean"] == 1 for p, t in zip(PROMPTS, texts, strict=False)]
    assert sum((f.value > 0) == t for f, t in zip(told, truth, strict=True)) >= 36
    assert {f.reason.strip() == "none" for f, t in zip(told, truth, strict=True) if t} == {True}


def test_critique_and_revision_improve():
    how = Writing(templates=ATTRIBUTE_TEMPLATES, sampling=Sampling(max_tokens=40, temperature=0.3))
    made = improve_by_critique(
        PolicyCritic(base(), writing=how), PolicyReviser(base(), writing=how), PROMPTS, responses(1), rounds=2
    )
    before, after = fmean(utility(responses(1))), fmean(utility([m.text for m in made]))
    assert after > before + 0.15, (before, after)


def test_a_user_who_explains_is_served_better_the_second_time():
    users = UserSimulator(attribute_situation(WORLD), (Persona(explains=1.0),), ATTRIBUTE_PHRASES)
    talk = Dialogues(users, PROMPTS, 1, lambda text: base().tokenizer.encode(text, add_special=False), turns=2)
    sampling = Sampling(max_tokens=80, temperature=0.3)
    done = base().sample(PROMPTS, 1, sampling, Tag(seed=0, round=0), respond=talk.respond)
    two = [[r.quality for r in reactions] for reactions in talk.reactions if len(reactions) == 2]
    assert len(two) > N / 2
    assert fmean(q[1] for q in two) > fmean(q[0] for q in two) + 0.3
    told = talk.feedback(done)
    assert {f.kind for mine in told for f in mine} == {"ternary", "text", "steps"}
