"""
Pause and resume, completion windows, the limit of failed rows, deletion, and the queue's places.
"""

from datetime import UTC, datetime

import pytest
from fix_store import World

from milkrun.status import FeedEvents, JobStatus
from milkrun_engine.domain.errors import AlreadyEnded, CursorLost, InvalidRequest, NotEnded, NotFound
from milkrun_engine.domain.jobs import JobFilter
from milkrun_engine.store.input_files import InputFileRecord

DAY = 86_400.0


def pause(world: World, job_id: str, *, paused: bool = True) -> None:
    world.store.controls.pause(world.tenant, job_id, paused=paused)


def delete(world: World, job_id: str) -> list[str]:
    return world.store.controls.delete(world.tenant, job_id)


def test_no_chunk_of_a_paused_job_is_claimed(world: World) -> None:
    first, second = world.prepared(8), world.prepared(8)
    pause(world, first)
    assert world.job(first).paused
    assert [second] == [lease.job_id for lease in world.claim(4)]
    pause(world, first, paused=False)
    assert [first] == [lease.job_id for lease in world.claim(4)]


def test_what_is_leased_when_a_job_is_paused_is_committed(world: World) -> None:
    job_id = world.prepared(8)
    (lease,) = world.claim()
    pause(world, job_id)
    assert world.finish(lease).accepted
    assert JobStatus.succeeded is world.job(job_id).status


def test_a_paused_job_wants_no_replica_and_keeps_no_local_engine(world: World) -> None:
    paused, other = world.prepared(8), world.prepared(["x"], model="other")
    pause(world, paused)
    assert {"other"} == world.store.chunks.busy_pools()
    pause(world, other)
    assert (set(), 0) == (world.store.chunks.busy_pools(), world.store.jobs.unfinished())


def test_readers_of_statuses_are_told_of_a_pause_once(world: World) -> None:
    job_id = world.prepared(8)
    cursor = world.store.feed.cursor(world.tenant)
    pause(world, job_id)
    pause(world, job_id)
    page = world.store.feed.changes(world.tenant, cursor, FeedEvents.status, {}, 10)
    assert [(job_id, True)] == [(job.id, job.paused) for job in page.jobs]
    assert [] == world.store.feed.changes(world.tenant, page.cursor, FeedEvents.status, {}, 10).jobs


def test_an_ended_job_is_not_paused(world: World) -> None:
    job_id = world.prepared(8)
    world.run()
    with pytest.raises(AlreadyEnded):
        pause(world, job_id)


def test_a_job_ends_when_its_window_closes(world: World) -> None:
    in_time, late = world.prepared(8, window_seconds=60), world.submit(24, window_seconds=60).job.id
    world.prepare()
    (lease,) = world.claim()
    assert in_time == lease.job_id
    world.finish(lease)
    (lease,) = world.claim()
    assert not world.store.controls.overdue()
    world.advance(61)
    assert world.store.controls.overdue()
    assert [(late, world.tenant)] == world.store.controls.expire(10)
    assert [] == world.store.controls.expire(10)
    assert not world.finish(lease).accepted
    assert (JobStatus.succeeded, JobStatus.expired) == (world.job(in_time).status, world.job(late).status)
    assert {"expired"} == {row["error_code"] for row in world.results(late)}
    assert 24 == len(world.results(late))


def test_a_job_that_expires_while_it_is_read_ends_with_the_rows_read(world: World) -> None:
    job_id = world.submit(600, window_seconds=60).job.id
    world.prepare_window()
    world.advance(61)
    world.store.controls.expire(10)
    job = world.job(job_id)
    assert (JobStatus.expired, False) == (job.status, job.input_complete)
    assert 0 < len(world.results(job_id)) == job.rows_read == job.rows_total < 600
    assert world.prepare_window() is None


