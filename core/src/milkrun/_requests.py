"""
Between the wire models and HTTP: a `Call` says what to ask, `read` and `failure` say what came back.

No I/O and no state: the address and the key are added when a call is sent.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from typing import IO, Any, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import anyio.to_thread
import httpx
from pydantic import BaseModel, ValidationError

from milkrun import _retry, exceptions, wire
from milkrun.status import FeedEvents, InputFormat, JobStatus, ResultFormat

USER_AGENT = f"milkrun/{version('milkrun')}"
_CHUNK = 1 << 20
_GRACE_SECONDS = 3.0  # an answer that is on its way when a caller's time is over is still worth having
_ERRORS: Mapping[int, type[exceptions.ResponseError]] = {
    400: exceptions.InvalidRequest,
    401: exceptions.AuthenticationError,
    403: exceptions.PermissionDenied,
    404: exceptions.NotFound,
    409: exceptions.Conflict,
    413: exceptions.TooLarge,
    422: exceptions.InvalidRequest,
    429: exceptions.RateLimited,
}
_NEXT: Mapping[str, str] = {
    "unauthenticated": "Check MILKRUN_API_KEY or api_key=.",
    "not_found": "Check the id; the job may have been deleted, or belong to another key's tenant.",
    "unknown_model": "See models() for the names this engine knows.",
    "inputs_differ": "Submit the rows again under this key.",
    "not_ended": "Wait for its end, or cancel it.",
    "stale_claim": "A newer attempt owns the job; leave it to that one, or cancel without a claim.",
    "callback_delivered": "Read the job instead; nothing is left to send.",
    "nothing_to_retry": "Take its results as they are.",
    "input_deleted": "Submit the rows again.",
    "cursor_lost": "Read your jobs by id, then follow the feed from a fresh cursor.",
    "outcome_unknown": "Send it again: what has happened is found, and not done twice.",
    "shutting_down": "Try again in a moment.",
    "disk_full": "Make room on the engine's disk, then submit again; running jobs go on by themselves.",
}

M = TypeVar("M", bound=BaseModel)


class FileBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """
    A file as a request's body, streamed from its beginning each time it is sent.

    `sha256` is that of the bytes sent last.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.size = size
        self.sha256 = ""
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        digest = hashlib.sha256()
        self._file.seek(0)
        while data := self._file.read(_CHUNK):
            digest.update(data)
            yield data
        self.sha256 = digest.hexdigest()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = iter(self)
        while (data := await anyio.to_thread.run_sync(next, chunks, b"")) != b"":
            yield data


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An engine's address and the key for it."""

    url: str
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, whichever engine it will go to."""

    method: str
    path: str
    params: tuple[tuple[str, str], ...] = ()
    body: bytes | FileBody | None = field(default=None, repr=False)
    about: str | None = None  #: the job it is about, for messages
    read_seconds: float = 60.0  #: how long the engine may stay silent

    def build(self, endpoint: Endpoint, left_seconds: float | None = None) -> httpx.Request:
        """Make the request, a new one for each try; a caller with little time left does not wait longer for it."""
        url = httpx.URL(endpoint.url + self.path)
        if self.params:
            url = url.copy_with(params=self.params)
        # httpx adds Host by itself, but not to a request that brings its own stream.
        headers = {"Host": url.netloc.decode(), "User-Agent": USER_AGENT, "Accept": "application/json"}
        if endpoint.api_key:
            headers["Authorization"] = f"Bearer {endpoint.api_key}"
        stream = None
        if isinstance(self.body, FileBody):
            stream = self.body
            headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(self.body.size)}
        elif self.body is not None:
            headers["Content-Type"] = "application/json"
        return httpx.Request(
            self.method,
            url,
            headers=headers,
            content=self.body if isinstance(self.body, bytes) else None,
            stream=stream,
            extensions={"timeout": self._timeout(left_seconds).as_dict()},
        )

    def _timeout(self, left_seconds: float | None) -> httpx.Timeout:
        most = float("inf") if left_seconds is None else left_seconds + _GRACE_SECONDS
        return httpx.Timeout(min(60.0, most), connect=min(10.0, most), read=min(self.read_seconds, most))


def upload(body: FileBody, kind: InputFormat) -> Call:
    """Send an input file as it is."""
    return Call(method="POST", path="/api/files", params=(("format", kind.value),), body=body, read_seconds=300.0)


def submit(request: wire.SubmitRequest, lines: list[bytes] | None) -> Call:
    """Submit a job; inline rows go as the very bytes that were hashed (`hashing.row_line`, without the newline)."""
    body = request.model_dump_json(exclude={"rows"}, exclude_defaults=True).encode()
    if lines is not None:
        comma = b"," if body != b"{}" else b""
        body = body[:-1] + comma + b'"rows":[' + b",".join(lines) + b"]}"
    return Call(method="POST", path="/api/jobs", body=body)


def attach(request: wire.AttachRequest) -> Call:
    """Find a key's job."""
    return Call(method="POST", path="/api/jobs/attach", body=request.model_dump_json().encode())


