"""
A ledger with its blobs, and every step of a job's life by hand: submit, prepare, claim, finish.

`World` calls the engine's own code without its loops, so a test decides what happens when.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from milkrun.hashing import input_hash, row_line
from milkrun.status import InputFormat, JobKind
from milkrun.wire import JobSpec
from milkrun_engine.blobs import chunk_files
from milkrun_engine.blobs.chunk_files import ResultRow
from milkrun_engine.blobs.files import FileSystem
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.dispatch.preparer import Preparer
from milkrun_engine.dispatch.work import ChunkWork
from milkrun_engine.domain.ids import new_id
from milkrun_engine.domain.jobs import ChunkCounts, JobRecord, NewJob, NewWindow, Preparation, Recorded, SubmitResult
from milkrun_engine.domain.leases import LEASE_SECONDS, Lease
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.domain.states import LIVE
from milkrun_engine.replicas.base import Outcome
from milkrun_engine.service.results import ResultReader
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads
from milkrun_engine.store import Store
from milkrun_engine.store.posts import DISPATCHER
from milkrun_engine.store.tenants import DEFAULT_TENANT

MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec(name="echo", weights="", replica="echo", is_default=True),
        ModelSpec(name="other", weights="", replica="echo"),
        ModelSpec(name="vectors", weights="", replica="echo", kind=JobKind.embed, is_default=True),
    )
}
Answer = Callable[[int, bytes], Outcome]


class NoSync(FileSystem):
    """The calls of the operating system, less those that only a power cut would miss."""

    def sync(self, file: Any) -> None:
        file.flush()

    def sync_folder(self, folder: Path) -> None:
        pass


def echo(index: int, body: bytes) -> Outcome:
    """An answer that is a function of the row alone; a row that says `fail` fails."""
    if b"fail" in body:
        return Outcome(index, error_code="invalid_row", error_message="it asked to fail")
    return Outcome(index, output=json.dumps(f"echo {len(body)}").encode(), prompt_tokens=2, completion_tokens=1)


@dataclass
class World:
    """One ledger with its blobs in a folder."""

    folder: Path
    place: Path | str  #: of the ledger: a file of SQLite, or the URL of a Postgres database
    store: Store
    blobs: LocalBlobs
    tenant: str = DEFAULT_TENANT
    models: dict[str, ModelSpec] = field(default_factory=lambda: dict(MODELS))

    def __post_init__(self) -> None:
        # A test that ends its process at will has the page cache still: only a power cut would miss the syncs.
        if isinstance(self.place, Path):
            with self.store.database.writer.connect() as connection:
                connection.rollback()
                connection.connection.execute("PRAGMA synchronous=OFF")  # type: ignore[attr-defined]

    @classmethod
    def open(cls, folder: Path, place: str | None = None, *, tenant: str = DEFAULT_TENANT) -> "World":
        """Open what is there, or begin; the ledger is a file in the folder unless a URL says otherwise."""
        where = place or folder / "milkrun.db"
        store = Store(where)
        store.tenants.ensure(tenant)
        return cls(folder, where, store, LocalBlobs(folder / "blobs", NoSync()), tenant)

    def reopen(self) -> None:
        """Let the process end and another one begin: all leases are given back."""
        offset = self.store.database.clock_offset_seconds
        self.store.close()
        self.store = self.another_store(offset)
        self.take_over()
        self.__post_init__()

    def take_over(self, dispatcher: str = "next") -> None:
        """Let a dispatcher begin its term: all leases are given back."""
        self.store.posts.leave(DISPATCHER)
        post = self.store.posts.take(DISPATCHER, dispatcher, LEASE_SECONDS, {})
        assert self.store.chunks.take_over(dispatcher, post.term)

    def another_store(self, clock_offset_seconds: float = 0.0) -> Store:
        """The same ledger, as another process sees it."""
        return Store(self.place, clock_offset_seconds=clock_offset_seconds)

    def close(self) -> None:
        """Let go of the files."""
        self.store.close()

    def advance(self, seconds: float) -> None:
        """Move the ledger's clock."""
        self.store.database.clock_offset_seconds += seconds

    def a_job(self, rows: int | Sequence[Any] = 24, **facts: Any) -> NewJob:
        """A job about to be submitted; its input lies in the blobs."""
        values = [f"row {number}" for number in range(rows)] if isinstance(rows, int) else rows
        data = b"".join(value if isinstance(value, bytes) else row_line(value) for value in values)
        return self.a_job_of(data, InputFormat.jsonl, **facts)

    def a_job_of(self, data: bytes, form: InputFormat, **facts: Any) -> NewJob:
        """A job over a file of these bytes."""
        spec = facts.pop("spec", None) or JobSpec()
        model = facts.pop("model", "vectors" if spec.kind is JobKind.embed else "echo")
        blob = f"inputs/{new_id('file')}"
        sha256 = self.blobs.put(blob, data)
        plain = {
            "tenant_id": self.tenant, "kind": spec.kind, "model": model, "spec": spec, "input_format": form,
            "input_hash": input_hash(spec, sha256), "input_blob": blob,
        }  # fmt: skip
        return NewJob(**(plain | facts))

    def submit(self, rows: int | Sequence[Any] = 24, **facts: Any) -> SubmitResult:
        """Submit rows."""
        return self.store.jobs.submit(self.a_job(rows, **facts))

    def cut(self, work: Preparation) -> NewWindow:
        """Read a window and write its files, without the ledger."""
        preparer = Preparer(
            store=self.store, blobs=self.blobs, threads=Threads(), signals=Signals(), models=self.models
        )  # fmt: skip
        return preparer._cut(work)

    def prepare_window(self) -> tuple[NewWindow, Recorded] | None:
        """Commit the next window that is due, if there is one."""
        work = self.store.jobs.next_to_prepare()
        if work is None:
            return None
        window = self.cut(work)
        return window, self.store.jobs.commit_window(work, window)

    def prepare(self) -> None:
        """Read every input to its end."""
        while self.prepare_window():
            pass

    def prepared(self, rows: int | Sequence[Any] = 24, **facts: Any) -> str:
        """Submit and prepare a job; returns its id."""
        job_id = self.submit(rows, **facts).job.id
        self.prepare()
        return job_id

    def claim(self, limit: int = 1, *, pool: str = "echo", owner: str = "one", **options: Any) -> list[Lease]:
        """Lease chunks as the dispatcher does."""
        leases = self.store.chunks.claim(pool, owner, limit, **options)
        self.store.chunks.start_jobs([lease.job_id for lease in leases])
        return leases

    def work(self, lease: Lease, answer: Answer = echo) -> tuple[list[ResultRow], ChunkCounts]:
        """Answer a chunk's rows."""
        rows = chunk_files.read_input(self.blobs.read(lease.input_blob, lease.input_sha256))
        work = ChunkWork(lease, rows)
        slots = {slot for slot in range(len(rows)) if slot not in work.results}
        for slot in sorted(slots):
            assert work.settle(answer(rows[slot].index, rows[slot].body), slots)
        assert work.is_whole
        results = list(work.results.values())
        return results, chunk_files.count(results)

    def finish(self, lease: Lease, answer: Answer = echo) -> Recorded:
        """Answer a chunk and try to commit it."""
        results, counts = self.work(lease, answer)
        blob = f"jobs/{lease.job_id}/{lease.number}.{lease.epoch}.{new_id('out')}.parquet"
        sha256 = self.blobs.put(blob, chunk_files.write_result(results))
        recorded = self.store.chunks.record(lease, blob, sha256, counts)
        if not recorded.accepted:
            self.blobs.delete(blob)
        return recorded

    def run(self, pool: str = "echo") -> None:
        """Claim and finish all that waits for a pool; a job whose rows fail too often ends before its last chunk."""
        while leases := self.claim(16, pool=pool):
            for lease in leases:
                assert self.finish(lease).accepted or self.job(lease.job_id).status not in LIVE

    def expire_leases(self) -> int:
        """Let every lease end, and rescue what it held."""
        self.advance(LEASE_SECONDS + 1)
        return self.store.chunks.rescue()

    def job(self, job_id: str) -> JobRecord:
        """A job as it stands."""
        return self.store.jobs.get(self.tenant, job_id)

    @property
    def reader(self) -> ResultReader:
        """Reads results."""
        return ResultReader(self.store, self.blobs)

    def results(self, job_id: str, after: int = -1) -> list[dict[str, Any]]:
        """The readable rows behind a row."""
        readable = self.reader.readable(self.tenant, job_id)
        return [row for table in self.reader.tables(readable, after) for row in table.to_pylist()]


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated ledger without jobs, to copy."""
    folder = tmp_path_factory.mktemp("empty_ledger")
    World.open(folder).close()
    return folder / "milkrun.db"


@pytest.fixture
def world(tmp_path: Path, empty_ledger: Path) -> Iterator[World]:
    """A new ledger with the default tenant."""
    shutil.copy(empty_ledger, tmp_path / "milkrun.db")
    opened = World.open(tmp_path)
    yield opened
    opened.close()
