from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.toy import episodes
from triloop.errors import StoreError
from triloop.store import Appended, Row, Run, completion_row, event_row, timing_row


def row(id: str, v: object = 1, *, round: int = 1, kind: str = "thing", parents: tuple[str, ...] = ()) -> Row:
    return Row(id=id, round=round, kind=kind, payload={"v": v}, parents=parents)


def nothing(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w")


@pytest.fixture
def run(run_dir: Path) -> Iterator[Run]:
    with Run.create(run_dir, {}, {}) as run:
        yield run


def reopened(run: Run) -> Run:
    run.close()
    return Run.open(run.path, write=True)


def test_rows_come_back_in_order(run: Run) -> None:
    run.append([row("b"), row("a", parents=("b",))])
    run.append([row("c", round=2, kind="other")])
    assert [r.id for r in run.rows()] == ["b", "a", "c"]
    assert [r.id for r in run.rows("thing")] == ["b", "a"]
    assert [r.id for r in run.rows(round=2)] == ["c"]
    assert [r.id for r in run.rows("thing", 2)] == []
    assert [r.id for r in run.rows(limit=2)] == ["b", "a"]
    (a,) = (r for r in run.rows() if r.id == "a")
    assert a.parents == ("b",)
    assert a.payload == {"v": 1}
    assert a.time is not None
    assert abs(a.time - time.time()) < 60


def test_many_rows_are_read_page_by_page(run: Run) -> None:
    run.append([row(f"r{i}", i) for i in range(4500)])
    assert [r.payload["v"] for r in run.rows()] == list(range(4500))
    assert len(list(run.rows(limit=4100))) == 4100
    assert len(run.log.find([f"r{i}" for i in range(4500)])) == 4500


def test_appending_again_does_nothing(run: Run) -> None:
    assert run.append([row("a"), row("b")]) == Appended(added=2, same=0, superseded=0)
    before = run.digest()
    assert run.append([row("a"), row("b"), row("b")]) == Appended(added=0, same=2, superseded=0)
    assert run.digest() == before
    assert len(list(run.rows(state=None))) == 2


def test_another_content_supersedes_and_the_old_row_is_kept(run: Run) -> None:
    run.append([row("a", "old")])
    before = run.digest()
    assert run.append([row("a", "new")]) == Appended(added=1, same=0, superseded=1)
    assert [(r.payload["v"], r.state) for r in run.rows(state=None)] == [("old", "orphaned"), ("new", "live")]
    assert [r.payload["v"] for r in run.rows(state="orphaned")] == ["old"]
    assert run.digest() != before
    run.append([row("a", "old")])
    assert run.digest() == before


def test_one_batch_may_repeat_a_row_and_not_contradict_itself(run: Run) -> None:
    with pytest.raises(StoreError, match="two different rows of one batch have the id 'a'"):
        run.append([row("a", 1), row("a", 2)])
    assert list(run.rows()) == []


def test_an_id_belongs_to_one_kind(run: Run) -> None:
    run.append([row("a")])
    with pytest.raises(StoreError, match="row id 'a' is taken by a thing"):
        run.append([row("b"), row("a", kind="other")])
    assert [r.id for r in run.rows()] == ["a"], "the failed batch left something"


def test_the_digest_ignores_order_time_events_and_timings(run: Run, tmp_path: Path) -> None:
    run.append([row("a"), row("b")])
    with Run.create(tmp_path / "other", {"x": 1}, {}) as other:
        other.append([timing_row(1, {"seconds": 3.0}), event_row(1, "resumed", {"pid": 3})])
        other.append([Row(id="b", round=1, kind="thing", payload={"v": 1}, time=1.0)])
        assert other.digest() != run.digest()
        other.append([row("a")])
        assert other.digest() == run.digest()


def test_the_digest_of_many_rows_does_not_depend_on_its_pages(run: Run, tmp_path: Path) -> None:
    rows = [row(f"{i * 7919 % 4999}", i) for i in range(4999)]
    run.append(rows)
    with Run.create(tmp_path / "other", {}, {}) as other:
        other.append(list(reversed(rows)))
        assert other.digest() == run.digest()


def test_a_prompt_drawn_again_in_a_later_round_is_the_same_row(run: Run) -> None:
    run.append([row("p", kind="prompt", round=1)])
    assert run.append([row("p", kind="prompt", round=5)]).same == 1


def test_a_replay_that_went_another_way_leaves_nothing_of_the_first(run: Run) -> None:
    run.append([row("1/a")])
    run.commit_checkpoint(1, nothing)
    run.append([row("2/a", round=2), row("2/b", round=2), event_row(2, "slow")])
    run.append([row("2/said", round=2, parents=("2/a",))], durable=True)
    run.append([row("3/a", round=3)])
    again = reopened(run)
    assert again.append([row("2/a", round=2), row("2/c", round=2)]) == Appended(added=1, same=1, superseded=0)
    again.commit_checkpoint(2, nothing)
    assert [r.id for r in again.rows("thing")] == ["1/a", "2/a", "2/said", "3/a", "2/c"]
    assert [r.id for r in again.rows(state="orphaned")] == ["2/b"]
    assert again.rewind(2) == 1
    assert [r.id for r in again.rows(state="orphaned")] == ["2/b", "3/a"]
    assert len(list(again.rows("event"))) == 1
    again.close()


def test_what_a_person_said_of_a_text_does_not_pass_on_to_another_text(run: Run) -> None:
    run.append([row("a", "text seen"), row("b", "other text")])
    run.append([row("said/a", parents=("a",)), row("said/b", parents=("b",))], durable=True)
    run.append([row("a", "another text")])
    assert [r.id for r in run.rows(state="orphaned")] == ["a", "said/a"]
    assert [r.id for r in run.rows()] == ["b", "said/b", "a"]


def test_rewind_orphans_later_rows_and_checkpoints(run: Run) -> None:
    for round in (1, 2, 3):
        run.append([row(f"{round}/a", round=round)])
        run.commit_checkpoint(round, nothing, gold=1.0 - round / 10)
    digest = run.digest()
    assert run.rewind(1) == 2
    assert [c.round for c in run.checkpoints()] == [1]
    assert [r.id for r in run.rows()] == ["1/a"]
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["round_000001"]
    run.append([row(f"{round}/a", round=round) for round in (2, 3)])
    assert run.digest() == digest


def test_failed_transaction_leaves_nothing(run: Run) -> None:
    run.append([row("a")])
    with pytest.raises(StoreError, match="row 'bad'"):
        run.append([row("b"), row("bad", object())])
    with pytest.raises(KeyboardInterrupt), run._database.transaction("append") as connection:
        connection.execute("DELETE FROM events")
        raise KeyboardInterrupt
    assert [r.id for r in run.rows()] == ["a"]


def test_durable_rows_are_written_with_full_synchronisation(run: Run) -> None:
    statements: list[str] = []
    run._database._connection.set_trace_callback(statements.append)
    run.append([row("a")])
    run.append([row("b")], durable=True)
    assert [s for s in statements if "synchronous" in s] == ["PRAGMA synchronous = NORMAL", "PRAGMA synchronous = FULL"]


def test_a_reader_sees_whole_batches_while_the_writer_writes(run: Run) -> None:
    with Run.open(run.path, write=False) as reader:
        for i in range(5):
            run.append([row(f"{i}/{j}") for j in range(3)])
            assert len(list(reader.rows())) == 3 * (i + 1)
        with run._database.transaction("append") as connection:
            connection.execute("UPDATE events SET state = 'orphaned'")
            assert len(list(reader.rows())) == 15, "a reader waits for nobody and sees nothing unfinished"
        assert list(reader.rows()) == []
        with pytest.raises(StoreError, match="opened to read"):
            reader.append([row("x")])


def test_damage_is_found_and_named(run: Run) -> None:
    run.append([row("a"), row("b", "word " * 500)])
    assert run.damage() == []
    connection = sqlite3.connect(run.path / "run.db")
    connection.execute("UPDATE events SET payload = ? WHERE id = 'a'", (b'{"v":2}',))
    connection.execute("UPDATE events SET payload = substr(payload, 1, 9) WHERE id = 'b'")
    connection.commit()
    connection.close()
    assert run.damage() == ["row 'a' of kind 'thing' is damaged", "row 'b' of kind 'thing' is damaged"]


def test_a_closed_run_says_so(run: Run) -> None:
    run.close()
    run.close()
    with pytest.raises(StoreError, match="open it again"):
        run.append([row("a")])


def test_reading_a_round_uses_the_index(run: Run) -> None:
    run.append([row("a"), row("b", kind="other")])
    asked: list[str] = []
    run._database._connection.set_trace_callback(asked.append)
    list(run.rows(round=1))
    list(run.rows("thing", 1))
    run._database._connection.set_trace_callback(None)
    plans: list[tuple[Any, ...]] = []
    for sql in asked:
        plans += run._database.query(f"EXPLAIN QUERY PLAN {sql}")
    assert not [p for p in plans if "SCAN events" in p[3] and "COVERING" not in p[3]]


def test_a_batch_of_512_completions_is_quick(run: Run) -> None:
    """About 8 ms on a free core; the limit leaves room for a loaded machine."""
    batches = [[completion_row(e.completion) for e in episodes(r, "s", 512)] for r in range(5)]
    best = min(_seconds(run, batch) for batch in batches)
    assert best < 0.05, f"{best * 1000:.0f} ms"


def _seconds(run: Run, batch: list[Row]) -> float:
    start = time.perf_counter()
    run.append(batch)
    return time.perf_counter() - start
