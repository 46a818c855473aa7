"""
Tasks that run rows through a model: submit, defer, collect.

The order in `execute` is what makes it safe: the engine knows the job by the task's key before Airflow does, so
whatever dies in between, the next attempt finds the job instead of making a second one.
"""

import threading
import time
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any, ClassVar

from airflow.sdk import Asset, BaseOperator, Context
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowTaskTimeout,
    TaskDeferralError,
    TaskDeferralTimeout,
)

import milkrun as mr
from airflow_provider_milkrun import _kills, _rows
from airflow_provider_milkrun.events import JobEvent, Reason
from airflow_provider_milkrun.failures import AWAY, failure
from airflow_provider_milkrun.hooks import Engine, MilkrunHook, connected, map_index_of
from airflow_provider_milkrun.links import JOB_URL, MilkrunJobLink
from airflow_provider_milkrun.triggers import GRACE_SECONDS, HEALS, MilkrunJobTrigger, ProgressLog, settled
from milkrun import outcome

_STORE_KEY = "milkrun"  # in the task's state store (Airflow 3.3): this attempt's job, claim, deadline and heals
_KILL_SECONDS = 4.0  # Airflow kills the process for good five seconds after it asked


class MilkrunSubmitOperator(BaseOperator):
    """
    Submits rows to a model and returns the job's id at once.

    The task's retries, and the task cleared, find the same job; where it failed, expired or was cancelled, a new one
    runs only its rows without a result. With other rows or options than before, the job is replaced by a new one.
    `MilkrunJobSensor` waits for it.

    Args:
        rows: a list of texts, of chat message lists or of dicts; another task's output; the path of a CSV, TSV,
            JSONL or Parquet file, here or in object storage; a text is a template for one of these. Rows
            themselves are never rendered as templates.
        prompt, column, system_prompt, model, output_schema, sampling, key_column, kind, name, description,
            completion_window, abort_after_failed_rows: as in `milkrun.SubmitOptions`. Prompts are not rendered as
            templates.
        job_priority: 0 to 10, smaller is sooner; the connection's, or 1.
        reuse: `failed_rows` by default; `inputs_match` runs all rows of such a job again.
        labels: beside `dag_id`, `task_id`, `run_id` (and `map_index`), which every job of Airflow's carries.
        milkrun_conn_id: the connection that names the engine.
    """

    template_fields: Collection[str] = ("rows", "model", "name", "description", "labels", "milkrun_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"labels": "json"}
    operator_extra_links: Collection[Any] = (MilkrunJobLink(),)
    ui_color = "#e8f0dc"

    def __init__(
        self,
        *,
        rows: Any,
        prompt: str | None = None,
        column: str | None = None,
        system_prompt: str | None = None,
        model: str | None = None,
        output_schema: Any = None,
        sampling: Mapping[str, Any] | None = None,
        key_column: str | None = None,
        kind: mr.JobKind | str = mr.JobKind.generate,
        job_priority: int | None = None,
        name: str | None = None,
        description: str | None = None,
        completion_window: timedelta | float | None = None,
        abort_after_failed_rows: int | None = None,
        labels: Mapping[str, str] | None = None,
        reuse: mr.Reuse | str = mr.Reuse.failed_rows,
        milkrun_conn_id: str = MilkrunHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rows = rows
        self.prompt = prompt
        self.column = column
        self.system_prompt = system_prompt
        self.model = model
        self.output_schema = output_schema
        self.sampling = sampling
        self.key_column = key_column
        self.kind = kind
        self.job_priority = job_priority
        self.name = name
        self.description = description
        self.completion_window = completion_window
        self.abort_after_failed_rows = abort_after_failed_rows
        self.labels = labels
        self.reuse = reuse
        self.milkrun_conn_id = milkrun_conn_id

    @property
    def rows(self) -> Any:
        """The task's rows; hidden once they are there."""
        return self._rows

    @rows.setter
    def rows(self, rows: Any) -> None:
        self._rows = _rows.covered(rows)

    def execute(self, context: Context) -> Any:
        """Submit, and return the job's id."""
        with connected(self.milkrun_conn_id) as (engine, client):
            return self._submit(context, engine, client).job.id

    def _submit(self, context: Context, engine: Engine, client: mr.Milkrun) -> mr.Submitted:
        with _rows.readable(self.rows) as rows:
            submitted = client.submit(rows, **self._options(context, engine))
        job = submitted.job
        said = "found" if submitted.reused else f"replaces {submitted.replaced}" if submitted.replaced else "submitted"
        self.log.info("job %s %s: %s, %s. %s", job.id, said, job.status, outcome.progress(job), engine.page(job))
        context["ti"].xcom_push(key=JOB_URL, value=engine.page(job))
        return submitted

    def _options(self, context: Context, engine: Engine) -> mr.SubmitOptions:
        ti = context["ti"]
        labels = {"dag_id": ti.dag_id, "task_id": ti.task_id, "run_id": ti.run_id}
        if map_index_of(ti) >= 0:
            labels["map_index"] = str(ti.map_index)
        url = str(getattr(ti, "log_url", ""))
        return mr.SubmitOptions(
            prompt=self.prompt,
            column=self.column,
            system_prompt=self.system_prompt,
            model=self.model or engine.model,
            output_schema=self.output_schema,
            sampling=self.sampling,
            key_column=self.key_column,
            kind=self.kind,
            job_priority=next((each for each in (self.job_priority, engine.job_priority) if each is not None), 1),
            name=self.name or f"{ti.dag_id}.{ti.task_id}"[:200],
            description=self.description,
            completion_window=self.completion_window,
            abort_after_failed_rows=self.abort_after_failed_rows,
            labels={**(self.labels or {}), **labels},
            external_url=url if url.startswith(("http://", "https://")) and len(url) <= 2_000 else None,
            idempotency_key=engine.key_of(ti),
            reuse=self.reuse,
            on_mismatch=mr.OnMismatch.replace,
        )


class MilkrunInferOperator(MilkrunSubmitOperator):
    """
    Runs rows through a model, and holds no worker while the job runs.

    It returns a small manifest (job, status, counts, tokens, seconds, links), never rows: name an `output_path`,
    and the results are written there. A job with failed rows succeeded; with more than `max_failed_rows` the task
    fails, and its next attempt runs those rows alone.

    Args:
        output_path: where the results go: a .csv, .jsonl or .parquet file, here or in object storage. A template.
        max_failed_rows: how many failed rows the task allows; any number when absent.
        deferrable: wait in the triggerer. True also where Airflow's own default is False: a batch job may
            wait for hours, and a worker slot that waits is one that another task lacks.
        timeout: how long the task waits for its job, from this attempt's submit.
        cancel_on_timeout: whether the job is cancelled then, and at Airflow's own `execution_timeout`.
        cancel_on_kill: whether the job is cancelled when a user marks the task failed or succeeded.
        wait_up_to: how long to wait in the worker before it defers: a short job is spared two worker starts and the
            ten seconds for which a deferral lasts at least.

    Both times are seconds or a timedelta.
    """

    template_fields: Collection[str] = (*MilkrunSubmitOperator.template_fields, "output_path")

    def __init__(
        self,
        *,
        output_path: Any = None,
        max_failed_rows: int | None = None,
        deferrable: bool = True,
        timeout: timedelta | float | None = None,
        cancel_on_timeout: bool = True,
        cancel_on_kill: bool = True,
        wait_up_to: timedelta | float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _seconds("timeout", timeout), _seconds("wait_up_to", wait_up_to)  # here, not once the job runs
        if not isinstance(max_failed_rows, int | None):
            raise TypeError(f"max_failed_rows is a number of rows, not {max_failed_rows!r}")
        self.output_path = output_path
        self.max_failed_rows = max_failed_rows
        self.deferrable = deferrable
        self.timeout = timeout
        self.cancel_on_timeout = cancel_on_timeout
        self.cancel_on_kill = cancel_on_kill
        self.wait_up_to = wait_up_to
        self._running: tuple[Any, Engine, mr.Submitted | None] | None = None  # what may have to be stopped
        self._is_ended = False  # by a user, while the rows were on their way

    def execute(self, context: Context) -> Any:
        """Submit, then defer (or wait) until the job has ended; return the manifest."""
        try:
            with connected(self.milkrun_conn_id) as (engine, client):
                self._running = context["ti"], engine, None
                if self.output_path is not None:
                    _rows.check_output(self.output_path)
                submitted = self._submit(context, engine, client)
                self._running = context["ti"], engine, submitted
                record = self._first_record(submitted)
                if self._is_ended:
                    self._cancel(client, record)
                    raise AirflowFailException("a user ended the task while its rows were on their way to the engine")
                _remember(context, record)
                job = self._first_look(client, record)
                if job.is_terminal:
                    return self._finish(context, engine, client, job)
                if not self.deferrable:
                    return self._wait(context, engine, client, record)
        except AirflowTaskTimeout:
            if self.cancel_on_timeout:
                self._stop_running()
            raise
        return self._defer(record)

    def _options(self, context: Context, engine: Engine) -> mr.SubmitOptions:
        options = super()._options(context, engine)
        if self.reuse == mr.Reuse.failed_rows:
            options["max_failed_rows"] = self.max_failed_rows
        return options

    def _first_record(self, submitted: mr.Submitted) -> dict[str, Any]:
        seconds = _seconds("timeout", self.timeout)
        deadline = None if seconds is None else time.time() + seconds
        return {"job_id": submitted.job.id, "claim": submitted.claim, "deadline": deadline, "heals": 0}

    def _first_look(self, client: mr.Milkrun, record: dict[str, Any]) -> mr.Job:
        patience = [_seconds("wait_up_to", self.wait_up_to), _seconds("timeout", self.timeout)]
        seconds = min(each for each in patience if each is not None)
        if seconds <= 0:
            return client.job(record["job_id"])
        try:
            return client.wait(record["job_id"], timeout=seconds)
        except mr.WaitTimeout as error:
            return error.job

    def _wait(self, context: Context, engine: Engine, client: mr.Milkrun, record: dict[str, Any]) -> Any:
        left = None if record["deadline"] is None else max(0.0, record["deadline"] - time.time())
        try:
            job = client.wait(record["job_id"], timeout=left, on_progress=ProgressLog(self.log))
        except mr.WaitTimeout as error:
            return self._timed_out(client, record, error)
        return self._finish(context, engine, client, job)

    def _defer(self, record: dict[str, Any]) -> Any:
        """Leave the worker; Airflow wakes a new instance of this operator."""
        deadline = record["deadline"]
        limits = [] if deadline is None else [max(0.0, deadline - time.time()) + GRACE_SECONDS]
        if self.execution_timeout is not None:
            limits.append(self.execution_timeout.total_seconds())
        self.defer(
            trigger=MilkrunJobTrigger(
                job_id=record["job_id"],
                conn_id=self.milkrun_conn_id,
                claim=record["claim"],
                deadline=deadline,
                cancel_on_kill=self.cancel_on_kill,
                not_before=settled(),
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=min(limits)) if limits else None,
        )

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Take up the task after the wait; nothing of `execute` is left but what the engine and Airflow stored."""
        try:
            word = JobEvent.read(event)
        except ValueError as error:
            return self._take_up(context, str(error))
        if word.reason is Reason.unsure:
            return self._take_up(context, word.message or "the trigger could not go on")
        return self._take_up(context, f"the trigger said {word.reason} of job {word.job_id}", word)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Let no job leak at Airflow's own time limit, and no task fail because its trigger did."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            if self.cancel_on_timeout:
                with connected(self.milkrun_conn_id) as (engine, client):
                    self._cancel(client, self._recall(context, engine, client))
            raise
        except TaskDeferralError as error:
            return self._take_up(context, f"the trigger failed: {error}")

    def _take_up(self, context: Context, why: str, word: JobEvent | None = None) -> Any:
        """Ask the engine how the job stands: collect its results, or wait on if it is alive."""
        with connected(self.milkrun_conn_id) as (engine, client):
            try:
                record = self._recall(context, engine, client)
                job = client.job(record["job_id"])
            except AWAY as error:
                stored = _stored(context)
                if stored is None:
                    raise
                return self._wait_again(context, stored, f"{why}; the engine is away: {error}")
            if job.is_terminal:
                return self._finish(context, engine, client, job)
            # After a clear Airflow may hand the old attempt's event to the new one: where its database gives the
            # number of a deleted trigger away again (SQLite), the two are the same to it.
            is_mine = word is not None and word.job_id == record["job_id"]
            if is_mine and word is not None and word.reason is Reason.timeout:
                return self._timed_out(client, record, _waited_enough(job))
        return self._wait_again(context, record, f"{why}; job {job.id} is {job.status}")

    def _wait_again(self, context: Context, record: dict[str, Any], why: str) -> Any:
        """Defer once more, some times; then leave it to the task's own retries."""
        if record["heals"] >= HEALS:
            raise AirflowException(f"{why}. Job {record['job_id']} goes on, and the task's next attempt finds it")
        self.log.warning("%s; waiting again", why)
        record = {**record, "heals": record["heals"] + 1}
        _remember(context, record)
        return self._defer(record)

    def _recall(self, context: Context, engine: Engine, client: mr.Milkrun) -> dict[str, Any]:
        """Return this attempt's job from Airflow's store; where there is none, from the engine, by the task's key."""
        if (stored := _stored(context)) is not None:
            return stored
        attached = client.attach(engine.key_of(context["ti"]))
        # Without a store nobody counts the heals: the task's own retries do it.
        return {"job_id": attached.job.id, "claim": attached.claim, "deadline": None, "heals": HEALS}

    def _timed_out(self, client: mr.Milkrun, record: dict[str, Any], error: mr.WaitTimeout) -> Any:
        if self.cancel_on_timeout:
            self._cancel(client, record)
        raise failure(error) from error

    def _cancel(self, client: mr.Milkrun, record: dict[str, Any]) -> None:
        try:
            job = client.cancel(record["job_id"], record["claim"])
        except mr.Conflict as error:
            self.log.info("job %s belongs to a newer attempt and goes on: %s", record["job_id"], error)
        else:
            self.log.info("job %s is %s", job.id, job.status)

    def _finish(self, context: Context, engine: Engine, client: mr.Milkrun, job: mr.Job) -> dict[str, Any]:
        self.log.info("job %s %s. %s", job.id, outcome.sentence(job), engine.page(job))
        try:
            outcome.check(job, self.max_failed_rows)
        except mr.TooManyRowsFailed as error:
            if self.reuse in (mr.Reuse.inputs_match, mr.Reuse.always):
                message = f"{error} With reuse={str(self.reuse)!r} a retry would find the same job."
                raise AirflowFailException(message) from error
            raise
        if self.output_path is not None:
            _rows.save(client.results(job.id), self.output_path)
            self.log.info("results written to %s", self.output_path)
        manifest: dict[str, Any] = {
            **outcome.summary(job),
            "url": engine.page(job),
            "row_errors": dict(job.row_errors),
            "output": None if self.output_path is None else str(self.output_path),
        }
        for asset in self.outlets:
            if isinstance(asset, Asset):
                context["outlet_events"][asset].extra = manifest
        return manifest

    def on_kill(self) -> None:
        """Stop the job if a user ended the task while its worker was still there."""
        if self._running is None or not self.cancel_on_kill:
            return
        ti = self._running[0]

        def stop() -> None:
            state = _kills.state_of(ti, ti.get_task_states(**_kills.question(ti)))
            if state not in _kills.ENDED:
                self.log.info("the job, if there is one, goes on: the task is %s", state)
                return
            self._is_ended = True  # first: a submit that is under way looks at it when it is through
            self._stop_running()

        # Airflow calls this in a signal handler; what the main thread was doing just then must not block it for ever.
        thread = threading.Thread(target=stop, name="milkrun on_kill", daemon=True)
        thread.start()
        thread.join(_KILL_SECONDS)

    def _stop_running(self) -> None:
        """Stop the job of this attempt, if the engine has it."""
        if self._running is None:
            return
        ti, engine, submitted = self._running
        with engine.client() as client:
            try:
                mine = submitted or client.attach(engine.key_of(ti))
            except mr.NotFound:
                return
            self._cancel(client, {"job_id": mine.job.id, "claim": mine.claim})


def _seconds(name: str, value: timedelta | float | None) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if value is not None and not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds or a timedelta, not {value!r}")
    return value


def _stored(context: Context) -> dict[str, Any] | None:
    store: Any = context.get("task_state_store")
    found = store.get(_STORE_KEY) if store is not None else None
    if not isinstance(found, dict) or "job_id" not in found:
        return None
    return {"claim": None, "deadline": None, "heals": 0, **found}


def _remember(context: Context, record: Mapping[str, Any]) -> None:
    store: Any = context.get("task_state_store")
    if store is not None:
        store.set(_STORE_KEY, dict(record))


def _waited_enough(job: mr.Job) -> mr.WaitTimeout:
    return mr.WaitTimeout(
        f"Stopped waiting for job {job.id}, still {job.status} ({outcome.progress(job)}): the task's timeout is over. "
        f"{job.url}",
        job=job,
    )
