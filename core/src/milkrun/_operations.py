"""
What each method of the client does, as generators of effects: no I/O happens here.

Retries, paging and error mapping exist once, for both clients; `milkrun._drivers` performs
what is yielded, blocking or awaiting. Waiting for jobs is in `milkrun._waiting`.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, Unpack, cast
from uuid import uuid4

import httpx

from milkrun import _inputs, _requests, _retry, hashing, local, wire
from milkrun._drivers import Emit, Operation, Perform, Send, Sleep, Stream
from milkrun._inputs import Prepared
from milkrun._requests import Call, Endpoint, Filters
from milkrun.exceptions import Conflict, InvalidRequest, NotFound, UnexpectedResponse
from milkrun.settings import Settings
from milkrun.status import TERMINAL, FeedEvents, JobStatus, ResultFormat, Reuse

log = logging.getLogger(__name__)
T = TypeVar("T")
PAGE_JOBS = 100


@dataclass(slots=True)
class Link:
    """The engine that a client talks to; a local one is found at the first request, and again when it has gone."""

    settings: Settings
    endpoint: Endpoint | None = None
    clock: Callable[[], float] = time.monotonic
    schemas: dict[str, Any] = field(default_factory=dict)  #: the output_schema of jobs that this client submitted

    @property
    def is_local(self) -> bool:
        """Whether the engine is this user's local one."""
        return self.settings.url is None

    def locate(self) -> Endpoint:
        """Find the engine, starting the local one if need be. Blocking."""
        if self.settings.url is not None:
            return Endpoint(url=self.settings.url, api_key=self.settings.api_key)
        engine = local.ensure(self.settings.data_dir)
        return Endpoint(url=engine.url, api_key=engine.api_key)


def perform(function: Callable[[], T]) -> Operation[T]:
    """Run a blocking function."""
    return cast(T, (yield Perform(function)))


def exchange(
    link: Link,
    call: Call,
    *,
    policy: _retry.Policy = _retry.QUICK,
    into: IO[bytes] | None = None,
    deadline: float | None = None,
) -> Operation[httpx.Response]:
    """
    Get a successful answer, retrying what may pass, until the deadline if there is one (on the link's clock).

    Raises:
        MilkrunError: the one for what came instead.
    """
    failed_at: float | None = None
    attempt, moved = 0, False
    while True:
        endpoint = link.endpoint
        if endpoint is None:
            endpoint = link.endpoint = yield from perform(link.locate)
        if into is not None:
            into.seek(0)
            into.truncate()
        cause: httpx.TransportError | None = None
        answer: httpx.Response | httpx.TransportError
        try:
            left = None if deadline is None else max(0.0, deadline - link.clock())
            answer = yield Send(call.build(endpoint, left), into)
        except httpx.TransportError as error:
            answer = cause = error
        if isinstance(answer, httpx.Response) and answer.is_success:
            return answer
        if link.is_local and not moved and _has_gone(answer):
            moved, link.endpoint = True, None
            continue
        attempt += 1
        now = link.clock()
        failed_at = now if failed_at is None else failed_at
        pause = _retry.pause(policy, attempt, now - failed_at, answer)
        if pause is None or (deadline is not None and now >= deadline):
            raise _requests.failure(answer, call) from cause
        yield Sleep(pause if deadline is None else min(pause, deadline - now))


def _has_gone(answer: httpx.Response | httpx.TransportError) -> bool:
    """Whether a local engine stopped: nobody listens, or another engine took the port and doesn't know our key."""
    return isinstance(answer, httpx.ConnectError) or (isinstance(answer, httpx.Response) and answer.status_code == 401)


