"""What others have said before: recorded verdicts as a pair judge, for measuring judges that are not at hand, and judged
samples out of a file, for a loop to learn from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from triloop.errors import DataError
from triloop.feedback.interchange import ImportedItem, Reader
from triloop.feedback.kinds import write
from triloop.records import Feedback, Prompt
from triloop.sources.lm_pairs import pair_of

__all__ = ["RecordedPairs", "read_recorded"]


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


def read_recorded(path: Path | str) -> list[ImportedItem]:
    """The items of a file or folder that have a response to learn from, judged or a demonstration; one item a prompt.

    Whatever ``triloop import`` reads is read, its own JSONL exactly. A folder that it wrote is read by its items. DataError
    for what is missing, empty or malformed, for columns without a meaning, and when no item has a response.
    """
    path = Path(path)
    if path.is_dir() and (path / "items.jsonl").is_file():
        path = path / "items.jsonl"
    reader = Reader(path)
    if reader.ignored:
        raise DataError(
            f"{path}: columns without a meaning here: {', '.join(reader.ignored)}; say what they mean with `triloop import "
            "--columns OURS=THEIRS`, or leave them out, and give the file that it writes"
        )
    found = _by_prompt(item for item in reader if item.responses and _teaches(item))
    if not found:
        raise DataError(
            f"{path}: no item has a response that was judged or may be imitated; expected prompts with responses"
        )
    return found


def _teaches(item: ImportedItem) -> bool:
    """Whether some response is judged, or nobody judged any: labels of prompts alone teach nothing here."""
    ids = {r.id for r in item.responses}
    return not item.feedback or any(not f.failed and f.about and f.about[0] in ids for f in item.feedback)


def _by_prompt(items: Iterable[ImportedItem]) -> list[ImportedItem]:
    """Rows about one prompt as one item, in the order of their first: every response once, with all that was said of it."""
    found: dict[str, ImportedItem] = {}
    for item in items:
        first = found.get(item.prompt.id)
        if first is None:
            found[item.prompt.id] = item
            continue
        responses = {r.id: r for r in (*first.responses, *item.responses)}
        feedback = (*first.feedback, *item.feedback)
        found[item.prompt.id] = replace(first, responses=tuple(responses.values()), feedback=feedback)
    return list(found.values())
