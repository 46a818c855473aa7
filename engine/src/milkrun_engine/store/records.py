"""
From rows of SQL to the domain's records.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import ColumnElement, Select, case, func, select

from milkrun.status import InputFormat, JobKind, JobStatus
from milkrun.wire import JobSpec
from milkrun_engine.domain.jobs import JobRecord, Preparation
from milkrun_engine.domain.leases import Lease, Suspicion
from milkrun_engine.domain.states import ChunkState
from milkrun_engine.store.schema import chunks, job_labels, jobs

S = TypeVar("S", bound=Select[Any])
SqlRow: TypeAlias = Any  # SQLAlchemy 2.0 and 2.1 disagree on how Row is generic

_DIRECT = (
    "id tenant_id epoch claim priority paused idempotency_key input_hash name description labels external_url "
    "retry_of rows_from expires_at abort_after_failed_rows failure_code failure_message created_at started_at "
    "finished_at rows_total rows_read rows_decided rows_succeeded rows_failed prepared input_complete prompt_tokens "
    "cached_tokens completion_tokens"
).split()


def job_columns() -> list[ColumnElement[Any]]:
    """What a `JobRecord` is read from."""
    in_hand = (
        select(func.coalesce(func.sum(chunks.c.rows_in_hand), 0))
        .where(chunks.c.job_id == jobs.c.id, chunks.c.state == ChunkState.leased)
        .scalar_subquery()
    )
    # Born committed, and not for being refused: such chunks are copies, and only a run of failed rows has any.
    copied = (
        select(func.coalesce(func.sum(chunks.c.rows), 0))
        .where(
            chunks.c.job_id == jobs.c.id,
            chunks.c.state == ChunkState.committed,
            chunks.c.attempts == 0,
            chunks.c.rows_failed == 0,
        )
        .scalar_subquery()
    )
    return [
        *(jobs.c[name] for name in _DIRECT),
        jobs.c.kind,
        jobs.c.model,
        jobs.c.status,
        in_hand.label("rows_in_hand"),
        case((jobs.c.rows_from.is_not(None), copied), else_=0).label("rows_reused"),
    ]


def job_record(row: SqlRow) -> JobRecord:
    """Read a job."""
    direct = {name: getattr(row, name) for name in _DIRECT}
    return JobRecord(
        **direct,
        kind=JobKind(row.kind),
        model=row.model,
        status=JobStatus(row.status),
        rows_in_hand=row.rows_in_hand,
        rows_reused=int(row.rows_reused),  # Postgres adds up to a decimal
    )


def labelled(query: S, labels: Mapping[str, str]) -> S:
    """Keep only jobs that carry all these labels."""
    for name, value in labels.items():
        match = select(job_labels.c.job_id).where(
            job_labels.c.tenant_id == jobs.c.tenant_id, job_labels.c.name == name, job_labels.c.value == value
        )
        query = query.where(jobs.c.id.in_(match))
    return query


def preparation(row: SqlRow) -> Preparation:
    """Read what the preparer needs of a job."""
    return Preparation(
        job_id=row.id,
        tenant_id=row.tenant_id,
        epoch=row.epoch,
        spec=JobSpec.model_validate(row.spec),
        model=row.model,
        rank=row.rank,
        priority=row.priority,
        input_blob=row.input_blob,
        input_format=InputFormat(row.input_format),
        position=row.input_position,
        rows_read=row.rows_read,
        rows_from=row.rows_from,
        next_window=row.next_window,
        next_chunk=row.next_chunk,
    )


def lease(row: SqlRow, job: SqlRow) -> Lease:
    """Read a claimed chunk and its job."""
    return Lease(
        chunk_id=row.id,
        number=row.number,
        job_id=row.job_id,
        tenant_id=row.tenant_id,
        pool=row.pool,
        rank=row.rank,
        priority=job.priority,
        epoch=row.lease_epoch,
        job_epoch=job.epoch,
        attempts=row.attempts,
        rows=row.rows,
        input_blob=row.input_blob,
        input_sha256=row.input_sha256,
        defaults=job.defaults,
        suspects=read_suspects(row.suspects),
    )


def read_suspects(value: Mapping[str, list[int]]) -> dict[int, Suspicion]:
    """Read `chunks.suspects`."""
    return {int(slot): Suspicion(deaths=deaths, alone=alone) for slot, (deaths, alone) in value.items()}


def write_suspects(suspects: Mapping[int, Suspicion]) -> dict[str, list[int]]:
    """Write `chunks.suspects`."""
    return {str(slot): [suspicion.deaths, suspicion.alone] for slot, suspicion in suspects.items()}
