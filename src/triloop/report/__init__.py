"""A run as one HTML file that works offline. Floor 6."""

__all__: list[str] = []
