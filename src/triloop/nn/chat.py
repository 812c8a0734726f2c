"""Chat templates: the jinja program in a model's directory that writes a dialogue as the text it was trained on.

A template is a stranger's program. It runs in jinja's immutable sandbox and sees only the messages, the names of the
special tokens and the helpers that templates in the field expect.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from triloop.errors import ModelError
from triloop.records import Turn

__all__ = ["TEMPLATE_DATE", "render_chat"]

TEMPLATE_DATE = datetime(2024, 7, 26)
"""The day that every template believes it is (Llama 3.2's own fallback). Templates that print today's date would
otherwise render a resumed run's prompts differently the next morning."""


class _Generation(Extension):
    """``{% generation %} ... {% endgeneration %}`` marks the assistant's words; it renders its body unchanged."""

    tags = {"generation"}  # noqa: RUF012  (jinja declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None) -> str:
    # jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators)


@lru_cache(maxsize=16)
def _compiled(template: str) -> Callable[..., str]:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = TEMPLATE_DATE.strftime
    return env.from_string(template).render


def render_chat(
    template: str, turns: Sequence[Turn], *, specials: Mapping[str, str], generate: bool, where: str
) -> str:
    """The text of ``turns`` under ``template``; with ``generate``, open the assistant's next turn at the end.

    ``specials`` are ``bos_token`` and its like, as transformers passes them. Raises ModelError, naming ``where`` the
    template came from, when it does not compile or refuses the dialogue (some refuse a system turn).
    """
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    try:
        return _compiled(template)(messages=messages, add_generation_prompt=generate, **specials)
    except TemplateError as error:
        roles = ", ".join(turn.role for turn in turns)
        raise ModelError(
            f"the chat template of {where} failed on a dialogue of ({roles}): {error}. "
            "Give turns in the order that the template expects, or a plain text prompt."
        ) from error
