"""
Ten promises, each the one test of a planted fault (see `test_planted_faults.py`).
"""

import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from checker import Place, check_ledger
from checker.ledger import opened, read_ledger
from faults.journal import COMMIT, Journal, durable
from fix_api import serve
from fix_store import World
from sqlalchemy import Connection

from milkrun.status import FeedEvents, JobStatus
from milkrun_engine import app
from milkrun_engine.blobs import chunk_files
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.dispatch.recorder import Recorder
from milkrun_engine.dispatch.work import ChunkWork
from milkrun_engine.domain.leases import LEASE_SECONDS
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.base import HandOut, Outcome, ReplicaDied, ReplicaHandle
from milkrun_engine.replicas.local import LocalPool
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads
from milkrun_engine.store.database import Database

pytestmark = pytest.mark.engine
HOUR = 3_600.0


def _late(index: int, _body: bytes) -> Outcome:
    return Outcome(index, output=b'"late"', prompt_tokens=50)


def test_a_lost_lease_does_not_commit(world: World) -> None:
    """The old holder of a lease writes nothing while the new one works."""
    job_id = world.prepared(8)
    [old] = world.claim(owner="old")
    world.expire_leases()
    [new] = world.claim(owner="new")
    assert not world.finish(old, _late).accepted
    assert world.finish(new).accepted
    assert b'"late"' not in {row["output"] for row in world.results(job_id)}
    assert [] == check_ledger(_of(world))


def test_a_late_commit_counts_nothing(world: World) -> None:
    """Counts are part of the commit: one that is refused, in a job that goes on, leaves them alone."""
    job_id = world.prepared(24)
    [old] = world.claim(owner="old")
    world.expire_leases()
    [new] = world.claim(owner="new")
    assert world.finish(new).accepted
    world.finish(old, _late)
    assert 8 == world.job(job_id).rows_decided
    world.run()
    assert JobStatus.succeeded == world.job(job_id).status
    assert [] == check_ledger(_of(world))


def test_nothing_commits_after_a_cancel(world: World) -> None:
    """A chunk that was leased before the cancel is refused after it."""
    job_id = world.prepared(24)
    [first, second] = world.claim(2)
    assert world.finish(first).accepted
    world.advance(1)
    world.store.jobs.cancel(world.tenant, job_id, None)
    world.advance(1)
    assert not world.finish(second).accepted
    assert 8 == world.job(job_id).rows_decided
    assert [] == check_ledger(_of(world))


