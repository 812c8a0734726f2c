"""Judgements that somebody else recorded, as samples of a run: the policy's tokens, and what was said of them."""

from __future__ import annotations

import dataclasses

from triloop.envs.base import Env
from triloop.errors import DataError
from triloop.feedback.interchange_records import ImportedItem
from triloop.loops.assemble import continuation
from triloop.loops.config import RunConfig
from triloop.loops.crew import Crew
from triloop.loops.state import LoopState, Workshop
from triloop.policies.protocol import Policy
from triloop.records import Completion, Episode, Feedback
from triloop.sources.recorded import read_recorded

__all__ = ["episodes_of", "recorded", "usable"]

_CURSOR = "recorded"


def usable(config: RunConfig, env: Env) -> list[ImportedItem]:
    """The items of ``cycle.recorded`` that a run may learn from: none whose prompt its held-out checks use.

    DataError, UsageError for a file that is missing, empty or not understood, and when nothing is left.
    """
    if not config.cycle.recorded:
        return []
    items = read_recorded(config.cycle.recorded)
    kept = {p.text for p in env.prompts("eval", config.eval_n, seed=config.seed, level=config.env.level)}
    most = max(config.canary_n, config.cycle.gate.n)
    kept |= {p.text for p in env.prompts("canary", most, seed=config.seed, level=config.env.level)}
    free = [item for item in items if item.prompt.text not in kept]
    if not free:
        raise DataError(
            f"{config.cycle.recorded}: the run is measured on all {len(items)} prompts of it; expected others to learn from"
        )
    return free


def recorded(shop: Workshop, crew: Crew, state: LoopState) -> tuple[list[Episode], dict[str, int]]:
    """The next ``cycle.collect.prompts`` items as judged episodes, and where the round after goes on; () without a file."""
    if not crew.recorded:
        return [], dict(state.cursor)
    start, n = state.cursor.get(_CURSOR, 0), min(shop.config.cycle.collect.prompts, len(crew.recorded))
    chosen = [crew.recorded[i % len(crew.recorded)] for i in range(start, start + n)]
    found = [e for item in chosen for e in episodes_of(item, shop.policy, state.round + 1)]
    return found, {**state.cursor, _CURSOR: (start + n) % len(crew.recorded)}


def episodes_of(item: ImportedItem, policy: Policy, round: int) -> list[Episode]:
    """One episode a response. A judgement of one response is stored with it, one of several with the first that it names.

    Log-probabilities are 0: nobody knows under which policy they were drawn, and what learns from these asks for none.
    """
    ids = {r.id: f"recorded/{round}/{r.id}" for r in item.responses}
    prompt = dataclasses.replace(item.prompt, id=f"recorded:{item.prompt.id}")  # the run may draw the same problem
    head = policy.encode(prompt)
    made = []
    for k, response in enumerate(item.responses):
        tokens = continuation(policy, prompt, response.text)
        completion = Completion(
            id=ids[response.id],
            prompt_id=prompt.id,
            round=round,
            index=k,
            prompt_tokens=head,
            tokens=tokens,
            logps=(0.0,) * len(tokens),
            mask=(True,) * len(tokens),
            text=response.text,
            finish="stop",
            policy_version=policy.version,
        )
        said = tuple(_about(f, ids) for f in item.feedback if f.about and f.about[0] == response.id)
        value = said[0].value if said and said[0].kind in ("scalar", "ternary", "rubric") else None
        made.append(Episode(prompt=prompt, completion=completion, feedback=said, reward=value))
    return made


def _about(f: Feedback, ids: dict[str, str]) -> Feedback:
    return dataclasses.replace(f, about=tuple(ids.get(id, id) for id in f.about))
