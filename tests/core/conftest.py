"""
A scripted engine behind `httpx.MockTransport`: answers as the contract says, and misbehaves on demand.
"""

import hashlib
import inspect
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import anyio
import httpx
import pytest

import milkrun as mr
from milkrun import wire

URL = "http://engine.test"


def a_job(**facts: Any) -> wire.Job:
    """A job as an engine would tell it."""
    plain: dict[str, Any] = {
        "id": "job_1", "kind": "generate", "model": "echo", "status": "running", "priority": 1, "input_hash": "0" * 64,
        "created_at": datetime(2026, 1, 2, tzinfo=UTC), "rows_total": 3, "url": f"{URL}/jobs/job_1",
    }  # fmt: skip
    return wire.Job.model_validate(plain | facts)


def a_row(index: int, output: Any = "yes", code: str | None = None, **facts: Any) -> dict[str, Any]:
    """A row of a results page."""
    return {
        "index": index, "key": f"k{index}", "status": "failed" if code else "succeeded",
        "output": None if code else output, "error": {"code": code, "message": "no"} if code else None,
        "finish_reason": None if code else "stop", "prompt_tokens": 3, "cached_tokens": 1, "completion_tokens": 2,
        "attempts": 1,
    } | facts  # fmt: skip


def a_problem(status: int, code: str, **headers: str) -> httpx.Response:
    """An error as an engine renders it."""
    problem = wire.Problem(title=code, status=status, code=code, detail=f"because of {code}.", request_id="req_1")
    headers = {"content-type": "application/problem+json", **headers}
    return httpx.Response(status, content=problem.model_dump_json(), headers=headers)


@dataclass
class FakeEngine:
    """Keeps what it was sent; `faults` are given instead of the next answers."""

    jobs: dict[str, wire.Job] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    feed: list[wire.Changes | httpx.Response] = field(default_factory=list)
    faults: list[httpx.Response | httpx.TransportError] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)
    uploads: list[bytes] = field(default_factory=list)
    exports: dict[str, bytes] = field(default_factory=dict)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, httpx.TransportError):
                raise fault
            return fault
        match request.method, *request.url.path.strip("/").split("/"):
            case "POST", "api", "files":
                return self._upload(request)
            case "POST", "api", "jobs":
                self.jobs.setdefault("job_1", a_job())
                return self._answer(wire.Submitted(job=self.jobs["job_1"], claim=1, cursor="c0"), 201)
            case "POST", "api", "jobs", "attach" if "job_1" in self.jobs:
                return self._answer(wire.Submitted(job=self.jobs["job_1"], claim=2, cursor="c0", reused=True))
            case "POST", "api", "jobs", job_id, "retry" if job_id in self.jobs:
                self.jobs["job_2"] = a_job(id="job_2", status="succeeded", rows_from=job_id, rows_done=3)
                return self._answer(wire.Submitted(job=self.jobs["job_2"], claim=1, cursor="c0"), 201)
            case "GET", "api", "jobs":
                return self._list(request.url.params)
            case "GET", "api", "changes":
                return self._changes(request.url.params)
            case "GET", "api", "jobs", job_id, "results":
                return self._results(request.url.params)
            case _, "api", "jobs", job_id, *_ if job_id in self.jobs:
                return self._answer(self.jobs[job_id])
            case "GET", "api", "models":
                model = wire.ModelInfo(name="echo", kind=mr.JobKind.generate, state="ready")
                return self._answer(wire.ModelList(models=[model]))
            case "GET", "healthz":
                return self._answer(wire.Health(status="ok", instance_id="i", version="0"))
        return a_problem(404, "not_found")

    def sent(self, index: int = -1) -> Any:
        """The JSON of a request."""
        return json.loads(self.requests[index].content)

    @property
    def paths(self) -> list[str]:
        """What was asked, in order."""
        return [request.url.path for request in self.requests]

    def _answer(self, model: Any, status: int = 200) -> httpx.Response:
        return httpx.Response(status, content=model.model_dump_json())

    def _upload(self, request: httpx.Request) -> httpx.Response:
        self.uploads.append(request.content)
        assert len(request.content) == int(request.headers["content-length"])
        sha256, kind = hashlib.sha256(request.content).hexdigest(), request.url.params["format"]
        return self._answer(wire.InputFile(id="file_1", format=kind, bytes=len(request.content), sha256=sha256), 201)

    def _list(self, params: httpx.QueryParams) -> httpx.Response:
        if "ids" in params:
            ids = params["ids"].split(",")
            assert len(ids) <= 100
            return self._answer(wire.JobList(jobs=[self.jobs[each] for each in ids if each in self.jobs]))
        found = [job for job in self.jobs.values() if params.get("status") in (None, job.status)]
        start = int(params.get("before", 0))
        end = start + int(params["limit"])
        return self._answer(wire.JobList(jobs=found[start:end], next=str(end) if end < len(found) else None))

    def _changes(self, params: httpx.QueryParams) -> httpx.Response:
        if "after" not in params:
            return self._answer(wire.Changes(jobs=[], cursor="c0"))
        news = self.feed.pop(0)
        return news if isinstance(news, httpx.Response) else self._answer(news)

    def _results(self, params: httpx.QueryParams) -> httpx.Response:
        if "format" in params:
            return httpx.Response(200, content=self.exports[params["format"]])
        after, limit = int(params["after"]), int(params["limit"])
        some = self.rows[after + 1 : after + 1 + limit]
        reached = some[-1]["index"] if some else after
        page = {"rows": some, "next_after": reached, "settled": len(self.rows), "complete": False}
        return httpx.Response(200, json=page)


class Caller:
    """Calls a client's methods, blocking or awaiting, so that one test proves both."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.slept: list[float] = []

    def __call__(self, method: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        return self._finish(method(*args, **options))

    def method(self, name: str, /, *args: Any, **options: Any) -> Any:
        return self(getattr(self.client, name), *args, **options)

    def list(self, items: Any) -> list[Any]:
        """All that an iterator gives."""
        if not hasattr(items, "__aiter__"):
            return list(items)

        async def collect() -> list[Any]:
            return [item async for item in items]

        return anyio.run(collect)

    def _finish(self, answer: Any) -> Any:
        if not inspect.isawaitable(answer):
            return answer

        async def wait(pending: Awaitable[Any]) -> Any:
            return await pending

        return anyio.run(wait, answer)


@pytest.fixture
def engine() -> FakeEngine:
    """An engine with nothing in it."""
    return FakeEngine()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, engine: FakeEngine) -> Iterator[Caller]:
    """Both clients of that engine; their sleeps take no time."""
    if request.param == "sync":
        client: Any = mr.Milkrun(URL, "key", transport=httpx.MockTransport(engine))
        caller = Caller(client)
        client._driver.sleep = caller.slept.append
    else:
        client = mr.AsyncMilkrun(URL, "key", transport=httpx.MockTransport(engine))
        caller = Caller(client)

        async def sleep(seconds: float) -> None:
            caller.slept.append(seconds)

        client._driver.sleep = sleep
    yield caller
    caller(client.close if request.param == "sync" else client.aclose)


@pytest.fixture
def build() -> Any:
    """The builders, for tests that cannot import a conftest."""

    class Build:
        job = staticmethod(a_job)
        row = staticmethod(a_row)
        problem = staticmethod(a_problem)
        url = URL

    return Build
