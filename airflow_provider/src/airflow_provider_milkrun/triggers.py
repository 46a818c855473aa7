"""
The wait of a deferred task.

The trigger's class path and arguments are a stored contract: arguments are only ever added, with a default.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

import milkrun as mr
from airflow_provider_milkrun import _kills
from airflow_provider_milkrun.events import JobEvent, Reason
from airflow_provider_milkrun.hooks import MilkrunHook
from milkrun import outcome

HEALS = 3  # so often a wait that broke is taken up again, before the task's own retries have their turn
GRACE_SECONDS = 120.0  # Airflow's own time limit of a wait lies behind the trigger's, which is kinder
SETTLE_SECONDS = 10.0  # a scheduler that had just started took 5.5 s to see that a worker had deferred
_PROGRESS_SECONDS = 30.0
_STOPS = 3  # tries to stop a job, each with the newest claim


def settled() -> float:
    """
    Return the time before which a trigger of now had better not fire (seconds since the epoch).

    Airflow 3.3.2 fails a task that is queued again before its scheduler has seen the deferring worker's end: it takes
    the old end for the new one's.
    """
    return time.time() + SETTLE_SECONDS


class MilkrunJobTrigger(BaseTrigger):
    """
    Wakes its task when a job has ended, or at its deadline.

    All triggers of a process wait through one connection to the engine's change feed. It changes nothing on the
    engine but in `on_kill`, so it may be restarted or moved to another triggerer at any moment.

    Args:
        job_id: the job to wait for.
        conn_id: the connection that names its engine.
        claim: from the submit; a cancel with an older one than the newest attempt's is refused.
        deadline: seconds since the epoch, so that a restart does not extend it.
        cancel_on_kill: whether the job is stopped when a user ends the task.
        not_before: seconds since the epoch; see `settled`.
    """

    def __init__(
        self,
        *,
        job_id: str,
        conn_id: str,
        claim: int | None = None,
        deadline: float | None = None,
        cancel_on_kill: bool = True,
        not_before: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.job_id = job_id
        self.conn_id = conn_id
        self.claim = claim
        self.deadline = deadline
        self.cancel_on_kill = cancel_on_kill
        self.not_before = not_before

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what makes this trigger anew."""
        names = ("job_id", "conn_id", "claim", "deadline", "cancel_on_kill", "not_before")
        return f"{__name__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event."""
        event = await self._event()
        await asyncio.sleep(max(0.0, (self.not_before or 0.0) - time.time()))
        yield TriggerEvent(event.payload())  # type: ignore[no-untyped-call]  # Airflow's

    async def _event(self) -> JobEvent:
        try:
            job = await self._ended()
        except Exception as error:
            # Not being able to ask says nothing about the job: the task looks again, with its own retries behind it.
            message = f"{type(error).__name__}: {error}"
            self.log.warning("waiting for job %s failed: %s", self.job_id, message)
            return JobEvent(job_id=self.job_id, reason=Reason.unsure, message=message[:500])
        if job is None:
            return JobEvent(job_id=self.job_id, reason=Reason.timeout)
        return JobEvent(job_id=self.job_id, reason=Reason.ended, message=f"{job.status}, {outcome.progress(job)}")

    async def _ended(self) -> mr.Job | None:
        """Wait for the job's end; None at the deadline."""
        engine = await MilkrunHook(self.conn_id).aengine()
        # The watcher calls from a thread of its own; the task's log is found through this context.
        loop, context, say = asyncio.get_running_loop(), contextvars.copy_context(), ProgressLog(self.log)
        end = asyncio.wrap_future(
            engine.watcher().watch(self.job_id, lambda job: loop.call_soon_threadsafe(say, job, context=context))
        )
        try:
            left = None if self.deadline is None else max(0.0, self.deadline - time.time())
            # Not `wait_for`: its TimeoutError could be anybody's, and a deadline cancels the job.
            await asyncio.wait({end}, timeout=left)
            return end.result() if end.done() else None
        finally:
            end.cancel()

    async def on_kill(self) -> None:
        """Cancel the job if a user ended the task; Airflow 3.3 also calls this for cleared and moved tasks."""
        if not self.cancel_on_kill or self.task_instance is None:
            return
        # Airflow 3.3.2 cancels a trigger again while this still runs, when its supervisor was slow to answer: what
        # was begun goes on by itself then.
        work = asyncio.ensure_future(self._stop_job())
        _kills.RUNNING.add(work)
        work.add_done_callback(_kills.RUNNING.discard)
        await asyncio.shield(work)

    async def _stop_job(self) -> None:
        # Before anything else: most tasks that are told this were moved or cleared, and a client costs milliseconds
        # of the loop in which all triggers run.
        if not await self._is_over():
            return
        hook, job_id, claim = MilkrunHook(self.conn_id), self.job_id, self.claim
        key = (await hook.aengine()).key_of(self.task_instance)
        async with await hook.get_async_client() as client:
            for _ in range(_STOPS):
                try:
                    job = await client.cancel(job_id, claim)
                except mr.Conflict as error:
                    self.log.info("job %s belongs to a newer attempt: %s", job_id, error)
                else:
                    self.log.info("job %s is %s: its task has ended", job.id, job.status)
                    return
                # That attempt may be over as well: where Airflow's database gives the number of a deleted trigger
                # away again (SQLite), the triggerer keeps this one for it, and nobody else will hear of its end.
                if not await self._is_over():
                    return
                newest = await client.attach(key)
                job_id, claim = newest.job.id, newest.claim
                if not await self._is_over():
                    return

    async def _is_over(self) -> bool:
        """Whether a user has ended the task for good."""
        from airflow.sdk.execution_time import task_runner
        from airflow.sdk.execution_time.comms import GetTaskStates

        request = GetTaskStates(**_kills.question(self.task_instance))
        answer = await task_runner.SUPERVISOR_COMMS.asend(request)
        state = _kills.state_of(self.task_instance, getattr(answer, "task_states", None))
        if state not in _kills.ENDED:
            self.log.info("job %s goes on: its task is %s, not ended by a user", self.job_id, state)
        return state in _kills.ENDED


class ProgressLog:
    """Writes a line when a job has moved, at most every half minute."""

    def __init__(self, log: logging.Logger | Any) -> None:
        self._log = log
        self._told: tuple[Any, ...] | None = None
        self._told_at = float("-inf")

    def __call__(self, job: mr.Job) -> None:
        """Hear how the job stands."""
        moved = (job.status, job.rows_done, job.rows_failed, job.rows_total, job.waiting_reason)
        now = time.monotonic()
        if job.is_terminal or moved == self._told or now - self._told_at < _PROGRESS_SECONDS:
            return
        self._told, self._told_at = moved, now
        self._log.info("job %s is %s: %s, %d failed", job.id, job.status, outcome.progress(job), job.rows_failed)
