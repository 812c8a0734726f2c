"""The recurrences: outcome RL, supervised warm-up, expert iteration, curriculum. Floor 4."""

__all__: list[str] = []