def test_a_job_with_too_many_failed_rows_fails_at_once(world: World) -> None:
    job_id = world.prepared(["fail", *(f"row {number}" for number in range(31))], abort_after_failed_rows=1)
    leases = world.claim(16)
    assert len(leases) > 1
    recorded = [world.finish(lease) for lease in leases]
    assert JobStatus.failed is recorded[0].ended
    assert [False] * (len(leases) - 1) == [each.accepted for each in recorded[1:]]
    job = world.job(job_id)
    assert (JobStatus.failed, "too_many_rows_failed", 1) == (job.status, job.failure_code, job.rows_failed)
    rows = world.results(job_id)
    assert 32 == len(rows)
    assert {None, "invalid_row", "cancelled"} == {row["error_code"] for row in rows}


def test_rows_refused_in_preparation_count_too(world: World) -> None:
    job_id = world.prepared([3, 4, *(f"row {number}" for number in range(600))], abort_after_failed_rows=2)
    job = world.job(job_id)
    assert (JobStatus.failed, "too_many_rows_failed") == (job.status, job.failure_code)
    assert job.rows_read < 602


def test_fewer_failed_rows_than_the_limit_end_well(world: World) -> None:
    job_id = world.prepared(["fail", *["x"] * 31], abort_after_failed_rows=2)
    world.run()
    assert (JobStatus.succeeded, 1) == ((job := world.job(job_id)).status, job.rows_failed)


def test_the_last_row_may_be_the_one_too_many(world: World) -> None:
    """The verdict hangs on the rows alone, not on which chunk was the last."""
    job_id = world.prepared(["fail"], abort_after_failed_rows=1)
    world.run()
    assert JobStatus.failed is world.job(job_id).status


def test_a_deleted_job_is_gone_with_all_its_files(world: World) -> None:
    job_id = world.prepared(600, labels={"a": "b"}, idempotency_key="k", callback={"url": "http://a.test/"})
    other = world.prepared(8)
    world.run()
    files = {path.relative_to(world.blobs.root).as_posix() for path in world.blobs.root.rglob("*") if path.is_file()}
    names = delete(world, job_id)
    assert {name for name in files if job_id in name} < set(names)
    assert set() == world.store.named_blobs(names)
    with pytest.raises(NotFound):
        world.job(job_id)
    assert 8 == len(world.results(other))
    assert [other] == [job.id for job in world.store.jobs.page(world.tenant, limit=10)]
    assert not world.submit(600, idempotency_key="k").reused


def test_deleting_again_does_nothing(world: World) -> None:
    job_id = world.prepared(8)
    world.run()
    assert delete(world, job_id)
    assert [] == delete(world, job_id)
    with pytest.raises(NotFound):
        delete(world, "job_never_seen")


def test_a_live_job_is_not_deleted(world: World) -> None:
    job_id = world.prepared(8)
    with pytest.raises(NotEnded):
        delete(world, job_id)
    assert 1 == len(world.claim())


def test_an_upload_stays_while_another_job_needs_it(world: World) -> None:
    upload = world.a_job(8)
    record = InputFileRecord(
        id="file_1", tenant_id=world.tenant, format=upload.input_format, bytes=1, sha256="0", blob=upload.input_blob
    )
    world.store.input_files.add(record)
    facts = {"input_blob": upload.input_blob, "input_hash": upload.input_hash, "input_file": "file_1"}
    first, second = world.prepared(8, **facts), world.prepared(8, **facts)
    world.run()
    assert upload.input_blob not in delete(world, first)
    assert record == world.store.input_files.get(world.tenant, "file_1")
    assert upload.input_blob in delete(world, second)
    with pytest.raises(InvalidRequest, match="file_1"):
        world.submit(8, **facts)


