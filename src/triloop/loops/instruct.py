"""Stage ``instruct``: which principles should the judge go by? Those under which it agrees with people."""

from __future__ import annotations

import time
from collections.abc import Sequence

from triloop import rng
from triloop.loops.asked import Payer
from triloop.loops.crew import Crew
from triloop.loops.gathering import sample_groups
from triloop.loops.lineage import artifact, latest
from triloop.loops.played import Played
from triloop.loops.stages import Step
from triloop.loops.state import LoopState, Workshop
from triloop.records import Feedback
from triloop.sources.verifier import check_failures

__all__ = ["agreements", "instruct"]


def instruct(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """People compare fresh pairs; a few sets of principles are tried on the same, and the counts say which one leads."""
    how, learned = shop.config.cycle.instruct, crew.instructions
    assert learned is not None, "the stage brings them"
    sampled = sample_groups(shop, state, how.prompts, 2, purpose="instruct")
    t0, round = time.perf_counter(), state.round + 1
    pairs = crew.ask("people", "pair", sampled.plain, sampled.completions, round)
    told = [e.feedback[0] for e in pairs if e.feedback]
    check_failures(told)
    firsts, seconds = (sampled.completions[k::2] for k in (0, 1))
    asked = [sampled.plain[c.prompt_id] for c in firsts]
    results, cost = list[tuple[int, float, float]](), sum(f.cost for f in told)
    for k in learned.draw(how.tried, rng.generator(shop.config.seed, "instruct", round)):
        judge = crew.pairs(_judge_of(crew), round, learned.sets[k])
        said = judge.compare(asked, [c.text for c in firsts], [c.text for c in seconds])
        results.append((k, *agreements(told, said)))
        cost += sum(f.cost for f in said)
    learned.tell(results)
    facts = {"agreement": learned.agreement, "judgements": float(len(told)), "cost": cost}
    parents = [id for id in (latest(shop, state, "policy"), latest(shop, state, "judge")) if id]
    chosen = {"principles": ", ".join(learned.best), "agreement": learned.agreement, "tried": len(results)}
    return Played(
        metrics={**facts, "principles": float(len(learned.best))},
        cursor=sampled.cursor,
        episodes=pairs,
        purpose="instruct",
        rows=[artifact(round, step, "judge", chosen, parents=parents)],
        tokens=sum(sum(c.mask) for c in sampled.completions),
        sample_seconds=sampled.seconds,
        judge_seconds=time.perf_counter() - t0,
    )


def agreements(people: Sequence[Feedback], judge: Sequence[Feedback]) -> tuple[float, float]:
    """(agreements, questions) on the pairs that people decided: the same side is 1, a judge's tie a half, the other side
    and a failure 0."""
    decided = [(p, j) for p, j in zip(people, judge, strict=True) if not p.failed and p.value]
    same = [
        0.0 if j.failed or j.value is None else 0.5 if j.value == 0 else float((j.value > 0) == ((p.value or 0.0) > 0))
        for p, j in decided
    ]
    return sum(same), float(len(decided))


def _judge_of(crew: Crew) -> Payer:
    """Whose principles these are: the present policy's where it judges what is collected, else the original's."""
    c = crew.config.cycle
    source = c.route.cheap if c.collect.source == "routed" else c.collect.source
    return "self" if source == "self" else "judge"
