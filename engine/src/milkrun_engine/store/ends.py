"""
The two statements that end a job, each as part of its caller's transaction.
"""

from sqlalchemy import ColumnElement, Connection, and_, case, update

from milkrun.status import JobStatus
from milkrun.wire import JobFailure
from milkrun_engine.domain.states import ChunkState, sources
from milkrun_engine.store.callbacks import ENDED, note_end
from milkrun_engine.store.database import LARGE_JOB_SECONDS, unhurried
from milkrun_engine.store.schema import chunks, jobs


def finish(connection: Connection, now: ColumnElement[float], job_id: str) -> JobStatus | None:
    """
    End a job if its last row is decided: the same statement for a commit and for the last window.

    A job of which no row could run for want of its model ends as failed, and so does one with as many failed rows as
    its caller allows no more: at once, with its other rows undecided.
    """
    if stop(
        connection,
        now,
        and_(jobs.c.id == job_id, jobs.c.rows_failed >= jobs.c.abort_after_failed_rows),
        to=JobStatus.failed,
        reason=JobFailure(code="too_many_rows_failed", message="as many rows failed as abort_after_failed_rows says"),
    ):
        return JobStatus.failed
    # Rows that were all refused in preparation are no such case: there was nothing to ask the model.
    nothing_ran = and_(jobs.c.rows_unavailable > 0, jobs.c.rows_unavailable + jobs.c.rows_refused == jobs.c.rows_total)
    ended = connection.execute(
        update(jobs)
        .where(
            jobs.c.id == job_id,
            jobs.c.prepared,
            jobs.c.rows_decided == jobs.c.rows_total,
            jobs.c.status.in_(sources(JobStatus.succeeded)),
        )
        .values(
            status=case((nothing_ran, JobStatus.failed), else_=JobStatus.succeeded),
            failure_code=case((nothing_ran, "model_unavailable")),
            failure_message=case((nothing_ran, "the model could not be loaded; see the rows' errors for the reason")),
            finished_at=now,
        )
        .returning(*ENDED)
    ).one_or_none()
    if ended is None:
        return None
    note_end(connection, now, ended)
    return JobStatus(ended.status)


def stop(
    connection: Connection,
    now: ColumnElement[float],
    matching: ColumnElement[bool],
    *,
    to: JobStatus = JobStatus.cancelled,
    claim: int | None = None,
    reason: JobFailure | None = None,
) -> bool:
    """Every terminal change but the normal finish: fence with the epoch, then drop the undecided chunks."""
    if claim is not None:
        matching = and_(matching, jobs.c.claim == claim)
    stopped = connection.execute(
        update(jobs)
        .where(matching, jobs.c.status.in_(sources(to)))
        .values(
            status=to,
            epoch=jobs.c.epoch + 1,
            finished_at=now,
            rows_total=jobs.c.rows_read,
            prepared=True,
            failure_code=reason.code if reason else None,
            failure_message=reason.message if reason else None,
        )
        .returning(*ENDED)
    ).one_or_none()
    if stopped is None:
        return False
    with unhurried(connection, LARGE_JOB_SECONDS):
        connection.execute(
            update(chunks)
            .where(chunks.c.job_id == stopped.id, chunks.c.state.in_([ChunkState.ready, ChunkState.leased]))
            .values(state=ChunkState.dropped, rows_in_hand=0)
        )
    note_end(connection, now, stopped)
    return True
