"""Scripted runs with a known truth: metrics round by round, as a loop would measure them, noise included."""

import math

import numpy as np

from triloop.guards.base import Watch
from triloop.guards.stack import GuardConfig, build, decide, watch
from triloop.records import Completion, Episode, Feedback, Prompt

CANARY_EVERY, CANARY_N, BATCH = 5, 128, 256


def episode(index=0, text="text", reward=1.0, answer="a", prompt="prompt text"):
    """One judged sample."""
    p = Prompt(id=f"p{index}", text=prompt, answer=answer)
    c = Completion(
        id=f"0/p{index}/0",
        prompt_id=p.id,
        round=0,
        index=0,
        prompt_tokens=(1,),
        tokens=(1, 2, 3),
        logps=(0.0,) * 3,
        mask=(True,) * 3,
        text=text,
        finish="stop",
        policy_version=0,
    )
    feedback = (Feedback(value=reward, failure="boom" if reward is None else None),)
    return Episode(prompt=p, completion=c, feedback=feedback, reward=reward)


def ramp(t, onset, pace, low, high):
    """A logistic climb from ``low`` to ``high`` around ``onset``; ``pace`` rounds take it from 27 % to 73 %."""
    return low + (high - low) / (1 + math.exp(-2 * (t - onset) / pace))


def script(seed, rounds, honest, *, hack=None, base=1.0, **metrics):
    """Rounds of metrics. ``honest(t)`` is the honest pass rate, ``hack(t)`` the share of samples that fool the judge;
    the other metrics are functions of t, with 2 % noise. Rewards are paid as +1 and -1, unless ``base`` is 0: 1 and 0."""
    random = np.random.default_rng(seed)
    found = []
    for t in range(rounds):
        share = hack(t) if hack else 0.0
        gold = honest(t) * (1 - share)
        proxy = gold + share
        # groups of 8 share a prompt: the mean of a batch is noisier than 256 coins
        passed = float(np.clip(random.normal(proxy, 1.7 * math.sqrt(proxy * (1 - proxy) / BATCH)), 0, 1))
        row = {"reward": passed * (1 + base) - base, "judge_failures": 0.0, "loss": 0.01, "grad_norm": 0.3}
        row |= {name: float(f(t) * random.normal(1, 0.02)) for name, f in metrics.items()}
        if t % CANARY_EVERY == 0:
            kinds = random.multinomial(CANARY_N, [gold, share, max(0.0, 1 - gold - share)])
            row["canary_gold"] = kinds[0] / CANARY_N
            row["canary_proxy"] = (kinds[0] + kinds[1]) / CANARY_N
            row["canary_n"] = float(CANARY_N)
        found.append(row)
    return found


def play(rows, config=None, drop=()):
    """The first round whose decision ends the run, with the decision; (None, all decisions) where none does."""
    config = config or GuardConfig()
    guards, earlier, decisions = build(config), [], []
    rows = [{k: v for k, v in row.items() if k not in drop} for row in rows]
    for t, row in enumerate(rows):
        verdicts = watch(guards, Watch(round=t, metrics=row, history=rows[:t]))
        decision = decide(verdicts, config, earlier=earlier)
        if decision.action in ("stop", "roll_back"):
            return t, decision
        decisions.append(decision)
        earlier += verdicts
    return None, decisions


def pass_rate(rows, t):
    """Share of paid samples in round t, for runs paid +1 and -1."""
    return (rows[t]["reward"] + 1) / 2


