"""Plain facts about an answer in English: the smallest set of domain features, for ``NamedFeatures``.

features = join_features(HashedNgrams(), NamedFeatures(plain_facts, FACTS, scale=0.05))
"""

from __future__ import annotations

import math
import re

from triloop.records import Prompt

__all__ = ["FACTS", "plain_facts"]

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_REFUSING = re.compile(
    r"\b(?:sorry|can't|cannot|won't|not sure|don't (?:know|think|want)|illegal|dangerous|harm|wrong|inappropriate|"
    r"offensive|unethical)\b"
)
_YOU, _ME, _YES = ({"you", "your", "you're"}, {"i", "i'm", "me", "my"}, {"yes", "sure", "ok", "okay"})
FACTS = (
    "length", "asks", "ends_asking", "exclaims", "refuses", "echoes", "you", "me", "long_words", "variety", "lines",
    "agrees", "digits", "commas",
)  # fmt: skip
"""Names of the facts, in the order of ``plain_facts``."""


def plain_facts(prompt: Prompt, text: str) -> dict[str, float]:
    """Length (log of 1 + words), questions, refusals, overlap with the last request, shares of kinds of words.

    The last request is the last turn, or the last ``Human:`` part of a prompt in one text. Never raises, for any text.
    """
    lower = text.lower()
    words = _WORD.findall(lower)
    asked = prompt.turns[-1].text if prompt.turns else prompt.text.rsplit("\n\nHuman:", 1)[-1]
    requested, distinct, n = set(_WORD.findall(asked.lower())), set(words), max(1, len(words))
    return {
        "length": math.log1p(len(words)),
        "asks": float("?" in text),
        "ends_asking": float(text.rstrip().endswith("?")),
        "exclaims": float("!" in text),
        "refuses": len(_REFUSING.findall(lower)) / math.sqrt(n),
        "echoes": len(distinct & requested) / max(1, len(distinct)),
        "you": sum(w in _YOU for w in words) / n,
        "me": sum(w in _ME for w in words) / n,
        "long_words": sum(map(len, words)) / n,
        "variety": len(distinct) / n,
        "lines": float("\n" in text.strip()),
        "agrees": float(sum(w in _YES for w in words[:3])),
        "digits": sum(w.isdigit() for w in words) / n,
        "commas": text.count(",") / n,
    }
