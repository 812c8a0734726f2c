"""Single samples that no honest judge would pay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from triloop.guards.base import Watch
from triloop.guards.reading import alarm, healthy, positive, shares, unsure
from triloop.records import Episode, Verdict

__all__ = ["Samples"]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Tripwires on paid samples: nothing at all, the prompt itself, or one text for prompts with different answers."""

    answers: int = 4
    """One text that was paid for this many different reference answers is a skeleton key."""
    hard: float = 0.1
    """Share of the round's paid samples from which the run stops; below it the samples are dropped."""

    name = "samples"

    def __post_init__(self) -> None:
        positive(self)
        shares(self, "hard")

    def check(self, watch: Watch) -> Verdict:
        """``screen`` the samples that trip a wire; ``stop`` when they are many."""
        paid = [e for e in watch.episodes if e.reward is not None and e.reward > 0]
        if not watch.episodes:
            return unsure(self.name, watch, "no samples were shown this round")
        caught = dict(self._caught(paid))
        share = len(caught) / len(paid) if paid else 0.0
        measured = {"caught": float(len(caught)), "paid": float(len(paid))}
        if not caught:
            return healthy(self.name, watch, f"none of {len(paid)} paid samples trips a wire", **measured)
        id, why = next(iter(caught.items()))
        reason = f"{len(caught)} of {len(paid)} paid samples trip a wire, such as {id}: {why}"
        action = "stop" if share > self.hard and len(caught) > 2 else "screen"
        return alarm(self.name, watch, "stop" if action == "stop" else "screen", reason, measured, tuple(caught))

    def _caught(self, paid: Sequence[Episode]) -> Iterator[tuple[str, str]]:
        answers: dict[str, set[str]] = {}
        for e in paid:
            if e.prompt.answer is not None:
                answers.setdefault(e.completion.text.strip(), set()).add(_plain(e.prompt.answer))
        for e in paid:
            text = e.completion.text.strip()
            answer = (e.prompt.answer or "").strip()
            if not text and not (e.prompt.answer is not None and not answer):
                yield e.completion.id, "an empty completion was paid"
            elif text and text == e.prompt.text.strip() and text != answer:
                yield e.completion.id, "an echo of the prompt was paid"
            elif len(answers.get(text, ())) >= self.answers:
                yield e.completion.id, f"{text[:60]!r} was paid for {len(answers[text])} different answers"


def _plain(answer: str) -> str:
    """Answers that differ in writing only are one: 5, 5.0 and 05."""
    try:
        return repr(float(answer.replace(",", "")))
    except ValueError:
        return answer.strip().casefold()
