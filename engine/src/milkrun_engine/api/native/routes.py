"""
The routes of the native API: HTTP in, a use case, HTTP out.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime

from milkrun.status import FeedEvents, InputFormat, JobStatus, ResultFormat
from milkrun.wire import (
    AttachRequest,
    CancelLabelledRequest,
    CancelRequest,
    Changes,
    InputFile,
    Job,
    JobList,
    ModelInfo,
    ModelList,
    Problem,
    RetryRequest,
    SubmitRequest,
    Submitted,
)
from milkrun_engine.api.auth import Authenticator
from milkrun_engine.domain.errors import InvalidRequest
from milkrun_engine.domain.jobs import JobFilter
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.service import exports
from milkrun_engine.service.controls import JobControls
from milkrun_engine.service.jobs import JobService
from milkrun_engine.service.results import ResultReader
from milkrun_engine.service.retries import JobRetries
from milkrun_engine.service.threads import Threads

MAX_WAIT_SECONDS = 60.0
MAX_IDS = 100
_LABEL = "label."
Tenant: TypeAlias = Any  # what `Depends` makes has no public type


def router(
    service: JobService,
    controls: JobControls,
    retries: JobRetries,
    reader: ResultReader,
    threads: Threads,
    authenticator: Authenticator,
    models: Callable[[], list[ModelInfo]],
) -> APIRouter:
    """Build the routes over the use cases."""
    api = APIRouter(prefix="/api", responses={"default": {"model": Problem, "description": "Any error"}})
    tenant_of = Depends(authenticator)
    _add_submission(api, service, tenant_of)
    _add_jobs(api, service, tenant_of)
    _add_controls(api, controls, tenant_of)
    _add_retries(api, retries, tenant_of)
    _add_results(api, reader, threads, tenant_of)

    @api.get("/models", tags=["models"])
    async def list_models(_tenant: Annotated[str, tenant_of]) -> ModelList:
        """The models that jobs may name."""
        return ModelList(models=models())

    return api


def _add_submission(api: APIRouter, service: JobService, tenant_of: Tenant) -> None:
    @api.post("/files", status_code=201, tags=["jobs"])
    async def upload(
        request: Request, tenant: Annotated[str, tenant_of], form: Annotated[InputFormat, Query(alias="format")]
    ) -> InputFile:
        """Upload an input as it is: the body is the file. Name it in `POST /api/jobs` as `input.file_id`."""
        return await service.upload(tenant, form, request.stream())

    @api.post(
        "/jobs", status_code=201, responses={200: {"model": Submitted, "description": "An existing job"}}, tags=["jobs"]
    )
    async def submit(body: SubmitRequest, response: Response, tenant: Annotated[str, tenant_of]) -> Submitted:
        """Submit a job, or find the one that the idempotency key already has."""
        submitted = await service.submit(tenant, body)
        response.status_code = 200 if submitted.reused else 201
        reached(Point.answer_due)
        return submitted

    @api.post("/jobs/attach", tags=["jobs"])
    async def attach(body: AttachRequest, tenant: Annotated[str, tenant_of]) -> Submitted:
        """Find the job of an idempotency key without sending its rows again."""
        return await service.attach(tenant, body.idempotency_key, body.input_hash)


def _add_jobs(api: APIRouter, service: JobService, tenant_of: Tenant) -> None:
    @api.get("/jobs", tags=["jobs"])
    async def list_jobs(
        request: Request,
        tenant: Annotated[str, tenant_of],
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
        before: str | None = None,
        status: Annotated[list[JobStatus] | None, Query()] = None,
        name: str | None = None,
        created_after: AwareDatetime | None = None,
        created_before: AwareDatetime | None = None,
        ids: str | None = None,
    ) -> JobList:
        """
        List jobs, newest first, or name up to 100 `ids`.

        Filters: `status` (repeated: any of them), `name` (whole, or its beginning and `*`), `created_after` and
        `created_before` (with a time zone), `label.NAME=VALUE` (repeated: all of them).
        """
        if ids is not None:
            named = [job_id for job_id in ids.split(",") if job_id]
            if len(named) > MAX_IDS:
                raise InvalidRequest(f"ask for at most {MAX_IDS} ids at once")
            return await service.by_ids(tenant, named)
        wanted = JobFilter(
            statuses=status or (),
            labels=_labels(request),
            name=name,
            created_after=created_after.timestamp() if created_after else None,
            created_before=created_before.timestamp() if created_before else None,
        )
        return await service.page(tenant, limit=limit, before=before, wanted=wanted)

    @api.get("/jobs/{job_id}", tags=["jobs"])
    async def get_job(job_id: str, tenant: Annotated[str, tenant_of]) -> Job:
        """Read a job."""
        return await service.get(tenant, job_id)

    @api.post("/jobs/{job_id}/cancel", tags=["jobs"])
    async def cancel(job_id: str, tenant: Annotated[str, tenant_of], body: CancelRequest | None = None) -> Job:
        """Stop a job for good; committed rows stay readable. An ended job stays as it is."""
        return await service.cancel(tenant, job_id, body.claim if body else None)

    @api.post("/jobs/cancel", tags=["jobs"])
    async def cancel_labelled(body: CancelLabelledRequest, tenant: Annotated[str, tenant_of]) -> JobList:
        """Stop every live job that carries all of the labels; the answer lists those that this call stopped."""
        return await service.cancel_labelled(tenant, body.labels)

    @api.get("/changes", tags=["jobs"])
    async def changes(
        request: Request,
        tenant: Annotated[str, tenant_of],
        after: str | None = None,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS)] = 0.0,
        on: FeedEvents = FeedEvents.end,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 500,
    ) -> Changes:
        """
        Wait for changes of this tenant's jobs behind a cursor, each job once in its latest state.

        Without `after` it answers at once with the feed's end.
        """
        return await service.changes(
            tenant, after=after, wait_seconds=wait, on=on, labels=_labels(request), limit=limit
        )


def _add_controls(api: APIRouter, controls: JobControls, tenant_of: Tenant) -> None:
    @api.post("/jobs/{job_id}/pause", tags=["jobs"])
    async def pause(job_id: str, tenant: Annotated[str, tenant_of]) -> Job:
        """Start no more rows of a job; those that replicas have already are finished."""
        return await controls.pause(tenant, job_id)

    @api.post("/jobs/{job_id}/resume", tags=["jobs"])
    async def resume(job_id: str, tenant: Annotated[str, tenant_of]) -> Job:
        """Let a paused job go on, at the place in the queue that it had."""
        return await controls.resume(tenant, job_id)

    @api.delete("/jobs/{job_id}", status_code=204, tags=["jobs"])
    async def delete(job_id: str, tenant: Annotated[str, tenant_of]) -> None:
        """Delete an ended job with its results and its input; readers of the feed are told."""
        await controls.delete(tenant, job_id)


def _add_retries(api: APIRouter, retries: JobRetries, tenant_of: Tenant) -> None:
    @api.post(
        "/jobs/{job_id}/retry",
        status_code=201,
        responses={200: {"model": Submitted, "description": "The job that does so already"}},
        tags=["jobs"],
    )
    async def retry(
        job_id: str, response: Response, tenant: Annotated[str, tenant_of], body: RetryRequest | None = None
    ) -> Submitted:
        """
        Run only those rows of an ended job that have no result: a new job over the whole input.

        It takes over the answers that are there (`rows_reused`; their tokens are not counted again) and the
        idempotency key, so that its result is the whole table. While it runs, the same call finds it.
        """
        submitted = await retries.retry(tenant, job_id, body or RetryRequest())
        response.status_code = 200 if submitted.reused else 201
        return submitted


def _add_results(api: APIRouter, reader: ResultReader, threads: Threads, tenant_of: Tenant) -> None:
    @api.get("/jobs/{job_id}/results", tags=["jobs"])
    async def results(
        job_id: str,
        tenant: Annotated[str, tenant_of],
        after: Annotated[int, Query(ge=-1)] = -1,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
        form: Annotated[ResultFormat | None, Query(alias="format")] = None,
    ) -> Response:
        """
        Read results in row order: a page of JSON behind row `after`, or with `format` a whole file.

        While the job runs that is the settled prefix: the rows up to the first undecided one.
        """
        readable = await threads.read(reader.readable, tenant, job_id)
        if form is None:
            page = await threads.files(exports.page, reader, readable, after, limit)
            return Response(page, media_type="application/json")
        pieces = exports.export(reader, readable, form)
        first = await threads.files(next, pieces, b"")  # what fails at once is an error answer, not a torn file
        headers = {"Content-Disposition": f'attachment; filename="{job_id}.{form}"'}
        return StreamingResponse(_chain(first, pieces), media_type=exports.MEDIA_TYPES[form], headers=headers)


def _labels(request: Request) -> dict[str, str]:
    return {name.removeprefix(_LABEL): value for name, value in request.query_params.items() if name.startswith(_LABEL)}


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
