"""
What is done to a job from outside while it runs, or after: pause and resume, the end of its window, deletion.
"""

from sqlalchemy import Connection, and_, delete, insert, select, update

from milkrun.status import JobStatus
from milkrun_engine.domain.errors import AlreadyEnded, NotEnded, NotFound
from milkrun_engine.domain.jobs import JobRecord
from milkrun_engine.domain.states import LIVE
from milkrun_engine.store.database import LARGE_JOB_SECONDS, Database, scalar, transaction, unhurried
from milkrun_engine.store.ends import stop
from milkrun_engine.store.feed import lock, number_of_change, raise_floor, stamp, stamp_owners
from milkrun_engine.store.records import job_columns, job_record
from milkrun_engine.store.schema import callbacks, chunks, deleted_jobs, idempotency, input_files, job_labels, jobs
from milkrun_engine.store.schema import windows as window_rows


class Controls:
    """The verbs of those who watch over jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    def pause(self, tenant_id: str, job_id: str, *, paused: bool) -> JobRecord:
        """
        Hold a job back, or let it go on; what is leased already is finished either way.

        Raises:
            NotFound: this tenant has no such job.
            AlreadyEnded: the job is over.
        """
        mine = and_(jobs.c.tenant_id == tenant_id, jobs.c.id == job_id)
        with self._database.write() as connection:
            held = connection.execute(select(jobs.c.status, jobs.c.paused).where(mine).with_for_update()).one_or_none()
            if held is None:
                raise NotFound(f"there is no job {job_id!r}")
            if JobStatus(held.status) not in LIVE:
                raise AlreadyEnded(f"job {job_id} has ended as {held.status}: there is nothing to pause or resume")
            if held.paused is not paused:
                connection.execute(update(jobs).where(mine).values(paused=paused))
                stamp(connection, tenant_id, [job_id], status=True)
            return job_record(connection.execute(select(*job_columns()).where(mine)).one())

    def overdue(self) -> bool:
        """Whether a live job's completion window has closed (a read: most of the time there is none)."""
        late = select(jobs.c.id).where(jobs.c.expires_at < self._database.now, jobs.c.finished_at.is_(None))
        with self._database.read() as connection:
            return connection.execute(late.limit(1)).first() is not None

    @transaction
    def expire(self, limit: int) -> list[tuple[str, str]]:
        """End live jobs whose completion window has closed, at most so many at once; returns their ids and tenants."""
        late = (
            select(jobs.c.id)
            .where(jobs.c.expires_at < self._database.now, jobs.c.finished_at.is_(None))
            .order_by(jobs.c.expires_at)
            .limit(limit)
        )
        with self._database.write() as connection:
            owned = lock(connection, list(connection.execute(late).scalars()))
            now = self._database.now
            ended = [pair for pair in owned if stop(connection, now, jobs.c.id == pair[0], to=JobStatus.expired)]
            stamp_owners(connection, ended, status=True)
            return ended

    @transaction
    def delete(self, tenant_id: str, job_id: str) -> list[str]:
        """
        Forget an ended job, its results and its input; returns the blobs that no row names any more.

        Readers of the feed are told its id. Its idempotency key is free again. Doing it again does nothing.

        Raises:
            NotFound: this tenant has no such job.
            NotEnded: it is alive; cancel it first.
        """
        mine = and_(jobs.c.tenant_id == tenant_id, jobs.c.id == job_id)
        key = select(jobs.c.idempotency_key).where(mine).scalar_subquery()
        with self._database.write() as connection, unhurried(connection, LARGE_JOB_SECONDS):
            connection.execute(
                delete(idempotency).where(
                    idempotency.c.tenant_id == tenant_id, idempotency.c.key == key, idempotency.c.job_id == job_id
                )
            )
            query = select(jobs.c.status, jobs.c.input_blob).where(mine).with_for_update()
            held = connection.execute(query).one_or_none()
            if held is None:
                if self._is_deleted(connection, tenant_id, job_id):
                    return []
                raise NotFound(f"there is no job {job_id!r}")
            if JobStatus(held.status) in LIVE:
                raise NotEnded(f"job {job_id} is {held.status}; cancel it first, then delete it")
            files = select(chunks.c.input_blob, chunks.c.result_blob).where(chunks.c.job_id == job_id)
            names = {held.input_blob, *(name for row in connection.execute(files) for name in row if name)}
            for table in (chunks, window_rows, callbacks, job_labels):
                connection.execute(delete(table).where(table.c.job_id == job_id))
            connection.execute(delete(jobs).where(mine))
            upload = input_files.c.blob == held.input_blob
            connection.execute(select(input_files.c.id).where(upload).with_for_update())  # a submit may be using it
            others = select(jobs.c.id).where(jobs.c.input_blob == held.input_blob)
            if connection.execute(others.limit(1)).first() is None:
                connection.execute(delete(input_files).where(upload))
            else:
                names.discard(held.input_blob)
            connection.execute(
                insert(deleted_jobs).values(
                    job_id=job_id,
                    tenant_id=tenant_id,
                    deleted_at=scalar(connection, self._database.now),
                    change_number=number_of_change(connection, tenant_id),
                )
            )
            return sorted(names)

    def _is_deleted(self, connection: Connection, tenant_id: str, job_id: str) -> bool:
        query = select(deleted_jobs.c.job_id).where(
            deleted_jobs.c.tenant_id == tenant_id, deleted_jobs.c.job_id == job_id
        )
        return connection.execute(query).first() is not None

    @transaction
    def forget_deleted(self, older_than_seconds: float) -> int:
        """
        Drop what is remembered of jobs deleted longer ago than this; returns how many.

        A reader whose cursor is older than that is told `cursor_lost`.
        """
        old = deleted_jobs.c.deleted_at < self._database.now - older_than_seconds
        with self._database.write() as connection:
            numbers = connection.execute(
                delete(deleted_jobs).where(old).returning(deleted_jobs.c.tenant_id, deleted_jobs.c.change_number)
            ).all()
            floors: dict[str, int] = {}
            for row in numbers:
                floors[row.tenant_id] = max(floors.get(row.tenant_id, 0), row.change_number)
            for tenant_id, floor in sorted(floors.items()):
                raise_floor(connection, tenant_id, floor)
            return len(numbers)
