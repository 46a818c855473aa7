"""
Waiting for a job that another task, or another program, submitted.
"""

import time
from collections.abc import Collection
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator, Context
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferralError,
    TaskDeferralTimeout,
)

import milkrun as mr
from airflow_provider_milkrun.events import JobEvent, Reason
from airflow_provider_milkrun.hooks import Engine, MilkrunHook, connected
from airflow_provider_milkrun.links import JOB_URL, MilkrunJobLink
from airflow_provider_milkrun.triggers import GRACE_SECONDS, HEALS, MilkrunJobTrigger, settled
from milkrun import outcome


class MilkrunJobSensor(BaseSensorOperator):
    """
    Waits until a job has ended as it should; never cancels it, because it did not submit it.

    Returns the job's counts, tokens and links.

    Args:
        job_id: a template, such as another task's output.
        max_failed_rows: how many failed rows are allowed; any number when absent.
        deferrable: wait in the triggerer, through one connection for all; else look every `poke_interval`.
    """

    template_fields: Collection[str] = ("job_id", "milkrun_conn_id")
    operator_extra_links: Collection[Any] = (MilkrunJobLink(),)
    ui_color = "#e8f0dc"

    def __init__(
        self,
        *,
        job_id: Any,
        max_failed_rows: int | None = None,
        deferrable: bool = True,
        milkrun_conn_id: str = MilkrunHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_id = job_id
        self.max_failed_rows = max_failed_rows
        self.deferrable = deferrable
        self.milkrun_conn_id = milkrun_conn_id

    def execute(self, context: Context) -> Any:
        """Look once; then defer, or look again and again."""
        engine, job = self._look()
        context["ti"].xcom_push(key=JOB_URL, value=engine.page(job))
        if not job.is_terminal:
            if self.deferrable:
                self._defer(time.time() + self.timeout)
            super().execute(context)
            engine, job = self._look()
        return self._facts(engine, job)

    def poke(self, context: Context) -> bool:  # noqa: ARG002 (Airflow's signature)
        """Whether the job has ended."""
        return self._look()[1].is_terminal

    def execute_complete(
        self,
        context: Context,  # noqa: ARG002 (Airflow's signature)
        event: Any,
        deadline: float | None = None,
        heals: int = 0,
    ) -> Any:
        """Take up the task after the wait; `dag.test()` hands over the event alone."""
        try:
            word = JobEvent.read(event)
        except ValueError as error:
            word = JobEvent(job_id=str(self.job_id), reason=Reason.unsure, message=str(error))
        return self._take_up(word, deadline, heals)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Let no task fail because its trigger did."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            raise
        except TaskDeferralError as error:
            # Airflow hands over none of the sensor's own arguments here: its time limit begins anew.
            word = JobEvent(job_id=str(self.job_id), reason=Reason.unsure, message=f"the trigger failed: {error}")
            return self._take_up(word, None, HEALS - 1)

    def _take_up(self, word: JobEvent, deadline: float | None, heals: int) -> Any:
        engine, job = self._look()
        if job.is_terminal:
            return self._facts(engine, job)
        if word.reason is Reason.timeout:
            message = f"job {job.id} is still {job.status} after {self.timeout:g} seconds. {engine.page(job)}"
            raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)
        if heals >= HEALS:
            raise AirflowException(f"{word.message}. Job {job.id} goes on. {engine.page(job)}")
        self.log.warning("%s; job %s is %s, waiting again", word.message, job.id, job.status)
        return self._defer(time.time() + self.timeout if deadline is None else deadline, heals + 1)

    def _defer(self, deadline: float, heals: int = 0) -> Any:
        limits = [max(0.0, deadline - time.time()) + GRACE_SECONDS]
        if self.execution_timeout is not None:
            limits.append(self.execution_timeout.total_seconds())
        self.defer(
            trigger=MilkrunJobTrigger(
                job_id=self.job_id,
                conn_id=self.milkrun_conn_id,
                deadline=deadline,
                cancel_on_kill=False,
                not_before=settled(),
            ),
            method_name="execute_complete",
            kwargs={"deadline": deadline, "heals": heals},
            timeout=timedelta(seconds=min(limits)),
        )

    def _look(self) -> tuple[Engine, mr.Job]:
        with connected(self.milkrun_conn_id) as (engine, client):
            return engine, client.job(self.job_id)

    def _facts(self, engine: Engine, job: mr.Job) -> dict[str, Any]:
        try:
            outcome.check(job, self.max_failed_rows)
        except mr.JobError as error:
            # Never left to the task's retries: a sensor submits nothing, and they would read the same ended job.
            message = f"{type(error).__name__}: {error}"
            raise (AirflowSkipException if self.soft_fail else AirflowFailException)(message) from error
        return {**outcome.summary(job), "url": engine.page(job), "row_errors": dict(job.row_errors)}
