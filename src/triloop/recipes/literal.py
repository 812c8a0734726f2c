"""A verifier of the attribute world that sees what can be counted, and nothing else: the facts asked for, no other, no rude
word. Courtesy, brevity and grammar are beyond it. Used as any verifier of one's own: ``--verifier literal.py:check``.
"""

from __future__ import annotations

from triloop.envs.attributes_language import FACTS, RUDE

__all__ = ["check"]


def check(prompt: str, completion: str, answer: str) -> int:
    """+1 when all facts of the prompt are there, no other is, and nothing rude; else -1."""
    asked, said = set(prompt.split()) & set(FACTS), set(completion.split())
    return 1 if said & set(FACTS) == asked and not said & set(RUDE) else -1