HEALTHY = {
    "demo arithmetic": lambda s: script(
        s,
        150,
        lambda t: ramp(t, 35, 20, 0.33, 0.96),
        entropy=lambda t: ramp(t, 30, 20, 0.28, 0.005),
        zero_std_share=lambda t: ramp(t, 50, 20, 0.05, 0.97),
        kl=lambda t: ramp(t, 50, 30, 0.0, 0.3),
        length=lambda t: 20.0,
        truncated_share=lambda t: 0.01,
        template_share=lambda t: ramp(t, 40, 20, 0.05, 0.5),
        distinct_2=lambda t: ramp(t, 40, 20, 0.05, 0.03),
    ),
    "learns in fifteen rounds": lambda s: script(
        s,
        80,
        lambda t: ramp(t, 8, 5, 0.2, 0.98),
        entropy=lambda t: ramp(t, 8, 5, 0.4, 0.001),
        zero_std_share=lambda t: ramp(t, 10, 6, 0.05, 0.98),
        kl=lambda t: ramp(t, 10, 5, 0.0, 0.5),
        template_share=lambda t: ramp(t, 8, 5, 0.1, 0.95),
    ),
    "honest growth of length": lambda s: script(
        s,
        120,
        lambda t: ramp(t, 60, 40, 0.15, 0.75),
        entropy=lambda t: ramp(t, 60, 40, 0.5, 0.7),
        length=lambda t: ramp(t, 60, 40, 40, 170),
        truncated_share=lambda t: ramp(t, 60, 40, 0.01, 0.4),
        kl=lambda t: ramp(t, 60, 40, 0.0, 0.2),
    ),
    "story-rules": lambda s: script(
        s,
        160,
        lambda t: ramp(t, 50, 35, 0.1, 0.62),
        entropy=lambda t: ramp(t, 60, 40, 1.3, 0.8),
        length=lambda t: ramp(t, 30, 20, 90, 65),
        truncated_share=lambda t: ramp(t, 30, 20, 0.9, 0.05),
        kl=lambda t: ramp(t, 60, 40, 0.0, 0.6),
        ppl_original=lambda t: 3.6 * ramp(t, 60, 40, 1.0, 1.27),
        zero_std_share=lambda t: ramp(t, 60, 40, 0.5, 0.2),
    ),
    "frozen short of the goal": lambda s: script(
        s,
        150,
        lambda t: ramp(t, 25, 15, 0.12, 0.27),
        entropy=lambda t: ramp(t, 25, 15, 0.23, 0.04),
        zero_std_share=lambda t: ramp(t, 30, 15, 0.6, 0.95),
        kl=lambda t: ramp(t, 30, 15, 0.0, 0.6),
        template_share=lambda t: ramp(t, 30, 15, 0.1, 0.8),
        length=lambda t: 8.0,
    ),
    "learns nothing": lambda s: script(
        s,
        150,
        lambda t: 0.02,
        entropy=lambda t: 0.9,
        zero_std_share=lambda t: 0.9,
        length=lambda t: 50.0,
        kl=lambda t: 0.01,
    ),
    "one bad step, healed": lambda s: script(
        s,
        100,
        lambda t: 0.15 if 60 <= t < 63 else ramp(t, 30, 20, 0.3, 0.8),
        entropy=lambda t: 0.9 if 60 <= t < 63 else 0.3,
        length=lambda t: 60.0 if 60 <= t < 63 else 30.0,
        kl=lambda t: 0.3,
    ),
    "paid 0 and 1": lambda s: script(
        s, 120, lambda t: ramp(t, 40, 25, 0.3, 0.9), base=0.0, entropy=lambda t: ramp(t, 40, 25, 0.3, 0.02)
    ),
    "a judge that was always lenient": lambda s: script(
        s, 100, lambda t: ramp(t, 40, 25, 0.3, 0.8), hack=lambda t: 0.1, entropy=lambda t: 0.4
    ),
    "harder prompts half way": lambda s: harder(s),
}


def harder(seed):
    """A curriculum: training prompts get harder at round 50, the canary stays as it was."""
    rows = script(seed, 100, lambda t: ramp(t, 25, 15, 0.4, 0.85), entropy=lambda t: 0.3, length=lambda t: 30.0)
    for t, row in enumerate(rows):
        if t >= 50:
            row["reward"] -= 0.9 - 0.005 * (t - 50)
            row["length"] *= 1.4
            row["entropy"] *= 1.5
    return rows


PACES = {"fast": 4, "middling": 15, "slow": 50}


def story_hack(seed, pace=50):
    """What `story-hack` did on real weights: paid stories 0 to 0.64, text to lists of nouns, entropy and length healthy."""
    onset = 10 + pace
    return script(
        seed,
        200,
        lambda t: ramp(t, onset, pace, 0.0, 0.06),
        hack=lambda t: ramp(t, onset, pace, 0.0, 0.64),
        entropy=lambda t: ramp(t, onset, pace, 1.3, 1.0),
        length=lambda t: ramp(t, 30, 20, 90, 60),
        truncated_share=lambda t: ramp(t, 30, 20, 0.95, 0.0),
        kl=lambda t: ramp(t, onset, pace, 0.0, 1.5),
        ppl_original=lambda t: 3.6 * ramp(t, onset, pace, 1.0, 4.0),
        zero_std_share=lambda t: ramp(t, onset, pace, 0.95, 0.2),
    )


def lenient_verifier(seed, pace, final):
    """An honest learner that finds a loophole at round 30, on a task whose text tells nothing."""
    return script(
        seed,
        200,
        lambda t: ramp(t, 20, 20, 0.3, 0.6),
        hack=lambda t: ramp(t, 30 + 2 * pace, pace, 0.0, final),
        entropy=lambda t: ramp(t, 40, 30, 0.3, 0.1),
        length=lambda t: 20.0,
        kl=lambda t: ramp(t, 40, 30, 0.0, 0.3),
    )


