"""A JSONL file of one's own as an environment.

Each row has ``prompt`` or ``question`` (text) or ``messages`` (a list of ``{"role", "content"}``), and optionally
``answer`` and ``level``. Without a verifier of one's own a completion is compared with ``answer``:

- when the answer is a number, the final number of the completion must equal it (as for GSM8K: the number after ``####``,
  in ``\\boxed{}``, after ``A:`` or ``the answer is``, else the last one in the text);
- any other answer must be equal to the whole completion, white space at both ends set aside.

A row without an answer cannot be judged this way: that is a failure with a reason, never a score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

from triloop.envs.charset import ABSTAIN
from triloop.envs.dataset import DatasetEnv, problem_id
from triloop.envs.gsm8k import judge_number
from triloop.envs.numeric import read_number
from triloop.envs.reading import Row, read_jsonl, text_field
from triloop.errors import DataError
from triloop.records import Feedback, Prompt, Turn

__all__ = ["Jsonl"]

Judge = Callable[[Sequence[Prompt], Sequence[str]], list[Feedback]]
_ROLES = ("system", "user", "assistant", "tool")


@final
class Jsonl(DatasetEnv):
    """Prompts, and maybe answers, from a file of one's own; split by a hash of each prompt."""

    name = "jsonl"

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        eval_path: str | Path | None = None,
        max_tokens: int = 256,
        stop: tuple[str, ...] = (),
    ) -> None:
        """Without ``path`` it can only judge; ``eval_path`` is a held-out file. DataError for an unusable file."""
        self.max_tokens, self.stop = max_tokens, stop
        super().__init__(read_jsonl(path) if path else None, read_jsonl(eval_path) if eval_path else None)

    def read(self, row: Row) -> Prompt:
        turns = _turns(row)
        text = turns[-1].text if turns else text_field(row, "prompt", "question", "messages")
        answer = None if row.data.get("answer") is None else text_field(row, "answer")
        level = row.data.get("level", 0)
        if isinstance(level, bool) or not isinstance(level, int):
            raise DataError(f"{row.where}: 'level' is {json.dumps(level)[:40]}; expected a whole number")
        parts = [f"{turn.role}\n{turn.text}" for turn in turns] or [text]
        return Prompt(
            id=problem_id(self.name, *parts), text=text, env=self.name, answer=answer, level=level, turns=turns
        )

    def verify(self, prompt: Prompt, text: str) -> Feedback:
        source = f"env:{self.name}"
        if prompt.answer is None:
            why = "the row has no 'answer' to compare with; add one, or judge with --verifier FILE.py:FUNCTION"
            return Feedback(value=None, source=source, failure=why)
        number = read_number(prompt.answer)
        if number is not None:
            return judge_number(str(number), text, source=source)
        if text.strip() == prompt.answer.strip():
            return Feedback(value=1, reason="right", source=source)
        if text.strip() == ABSTAIN:
            return Feedback(value=0, reason="abstained", source=source)
        reason = f"{text.strip()[:40]!r} is not {prompt.answer.strip()[:40]!r}" if text.strip() else "empty"
        return Feedback(value=-1, reason=reason, source=source)

    def right_answer(self, prompt: Prompt) -> str | None:
        return prompt.answer

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        """The echo of the prompt is left out where it is right: an echo task, or a question that ends in its answer."""
        if prompt.answer is None:
            return []
        number = read_number(prompt.answer)
        spoiled = f"{prompt.answer}x" if number is None else f"#### {number + 1}"
        echo = [prompt.text] if self.verify(prompt, prompt.text).value != 1 else []
        return ["", spoiled, *echo]


def _turns(row: Row) -> tuple[Turn, ...]:
    messages = row.data.get("messages")
    if messages is None:
        return ()
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{row.where}: 'messages' must be a list of {{'role', 'content'}}, at least one")
    turns = []
    for k, message in enumerate(messages, start=1):
        role, text = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in _ROLES or not isinstance(text, str):
            raise DataError(
                f"{row.where}: message {k} is {json.dumps(message)[:60]}; expected {{'role', 'content'}} with text "
                f"and a role of {', '.join(_ROLES)}"
            )
        turns.append(Turn(role=role, text=text))
    if turns[-1].role == "assistant":
        raise DataError(f"{row.where}: the last message is the assistant's; expected one to answer (user or tool)")
    return tuple(turns)
