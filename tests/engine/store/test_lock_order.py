"""
Transactions that change several jobs lock them by id, then bump the tenant's counter, then touch only those.

SQLite has one writer and never shows a wrong order; Postgres would answer one with a deadlock.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from fix_store import World
from sqlalchemy import Connection, event
from sqlalchemy.dialects import postgresql


@contextmanager
def statements(world: World) -> Iterator[list[str]]:
    """What the writer runs, as Postgres would get it."""
    found: list[str] = []

    def note(_connection: Connection, statement: Any, *_: Any) -> None:
        found.append(" ".join(str(statement.compile(dialect=postgresql.dialect())).split()))

    event.listen(world.store.database.writer, "before_execute", note)
    try:
        yield found
    finally:
        event.remove(world.store.database.writer, "before_execute", note)


def publish(world: World, job_ids: Sequence[str]) -> list[str]:
    return world.store.feed.publish_progress(job_ids)


def start(world: World, job_ids: Sequence[str]) -> list[str]:
    return world.store.chunks.start_jobs(job_ids)


@pytest.mark.parametrize("verb", [publish, start])
def test_jobs_are_locked_by_id_before_the_counter(world: World, verb: Callable[..., list[str]]) -> None:
    job_ids = [world.prepared(8) for _ in range(3)]
    with statements(world) as found:
        assert [world.tenant] == verb(world, job_ids)
    first, *_ = found
    assert first.startswith("SELECT jobs.id"), found
    assert first.endswith("ORDER BY jobs.id FOR UPDATE"), found
    counter = next(at for at, statement in enumerate(found) if statement.startswith("UPDATE tenants"))
    assert all(statement.startswith("UPDATE jobs") for statement in found[1:counter])
    assert 1 == sum("tenants" in statement for statement in found), "one bump a tenant"
    assert all(statement.startswith("UPDATE jobs") for statement in found[counter + 1 :])


def test_a_cancel_by_label_locks_all_its_jobs_before_their_chunks_and_the_counter_last(world: World) -> None:
    job_ids = [world.prepared(8, labels={"team": "a"}) for _ in range(3)]
    with statements(world) as found:
        stopped = world.store.jobs.cancel_labelled(world.tenant, {"team": "a"}, limit=10)
    assert sorted(job_ids) == [job.id for job in stopped]
    assert found[1].endswith("ORDER BY jobs.id FOR UPDATE"), found
    tables = [statement.split()[1] for statement in found if statement.startswith("UPDATE")]
    assert ["jobs", "chunks"] * 3 + ["tenants", "jobs"] == tables


def test_jobs_of_several_tenants_are_locked_before_the_first_counter(world: World) -> None:
    world.store.tenants.ensure("another")
    job_ids = [world.submit(8).job.id, world.store.jobs.submit(world.a_job(8, tenant_id="another")).job.id]
    with statements(world) as found:
        assert ["another", world.tenant] == publish(world, job_ids)
    tables = [statement.split()[1] for statement in found]
    assert ["jobs.id,", "tenants", "jobs", "tenants", "jobs"] == tables
