"""How the attribute world's models are asked: templates in the words that their base was taught, and a constitution."""

from __future__ import annotations

from dataclasses import replace

from triloop.envs import attributes_skills as skills
from triloop.envs.attributes_language import WEIGHTS
from triloop.sources.asking import Asking, Thinking
from triloop.sources.constitution import Constitution, Principle
from triloop.sources.templates import Templates

__all__ = ["ATTRIBUTE_ASKING", "ATTRIBUTE_RATING", "ATTRIBUTE_REASONING", "ATTRIBUTE_TEMPLATES", "ONE_TO_NINE",
           "OVERALL", "RULES"]  # fmt: skip

_QUESTION = ("{principle}", "{question}")
ATTRIBUTE_TEMPLATES = Templates(
    ask=skills.ASK.replace(*_QUESTION),
    think_ask=skills.ASK_REASON.replace(*_QUESTION),
    ask_reasoned=f"{skills.ASK_REASON.replace(*_QUESTION)} {{reasoning}} so",
    compare=skills.COMPARE,
    think_compare=skills.COMPARE_REASON,
    compare_reasoned=f"{skills.COMPARE_REASON} {{reasoning}} so",
    answer="{request}",
    referred="{request} {reference} ; {request}",
    critique=skills.CRITIQUE,
    revise=skills.REVISE,
    follow="{request} {response}",
    yes=("yes",),
    no=("no",),
    none=(),
    first=("A",),
    second=("B",),
    tie=("none",),
    praise=("good",),
    fences=("judge", "compare", "critique", "revise", "?"),
)
"""Templates for ``base:attributes`` and what is trained from it."""

ATTRIBUTE_ASKING = Asking(templates=ATTRIBUTE_TEMPLATES)
"""Verdicts at once."""

ATTRIBUTE_REASONING = Asking(
    templates=ATTRIBUTE_TEMPLATES, thinking=Thinking(max_tokens=40, temperature=0.0, stop=(" so",))
)
"""Findings first, such as ``red yes den no``, then the verdict."""

ATTRIBUTE_RATING = Asking(templates=replace(ATTRIBUTE_TEMPLATES, ask=skills.RATE))
"""For ``ScaleJudge`` with the marks ``ONE_TO_NINE``: the utility as a digit."""

ONE_TO_NINE = {float(k): (str(k),) for k in range(10)}
"""Marks of ``ATTRIBUTE_RATING``; 0 is the worst utility there is and 9 the best."""

RULES = Constitution(
    name="attributes",
    principles=tuple(Principle(name=name, text=name, question=name, weight=weight) for name, weight in WEIGHTS.items()),
)
"""One principle per attribute, in the one word that the base knows for it; drawn as often as the utility weighs it."""

OVERALL = Principle(name="overall", text="overall", question="overall")
"""The general principle: the default utility as a whole."""
