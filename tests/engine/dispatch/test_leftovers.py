"""
What was written for a ledger that did not take it is deleted, and never what it took.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fix_store import World
from sqlalchemy.exc import OperationalError

from milkrun.status import JobStatus
from milkrun_engine.blobs import chunk_files
from milkrun_engine.dispatch import recorder
from milkrun_engine.dispatch.housekeeping import Sweeper
from milkrun_engine.dispatch.preparer import Preparer
from milkrun_engine.dispatch.recorder import Recorder
from milkrun_engine.dispatch.work import ChunkWork
from milkrun_engine.domain.errors import OutcomeUnknown
from milkrun_engine.domain.leases import Lease
from milkrun_engine.replicas.base import Outcome
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads

pytestmark = pytest.mark.anyio
DAY = 86_400.0


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_RETRY_SECONDS", 0.01)


def preparer_of(world: World, threads: Threads) -> Preparer:
    return Preparer(store=world.store, blobs=world.blobs, threads=threads, signals=Signals(), models=world.models)


def recorder_of(world: World, threads: Threads) -> Recorder:
    return Recorder(store=world.store, blobs=world.blobs, threads=threads, signals=Signals())


@contextmanager
def read_only(world: World) -> Iterator[None]:
    """The ledger refuses every write, as one on a full disk does, and can still be asked."""
    _pragma(world, "query_only=ON")
    try:
        yield
    finally:
        _pragma(world, "query_only=OFF")


def _pragma(world: World, pragma: str) -> None:
    with world.store.database.writer.connect() as connection:
        connection.rollback()
        connection.connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]


def answer_is_lost(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The first call does its work and then raises."""
    calls: list[Any] = []

    def lost(*arguments: Any) -> Any:
        done = verb(*arguments)
        calls.append(done)
        if len(calls) == 1:
            raise OSError("the disk went away")
        return done

    return lost


def files(world: World) -> set[str]:
    return {str(path.relative_to(world.blobs.root)) for path in world.blobs.root.glob("jobs/*/*")}


def whole(world: World, lease: Lease) -> ChunkWork:
    """A leased chunk whose rows are all answered."""
    work = ChunkWork(lease, chunk_files.read_input(world.blobs.read(lease.input_blob, lease.input_sha256)))
    for slot, row in enumerate(work.rows):
        work.settle(Outcome(row.index, output=b'"yes"'), {slot})
    return work


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)


async def test_windows_that_the_ledger_refuses_leave_no_files(world: World, threads: Threads) -> None:
    world.submit([*["a"] * 20, None])
    preparer = preparer_of(world, threads)
    with read_only(world):
        for _ in range(3):
            with pytest.raises(OperationalError):
                await preparer.run_once()
            assert set() == files(world)
    await preparer.run_once()
    assert files(world)
    assert files(world) == world.store.named_blobs(sorted(files(world)))


