"""
Whichever transaction ends a job also writes its callback into the outbox, once.
"""

from typing import Any

import pytest
from fix_store import World
from sqlalchemy import select

from milkrun.status import CallbackState, JobStatus, Reuse
from milkrun_engine.domain.errors import CallbackDelivered, NotFound, StaleClaim
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


def given_up(world: World, url: str = "http://one.test/", error: str | None = "it answered 500") -> str:
    """A job whose callback was given up; returns the callback's id."""
    job_id = world.prepared([None], callback={**CALLBACK, "url": url})
    [callback_id] = [row.id for row in outbox(world) if row.job_id == job_id]
    world.store.callbacks.mark(callback_id, CallbackState.given_up, error)
    return str(callback_id)


def test_the_list_has_pages_and_states_and_no_secrets(world: World) -> None:
    ids = []
    for _ in range(3):
        ids.append(given_up(world))
        world.advance(1)
    world.prepared([None], callback=CALLBACK)
    page = world.store.callbacks.page
    some = page(world.tenant, limit=2, state=CallbackState.given_up)
    assert ids[:0:-1] == [record.id for record in some]
    assert [ids[0]] == [record.id for record in page(world.tenant, limit=2, before=ids[1])]
    assert 4 == len(page(world.tenant, limit=9))
    first = some[0]
    assert ("http://one.test", "generic", 1, "it answered 500") == (
        first.receiver, first.kind, first.attempts, first.last_error,
    )  # fmt: skip
    shown = repr(page(world.tenant, limit=9))
    assert [] == [word for word in ("whsec_", "Bearer", "in_the_url") if word in shown]
    world.store.tenants.ensure("other")
    assert [] == page("other", limit=9)
    with pytest.raises(NotFound):
        page("other", limit=9, before=ids[0])


def test_a_replay_is_due_at_once_with_all_its_attempts(world: World) -> None:
    callback_id = given_up(world)
    world.advance(90_000)
    assert [] == world.store.callbacks.due(9)
    record = world.store.callbacks.replay(world.tenant, callback_id)
    assert (CallbackState.pending, 0) == (record.state, record.attempts)
    [due] = world.store.callbacks.due(9)
    assert (callback_id, 0, (CALLBACK["secret"],)) == (due.id, due.attempts, due.secrets)
    world.store.callbacks.mark(callback_id, CallbackState.delivered, None)
    with pytest.raises(CallbackDelivered):
        world.store.callbacks.replay(world.tenant, callback_id)
    assert world.store.callbacks.page(world.tenant, limit=1)[0].kind is None


def test_a_replay_is_its_tenants_own(world: World) -> None:
    callback_id = given_up(world)
    world.store.tenants.ensure("other")
    with pytest.raises(NotFound):
        world.store.callbacks.replay("other", callback_id)
    assert 0 == world.store.callbacks.replay_all("other", "http://one.test")
    assert [] == world.store.callbacks.due(9)


def test_all_of_one_receiver_are_replayed(world: World) -> None:
    mine = {given_up(world), given_up(world, "http://one.test/other/path")}
    given_up(world, "http://two.test/")
    delivered = given_up(world)
    world.store.callbacks.replay(world.tenant, delivered)
    world.store.callbacks.mark(delivered, CallbackState.delivered, None)
    assert 2 == world.store.callbacks.replay_all(world.tenant, "http://one.test")
    assert mine == {due.id for due in world.store.callbacks.due(9)}


def test_rotation_adds_a_secret_to_what_is_not_delivered(world: World) -> None:
    old, new = CALLBACK["secret"], "whsec_of_the_new_one"
    given_up(world)
    running = world.prepared(8, callback=CALLBACK)
    both = world.prepared(8, callback={**CALLBACK, "secret": ["whsec_1", old, "whsec_2"]})
    unsigned = world.prepared(8, callback={**CALLBACK, "secret": None})
    foreign = world.prepared(8, callback={**CALLBACK, "secret": "whsec_foreign"})
    world.store.tenants.ensure("other")
    assert 0 == world.store.callbacks.rotate("other", old, new)
    assert 3 == world.store.callbacks.rotate(world.tenant, old, new)
    assert 0 == world.store.callbacks.rotate(world.tenant, old, new), "a repeat changes nothing"
    world.run()
    secrets = {due.job_id: due.secrets for due in world.store.callbacks.due(9)}
    assert {
        running: (new, old), both: (new, old, "whsec_1"), unsigned: (), foreign: ("whsec_foreign",)
    } == secrets  # fmt: skip
    assert 1 == world.store.callbacks.replay_all(world.tenant, "http://one.test")
    assert 4 == sum(due.secrets[:2] == (new, old) for due in world.store.callbacks.due(9)) + 1


def test_delivered_is_delivered_whoever_gave_up_meanwhile(world: World) -> None:
    """An engine that froze behind its sending marks late; the other one had given up."""
    world.prepared([None], callback=CALLBACK)
    [due] = world.store.callbacks.due(9)
    world.store.callbacks.mark(due.id, CallbackState.given_up, "the flow run is COMPLETED")
    world.store.callbacks.mark(due.id, CallbackState.delivered, None)
    assert ["delivered"] == [row.state for row in outbox(world)]
    with pytest.raises(CallbackDelivered):
        world.store.callbacks.replay(world.tenant, due.id)
    world.prepared([None], callback=CALLBACK)
    assert 1 == len(world.store.callbacks.due(9)), "others are still sent"
