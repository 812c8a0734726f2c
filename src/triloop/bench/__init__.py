"""Measurements of speed and memory with random weights: rollouts, training steps, whole rounds. Floor 6."""

__all__: list[str] = []
