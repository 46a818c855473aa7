"""
Whichever transaction ends a job also writes its callback into the outbox, once.
"""

from typing import Any

import pytest
from fix_store import World
from sqlalchemy import select

from milkrun.status import JobStatus, Reuse
from milkrun_engine.domain.callbacks import CallbackState
from milkrun_engine.domain.errors import StaleClaim
from milkrun_engine.domain.jobs import NewJob
from milkrun_engine.store.schema import callbacks, jobs

CALLBACK: dict[str, Any] = {
    "kind": "generic",
    "url": "http://receiver.test:8000/hook?token=in_the_url",
    "secret": "whsec_c2VjcmV0IG9mIHRoZSB0ZXN0",
    "headers": {"Authorization": "Bearer of the receiver"},
}


def outbox(world: World) -> list[Any]:
    with world.store.database.read() as connection:
        return list(connection.execute(select(callbacks).order_by(callbacks.c.created_at)))


def test_a_job_without_a_callback_leaves_nothing(world: World) -> None:
    world.prepared(8)
    world.run()
    assert outbox(world) == []


def test_the_last_commit_writes_it(world: World) -> None:
    job_id = world.prepared(16, callback=CALLBACK)
    first, second = world.claim(2)
    world.finish(first)
    assert outbox(world) == []
    assert world.finish(second).ended is JobStatus.succeeded
    [row] = outbox(world)
    assert (job_id, world.tenant, "pending", 0) == (row.job_id, row.tenant_id, row.state, row.attempts)
    assert (world.job(job_id).finished_at, "http://receiver.test:8000") == (
        pytest.approx(row.due_at, abs=1), row.receiver
    )  # fmt: skip


def test_the_last_window_writes_it(world: World) -> None:
    job_id = world.prepared([None, 3], callback=CALLBACK)
    assert [job_id] == [row.job_id for row in outbox(world)]


def test_a_cancel_writes_it_and_its_repeat_writes_none(world: World) -> None:
    job_id = world.prepared(8, callback=CALLBACK)
    with pytest.raises(StaleClaim):
        world.store.jobs.cancel(world.tenant, job_id, 0)
    assert outbox(world) == []
    for _ in range(2):
        world.store.jobs.cancel(world.tenant, job_id, None)
    assert [job_id] == [row.job_id for row in outbox(world)]


def test_a_cancel_by_label_a_failure_and_a_replacement_write_it(world: World) -> None:
    labelled = world.submit(8, callback=CALLBACK, labels={"run": "1"}).job.id
    failing = world.submit(8, callback=CALLBACK).job
    replaced = world.submit(8, callback=CALLBACK, idempotency_key="k").job.id
    world.store.jobs.cancel_labelled(world.tenant, {"run": "1"}, limit=9)
    assert not world.store.jobs.fail(failing.id, failing.epoch + 1, "internal", "a fence that is not its own")
    assert world.store.jobs.fail(failing.id, failing.epoch, "internal", "in a test")
    world.submit(8, idempotency_key="k", reuse=Reuse.never)
    assert {labelled, failing.id, replaced} == {row.job_id for row in outbox(world)}
    statuses = {due.job_id: due.status for due in world.store.callbacks.due(10)}
    assert {labelled: "cancelled", failing.id: "failed", replaced: "cancelled"} == statuses


def test_a_commit_that_comes_late_writes_none(world: World) -> None:
    world.prepared(8, callback=CALLBACK)
    [lease] = world.claim()
    world.expire_leases()
    world.run()
    assert not world.finish(lease).accepted
    assert 1 == len(outbox(world))


def test_a_row_comes_again_until_it_is_marked(world: World) -> None:
    world.prepared([None], callback=CALLBACK)
    [due] = world.store.callbacks.due(10)
    world.reopen()
    [again] = world.store.callbacks.due(10)
    assert due.id == again.id
    assert world.store.callbacks.due(10, but=[due.id]) == []
    assert world.store.callbacks.due(10, not_to=[due.receiver]) == []
    world.store.callbacks.mark(due.id, CallbackState.pending, "it said 500", 60.0)
    assert world.store.callbacks.due(10) == []
    world.advance(61)
    [again] = world.store.callbacks.due(10)
    assert (due.id, 1) == (again.id, again.attempts)
    assert again.age_seconds == pytest.approx(61, abs=2)
    world.store.callbacks.mark(due.id, CallbackState.delivered, None)
    world.store.callbacks.mark(due.id, CallbackState.pending, "a mark that comes late")
    assert world.store.callbacks.due(10) == []
    assert [("delivered", 2)] == [(row.state, row.attempts) for row in outbox(world)]


@pytest.mark.parametrize("state", CallbackState)
def test_what_was_delivered_is_forgotten(world: World, state: CallbackState) -> None:
    """Its headers hold keys of the receiver's; what was given up may be sent again by hand."""
    job_id = world.prepared([None], callback=CALLBACK)
    world.store.callbacks.mark(outbox(world)[0].id, state, None)
    with world.store.database.read() as connection:
        kept = connection.execute(select(jobs.c.callback).where(jobs.c.id == job_id)).scalar_one()
    assert kept == (None if state is CallbackState.delivered else CALLBACK)


def test_soon_means_neither_in_hours_nor_of_a_job_long_over(world: World) -> None:
    world.prepared([None], callback=CALLBACK)
    [due] = world.store.callbacks.due(10)
    assert 1 == world.store.callbacks.pending_soon(600, 3_600)
    world.store.callbacks.mark(due.id, CallbackState.pending, None, 700)
    assert 0 == world.store.callbacks.pending_soon(600, 3_600)
    world.advance(200)
    assert 1 == world.store.callbacks.pending_soon(600, 3_600)
    world.advance(3_500)
    assert 0 == world.store.callbacks.pending_soon(600, 3_600)


def test_no_repr_shows_what_is_secret(world: World) -> None:
    job: NewJob = world.a_job([None], callback=CALLBACK)
    world.store.jobs.submit(job)
    world.prepare()
    shown = repr(job) + repr(world.store.callbacks.due(1))
    for word in ("whsec_", "Bearer of", "in_the_url"):
        assert word not in shown
