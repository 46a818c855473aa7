"""
Submit, wait and fetch as Prefect tasks, blocking and awaiting.

Submitting is safe to repeat: the job's key is made of the flow run and the call, so a retried task, a
resumed run and a restarted worker find their job instead of making a second. What is waited for costs
one connection a process, however many tasks wait.
"""

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, Unpack, cast

from prefect import task
from prefect.cache_policies import INPUTS, RUN_ID, CacheKeyFnPolicy
from prefect.logging import get_logger
from prefect.tasks import exponential_backoff

import milkrun as mr
from milkrun import outcome
from prefect_milkrun import artifacts
from prefect_milkrun._run import CALLBACK_LABEL, Here, attempt_key, is_verdict
from prefect_milkrun.credentials import MilkrunCredentials, Progress
from prefect_milkrun.failures import is_retryable
from prefect_milkrun.results import MilkrunResults

log = get_logger("milkrun")
Credentials = MilkrunCredentials | str | None  #: a block, the name of one, or the environment's

ONCE_A_TRY = (INPUTS - "credentials") + RUN_ID + CacheKeyFnPolicy(cache_key_fn=attempt_key)
_RETRIES: Any = {
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_retryable,
}


@dataclass(frozen=True, slots=True)
class _Call:
    """One submit, ready to be sent."""

    options: mr.SubmitOptions

    @classmethod
    def of(
        cls, rows: Any, options: mr.SubmitOptions, credentials: MilkrunCredentials, call_key: str | None, resume: bool
    ) -> Self:
        here = Here.now()
        asked = {name: value for name, value in options.items() if name != "max_failed_rows"}
        ours: dict[str, Any] = {
            "idempotency_key": here.key(call_key, rows, asked),
            "on_mismatch": mr.OnMismatch.replace,
            "reuse": mr.Reuse.failed_rows,
            "external_url": here.page(),
            "callback": here.callback(credentials.prefect_api_url) if resume else None,
        }
        given = {name: value for name, value in options.items() if value is not None}
        if given.get("reuse", mr.Reuse.failed_rows) != mr.Reuse.failed_rows:
            given.pop("max_failed_rows", None)  # the caller's verdict alone
        labels = {**(options.get("labels") or {}), **here.labels(here.attempt())}
        if ours["callback"] and "callback" not in given:
            labels[CALLBACK_LABEL] = "resume"
        return cls(cast(mr.SubmitOptions, {**ours, **given, "labels": labels}))

    @property
    def key(self) -> str | None:
        return self.options.get("idempotency_key")

    @property
    def labels(self) -> Mapping[str, str]:
        return self.options.get("labels") or {}

    def is_verdict(self, job: mr.Job) -> bool:
        """Whether the job ended badly in this very attempt."""
        return is_verdict(job, self.labels, self.options.get("max_failed_rows"))

    def uncalled(self, error: mr.InvalidRequest) -> mr.SubmitOptions:
        """The same without our callback, which the engine may have refused: its operator decides where it calls."""
        labels = dict(self.labels)
        if labels.pop(CALLBACK_LABEL, None) is None:
            raise error
        log.warning("submitting without a callback, the resumer or the run itself must look: %s", error)
        return cast(mr.SubmitOptions, {**self.options, "callback": None, "labels": labels})


@task(name="milkrun-submit", persist_result=True, cache_policy=ONCE_A_TRY, **_RETRIES)
def submit_job(
    rows: Any = None,
    *,
    credentials: Credentials = None,
    call_key: str | None = None,
    resume: bool = False,
    **options: Unpack[mr.SubmitOptions],
) -> mr.Submitted:
    """
    Submit rows and return the job and the claim on it.

    Repeated in the same flow run it returns the same job, without sending the rows again. Two equal submits in
    one flow run are one job, unless a `call_key` tells them apart; under a `call_key` changed inputs replace the job.
    In a later try of the flow, where the job failed, expired, was cancelled or has more failed rows than
    `max_failed_rows`, a new one runs only its rows without a result; `reuse="inputs_match"` runs all of them.

    Args:
        call_key: what names this call in its flow run; what is submitted when absent.
        resume: ask the engine to resume this flow run when the job ends.
    """
    rows = list(rows) if isinstance(rows, Iterator) else rows  # they may be sent more than once
    block = MilkrunCredentials.of(credentials)
    call = _Call.of(rows, options, block, call_key, resume)
    with block.get_client() as client:
        try:
            found = client.attach(call.key) if call.key else None
        except mr.NotFound:
            found = None
        if found and call.is_verdict(found.job):
            return found
        try:
            submitted = client.submit(rows, **call.options)
        except mr.InvalidRequest as error:
            submitted = client.submit(rows, **call.uncalled(error))
    if not submitted.reused:
        artifacts.announce(submitted.job)
    return submitted