def get_job(job_id: str) -> Call:
    """Read one job."""
    return Call(method="GET", path=_job_path(job_id), about=job_id)


class Filters(TypedDict, total=False):
    """Which jobs a list shows; all that is given must hold."""

    statuses: Sequence[JobStatus]  #: any of them
    name: str | None  #: the whole name, or its beginning and `*`
    created_after: datetime | None
    created_before: datetime | None
    labels: Mapping[str, str] | None  #: all of them


def get_jobs(*, limit: int, before: str | None = None, ids: Iterable[str] = (), **wanted: Unpack[Filters]) -> Call:
    """List jobs, newest first."""
    after, until = wanted.get("created_after"), wanted.get("created_before")
    params = [
        ("limit", str(limit)),
        ("before", before),
        *(("status", each) for each in wanted.get("statuses", ())),
        ("name", wanted.get("name")),
        ("created_after", after and after.isoformat()),
        ("created_before", until and until.isoformat()),
        ("ids", ",".join(ids) or None),
    ]
    return Call(method="GET", path="/api/jobs", params=_given(params, wanted.get("labels")))


def cancel(job_id: str, claim: int | None) -> Call:
    """Stop a job."""
    body = wire.CancelRequest(claim=claim).model_dump_json().encode()
    return Call(method="POST", path=f"{_job_path(job_id)}/cancel", body=body, about=job_id)


def retry(job_id: str, request: wire.RetryRequest) -> Call:
    """Run an ended job's failed rows."""
    body = request.model_dump_json(exclude_defaults=True).encode()
    return Call(method="POST", path=f"{_job_path(job_id)}/retry", body=body, about=job_id)


def cancel_labelled(labels: Mapping[str, str]) -> Call:
    """Stop all live jobs with these labels."""
    body = wire.CancelLabelledRequest(labels=dict(labels)).model_dump_json().encode()
    return Call(method="POST", path="/api/jobs/cancel", body=body)


def control(job_id: str, verb: str) -> Call:
    """Pause or resume a job."""
    return Call(method="POST", path=f"{_job_path(job_id)}/{verb}", about=job_id)


def delete(job_id: str) -> Call:
    """Delete an ended job."""
    return Call(method="DELETE", path=_job_path(job_id), about=job_id)


def results_page(job_id: str, *, after: int, limit: int) -> Call:
    """Read the rows behind an index."""
    params = (("after", str(after)), ("limit", str(limit)))
    return Call(method="GET", path=f"{_job_path(job_id)}/results", params=params, about=job_id)


def export(job_id: str, kind: ResultFormat) -> Call:
    """Read the whole result as a file."""
    params = (("format", kind.value),)
    return Call(method="GET", path=f"{_job_path(job_id)}/results", params=params, about=job_id, read_seconds=300.0)