def submit(
    link: Link, rows: Any, request: Callable[..., wire.SubmitRequest], schema: Any, *, may_exist: bool
) -> Operation[wire.Submitted]:
    """
    Send rows (inline or as a file) and the request around them.

    Where the job `may_exist`, because the caller chose its key, a file is sent only if it does not.
    """
    prepared = yield from perform(lambda: _inputs.prepare(rows))
    try:
        if prepared.file is None:
            complete, lines = request(rows=[]), prepared.lines or []
        else:
            if may_exist and (found := (yield from _existing(link, prepared, request(rows=[])))):
                return _remembering(link, found, schema)
            body = _requests.FileBody(prepared.file, prepared.size)
            answer = yield from exchange(link, _requests.upload(body, prepared.format))
            uploaded = _requests.read(wire.InputFile, answer)
            if uploaded.sha256 != body.sha256:
                raise UnexpectedResponse(
                    "The input arrived with other bytes than were sent; nothing was submitted. Try again."
                )
            source = wire.InputRef(file_id=uploaded.id, rows_sha256=prepared.rows_sha256)
            complete, lines = request(input=source), None
    finally:
        prepared.close()
    return _remembering(link, (yield from _submitted(link, complete, lines)), schema)


def _submitted(link: Link, request: wire.SubmitRequest, lines: list[bytes] | None) -> Operation[wire.Submitted]:
    """
    Send a complete request; an engine that is a version older, and can't run only the failed rows, runs all.

    It refuses the word as it would refuse a mistake, so this is seen from its taking the request without it.
    """
    try:
        return _requests.read(wire.Submitted, (yield from exchange(link, _requests.submit(request, lines))))
    except InvalidRequest:
        if request.reuse is not Reuse.failed_rows:
            raise
    allowed = request.max_failed_rows
    plainer = request.model_copy(update={"reuse": Reuse.inputs_match, "max_failed_rows": None})
    answer = yield from exchange(link, _requests.submit(plainer, lines))
    known = _requests.read(wire.Submitted, answer)
    if known.reused and allowed is not None and known.job.is_terminal and known.job.rows_failed > allowed:
        anew = plainer.model_copy(update={"reuse": Reuse.never})
        answer = yield from exchange(link, _requests.submit(anew, lines))
    log.warning("the engine does not know reuse='failed_rows': a retry runs all rows again until it is upgraded")
    return _requests.read(wire.Submitted, answer)


def _existing(link: Link, prepared: Prepared, request: wire.SubmitRequest) -> Operation[wire.Submitted | None]:
    """Find the job that the engine would answer the submit with, if there is one."""
    assert request.idempotency_key is not None
    inputs: str | None = None
    if request.reuse in (Reuse.inputs_match, Reuse.failed_rows):
        inputs = hashing.input_hash(request.spec, (yield from perform(prepared.sha256)))
    try:
        found = yield from attach(link, wire.AttachRequest(idempotency_key=request.idempotency_key, input_hash=inputs))
    except (NotFound, Conflict):
        return None
    has_too_many_failed = request.max_failed_rows is not None and found.job.rows_failed > request.max_failed_rows
    answers = found.job.status is JobStatus.succeeded and not has_too_many_failed
    return found if answers or found.job.status not in TERMINAL else None


def _remembering(link: Link, submitted: wire.Submitted, schema: Any) -> wire.Submitted:
    if schema is not None:
        link.schemas[submitted.job.id] = schema
    return submitted


def attach(link: Link, request: wire.AttachRequest) -> Operation[wire.Submitted]:
    """Find a key's job without sending its rows."""
    return _requests.read(wire.Submitted, (yield from exchange(link, _requests.attach(request))))


def job(
    link: Link, job_id: str, *, policy: _retry.Policy = _retry.QUICK, deadline: float | None = None
) -> Operation[wire.Job]:
    """Read one job."""
    answer = yield from exchange(link, _requests.get_job(job_id), policy=policy, deadline=deadline)
    return _requests.read(wire.Job, answer)


def jobs(
    link: Link,
    *,
    limit: int | None,
    policy: _retry.Policy = _retry.QUICK,
    **wanted: Unpack[Filters],
) -> Operation[list[wire.Job]]:
    """List the jobs that are wanted, page by page."""
    found: list[wire.Job] = []
    before: str | None = None
    while limit is None or len(found) < limit:
        size = PAGE_JOBS if limit is None else min(PAGE_JOBS, limit - len(found))
        call = _requests.get_jobs(limit=size, before=before, **wanted)
        page = _requests.read(wire.JobList, (yield from exchange(link, call, policy=policy)))
        found += page.jobs
        before = page.next
        if before is None:
            break
    return found[:limit]


