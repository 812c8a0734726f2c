import gc
import math
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from triloop.errors import JudgeError, VerifierError
from triloop.records import Feedback, Prompt, Turn
from triloop.sources.verifier import TIMED_OUT, UserVerifier, check_failures


@pytest.fixture
def verifier(tmp_path):
    """Write a file, get its verifier; all are closed at the end."""
    made = []

    def make(code, function="check", timeout=5.0):
        path = tmp_path / f"my{len(made)}.py"
        path.write_text(textwrap.dedent(code))
        made.append(UserVerifier(f"{path}:{function}", timeout=timeout))
        return made[-1]

    yield make
    for v in made:
        v.close()


def prompts(n, **fields):
    return [Prompt(id=f"p{i}", text=f"problem {i}", **fields) for i in range(n)]


def judged(v, *texts, **fields):
    return v.judge(prompts(len(texts), **fields), list(texts))


def test_values_and_what_they_mean(verifier):
    v = verifier(
        """
        from triloop.records import Feedback
        def check(prompt, completion):
            return {"int": 1, "minus": -1, "zero": 0, "part": 0.25, "true": True, "false": False,
                    "record": Feedback(value=-0.5, reason="half wrong", breakdown={"form": 1, "sum": -1},
                                       confidence=0.5, cost=2)}[completion]
        """
    )
    out = judged(v, "int", "minus", "zero", "part", "true", "false", "record")
    assert [f.value for f in out] == [1.0, -1.0, 0.0, 0.25, 1.0, -1.0, -0.5]
    assert [f.kind for f in out[:4]] == ["ternary", "ternary", "ternary", "scalar"]
    assert all(f.failure is None for f in out)
    assert out[-1].reason == "half wrong"
    assert dict(out[-1].breakdown) == {"form": 1.0, "sum": -1.0}
    assert (out[-1].confidence, out[-1].cost) == (0.5, 2.0)
    assert {f.source for f in out} == {v.name} == {"verifier:my0.py:check"}


def test_numpy_scalars(verifier):
    v = verifier(
        """
        import numpy as np
        def check(prompt, completion):
            return {"f": np.float32(0.5), "i": np.int64(-1), "b": np.bool_(True)}[completion]
        """
    )
    assert [f.value for f in judged(v, "f", "i", "b")] == [0.5, -1.0, 1.0]


def test_every_mishap_fails_its_own_sample_only(verifier):
    v = verifier(
        """
        import os, sys
        from triloop.records import Feedback
        def check(prompt, completion):
            match completion:
                case "raise": return 1 / 0
                case "nan": return float("nan")
                case "inf": return float("inf")
                case "big": return 2
                case "huge": return 10 ** 400
                case "none": return None
                case "text": return "correct"
                case "exit": sys.exit(0)
                case "interrupt": raise KeyboardInterrupt
                case "die": os._exit(3)
                case "kill": os.kill(os.getpid(), 9)
                case "nothing": return Feedback(value=None)
                case "told": return Feedback(value=None, failure="no network")
                case "parts": return Feedback(value=1, breakdown={"x": float("nan")})
                case "wrong": return Feedback(value="yes")
            return 1
        """
    )
    expected = {
        "raise": "ZeroDivisionError: division by zero (my0.py line 6)",
        "nan": "returned nan",
        "inf": "returned inf",
        "big": "returned 2.0; expected a number in [-1, 1]",
        "huge": "OverflowError",
        "none": "returned NoneType",
        "text": "returned str ('correct')",
        "exit": "SystemExit",
        "interrupt": "KeyboardInterrupt",
        "die": "ended with code 3",
        "kill": "killed by signal 9",
        "nothing": "without a value and without a failure",
        "told": "no network",
        "parts": "breakdown",
        "wrong": "ValueError",
    }
    texts = [t for name in expected for t in (name, "fine")]
    out = judged(v, *texts)
    for text, feedback in zip(texts, out, strict=True):
        if text == "fine":
            assert (feedback.value, feedback.failure) == (1.0, None)
        else:
            assert feedback.value is None, text
            assert expected[text] in feedback.failure, text


def test_a_call_that_does_not_end_is_killed_and_the_next_one_judged(verifier):
    v = verifier("def check(p, c):\n    while c == 'hang': pass\n    return 1", timeout=0.4)
    start = time.monotonic()
    out = judged(v, "a", "hang", "b")
    assert [f.value for f in out] == [1.0, None, 1.0]
    assert out[1].failure == f"{TIMED_OUT} after 0.4 s"
    assert time.monotonic() - start < 2.5