def changes(
    *, after: str | None, wait_seconds: float, on: FeedEvents, limit: int | None, labels: Mapping[str, str] | None
) -> Call:
    """Read the change feed; the engine holds the answer for up to `wait_seconds`."""
    params = [("after", after), ("wait", f"{wait_seconds:.3f}"), ("on", on), ("limit", limit and str(limit))]
    return Call(method="GET", path="/api/changes", params=_given(params, labels), read_seconds=wait_seconds + 30.0)


MODELS = Call(method="GET", path="/api/models")
HEALTH = Call(method="GET", path="/healthz")


def _job_path(job_id: Any) -> str:
    if not isinstance(job_id, str) or not job_id:
        raise TypeError(f"a job id is a non-empty text such as infer() returns, not {job_id!r}")
    return f"/api/jobs/{quote(job_id, safe='')}"


def _given(params: Iterable[tuple[str, Any]], labels: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    plain = [(name, str(value)) for name, value in params if value is not None]
    return (*plain, *((f"label.{name}", value) for name, value in (labels or {}).items()))


def read(model: type[M], response: httpx.Response) -> M:
    """
    Read an answer.

    Raises:
        UnexpectedResponse: it is not what an engine says.
    """
    try:
        return model.model_validate_json(response.content)
    except ValidationError:
        raise _not_ours(response) from None


def read_page(response: httpx.Response) -> dict[str, Any]:
    """Read a page of results as plain JSON: rows don't pass through pydantic."""
    try:
        page = json.loads(response.content)
        if isinstance(page["rows"], list) and isinstance(page["settled"], int) and isinstance(page["next_after"], int):
            return dict(page)
    except (ValueError, TypeError, KeyError):
        pass
    raise _not_ours(response)


def failure(outcome: httpx.Response | httpx.TransportError, call: Call) -> exceptions.MilkrunError:
    """Translate what is not a success into the one exception for it."""
    about = f" (job {call.about})" if call.about else ""
    if isinstance(outcome, httpx.TransportError):
        where = f"{outcome.request.url.scheme}://{outcome.request.url.netloc.decode()}"
        if isinstance(outcome, httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
            return exceptions.RequestTimeout(f"The engine at {where} did not answer in time{about}. {_again(call)}")
        # A request that could not be written may quote its own headers.
        is_ours = isinstance(outcome, httpx.LocalProtocolError)
        reason = type(outcome).__name__ if is_ours else str(outcome) or type(outcome).__name__
        text = f"The engine at {where} could not be reached{about}: {reason}. "
        return exceptions.ConnectError(text + "Check that it runs and that MILKRUN_URL is right.")
    status = outcome.status_code
    kind = _ERRORS.get(status, exceptions.EngineUnavailable if status >= 500 else exceptions.ResponseError)
    try:
        problem = wire.Problem.model_validate_json(outcome.content)
    except ValidationError:
        # A proxy may say these for the engine; anything else without our body did not come from one.
        if not (status in (401, 403, 413, 429) or status >= 500):
            return _not_ours(outcome)
        problem = wire.Problem(title="", status=status, code="unknown", detail=f"HTTP {status} without an explanation")
    hint = _NEXT.get(problem.code, "")
    request_id = problem.request_id or outcome.headers.get("x-request-id")
    trace = f", request {request_id}" if request_id else ""
    return kind(
        f"{problem.detail.rstrip('.')}{about} [{status} {problem.code}{trace}]. {hint}".rstrip(),
        status=status,
        code=problem.code,
        request_id=request_id,
        retry_after=_retry.retry_after(outcome),
    )


def _again(call: Call) -> str:
    if (call.method, call.path) == ("POST", "/api/jobs"):
        return "It may have taken the job: look at jobs() first; with an idempotency_key a submit may be repeated."
    return "Try again."


def _not_ours(response: httpx.Response) -> exceptions.UnexpectedResponse:
    kind = response.headers.get("content-type", "no content type")
    return exceptions.UnexpectedResponse(
        f"{response.request.method} {response.request.url.copy_with(query=None)} answered {response.status_code} "
        f"({kind}), which no Milkrun engine says. Check MILKRUN_URL, and proxies in between.",
        status=response.status_code,
    )
