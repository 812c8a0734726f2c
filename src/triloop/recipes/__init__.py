"""Named runs: functions that return a run's whole configuration. Floor 5."""

__all__: list[str] = []