def test_a_verifier_that_never_ends_does_not_stall_a_batch(verifier):
    v = verifier("def check(p, c):\n    while True: pass", timeout=0.3)
    start = time.monotonic()
    out = judged(v, *["x"] * 256)
    assert time.monotonic() - start < 3
    assert all(f.value is None for f in out)
    assert sum(f.failure.startswith(TIMED_OUT) for f in out) == 3
    assert "not judged" in out[-1].failure
    with pytest.raises(JudgeError, match=r"256 of 256 judgements of verifier:my0\.py:check failed") as error:
        check_failures(out)
    assert "timed out after 0.3 s" in str(error.value)


def test_check_failures_tolerates_half():
    bad, good = Feedback(value=None, failure="x"), Feedback(value=0.0)
    check_failures([])
    check_failures([bad, good])
    with pytest.raises(JudgeError):
        check_failures([bad, bad, good])
    with pytest.raises(JudgeError):
        check_failures([bad, good], max_failure_share=0.1)


def test_what_it_prints_is_no_judgement_and_does_not_block_it(verifier):
    v = verifier(
        """
        import os, sys
        def check(prompt, completion):
            print('{"value": -1}' * 100_000)
            print("x" * 1_000_000, file=sys.stderr)
            os.write(1, b"\\x00\\x00\\x00\\x02{}")
            if completion == "die":
                print("out of luck")
                sys.stdout.flush()
                os._exit(1)
            return 1
        """
    )
    out = judged(v, "a", "die", "b")
    assert [f.value for f in out] == [1.0, None, 1.0]
    assert "last printed: {}out of luck" in out[1].failure


def test_garbage_on_the_reply_pipe(verifier):
    v = verifier(
        """
        import os, sys
        def check(prompt, completion):
            if completion != "fine":
                os.write(int(sys.argv[-1]), completion.encode())
            return 1
        """
    )
    forged = '\x00\x00\x00\x18{"id": 9999, "value": 1}'
    out = judged(v, "garbage garbage", "fine", "\x00\x00\x00\x02{]", "fine", "\x00\x00\x00\x01{", forged, "fine")
    assert [f.value for f in out] == [None, 1.0, None, 1.0, None, None, 1.0]


def test_a_fork_gives_one_judgement_and_no_survivor(verifier):
    v = verifier(
        """
        import os, time
        def check(prompt, completion):
            if os.fork() == 0 and completion == "sleep":
                time.sleep(60)
            return 1
        """
    )
    out = judged(v, *["a"] * 20, "sleep", "b")
    assert [f.value for f in out] == [1.0] * 22


def test_death_is_seen_although_a_grandchild_holds_the_pipe(verifier):
    v = verifier(
        """
        import os, time
        def check(prompt, completion):
            if os.fork() == 0:
                time.sleep(60)
            os._exit(7)
        """
    )
    start = time.monotonic()
    assert "ended with code 7" in judged(v, "a")[0].failure
    assert time.monotonic() - start < 3


def test_optional_arguments(verifier):
    v = verifier(
        """
        from triloop.records import Feedback
        def said(*what): return Feedback(value=1, reason=repr(what))
        def third(prompt, completion, gold): return said(gold)
        def named(prompt, completion, *, answer, meta): return said(answer, meta)
        def plain(prompt, completion, strict=True): return said(strict)
        def all(prompt, completion, **rest): return said(sorted(rest))
        def turns(prompt, completion, turns): return said(prompt, turns)
        def star(*two): return said(*two)
        class Check:
            def __call__(self, prompt, completion, answer=None): return said(answer)
        obj = check = Check()
        """
    )
    path = str(v._path)

    def reason(function, **fields):
        with UserVerifier(f"{path}:{function}") as own:
            return judged(own, "text", **{"answer": "42", "meta": {"k": 1}, **fields})[0].reason

    assert reason("third") == "('42',)"
    assert reason("named") == "('42', {'k': 1})"
    assert reason("plain") == "(True,)"
    assert reason("all") == "(['answer', 'meta', 'turns'],)"
    assert reason("star") == "('problem 0', 'text')"
    assert reason("obj") == "('42',)"
    chat = (Turn(role="system", text="be brief"), Turn(role="user", text="2+2?"))
    assert "system: be brief\\nuser: 2+2?" in reason("turns", turns=chat)


@pytest.mark.parametrize(
    ("code", "function", "expected"),
    [
        ("def check(p, c) return 1", "check", "SyntaxError: expected ':' (bad.py line 1)"),
        ("x = 1 / 0", "check", "ZeroDivisionError: division by zero (bad.py line 1)"),
        ("import sys; sys.exit(0)", "check", "SystemExit: 0"),
        ("import os; os._exit(0)", "check", "ended with code 0"),
        ("import not_installed", "check", "No module named 'not_installed'"),
        ("def other(p, c): return 1\ndef third(p, c): return 1", "check", "its functions: other, third"),
        ("check = 5", "check", "'check' is a int, not a function"),
        ("def check(completion): return 1", "check", "must take (prompt, completion)"),
        ("def check(p, c, a, b): return 1", "check", "needs 'b', which nobody gives"),
        ("def check(p, c, *, score): return 1", "check", "needs 'score', which nobody gives"),
        ("async def check(p, c): return 1", "check", "async"),
    ],
)
def test_what_cannot_be_loaded_says_why(tmp_path, code, function, expected):
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(VerifierError) as error:
        UserVerifier(f"{tmp_path / 'bad.py'}:{function}")
    assert expected in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("spec", ["my.py", "my:check", ":check", "my.py:", "my.py:a b", ""])