async def test_a_window_whose_commit_was_answered_with_an_error_keeps_its_files(
    world: World, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.submit(24).job.id
    monkeypatch.setattr(world.store.jobs, "commit_window", answer_is_lost(world.store.jobs.commit_window))
    with pytest.raises(OSError, match="went away"):
        await preparer_of(world, threads).run_once()
    world.run()
    assert (JobStatus.succeeded, 24) == (world.job(job_id).status, world.job(job_id).rows_succeeded)


async def test_a_result_that_the_ledger_refuses_is_one_file_however_often_it_is_tried(
    world: World, threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = world.prepared(8)
    [lease] = world.claim()
    before = files(world)
    with read_only(world):
        recording = asyncio.create_task(recorder_of(world, threads).record(whole(world, lease)))
        await until(lambda: len(caplog.records) >= 4)
        assert 1 == len(files(world) - before)
    await recording
    assert JobStatus.succeeded is world.job(job_id).status
    assert 1 == len(files(world) - before)


async def test_a_result_that_is_dropped_while_the_ledger_refuses_it_leaves_no_file(
    world: World, threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    world.prepared(8)
    [lease] = world.claim()
    before, work = files(world), whole(world, lease)
    with read_only(world):
        recording = asyncio.create_task(recorder_of(world, threads).record(work))
        await until(lambda: len(caplog.records) >= 2)
        work.is_dropped = True
        await recording
    assert before == files(world)


async def test_a_result_whose_commit_was_answered_with_an_error_keeps_its_file(
    world: World, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.prepared(8)
    [lease] = world.claim()
    monkeypatch.setattr(world.store.chunks, "record", answer_is_lost(world.store.chunks.record))
    made = recorder_of(world, threads)
    await made.record(whole(world, lease))
    assert {job_id} == made.changed_jobs
    assert ['"yes"'] * 8 == [row["output"].decode() for row in world.results(job_id)]


async def test_a_late_result_leaves_no_file(world: World, threads: Threads) -> None:
    world.prepared(8)
    [late] = world.claim(owner="late")
    world.expire_leases()
    before, work = files(world), whole(world, late)
    await recorder_of(world, threads).record(work)
    assert work.is_dropped
    assert before == files(world)


async def test_the_sweeper_deletes_what_is_old_and_unnamed_only(world: World, threads: Threads) -> None:
    job_id = world.prepared(24)
    world.run()
    kept = {str(path.relative_to(world.blobs.root)) for path in world.blobs.root.rglob("*") if path.is_file()}
    left = [f"jobs/{job_id}/0.1.out_x.parquet", f"jobs/{job_id}/0.in_x.parquet.part", "jobs/job_x/9.in_x.parquet", "x"]
    for name in left:
        world.blobs.put(name, b"left")
    old = time.time() - 2 * DAY
    for name in [*kept, *left]:
        os.utime(world.blobs.path(name), (old, old))
    world.blobs.put("inputs/new", b"about to be named")
    assert len(left) == Sweeper(store=world.store, blobs=world.blobs, threads=threads).sweep()
    found = {str(path.relative_to(world.blobs.root)) for path in world.blobs.root.rglob("*") if path.is_file()}
    assert found == {*kept, "inputs/new"}


def outcome_is_unknown(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The first call is lost with the ledger's connection, and its transaction is still on its way."""
    calls: list[Any] = []

    def lost(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise OutcomeUnknown("lost at its commit")
        return verb(*arguments)

    return lost


async def test_a_window_whose_outcome_is_unknown_leaves_its_files_to_the_sweeper(
    world: World, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger may name them in a moment, although it does not yet."""
    world.submit(24)
    monkeypatch.setattr(world.store.jobs, "commit_window", outcome_is_unknown(world.store.jobs.commit_window))
    preparer = preparer_of(world, threads)
    with pytest.raises(OutcomeUnknown):
        await preparer.run_once()
    left = files(world)
    assert left
    await preparer.run_once()
    assert left < files(world)
    assert files(world) - left == world.store.named_blobs(sorted(files(world)))


async def test_a_dropped_result_whose_outcome_is_unknown_leaves_its_file_to_the_sweeper(
    world: World, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is gone because the commit happened, perhaps: who waits is woken to see."""
    world.prepared(8)
    [lease] = world.claim()
    before, work = files(world), whole(world, lease)
    monkeypatch.setattr(world.store.chunks, "record", outcome_is_unknown(world.store.chunks.record))
    made = recorder_of(world, threads)
    waiter = made._signals.subscribe(world.tenant)
    monkeypatch.setattr(recorder, "_RETRY_SECONDS", 0.2)
    recording = asyncio.create_task(made.record(work))
    await until(lambda: len(files(world) - before) == 1)
    work.is_dropped = True
    await recording
    assert len(files(world) - before) == 1
    assert waiter.is_set()
    assert {lease.job_id} == made.changed_jobs


async def test_a_result_that_waits_long_for_the_ledger_is_no_left_over(
    world: World, threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even if somebody deletes it: it is written again."""
    job_id = world.prepared(8)
    [lease] = world.claim()
    before = files(world)
    sweeper = Sweeper(store=world.store, blobs=world.blobs, threads=threads)
    with read_only(world):
        recording = asyncio.create_task(recorder_of(world, threads).record(whole(world, lease)))
        await until(lambda: len(caplog.records) >= 2)
        [name] = files(world) - before
        os.utime(world.blobs.path(name), (0, time.time() - 2 * DAY))
        tries = len(caplog.records)
        await until(lambda: len(caplog.records) >= tries + 2)
        assert 0 == sweeper.sweep()
        world.blobs.delete(name)
    await recording
    assert [8] == [world.job(job_id).rows_succeeded]
    assert 8 == len(world.results(job_id))


@pytest.mark.parametrize("error", [MemoryError(), OperationalError("SELECT 1", {}, Exception("connection reset"))])
async def test_what_may_pass_fails_no_job_in_preparation(
    world: World, threads: Threads, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job_id = world.submit(24).job.id
    preparer = preparer_of(world, threads)
    cut, times = preparer._cut, iter([True])

    def fails_once(work: Any) -> Any:
        if next(times, False):
            raise error
        return cut(work)

    monkeypatch.setattr(preparer, "_cut", fails_once)
    monkeypatch.setattr("milkrun_engine.dispatch.preparer._SAFETY_SECONDS", 0.01)
    await preparer.run_once()
    assert JobStatus.preparing is world.job(job_id).status
    await asyncio.sleep(0.02)
    await preparer.run_once()
    world.run()
    assert (JobStatus.succeeded, 24) == (world.job(job_id).status, world.job(job_id).rows_succeeded)