def destroyed(seed):
    """A rate that is too high: 0.26 to 0 within 60 rounds, length and entropy up."""
    return script(
        seed,
        100,
        lambda t: ramp(t, 40, 10, 0.28, 0.0),
        entropy=lambda t: ramp(t, 42, 10, 0.3, 1.4),
        length=lambda t: ramp(t, 42, 10, 20, 30),
        kl=lambda t: ramp(t, 42, 10, 0.05, 0.9),
    )


_RECORDED = {
    "reward": (
        -1.00,
        -1.00,
        -1.00,
        -0.98,
        -0.98,
        -0.98,
        -0.98,
        -0.97,
        -0.97,
        -0.95,
        -0.97,
        -1.00,
        -0.94,
        -1.00,
        -0.94,
        -0.95,
        -1.00,
        -0.94,
        -0.88,
        -0.92,
        -0.97,
        -0.83,
        -0.97,
        -0.94,
        -0.92,
        -0.83,
        -1.00,
        -0.97,
        -0.84,
        -0.89,
        -0.91,
        -0.62,
        -0.83,
        -0.97,
    ),
    "ppl_original": (
        4.10,
        4.09,
        3.97,
        3.83,
        3.79,
        3.93,
        4.08,
        4.25,
        4.48,
        5.19,
        5.87,
        7.10,
        7.74,
        8.64,
        9.38,
        11.30,
        13.14,
        15.72,
        19.99,
        25.96,
        35.81,
        56.03,
        88.31,
        97.34,
        82.84,
        78.08,
        77.47,
        79.49,
        85.27,
        109.43,
        116.63,
        116.91,
        105.43,
        116.83,
    ),
    "kl": (
        0.00,
        0.00,
        0.00,
        0.01,
        0.03,
        0.06,
        0.10,
        0.16,
        0.22,
        0.34,
        0.45,
        0.59,
        0.69,
        0.84,
        1.13,
        1.09,
        1.31,
        1.33,
        1.49,
        1.76,
        2.08,
        2.70,
        2.86,
        3.06,
        3.37,
        2.81,
        3.21,
        3.17,
        3.00,
        3.23,
        3.18,
        3.41,
        3.11,
        3.17,
    ),
    "entropy": (
        1.41,
        1.41,
        1.37,
        1.33,
        1.30,
        1.31,
        1.30,
        1.28,
        1.28,
        1.31,
        1.31,
        1.34,
        1.33,
        1.32,
        1.32,
        1.32,
        1.35,
        1.37,
        1.41,
        1.40,
        1.41,
        1.43,
        1.41,
        1.39,
        1.39,
        1.34,
        1.31,
        1.24,
        1.20,
        1.20,
        1.21,
        1.25,
        1.22,
        1.27,
    ),
    "length": (
        96.00,
        96.00,
        95.77,
        95.76,
        96.00,
        96.00,
        96.00,
        96.00,
        95.70,
        96.00,
        95.81,
        95.38,
        95.94,
        95.69,
        95.39,
        95.30,
        95.16,
        95.07,
        93.98,
        93.09,
        79.98,
        58.20,
        40.80,
        43.48,
        62.03,
        86.67,
        88.20,
        88.73,
        76.54,
        57.05,
        51.73,
        55.30,
        64.23,
        62.38,
    ),
    "zero_std_share": (
        1.00,
        1.00,
        1.00,
        0.94,
        0.94,
        0.94,
        0.94,
        0.88,
        0.88,
        0.88,
        0.94,
        1.00,
        0.88,
        1.00,
        0.81,
        0.94,
        1.00,
        0.81,
        0.75,
        0.75,
        0.88,
        0.75,
        0.88,
        0.75,
        0.81,
        0.75,
        1.00,
        0.94,
        0.81,
        0.88,
        0.88,
        0.56,
        0.75,
        0.88,
    ),
}
"""Measured: stories260K, `story-hack`, 16 prompts of 8, group-normalised policy gradient on the share of rules, 1e-3."""
_RECORDED_CANARY = dict(zip(range(0, 34, 5), (0.0, 0.0, 0.016, 0.0, 0.062, 0.086, 0.133), strict=True))
RECORDED_HACK = [
    {name: column[t] for name, column in _RECORDED.items()}
    | ({"canary_proxy": _RECORDED_CANARY[t], "canary_gold": 0.0, "canary_n": 128.0} if t in _RECORDED_CANARY else {})
    for t in range(len(_RECORDED["reward"]))
]