def test_bad_names(spec):
    with pytest.raises(VerifierError, match=r"FILE\.py:FUNCTION"):
        UserVerifier(spec)


def test_missing_file_and_bad_limit(tmp_path):
    with pytest.raises(VerifierError, match="no verifier file"):
        UserVerifier(f"{tmp_path}/absent.py:check")
    with pytest.raises(VerifierError, match="above 0"):
        UserVerifier("my.py:check", timeout=0)


def test_an_import_that_does_not_end(tmp_path):
    (tmp_path / "slow.py").write_text("while True: pass")
    with pytest.raises(VerifierError, match=r"timed out after 0\.5 s"):
        UserVerifier(f"{tmp_path}/slow.py:check", load_timeout=0.5)


def test_the_file_may_vanish_during_a_run(verifier):
    v = verifier("import os\ndef check(p, c):\n    os._exit(1)")
    v._path.unlink()
    out = judged(v, "a", "b")
    assert "ended with code 1" in out[0].failure
    assert "could not be started again" in out[1].failure


def test_neighbours_can_be_imported(tmp_path):
    (tmp_path / "rules.py").write_text("LIMIT = 3")
    (tmp_path / "own.py").write_text("from rules import LIMIT\ndef check(p, c): return len(c) <= LIMIT")
    with UserVerifier(f"{tmp_path}/own.py:check") as v:
        assert [f.value for f in judged(v, "abc", "abcd")] == [1.0, -1.0]


def test_texts_survive_the_way(verifier):
    v = verifier("def check(p, c, answer):\n    return c == answer")
    for text in ["", "é – 中文 🙂", "\ud800 lone", "\x00\n\r", "x" * 300_000]:
        assert judged(v, text, answer=text)[0].value == 1.0


def test_a_request_that_is_not_read_times_out(verifier):
    v = verifier("def check(p, c):\n    while True: pass", timeout=0.3)
    os.kill(v._worker._process.pid, 19)  # SIGSTOP
    assert judged(v, "x" * 500_000)[0].failure.startswith(TIMED_OUT)


def test_an_idle_death_costs_no_sample(verifier):
    v = verifier("def check(p, c): return 1")
    v._worker._process.kill()
    v._worker._process.wait()
    assert judged(v, "a")[0].value == 1.0
    v.close()
    assert judged(v, "a")[0].value == 1.0


def test_hash_order_repeats_after_a_restart(verifier):
    v = verifier(
        "from triloop.records import Feedback\ndef check(p, c): return Feedback(value=1, reason=str({'a','b','c','d'}))"
    )
    first = judged(v, "a")
    v.close()
    assert judged(v, "a") == first


def _gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def _soon(condition):
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_no_process_outlives_its_verifier(verifier):
    v = verifier("def check(p, c): return 1")
    pid = v._worker._process.pid
    v.close()
    assert _gone(pid)
    v.close()
    unclosed = UserVerifier(f"{v._path}:check")
    pid = unclosed._worker._process.pid
    del unclosed
    gc.collect()
    assert _gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_hanging_verifier_dies_with_a_killed_parent(tmp_path):
    (tmp_path / "hang.py").write_text("def check(p, c):\n    while True: pass")
    code = f"""
from triloop.records import Prompt
from triloop.sources.verifier import UserVerifier
v = UserVerifier({str(tmp_path / "hang.py")!r} + ":check", timeout=60)
print(v._worker._process.pid, flush=True)
v.judge([Prompt(id="p", text="")], [""])
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _soon(lambda: _gone(child))


def test_a_batch_is_cheap(verifier):
    v = verifier("def check(p, c): return 1")
    start = time.monotonic()
    out = judged(v, *["some words of a completion"] * 256)
    assert time.monotonic() - start < 1.0  # about 0.04 s on an idle machine
    assert sum(f.value for f in out) == 256
    assert not math.isnan(out[0].confidence)


def test_a_huge_answer_is_told_in_short_and_at_once(verifier):
    """Its ``repr`` is not made whole: that took a third of a second and three times its size a judgement."""
    v = verifier("TEXT = 'x' * 200_000_000\ndef check(prompt, completion): return [TEXT, TEXT]", timeout=60.0)
    began = time.monotonic()
    out = judged(v, "a", "b", "c", "d")
    assert time.monotonic() - began < 1.0
    assert all(f.failure.startswith("returned list (['xxx") and len(f.failure) < 300 for f in out)
