"""
The retry of an ended job's failed rows: a job of its own over the same input, which takes the good rows over.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, and_, select

from milkrun.status import InputFormat, JobKind, JobStatus
from milkrun.wire import JobSpec
from milkrun_engine.domain.errors import InputDeleted, NotEnded, NotFound, NothingToRetry
from milkrun_engine.domain.jobs import NewJob, NewRetry, SubmitResult
from milkrun_engine.domain.states import LIVE
from milkrun_engine.store.database import Database, transaction
from milkrun_engine.store.feed import cursor_of, stamp
from milkrun_engine.store.making import claimed, insert_job, of_submission, queue_up, read_job
from milkrun_engine.store.records import SqlRow
from milkrun_engine.store.schema import idempotency, jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A job whose results another takes over."""

    rows: int  #: that it read: their results are its own
    behind: str | None  #: the job that has results of further rows, if it is a retry that was stopped early


class Retries:
    """The verbs of a retry."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    def retry(self, new: NewRetry, has_input: Callable[[str], bool]) -> SubmitResult:
        """
        Make the job that runs an ended job's rows without a result, or find the one that is about it already.

        It takes the parent's idempotency key where the parent still holds it.

        Args:
            has_input: whether the blob of that name is there.

        Raises:
            NotFound: this tenant has no such job.
            NotEnded: it is alive.
            NothingToRetry: it succeeded without failed rows.
            InputDeleted: its input is gone.
        """
        mine = and_(jobs.c.tenant_id == new.tenant_id, jobs.c.id == new.parent)
        with self._database.write() as connection:
            key = connection.execute(select(jobs.c.idempotency_key).where(mine)).scalar_one_or_none()
            if key is not None:
                queue_up(self._database, connection, new.tenant_id, key)
            cursor = cursor_of(connection, new.tenant_id)
            holder = _locked_holder(connection, new.tenant_id, key)
            # Twins are decided one after the other by this lock, also where there is no key.
            parent = connection.execute(select(jobs).where(mine).with_for_update()).one_or_none()
            if parent is None:
                raise NotFound(f"there is no job {new.parent!r}")
            made = of_submission(connection, new.tenant_id, new.submission_id) or _under_way(connection, parent)
            if made is not None:
                return claimed(connection, made, cursor)
            _check(parent, has_input)
            replaced = parent.id if holder == parent.id else None
            job = _job_of(parent, new, key if replaced else None)
            job_id = insert_job(connection, self._database.now, job, retry_of=replaced, rows_from=parent.id)
            stamp(connection, new.tenant_id, [job_id], status=True)
            record = read_job(connection, job_id)
        return SubmitResult(job=record, claim=record.claim, cursor=cursor, replaced=replaced)

    def source(self, job_id: str) -> Source | None:
        """What can be taken over from a job; None when it was deleted."""
        query = select(jobs.c.rows_read, jobs.c.rows_from).where(jobs.c.id == job_id)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return Source(rows=row.rows_read, behind=row.rows_from) if row is not None else None


def _locked_holder(connection: Connection, tenant_id: str, key: str | None) -> str | None:
    if key is None:
        return None
    query = select(idempotency.c.job_id).where(idempotency.c.tenant_id == tenant_id, idempotency.c.key == key)
    return connection.execute(query.with_for_update()).scalar_one_or_none()


def _under_way(connection: Connection, parent: SqlRow) -> str | None:
    """The live job that runs the parent's failed rows already."""
    query = select(jobs.c.id).where(
        jobs.c.tenant_id == parent.tenant_id,
        jobs.c.model == parent.model,
        jobs.c.finished_at.is_(None),
        jobs.c.rows_from == parent.id,
    )
    return connection.execute(query.order_by(jobs.c.created_at).limit(1)).scalar_one_or_none()


def _check(parent: SqlRow, has_input: Callable[[str], bool]) -> None:
    status = JobStatus(parent.status)
    if status in LIVE:
        raise NotEnded(f"job {parent.id} is {status}; wait for its end, or cancel it, then retry it")
    if status is JobStatus.succeeded and parent.rows_failed == 0:
        raise NothingToRetry(f"every row of job {parent.id} has a result; submit it again to run all of them anew")
    if not has_input(parent.input_blob):
        raise InputDeleted(f"the input of job {parent.id} was deleted; submit the rows again")


def _job_of(parent: SqlRow, new: NewRetry, key: str | None) -> NewJob:
    return NewJob(
        tenant_id=parent.tenant_id,
        kind=JobKind(parent.kind),
        model=parent.model,
        spec=JobSpec.model_validate(parent.spec),
        input_hash=parent.input_hash,
        input_blob=parent.input_blob,
        input_format=InputFormat(parent.input_format),
        priority=parent.priority if new.priority is None else new.priority,
        abort_after_failed_rows=parent.abort_after_failed_rows,
        idempotency_key=key,
        submission_id=new.submission_id,
        name=parent.name if new.name is None else new.name,
        description=parent.description,
        labels=parent.labels if new.labels is None else new.labels,
        external_url=parent.external_url if new.external_url is None else new.external_url,
        callback=new.callback,
    )
