"""
`Milkrun` and `AsyncMilkrun`: the same methods, blocking and awaiting, one line each over `_operations`.
"""

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Self, Unpack

import httpx

from milkrun import _callbacks, _operations, _waiting, wire
from milkrun._base import BaseClient
from milkrun._drivers import Awaiting, Blocking
from milkrun._options import SubmitOptions, spelled_out
from milkrun._results import AsyncResults, Results
from milkrun._waiting import Progress
from milkrun.status import CallbackState, FeedEvents, JobKind, JobStatus

_LOOPBACK = ("all://127.0.0.1", "all://localhost", "all://[::1]")  # never through a proxy


class Milkrun(BaseClient):
    """
    A client of one engine.

    Without `url` (or `MILKRUN_URL`) it finds or starts this user's local engine at its first request, unless
    `local=False`. Safe to share between threads; close it, or use it in a with statement.

    Example:
        with Milkrun() as client:
            job_id = client.infer(["Say hello."], model="smollm2-135m-instruct")
            results = client.await_job_results(job_id)
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        local: bool | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, local, data_dir)
        self._driver = Blocking(lambda: httpx.Client(transport=transport, mounts=dict.fromkeys(_LOOPBACK)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; jobs go on."""
        self._closed = True
        self._driver.http.close()

    @spelled_out
    def infer(self, rows: Any = None, **options: Unpack[SubmitOptions]) -> str:
        """
        Submit rows to a model and return the job's id at once.

        Repeating the call with the same `idempotency_key` and inputs returns the same job; without
        a key each call is a job of its own, and retries in between still never make a second one.

        Args:
            rows: a list or iterable of texts, of chat message lists or of dicts; a pandas, polars or pyarrow table;
                the path of a CSV, TSV, JSONL or Parquet file. `inputs=` and `data=` are other names for it.
            options: see `milkrun.SubmitOptions`.

        Raises:
            TypeError, ValueError: an argument is wrong; nothing was sent.
            MilkrunError: the engine could not be reached, or refused.
        """
        return self._driver.run(self._submit(rows, options)).job.id

    @spelled_out
    def submit(self, rows: Any = None, **options: Unpack[SubmitOptions]) -> wire.Submitted:
        """Submit as `infer` does; return the whole answer: the job, the claim for `cancel`, whether it was reused."""
        return self._driver.run(self._submit(rows, options))

    @spelled_out
    def embed(self, rows: Any = None, **options: Unpack[SubmitOptions]) -> str:
        """Submit rows to an embedding model and return the job's id; each row's output is a list of numbers."""
        options["kind"] = JobKind.embed
        return self.infer(rows, **options)

    def retry_failed(
        self,
        job_id: str,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        external_url: str | None = None,
        job_priority: int | None = None,
        callback: wire.Callback | Mapping[str, Any] | None = None,
    ) -> str:
        """
        Run only those rows of an ended job that have no result, and return the new job's id at once.

        The new job is a whole one over the same input, with the ended job's model, prompt, labels and idempotency
        key: what was answered is taken over (`rows_reused`; those tokens are not counted again), failed and undecided
        rows run. Its results are the whole table, and stay when the ended job is deleted. While it is alive, the same
        call finds it. Name, labels and the like are the ended job's unless given; its callback is not taken over.

        Raises:
            ValueError: an argument is wrong; nothing was sent.
            Conflict: the job has not ended (`not_ended`), has nothing to retry (`nothing_to_retry`), or its input is
                gone (`input_deleted`).
        """
        operation = self._retry_failed(job_id, name, labels, external_url, job_priority, callback)
        return self._driver.run(operation).job.id

    def attach(self, idempotency_key: str, input_hash: str | None = None) -> wire.Submitted:
        """Find a key's job without sending its rows; another `input_hash` than the job's is a `Conflict`."""
        return self._driver.run(self._attach(idempotency_key, input_hash))

    def job(self, job_id: str) -> wire.Job:
        """Return the job as it stands."""
        return self._driver.run(_operations.job(self._link, job_id))

    def jobs(
        self,
        limit: int | None = 100,
        status: JobStatus | str | Iterable[JobStatus | str] | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        name: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        ids: Iterable[str] | None = None,
    ) -> list[wire.Job]:
        """
        Return jobs, newest first; or those of the `ids`, any number, that exist, in no order.

        All filters that are given must hold: one of the statuses, every label, the whole name (or its beginning and
        `*`), submitted after and before these times (local ones unless they say otherwise).
        """
        wanted = self._jobs(limit, status, labels, name, created_after, created_before, ids)
        return self._driver.run(wanted)

    def wait(self, job_id: str, timeout: float | None = None, on_progress: Progress | None = None) -> wire.Job:
        """
        Wait until the job has ended and return it, however it ended.

        `on_progress` is called with the job whenever it has moved, at most about once a second.
        Survives an engine that restarts in between.

        Raises:
            WaitTimeout: it had not ended after `timeout` seconds; it goes on.
        """
        return self._driver.run(_waiting.wait(self._link, job_id, timeout=timeout, on_progress=on_progress))

    def as_ended(self, job_ids: Iterable[str], timeout: float | None = None) -> Iterator[wire.Job]:
        """
        Yield each of the jobs as it ends, however it ended; any number of jobs through one connection.

        The jobs' `row_errors` are empty here; `job(id)` has them.

        Raises:
            WaitTimeout: some had not ended after `timeout` seconds; they go on.
        """
        return self._driver.iterate(_waiting.as_ended(self._link, job_ids, timeout=timeout))

    def changes(
        self,
        after: str | None = None,
        wait: float = 0.0,
        on: FeedEvents | str = FeedEvents.end,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> wire.Changes:
        """
        Return the jobs that changed since the cursor `after`, each once, in its latest state.

        Without `after` the answer is the current cursor alone. With `wait` the engine holds the answer for up to
        that many seconds. A `ResponseError` with code `cursor_lost` asks to read the jobs by id and begin anew.
        """
        return self._driver.run(self._changes(after, wait, on, labels, limit))

    def results(self, job_id: str, schema: Any = None) -> Results:
        """
        Return the job's results, as many as are readable now; it need not have ended.

        `schema` (a pydantic model or a JSON schema) fills `row.parsed`; a client knows it already for
        the jobs that it submitted itself.
        """
        job, count = self._driver.run(self._results(job_id))
        return Results(self._driver, self._link, job, count, self._parser(job_id, schema))

    def await_job_results(
        self,
        job_id: str,
        timeout: float | None = None,
        *,
        max_failed_rows: int | None = None,
        on_progress: Progress | None = None,
        schema: Any = None,
    ) -> Results:
        """
        Wait until the job has ended and return its results, in the caller's row order.

        Rows that failed carry an error; they make the job no failure unless they are more than `max_failed_rows`.

        Raises:
            JobFailed, JobCancelled, JobExpired, TooManyRowsFailed: the job did not end as it should.
            WaitTimeout: it had not ended after `timeout` seconds; it goes on.
        """
        ended = self._ended_results(job_id, timeout, max_failed_rows, on_progress)
        job, count = self._driver.run(ended)
        return Results(self._driver, self._link, job, count, self._parser(job_id, schema))

    def cancel(self, job_id: str, claim: int | None = None) -> wire.Job:
        """
        Stop the job and return it; committed rows stay readable, and an ended job is left as it is.

        With a `claim` (from submit or attach) an older attempt can't stop a newer one's job: that is a `Conflict`.
        """
        return self._driver.run(_operations.cancel(self._link, job_id, claim))

    def cancel_labelled(self, labels: Mapping[str, str]) -> list[wire.Job]:
        """Stop every live job that carries all of the labels, and return them."""
        return self._driver.run(_operations.cancel_labelled(self._link, labels))

    def pause(self, job_id: str) -> wire.Job:
        """
        Let the engine start no more rows of the job; those that the model has already are finished.

        An ended job is a `Conflict` (`already_ended`).
        """
        return self._driver.run(_operations.control(self._link, job_id, "pause"))

    def resume(self, job_id: str) -> wire.Job:
        """Let a paused job go on, at the place in the queue that it had. An ended job is a `Conflict`."""
        return self._driver.run(_operations.control(self._link, job_id, "resume"))

    def delete(self, job_id: str) -> None:
        """Delete an ended job with its results and its input; one that is alive is a `Conflict` (`not_ended`)."""
        self._driver.run(_operations.delete(self._link, job_id))

    def callbacks(self, limit: int | None = 100, state: CallbackState | str | None = None) -> list[wire.CallbackInfo]:
        """Return callbacks, newest first; with state "given_up" those that nobody took."""
        return self._driver.run(_callbacks.callbacks(self._link, limit, state))

    def replay_callback(self, callback_id: str) -> wire.CallbackInfo:
        """Send a callback again, now and under its old id; one that was delivered is a `Conflict`."""
        return self._driver.run(_callbacks.replay(self._link, callback_id))

    def replay_callbacks(self, receiver: str) -> int:
        """Send again all callbacks that were given up on a receiver (as `callbacks()` names it); return how many."""
        return self._driver.run(_callbacks.replay_all(self._link, receiver))

    def rotate_callback_secret(self, old: str, new: str) -> int:
        """
        Sign undelivered callbacks, and those of running jobs, with the new secret as well as with the old one.

        Return how many jobs' callbacks changed. What is submitted later says for itself which secrets sign it.
        """
        return self._driver.run(_callbacks.rotate(self._link, old, new))

    def models(self) -> list[wire.ModelInfo]:
        """Return the models that jobs may name."""
        return self._driver.run(_operations.models(self._link))

    def health(self) -> wire.Health:
        """Return the engine's own word on how it is."""
        return self._driver.run(_operations.health(self._link))


class AsyncMilkrun(BaseClient):
    """
    A client of one engine; its methods are awaited.

    Without `url` (or `MILKRUN_URL`) it finds or starts this user's local engine at its first request, unless
    `local=False`. Use it within one event loop; close it, or use it in an async with statement.

    Example:
        async with AsyncMilkrun() as client:
            job_id = await client.infer(["Say hello."], model="smollm2-135m-instruct")
            results = await client.await_job_results(job_id)
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        local: bool | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, local, data_dir)
        self._driver = Awaiting(lambda: httpx.AsyncClient(transport=transport, mounts=dict.fromkeys(_LOOPBACK)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; jobs go on."""
        self._closed = True
        await self._driver.http.aclose()

    @spelled_out
    async def infer(self, rows: Any = None, **options: Unpack[SubmitOptions]) -> str:
        """
        Submit rows to a model and return the job's id at once.

        Repeating the call with the same `idempotency_key` and inputs returns the same job; without
        a key each call is a job of its own, and retries in between still never make a second one.

        Args:
            rows: a list or iterable of texts, of chat message lists or of dicts; a pandas, polars or pyarrow table;
                the path of a CSV, TSV, JSONL or Parquet file. `inputs=` and `data=` are other names for it.
            options: see `milkrun.SubmitOptions`.

        Raises:
            TypeError, ValueError: an argument is wrong; nothing was sent.
            MilkrunError: the engine could not be reached, or refused.
        """
        return (await self._driver.run(self._submit(rows, options))).job.id

    @spelled_out
    async def submit(self, rows: Any = None, **options: Unpack[SubmitOptions]) -> wire.Submitted:
        """Submit as `infer` does; return the whole answer: the job, the claim for `cancel`, whether it was reused."""
        return await self._driver.run(self._submit(rows, options))

    @spelled_out
    async def embed(self, rows: Any = None, **options: Unpack[SubmitOptions]) -> str:
        """Submit rows to an embedding model and return the job's id; each row's output is a list of numbers."""
        options["kind"] = JobKind.embed
        return await self.infer(rows, **options)

    async def retry_failed(
        self,
        job_id: str,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        external_url: str | None = None,
        job_priority: int | None = None,
        callback: wire.Callback | Mapping[str, Any] | None = None,
    ) -> str:
        """
        Run only those rows of an ended job that have no result, and return the new job's id at once.

        The new job is a whole one over the same input, with the ended job's model, prompt, labels and idempotency
        key: what was answered is taken over (`rows_reused`; those tokens are not counted again), failed and undecided
        rows run. Its results are the whole table, and stay when the ended job is deleted. While it is alive, the same
        call finds it. Name, labels and the like are the ended job's unless given; its callback is not taken over.

        Raises:
            ValueError: an argument is wrong; nothing was sent.
            Conflict: the job has not ended (`not_ended`), has nothing to retry (`nothing_to_retry`), or its input is
                gone (`input_deleted`).
        """
        operation = self._retry_failed(job_id, name, labels, external_url, job_priority, callback)
        return (await self._driver.run(operation)).job.id

    async def attach(self, idempotency_key: str, input_hash: str | None = None) -> wire.Submitted:
        """Find a key's job without sending its rows; another `input_hash` than the job's is a `Conflict`."""
        return await self._driver.run(self._attach(idempotency_key, input_hash))

    async def job(self, job_id: str) -> wire.Job:
        """Return the job as it stands."""
        return await self._driver.run(_operations.job(self._link, job_id))

    async def jobs(
        self,
        limit: int | None = 100,
        status: JobStatus | str | Iterable[JobStatus | str] | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        name: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        ids: Iterable[str] | None = None,
    ) -> list[wire.Job]:
        """
        Return jobs, newest first; or those of the `ids`, any number, that exist, in no order.

        All filters that are given must hold: one of the statuses, every label, the whole name (or its beginning and
        `*`), submitted after and before these times (local ones unless they say otherwise).
        """
        wanted = self._jobs(limit, status, labels, name, created_after, created_before, ids)
        return await self._driver.run(wanted)

    async def wait(self, job_id: str, timeout: float | None = None, on_progress: Progress | None = None) -> wire.Job:
        """
        Wait until the job has ended and return it, however it ended.

        `on_progress` is called with the job whenever it has moved, at most about once a second.
        Survives an engine that restarts in between.

        Raises:
            WaitTimeout: it had not ended after `timeout` seconds; it goes on.
        """
        return await self._driver.run(_waiting.wait(self._link, job_id, timeout=timeout, on_progress=on_progress))

    def as_ended(self, job_ids: Iterable[str], timeout: float | None = None) -> AsyncIterator[wire.Job]:
        """
        Yield each of the jobs as it ends, however it ended; any number of jobs through one connection.

        The jobs' `row_errors` are empty here; `job(id)` has them.

        Raises:
            WaitTimeout: some had not ended after `timeout` seconds; they go on.
        """
        return self._driver.iterate(_waiting.as_ended(self._link, job_ids, timeout=timeout))

    async def changes(
        self,
        after: str | None = None,
        wait: float = 0.0,
        on: FeedEvents | str = FeedEvents.end,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> wire.Changes:
        """
        Return the jobs that changed since the cursor `after`, each once, in its latest state.

        Without `after` the answer is the current cursor alone. With `wait` the engine holds the answer for up to
        that many seconds. A `ResponseError` with code `cursor_lost` asks to read the jobs by id and begin anew.
        """
        return await self._driver.run(self._changes(after, wait, on, labels, limit))

    async def results(self, job_id: str, schema: Any = None) -> AsyncResults:
        """
        Return the job's results, as many as are readable now; it need not have ended.

        `schema` (a pydantic model or a JSON schema) fills `row.parsed`; a client knows it already for
        the jobs that it submitted itself.
        """
        job, count = await self._driver.run(self._results(job_id))
        return AsyncResults(self._driver, self._link, job, count, self._parser(job_id, schema))

    async def await_job_results(
        self,
        job_id: str,
        timeout: float | None = None,
        *,
        max_failed_rows: int | None = None,
        on_progress: Progress | None = None,
        schema: Any = None,
    ) -> AsyncResults:
        """
        Wait until the job has ended and return its results, in the caller's row order.

        Rows that failed carry an error; they make the job no failure unless they are more than `max_failed_rows`.

        Raises:
            JobFailed, JobCancelled, JobExpired, TooManyRowsFailed: the job did not end as it should.
            WaitTimeout: it had not ended after `timeout` seconds; it goes on.
        """
        ended = self._ended_results(job_id, timeout, max_failed_rows, on_progress)
        job, count = await self._driver.run(ended)
        return AsyncResults(self._driver, self._link, job, count, self._parser(job_id, schema))

    async def cancel(self, job_id: str, claim: int | None = None) -> wire.Job:
        """
        Stop the job and return it; committed rows stay readable, and an ended job is left as it is.

        With a `claim` (from submit or attach) an older attempt can't stop a newer one's job: that is a `Conflict`.
        """
        return await self._driver.run(_operations.cancel(self._link, job_id, claim))

    async def cancel_labelled(self, labels: Mapping[str, str]) -> list[wire.Job]:
        """Stop every live job that carries all of the labels, and return them."""
        return await self._driver.run(_operations.cancel_labelled(self._link, labels))

    async def pause(self, job_id: str) -> wire.Job:
        """
        Let the engine start no more rows of the job; those that the model has already are finished.

        An ended job is a `Conflict` (`already_ended`).
        """
        return await self._driver.run(_operations.control(self._link, job_id, "pause"))

    async def resume(self, job_id: str) -> wire.Job:
        """Let a paused job go on, at the place in the queue that it had. An ended job is a `Conflict`."""
        return await self._driver.run(_operations.control(self._link, job_id, "resume"))

    async def delete(self, job_id: str) -> None:
        """Delete an ended job with its results and its input; one that is alive is a `Conflict` (`not_ended`)."""
        await self._driver.run(_operations.delete(self._link, job_id))

    async def callbacks(
        self, limit: int | None = 100, state: CallbackState | str | None = None
    ) -> list[wire.CallbackInfo]:
        """Return callbacks, newest first; with state "given_up" those that nobody took."""
        return await self._driver.run(_callbacks.callbacks(self._link, limit, state))

    async def replay_callback(self, callback_id: str) -> wire.CallbackInfo:
        """Send a callback again, now and under its old id; one that was delivered is a `Conflict`."""
        return await self._driver.run(_callbacks.replay(self._link, callback_id))

    async def replay_callbacks(self, receiver: str) -> int:
        """Send again all callbacks that were given up on a receiver (as `callbacks()` names it); return how many."""
        return await self._driver.run(_callbacks.replay_all(self._link, receiver))

    async def rotate_callback_secret(self, old: str, new: str) -> int:
        """
        Sign undelivered callbacks, and those of running jobs, with the new secret as well as with the old one.

        Return how many jobs' callbacks changed. What is submitted later says for itself which secrets sign it.
        """
        return await self._driver.run(_callbacks.rotate(self._link, old, new))

    async def models(self) -> list[wire.ModelInfo]:
        """Return the models that jobs may name."""
        return await self._driver.run(_operations.models(self._link))

    async def health(self) -> wire.Health:
        """Return the engine's own word on how it is."""
        return await self._driver.run(_operations.health(self._link))
