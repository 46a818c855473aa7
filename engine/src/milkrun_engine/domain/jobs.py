"""
Records of a job: what submit writes and what readers get.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from milkrun.status import InputFormat, JobKind, JobStatus, OnMismatch, Reuse
from milkrun.wire import JobSpec

_CHUNK_BLOB = re.compile(r"jobs/([^/]+)/(\d{1,9})\.")


def chunk_blob(job_id: str, number: int, rest: str) -> str:
    """The name of a chunk's file; it says whose it is, so that the chunk is found without an index of names."""
    return f"jobs/{job_id}/{number}.{rest}.parquet"


def chunk_of_blob(name: str) -> tuple[str, int] | None:
    """The job and the number of the chunk that may name this file; None for what is no chunk's file."""
    match = _CHUNK_BLOB.match(name)
    return (match[1], int(match[2])) if match else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """All that submit decides before the store decides whether the job is new."""

    tenant_id: str
    kind: JobKind
    model: str
    spec: JobSpec
    input_hash: str
    input_blob: str
    input_format: InputFormat
    input_file: str | None = None  #: the upload that the blob is, if it is one
    priority: int = 1
    window_seconds: float | None = None  #: it ends as expired after so long
    abort_after_failed_rows: int | None = None
    idempotency_key: str | None = None
    submission_id: str | None = None
    reuse: Reuse = Reuse.inputs_match
    max_failed_rows: int | None = None  #: of a succeeded job that `Reuse.failed_rows` may return
    on_mismatch: OnMismatch = OnMismatch.fail
    name: str | None = None
    description: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    external_url: str | None = None
    callback: dict[str, Any] | None = field(default=None, repr=False)  #: wire.Callback; it has secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRetry:
    """A run of only those rows of an ended job that have no result; what is None is as the parent's."""

    tenant_id: str
    parent: str
    submission_id: str | None = None
    priority: int | None = None
    name: str | None = None
    labels: dict[str, str] | None = None
    external_url: str | None = None
    callback: dict[str, Any] | None = field(default=None, repr=False)  #: wire.Callback; none is none here


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job as the ledger has it; times in seconds on the database's clock."""

    id: str
    tenant_id: str
    kind: JobKind
    model: str
    status: JobStatus
    epoch: int
    claim: int
    priority: int
    paused: bool
    idempotency_key: str | None
    input_hash: str
    name: str | None
    description: str | None
    labels: dict[str, str]
    external_url: str | None
    retry_of: str | None
    rows_from: str | None
    expires_at: float | None
    abort_after_failed_rows: int | None
    failure_code: str | None
    failure_message: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    rows_total: int | None
    rows_read: int
    rows_decided: int
    rows_succeeded: int
    rows_failed: int
    rows_reused: int
    rows_in_hand: int  #: finished rows that wait for their chunk; advisory
    prepared: bool
    input_complete: bool
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs a list shows; all that is given must hold."""

    statuses: Sequence[JobStatus] = ()  #: any of them
    labels: Mapping[str, str] = field(default_factory=dict)  #: all of them
    name: str | None = None  #: the whole name, or its beginning and `*`
    created_after: float | None = None  #: seconds on the database's clock
    created_before: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What is served before a job."""

    jobs: int
    rows: int  #: of them, those that are read and undecided


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitResult:
    """What the store decided about a submit or attach."""

    job: JobRecord
    claim: int
    cursor: str  #: the tenant's change feed before this transaction
    reused: bool = False
    replaced: str | None = None
    cancelled: str | None = None  #: the replaced job, if it was alive


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """A job whose input is not read to the end, and where to go on."""

    job_id: str
    tenant_id: str
    epoch: int
    spec: JobSpec
    model: str
    rank: float
    priority: int
    input_blob: str
    input_format: InputFormat
    position: int  #: the reader's own place in the input
    rows_read: int
    rows_from: str | None  #: the job whose results are taken over
    next_window: int
    next_chunk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkCounts:
    """What a result file adds up to."""

    rows_succeeded: int = 0
    rows_failed: int = 0
    rows_unavailable: int = 0  #: of the failed ones, those with `model_unavailable`
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)  #: failed rows by code

    @property
    def rows(self) -> int:
        """All rows of the file."""
        return self.rows_succeeded + self.rows_failed


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChunk:
    """A chunk of a window about to be committed; with a result it is born committed (refused or copied rows)."""

    number: int
    pool: str
    rows: int
    first_index: int
    input_blob: str
    input_sha256: str
    result_blob: str | None = None
    result_sha256: str | None = None
    counts: ChunkCounts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWindow:
    """One transaction of preparation: the window, its chunks and the place reached in the input."""

    number: int
    first_index: int
    rows: int
    permutation: bytes
    position: int
    last: bool
    chunks: list[NewChunk]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a commit did."""

    accepted: bool  #: false: the lease or the job's epoch was gone, and nothing was written
    ended: JobStatus | None = None  #: the job finished with this transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkFiles:
    """Where a chunk's rows are, for readers of results."""

    number: int
    window: int
    first_index: int
    rows: int
    input_blob: str
    input_sha256: str
    result_blob: str | None
    result_sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readable:
    """How much of a job can be read: the settled prefix, or everything once it is over."""

    job: JobRecord
    settled: int  #: rows readable, counted from index 0
    complete: bool  #: the job is over: nothing will be added