def test_leases_keep_the_ledgers_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller whose clock is an hour ahead takes no lease early and holds none longer."""
    true_time = time.time
    world.prepared(16)
    world.claim(owner="right")
    monkeypatch.setattr(time, "time", lambda: true_time() + HOUR)
    assert not world.store.chunks.expired()
    assert 0 == world.store.chunks.rescue()
    world.claim(owner="ahead")
    monkeypatch.setattr(time, "time", true_time)
    world.advance(LEASE_SECONDS + 1)
    assert world.store.chunks.expired()
    assert 2 == world.store.chunks.rescue()


CLAIM_AND_DIE = """
import os, signal, sys
from pathlib import Path
from milkrun_engine.store import Store
store = Store(sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1]))
store.chunks.release("doomed")
assert store.chunks.claim("echo", "doomed", 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_sigkill_counts_as_an_attempt(world: World) -> None:
    """A claim counts the attempt, so that a process that is killed over and over is seen."""
    world.prepared(8)
    for _ in range(2):
        doomed = subprocess.run([sys.executable, "-c", CLAIM_AND_DIE, str(world.place)], check=False)
        assert -signal.SIGKILL == doomed.returncode
    world.store.chunks.release("doomed")
    [lease] = world.claim()
    assert 3 == lease.attempts


def test_no_reader_of_the_feed_misses_an_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the feed between any two transactions sees every job end."""
    store = world.store
    seen: set[str] = set()
    cursor = store.feed.cursor(world.tenant)
    write = Database.write

    def read() -> None:
        nonlocal cursor
        page = store.feed.changes(world.tenant, cursor, FeedEvents.end, {}, 100)
        cursor = page.cursor
        seen.update(job.id for job in page.jobs)

    @contextmanager
    def read_after(database: Database) -> Iterator[Connection]:
        with write(database) as connection:
            yield connection
        read()

    monkeypatch.setattr(Database, "write", read_after)
    finished = [world.prepared(8), world.prepared([None])]
    world.run()
    cancelled = world.prepared(8)
    store.jobs.cancel(world.tenant, cancelled, None)
    assert {*finished, cancelled} == seen


@pytest.mark.anyio
async def test_an_answer_comes_after_the_disk(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submit answers once the input is on disk and the ledger, which names it, after that."""
    journal = Journal()
    monkeypatch.setattr(app, "LocalBlobs", lambda root: LocalBlobs(root, journal))
    async with serve(tmp_path, **_settings(place)) as api:
        journal.watch(api.engine.store)
        job_id = (await api.submit(["a", "b"]))["job"]["id"]
        journal.tell("answered")
        uploaded = await api.mine.post("/api/files?format=jsonl", content=b'"a"\n')
        journal.tell("answered the upload")
    order = [durable(str(read_ledger(place, job_id).job["input_blob"])), COMMIT, "answered"]
    assert order == sorted(order, key=journal.place), journal.lines
    assert journal.place(durable(uploaded.json()["id"])) < journal.place("answered the upload")


@pytest.mark.anyio
async def test_a_commit_names_a_file_on_disk(world: World) -> None:
    """The ledger names a result file only once it can't be lost."""
    job_id = world.prepared(8)
    [lease] = world.claim()
    work = ChunkWork(lease, chunk_files.read_input(world.blobs.read(lease.input_blob, lease.input_sha256)))
    for slot, row in enumerate(work.rows):
        work.settle(Outcome(row.index, output=b'"yes"'), {slot})
    journal, threads = Journal(), Threads()
    journal.watch(world.store)
    blobs = LocalBlobs(world.blobs.root, journal)
    await Recorder(store=world.store, blobs=blobs, threads=threads, signals=Signals()).record(work)
    threads.stop()
    assert JobStatus.succeeded == world.job(job_id).status
    [chunk] = world.store.chunks.files(job_id, 0)
    assert chunk.result_blob is not None
    assert [durable(chunk.result_blob), COMMIT] == journal.lines
    assert [] == check_ledger(_of(world))


def test_a_blob_is_on_disk_before_its_name(tmp_path: Path) -> None:
    """A blob's bytes are synced, then it is renamed, then its folder is synced."""
    journal = Journal()
    blobs = LocalBlobs(tmp_path, journal)
    blobs.put("jobs/one/0.parquet", b"bytes")
    assert [durable("0.parquet")] == journal.lines
    assert [tmp_path / "jobs/one/0.parquet"] == [path for path in tmp_path.rglob("*") if path.is_file()]


class WitnessedPool(LocalPool):
    """
    A local pool that looks into the ledger before each hand-out.

    `unwritten` are the rows that were handed out again though they were in flight at a death
    and the ledger did not know.
    """

    def __init__(self, data_dir: Path, place: Place) -> None:
        super().__init__(data_dir)
        self._place = place
        self.unwritten: list[int] = []
        self.handed_again = 0
        self.in_flight_at_death: set[int] = set()

    async def start_replica(self, spec: ModelSpec) -> Any:
        return WitnessedHandle(await super().start_replica(spec), self)

    def witness(self, handout: HandOut) -> None:
        """Note the rows of a hand-out that ought to stand in the ledger as suspects and do not."""
        with opened(self._place) as ledger:
            (chunk,) = ledger.ask("SELECT first_index, suspects FROM chunks WHERE number = ?", handout.chunk)
        for row in handout.rows:
            if row.index in self.in_flight_at_death:
                self.handed_again += 1
                if str(row.index - chunk["first_index"]) not in chunk["suspects"]:
                    self.unwritten.append(row.index)


class WitnessedHandle:
    """A replica's handle that tells its pool what it is given, and what it had at its death."""

    def __init__(self, handle: ReplicaHandle, pool: WitnessedPool) -> None:
        self._handle = handle
        self._pool = pool
        self.placed = handle.placed
        self.ready: Callable[[], Any] = handle.ready
        self.beat = handle.beat
        self.kill = handle.kill
        self.abort = handle.abort
        self.stop = handle.stop

    async def run(self, handout: HandOut) -> AsyncIterator[list[Outcome]]:
        self._pool.witness(handout)
        waiting = {row.index for row in handout.rows}
        try:
            async for outcomes in self._handle.run(handout):
                waiting -= {outcome.index for outcome in outcomes}
                yield outcomes
        except ReplicaDied:
            self._pool.in_flight_at_death |= waiting
            raise


@pytest.mark.anyio
async def test_suspects_are_written_before_they_run_again(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in flight at a replica's death stand in the ledger before any of them is handed out again."""
    pool = WitnessedPool(tmp_path, place)
    monkeypatch.setattr(app, "_make_pool", lambda _settings: pool)
    models = tmp_path / "models.yaml"
    models.write_text(yaml.safe_dump({"models": [{"name": "echo", "engine_args": {"window_rows": 4}}]}))
    async with serve(tmp_path, duties=True, models=models, **_settings(place)) as api:
        job_id = (await api.submit(["a", "b", "die: now", "d"]))["job"]["id"]
        cursor, deadline = (await api.mine.get("/api/changes")).json()["cursor"], time.monotonic() + 25
        while pool.handed_again < 2 and time.monotonic() < deadline:
            await api.mine.get("/api/changes", params={"after": cursor, "wait": 0.2})
        await api.mine.post(f"/api/jobs/{job_id}/cancel")
    assert pool.handed_again >= 2
    assert [] == pool.unwritten


def _of(world: World) -> Place:
    return Place(world.blobs.root, world.place)


def _settings(place: Place) -> dict[str, Any]:
    return {"database_url": place.database} if isinstance(place.database, str) else {}
