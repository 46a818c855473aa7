"""
Milkrun: batch LLM inference on your own machines.

    import milkrun as mr

    job_id = mr.infer(reviews, prompt="Classify: {text}", output_schema=["good", "bad"])
    results = mr.await_job_results(job_id)

`Milkrun` and `AsyncMilkrun` are the clients; the two functions here use one default client.
"""

import atexit
import functools
from typing import Any, Unpack

from milkrun import _options
from milkrun._client import AsyncMilkrun, Milkrun
from milkrun._options import SubmitOptions
from milkrun._outputs import ResultRow, RowError
from milkrun._results import AsyncResults, Results
from milkrun._waiting import Progress
from milkrun._watcher import Watcher
from milkrun.exceptions import (
    AuthenticationError,
    Conflict,
    ConnectError,
    EngineUnavailable,
    InvalidRequest,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    LocalEngineError,
    MilkrunError,
    NotFound,
    PermissionDenied,
    RateLimited,
    RequestError,
    RequestTimeout,
    ResponseError,
    TooLarge,
    TooManyRowsFailed,
    UnexpectedResponse,
    WaitTimeout,
)
from milkrun.status import (
    CallbackKind,
    CallbackState,
    FeedEvents,
    JobKind,
    JobStatus,
    OnMismatch,
    Reuse,
    RowErrorCode,
    RowStatus,
)
from milkrun.wire import Callback, CallbackInfo, Changes, Job, ModelInfo, OutputSchema, Submitted, Usage

__all__ = [
    "AsyncMilkrun",
    "AsyncResults",
    "AuthenticationError",
    "Callback",
    "CallbackInfo",
    "CallbackKind",
    "CallbackState",
    "Changes",
    "Conflict",
    "ConnectError",
    "EngineUnavailable",
    "FeedEvents",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobKind",
    "JobStatus",
    "LocalEngineError",
    "Milkrun",
    "MilkrunError",
    "ModelInfo",
    "NotFound",
    "OnMismatch",
    "OutputSchema",
    "PermissionDenied",
    "RateLimited",
    "RequestError",
    "RequestTimeout",
    "ResponseError",
    "ResultRow",
    "Results",
    "Reuse",
    "RowError",
    "RowErrorCode",
    "RowStatus",
    "SubmitOptions",
    "Submitted",
    "TooLarge",
    "TooManyRowsFailed",
    "UnexpectedResponse",
    "Usage",
    "WaitTimeout",
    "Watcher",
    "await_job_results",
    "embed",
    "infer",
]


@functools.cache
def _default_client() -> Milkrun:
    client = Milkrun()
    atexit.register(client.close)
    return client


@_options.spelled_out
def infer(rows: Any = None, **options: Unpack[SubmitOptions]) -> str:
    """Submit rows to a model and return the job's id at once: `Milkrun.infer` of the default client."""
    return _default_client().infer(rows, **options)


@_options.spelled_out
def embed(rows: Any = None, **options: Unpack[SubmitOptions]) -> str:
    """Submit rows to an embedding model and return the job's id at once: `Milkrun.embed` of the default client."""
    return _default_client().embed(rows, **options)


def await_job_results(
    job_id: str,
    timeout: float | None = None,
    *,
    max_failed_rows: int | None = None,
    on_progress: Progress | None = None,
    schema: Any = None,
) -> Results:
    """Wait until the job has ended and return its results: `Milkrun.await_job_results` of the default client."""
    return _default_client().await_job_results(
        job_id, timeout, max_failed_rows=max_failed_rows, on_progress=on_progress, schema=schema
    )
