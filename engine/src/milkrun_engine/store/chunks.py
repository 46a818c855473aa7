"""
Chunks: claim, renew, suspect, record, release; and what readers of results need.
"""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, and_, func, select, update

from milkrun.status import JobStatus
from milkrun_engine.domain.errors import NotFound
from milkrun_engine.domain.jobs import ChunkCounts, ChunkFiles, Readable, Recorded
from milkrun_engine.domain.leases import LEASE_SECONDS, Lease, Suspicion
from milkrun_engine.domain.states import LIVE, ChunkState
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.store.database import Database, transaction
from milkrun_engine.store.ends import finish
from milkrun_engine.store.feed import lock, stamp, stamp_owners
from milkrun_engine.store.posts import DISPATCHER
from milkrun_engine.store.records import job_columns, job_record, lease, write_suspects
from milkrun_engine.store.schema import chunks, jobs, posts, windows


class Chunks:
    """The verbs of a chunk and its lease."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    def claim(self, pool: str, owner: str, limit: int, *, before_rank: float | None = None) -> list[Lease]:
        """
        Lease the next chunks of a pool, by rank; one conditional statement that counts the attempt.

        Args:
            before_rank: only chunks that are due sooner than this.
        """
        due = (
            select(chunks.c.id)
            .join(jobs, jobs.c.id == chunks.c.job_id)
            .where(
                chunks.c.pool == pool,
                chunks.c.state == ChunkState.ready,
                jobs.c.status.in_([JobStatus.queued, JobStatus.running]),
                jobs.c.paused.is_(False),
            )
            .order_by(chunks.c.rank, chunks.c.id)
            .limit(limit)
            .with_for_update(of=chunks, skip_locked=True)
        )
        if before_rank is not None:
            due = due.where(chunks.c.rank < before_rank)
        found = due.cte("due")
        with self._database.write() as connection:
            claimed = connection.execute(
                update(chunks)
                .where(chunks.c.id.in_(select(found.c.id)), chunks.c.state == ChunkState.ready)
                .values(
                    state=ChunkState.leased,
                    lease_owner=owner,
                    lease_epoch=chunks.c.lease_epoch + 1,
                    lease_expires_at=self._database.now + LEASE_SECONDS,
                    attempts=chunks.c.attempts + 1,
                    rows_in_hand=0,
                )
                .returning(chunks)
            ).all()
            of_jobs = select(jobs.c.id, jobs.c.epoch, jobs.c.priority, jobs.c.defaults).where(
                jobs.c.id.in_({row.job_id for row in claimed})
            )
            by_id = {row.id: row for row in connection.execute(of_jobs)}
            leases = [lease(row, by_id[row.job_id]) for row in claimed]
        return sorted(leases, key=lambda claimed: (claimed.rank, claimed.chunk_id))

    @transaction
    def start_jobs(self, job_ids: Sequence[str]) -> list[str]:
        """Move the jobs of claimed chunks from queued to running; returns the tenants whose feed changed."""
        with self._database.write() as connection:
            lock(connection, job_ids)
            started = connection.execute(
                update(jobs)
                .where(jobs.c.id.in_(job_ids), jobs.c.status == JobStatus.queued)
                .values(status=JobStatus.running, started_at=func.coalesce(jobs.c.started_at, self._database.now))
                .returning(jobs.c.id, jobs.c.tenant_id)
            ).all()
            return stamp_owners(connection, sorted((row.id, row.tenant_id) for row in started), status=True)

    @transaction
    def renew(self, owner: str, in_hand: Mapping[tuple[int, int], int]) -> set[int]:
        """
        Extend leases; returns the chunks that are still held.

        Args:
            in_hand: for each (chunk id, lease epoch) the finished rows that wait for their chunk.
        """
        held: set[int] = set()
        with self._database.write() as connection:
            for (chunk_id, epoch), rows in sorted(in_hand.items()):
                renewed = connection.execute(
                    update(chunks)
                    .where(
                        chunks.c.id == chunk_id,
                        chunks.c.state == ChunkState.leased,
                        chunks.c.lease_epoch == epoch,
                        chunks.c.lease_owner == owner,
                    )
                    .values(lease_expires_at=self._database.now + LEASE_SECONDS, rows_in_hand=rows)
                )
                if renewed.rowcount:
                    held.add(chunk_id)
        return held

    @transaction
    def suspect(self, held: Lease, suspects: Mapping[int, Suspicion]) -> bool:
        """Write who was in flight when a replica died, before any of it runs again. False: the lease is lost."""
        with self._database.write() as connection:
            written = connection.execute(update(chunks).where(_held(held)).values(suspects=write_suspects(suspects)))
            return written.rowcount == 1

    @transaction
    def record(self, held: Lease, blob: str, sha256: str, counts: ChunkCounts) -> Recorded:
        """
        Put a result file into the ledger and add its counts; the last chunk finishes the job.

        Decided by two conditional updates in one transaction, the job by its epoch and the chunk
        by its lease: a chunk commits exactly once, and never after its job was stopped.
        """
        with self._database.write() as connection:
            added = connection.execute(
                update(jobs)
                .where(jobs.c.id == held.job_id, jobs.c.epoch == held.job_epoch, jobs.c.status.in_(LIVE))
                .values(
                    rows_decided=jobs.c.rows_decided + counts.rows,
                    rows_succeeded=jobs.c.rows_succeeded + counts.rows_succeeded,
                    rows_failed=jobs.c.rows_failed + counts.rows_failed,
                    rows_unavailable=jobs.c.rows_unavailable + counts.rows_unavailable,
                    prompt_tokens=jobs.c.prompt_tokens + counts.prompt_tokens,
                    cached_tokens=jobs.c.cached_tokens + counts.cached_tokens,
                    completion_tokens=jobs.c.completion_tokens + counts.completion_tokens,
                )
            )
            committed = connection.execute(
                update(chunks)
                .where(_held(held))
                .values(
                    state=ChunkState.committed,
                    result_blob=blob,
                    result_sha256=sha256,
                    rows_failed=counts.rows_failed,
                    rows_in_hand=0,
                    errors=counts.errors,
                    committed_at=self._database.now,
                )
            )
            if added.rowcount != 1 or committed.rowcount != 1:
                connection.rollback()
                return Recorded(accepted=False)
            ended = finish(connection, self._database.now, held.job_id)
            if ended is not None:
                stamp(connection, held.tenant_id, [held.job_id], status=True)
            reached(Point.record_uncommitted)
            return Recorded(accepted=True, ended=ended)

    @transaction
    def release(self, owner: str) -> int:
        """Give an owner's leases back, at its end."""
        with self._database.write() as connection:
            return self._free(connection, chunks.c.lease_owner == owner)

    @transaction
    def take_over(self, dispatcher: str, term: int) -> bool:
        """Give all leases back, for the dispatcher of a new term; false, and nothing done, when that is over."""
        post = select(posts.c.name).where(
            posts.c.name == DISPATCHER, posts.c.holder == dispatcher, posts.c.term == term
        )
        with self._database.write() as connection:
            if connection.execute(post.with_for_update()).first() is None:  # nobody else is elected meanwhile
                return False
            self._free(connection, chunks.c.id.is_not(None))
            return True

    @transaction
    def rescue(self, but: Collection[int] = ()) -> int:
        """Give back the leases that ended without a renewal, `but` those of these chunks."""
        with self._database.write() as connection:
            return self._free(connection, self._is_late(but))

    def _is_late(self, but: Collection[int]) -> ColumnElement[bool]:
        late = chunks.c.lease_expires_at < self._database.now
        return and_(late, chunks.c.id.not_in(but)) if but else late

    def _free(self, connection: Connection, matching: ColumnElement[bool]) -> int:
        # None that its dispatcher is just renewing.
        late = (
            select(chunks.c.id).where(chunks.c.state == ChunkState.leased, matching).with_for_update(skip_locked=True)
        )
        freed = connection.execute(
            update(chunks)
            .where(chunks.c.id.in_(late))
            .values(state=ChunkState.ready, lease_owner=None, lease_expires_at=None, rows_in_hand=0)
        )
        return freed.rowcount

    def expired(self, but: Collection[int] = ()) -> bool:
        """Whether there is a lease to rescue (a read: most of the time there is none)."""
        with self._database.read() as connection:
            late = select(chunks.c.id).where(chunks.c.state == ChunkState.leased, self._is_late(but))
            return connection.execute(late.limit(1)).first() is not None

    def busy_pools(self) -> set[str]:
        """The pools with chunks that are not decided, those of paused jobs apart."""
        # One query a state: each then reads its own partial index, and no committed chunk.
        ready, leased = (
            select(chunks.c.pool).where(chunks.c.state == state).distinct()
            for state in (ChunkState.ready, ChunkState.leased)
        )
        paused = select(jobs.c.id).where(jobs.c.paused.is_(True), jobs.c.finished_at.is_(None))
        with self._database.read() as connection:
            if connection.execute(paused.limit(1)).first() is not None:
                ready = ready.where(chunks.c.job_id.not_in(paused))
            return set(connection.execute(ready.union(leased)).scalars())

    def readable(self, tenant_id: str, job_id: str) -> Readable:
        """
        How far a job's result can be read: up to the first undecided row, or to its end once it is over.

        Raises:
            NotFound: this tenant has no such job.
        """
        with self._database.read() as connection:
            row = connection.execute(
                select(*job_columns()).where(jobs.c.tenant_id == tenant_id, jobs.c.id == job_id)
            ).one_or_none()
            if row is None:
                raise NotFound(f"there is no job {job_id!r}")
            job = job_record(row)
            if job.status not in LIVE:
                return Readable(job=job, settled=job.rows_read, complete=True)
            undecided = connection.execute(
                select(func.min(chunks.c.first_index)).where(
                    chunks.c.job_id == job_id, chunks.c.state != ChunkState.committed
                )
            ).scalar_one()
        return Readable(job=job, settled=job.rows_read if undecided is None else undecided, complete=False)

    def windows(self, job_id: str, first: int, end: int) -> list[int]:
        """The numbers of the windows that hold rows `first` to `end` (exclusive)."""
        query = (
            select(windows.c.number)
            .where(
                windows.c.job_id == job_id, windows.c.first_index + windows.c.rows > first, windows.c.first_index < end
            )
            .order_by(windows.c.number)
        )
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def files(self, job_id: str, window: int) -> list[ChunkFiles]:
        """The files of a window's chunks, by their first row."""
        query = (
            select(chunks).where(chunks.c.job_id == job_id, chunks.c.window == window).order_by(chunks.c.first_index)
        )
        with self._database.read() as connection:
            return [
                ChunkFiles(
                    number=row.number,
                    window=row.window,
                    first_index=row.first_index,
                    rows=row.rows,
                    input_blob=row.input_blob,
                    input_sha256=row.input_sha256,
                    result_blob=row.result_blob,
                    result_sha256=row.result_sha256,
                )
                for row in connection.execute(query)
            ]


def _held(held: Lease) -> ColumnElement[bool]:
    return and_(chunks.c.id == held.chunk_id, chunks.c.state == ChunkState.leased, chunks.c.lease_epoch == held.epoch)
