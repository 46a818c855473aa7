"""
`infer` and `ainfer`: rows to results in one line of a flow, without holding a process while the job runs.

A flow body that waits is left (suspended or rescheduled) and run again from its beginning; the submit is
found again, and the wait ends as soon as the job has. So waiting is a loop that reads the job and leaves.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NoReturn, Self, Unpack
from urllib.parse import urlsplit

from prefect import Flow, asuspend_flow_run, suspend_flow_run
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort, Pause
from prefect.futures import PrefectFuture
from prefect.logging import get_logger
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Scheduled
from prefect.utilities.annotations import quote

import milkrun as mr
from milkrun.settings import Settings
from prefect_milkrun import artifacts
from prefect_milkrun._run import AWAITS, CALLBACK_LABEL, TAG, Here, cancel_jobs_of, next_call, prefect
from prefect_milkrun.credentials import MilkrunCredentials, Progress
from prefect_milkrun.results import MilkrunResults
from prefect_milkrun.tasks import (
    Credentials,
    afetch_results,
    asubmit_job,
    await_for,
    fetch_results,
    submit_job,
    wait_for,
    waited_enough,
)

RESCHEDULE_SECONDS = 60.0
log = get_logger("milkrun")


class Defer(StrEnum):
    """What a flow does while its job runs."""

    auto = "auto"  #: the first of the others that works here
    suspend = "suspend"  #: end the process; the engine's callback or the resumer wakes the run
    reschedule = "reschedule"  #: end the process; the run looks again every minute, nothing else is needed
    block = "block"  #: stay, and wait on this process's one connection


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wait:
    """How one call waits."""

    credentials: MilkrunCredentials
    here: Here
    how: Defer
    may_choose: bool
    timeout: float | None
    cancel_on_timeout: bool
    reschedule_seconds: float

    @classmethod
    def of(cls, credentials: Credentials, defer: Defer | str, **rest: Any) -> Self:
        block, here = MilkrunCredentials.of(credentials), Here.now()
        wish = Defer(defer)
        return cls(credentials=block, here=here, how=_choose(wish, here, block), may_choose=wish is Defer.auto, **rest)

    def way(self, job: mr.Job) -> Defer:
        """What to do until the job ends: a run that nobody promised to resume comes back by itself."""
        if self.may_choose and self.how is Defer.suspend and CALLBACK_LABEL not in job.labels:
            return Defer.reschedule
        return self.how

    def look(self, submitted: mr.Submitted) -> tuple[mr.Job, float | None]:
        """Read the job, and the seconds that are left for it; out of time is a `WaitTimeout`."""
        with self.credentials.get_client() as client:
            job = client.job(submitted.job.id)
            if job.status is mr.JobStatus.cancelled:
                self._conclude_cancelling()
            if job.is_terminal or self.timeout is None:
                return job, None
            left = self.timeout - (datetime.now(UTC) - job.created_at).total_seconds()
            if left > 0:
                return job, left
            if self.cancel_on_timeout:
                with suppress(mr.Conflict):  # a later attempt owns it
                    client.cancel(job.id, submitted.claim)
        raise waited_enough(job)

    def _conclude_cancelling(self) -> None:
        """End a run that is being cancelled as such: where its worker has not heard of it yet, nobody else would."""
        if self.here.flow_run_id is None:
            return
        with prefect() as client:
            state = client.read_flow_run(self.here.flow_run_id).state
            if state is not None and state.is_cancelling():
                client.set_flow_run_state(self.here.flow_run_id, Cancelled(message="Its job was cancelled."))
                raise Abort("The flow run was cancelled, and its job with it.")  # an error would make it Failed

    def tag(self, job: mr.Job) -> None:
        """Say on the flow run which job it waits for: the resumer looks for that."""
        assert self.here.flow_run_id is not None
        with prefect() as client:
            tags = client.read_flow_run(self.here.flow_run_id).tags
            others = [tag for tag in tags if tag != TAG and not tag.startswith(AWAITS)]
            client.update_flow_run(self.here.flow_run_id, tags=[*others, TAG, AWAITS + job.id])

    def untag(self) -> None:
        """Wait for no job any more: whoever suspends the run from now on has reasons of their own."""
        if self.how is Defer.suspend and self.here.flow_run_id is not None:
            with prefect() as client:
                tags = client.read_flow_run(self.here.flow_run_id).tags
                others = [tag for tag in tags if tag != TAG and not tag.startswith(AWAITS)]
                if others != tags:
                    client.update_flow_run(self.here.flow_run_id, tags=others)

    def come_back_later(self, job: mr.Job) -> NoReturn:
        """Give the run back to its worker, to be started again."""
        assert self.here.flow_run_id is not None
        at = datetime.now(UTC) + timedelta(seconds=self.reschedule_seconds)
        state: State[Any] = Scheduled(scheduled_time=at, name="AwaitingMilkrun", message=f"Waiting for job {job.id}.")
        with prefect() as client:
            # Not forced: a run that is being cancelled must stay so.
            answer = client.set_flow_run_state(self.here.flow_run_id, state)
        raise Pause(state=answer.state or state)


def infer(
    rows: Any = None,
    *,
    credentials: Credentials = None,
    defer: Defer | str = Defer.auto,
    timeout: float | None = None,
    cancel_on_timeout: bool = True,
    reschedule_seconds: float = RESCHEDULE_SECONDS,
    preview_rows: int = artifacts.PREVIEW_ROWS,
    call_key: str | None = None,
    **options: Unpack[mr.SubmitOptions],
) -> MilkrunResults:
    """
    Submit rows, wait for the job's end and return its results by reference.

    Called in the body of a deployed flow it ends the flow's process meanwhile; in a task, a subflow or a
    script it waits in place. Whatever is retried, resumed or restarted finds its job again.

    Args:
        rows: as `milkrun.infer` takes them.
        credentials: a block, the name of one, or the environment's `MILKRUN_URL` and `MILKRUN_API_KEY`.
        defer: auto, suspend, reschedule or block; what does not work here becomes block.
        timeout: seconds from the job's submit after which the flow gives up; none by default.
        cancel_on_timeout: whether the job is stopped then.
        reschedule_seconds: how often a rescheduled run looks; Prefect starts runs some ten seconds early.
        preview_rows: how many rows the flow run's page shows, at most ten; 0 shows none.
        call_key: what names this call in its flow run; its number in the body when absent.
        options: see `milkrun.SubmitOptions`. More failed rows than `max_failed_rows` raise, and a retry of the flow,
            or of the task around this call, runs them alone; rows that failed are otherwise data.

    Raises:
        JobFailed, JobCancelled, JobExpired, TooManyRowsFailed: the job did not end as it should.
        WaitTimeout: the time was up.

    Example:
        @flow
        def classify(path: str):
            return infer(path, prompt="Classify: {text}", output_schema=["good", "bad"]).to_polars()
    """
    wait = _Wait.of(
        credentials,
        defer,
        timeout=timeout,
        cancel_on_timeout=cancel_on_timeout,
        reschedule_seconds=reschedule_seconds,
    )
    if wait.how is Defer.suspend and wait.here.is_async:
        raise TypeError("an async flow awaits ainfer(...) instead of calling infer(...)")
    here = wait.here
    submitted = (submit_job if here.is_flow_body else submit_job.fn)(
        _unwalked(rows, here),
        credentials=wait.credentials,
        call_key=call_key or next_call(),
        resume=wait.how is Defer.suspend,
        **options,
    )
    while True:
        job, left = wait.look(submitted)
        if job.is_terminal:
            break
        match wait.way(job):
            case Defer.suspend:
                wait.tag(job)
                suspend_flow_run(timeout=_whole(left))  # without a key: a repeated one is skipped in silence
            case Defer.reschedule:
                wait.come_back_later(job)
            case _:
                with suppress(mr.WaitTimeout):
                    wait_for(wait.credentials, job.id, left, _mover())
    wait.untag()
    results = (fetch_results if here.is_flow_body else fetch_results.fn)(
        job.id, credentials=wait.credentials, max_failed_rows=options.get("max_failed_rows"), preview_rows=preview_rows
    )
    return results.bound(wait.credentials)


async def ainfer(
    rows: Any = None,
    *,
    credentials: Credentials = None,
    defer: Defer | str = Defer.auto,
    timeout: float | None = None,
    cancel_on_timeout: bool = True,
    reschedule_seconds: float = RESCHEDULE_SECONDS,
    preview_rows: int = artifacts.PREVIEW_ROWS,
    call_key: str | None = None,
    **options: Unpack[mr.SubmitOptions],
) -> MilkrunResults:
    """
    Submit rows, await the job's end and return its results by reference; see `infer`.

    Example:
        @flow
        async def classify(path: str):
            results = await ainfer(path, prompt="Classify: {text}", output_schema=["good", "bad"])
            return await results.ato_polars()
    """
    call_key = call_key or next_call()  # before anything is awaited: calls are numbered as they were made
    wait = await asyncio.to_thread(
        _Wait.of,
        credentials,
        defer,
        timeout=timeout,
        cancel_on_timeout=cancel_on_timeout,
        reschedule_seconds=reschedule_seconds,
    )
    here = wait.here
    submitted = await (asubmit_job if here.is_flow_body else asubmit_job.fn)(
        _unwalked(rows, here),
        credentials=wait.credentials,
        call_key=call_key,
        resume=wait.how is Defer.suspend,
        **options,
    )
    while True:
        job, left = await asyncio.to_thread(wait.look, submitted)
        if job.is_terminal:
            break
        match wait.way(job):
            case Defer.suspend:
                await asyncio.to_thread(wait.tag, job)
                await asuspend_flow_run(timeout=_whole(left))
            case Defer.reschedule:
                wait.come_back_later(job)
            case _:
                with suppress(mr.WaitTimeout):
                    await await_for(wait.credentials, job.id, left, _mover())
    await asyncio.to_thread(wait.untag)
    results = await (afetch_results if here.is_flow_body else afetch_results.fn)(
        job.id, credentials=wait.credentials, max_failed_rows=options.get("max_failed_rows"), preview_rows=preview_rows
    )
    return results.bound(wait.credentials)


def cancels_jobs(credentials: Credentials = None) -> Callable[[Flow[..., Any], FlowRun, State[Any]], None]:
    """
    Make a hook that stops the engine's jobs of a flow run: the quick way for runs that wait in place.

    Prefect runs no hook for a run that is cancelled while it is suspended: that is the resumer's.

    Example:
        @flow(on_cancellation=[cancels_jobs("prod")], on_crashed=[cancels_jobs("prod")])
        def classify(path: str): ...
    """

    # Runners and workers give the arguments by name, the flow itself by place.
    def cancel_jobs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001
        # Another process than the flow's: the label is all that leads to its jobs.
        with MilkrunCredentials.of(credentials).get_client() as client:
            stopped = cancel_jobs_of(client, str(flow_run.id))
        log.info("stopped %d jobs of flow run %s", len(stopped), flow_run.id)

    return cancel_jobs


def _choose(wish: Defer, here: Here, credentials: MilkrunCredentials) -> Defer:
    """Decide what a flow does while its job runs: what it wishes, where Prefect can do that."""
    if not here.can_leave:
        if wish not in (Defer.auto, Defer.block):
            log.info("only the body of a deployed flow can %s; waiting in place", wish)
        return Defer.block
    if wish is not Defer.auto:
        return wish
    url = credentials.prefect_api_url or get_current_settings().api.url
    return Defer.suspend if _may_reach(credentials, url) else Defer.reschedule


def _may_reach(credentials: MilkrunCredentials, api_url: str | None) -> bool:
    """Whether the engine's callback can get to Prefect, as far as the addresses tell."""
    engine = Settings.load(url=credentials.url).url
    return api_url is not None and (not _is_loopback(api_url) or engine is None or _is_loopback(engine))


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _unwalked(rows: Any, here: Here) -> Any:
    """Keep Prefect from walking through each row in search of futures."""
    return quote(rows) if here.is_flow_body and not isinstance(rows, PrefectFuture) else rows


def _mover() -> Progress:
    """Move progress from the watcher's thread, which knows no flow run and none of its settings."""
    context = copy_context()
    return lambda job: context.run(artifacts.move, job)


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, math.ceil(seconds))
