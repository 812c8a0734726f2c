"""Compiled kernels for what lies between matrix products, and torch expressions of the same for where there are none."""

__all__: list[str] = []
