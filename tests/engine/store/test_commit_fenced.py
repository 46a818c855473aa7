"""
A chunk commits exactly once, and never after its job was stopped.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from fix_store import World, echo
from sqlalchemy import select

from milkrun.status import JobStatus
from milkrun_engine.blobs import chunk_files
from milkrun_engine.domain.states import ChunkState
from milkrun_engine.replicas.base import Outcome
from milkrun_engine.store.schema import chunks


def counted(world: World, job_id: str) -> tuple[int, int, int, int]:
    job = world.job(job_id)
    return job.rows_decided, job.rows_succeeded, job.rows_failed, job.completion_tokens


def ledger(world: World, job_id: str) -> list[tuple]:
    with world.store.database.read() as connection:
        query = select(chunks.c.number, chunks.c.state, chunks.c.result_blob, chunks.c.result_sha256)
        return [tuple(row) for row in connection.execute(query.where(chunks.c.job_id == job_id))]


def test_a_commit_counts_once(world: World) -> None:
    job_id = world.prepared(24)
    [lease] = world.claim()
    assert world.finish(lease).accepted
    before = counted(world, job_id), ledger(world, job_id)
    assert not world.finish(lease).accepted
    assert before == (counted(world, job_id), ledger(world, job_id))
    assert counted(world, job_id) == (8, 8, 0, 8)


def test_a_late_commit_changes_nothing(world: World) -> None:
    """The old holder of a lease comes back with another answer, before and after the new one's commit."""
    job_id = world.prepared(8)
    [old] = world.claim(owner="one")
    world.expire_leases()

    def other(index: int, body: bytes) -> Outcome:
        return Outcome(index, output=b'"late"', completion_tokens=99)

    assert not world.finish(old, other).accepted
    assert counted(world, job_id) == (0, 0, 0, 0)
    [new] = world.claim(owner="two")
    assert not world.finish(old, other).accepted
    assert counted(world, job_id) == (0, 0, 0, 0)
    assert world.finish(new).ended is JobStatus.succeeded
    before = ledger(world, job_id)
    assert not world.finish(old, other).accepted
    assert before == ledger(world, job_id)
    assert b'"late"' not in [row["output"] for row in world.results(job_id)]


def test_nothing_commits_after_a_cancel(world: World) -> None:
    job_id = world.prepared(24)
    first, second, _ = world.claim(3)
    assert world.finish(first).accepted
    world.store.jobs.cancel(world.tenant, job_id, None)
    assert world.job(job_id).epoch == second.job_epoch + 1, "the fence holds whatever the chunk's state says"
    before = counted(world, job_id), ledger(world, job_id)
    assert not world.finish(second).accepted
    assert before == (counted(world, job_id), ledger(world, job_id))


def test_nothing_commits_after_a_failure(world: World) -> None:
    job_id = world.prepared(24)
    [lease] = world.claim()
    assert world.store.jobs.fail(job_id, lease.job_epoch, "input_unreadable", "cut off")
    assert not world.finish(lease).accepted
    assert not world.store.jobs.fail(job_id, lease.job_epoch, "again", "an old epoch stops nothing")
    assert (world.job(job_id).failure_code, world.job(job_id).failure_message) == ("input_unreadable", "cut off")


def test_a_lease_from_before_a_job_epoch_is_lost(world: World) -> None:
    """The chunk's own lease would still hold: the job's epoch alone refuses."""
    job_id = world.prepared(8)
    [lease] = world.claim()
    with world.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET epoch = epoch + 1")
    assert not world.finish(lease).accepted
    assert counted(world, job_id) == (0, 0, 0, 0)
    assert ChunkState.leased == ledger(world, job_id)[0][1]


def test_a_window_of_a_stopped_job_is_refused(world: World) -> None:
    job_id = world.submit(24).job.id
    work = world.store.jobs.next_to_prepare()
    assert work is not None
    window = world.cut(work)
    world.store.jobs.cancel(world.tenant, job_id, None)
    assert not world.store.jobs.commit_window(work, window).accepted
    assert ledger(world, job_id) == []


def test_a_window_commits_once(world: World) -> None:
    world.submit(300)
    work = world.store.jobs.next_to_prepare()
    assert work is not None
    window = world.cut(work)
    assert world.store.jobs.commit_window(work, window).accepted
    assert not world.store.jobs.commit_window(work, window).accepted
    assert world.job(work.job_id).rows_read == 256


@pytest.mark.parametrize("attempt", range(5))
def test_a_cancel_racing_commits_is_one_point_in_time(world: World, attempt: int) -> None:
    """Every commit is wholly before the cancel or leaves no trace; counts and files agree either way."""
    job_id = world.prepared(128)
    leases = world.claim(16)
    prepared = []
    for lease in leases:
        results, counts = world.work(lease, echo)
        blob = f"jobs/{job_id}/{lease.number}.out"
        prepared.append((lease, blob, world.blobs.put(blob, chunk_files.write_result(results)), counts))
    start = Barrier(5)

    def commit(part: int) -> int:
        start.wait()
        return sum(world.store.chunks.record(*each).accepted for each in prepared[part::4])

    def cancel() -> tuple:
        start.wait()
        job, stopped = world.store.jobs.cancel(world.tenant, job_id, None)
        return stopped, job.rows_decided

    with ThreadPoolExecutor(5) as threads:
        commits = [threads.submit(commit, part) for part in range(4)]
        stopped, decided = threads.submit(cancel).result()
        accepted = sum(commit.result() for commit in commits)
    rows = 8 * accepted
    job = world.job(job_id)
    assert (rows, rows) == (job.rows_decided, job.rows_succeeded)
    assert decided == rows, "nothing was added behind the cancel"
    assert stopped is (job.status is JobStatus.cancelled)
    committed = [entry for entry in ledger(world, job_id) if entry[1] == ChunkState.committed]
    assert accepted == len(committed)
    assert len(world.results(job_id)) == 128


def test_two_holders_in_a_race_commit_one_result(world: World) -> None:
    job_id = world.prepared(8)
    [lease] = world.claim()
    with ThreadPoolExecutor(4) as threads:
        accepted = [done.accepted for done in threads.map(world.finish, [lease] * 4)]
    assert sum(accepted) == 1
    assert counted(world, job_id) == (8, 8, 0, 8)
    assert len(world.results(job_id)) == 8
