"""
What submit, attach and retry share, each inside its own transaction: the key's queue, the new row, the claim.
"""

import msgspec
from sqlalchemy import ColumnElement, Connection, insert, select, update

from milkrun.status import JobStatus
from milkrun_engine.domain import priorities
from milkrun_engine.domain.ids import new_id
from milkrun_engine.domain.jobs import JobRecord, NewJob, SubmitResult
from milkrun_engine.store.database import Database, scalar
from milkrun_engine.store.records import job_columns, job_record
from milkrun_engine.store.schema import idempotency, job_labels, jobs


def queue_up(database: Database, connection: Connection, tenant_id: str, name: str) -> None:
    """Let twins be decided one after the other, also while their key has no row that could be locked."""
    database.lock(connection, f"submit {tenant_id} {name}")


def of_submission(connection: Connection, tenant_id: str, submission_id: str | None) -> str | None:
    """The job that this very call made before its answer was lost, also when another has taken its key since."""
    if submission_id is None:
        return None
    query = select(jobs.c.id).where(jobs.c.tenant_id == tenant_id, jobs.c.submission_id == submission_id)
    return connection.execute(query).scalar_one_or_none()


def insert_job(
    connection: Connection, now: ColumnElement[float], new: NewJob, *, retry_of: str | None, rows_from: str | None
) -> str:
    """
    Add a job with its labels, and give it its key; returns its id.

    Args:
        retry_of: the job that loses the key.
        rows_from: the job whose results are taken over.
    """
    job_id = new_id("job")
    created_at = scalar(connection, now)
    spec = new.spec.model_dump(mode="json", exclude_defaults=True)
    defaults = {name: spec.get(name) for name in ("system_prompt", "output_schema")}
    connection.execute(
        insert(jobs).values(
            id=job_id,
            tenant_id=new.tenant_id,
            kind=new.kind,
            model=new.model,
            status=JobStatus.preparing,
            priority=new.priority,
            rank=priorities.rank(new.priority, created_at),
            idempotency_key=new.idempotency_key,
            submission_id=new.submission_id,
            input_hash=new.input_hash,
            spec=spec,
            defaults=msgspec.json.encode({**defaults, "sampling": new.spec.sampling}),
            name=new.name,
            description=new.description,
            labels=new.labels,
            external_url=new.external_url,
            callback=new.callback,
            retry_of=retry_of,
            rows_from=rows_from,
            created_at=created_at,
            expires_at=None if new.window_seconds is None else created_at + new.window_seconds,
            abort_after_failed_rows=new.abort_after_failed_rows,
            input_blob=new.input_blob,
            input_format=new.input_format,
        )
    )
    if new.labels:
        rows = [
            {"job_id": job_id, "tenant_id": new.tenant_id, "name": name, "value": value}
            for name, value in new.labels.items()
        ]
        connection.execute(insert(job_labels), rows)
    if new.idempotency_key is not None:
        place = {"tenant_id": new.tenant_id, "key": new.idempotency_key}
        content = {"job_id": job_id, "input_hash": new.input_hash}
        moved = connection.execute(
            update(idempotency)
            .where(idempotency.c.tenant_id == new.tenant_id, idempotency.c.key == new.idempotency_key)
            .values(**content)
        )
        if moved.rowcount == 0:
            connection.execute(insert(idempotency).values(**place, **content))
    return job_id


def claimed(connection: Connection, job_id: str, cursor: str) -> SubmitResult:
    """Answer with a job that is there already, and a new claim on it."""
    claim = connection.execute(
        update(jobs).where(jobs.c.id == job_id).values(claim=jobs.c.claim + 1).returning(jobs.c.claim)
    ).scalar_one()
    return SubmitResult(job=read_job(connection, job_id), claim=claim, cursor=cursor, reused=True)


def read_job(connection: Connection, job_id: str) -> JobRecord:
    """Read a job that exists."""
    return job_record(connection.execute(select(*job_columns()).where(jobs.c.id == job_id)).one())
