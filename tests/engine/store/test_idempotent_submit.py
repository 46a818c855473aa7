"""
A submit repeated with its idempotency key never makes a second job.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
from fix_store import World

from milkrun.status import JobStatus, OnMismatch, Reuse
from milkrun.wire import JobSpec
from milkrun_engine.domain.errors import IdempotencyMismatch, InputsDiffer, NotFound

KEY = "dag/task/run/1"


def test_the_same_key_and_inputs_give_the_same_job(world: World) -> None:
    first = world.submit(3, idempotency_key=KEY)
    again = world.submit(3, idempotency_key=KEY)
    assert not first.reused
    assert again.reused
    assert first.job.id == again.job.id
    assert again.replaced is None


def test_a_succeeded_job_answers_too(world: World) -> None:
    job_id = world.prepared(3, idempotency_key=KEY)
    world.run()
    again = world.submit(3, idempotency_key=KEY)
    assert (job_id, True, JobStatus.succeeded) == (again.job.id, again.reused, again.job.status)


def test_without_a_key_every_submit_is_a_new_job(world: World) -> None:
    assert world.submit(3).job.id != world.submit(3).job.id


def test_names_labels_links_and_priority_are_not_compared(world: World) -> None:
    first = world.submit(3, idempotency_key=KEY)
    facts = {"name": "n", "labels": {"a": "b"}, "priority": 7, "external_url": "https://a.test", "description": "d"}
    assert first.job.id == world.submit(3, idempotency_key=KEY, **facts).job.id


@pytest.mark.parametrize(
    "other",
    [
        {"spec": JobSpec(prompt="{text}")},
        {"spec": JobSpec(system_prompt="Be brief.")},
        {"spec": JobSpec(sampling={"seed": 1})},
        {"spec": JobSpec(model="other")},
        {"rows": 4},
    ],
)
def test_other_inputs_are_refused_by_default(world: World, other: dict) -> None:
    first = world.submit(3, idempotency_key=KEY)
    with pytest.raises(IdempotencyMismatch, match=first.job.id):
        world.submit(**({"rows": 3, "idempotency_key": KEY} | other))
    assert world.job(first.job.id).status is JobStatus.preparing


def test_replace_cancels_the_live_job_and_takes_its_key(world: World) -> None:
    first = world.submit(3, idempotency_key=KEY)
    second = world.submit(4, idempotency_key=KEY, on_mismatch=OnMismatch.replace)
    assert (first.job.id, first.job.id) == (second.replaced, second.cancelled)
    assert first.job.id == second.job.retry_of
    assert world.job(first.job.id).status is JobStatus.cancelled
    assert second.job.id == world.store.jobs.attach(world.tenant, KEY, None).job.id


def test_replace_leaves_an_ended_job_as_it_is(world: World) -> None:
    first = world.prepared(3, idempotency_key=KEY)
    world.run()
    second = world.submit(4, idempotency_key=KEY, on_mismatch=OnMismatch.replace)
    assert (first, None) == (second.replaced, second.cancelled)
    assert world.job(first).status is JobStatus.succeeded


def test_always_reuses_whatever_the_inputs(world: World) -> None:
    first = world.submit(3, idempotency_key=KEY)
    assert first.job.id == world.submit(9, idempotency_key=KEY, reuse=Reuse.always).job.id


def test_never_makes_a_new_job_and_cancels_the_live_one(world: World) -> None:
    first = world.submit(3, idempotency_key=KEY)
    second = world.submit(3, idempotency_key=KEY, reuse=Reuse.never)
    assert first.job.id == second.cancelled
    assert world.job(first.job.id).status is JobStatus.cancelled


@pytest.mark.parametrize("reuse", list(Reuse))
def test_a_job_that_ended_badly_is_not_reused(world: World, reuse: Reuse) -> None:
    first = world.submit(3, idempotency_key=KEY)
    world.store.jobs.cancel(world.tenant, first.job.id, None)
    second = world.submit(3, idempotency_key=KEY, reuse=reuse)
    assert not second.reused
    assert (first.job.id, first.job.id, None) == (second.job.retry_of, second.replaced, second.cancelled)


@pytest.mark.parametrize("reuse", list(Reuse))
def test_the_same_call_again_gets_its_own_job(world: World, reuse: Reuse) -> None:
    """The answer was lost on the way: whatever the caller's wish, it was granted already."""
    facts = {"idempotency_key": KEY, "submission_id": "call-1", "reuse": reuse}
    first = world.submit(3, **facts)
    world.store.jobs.cancel(world.tenant, first.job.id, None)
    again = world.submit(3, **facts)
    assert (first.job.id, True) == (again.job.id, again.reused)


def test_another_call_is_not_the_same_call(world: World) -> None:
    first = world.submit(3, idempotency_key=KEY, submission_id="call-1", reuse=Reuse.never)
    second = world.submit(3, idempotency_key=KEY, submission_id="call-2", reuse=Reuse.never)
    assert first.job.id != second.job.id


def test_a_late_repeat_of_a_call_leaves_the_job_that_replaced_its_own(world: World) -> None:
    facts = {"idempotency_key": KEY, "on_mismatch": OnMismatch.replace}
    first = world.submit(3, submission_id="call-1", **facts)
    second = world.submit(4, submission_id="call-2", **facts)
    again = world.submit(3, submission_id="call-1", **facts)
    assert (first.job.id, True, None) == (again.job.id, again.reused, again.cancelled)
    assert (JobStatus.cancelled, JobStatus.preparing) == (again.job.status, world.job(second.job.id).status)
    assert second.job.id == world.store.jobs.attach(world.tenant, KEY, None).job.id


@pytest.mark.parametrize("reuse", [Reuse.inputs_match, Reuse.always])
def test_twins_at_the_same_moment_get_one_job(world: World, reuse: Reuse) -> None:
    new = world.a_job(3, idempotency_key=KEY, reuse=reuse)
    start = Barrier(8)

    def submit(number: int) -> tuple[str, bool, int]:
        start.wait()
        result = world.store.jobs.submit(replace(new, submission_id=f"call-{number}"))
        return result.job.id, result.reused, result.claim

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(submit, range(8)))
    assert len({job_id for job_id, _, _ in answers}) == 1
    assert sum(not reused for _, reused, _ in answers) == 1
    assert len({claim for _, _, claim in answers}) == 8, "each twin has its own claim"


def test_twins_with_other_inputs_leave_one_job_alive(world: World) -> None:
    news = [world.a_job(rows, idempotency_key=KEY, on_mismatch=OnMismatch.replace) for rows in range(1, 7)]
    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(world.store.jobs.submit, news))
    statuses = [world.job(result.job.id).status for result in results]
    assert statuses.count(JobStatus.cancelled) == 5
    [alive] = [result.job.id for result in results if world.job(result.job.id).status is not JobStatus.cancelled]
    assert alive == world.store.jobs.attach(world.tenant, KEY, None).job.id


def test_attach_finds_the_job_without_its_rows(world: World) -> None:
    first = world.submit(3, idempotency_key=KEY)
    attached = world.store.jobs.attach(world.tenant, KEY, first.job.input_hash)
    assert (first.job.id, True) == (attached.job.id, attached.reused)
    with pytest.raises(InputsDiffer):
        world.store.jobs.attach(world.tenant, KEY, "0" * 64)
    with pytest.raises(NotFound):
        world.store.jobs.attach(world.tenant, "another key", None)
