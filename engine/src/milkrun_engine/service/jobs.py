"""
The front door of jobs.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from milkrun.hashing import input_hash, row_line
from milkrun.status import FeedEvents, InputFormat, JobStatus
from milkrun.wire import Callback, Changes, InputFile, Job, JobList, QueuePlace, SubmitRequest, Submitted
from milkrun_engine.blobs.local import BlobWriter, LocalBlobs
from milkrun_engine.domain.errors import InputTooLarge, InvalidRequest, OutcomeUnknown, ShuttingDown
from milkrun_engine.domain.ids import new_id
from milkrun_engine.domain.jobs import JobFilter, JobRecord, NewJob, SubmitResult
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.domain.rows import RowReader
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.service import door
from milkrun_engine.service.egress import Egress
from milkrun_engine.service.leftovers import delete_unnamed
from milkrun_engine.service.metrics import Metrics, counts_submits
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads
from milkrun_engine.service.views import PageLinks, job_view
from milkrun_engine.store import Store
from milkrun_engine.store.input_files import InputFileRecord

log = logging.getLogger(__name__)
MAX_UPLOAD_BYTES = 200_000_000_000
_SAFETY_READ_SECONDS = 30.0
_SAFETY_READ_OF_SEVERAL_SECONDS = 5.0  # news between processes may be lost
_CANCEL_BATCH = 100
_SOON_SECONDS = 600.0
_LONG_SECONDS = 3_600.0


class JobService:
    """
    Submit, find, watch and stop jobs on behalf of a tenant.

    Args:
        waiting_reason: says of a model why its rows do not run just now, None when they do.
        rows_per_second: how many rows a model has answered a second of late, None when it answers none.
    """

    def __init__(
        self,
        *,
        store: Store,
        blobs: LocalBlobs,
        threads: Threads,
        signals: Signals,
        models: dict[str, ModelSpec],
        links: PageLinks,
        egress: Egress,
        metrics: Metrics,
        waiting_reason: Callable[[str], str | None],
        rows_per_second: Callable[[str], float | None],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._threads = threads
        self._signals = signals
        self._models = models
        self._links = links
        self._egress = egress
        self._metrics = metrics
        self._waiting_reason = waiting_reason
        self._rows_per_second = rows_per_second
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Refuse new jobs and answer all long-polls at once."""
        self._stopping.set()

    async def upload(self, tenant_id: str, form: InputFormat, body: AsyncIterator[bytes]) -> InputFile:
        """
        Keep an input as it comes; durable when this returns.

        Raises:
            InputTooLarge: it is over `MAX_UPLOAD_BYTES`.
            DiskFull: there is no room for it.
        """
        file_id = new_id("file")
        name = f"inputs/{tenant_id}/{file_id}"
        async with self._creating(name) as blob:
            async for piece in body:
                if blob.bytes + len(piece) > MAX_UPLOAD_BYTES:
                    raise InputTooLarge(f"an input file holds at most {MAX_UPLOAD_BYTES:,} bytes; split it")
                await self._threads.files(blob.write, piece)
                reached(Point.upload_received)
        record = InputFileRecord(
            id=file_id, tenant_id=tenant_id, format=form, bytes=blob.bytes, sha256=blob.sha256, blob=name
        )
        try:
            await self._threads.write(self._store.input_files.add, record)
        except Exception:
            await self._forget(record)
            raise
        return InputFile(id=file_id, format=form, bytes=record.bytes, sha256=record.sha256)

    @asynccontextmanager
    async def _creating(self, name: str) -> AsyncIterator[BlobWriter]:
        """`LocalBlobs.create` with its file work, the syncs above all, off the event loop."""
        creating = self._blobs.create(name)
        blob = await self._threads.files(creating.__enter__)
        try:
            yield blob
        except BaseException as error:
            await self._threads.files(creating.__exit__, type(error), error, error.__traceback__)
            raise
        await self._threads.files(creating.__exit__, None, None, None)

    @counts_submits
    async def submit(self, tenant_id: str, request: SubmitRequest) -> Submitted:
        """
        Accept a job, or find the one that its key already has; durable when this returns.

        Raises:
            InvalidRequest: the job can't work as it stands (also MissingColumn, UnknownModel).
            IdempotencyMismatch: the key's job has other inputs.
            ShuttingDown: the engine is stopping.
            DiskFull: there is no room for it.
        """
        self.check_open()
        spec = request.spec
        model = door.resolve_model(spec, self._models)
        door.check_spec(spec)
        await self.check_callback(request.callback)
        reader = RowReader.of(spec, model.name, {name: model.kind for name, model in self._models.items()})
        source = await self._input(tenant_id, request)
        try:
            result = await self._accept(tenant_id, request, source, model, reader)
        except OutcomeUnknown:  # its rows stay: a job may have them; the sweeper finds out
            self._signals.changed(tenant_id)
            self._signals.submitted(model.name)
            raise
        except Exception:
            await self._forget(source)
            raise
        if result.reused:
            await self._forget(source)
        return self.accepted(result)

    def check_open(self) -> None:
        """
        Take no job that the engine would not begin.

        Raises:
            ShuttingDown: the engine is stopping.
        """
        if self._stopping.is_set():
            raise ShuttingDown("the engine is stopping; submit again in a moment")

    async def check_callback(self, callback: Callback | None) -> None:
        """
        Refuse a callback that could not be sent.

        Raises:
            InvalidRequest: saying what is wrong.
        """
        if callback is not None:
            door.check_callback(callback)
            await self._egress.check(callback.url)

    def accepted(self, result: SubmitResult) -> Submitted:
        """Tell everybody concerned what the store decided, and answer the caller."""
        self._signals.changed(result.job.tenant_id)
        if result.cancelled is not None:
            self._signals.stopped(result.cancelled)
        if not result.reused:
            self._signals.submitted(result.job.model)
        return self._submitted(result)

    async def _accept(
        self, tenant_id: str, request: SubmitRequest, source: InputFileRecord, model: ModelSpec, reader: RowReader
    ) -> SubmitResult:
        await self._threads.files(door.check_input, self._blobs.path(source.blob), source.format, reader)
        spec = request.spec
        new = NewJob(
            tenant_id=tenant_id,
            kind=spec.kind,
            model=model.name,
            spec=spec,
            input_hash=input_hash(spec, (request.input and request.input.rows_sha256) or source.sha256),
            input_blob=source.blob,
            input_format=source.format,
            input_file=request.input.file_id if request.input else None,
            priority=request.priority,
            window_seconds=request.completion_window_seconds,
            abort_after_failed_rows=request.abort_after_failed_rows,
            idempotency_key=request.idempotency_key,
            submission_id=request.submission_id,
            reuse=request.reuse,
            on_mismatch=request.on_mismatch,
            max_failed_rows=request.max_failed_rows,
            name=request.name,
            description=request.description,
            labels=request.labels,
            external_url=request.external_url,
            callback=request.callback.model_dump(mode="json") if request.callback else None,
        )
        result = await self._threads.write(self._store.jobs.submit, new)
        reached(Point.submit_committed)
        return result

    async def _forget(self, source: InputFileRecord) -> None:
        """Delete rows that nobody took (an upload stays once the ledger names it); what stays, the sweeper finds."""
        try:
            await self._threads.files(delete_unnamed, self._store, self._blobs, [source.blob])
        except Exception:
            log.exception("an input that nobody took stays for now", extra={"action": "input_left"})

    async def _input(self, tenant_id: str, request: SubmitRequest) -> InputFileRecord:
        if request.input is not None:
            return await self._threads.read(self._store.input_files.get, tenant_id, request.input.file_id)
        try:
            data = await self._threads.files(lambda: b"".join(map(row_line, request.rows or ())))
        except ValueError as error:
            raise InvalidRequest(f"a row is not JSON: {error}") from error
        digest = hashlib.sha256(data).hexdigest()
        # A name of its own, never its content's: the sweeper may be about to delete an old file of equal rows.
        name = f"inputs/{tenant_id}/{new_id('rows')}"
        await self._threads.files(self._blobs.put, name, data)
        return InputFileRecord(
            id=name, tenant_id=tenant_id, format=InputFormat.jsonl, bytes=len(data), sha256=digest, blob=name
        )

    async def attach(self, tenant_id: str, key: str, inputs: str | None) -> Submitted:
        """
        Find the job of an idempotency key, and take a new claim on it.

        Raises:
            NotFound: the key has no job.
            InputsDiffer: it has one with other inputs.
        """
        return self._submitted(await self._threads.write(self._store.jobs.attach, tenant_id, key, inputs))

    async def get(self, tenant_id: str, job_id: str) -> Job:
        """
        Read a job, with its failed rows counted by code and its place in the queue.

        Raises:
            NotFound: this tenant has no such job.
        """
        record = await self._threads.read(self._store.jobs.get, tenant_id, job_id)
        errors = await self._threads.read(self._store.jobs.row_errors, job_id) if record.rows_failed else {}
        job = self.view(record, errors)
        if job.is_terminal or job.paused:
            return job
        ahead = await self._threads.read(self._store.jobs.ahead_of, record)
        speed = self._rows_per_second(record.model)
        left = None if job.rows_total is None else ahead.rows + job.rows_total - job.rows_done
        seconds = round(left / speed, 1) if speed and left is not None else None
        place = QueuePlace(jobs_ahead=ahead.jobs, rows_ahead=ahead.rows, estimated_seconds=seconds)
        return job.model_copy(update={"queue": place})

    async def tenant_of(self, job_id: str) -> str:
        """
        Whose job it is, for callers who hold a signed link to it.

        Raises:
            NotFound: there is no such job.
        """
        return await self._threads.read(self._store.jobs.tenant_of, job_id)

    async def by_ids(self, tenant_id: str, job_ids: Sequence[str]) -> JobList:
        """Read those of the jobs that exist."""
        records = await self._threads.read(self._store.jobs.by_ids, tenant_id, job_ids)
        return JobList(jobs=[self.view(record) for record in records])

    async def page(
        self, tenant_id: str, *, limit: int, before: str | None = None, wanted: JobFilter | None = None
    ) -> JobList:
        """List jobs, newest first."""
        page = self._store.jobs.page
        records = await self._threads.read(page, tenant_id, limit=limit + 1, before=before, wanted=wanted)
        more = records[limit - 1].id if len(records) > limit else None
        return JobList(jobs=[self.view(record) for record in records[:limit]], next=more)

    async def cancel(self, tenant_id: str, job_id: str, claim: int | None) -> Job:
        """
        Stop a job for good; what was committed stays readable. An ended job stays as it is.

        Raises:
            NotFound: this tenant has no such job.
            StaleClaim: a later submit or attach owns the job.
        """
        record = (await self._threads.write(self._store.jobs.cancel, tenant_id, job_id, claim))[0]
        reached(Point.cancel_committed)
        if record.status is JobStatus.cancelled:  # by whichever call: an earlier one may not know that it did it
            self._signals.changed(tenant_id)
            self._signals.stopped(job_id)
        return self.view(record)

    async def cancel_labelled(self, tenant_id: str, labels: Mapping[str, str]) -> JobList:
        """Stop every live job that carries all these labels; returns those that this call stopped."""
        stopped: list[JobRecord] = []
        cancel = self._store.jobs.cancel_labelled
        after = ""  # in steps, so that other writers get their turn
        while some := await self._threads.write(cancel, tenant_id, labels, after=after, limit=_CANCEL_BATCH):
            for record in some:
                self._signals.stopped(record.id)
            self._signals.changed(tenant_id)
            stopped += some
            after = some[-1].id
        return JobList(jobs=[self.view(record) for record in stopped])

    async def changes(
        self,
        tenant_id: str,
        *,
        after: str | None,
        wait_seconds: float,
        on: FeedEvents,
        labels: Mapping[str, str],
        limit: int,
    ) -> Changes:
        """
        Read the jobs that changed since a cursor, waiting for the first change; without a cursor, get one.

        Raises:
            CursorLost: the feed does not know the cursor.
        """
        if after is None:
            return Changes(jobs=[], cursor=await self._threads.read(self._store.feed.cursor, tenant_id))
        deadline = time.monotonic() + wait_seconds
        while True:
            change = self._signals.subscribe(tenant_id)
            page = await self._threads.read(self._store.feed.changes, tenant_id, after, on, labels, limit)
            left = deadline - time.monotonic()
            if page.jobs or page.deleted or left <= 0 or self._stopping.is_set():
                jobs = [self.view(record) for record in page.jobs]
                return Changes(jobs=jobs, deleted=page.deleted, cursor=page.cursor, more=page.more)
            after = page.cursor
            shared = self._store.database.is_shared
            safety = _SAFETY_READ_OF_SEVERAL_SECONDS if shared else _SAFETY_READ_SECONDS
            await self._wait(change, min(left, safety))

    async def _wait(self, change: asyncio.Event, seconds: float) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (change, self._stopping)]
        try:
            with self._metrics.feed_waiters.track_inprogress():
                await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def unfinished(self) -> int:
        """How many jobs are not over, of all tenants."""
        return await self._threads.read(self._store.jobs.unfinished)

    async def undelivered(self) -> int:
        """How many callbacks will be tried soon; one that has failed for long is left to the next engine."""
        return await self._threads.read(self._store.callbacks.pending_soon, _SOON_SECONDS, _LONG_SECONDS)

    def _submitted(self, result: SubmitResult) -> Submitted:
        return Submitted(
            job=self.view(result.job),
            claim=result.claim,
            cursor=result.cursor,
            reused=result.reused,
            replaced=result.replaced,
        )

    def view(self, record: JobRecord, errors: dict[str, int] | None = None) -> Job:
        """Show a job as callers see it."""
        return job_view(record, self._links, waiting_reason=self._waiting_reason(record.model), errors=errors or {})
