"""GSM8K: grade-school word problems; the number that the completion comes to is compared with the reference.

Rows are as OpenAI published them (``question``, ``answer`` ending in ``#### 72``); ``final`` is read instead of
``answer`` when it is there. Cobbe et al. 2021, arXiv:2110.14168.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import final

from triloop.envs.charset import ABSTAIN
from triloop.envs.dataset import DatasetEnv, problem_id
from triloop.envs.numeric import final_answer, final_number, read_number, same
from triloop.envs.reading import Row, read_jsonl, text_field
from triloop.errors import DataError
from triloop.records import Feedback, Prompt, Turn

__all__ = ["Gsm8k", "judge_number"]


@final
class Gsm8k(DatasetEnv):
    """Word problems with a number as answer."""

    name = "gsm8k"
    stop: tuple[str, ...] = ("\nQuestion:",)

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        eval_path: str | Path | None = None,
        chat: bool = False,
        max_tokens: int = 320,
    ) -> None:
        """Without ``path`` it can only judge. ``eval_path`` is the held-out file; without it one problem in eight is.

        ``chat`` asks through the model's chat template. DataError for a file that cannot be used.
        """
        self.chat, self.max_tokens = chat, max_tokens
        super().__init__(read_jsonl(path) if path else None, read_jsonl(eval_path) if eval_path else None)

    def read(self, row: Row) -> Prompt:
        question = text_field(row, "question", "prompt", "problem")
        reference = text_field(row, "final", "answer", "ground_truth")
        number = read_number(reference)
        number = final_number(reference) if number is None else number
        if number is None:
            raise DataError(
                f"{row.where}: the answer {reference[-60:]!r} holds no number; expected one such as '#### 72'"
            )
        return Prompt(
            id=problem_id(self.name, question),
            text=f"Question: {question}\nAnswer:",
            env=self.name,
            answer=str(number),
            turns=(Turn(role="user", text=question),) if self.chat else (),
        )

    def verify(self, prompt: Prompt, text: str) -> Feedback:
        return judge_number(str(prompt.answer), text, source=f"env:{self.name}")

    def right_answer(self, prompt: Prompt) -> str:
        return f" The answer is worked out.\n#### {prompt.answer}"

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        other = Fraction(str(prompt.answer)) + 1
        wrong = ["", f"#### {other}", f"{self.right_answer(prompt)}\n#### {other}", f"\\boxed{{{other}}}", "####"]
        # The last number of a question is now and then its answer: then the echo is right by the rule of last numbers.
        return wrong if final_number(prompt.text) == Fraction(str(prompt.answer)) else [*wrong, prompt.text]


def judge_number(answer: str, text: str, *, source: str) -> Feedback:
    """+1 when the text's final number equals ``answer`` (a Fraction as text), 0 for ``?`` as the answer, else -1."""
    found = final_answer(text)
    if text.strip() == ABSTAIN or (found is not None and found.text == ABSTAIN):
        return Feedback(value=0, reason="abstained", source=source)
    if found is None:
        return Feedback(value=-1, reason="no number in the text" if text.strip() else "empty", source=source)
    if found.number is None:
        reason = f"no number in the final answer {found.text[:40]!r} (by {found.by})"
        return Feedback(value=-1, reason=reason, source=source)
    if same(found.number, Fraction(answer)):
        return Feedback(value=1, reason=f"right, by {found.by}", source=source)
    return Feedback(value=-1, reason=f"{found.text[:40]!r} (by {found.by}) is not {answer}", source=source)
