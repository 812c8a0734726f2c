"""The one character vocabulary of the small worlds: a model trained on one of them can read the others' prompts."""

from __future__ import annotations

__all__ = ["ABSTAIN", "CHARS"]

CHARS = "0123456789+-*/=#,;:()<>[] ._?abcdefghijklmnopqrstuvwxyz"
"""Every character that a prompt or a demonstration of these worlds may hold, in the order of token ids."""

ABSTAIN = "?"
"""The answer that says *I do not know*: judged 0, neither paid nor punished."""
