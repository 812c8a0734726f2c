"""Who judges in a run of stages: the task, simulated people, judges that are language models, and the reward model.

A source is asked for a kind of feedback. What it cannot give is refused before the run starts (``loops.checks``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Literal, cast

from triloop import rng
from triloop.envs.attributes import Attributes
from triloop.envs.base import Env
from triloop.errors import ConfigError
from triloop.feedback.conversions_values import scalar_to_ternary
from triloop.feedback.interchange_records import ImportedItem
from triloop.feedback.kinds import Scalar, write
from triloop.loops.asked import JudgeConfig, Kind, Payer
from triloop.loops.champion import Champion
from triloop.loops.config import RunConfig
from triloop.loops.instructions import Instructions
from triloop.loops.people import InTurn, people, users
from triloop.policies.protocol import Policy
from triloop.policies.sampling import Sampling
from triloop.records import Completion, Episode, Feedback, Prompt
from triloop.sources.annotators import JudgedKind, Person
from triloop.sources.asking import Asking, Thinking
from triloop.sources.attribute_asking import ATTRIBUTE_ASKING, ATTRIBUTE_REASONING, RULES
from triloop.sources.constitution import Constitution, read_constitution
from triloop.sources.hybrid import HybridJudge
from triloop.sources.judge import Critic, Judge, PairJudge, Reviser
from triloop.sources.lm_critic import PolicyCritic, PolicyReviser, Writing
from triloop.sources.lm_judge import RubricJudge, YesNoJudge
from triloop.sources.lm_pairs import Comparing, PairwiseJudge
from triloop.sources.panel import PairPanel, Panel
from triloop.sources.reward_ensemble import RewardEnsemble
from triloop.sources.reward_model import RewardModel
from triloop.sources.templates import CHAT, PLAIN
from triloop.sources.users import UserJudge

if TYPE_CHECKING:
    from triloop.loops.state import Part

__all__ = ["Crew", "constitution_of"]


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
    instructions: Instructions | None = None
    """What the judges go by, where that is learned."""
    words: RewardModel | None = None
    """The reward model that marks every token, where there is one."""
    recorded: Sequence[ImportedItem] = ()
    """What others have said before, of responses that are not the policy's."""

    @property
    def parts(self) -> Mapping[str, Part]:
        """What a checkpoint must hold besides the policy."""
        learned: dict[str, Part | None] = {"champion": self.champion, "reward": self.reward, "words": self.words}
        learned["instructions"] = self.instructions
        return {name: part for name, part in learned.items() if part is not None}

    @property
    def payer(self) -> Judge:
        """Who pays in the rounds of ``improve``."""
        c = self.config.cycle
        return self.judge(c.judge) if "improve" in (*c.first, *c.stages) else self.task

    def judge(self, source: Payer) -> Judge:
        """Who gives a number to each completion."""
        if source == "task":
            return self.task
        if source == "users":
            return self.users(0, scaled=True)
        if source == "hybrid":
            how = self.config.cycle.hybrid
            return HybridJudge(self.task, self._reward, how=how.how, alpha=how.alpha, beta=how.beta)
        if source == "people":
            people = self.people("scalar")
            return people[0] if len(people) == 1 else Panel(people, rule=self.config.cycle.people.aggregate)
        if source == "reward":
            return self._reward
        model, asking = self._judging(source), self._asking
        form = RubricJudge if self.config.cycle.ai.form == "rubric" else YesNoJudge
        return form(model, self._constitution, asking, sampler=model)

    def pairs(self, source: Payer, round: int, principles: Sequence[str] = ()) -> PairJudge:
        """Who compares two completions; a language model goes by these ``principles`` where some are named."""
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
        goes_by = self._all_principles.named(*principles) if principles else self._constitution
        return PairwiseJudge(model, goes_by, self._asking, how, sampler=model)

    def critic(self, source: Payer, round: int) -> tuple[Critic, Reviser]:
        """Who says what is wrong, and who mends it."""
        if source == "people":
            return (turns := InTurn(self.people("text"))), turns
        model, writing = self._judging(source), self._writing(round)
        return PolicyCritic(model, self._constitution, writing), PolicyReviser(model, self._constitution, writing)

    def people(self, kind: JudgedKind) -> list[Person]:
        """The simulated people, each with a mind of their own; ``kind`` is what their ``judge`` gives."""
        return people(self.config.cycle.people, self.env, kind, self.config.seed)

    def users(self, round: int, *, scaled: bool = False) -> UserJudge:
        """The simulated users of a round. ``scaled``: love is worth more than thanks."""
        return users(self.config.cycle.users, self.env, self.config.seed, round=round, scaled=scaled)

    # ------------------------------------------------------------------

    @property
    def _reward(self) -> RewardEnsemble:
        assert self.reward is not None, "check_cycle refuses a reward model that no stage trains"
        return self.reward

    def _judging(self, source: Payer) -> Policy:
        return self.policy if source == "self" else self._outsider

    @cached_property
    def _outsider(self) -> Policy:
        name = self.config.cycle.ai.policy
        return self.load(name).frozen() if name else self.start

    @cached_property
    def _all_principles(self) -> Constitution:
        return constitution_of(self.config.cycle.ai, self.env)

    @property
    def _constitution(self) -> Constitution:
        chosen = None if self.instructions is None else self.instructions.best
        return self._all_principles.named(*chosen) if chosen else self._all_principles

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
        self, source: Payer, kind: Kind, prompts: Mapping[str, Prompt], completions: Sequence[Completion], round: int
    ) -> list[Episode]:
        """Judged episodes of these completions, the groups of a prompt together. ``prompts`` are as the judge sees them."""
        groups = [list(g) for _, g in groupby(completions, key=lambda c: c.prompt_id)]
        told: dict[str, Feedback] = {}
        if kind in ("scalar", "ternary"):
            judge = self.users(round, scaled=kind == "scalar") if source == "users" else self.judge(source)
            judged = judge.judge([prompts[c.prompt_id] for c in completions], [c.text for c in completions])
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
        elif kind == "text" and source == "users":
            said = self.users(round).critique(
                [prompts[c.prompt_id] for c in completions], [c.text for c in completions]
            )
            told = {c.id: f for c, f in zip(completions, said, strict=True)}
        elif kind == "spans":
            marking = InTurn(self.people("spans"))
            judged = marking.judge([prompts[c.prompt_id] for c in completions], [c.text for c in completions])
            told = {c.id: f for c, f in zip(completions, judged, strict=True)}
        else:
            return self.revised(source, prompts, completions, round, times=1, critique_only=kind == "text")
        return [_episode(prompts[c.prompt_id], c, told.get(c.id)) for c in completions]

    def revised(
        self,
        source: Payer,
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


def constitution_of(ai: JudgeConfig, env: Env) -> Constitution:
    """The principles that a run's judges may go by. ConfigError where there are none."""
    if ai.constitution is None and not isinstance(env, Attributes):
        raise ConfigError(f"{env.name} brings no principles; give the judge a YAML file: --cycle.ai.constitution")
    found = RULES if ai.constitution is None else read_constitution(ai.constitution)
    return found.named(*ai.principles) if ai.principles else found


class _ByNumber:
    """A judge of single completions as one of pairs: the higher number is better, equal numbers are a tie."""

    def __init__(self, judge: Judge) -> None:
        self._judge, self.name = judge, judge.name

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        both = zip(self._judge.judge(prompts, firsts), self._judge.judge(prompts, seconds), strict=True)
        return [_compared(a, b) for a, b in both]


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
