"""Who watches: pure functions from what a round measured to a verdict. Floor 3."""

__all__: list[str] = []
