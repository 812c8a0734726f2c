"""A generative reward model: p(yes) of a policy that is asked about a response, and learns by supervised steps.

    score = log p(yes | question) - log p(no | question),       L = -p log p(yes) - (1 - p) log p(no)

The policy answers in its own words, so that it stays a policy: it can be asked other questions, and reason first. Where
only the score is wanted, ``RewardConfig(template=..., answers=...)`` starts from the same answer and learns by pairs.
Generative verifiers: arXiv:2408.15240. Asked zero-shot it is ZYN, arXiv:2308.06385 (S153).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from triloop import rng
from triloop.errors import DataError
from triloop.feedback.kinds import Pair, write
from triloop.learn.examples import Demonstration
from triloop.learn.mixture import build_judged, judged_loss, resolve_mixture
from triloop.learn.schedule import learning_rate
from triloop.policies.protocol import Policy
from triloop.records import Feedback, Prompt
from triloop.sources.asking import Asking, asked_with, question_ident
from triloop.sources.constitution import Principle
from triloop.sources.lm_judge import YesNoJudge
from triloop.sources.reward_audit import Audit, audit_scores
from triloop.sources.reward_config import RewardTraining
from triloop.sources.reward_examples import RewardExample, RewardPair
from triloop.sources.reward_read import chances, declared
from triloop.sources.templates import guarded, request_of

__all__ = ["GenerativeReward"]


class GenerativeReward:
    """A yes/no judge over a policy that learns. The policy is its own: give it a copy where another one is trained."""

    def __init__(
        self,
        policy: Policy,
        question: Principle,
        asking: Asking | None = None,
        *,
        training: RewardTraining | None = None,
    ) -> None:
        self.policy, self.question, self.asking = policy, question, asking or Asking()
        self.training = training or RewardTraining()
        self._judge = YesNoJudge(policy, question, self.asking)
        self.name = f"generative:{question.name}"
        self.trainings = 0

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """log p(good answer) - log p(bad answer) of each text, nats; NaN where the question failed."""
        sign = 1.0 if self.question.wanted else -1.0
        return sign * np.array(self._judge.differences(prompts, texts), dtype=np.float64)

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """``scalar`` feedback: 2 p(good answer) - 1."""
        return [f if f.failed else replace(f, source=self.name) for f in self._judge.judge(prompts, texts)]

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        """``pair`` feedback: Bradley-Terry on the scores of two answers that are asked about apart."""
        scores, n = self.score([*prompts, *prompts], [*firsts, *seconds]), len(prompts)
        out = []
        for chance in chances(scores[:n] - scores[n:], "bradley_terry", None):
            if not np.isfinite(chance).all():
                why = "one of the two questions failed"
                out.append(Feedback(value=None, failure=why, source=self.name, kind="pair"))
                continue
            preference, strength, confidence = declared(chance)
            parts = dict(zip(("first", "tie", "second"), chance.tolist(), strict=True))
            out.append(write(Pair(preference, strength), source=self.name, confidence=confidence, breakdown=parts))
        return out

    def learn(self, examples: Sequence[RewardExample], *, training: RewardTraining | None = None) -> list[float]:
        """Supervised steps on the answer words; returns the mean loss of each pass, nats per answer.

        A rating of value v is yes with chance (v + 1) / 2; of a pair the first is with chance p, the second with 1 - p. A
        pair that leaves it open and a value of 0 teach doubt. Nothing is held out: the passes are as many as configured.
        """
        how = training or self.training
        lessons = [lesson for e in examples for lesson in self._lessons(e)]
        if not lessons:
            raise DataError("a generative reward model needs pairs or rated texts to learn from; got none")
        mixture = resolve_mixture("sft")
        loss = judged_loss(mixture)
        per_epoch = -(-len(lessons) // how.batch)
        total = min(how.epochs * per_epoch, how.steps or how.epochs * per_epoch)
        means, step, optim = [], 0, how.optim
        for epoch in range(-(-total // per_epoch)):
            order = rng.generator(how.seed, "generative", self.trainings, epoch).permutation(len(lessons)).tolist()
            told = 0.0
            for at in range(0, len(order), how.batch)[: total - step]:
                batch = build_judged([d for i in order[at : at + how.batch] for d in lessons[i]], mixture)
                told += self.policy.forward_backward(batch, loss)["loss"]
                rate = learning_rate(step, peak=optim.lr, warmup=optim.warmup_steps, total=total, shape=optim.schedule,
                                     floor=optim.lr_floor)  # fmt: skip
                self.policy.optim_step(rate)
                step += 1
            means.append(told / max(1, min(per_epoch, step - epoch * per_epoch)))
        self.trainings += 1
        return means

    def audit(self, pairs: Sequence[RewardPair]) -> Audit:
        """As of any reward model."""
        prompts = [e.prompt for e in pairs]
        scores = self.score([*prompts, *prompts], [e.first for e in pairs] + [e.second for e in pairs])
        return audit_scores(pairs, scores[: len(pairs)], scores[len(pairs) :])

    def _lessons(self, example: RewardExample) -> list[list[Demonstration]]:
        """For each judged text the good and the bad answer, weighted by how likely each is."""
        if isinstance(example, RewardPair):
            told = [(example.first, example.p), (example.second, 1.0 - example.p)]
        else:
            told = [] if example.value is None else [(example.text, (example.value + 1.0) / 2.0)]
        return [self._lesson(example.prompt, text, p, example.weight) for text, p in told]

    def _lesson(self, prompt: Prompt, text: str, p: float, weight: float) -> list[Demonstration]:
        fields = {"request": request_of(prompt), "response": text, "question": self.question.asked}
        marks = guarded(self.policy.tokenizer, self.asking.templates)
        asked = asked_with(
            self.asking.templates, "ask", question_ident(prompt, text, self.question.name), fields, marks
        )
        tokens = self.policy.encode(asked)
        yes = p if self.question.wanted else 1.0 - p
        words = self._judge.answer_tokens
        chances_of = (("yes", yes), ("no", 1.0 - yes))
        return [
            Demonstration(prompt_tokens=tokens, tokens=words[answer][0], weight=weight * share)
            for answer, share in chances_of
            if share * weight > 0
        ]
