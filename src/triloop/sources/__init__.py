"""Who judges: a user's own verifier, and the proof that a verifier works before a run starts. Floor 3."""

__all__: list[str] = []
