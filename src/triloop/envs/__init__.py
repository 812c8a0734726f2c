"""Tasks that carry their own verifier. Floor 2."""

__all__: list[str] = []
