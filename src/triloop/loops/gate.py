"""Stage ``gate``: does the new policy stay? By gold on canary prompts and counter-metrics, against the last that did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from triloop.loops.counters import by_prompt, changed
from triloop.loops.crew import Crew
from triloop.loops.evaluate import Evaluation, evaluate
from triloop.loops.lineage import artifact, latest
from triloop.loops.played import Played
from triloop.loops.stages import Step
from triloop.loops.state import LoopState, Workshop
from triloop.policies.protocol import Tag
from triloop.sources.users import counter_metrics

__all__ = ["gate"]


def gate(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """Paired with the last accepted generation's: one that is worse, or that lost a counter-metric, is put back."""
    c = shop.config
    tag = Tag(seed=c.seed, round=0, purpose="gate")
    seen = evaluate(shop.policy, shop.env, c.cycle.gate.n, c.sampling, tag, split="canary", level=c.env.level)
    now = {e.prompt.id: float(e.reward or 0.0) for e in seen.episodes}
    counters = by_prompt(c.cycle.counters, seen.episodes)
    facts, told = _against(shop, crew, now, counters)
    facts |= {"gate_value": seen.value, "gate_accepted": float(told["accepted"])} | _approval(crew, seen)
    facts |= {f"gate_{name}": sum(v.values()) / len(v) for name, v in counters.items() if v}
    told |= {"value": seen.value, "ci95": [seen.low, seen.high], "n": seen.n}
    parents = [id for id in (latest(shop, state, "policy"),) if id]
    row = artifact(state.round + 1, step, "gate", told, parents=parents)
    rows = [row]
    if told["accepted"]:
        crew.champion.crown(shop.policy, step.generation, now, counters)
    else:
        shop.policy.restart_from(crew.champion.policy)
        back = {"put back to generation": crew.champion.generation}
        rows.append(artifact(state.round + 1, step, "policy", back, parents=[row.id]))
    return Played(metrics=facts, cursor=state.cursor, rows=rows)


def _against(
    shop: Workshop, crew: Crew, now: Mapping[str, float], counters: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and facts of the comparison with the champion; before there is one, everything is accepted."""
    how, seed, old = shop.config.cycle.gate, shop.config.seed, crew.champion
    if not old.scores:
        return {}, {"accepted": True}
    change = changed(old.scores, now, seed=seed)
    facts = {"gate_change": change.value, "gate_low": change.low, "gate_high": change.high}
    told: dict[str, Any] = {"change": change.value, "change_ci95": [change.low, change.high]}
    fell = []
    for name, values in counters.items():
        lost = changed(old.counters.get(name, {}), values, seed=seed) if old.counters.get(name) else None
        if lost is not None:
            facts[f"gate_{name}_change"] = lost.value
            fell += [name] if lost.high < -how.counter_margin else []
    if fell:
        told["fell"] = ", ".join(fell)
    return facts, {"accepted": not fell and change.high >= -how.margin, **told}


def _approval(crew: Crew, seen: Evaluation) -> dict[str, float]:
    """How users take the gate's samples, where users judge this run: for the report, the gate does not go by it."""
    cycle = crew.config.cycle
    if "users" not in (cycle.collect.source, cycle.judge):
        return {}
    reactions = crew.users(0).react([e.prompt for e in seen.episodes], [e.completion.text for e in seen.episodes])
    found = counter_metrics(reactions)
    return {f"gate_{name}": v for name, v in found.items() if name not in ("left", "quality") and math.isfinite(v)}
