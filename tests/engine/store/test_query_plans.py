"""
Claim, rescue and the change feed use their indexes, with 50,000 chunks in the ledger.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fix_store import World
from sqlalchemy import Connection, event, insert

from milkrun.status import FeedEvents
from milkrun_engine.store.schema import chunks, jobs

JOBS, CHUNKS_A_JOB = 50, 1_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """50 jobs of 1,000 chunks: most committed, some ready, a few leased."""
    world = World.open(tmp_path_factory.mktemp("large"))
    first = world.prepared(8, labels={"team": "a"})
    with world.store.database.write() as connection:
        job = connection.execute(jobs.select().where(jobs.c.id == first)).mappings().one()
        chunk = connection.execute(chunks.select()).mappings().one()
        copies = [
            {**job, "id": f"job_{number}", "status": "running", "prepared": number % 2 == 0, "change_number": number}
            for number in range(JOBS)
        ]
        connection.execute(insert(jobs), copies)
        connection.execute(insert(chunks), list(_chunks(dict(chunk))))
        connection.exec_driver_sql("UPDATE tenants SET change_number = 100")
    yield world
    world.close()


def _chunks(like: dict[str, Any]) -> Iterator[dict[str, Any]]:
    del like["id"]
    for job in range(JOBS):
        for number in range(CHUNKS_A_JOB):
            state = "committed" if number < 900 else "leased" if number < 902 else "ready"
            yield {
                **like, "job_id": f"job_{job}", "number": number, "state": state, "first_index": 8 * number,
                "rank": float(job), "pool": ("echo", "other")[job % 2], "window": number // 100,
                "lease_expires_at": 0.0 if state == "leased" else None,
            }  # fmt: skip


@pytest.fixture
def plans(large: World) -> Callable[[Callable[[], Any]], list[str]]:
    """How SQLite runs the statements of a verb: one line a table that it reads."""

    def explain(verb: Callable[[], Any]) -> list[str]:
        statements: list[tuple[str, Any]] = []

        def note(_connection: Connection, _cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
            if sql.startswith(("SELECT", "UPDATE", "WITH")):
                statements.append((sql, parameters))

        database = large.store.database
        engines = database.writer, database.reader
        for engine in engines:
            event.listen(engine, "before_cursor_execute", note)
        try:
            verb()
        finally:
            for engine in engines:
                event.remove(engine, "before_cursor_execute", note)
        with database.read() as connection:
            return [
                row[3]
                for sql, parameters in statements
                for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)
            ]

    return explain


def scans(plan: list[str]) -> list[str]:
    """Steps that read a whole table; a partial index holds little, and so does `due`, what a claim has just found."""
    return [step for step in plan if step.startswith("SCAN") and "INDEX" not in step and step != "SCAN due"]


def test_a_claim_walks_the_ready_chunks_in_their_order(large: World, plans: Any) -> None:
    plan = plans(lambda: large.store.chunks.claim("echo", "one", 4))
    large.store.chunks.release("one")
    assert any("ix_chunks_ready" in step for step in plan), plan
    assert scans(plan) == []
    assert not any("TEMP B-TREE" in step for step in plan), "no sorting: the index has the order"


def test_a_rescue_looks_only_at_leased_chunks(large: World, plans: Any) -> None:
    for but in ((), (1, 2)):
        plan = plans(lambda but=but: large.store.chunks.expired(but))
        assert any("ix_chunks_leased" in step for step in plan), plan
        assert scans(plan) == []
    with large.store.database.write() as connection:
        before = connection.exec_driver_sql("SELECT id FROM chunks WHERE state = 'leased'").scalars().all()
    plan = plans(large.store.chunks.rescue)
    assert any("ix_chunks_leased" in step for step in plan), plan
    with large.store.database.write() as connection:
        connection.exec_driver_sql(
            f"UPDATE chunks SET state = 'leased', lease_expires_at = 0 WHERE id IN ({','.join(map(str, before))})"
        )


@pytest.mark.parametrize("on", list(FeedEvents))
def test_the_change_feed_reads_on_from_its_number(large: World, plans: Any, on: FeedEvents) -> None:
    cursor = large.store.feed.cursor(large.tenant)
    plan = plans(lambda: large.store.feed.changes(large.tenant, cursor, on, {}, 100))
    column = "change_number" if on is FeedEvents.progress else "status_number"
    assert any(f"ix_jobs_tenant_id_{column}" in step for step in plan), plan
    assert scans(plan) == []


def test_due_callbacks_are_found_by_index(large: World, plans: Any) -> None:
    plan = plans(lambda: large.store.callbacks.due(32, but=["callback_1"], not_to=["http://a.test"]))
    assert any("ix_callbacks_due" in step for step in plan), plan
    assert scans(plan) == []
    assert not any("TEMP B-TREE" in step for step in plan), "no sorting: the index has the order"


def test_a_cancel_by_label_finds_its_jobs_by_index(large: World, plans: Any) -> None:
    plan = plans(lambda: large.store.jobs.cancel_labelled(large.tenant, {"nobody": "has this"}, limit=100))
    assert any("ix_job_labels_tenant_id_name_value" in step for step in plan), plan
    assert scans(plan) == []


def test_readers_of_results_find_windows_and_chunks_by_index(large: World, plans: Any) -> None:
    plan = plans(lambda: large.store.chunks.readable(large.tenant, "job_3"))
    plan += plans(lambda: large.store.chunks.windows("job_3", 10, 20))
    plan += plans(lambda: large.store.chunks.files("job_3", 2))
    assert any("ix_chunks_first" in step for step in plan), plan
    assert any("ix_chunks_window" in step for step in plan), plan
    assert scans(plan) == []


def test_the_preparer_and_the_job_list_use_their_indexes(large: World, plans: Any) -> None:
    assert any("ix_jobs_unprepared" in step for step in plans(large.store.jobs.next_to_prepare))
    plan = plans(lambda: large.store.jobs.page(large.tenant, limit=10))
    assert any("ix_jobs_tenant_id_created_at" in step for step in plan), plan


def test_the_sweeper_asks_for_names_by_index(large: World, plans: Any) -> None:
    names = [f"jobs/job_{job}/{number}.in_x.parquet" for job in range(3) for number in range(100)] + ["inputs/x"]
    plan = plans(lambda: large.store.named_blobs(names))
    assert 3 == sum("(job_id=? AND number=?)" in step for step in plan), plan
    assert any("ix_jobs_input_blob" in step for step in plan), plan
    assert any("ix_input_files_blob" in step for step in plan), plan
    assert not any(step.startswith("SCAN") for step in plan), plan


def test_looking_for_work_reads_no_committed_chunk(large: World, plans: Any) -> None:
    plan = plans(large.store.chunks.busy_pools)
    assert scans(plan) == [], plan


def test_a_round_of_the_dispatcher_takes_milliseconds(large: World) -> None:
    """Generous bounds: they catch a scan of the table, not a slow machine."""
    for verb in (
        lambda: large.store.chunks.claim("echo", "one", 4),
        lambda: large.store.chunks.release("one"),
        large.store.chunks.busy_pools,
        large.store.chunks.expired,
        large.store.jobs.next_to_prepare,
    ):
        started = time.perf_counter()
        verb()
        assert time.perf_counter() - started < 0.25
