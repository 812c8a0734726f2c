"""reasoning-gym: any of its procedurally made tasks by name, judged by the library's own score (extra ``gym``).

``gym:countdown``, ``gym:chain_sum``, ... The judgement is a scalar, the library's ``score_answer`` in 0 .. 1 unchanged.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
from collections.abc import Mapping
from typing import Any, final

from triloop import rng
from triloop.envs.base import Split, World, split_of
from triloop.envs.reading import Row, text_field
from triloop.errors import ConfigError, DataError
from triloop.records import Feedback, Prompt, Turn

__all__ = ["Gym", "tasks"]

_STRIDE = 1 << 20
"""Items apart at which one prompt's tries lie, so that the tries of different prompts never meet."""
_MAX_TRIES = 400


@final
class Gym(World):
    """One task of reasoning-gym. Keywords besides ``chat`` and ``max_tokens`` are the task's own configuration."""

    def __init__(self, task: str, *, chat: bool = False, max_tokens: int = 256, **settings: Any) -> None:
        """ConfigError when the library is not installed, or knows no such task or setting."""
        if task not in tasks():
            raise ConfigError(f"gym:{task}: reasoning-gym knows no such task; it has {', '.join(tasks())}")
        self.name, self.task, self.chat, self.max_tokens = f"gym:{task}", task, chat, max_tokens
        self._settings = json.dumps(settings, sort_keys=True)
        try:
            self._scorer = _dataset(task, self._settings, 0)
        except Exception as error:  # the library checks settings with assert and TypeError alike
            raise ConfigError(f"gym:{task}: settings {settings} cannot be used ({error})") from error

    def prompts(self, split: Split, n: int, *, seed: int, start: int = 0, level: int | None = None) -> list[Prompt]:
        """Item after item of the task's stream for (seed, split), each tried until its question falls into the split."""
        if level not in (None, 0):
            raise ConfigError(
                f"{self.name}: level {level} does not exist; difficulty is set by the task's own settings"
            )
        stream = rng.key(seed, "env", self.name, split) % 2**31
        return [self._prompt(split, stream, i) for i in range(start, start + n)]

    def _prompt(self, split: Split, stream: int, i: int) -> Prompt:
        for attempt in range(_MAX_TRIES):
            index = i + attempt * _STRIDE
            entry = _entry(self.task, self._settings, stream, index)
            if split_of(f"{self.name}:{entry['question']}") == split:
                return self._make(entry, {"stream": stream, "index": index})
        raise ConfigError(
            f"{self.name}: found no item for split {split!r} in {_MAX_TRIES} tries; widen the task's settings"
        )

    def _make(self, entry: Mapping[str, Any], meta: Mapping[str, Any]) -> Prompt:
        question = str(entry["question"])
        return Prompt(
            id=f"{self.name}:{rng.key(question):016x}",
            text=question,
            env=self.name,
            answer=None if entry["answer"] is None else str(entry["answer"]),
            meta=meta,
            turns=(Turn(role="user", text=question),) if self.chat else (),
        )

    def read(self, row: Row) -> Prompt:
        """A recorded item: fields ``question`` (or ``prompt``), ``answer`` and the library's ``metadata``."""
        metadata = row.data.get("metadata", {})
        if not isinstance(metadata, dict):
            raise DataError(f"{row.where}: 'metadata' is {type(metadata).__name__}; expected the library's object")
        question, answer = text_field(row, "question", "prompt"), row.data.get("answer")
        return self._make({"question": question, "answer": answer}, {"metadata": metadata})

    def verify(self, prompt: Prompt, text: str) -> Feedback:
        """The library's score of the text, or of what stands in its last ``<answer>`` tags when it has them."""
        from reasoning_gym.utils import extract_answer

        source = f"env:{self.name}"
        try:
            tagged = extract_answer(text)
            score = float(self._scorer.score_answer(text if tagged is None else tagged, self._entry_of(prompt)))
        except Exception as error:  # noqa: BLE001 - the boundary to the library: some tasks raise on texts they cannot read
            return Feedback(value=None, kind="scalar", source=source, failure=f"score: {type(error).__name__}: {error}")
        if math.isnan(score):
            return Feedback(value=None, kind="scalar", source=source, failure="score: the library answered NaN")
        return Feedback(
            value=score,
            kind="scalar",
            source=source,
            reason="right" if score == 1.0 else f"the library scores it {score:g}",
            breakdown={"score": score, "tagged": float(tagged is not None)},
        )

    def right_answer(self, prompt: Prompt) -> str | None:
        return prompt.answer

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        return ["", prompt.text, "<answer></answer>", "-987654321.25"]

    def _entry_of(self, prompt: Prompt) -> dict[str, Any]:
        if "index" in prompt.meta:
            return _entry(self.task, self._settings, int(prompt.meta["stream"]), int(prompt.meta["index"]))
        return {"question": prompt.text, "answer": prompt.answer, "metadata": prompt.meta.get("metadata", {})}


@functools.cache
def tasks() -> tuple[str, ...]:
    """Names of all tasks. ConfigError when reasoning-gym is not installed."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ConfigError("gym: reasoning-gym is not installed; install it with: pip install 'triloop[gym]'")
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    assert reasoning_gym.__name__  # importing the package is what fills the table of tasks
    return tuple(sorted(DATASETS))


@functools.lru_cache(maxsize=64)
def _dataset(task: str, settings: str, stream: int) -> Any:
    from reasoning_gym import create_dataset

    return create_dataset(task, **json.loads(settings), seed=stream, size=2**31)


@functools.lru_cache(maxsize=8192)
def _entry(task: str, settings: str, stream: int, index: int) -> dict[str, Any]:
    """Item ``index`` of a stream: a pure function of its arguments, so that a prompt needs to carry only these."""
    entry: dict[str, Any] = _dataset(task, settings, stream)[index]
    return entry
