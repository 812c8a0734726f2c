"""Who judges in a run of stages: the task, simulated people, judges that are language models, and the reward model.

A source is asked for a kind of feedback. What it cannot give is refused before the run starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Literal, cast

from triloop import rng
from triloop.envs.attributes import Attributes
from triloop.envs.base import Env
from triloop.envs.world import TextWorld
from triloop.errors import ConfigError
from triloop.feedback.conversions_values import scalar_to_ternary
from triloop.feedback.kinds import Scalar, write
from triloop.feedback.simulate import Annotator
from triloop.loops.champion import Champion
from triloop.loops.config import RunConfig
from triloop.loops.stages import FEEDS, Kind, PeopleConfig, Source
from triloop.policies.protocol import Policy
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Episode, Feedback, Prompt
from triloop.sources.annotators import Attributed, Finding, JudgedKind, Person
from triloop.sources.asking import Asking, Thinking
from triloop.sources.attribute_asking import ATTRIBUTE_ASKING, ATTRIBUTE_REASONING, RULES
from triloop.sources.constitution import Constitution, read_constitution
from triloop.sources.judge import Critic, Judge, PairJudge, Reviser
from triloop.sources.lm_critic import PolicyCritic, PolicyReviser, Writing
from triloop.sources.lm_judge import RubricJudge, YesNoJudge
from triloop.sources.lm_pairs import Comparing, PairwiseJudge
from triloop.sources.panel import PairPanel, Panel
from triloop.sources.reward_ensemble import RewardEnsemble
from triloop.sources.templates import CHAT, PLAIN

if TYPE_CHECKING:
    from triloop.loops.state import Part

__all__ = ["GIVES", "Crew", "check_cycle", "check_task"]

GIVES: Mapping[Source, tuple[Kind, ...]] = {
    "task": ("scalar", "ternary", "pair"),
    "people": ("scalar", "ternary", "pair", "ranking", "spans", "text", "edit"),
    "judge": ("scalar", "ternary", "pair", "text", "edit"),
    "self": ("scalar", "ternary", "pair", "text", "edit"),
    "reward": ("scalar", "ternary", "pair"),
}
"""What each source can be asked for."""

_ALONE: tuple[Kind, ...] = ("ranking", "spans", "text", "edit")
"""Kinds that no vote is taken on: one person gives each, in turn."""


def check_cycle(config: RunConfig) -> None:
    """Raise ConfigError for stages that cannot follow each other, and for sources asked for what they cannot give."""
    c = config.cycle
    stages = (*c.first, *c.stages)
    for kind in c.collect.kinds if "collect" in stages else ():
        if kind not in GIVES[c.collect.source]:
            raise ConfigError(
                f"cycle.collect asks {c.collect.source} for {kind}; it gives {', '.join(GIVES[c.collect.source])}"
            )
        if kind in ("pair", "ranking") and c.collect.samples < 2:
            raise ConfigError(f"cycle.collect.samples is {c.collect.samples}; a {kind} needs at least 2")
    paid = "improve" in stages and c.judge == "reward"
    if (paid or (c.collect.source == "reward" and "collect" in stages)) and "reward" not in stages:
        raise ConfigError("the reward model judges, but no stage trains it; add the stage `reward`")
    fed = {*FEEDS, "imitate"} if c.imitate.on == "teacher" else {*FEEDS}
    for learner in ("reward", "prefer"):
        if learner in stages and not fed & set(stages[: stages.index(learner)]):
            raise ConfigError(
                f"stage {learner} learns from what was collected; let one of {', '.join(FEEDS)} come before it"
            )


def check_task(config: RunConfig, env: Env) -> None:
    """Raise ConfigError for stages that need of the task what it has not: a teacher, or principles for a judge."""
    c = config.cycle
    stages = (*c.first, *c.stages)
    if ("oppose" in stages or ("imitate" in stages and c.imitate.on == "teacher")) and not isinstance(env, TextWorld):
        raise ConfigError(
            f"{env.name} has no teacher; leave out the stages that need one: oppose, and imitate on teacher"
        )
    worded = {"spans", "text", "edit"} & {*(c.collect.kinds if "collect" in stages else ())}
    seen = "people" in ((c.collect.source if worded else ""), (c.revise.source if "revise" in stages else ""))
    if seen and not isinstance(env, Attributes):
        raise ConfigError(
            f"simulated people cannot say what is wrong in {env.name}; ask them for numbers, pairs or rankings"
        )
    asked = [c.collect.source] * ("collect" in stages) + [c.revise.source] * ("revise" in stages)
    asked += [c.judge] * ("improve" in stages)
    if {"judge", "self"} & set(asked) and c.ai.constitution is None and not isinstance(env, Attributes):
        raise ConfigError(f"{env.name} brings no principles; give the judge a YAML file: --cycle.ai.constitution FILE")


class _Seen:
    """A task as people see it that knows no attributes: how good, by its own gold, and no more."""

    def __init__(self, env: Env) -> None:
        self._env = env

    def attributes(self, prompt: Prompt, text: str) -> dict[str, float]:
        (gold,) = self._env.gold([prompt], [text])
        share = gold.breakdown.get("share")
        worth = 2 * share - 1 if share is not None else gold.value or 0.0
        return {"utility": (worth + 1) / 2}

    def defects(self, prompt: Prompt, text: str) -> Sequence[Finding]:
        return ()

    def revise(self, prompt: Prompt, text: str, attributes: Collection[str] | None = None) -> str:
        return text


@dataclass(frozen=True)
class Crew:
    """The sources of a run. ``policy`` is the one that learns, ``start`` what it was at the start."""

    config: RunConfig
    env: Env
    task: Judge
    policy: Policy
    start: Policy
    load: Callable[[str], Policy]
    """Reads a policy's directory."""
    champion: Champion
    reward: RewardEnsemble | None

    @property
    def parts(self) -> Mapping[str, Part]:
        """What a checkpoint must hold besides the policy."""
        found: dict[str, Part] = {"champion": self.champion}
        return found if self.reward is None else {**found, "reward": self.reward}

    @property
    def payer(self) -> Judge:
        """Who pays in the rounds of ``improve``."""
        c = self.config.cycle
        return self.judge(c.judge) if "improve" in (*c.first, *c.stages) else self.task

    def judge(self, source: Source) -> Judge:
        """Who gives a number to each completion."""
        if source == "task":
            return self.task
        if source == "people":
            people = self.people("scalar")
            return people[0] if len(people) == 1 else Panel(people, rule=self.config.cycle.people.aggregate)
        if source == "reward":
            return self._reward
        model, asking = self._judging(source), self._asking
        form = RubricJudge if self.config.cycle.ai.form == "rubric" else YesNoJudge
        return form(model, self._constitution, asking, sampler=model)

    def pairs(self, source: Source, round: int) -> PairJudge:
        """Who compares two completions."""
        if source == "task":
            return _ByNumber(self.task)
        if source == "people":
            people = self.people("scalar")
            return people[0] if len(people) == 1 else PairPanel(people, rule=self.config.cycle.people.aggregate)
        if source == "reward":
            return self._reward
        model, ai = self._judging(source), self.config.cycle.ai
        seed = rng.key(self.config.seed, "compare", round)
        orders: Literal["both", "given"] = "both" if ai.both_orders else "given"
        how = Comparing(orders=orders, inconsistent=ai.inconsistent, seed=seed)
        return PairwiseJudge(model, self._constitution, self._asking, how, sampler=model)

    def critic(self, source: Source, round: int) -> tuple[Critic, Reviser]:
        """Who says what is wrong, and who mends it."""
        if source == "people":
            return (turns := _InTurn(self.people("text"))), turns
        model, writing = self._judging(source), self._writing(round)
        return PolicyCritic(model, self._constitution, writing), PolicyReviser(model, self._constitution, writing)

    def people(self, kind: JudgedKind) -> list[Person]:
        """The simulated people, each with a mind of their own; ``kind`` is what their ``judge`` gives."""
        p, seen = self.config.cycle.people, self._seen
        weights = dict(seen.weights) if isinstance(seen, Attributes) else {"utility": 1.0}
        return [Person(seen, _annotator(p, i, weights, self.config.seed), kind=kind) for i in range(p.number)]

    # ------------------------------------------------------------------

    @property
    def _seen(self) -> Attributed:
        return self.env if isinstance(self.env, Attributes) else _Seen(self.env)

    @property
    def _reward(self) -> RewardEnsemble:
        assert self.reward is not None, "check_cycle refuses a reward model that no stage trains"
        return self.reward

    def _judging(self, source: Source) -> Policy:
        return self.policy if source == "self" else self._outsider

    @cached_property
    def _outsider(self) -> Policy:
        name = self.config.cycle.ai.policy
        return self.load(name).frozen() if name else self.start

    @cached_property
    def _constitution(self) -> Constitution:
        ai = self.config.cycle.ai
        if ai.constitution is None and not isinstance(self.env, Attributes):
            raise ConfigError(
                f"{self.env.name} brings no principles; give the judge a YAML file: --cycle.ai.constitution"
            )
        found = RULES if ai.constitution is None else read_constitution(ai.constitution)
        return found.named(*ai.principles) if ai.principles else found

    @cached_property
    def _asking(self) -> Asking:
        ai = self.config.cycle.ai
        if isinstance(self.env, Attributes):
            found = ATTRIBUTE_REASONING if ai.reasoning else ATTRIBUTE_ASKING
        else:
            templates = CHAT if self.policy.tokenizer.chat_template else PLAIN
            found = Asking(templates=templates, thinking=Thinking() if ai.reasoning else None)
        return dataclasses.replace(found, price=ai.price)

    def _writing(self, round: int) -> Writing:
        longest = min(48, self.env.max_tokens) if isinstance(self.env, Attributes) else 192
        sampling = Sampling(max_tokens=longest, temperature=1.0)
        return Writing(
            templates=self._asking.templates,
            sampling=sampling,
            seed=self.config.seed,
            round=round,
            price=self.config.cycle.ai.price,
        )

    # ------------------------------------------------------------------ asking

    def ask(
        self, source: Source, kind: Kind, prompts: Mapping[str, Prompt], completions: Sequence[Completion], round: int
    ) -> list[Episode]:
        """Judged episodes of these completions, the groups of a prompt together. ``prompts`` are as the judge sees them."""
        groups = [list(g) for _, g in groupby(completions, key=lambda c: c.prompt_id)]
        told: dict[str, Feedback] = {}
        if kind in ("scalar", "ternary"):
            judged = self.judge(source).judge(
                [prompts[c.prompt_id] for c in completions], [c.text for c in completions]
            )
            told = {c.id: _worded(f, kind) for c, f in zip(completions, judged, strict=True)}
        elif kind == "pair":
            duels = [(g[i], g[i + 1]) for g in groups for i in range(0, len(g) - 1, 2)]
            asked = [prompts[a.prompt_id] for a, _ in duels]
            compared = self.pairs(source, round).compare(asked, [a.text for a, _ in duels], [b.text for _, b in duels])
            told = {a.id: _about(f, (a, b)) for (a, b), f in zip(duels, compared, strict=True)}
        elif kind == "ranking":
            people = self.people("scalar")
            for i, group in enumerate(groups):
                asked = [prompts[group[0].prompt_id]]
                (f,) = people[i % len(people)].rank(asked, [[c.text for c in group]])
                told[group[0].id] = _about(f, group)
        elif kind == "spans":
            marking = _InTurn(self.people("spans"))
            judged = marking.judge([prompts[c.prompt_id] for c in completions], [c.text for c in completions])
            told = {c.id: f for c, f in zip(completions, judged, strict=True)}
        else:
            return self.revised(source, prompts, completions, round, times=1, critique_only=kind == "text")
        return [_episode(prompts[c.prompt_id], c, told.get(c.id)) for c in completions]

    def revised(
        self,
        source: Source,
        prompts: Mapping[str, Prompt],
        completions: Sequence[Completion],
        round: int,
        *,
        times: int,
        critique_only: bool = False,
    ) -> list[Episode]:
        """Critique and revision, ``times`` after one another; each completion gets its first critique and its last edit."""
        critic, reviser = self.critic(source, round)
        asked = [prompts[c.prompt_id] for c in completions]
        first: list[Feedback] = []
        last: list[Feedback | None] = [None] * len(completions)
        texts = [c.text for c in completions]
        for turn in range(times):
            critiques = critic.critique(asked, texts)
            first = first or critiques
            if critique_only:
                break
            open_ = [i for i, f in enumerate(critiques) if not f.failed]
            words = [str(critiques[i].content["critique"]) for i in open_]
            edits = reviser.revise([asked[i] for i in open_], [texts[i] for i in open_], words)
            for i, edit in zip(open_, edits, strict=True):
                if not edit.failed:
                    texts[i] = str(edit.content["revised"])
                    last[i] = edit
                elif turn == 0:
                    last[i] = edit
        return [
            _episode(p, c, *(f for f in (critique, edit) if f is not None))
            for p, c, critique, edit in zip(asked, completions, first, last, strict=True)
        ]