def test_readers_of_the_feed_are_told_which_jobs_are_gone(world: World) -> None:
    kept, gone = world.prepared(8), world.prepared(8)
    world.run()
    cursor = world.store.feed.cursor(world.tenant)
    delete(world, gone)
    world.store.feed.publish_progress([kept])
    told = [world.store.feed.changes(world.tenant, cursor, FeedEvents.progress, {}, limit) for limit in (1, 10)]
    assert [([gone], [], True), ([gone], [kept], False)] == [
        (page.deleted, [job.id for job in page.jobs], page.more) for page in told
    ]
    rest = world.store.feed.changes(world.tenant, told[0].cursor, FeedEvents.progress, {}, 10)
    assert ([], [kept]) == (rest.deleted, [job.id for job in rest.jobs])


def test_a_reader_that_was_away_for_longer_than_deletions_are_remembered_begins_anew(world: World) -> None:
    job_id = world.prepared(8)
    world.run()
    before = world.store.feed.cursor(world.tenant)
    delete(world, job_id)
    after = world.store.feed.cursor(world.tenant)
    assert 0 == world.store.controls.forget_deleted(30 * DAY)
    world.advance(31 * DAY)
    assert 1 == world.store.controls.forget_deleted(30 * DAY)
    with pytest.raises(CursorLost):
        world.store.feed.changes(world.tenant, before, FeedEvents.end, {}, 10)
    assert [] == world.store.feed.changes(world.tenant, after, FeedEvents.end, {}, 10).deleted


def test_a_read_that_a_deletion_overtakes_is_told_so(world: World) -> None:
    """It gets an error, never a result that looks whole and is not."""
    job_id = world.prepared(600)
    world.run()
    readable = world.reader.readable(world.tenant, job_id)
    tables = world.reader.tables(readable)
    next(tables)
    for name in delete(world, job_id):
        world.blobs.delete(name)
    with pytest.raises(NotFound):
        list(tables)
    with pytest.raises(NotFound):
        list(world.reader.tables(readable))


def test_a_job_knows_what_is_ahead_of_it(world: World) -> None:
    world.prepared(8)
    world.prepared(8, model="other")
    pause(world, world.prepared(8))
    mine = world.prepared(8)
    sooner = world.prepared(16, priority=0)
    ahead = world.store.jobs.ahead_of(world.job(mine))
    assert (2, 24) == (ahead.jobs, ahead.rows)
    (lease,) = world.claim()
    assert sooner == lease.job_id
    world.finish(lease)
    assert 24 - lease.rows == world.store.jobs.ahead_of(world.job(mine)).rows
    assert 0 == world.store.jobs.ahead_of(world.job(sooner)).jobs


def test_lists_are_filtered(world: World) -> None:
    ended = world.prepared(8, name="nightly-1", labels={"team": "a"})
    world.run()
    between = datetime.now(UTC).timestamp() + 50
    world.advance(100)
    live = world.prepared(8, name="nightly-2")
    other = world.prepared(8, name="100%_nightly")

    def listed(**wanted: object) -> list[str]:
        return [job.id for job in world.store.jobs.page(world.tenant, limit=10, wanted=JobFilter(**wanted))]

    assert [other, live, ended] == listed()
    assert [ended] == listed(statuses=[JobStatus.succeeded, JobStatus.failed])
    assert [other, live, ended] == listed(statuses=[JobStatus.succeeded, JobStatus.queued])
    assert [live] == listed(name="nightly-2")
    assert [live, ended] == listed(name="nightly*")
    assert [other] == listed(name="100%_*")
    assert [] == listed(name="100__*")
    assert [] == listed(name="NIGHT*")
    assert ([other, live], [ended]) == (listed(created_after=between), listed(created_before=between))
    assert [ended] == listed(name="nightly*", labels={"team": "a"})


def test_as_many_names_as_a_large_job_has_are_asked_for(world: World) -> None:
    """More than a statement takes parameters."""
    job_id = world.prepared(8)
    world.run()
    named = sorted(path.relative_to(world.blobs.root).as_posix() for path in world.blobs.root.rglob("*.parquet"))
    assert {name for name in named if job_id in name} == set(named) != set()
    assert set(named) == world.store.named_blobs(
        [*(f"jobs/job_x/{number}.y.parquet" for number in range(70_000)), *named]
    )
