"""Objectives, credit, reduction and the one training step; an algorithm is data. Floor 2."""

__all__: list[str] = []
