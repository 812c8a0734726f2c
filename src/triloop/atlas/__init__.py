"""Each published system as a short miniature with a verdict of its own. Floor 5."""

__all__: list[str] = []
