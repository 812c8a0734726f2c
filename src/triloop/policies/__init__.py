"""Policies generate and score: one rollout engine behind one protocol. Floor 2."""

__all__: list[str] = []
