"""Feedback of every kind: what it says, how kinds become one another, and how many judgements become one. Floor 1."""

__all__: list[str] = []
