"""
`MilkrunJob`: what to ask of a model, kept as a block; each trigger is a job.
"""

import asyncio
from typing import Any, ClassVar, cast

from prefect.blocks.abstract import JobBlock, JobRun
from pydantic import Field, HttpUrl

import milkrun as mr
from prefect_milkrun._run import next_call
from prefect_milkrun.credentials import MilkrunCredentials
from prefect_milkrun.results import MilkrunResults
from prefect_milkrun.tasks import afetch_results, asubmit_job, await_for, fetch_results, submit_job, wait_for


class MilkrunJobRun(JobRun[MilkrunResults]):
    """One job of a `MilkrunJob`."""

    def __init__(self, submitted: mr.Submitted, credentials: MilkrunCredentials, max_failed_rows: int | None) -> None:
        self.job = submitted.job  #: as it stood last
        self._claim = submitted.claim
        self._credentials = credentials
        self._max_failed_rows = max_failed_rows

    @property
    def job_id(self) -> str:
        """The engine's id of the job."""
        return self.job.id

    def wait_for_completion(self, timeout: float | None = None) -> mr.Job:  # type: ignore[override]
        """
        Wait until the job has ended and return it, however it ended.

        Raises:
            WaitTimeout: it had not ended after `timeout` seconds; it goes on.
        """
        self.job = wait_for(self._credentials, self.job_id, timeout)
        return self.job

    async def await_for_completion(self, timeout: float | None = None) -> mr.Job:
        """Wait until the job has ended and return it, however it ended."""
        self.job = await await_for(self._credentials, self.job_id, timeout)
        return self.job

    def fetch_result(self) -> MilkrunResults:  # type: ignore[override]
        """
        Return the ended job's results by reference.

        Raises:
            JobFailed, JobCancelled, JobExpired, TooManyRowsFailed: the job did not end as it should.
        """
        return fetch_results.fn(self.job_id, credentials=self._credentials, max_failed_rows=self._max_failed_rows)

    async def afetch_result(self) -> MilkrunResults:
        """Return the ended job's results by reference."""
        return await afetch_results.fn(
            self.job_id, credentials=self._credentials, max_failed_rows=self._max_failed_rows
        )

    def cancel(self) -> mr.Job:
        """Stop the job; one that a later attempt took over is a `Conflict`."""
        with self._credentials.get_client() as client:
            self.job = client.cancel(self.job_id, self._claim)
        return self.job

    async def acancel(self) -> mr.Job:
        """Stop the job; one that a later attempt took over is a `Conflict`."""
        return await asyncio.to_thread(self.cancel)


class MilkrunJob(JobBlock[MilkrunResults]):
    """
    What to ask of a model: everything about a job but its rows.

    Example:
        Run a stored job:
        ```python
        from prefect_milkrun import MilkrunJob

        job = MilkrunJob.load("BLOCK_NAME")
        run = job.trigger(["Arrived broken.", "I love it!"])
        run.wait_for_completion()
        frame = run.fetch_result().to_polars()
        ```
    """

    _block_type_name: ClassVar[str | None] = "Milkrun Job"
    _block_type_slug: ClassVar[str | None] = "milkrun-job"
    _documentation_url: ClassVar[HttpUrl | None] = cast(HttpUrl, "https://docs.prefect.io/v3/concepts/blocks")

    credentials: MilkrunCredentials = Field(
        default_factory=MilkrunCredentials, description="The engine and the key to it."
    )
    model: str | None = Field(default=None, description="The model's name; the engine's default when absent.")
    prompt: str | None = Field(default=None, description="A template over the row's columns: 'Classify: {text}'.")
    system_prompt: str | None = Field(default=None, description="What goes before every row.")
    sampling: dict[str, Any] = Field(
        default_factory=dict, description="OpenAI parameter names: temperature, max_tokens, seed."
    )
    output_schema: dict[str, Any] | list[str] | None = Field(
        default=None, description="A JSON schema, or a list of choices, that every answer fits."
    )
    key_column: str | None = Field(default=None, description="The column that labels a row in the results.")
    job_priority: int = Field(default=1, ge=0, le=10, description="From 0 to 10; smaller is sooner.")
    labels: dict[str, str] = Field(default_factory=dict, description="To filter the engine's list of jobs by.")
    max_failed_rows: int | None = Field(
        default=None, description="More failed rows than this make fetch_result raise; any number when absent."
    )

    def _options(self) -> mr.SubmitOptions:
        names = (
            "model",
            "prompt",
            "system_prompt",
            "sampling",
            "output_schema",
            "key_column",
            "job_priority",
            "labels",
            "max_failed_rows",
        )
        return cast(mr.SubmitOptions, {name: getattr(self, name) for name in names})

    def trigger(self, rows: Any = None, **options: Any) -> MilkrunJobRun:  # type: ignore[override]
        """
        Submit rows and return the job's run; in a flow, a repeated run of it finds the same job.

        Args:
            rows: as `milkrun.infer` takes them.
            options: see `milkrun.SubmitOptions`; they go before the block's own.
        """
        merged: Any = {"call_key": next_call(), **self._options(), **options}
        return self._run(submit_job.fn(rows, credentials=self.credentials, **merged))

    async def atrigger(self, rows: Any = None, **options: Any) -> MilkrunJobRun:
        """Submit rows and return the job's run, as `trigger` does."""
        merged: Any = {"call_key": next_call(), **self._options(), **options}
        return self._run(await asubmit_job.fn(rows, credentials=self.credentials, **merged))

    def _run(self, submitted: mr.Submitted) -> MilkrunJobRun:
        return MilkrunJobRun(submitted, self.credentials, self.max_failed_rows)
