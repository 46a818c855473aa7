"""
Cancel is final at one statement, and what was committed stays readable.
"""

from fix_store import World

from milkrun.status import JobStatus
from milkrun_engine.domain.jobs import JobRecord


def cancel(world: World, job_id: str) -> JobRecord:
    return world.store.jobs.cancel(world.tenant, job_id, None)[0]


def test_committed_rows_stay_and_the_others_end_cancelled(world: World) -> None:
    job_id = world.prepared(24)
    first, middle, _ = world.claim(3)
    world.finish(middle)
    before = world.results(job_id)
    assert before == [], "the first chunk is undecided: nothing is settled"
    job = cancel(world, job_id)
    assert (job.rows_total, job.rows_decided, job.rows_succeeded, job.input_complete) == (24, 8, 8, True)
    rows = world.results(job_id)
    assert list(range(24)) == [row["index"] for row in rows]
    assert set(range(8, 16)) == {row["index"] for row in rows if row["status"] == "succeeded"}
    assert {"cancelled"} == {row["error_code"] for row in rows if row["status"] == "failed"}
    assert not world.finish(first).accepted
    assert rows == world.results(job_id)


def test_a_cancel_twice_is_a_cancel_once(world: World) -> None:
    job_id = world.prepared(24)
    first = cancel(world, job_id)
    assert first == cancel(world, job_id)


def test_cancelled_in_preparation_counts_the_rows_read(world: World) -> None:
    job_id = world.submit(400).job.id
    world.prepare_window()
    assert (world.job(job_id).rows_total, world.job(job_id).rows_read) == (None, 256)
    job = cancel(world, job_id)
    assert (256, False, JobStatus.cancelled) == (job.rows_total, job.input_complete, job.status)
    assert world.prepare_window() is None, "it gets no more windows"
    assert list(range(256)) == [row["index"] for row in world.results(job_id)]


def test_cancelled_before_the_first_window_has_no_rows(world: World) -> None:
    job_id = world.submit(5).job.id
    job = cancel(world, job_id)
    assert (0, False, JobStatus.cancelled) == (job.rows_total, job.input_complete, job.status)
    assert world.results(job_id) == []


def test_keys_survive_a_cancel(world: World) -> None:
    rows = [{"id": f"k{number}", "prompt": "hi"} for number in range(10)]
    spec = world.a_job().spec.model_copy(update={"key_column": "id"})
    job_id = world.prepared(rows, spec=spec)
    cancel(world, job_id)
    assert [f"k{number}" for number in range(10)] == [row["key"] for row in world.results(job_id)]


def test_replicas_get_no_chunk_of_a_cancelled_job(world: World) -> None:
    cancelled, alive = world.prepared(16), world.prepared(16)
    cancel(world, cancelled)
    assert {alive} == {lease.job_id for lease in world.claim(16)}
