"""
A job ends in the transaction that decides its last row, whichever that is.
"""

from fix_store import World

from milkrun.status import JobStatus, RowErrorCode
from milkrun_engine.replicas.base import Outcome


def test_no_rows(world: World) -> None:
    job_id = world.prepared(0)
    job = world.job(job_id)
    assert (JobStatus.succeeded, 0, True) == (job.status, job.rows_total, job.input_complete)
    assert job.finished_at is not None
    assert world.results(job_id) == []


def test_all_rows_refused(world: World) -> None:
    job_id = world.prepared([1, 2, None])
    job = world.job(job_id)
    assert (JobStatus.succeeded, 3, 3) == (job.status, job.rows_total, job.rows_failed)
    assert {RowErrorCode.invalid_row: 3} == world.store.jobs.row_errors(job_id)
    assert [row["index"] for row in world.results(job_id)] == [0, 1, 2]


def test_the_last_commit_ends_the_job(world: World) -> None:
    job_id = world.prepared(24)
    first, second, third = world.claim(3)
    assert world.finish(second).ended is None
    assert world.finish(third).ended is None
    assert JobStatus.running is world.job(job_id).status
    assert world.finish(first).ended is JobStatus.succeeded
    job = world.job(job_id)
    assert (job.rows_decided, job.rows_total, job.prompt_tokens, job.completion_tokens) == (24, 24, 48, 24)


def test_every_chunk_commits_before_the_input_is_read(world: World) -> None:
    job_id = world.submit(300).job.id
    _, first = world.prepare_window()
    assert first.ended is None
    world.run()
    job = world.job(job_id)
    assert (JobStatus.running, 256, 256, None) == (job.status, job.rows_decided, job.rows_read, job.rows_total)
    assert len(world.results(job_id)) == 256, "all that was read is settled"
    world.prepare_window()
    world.run()
    job = world.job(job_id)
    assert (JobStatus.succeeded, 300, 300) == (job.status, job.rows_decided, job.rows_total)


def test_the_last_window_ends_the_job(world: World) -> None:
    """The input ends exactly at a window's end: the last window is empty and comes after the last commit."""
    job_id = world.submit(256).job.id
    world.prepare_window()
    world.run()
    assert JobStatus.running is world.job(job_id).status
    window, recorded = world.prepare_window()
    assert (0, True, JobStatus.succeeded) == (window.rows, window.last, recorded.ended)
    assert len(world.results(job_id)) == 256


def test_the_last_window_of_only_refused_rows_ends_the_job(world: World) -> None:
    job_id = world.submit([*(f"row {number}" for number in range(256)), 1, 2]).job.id
    world.prepare_window()
    world.run()
    _, recorded = world.prepare_window()
    assert recorded.ended is JobStatus.succeeded
    job = world.job(job_id)
    assert (job.rows_total, job.rows_succeeded, job.rows_failed) == (258, 256, 2)


def test_failed_rows_do_not_fail_a_job(world: World) -> None:
    job_id = world.prepared(["fail"] * 8)
    world.run()
    job = world.job(job_id)
    assert (JobStatus.succeeded, 0, 8) == (job.status, job.rows_succeeded, job.rows_failed)


def unavailable(index: int, body: bytes) -> Outcome:
    return Outcome(index, error_code=RowErrorCode.model_unavailable, error_message="no model")


def test_a_job_of_which_no_row_could_run_failed(world: World) -> None:
    job_id = world.prepared(8)
    [lease] = world.claim()
    assert world.finish(lease, unavailable).ended is JobStatus.failed
    job = world.job(job_id)
    assert (JobStatus.failed, "model_unavailable", 8) == (job.status, job.failure_code, job.rows_failed)
    assert {"model_unavailable"} == {row["error_code"] for row in world.results(job_id)}


def test_a_job_of_which_no_row_could_run_failed_though_some_were_refused(world: World) -> None:
    job_id = world.prepared([*["a"] * 7, None])
    [lease] = world.claim()
    assert world.finish(lease, unavailable).ended is JobStatus.failed
    job = world.job(job_id)
    assert (JobStatus.failed, "model_unavailable", 8) == (job.status, job.failure_code, job.rows_failed)


def test_a_job_of_which_rows_ran_and_failed_succeeded_though_others_were_unavailable(world: World) -> None:
    job_id = world.prepared(["fail"] * 16)
    first, second = world.claim(2)
    world.finish(first)
    assert world.finish(second, unavailable).ended is JobStatus.succeeded
    assert 16 == world.job(job_id).rows_failed


def test_a_job_of_which_one_chunk_ran_succeeded(world: World) -> None:
    job_id = world.prepared(16)
    first, second = world.claim(2)
    world.finish(first)
    assert world.finish(second, unavailable).ended is JobStatus.succeeded
    assert (
        world.job(job_id).rows_succeeded,
        world.job(job_id).rows_failed,
        world.job(job_id).failure_code,
    ) == (8, 8, None)


def test_an_input_that_becomes_unreadable_keeps_what_was_committed(world: World) -> None:
    job_id = world.submit(400).job.id
    world.prepare_window()
    world.run()
    work = world.store.jobs.next_to_prepare()
    assert world.store.jobs.fail(job_id, work.epoch, "input_unreadable", "the file is cut off")
    job = world.job(job_id)
    assert (JobStatus.failed, 256, 256, False) == (
        job.status, job.rows_total, job.rows_succeeded, job.input_complete
    )  # fmt: skip
    assert len(world.results(job_id)) == 256


def test_a_crash_in_preparation_goes_on_behind_the_last_window(world: World) -> None:
    job_id = world.submit(700).job.id
    world.prepare_window()
    world.reopen()
    world.prepare()
    world.run()
    assert list(range(700)) == [row["index"] for row in world.results(job_id)]
    assert world.job(job_id).rows_total == 700


def test_times_are_the_ledgers_and_in_order(world: World) -> None:
    job_id = world.prepared(8)
    world.advance(5)
    [lease] = world.claim()
    world.advance(5)
    world.finish(lease)
    job = world.job(job_id)
    assert 5 <= job.started_at - job.created_at < 8
    assert 5 <= job.finished_at - job.started_at < 8


def test_jobs_of_a_model_that_is_not_declared_any_more(world: World) -> None:
    waiting, other = world.prepared(24), world.prepared(24, model="other")
    unread = world.submit(24).job.id
    found = {job.id for job in world.store.jobs.of_unknown_models(["other", "vectors"])}
    assert {unread, waiting} <= found
    assert other not in found
    assert world.store.jobs.of_unknown_models(["echo", "other", "vectors"]) == []
