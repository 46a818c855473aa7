"""
Waiting for a job that another task, or another program, submitted.
"""

import time
from collections.abc import Collection
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowSensorTimeout, AirflowSkipException

import milkrun as mr
from airflow_provider_milkrun.events import JobEvent, Reason
from airflow_provider_milkrun.failures import translated
from airflow_provider_milkrun.hooks import Engine, MilkrunHook
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
        engine, job = self._look(self.job_id)
        context["ti"].xcom_push(key=JOB_URL, value=engine.page(job))
        if not job.is_terminal:
            if self.deferrable:
                self._defer(time.time() + self.timeout)
            super().execute(context)
            engine, job = self._look(self.job_id)
        return self._facts(engine, job)

    def poke(self, context: Context) -> bool:  # noqa: ARG002 (Airflow's signature)
        """Whether the job has ended."""
        return self._look(self.job_id)[1].is_terminal

    def execute_complete(
        self,
        context: Context,  # noqa: ARG002 (Airflow's signature)
        event: Any,
        deadline: float | None = None,
        heals: int = 0,
    ) -> Any:
        """Take up the task after the wait; `dag.test()` hands over the event alone."""
        engine, job = self._look(self.job_id)
        if job.is_terminal:
            return self._facts(engine, job)
        try:
            word = JobEvent.read(event)
        except ValueError as error:
            word = JobEvent(job_id=job.id, reason=Reason.unsure, message=str(error))
        if word.reason is Reason.timeout:
            message = f"job {job.id} is still {job.status} after {self.timeout:g} seconds. {engine.page(job)}"
            raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)
        if heals >= HEALS:
            raise AirflowException(f"{word.message}. Job {job.id} goes on. {engine.page(job)}")
        self.log.warning("%s; job %s is %s, waiting again", word.message, job.id, job.status)
        return self._defer(time.time() + self.timeout if deadline is None else deadline, heals + 1)

    def _defer(self, deadline: float, heals: int = 0) -> Any:
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
            timeout=timedelta(seconds=max(0.0, deadline - time.time()) + GRACE_SECONDS),
        )

    def _look(self, job_id: str) -> tuple[Engine, mr.Job]:
        engine = MilkrunHook(self.milkrun_conn_id).engine()
        with translated(), engine.client() as client:
            return engine, client.job(job_id)

    def _facts(self, engine: Engine, job: mr.Job) -> dict[str, Any]:
        with translated():
            outcome.check(job, self.max_failed_rows)
        return {**outcome.summary(job), "url": engine.page(job), "row_errors": dict(job.row_errors)}
