"""
From the ledger's records to the wire models of the native API.
"""

import hashlib
import hmac
from datetime import UTC, datetime

from milkrun.status import JobStatus
from milkrun.wire import Job, JobFailure, Usage
from milkrun_engine.domain.jobs import JobRecord
from milkrun_engine.domain.states import LIVE


class PageLinks:
    """
    Links to jobs' pages that open without a key.

    A link is signed for its one job, and that page shows counts, never prompts or answers; so
    it can stand in an orchestrator's task page.
    """

    def __init__(self, base_url: str, secret: bytes) -> None:
        self._base_url = base_url.rstrip("/")
        self._secret = secret

    def url(self, job_id: str) -> str:
        """The job's page."""
        return f"{self._base_url}/jobs/{job_id}?sig={self._signature(job_id)}"

    def is_valid(self, job_id: str, signature: str) -> bool:
        """Whether this engine signed the link."""
        return hmac.compare_digest(self._signature(job_id).encode(), signature.encode(errors="replace"))

    def _signature(self, job_id: str) -> str:
        return hmac.new(self._secret, job_id.encode(), hashlib.sha256).hexdigest()[:32]


def job_view(record: JobRecord, links: PageLinks, *, waiting_reason: str | None = None, errors: dict[str, int]) -> Job:
    """A job as callers see it."""
    over = record.status not in LIVE
    undecided = record.rows_read - record.rows_decided
    return Job(
        id=record.id,
        kind=record.kind,
        model=record.model,
        status=record.status,
        failure=_failure(record),
        waiting_reason=_waiting_reason(record, waiting_reason),
        paused=record.paused,
        name=record.name,
        description=record.description,
        labels=record.labels,
        external_url=record.external_url,
        priority=record.priority,
        idempotency_key=record.idempotency_key,
        input_hash=record.input_hash,
        retry_of=record.retry_of,
        rows_from=record.rows_from,
        expires_at=instant(record.expires_at) if record.expires_at is not None else None,
        abort_after_failed_rows=record.abort_after_failed_rows,
        created_at=instant(record.created_at),
        started_at=instant(record.started_at) if record.started_at is not None else None,
        finished_at=instant(record.finished_at) if record.finished_at is not None else None,
        rows_total=record.rows_total,
        rows_read=record.rows_read,
        rows_succeeded=record.rows_succeeded,
        rows_failed=record.rows_failed,
        rows_reused=record.rows_reused,
        rows_cancelled=undecided if over else 0,
        rows_done=record.rows_decided + (0 if over else record.rows_in_hand),
        row_errors=errors,
        input_complete=record.input_complete,
        usage=Usage(
            prompt_tokens=record.prompt_tokens,
            cached_tokens=record.cached_tokens,
            completion_tokens=record.completion_tokens,
        ),
        url=links.url(record.id),
    )


def _waiting_reason(record: JobRecord, of_model: str | None) -> str | None:
    if record.status not in LIVE:
        return None
    if record.paused:
        return "paused"
    # Nothing waits for a model before there are rows; both wait for a disk.
    is_early = record.status is JobStatus.preparing and of_model != "disk_full"
    return None if is_early else of_model


def _failure(record: JobRecord) -> JobFailure | None:
    if record.failure_code is None:
        return None
    return JobFailure(code=record.failure_code, message=record.failure_message or "")


def instant(seconds: float) -> datetime:
    """A time of the ledger as callers see it."""
    return datetime.fromtimestamp(seconds, UTC)
