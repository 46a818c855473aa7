"""
Jobs: submit, attach, read, prepare, stop.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, and_, case, func, insert, or_, select, update

from milkrun.status import JobStatus, OnMismatch, Reuse
from milkrun.wire import JobFailure
from milkrun_engine.domain.errors import IdempotencyMismatch, InputsDiffer, InvalidRequest, NotFound, StaleClaim
from milkrun_engine.domain.jobs import (
    Ahead,
    JobFilter,
    JobRecord,
    NewJob,
    NewWindow,
    Preparation,
    Recorded,
    SubmitResult,
)
from milkrun_engine.domain.states import LIVE, ChunkState
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.store.database import Database, scalar, transaction
from milkrun_engine.store.ends import finish, stop
from milkrun_engine.store.feed import cursor_of, lock, stamp
from milkrun_engine.store.making import claimed, insert_job, of_submission, queue_up, read_job
from milkrun_engine.store.records import SqlRow, job_columns, job_record, labelled, preparation
from milkrun_engine.store.schema import chunks, idempotency, input_files, jobs, windows


class Jobs:
    """The verbs of a job; a tenant's verbs see only that tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    def submit(self, new: NewJob) -> SubmitResult:
        """
        Make a job, or find the one that this key or this very call made before.

        Raises:
            IdempotencyMismatch: the key's job has other inputs and `on_mismatch` is fail.
        """
        with self._database.write() as connection:
            if (name := new.idempotency_key or new.submission_id) is not None:
                queue_up(self._database, connection, new.tenant_id, name)
            cursor = cursor_of(connection, new.tenant_id)
            held = self._locked_holder(connection, new.tenant_id, new.idempotency_key)
            if (made := of_submission(connection, new.tenant_id, new.submission_id)) is not None:
                return claimed(connection, made, cursor)
            if held is not None and _is_reused(new, held):
                return claimed(connection, held.id, cursor)
            replaced = cancelled = None
            if held is not None:
                over = JobStatus(held.status) not in LIVE
                if not over:
                    stop(connection, self._database.now, jobs.c.id == held.id)
                    cancelled = held.id
                replaced = held.id
            rows_from = replaced if held is not None and _has_rows_for(new, held) else None
            job_id = insert_job(connection, self._database.now, new, retry_of=replaced, rows_from=rows_from)
            _keep_upload(connection, new)
            changed = [job_id] if cancelled is None else [job_id, cancelled]
            stamp(connection, new.tenant_id, changed, status=True)
            job = read_job(connection, job_id)
            reached(Point.submit_uncommitted)
        return SubmitResult(job=job, claim=job.claim, cursor=cursor, replaced=replaced, cancelled=cancelled)

    def _locked_holder(self, connection: Connection, tenant_id: str, key: str | None) -> SqlRow | None:
        if key is None:
            return None
        return connection.execute(
            select(jobs.c.id, jobs.c.status, jobs.c.rows_failed, jobs.c.input_hash, jobs.c.input_format, jobs.c.model)
            .join_from(idempotency, jobs, jobs.c.id == idempotency.c.job_id)
            .where(idempotency.c.tenant_id == tenant_id, idempotency.c.key == key)
            .with_for_update()
        ).one_or_none()

    @transaction
    def attach(self, tenant_id: str, key: str, input_hash: str | None) -> SubmitResult:
        """
        Find the job of a key and take a new claim on it.

        Raises:
            NotFound: the key has no job.
            InputsDiffer: it has, but with other inputs.
        """
        with self._database.write() as connection:
            queue_up(self._database, connection, tenant_id, key)
            cursor = cursor_of(connection, tenant_id)
            held = self._locked_holder(connection, tenant_id, key)
            if held is None:
                raise NotFound(f"no job has the idempotency key {key!r}; submit one")
            if input_hash is not None and held.input_hash != input_hash:
                raise InputsDiffer(f"job {held.id} has this key but other inputs; submit with on_mismatch='replace'")
            return claimed(connection, held.id, cursor)

    def get(self, tenant_id: str, job_id: str) -> JobRecord:
        """
        Read one job.

        Raises:
            NotFound: this tenant has no such job.
        """
        found = self.by_ids(tenant_id, [job_id])
        if not found:
            raise NotFound(f"there is no job {job_id!r}")
        return found[0]

    def tenant_of(self, job_id: str) -> str:
        """
        Whose job it is.

        Raises:
            NotFound: there is no such job.
        """
        with self._database.read() as connection:
            tenant_id = connection.execute(select(jobs.c.tenant_id).where(jobs.c.id == job_id)).scalar_one_or_none()
        if tenant_id is None:
            raise NotFound(f"there is no job {job_id!r}")
        return str(tenant_id)

    def by_ids(self, tenant_id: str, job_ids: Sequence[str]) -> list[JobRecord]:
        """Read those of the jobs that exist, in no order."""
        with self._database.read() as connection:
            query = select(*job_columns()).where(jobs.c.tenant_id == tenant_id, jobs.c.id.in_(job_ids))
            return [job_record(row) for row in connection.execute(query)]

    def page(
        self,
        tenant_id: str,
        *,
        limit: int,
        before: str | None = None,
        wanted: JobFilter | None = None,
    ) -> list[JobRecord]:
        """Read the jobs that are wanted, newest first, those after job `before` on the list."""
        wanted = wanted or JobFilter()
        query = (
            select(*job_columns())
            .where(jobs.c.tenant_id == tenant_id)
            .order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
            .limit(limit)
        )
        if wanted.statuses:
            query = query.where(jobs.c.status.in_(wanted.statuses))
        if wanted.name is not None:
            query = query.where(_named(wanted.name))
        if wanted.created_after is not None:
            query = query.where(jobs.c.created_at > wanted.created_after)
        if wanted.created_before is not None:
            query = query.where(jobs.c.created_at < wanted.created_before)
        with self._database.read() as connection:
            if before is not None:
                at = connection.execute(
                    select(jobs.c.created_at, jobs.c.id).where(jobs.c.tenant_id == tenant_id, jobs.c.id == before)
                ).one_or_none()
                if at is None:
                    raise NotFound(f"there is no job {before!r} to list on from")
                older = jobs.c.created_at < at.created_at
                query = query.where(or_(older, and_(jobs.c.created_at == at.created_at, jobs.c.id < at.id)))
            return [job_record(row) for row in connection.execute(labelled(query, wanted.labels))]

    def ahead_of(self, job: JobRecord) -> Ahead:
        """What is served before a job by its model: the live jobs of a smaller rank, less those that are paused."""
        rank = select(jobs.c.rank).where(jobs.c.id == job.id).scalar_subquery()
        left = func.coalesce(jobs.c.rows_total, jobs.c.rows_read) - jobs.c.rows_decided
        query = select(func.count(), func.coalesce(func.sum(left), 0)).where(
            jobs.c.model == job.model,
            jobs.c.rank < rank,
            jobs.c.finished_at.is_(None),
            jobs.c.paused.is_(False),
        )
        with self._database.read() as connection:
            count, rows = connection.execute(query).one()
        return Ahead(jobs=count, rows=int(rows))

    def row_errors(self, job_id: str) -> dict[str, int]:
        """Count a job's failed rows by code."""
        with self._database.read() as connection:
            counts: dict[str, int] = {}
            query = select(chunks.c.errors).where(chunks.c.job_id == job_id, chunks.c.rows_failed > 0)
            for errors in connection.execute(query).scalars():
                for code, count in errors.items():
                    counts[code] = counts.get(code, 0) + count
            return counts

    @transaction
    def cancel(self, tenant_id: str, job_id: str, claim: int | None) -> tuple[JobRecord, bool]:
        """
        Stop a job for good; returns it and whether this call did it (an ended job stays as it is).

        Raises:
            NotFound: this tenant has no such job.
            StaleClaim: a later submit or attach owns the job.
        """
        with self._database.write() as connection:
            mine = and_(jobs.c.tenant_id == tenant_id, jobs.c.id == job_id)
            held = connection.execute(select(jobs.c.claim, jobs.c.status).where(mine).with_for_update()).one_or_none()
            if held is None:
                raise NotFound(f"there is no job {job_id!r}")
            stopped = stop(connection, self._database.now, mine, claim=claim)
            if not stopped and JobStatus(held.status) in LIVE:
                raise StaleClaim(f"job {job_id} was claimed again (claim {held.claim}, yours is {claim}); it goes on")
            if stopped:
                stamp(connection, tenant_id, [job_id], status=True)
            reached(Point.cancel_uncommitted)
            return read_job(connection, job_id), stopped

    @transaction
    def cancel_labelled(
        self, tenant_id: str, labels: Mapping[str, str], *, after: str = "", limit: int
    ) -> list[JobRecord]:
        """Stop the live jobs that carry all these labels, in the order of their ids, so many behind an id."""
        query = labelled(
            select(jobs.c.id)
            .where(jobs.c.tenant_id == tenant_id, jobs.c.status.in_(LIVE), jobs.c.id > after)
            .order_by(jobs.c.id)
            .limit(limit),
            labels,
        )
        with self._database.write() as connection:
            found = list(connection.execute(query).scalars())
            if not found:
                return []
            lock(connection, found)
            stopped = [job_id for job_id in found if stop(connection, self._database.now, jobs.c.id == job_id)]
            if stopped:
                stamp(connection, tenant_id, stopped, status=True)
            return [read_job(connection, job_id) for job_id in stopped]

    @transaction
    def fail(self, job_id: str, epoch: int, code: str, message: str) -> bool:
        """End a job that can't go on; what is committed stays readable. False when the epoch has moved on."""
        with self._database.write() as connection:
            matching = and_(jobs.c.id == job_id, jobs.c.epoch == epoch)
            reason = JobFailure(code=code, message=message)
            stopped = stop(connection, self._database.now, matching, to=JobStatus.failed, reason=reason)
            if stopped:
                tenant_id = connection.execute(select(jobs.c.tenant_id).where(jobs.c.id == job_id)).scalar_one()
                stamp(connection, tenant_id, [job_id], status=True)
            return stopped

    def of_unknown_models(self, known: Sequence[str]) -> list[JobRecord]:
        """The unfinished jobs that need a model which is not declared any more."""
        needs = select(chunks.c.job_id).where(
            chunks.c.state.in_([ChunkState.ready, ChunkState.leased]), chunks.c.pool.not_in(known)
        )
        unread = and_(jobs.c.prepared.is_(False), jobs.c.model.not_in(known))
        query = select(*job_columns()).where(jobs.c.status.in_(LIVE), or_(jobs.c.id.in_(needs), unread))
        with self._database.read() as connection:
            return [job_record(row) for row in connection.execute(query)]

    def next_to_prepare(self, but: Sequence[str] = ()) -> Preparation | None:
        """The job whose next window is due, `but` these: the one with the fewest windows, then by rank."""
        query = (
            select(jobs)
            .where(jobs.c.prepared.is_(False), jobs.c.status.in_(LIVE), jobs.c.id.not_in(but))
            .order_by(jobs.c.next_window, jobs.c.rank)
            .limit(1)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
            return preparation(row) if row is not None else None

    @transaction
    def commit_window(self, work: Preparation, window: NewWindow) -> Recorded:
        """
        Add a window and its chunks, and the place reached in the input; the last one may finish the job.

        Nothing is written when the job was stopped or another preparer was first.
        """
        decided = [chunk.counts for chunk in window.chunks if chunk.counts is not None]
        with self._database.write() as connection:
            moved = connection.execute(
                update(jobs)
                .where(
                    jobs.c.id == work.job_id,
                    jobs.c.epoch == work.epoch,
                    jobs.c.next_window == window.number,
                    jobs.c.prepared.is_(False),
                )
                .values(
                    next_window=window.number + 1,
                    next_chunk=work.next_chunk + len(window.chunks),
                    input_position=window.position,
                    rows_read=jobs.c.rows_read + window.rows,
                    rows_decided=jobs.c.rows_decided + sum(counts.rows for counts in decided),
                    rows_succeeded=jobs.c.rows_succeeded + sum(counts.rows_succeeded for counts in decided),
                    rows_failed=jobs.c.rows_failed + sum(counts.rows_failed for counts in decided),
                    rows_refused=jobs.c.rows_refused + sum(counts.rows_failed for counts in decided),
                    prepared=window.last,
                    input_complete=window.last,
                    rows_total=jobs.c.rows_read + window.rows if window.last else None,
                    status=case((jobs.c.status == JobStatus.preparing, JobStatus.queued), else_=jobs.c.status),
                )
                .returning(jobs.c.rank)
            ).one_or_none()
            if moved is None:
                connection.rollback()
                return Recorded(accepted=False)
            _insert_window(connection, self._database.now, work, window, moved.rank)
            ended = finish(connection, self._database.now, work.job_id)
            if window.number == 0 or ended is not None:
                stamp(connection, work.tenant_id, [work.job_id], status=True)
            reached(Point.window_uncommitted)
            return Recorded(accepted=True, ended=ended)

    def unfinished(self) -> int:
        """How many jobs are not over, less those that are paused."""
        with self._database.read() as connection:
            query = select(func.count()).select_from(jobs).where(jobs.c.status.in_(LIVE), jobs.c.paused.is_(False))
            return connection.execute(query).scalar_one()


def _is_reused(new: NewJob, held: SqlRow) -> bool:
    """Decide, under the key's lock, whether its job answers this submit."""
    if new.reuse is Reuse.never:
        return False
    status = JobStatus(held.status)
    if status not in LIVE and status is not JobStatus.succeeded:
        return False
    if new.reuse is Reuse.always or new.input_hash == held.input_hash:
        return status is not JobStatus.succeeded or not _has_too_many_failed(new, held)
    if new.on_mismatch is OnMismatch.fail:
        raise IdempotencyMismatch(
            f"job {held.id} has this idempotency key and other inputs; "
            "use another key, or on_mismatch='replace' to cancel and replace it"
        )
    return False


def _named(name: str) -> ColumnElement[bool]:
    """A name, or its beginning and a star."""
    # Not LIKE, which minds no case in SQLite.
    start = name[:-1]
    return func.substr(jobs.c.name, 1, len(start)) == start if name.endswith("*") else jobs.c.name == name


def _keep_upload(connection: Connection, new: NewJob) -> None:
    """Let no deletion of another job take the uploaded input away."""
    if new.input_file is None:
        return
    query = select(input_files.c.id).where(input_files.c.id == new.input_file).with_for_update(read=True)
    if connection.execute(query).first() is None:
        raise InvalidRequest(f"there is no input file {new.input_file!r}; upload it with POST /api/files first")


def _has_too_many_failed(new: NewJob, held: SqlRow) -> bool:
    return new.reuse is Reuse.failed_rows and new.max_failed_rows is not None and held.rows_failed > new.max_failed_rows


def _has_rows_for(new: NewJob, held: SqlRow) -> bool:
    """Whether the results of the key's ended job are to be taken over: of the same rows, by the same model."""
    same = (new.input_hash, new.input_format, new.model) == (held.input_hash, held.input_format, held.model)
    return new.reuse is Reuse.failed_rows and same


def _insert_window(
    connection: Connection, now: ColumnElement[float], work: Preparation, window: NewWindow, rank: float
) -> None:
    identity = {"job_id": work.job_id, "tenant_id": work.tenant_id}
    connection.execute(
        insert(windows).values(
            **identity,
            number=window.number,
            first_index=window.first_index,
            rows=window.rows,
            position=window.position,
            permutation=window.permutation,
        )
    )
    if not window.chunks:
        return
    committed_at = scalar(connection, now)
    rows = [
        {
            **identity,
            "number": chunk.number,
            "window": window.number,
            "pool": chunk.pool,
            "rank": rank,
            "state": ChunkState.ready if chunk.counts is None else ChunkState.committed,
            "rows": chunk.rows,
            "first_index": chunk.first_index,
            "input_blob": chunk.input_blob,
            "input_sha256": chunk.input_sha256,
            "result_blob": chunk.result_blob,
            "result_sha256": chunk.result_sha256,
            "rows_failed": chunk.counts.rows_failed if chunk.counts else 0,
            "errors": chunk.counts.errors if chunk.counts else None,
            "committed_at": committed_at if chunk.counts else None,
        }
        for chunk in window.chunks
    ]
    connection.execute(insert(chunks), rows)
