"""A pair judge that says again what one said before: recorded verdicts, for measuring judges that are not at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from triloop.feedback.kinds import write
from triloop.records import Feedback, Prompt
from triloop.sources.lm_pairs import pair_of

__all__ = ["RecordedPairs"]


class RecordedPairs:
    """Verdicts by (prompt id, text shown first, text shown second): a value in [-1, 1], or None where the judge failed.

    A pair that was never asked in this order is a failure, too.
    """

    def __init__(self, name: str, verdicts: Mapping[tuple[str, str, str], float | None]) -> None:
        self.name, self._verdicts = name, dict(verdicts)

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        """One recorded judgement per (prompt, first, second), in order."""
        return [self._again((p.id, a, b)) for p, a, b in zip(prompts, firsts, seconds, strict=True)]

    def _again(self, key: tuple[str, str, str]) -> Feedback:
        if key not in self._verdicts:
            why: str | None = f"no verdict of {key[0]!r} is recorded for this order"
        elif (value := self._verdicts[key]) is None:
            why = "the judge failed then, too"
        else:
            return write(pair_of(value), source=self.name)
        return Feedback(value=None, failure=why, kind="pair", source=self.name)
