"""
An older attempt can't cancel the job of a newer one; a person always can.
"""

import pytest
from fix_store import World

from milkrun.status import JobStatus, Reuse
from milkrun_engine.domain.errors import NotFound, StaleClaim

KEY = "run/1"


def test_submit_and_attach_give_a_growing_claim(world: World) -> None:
    claims = [world.submit(3, idempotency_key=KEY).claim for _ in range(3)]
    claims.append(world.store.jobs.attach(world.tenant, KEY, None).claim)
    assert sorted(set(claims)) == claims


def test_reading_never_changes_a_claim(world: World) -> None:
    submitted = world.submit(3, idempotency_key=KEY)
    world.prepare()
    world.job(submitted.job.id)
    world.results(submitted.job.id)
    world.store.jobs.page(world.tenant, limit=10)
    assert submitted.claim == world.job(submitted.job.id).claim


def test_a_stale_claim_is_refused_and_changes_nothing(world: World) -> None:
    old = world.submit(3, idempotency_key=KEY)
    new = world.submit(3, idempotency_key=KEY)
    with pytest.raises(StaleClaim):
        world.store.jobs.cancel(world.tenant, old.job.id, old.claim)
    assert world.job(new.job.id).status is JobStatus.preparing
    job, stopped = world.store.jobs.cancel(world.tenant, new.job.id, new.claim)
    assert (True, JobStatus.cancelled) == (stopped, job.status)


def test_a_claim_from_the_future_is_refused(world: World) -> None:
    submitted = world.submit(3)
    with pytest.raises(StaleClaim):
        world.store.jobs.cancel(world.tenant, submitted.job.id, submitted.claim + 1)


def test_without_a_claim_cancel_always_works(world: World) -> None:
    submitted = world.submit(3, idempotency_key=KEY)
    world.submit(3, idempotency_key=KEY)
    assert world.store.jobs.cancel(world.tenant, submitted.job.id, None)[1]


def test_an_ended_job_stays_as_it_is_whatever_the_claim(world: World) -> None:
    job_id = world.prepared(3, idempotency_key=KEY)
    world.run()
    for claim in (None, 1, 99):
        job, stopped = world.store.jobs.cancel(world.tenant, job_id, claim)
        assert (False, JobStatus.succeeded) == (stopped, job.status)


def test_the_claim_of_a_replaced_job_is_no_claim_on_its_successor(world: World) -> None:
    old = world.submit(3, idempotency_key=KEY)
    new = world.submit(3, idempotency_key=KEY, reuse=Reuse.never)
    world.store.jobs.cancel(world.tenant, old.job.id, old.claim)
    assert world.job(new.job.id).status is JobStatus.preparing


def test_a_job_that_does_not_exist_is_not_found(world: World) -> None:
    with pytest.raises(NotFound):
        world.store.jobs.cancel(world.tenant, "job_none", None)