class _ByNumber:
    """A judge of single completions as one of pairs: the higher number is better, equal numbers are a tie."""

    def __init__(self, judge: Judge) -> None:
        self._judge, self.name = judge, judge.name

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        both = zip(self._judge.judge(prompts, firsts), self._judge.judge(prompts, seconds), strict=True)
        return [_compared(a, b) for a, b in both]


class _InTurn:
    """Several people who share the work: item ``i`` goes to person ``i`` modulo their number."""

    def __init__(self, people: Sequence[Person]) -> None:
        self._people = people
        self.name = "people"

    def _each(self, n: int) -> Iterator[Person]:
        return (self._people[i % len(self._people)] for i in range(n))

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        rows = zip(self._each(len(texts)), prompts, texts, strict=True)
        return [person.judge([p], [t])[0] for person, p, t in rows]

    def critique(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        rows = zip(self._each(len(texts)), prompts, texts, strict=True)
        return [person.critique([p], [t])[0] for person, p, t in rows]

    def revise(self, prompts: Sequence[Prompt], texts: Sequence[str], critiques: Sequence[str]) -> list[Feedback]:
        rows = zip(self._each(len(texts)), prompts, texts, critiques, strict=True)
        return [person.revise([p], [t], [c])[0] for person, p, t, c in rows]


def _annotator(p: PeopleConfig, i: int, weights: Mapping[str, float], seed: int) -> Annotator:
    """Person ``i``, the same whatever their number."""
    careless = rng.generator(seed, "skill", i).random() < p.unskilled
    return Annotator(
        name=f"{i}",
        weights=weights,
        bias={"length": p.length_bias, "distractor": p.distractor_bias},
        temperature=p.noise,
        flip=p.flip,
        tie=p.tie,
        abstain=p.tie,
        skill=0.0 if careless else 1.0,
        cost=p.price,
        seed=rng.key(seed, "person", i) % 2**31,
    )


def _compared(a: Feedback, b: Feedback) -> Feedback:
    if a.value is None or b.value is None or a.failed or b.failed:
        why = a.failure or b.failure or "no value"
        return Feedback(value=None, failure=why, source=a.source, kind="pair", cost=a.cost + b.cost)
    value = max(-1.0, min(1.0, a.value - b.value))
    confidence = min(a.confidence, b.confidence)
    return Feedback(value=value, kind="pair", source=a.source, confidence=confidence, cost=a.cost + b.cost)


def _worded(f: Feedback, kind: Kind) -> Feedback:
    """A number as it is, or as +1, 0 or -1 where that was asked for."""
    if kind == "scalar" or f.failed or f.value in (-1.0, 0.0, 1.0):
        return f
    content = scalar_to_ternary(Scalar(cast(float, f.value)))
    return write(content, source=f.source, confidence=f.confidence, cost=f.cost, about=f.about, parents=f.parents)


def _about(f: Feedback, completions: Sequence[Completion]) -> Feedback:
    return dataclasses.replace(f, about=tuple(c.id for c in completions))


def _episode(prompt: Prompt, c: Completion, *feedback: Feedback | None) -> Episode:
    """With the number that it got, where it got one."""
    given = tuple(f for f in feedback if f is not None)
    value = given[0].value if given and given[0].kind in ("scalar", "ternary", "rubric") else None
    return Episode(prompt=prompt, completion=c, feedback=given, reward=value)