@task(name="milkrun-submit", persist_result=True, cache_policy=ONCE_A_TRY, **_RETRIES)
async def asubmit_job(
    rows: Any = None,
    *,
    credentials: Credentials = None,
    call_key: str | None = None,
    resume: bool = False,
    **options: Unpack[mr.SubmitOptions],
) -> mr.Submitted:
    """Submit rows and return the job and the claim on it, as `submit_job` does."""
    rows = list(rows) if isinstance(rows, Iterator) else rows
    block = await asyncio.to_thread(MilkrunCredentials.of, credentials)
    call = await asyncio.to_thread(_Call.of, rows, options, block, call_key, resume)
    async with block.get_async_client() as client:
        try:
            found = await client.attach(call.key) if call.key else None
        except mr.NotFound:
            found = None
        if found and call.is_verdict(found.job):
            return found
        try:
            submitted = await client.submit(rows, **call.options)
        except mr.InvalidRequest as error:
            submitted = await client.submit(rows, **call.uncalled(error))
    if not submitted.reused:
        await asyncio.to_thread(artifacts.announce, submitted.job)
    return submitted


@task(name="milkrun-wait", **_RETRIES)
def wait_job(job_id: str, *, credentials: Credentials = None, timeout: float | None = None) -> mr.Job:
    """
    Wait until the job has ended and return it, however it ended.

    Raises:
        WaitTimeout: it had not ended after `timeout` seconds; it goes on.
    """
    return wait_for(MilkrunCredentials.of(credentials), job_id, timeout)


@task(name="milkrun-wait", **_RETRIES)
async def await_job(job_id: str, *, credentials: Credentials = None, timeout: float | None = None) -> mr.Job:
    """Wait until the job has ended and return it, as `wait_job` does."""
    block = await asyncio.to_thread(MilkrunCredentials.of, credentials)
    return await await_for(block, job_id, timeout)


@task(name="milkrun-fetch", persist_result=True, cache_policy=ONCE_A_TRY, **_RETRIES)
def fetch_results(
    job_id: str,
    *,
    credentials: Credentials = None,
    max_failed_rows: int | None = None,
    preview_rows: int = artifacts.PREVIEW_ROWS,
) -> MilkrunResults:
    """
    Return an ended job's results by reference, and show how it ended on the flow run's page.

    Args:
        max_failed_rows: more failed rows than this raise; rows that failed are otherwise data.
        preview_rows: how many rows the page shows, at most ten; 0 shows none.

    Raises:
        JobFailed, JobCancelled, JobExpired, TooManyRowsFailed: the job did not end as it should.
    """
    block = MilkrunCredentials.of(credentials)
    with block.get_client() as client:
        job = client.job(job_id)
        preview = list(itertools.islice(client.results(job_id), preview_rows)) if preview_rows else []
    if job.is_terminal:
        artifacts.conclude(job, preview)
    return MilkrunResults.of(outcome.check(job, max_failed_rows), block)


@task(name="milkrun-fetch", persist_result=True, cache_policy=ONCE_A_TRY, **_RETRIES)
async def afetch_results(
    job_id: str,
    *,
    credentials: Credentials = None,
    max_failed_rows: int | None = None,
    preview_rows: int = artifacts.PREVIEW_ROWS,
) -> MilkrunResults:
    """Return an ended job's results by reference, as `fetch_results` does."""
    return await asyncio.to_thread(
        fetch_results.fn,
        job_id,
        credentials=credentials,
        max_failed_rows=max_failed_rows,
        preview_rows=preview_rows,
    )


def wait_for(
    credentials: MilkrunCredentials, job_id: str, timeout: float | None, on_progress: Progress | None = None
) -> mr.Job:
    """Block until the job has ended."""
    future = credentials.watch(job_id, on_progress)
    try:
        return future.result(timeout)
    except TimeoutError:
        return _too_late(credentials, job_id)
    finally:
        future.cancel()


async def await_for(
    credentials: MilkrunCredentials, job_id: str, timeout: float | None, on_progress: Progress | None = None
) -> mr.Job:
    """Await the job's end."""
    future = asyncio.wrap_future(credentials.watch(job_id, on_progress))
    try:
        return await asyncio.wait_for(future, timeout)
    except TimeoutError:
        return await asyncio.to_thread(_too_late, credentials, job_id)


def _too_late(credentials: MilkrunCredentials, job_id: str) -> mr.Job:
    with credentials.get_client() as client:
        job = client.job(job_id)
    if not job.is_terminal:
        raise waited_enough(job)
    return job


def waited_enough(job: mr.Job) -> mr.WaitTimeout:
    """Make the error of a wait that took too long."""
    return mr.WaitTimeout(
        f"Stopped waiting for job {job.id}, still {job.status} ({outcome.progress(job)}). "
        f"Wait again, or cancel it. {job.url}",
        job=job,
    )
