"""A tiny deterministic loop over a real run folder, for tests that kill it.

As a program (``python toy.py FOLDER``) it forks one child per failpoint, kills it there, resumes it, and prints what
became of it as JSON: one interpreter start for all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from triloop.records import Completion, Episode, Feedback, Prompt, Verdict
from triloop.store import Row, Run, episode_rows, event_row, failpoints, metrics_row, timing_row, verdict_row

ROUNDS = 7
EVERY = 2
REWOUND_AT = 5
CASES = [f"{name}:1" for name in failpoints.NAMES] + [
    f"{name}:3" for name in failpoints.NAMES if name.startswith(("append", "checkpoint"))
]


def digest_of(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def episodes(round: int, state: str, n: int = 6) -> list[Episode]:
    made = []
    for i in range(n):
        prompt = Prompt(id=f"p{(round + i // 2) % 5}", text="1 + 1 =", answer="2", meta={"level": [1, 2]})
        mark = digest_of(state, round, i)
        completion = Completion(
            id=f"{round}/{prompt.id}/{i}",
            prompt_id=prompt.id,
            round=round,
            index=i,
            prompt_tokens=(1, 2, 3),
            tokens=tuple(mark.encode()[:8]),
            logps=(-0.5,) * 8,
            mask=(True,) * 8,
            text=mark,
            finish="stop",
            policy_version=round,
        )
        feedback = Feedback(value=float(int(mark[0], 16) % 3 - 1), reason="toy", source="env:toy")
        made.append(Episode(prompt=prompt, completion=completion, feedback=(feedback,), reward=feedback.value))
    return made


def acknowledge(path: Path, rows: list[Row]) -> None:
    """Note outside the store which rows ``append`` has returned for."""
    with path.with_suffix(".acknowledged").open("a") as file:
        file.write("".join(f"{row.id}\n" for row in rows))


def play(path: Path, *, durable: bool = False) -> str:
    """Run, or go on with, the toy loop; returns the digest of the finished run."""
    try:
        run = Run.open(path, write=True)
    except ValueError:  # nothing there yet, or a creation cut short
        run = Run.create(path, {"rounds": ROUNDS, "lr": 1e-5}, {"threads": 1})
    with run:
        latest = run.latest_checkpoint()
        state = {"round": 0, "weights": "0", "rewound": False}
        if latest is not None:
            state = json.loads((latest.path / "state.json").read_text())
            run.append([event_row(latest.round, "resumed")])
        while state["round"] < ROUNDS:
            _round(run, path, state, durable)
        run.rewind(ROUNDS)
        return run.digest()


def _round(run: Run, path: Path, state: dict[str, object], durable: bool) -> None:
    round = int(str(state["round"])) + 1
    drawn = episodes(round, str(state["weights"]))
    for rows in ([*episode_rows(drawn[:3])], [*episode_rows(drawn[3:])]):
        run.append(rows, durable=durable)
        acknowledge(path, rows)
    weights = digest_of(state["weights"], [e.completion.text for e in drawn])
    rows = [
        metrics_row(round, {"reward": sum(e.reward or 0.0 for e in drawn) / len(drawn)}),
        verdict_row(Verdict(guard="toy", round=round, value=1, reason="fine")),
        timing_row(round, {"seconds": time.time()}),
    ]
    run.append(rows)
    acknowledge(path, rows)
    if round == REWOUND_AT and not state["rewound"]:
        back = run.best_checkpoint()
        assert back is not None
        run.rewind(back.round)
        saved = json.loads((back.path / "state.json").read_text())
        state.update(saved, rewound=True, weights=digest_of(saved["weights"], "rolled back"))
        _commit(run, back.round, state)
        return
    state.update(round=round, weights=weights)
    if round % EVERY == 0 or round == ROUNDS:
        _commit(run, round, state)


def _commit(run: Run, round: int, state: dict[str, object]) -> None:
    def write(folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps({**state, "round": round}))
        (folder / "nested").mkdir()
        (folder / "nested" / "weights.bin").write_bytes(str(state["weights"]).encode() * 50)

    run.commit_checkpoint(round, write, gold=0.9 if round == 2 else 0.1 * round)


def killed_at(path: Path, failpoint: str) -> dict[str, object]:
    """Kill the toy loop at ``failpoint`` (``name:count``), resume it, and say what is left."""
    status = _forked(path, failpoint)
    survived = 0 if not (path / "run.db").exists() else _resumable(path)
    digest = play(path)
    with Run.open(path, write=False) as run:
        known = {row.id for row in run.rows(state=None)}
        noted = path.with_suffix(".acknowledged").read_text().split()
        folders = sorted(p.name for p in (path / "checkpoints").iterdir())
        return {
            "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
            "survived": survived,
            "digest": digest,
            "weights": weights_of(path),
            "lost": sorted(set(noted) - known),
            "folders": folders,
            "expected_folders": sorted(c.path.name for c in run.checkpoints()),
            "damage": run.damage(),
        }


def again(root: Path) -> dict[str, object]:
    """Kill the loop, and every resume of it, after a few steps more, until it is through."""
    path, deaths = root / "again", 0
    while _forked(path, "append.committed:8") != 0:
        deaths += 1
    return {"deaths": deaths, "digest": play(path), "weights": weights_of(path)}


def weights_of(path: Path) -> str:
    """The manifest's hash of the last checkpoint: of all its files."""
    with Run.open(path, write=False) as run:
        last = run.latest_checkpoint()
        assert last is not None
        return last.sha256


def _resumable(path: Path) -> int:
    """A reader looks at the dead run first, as a person would."""
    try:
        with Run.open(path, write=False) as run:
            return len(list(run.rows()))
    except ValueError:
        return 0


def _forked(path: Path, failpoint: str) -> int:
    child = os.fork()
    if child == 0:
        os.environ[failpoints.VARIABLE] = failpoint
        failpoints.rearm()
        play(path)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main() -> None:
    root = Path(sys.argv[1])
    whole = play(root / "whole")
    results = {case: killed_at(root / case.replace(":", "_"), case) for case in CASES}
    print(json.dumps({"whole": whole, "weights": weights_of(root / "whole"), "results": results, "again": again(root)}))


if __name__ == "__main__":
    main()
