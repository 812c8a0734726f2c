"""The command line. Floor 6."""

__all__: list[str] = []
