"""Choosing what is tried next from what was measured so far: which candidates go on, and for how long. Floor 3."""

__all__: list[str] = []
