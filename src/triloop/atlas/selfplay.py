"""Rows of self-play: A17 against a teacher, A38 by the rules of a constitution, A40 under preferences that go round."""

from __future__ import annotations

from triloop import rng
from triloop.atlas import lab
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.atlas.online import UTILITY, mean, per_seed
from triloop.envs.attributes import Attributes
from triloop.learn.examples import Preference

__all__ = ["SPIN"]


# ------------------------------------------------------------------ A17

TAUGHT = 256
"""Demonstrations, the same for both."""
ROUNDS = 3
STEPS = 16
"""Of a round."""


def _spin(context: Context) -> Measured:
    def one(seed: int) -> dict[str, float]:
        env, policy = Attributes(), lab.fresh(context.base)
        asked = lab.prompts(env, context.scaled(TAUGHT), seed=seed)
        draw = rng.generator(seed, "atlas", "spin")
        lessons = lab.demonstrations(policy, [(p, env.demonstration(p, draw, 0.1)) for p in asked])
        lab.learn(policy, lessons, "sft", steps=context.scaled(24), lr=4e-4, seed=seed)
        more, n = lab.fresh(context.base), context.scaled(512)
        more.restart_from(policy)
        steps = context.scaled(STEPS)
        lab.learn(more, lessons, "sft", steps=ROUNDS * steps, seed=seed, round=1)
        found = {
            "sft": lab.held_out(policy, env, n, seed=seed).value,
            "more_sft": lab.held_out(more, env, n, seed=seed).value,
        }
        for k in range(1, ROUNDS + 1):
            past = policy.frozen()
            own = [group[0] for group in lab.sample(policy, asked, 1, seed=seed, round=k)]
            pairs = [
                Preference(prompt_tokens=d.prompt_tokens, first=d.tokens, second=c.tokens)
                for d, c in zip(lessons, own, strict=True)
                if c.tokens and tuple(d.tokens) != tuple(c.tokens)
            ]
            told = lab.learn(policy, pairs, "spin", steps=steps, batch=32, seed=seed, round=k, reference=past)
            found[f"told_apart_{k}"] = told["pairs/accuracy"]
            found[f"round_{k}"] = lab.held_out(policy, env, n, seed=seed).value
        return found

    found = per_seed(context, one)
    gain = {
        k: [b - a for a, b in zip(found["sft" if k == 1 else f"round_{k - 1}"], found[f"round_{k}"], strict=True)]
        for k in (1, ROUNDS)
    }
    return Measured(
        baseline=[found["more_sft"], gain[ROUNDS]],
        treatment=[found[f"round_{ROUNDS}"], gain[1]],
        facts={n: mean(v) for n, v in found.items()},
    )


SPIN = Row(
    id="A17",
    claim="From demonstrations that it was already taught, a policy that plays against its own answers gains over more "
    "teaching by them, and gains less in the third round than in the first.",
    setup=f"0.46M policy, attribute world; {TAUGHT} demonstrations in which each attribute fails one time in ten; 24 "
    f"supervised steps of 64, then {ROUNDS} rounds of {STEPS} steps of 32 pairs (teacher's answer over the policy's "
    f"own, measured from the round before, beta 0.1, 3e-4) against {ROUNDS * STEPS} more supervised steps of 64 on "
    "the same demonstrations",
    core="triloop run spin",
    contrasts=(
        Contrast(metric=UTILITY, treatment="3 rounds of SPIN", baseline="more supervised steps", above=0.0, below=0.0),
        Contrast(metric="gain in utility", treatment="first round", baseline="third round", above=0.0, below=0.0),
    ),
    run=_spin,
    base="base:attributes",
    parts=("learn.preferences", "loops.study"),
)
