"""The process that runs math-verify: one JSON list ``[reference, text]`` a line in, one JSON value a line out.

Run by ``envs.math`` as a script. It lives in its own process because sympy can be sent into a computation that no
signal interrupts (``9^{9^{9^9}}``) and because math-verify's own time limit works in a main thread only.
"""

from __future__ import annotations

import json
import logging
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Answer requests until standard input closes: true, false, or ``{"error": why}``."""
    # math-verify and antlr print to standard output now and then; replies go to a copy that only we hold.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.disable(logging.CRITICAL)
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    wanted = [LatexExtractionConfig(), ExprExtractionConfig()]
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        reference, text = json.loads(line)
        reply: object
        try:
            # The parent holds the time limit and kills this process; the library's own would only add signals.
            gold = parse(f"\\boxed{{{reference}}}", extraction_config=wanted, parsing_timeout=None)
            got = parse(text, extraction_config=wanted, parsing_timeout=None)
            reply = bool(verify(gold, got, timeout_seconds=None)) if got else None
        except Exception as error:  # noqa: BLE001 - whatever sympy raises is a reply, not an end
            reply = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
