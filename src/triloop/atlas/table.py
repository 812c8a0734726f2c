"""The rows that stand, as one literal table, and the list of all systems that are to stand in it one day."""

from __future__ import annotations

import csv
import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from triloop.atlas.ai_feedback import AI_FEEDBACK
from triloop.atlas.bought import BOUGHT
from triloop.atlas.comms import COMMUNICATION
from triloop.atlas.compute import ADAPTIVE
from triloop.atlas.conditional import CONDITIONAL
from triloop.atlas.constitutional import CONSTITUTIONAL
from triloop.atlas.dialogue import DIALOGUE
from triloop.atlas.fine_grained import FINE_GRAINED
from triloop.atlas.frame import Row
from triloop.atlas.labellers import LABELLERS
from triloop.atlas.likelihood import LIKELIHOOD
from triloop.atlas.online import FRESH
from triloop.atlas.outcome import DAPO, GRPO, GSPO, NFT
from triloop.atlas.quantised import QUANTISED
from triloop.atlas.quantised_scaling import SCALING
from triloop.atlas.rewards_rl import REWARDS
from triloop.atlas.routing import ROUTING
from triloop.atlas.selfplay import PLAYS
from triloop.atlas.steering import ANCHOR, FRONTIER, REST_EM
from triloop.atlas.symbiosis import LIVING
from triloop.atlas.ternary_blocks import BLOCKS
from triloop.atlas.ternary_search import SEARCHED
from triloop.atlas.ternary_shapes import ENOUGH
from triloop.atlas.ternary_towers import TWO_TOWERS
from triloop.atlas.truth import TRUTH
from triloop.atlas.verbal import VERBAL_MORE
from triloop.atlas.wishes import WISHES
from triloop.errors import ConfigError

__all__ = ["ROWS", "System", "find_row", "find_system", "systems"]

ROWS: Mapping[str, Row] = MappingProxyType(
    {
        row.id: row
        for row in (
            *AI_FEEDBACK,
            *BOUGHT,
            *CONSTITUTIONAL,
            *LABELLERS,
            GRPO,
            DAPO,
            GSPO,
            ANCHOR,
            FRONTIER,
            REST_EM,
            TRUTH,
            NFT,
            ADAPTIVE,
            *REWARDS,
            *FINE_GRAINED,
            *ROUTING,
            *DIALOGUE,
            *WISHES,
            *CONDITIONAL,
            *LIKELIHOOD,
            *VERBAL_MORE,
            *FRESH,
            *LIVING,
            *PLAYS,
            *COMMUNICATION,
            *QUANTISED,
            *SCALING,
            ENOUGH,
            TWO_TOWERS,
            *SEARCHED,
            *BLOCKS,
        )
    }
)
"""By id, in the order in which all of them are run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A published system, as ``systems.tsv`` has it."""

    id: str
    title: str
    kind: str
    mechanism: str
    claim: str
    """Of its authors, whole."""
    room: str
    """Where its mechanism lives, or is to live."""


@functools.cache
def systems() -> Mapping[str, System]:
    """All systems by id, in the order of the file."""
    text = (files("triloop.atlas") / "systems.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return MappingProxyType({row["id"]: System(**row) for row in rows})


def find_system(id: str) -> System:
    """The system of that id. ConfigError for an unknown one, with the nearest."""
    known = systems()
    if id not in known:
        raise ConfigError(
            f"the atlas has no row {id!r}{_near(id, list(known))}; `triloop atlas list` shows all {len(known)}"
        )
    return known[id]


def find_row(id: str) -> Row:
    """The experiment of that id. ConfigError where the id is unknown, or nobody has written its experiment yet."""
    system = find_system(id)
    if id not in ROWS:
        raise ConfigError(
            f"row {id} ({system.title}) has no experiment yet; those that have one are {', '.join(sorted(ROWS))}"
        )
    return ROWS[id]


def _near(id: str, known: list[str]) -> str:
    near = difflib.get_close_matches(id.upper(), known, n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""
