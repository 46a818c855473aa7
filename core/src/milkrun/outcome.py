"""
The verdict on a job and the flat facts about it: what every orchestrator shows.
"""

from milkrun.exceptions import JobCancelled, JobExpired, JobFailed, TooManyRowsFailed
from milkrun.status import JobStatus
from milkrun.wire import Job


def check(job: Job, max_failed_rows: int | None = None) -> Job:
    """
    Return the job if it ended as it should.

    A job with failed rows succeeded; `max_failed_rows` says how many of them the caller allows.

    Raises:
        JobFailed, JobCancelled, JobExpired: it ended otherwise.
        TooManyRowsFailed: more rows failed than allowed.
        ValueError: it has not ended.
    """
    about = f"Job {job.id} ({progress(job)})"
    match job.status:
        case JobStatus.succeeded:
            if not is_good(job, max_failed_rows):
                raise TooManyRowsFailed(
                    f"{about} has {job.rows_failed} failed rows{_codes(job)}, {max_failed_rows} are allowed. "
                    "Its results stay readable, and the rows' errors say why. Its failed rows alone run again with "
                    f"retry_failed(), or with a submit under its key and reuse='failed_rows'. {job.url}",
                    job=job,
                )
            return job
        case JobStatus.failed:
            reason = f": {job.failure.message} [{job.failure.code}]" if job.failure else ""
            raise JobFailed(f"{about} failed{reason}. Mend the cause and submit it again. {job.url}", job=job)
        case JobStatus.cancelled:
            raise JobCancelled(f"{about} was cancelled. Submit it again if that was not meant. {job.url}", job=job)
        case JobStatus.expired:
            raise JobExpired(f"{about} ran out of its time. Submit it again to go on. {job.url}", job=job)
        case _:
            raise ValueError(f"{about} has not ended: wait for it first")


def is_good(job: Job, max_failed_rows: int | None = None) -> bool:
    """Whether the job succeeded, with no more failed rows than the caller allows."""
    allowed = max_failed_rows is None or job.rows_failed <= max_failed_rows
    return job.status is JobStatus.succeeded and allowed


def progress(job: Job) -> str:
    """Say in a few words how far a job is."""
    total = "?" if job.rows_total is None else f"{job.rows_total:,}"
    waiting = f", waiting: {job.waiting_reason}" if job.waiting_reason else ""
    return f"{job.rows_done:,} of {total} rows done{waiting}"


def sentence(job: Job) -> str:
    """Say how a job ended, for a log: rows, errors by code, tokens, seconds."""
    usage = job.usage
    return (
        f"{job.status}: {job.rows_succeeded:,} of {job.rows_total or 0:,} rows, "
        f"{job.rows_failed:,} failed{_codes(job)}; "
        f"{usage.prompt_tokens:,} tokens in ({usage.cached_tokens:,} cached), {usage.completion_tokens:,} out"
        f"{'' if job.seconds is None else f'; {job.seconds:,.1f} s'}"
    )


def summary(job: Job) -> dict[str, str | int | float | None]:
    """Return the facts about a job that a page, a log line or an artifact shows; flat, in reading order."""
    return {
        "job_id": job.id,
        "name": job.name,
        "status": job.status.value,
        "model": job.model,
        "kind": str(job.kind),
        "rows_total": job.rows_total,
        "rows_succeeded": job.rows_succeeded,
        "rows_failed": job.rows_failed,
        "rows_reused": job.rows_reused or None,
        "rows_cancelled": job.rows_cancelled,
        "prompt_tokens": job.usage.prompt_tokens,
        "cached_tokens": job.usage.cached_tokens,
        "completion_tokens": job.usage.completion_tokens,
        "seconds": None if job.seconds is None else round(job.seconds, 3),
        "failure": f"{job.failure.code}: {job.failure.message}" if job.failure else None,
        "url": job.url,
    }


def _codes(job: Job) -> str:
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(job.row_errors.items()))
    return f" ({codes})" if codes else ""
