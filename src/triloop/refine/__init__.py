"""Loops at inference time: how many samples to draw, and which of them to believe."""

__all__: list[str] = []