def jobs_by_id(
    link: Link, ids: Sequence[str], *, policy: _retry.Policy = _retry.QUICK, deadline: float | None = None
) -> Operation[list[wire.Job]]:
    """Read those of the jobs that exist."""
    found: list[wire.Job] = []
    for start in range(0, len(ids), PAGE_JOBS):
        call = _requests.get_jobs(limit=PAGE_JOBS, ids=ids[start : start + PAGE_JOBS])
        answer = yield from exchange(link, call, policy=policy, deadline=deadline)
        found += _requests.read(wire.JobList, answer).jobs
    return found


def cancel(link: Link, job_id: str, claim: int | None) -> Operation[wire.Job]:
    """Stop a job."""
    return _requests.read(wire.Job, (yield from exchange(link, _requests.cancel(job_id, claim))))


def retry(link: Link, job_id: str, request: wire.RetryRequest) -> Operation[wire.Submitted]:
    """Run an ended job's failed rows."""
    call = _requests.retry(job_id, request)
    submitted = _requests.read(wire.Submitted, (yield from exchange(link, call)))
    return _remembering(link, submitted, link.schemas.get(job_id))


def cancel_labelled(link: Link, labels: Mapping[str, str]) -> Operation[list[wire.Job]]:
    """Stop all live jobs with these labels."""
    return _requests.read(wire.JobList, (yield from exchange(link, _requests.cancel_labelled(labels)))).jobs


def control(link: Link, job_id: str, verb: str) -> Operation[wire.Job]:
    """Pause or resume a job."""
    return _requests.read(wire.Job, (yield from exchange(link, _requests.control(job_id, verb))))


def delete(link: Link, job_id: str) -> Operation[None]:
    """Delete an ended job."""
    yield from exchange(link, _requests.delete(job_id))


def models(link: Link) -> Operation[list[wire.ModelInfo]]:
    """List models."""
    return _requests.read(wire.ModelList, (yield from exchange(link, _requests.MODELS))).models


def health(link: Link) -> Operation[wire.Health]:
    """Ask the engine how it is."""
    return _requests.read(wire.Health, (yield from exchange(link, _requests.HEALTH)))


def changes(
    link: Link,
    *,
    after: str | None = None,
    wait: float = 0.0,
    on: FeedEvents = FeedEvents.end,
    labels: Mapping[str, str] | None = None,
    limit: int | None = None,
    policy: _retry.Policy = _retry.QUICK,
    deadline: float | None = None,
) -> Operation[wire.Changes]:
    """Read the change feed once."""
    call = _requests.changes(after=after, wait_seconds=wait, on=on, limit=limit, labels=labels)
    return _requests.read(wire.Changes, (yield from exchange(link, call, policy=policy, deadline=deadline)))


def page(link: Link, job_id: str, *, after: int, limit: int) -> Operation[dict[str, Any]]:
    """Read one page of results."""
    call = _requests.results_page(job_id, after=after, limit=limit)
    return _requests.read_page((yield from exchange(link, call)))


def pages(link: Link, job_id: str, *, count: int, page_rows: int) -> Stream[list[dict[str, Any]]]:
    """Emit the first `count` rows, page by page; the cursor is the row index, so a dropped connection loses nothing."""
    after = -1
    while after + 1 < count:
        found = yield from page(link, job_id, after=after, limit=min(page_rows, count - after - 1))
        if not found["rows"]:
            return
        after = found["next_after"]
        yield Emit(found["rows"])


def save(link: Link, job_id: str, path: Path, kind: ResultFormat) -> Operation[Path]:
    """Write the readable result to a file; the name appears only when the file is whole."""
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    file = yield from perform(lambda: draft.open("wb"))
    try:
        with file:
            yield from exchange(link, _requests.export(job_id, kind), into=file)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path
