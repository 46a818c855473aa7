"""
Every error is a problem with a stable code, and none repeats what was sent.
"""

import errno
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fix_api import Api

from milkrun import wire
from milkrun.status import CallbackState
from milkrun_engine.api import limits
from milkrun_engine.api.native.errors import STATUS
from milkrun_engine.blobs.files import FileSystem
from milkrun_engine.domain import errors
from milkrun_engine.service import jobs as jobs_service

pytestmark = pytest.mark.anyio
SECRET = "a prompt that nobody else may read"
Reach = Callable[[Api, pytest.MonkeyPatch], Awaitable[httpx.Response]]


def all_errors(base: type[errors.EngineError] = errors.EngineError) -> set[type[errors.EngineError]]:
    return {sub for each in base.__subclasses__() for sub in (each, *all_errors(each))}


async def invalid_request(api: Api, _: Any) -> httpx.Response:
    return await api.mine.post("/api/jobs", json={"rows": [SECRET], "spec": {"prompt": "{"}})


async def missing_column(api: Api, _: Any) -> httpx.Response:
    return await api.mine.post("/api/jobs", json={"rows": [{"a": SECRET}], "spec": {"prompt": "{b}"}})


async def unknown_model(api: Api, _: Any) -> httpx.Response:
    return await api.mine.post("/api/jobs", json={"rows": [SECRET], "spec": {"model": "nobody's"}})


async def unauthenticated(api: Api, _: Any) -> httpx.Response:
    return await api.nobody.get("/api/jobs")


async def not_found(api: Api, _: Any) -> httpx.Response:
    return await api.mine.get("/api/jobs/job_never")


async def idempotency_mismatch(api: Api, _: Any) -> httpx.Response:
    await api.submit([SECRET], idempotency_key="k")
    return await api.mine.post("/api/jobs", json={"rows": [SECRET + "!"], "idempotency_key": "k"})


async def inputs_differ(api: Api, _: Any) -> httpx.Response:
    await api.submit([SECRET], idempotency_key="k")
    return await api.mine.post("/api/jobs/attach", json={"idempotency_key": "k", "input_hash": "0" * 64})


async def callback_delivered(api: Api, _: Any) -> httpx.Response:
    await api.done([3], callback={"url": "http://127.0.0.1:9/"})
    [due] = api.engine.store.callbacks.due(1)
    api.engine.store.callbacks.mark(due.id, CallbackState.delivered, None)
    return await api.mine.post(f"/api/callbacks/{due.id}/replay")


async def stale_claim(api: Api, _: Any) -> httpx.Response:
    first = await api.submit([SECRET], idempotency_key="k")
    await api.submit([SECRET], idempotency_key="k")
    return await api.mine.post(f"/api/jobs/{first['job']['id']}/cancel", json={"claim": first["claim"]})


async def nothing_to_retry(api: Api, _: Any) -> httpx.Response:
    return await api.mine.post(f"/api/jobs/{await api.done([SECRET])}/retry")


async def input_deleted(api: Api, _: Any) -> httpx.Response:
    job_id = await api.done([SECRET, "fail"])
    for path in api.world.blobs.root.glob("inputs/*/*"):
        path.unlink()
    return await api.mine.post(f"/api/jobs/{job_id}/retry")


async def cursor_lost(api: Api, _: Any) -> httpx.Response:
    return await api.mine.get("/api/changes", params={"after": "feed_of_a_backup.3"})


async def body_too_large(api: Api, patch: pytest.MonkeyPatch) -> httpx.Response:
    patch.setattr(limits, "MAX_BODY_BYTES", 1_000)
    return await api.mine.post("/api/jobs", json={"rows": [SECRET * 100]})


async def upload_too_large(api: Api, patch: pytest.MonkeyPatch) -> httpx.Response:
    patch.setattr(jobs_service, "MAX_UPLOAD_BYTES", 1_000)
    return await api.mine.post("/api/files", params={"format": "jsonl"}, content=SECRET.encode() * 100)


async def outcome_unknown(api: Api, patch: pytest.MonkeyPatch) -> httpx.Response:
    def lost(*_: Any) -> None:
        raise errors.OutcomeUnknown("lost at its commit")

    patch.setattr(api.engine.store.jobs, "submit", lost)
    return await api.mine.post("/api/jobs", json={"rows": [SECRET]})


async def shutting_down(api: Api, _: Any) -> httpx.Response:
    api.engine.refuse()
    return await api.mine.post("/api/jobs", json={"rows": [SECRET]})


async def not_ended(api: Api, _: Any) -> httpx.Response:
    return await api.mine.delete(f"/api/jobs/{(await api.submit())['job']['id']}")


async def already_ended(api: Api, _: Any) -> httpx.Response:
    return await api.mine.post(f"/api/jobs/{await api.done()}/pause")


async def disk_full(api: Api, patch: pytest.MonkeyPatch) -> httpx.Response:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, SECRET)

    patch.setattr(FileSystem, "sync", full)
    return await api.mine.post("/api/jobs", json={"rows": [SECRET]})


async def upload_to_a_full_ledger(api: Api, patch: pytest.MonkeyPatch) -> httpx.Response:
    def full(*_: Any) -> None:
        raise errors.DiskFull("no room")

    patch.setattr(api.engine.store.input_files, "add", full)
    answer = await api.mine.post("/api/files", params={"format": "jsonl"}, content=SECRET.encode())
    assert [] == [path for path in (api.world.blobs.root / "inputs").rglob("*") if path.is_file()], "nobody names it"
    return answer


async def integrity(api: Api, _: Any) -> httpx.Response:
    job_id = await api.done([SECRET])
    for path in api.world.blobs.root.glob(f"jobs/{job_id}/*.out_*"):
        path.write_bytes(b"changed")
    return await api.mine.get(f"/api/jobs/{job_id}/results")


async def integrity_of_an_export(api: Api, patch: pytest.MonkeyPatch) -> httpx.Response:
    page = await integrity(api, patch)
    return await api.mine.get(page.url.path, params={"format": "jsonl"})


async def internal(api: Api, patch: pytest.MonkeyPatch) -> httpx.Response:
    def broken(*_: Any) -> None:
        raise RuntimeError(SECRET)

    patch.setattr(api.engine.store.jobs, "by_ids", broken)
    return await api.mine.get("/api/jobs/job_1")


async def no_such_route(api: Api, _: Any) -> httpx.Response:
    return await api.mine.get("/api/nothing")


async def wrong_method(api: Api, _: Any) -> httpx.Response:
    return await api.mine.delete("/api/jobs")


REACHED: list[tuple[Reach, int, str]] = [
    (invalid_request, 422, "invalid_request"),
    (missing_column, 422, "missing_column"),
    (unknown_model, 422, "unknown_model"),
    (unauthenticated, 401, "unauthenticated"),
    (not_found, 404, "not_found"),
    (idempotency_mismatch, 422, "idempotency_mismatch"),
    (inputs_differ, 409, "inputs_differ"),
    (stale_claim, 409, "stale_claim"),
    (not_ended, 409, "not_ended"),
    (already_ended, 409, "already_ended"),
    (nothing_to_retry, 409, "nothing_to_retry"),
    (input_deleted, 409, "input_deleted"),
    (callback_delivered, 409, "callback_delivered"),
    (cursor_lost, 410, "cursor_lost"),
    (body_too_large, 413, "input_too_large"),
    (upload_too_large, 413, "input_too_large"),
    (outcome_unknown, 503, "outcome_unknown"),
    (shutting_down, 503, "shutting_down"),
    (disk_full, 507, "disk_full"),
    (upload_to_a_full_ledger, 507, "disk_full"),
    (integrity, 500, "integrity"),
    (integrity_of_an_export, 500, "integrity"),
    (internal, 500, "internal"),
    (no_such_route, 404, "not_found"),
    (wrong_method, 405, "invalid_request"),
]


@pytest.mark.parametrize(("reach", "status", "code"), REACHED, ids=[each[0].__name__ for each in REACHED])
async def test_every_problem_can_be_reached(
    api: Api, monkeypatch: pytest.MonkeyPatch, reach: Reach, status: int, code: str
) -> None:
    answer = await reach(api, monkeypatch)
    problem = wire.Problem.model_validate_json(answer.content)
    assert (answer.status_code, problem.status, problem.code) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == problem.request_id
    assert problem.detail
    assert SECRET[:10] not in answer.text
    assert ("retry-after" in answer.headers) is (status == 503)
    assert ("www-authenticate" in answer.headers) is (status == 401)


def test_every_error_of_the_domain_has_a_status_and_is_reached() -> None:
    assert set(STATUS) == all_errors()
    assert {(STATUS[error], error.code) for error in all_errors()} <= {(status, code) for _, status, code in REACHED}


def test_every_code_stands_in_the_contract() -> None:
    known = set((wire.Problem.__doc__ or "").replace(",", " ").replace(".", " ").split())
    assert {error.code for error in all_errors()} | {"internal"} <= known


BAD_REQUESTS: list[dict[str, Any]] = [
    {"rows": [SECRET], "promt": SECRET},
    {"rows": [SECRET], "spec": {"promt": SECRET}},
    {"rows": [SECRET], "spec": {"sampling": {"temprature": 0}}},
    {"rows": [SECRET], "spec": {"kind": SECRET}},
    {"rows": [SECRET], "spec": {"output_schema": {"choices": [SECRET], "regex": SECRET}}},
    {"rows": [SECRET], "spec": {"output_schema": {"choices": [SECRET, SECRET]}}},
    {"rows": [SECRET], "spec": {"system_prompt": [SECRET]}},
    {"rows": [SECRET], "priority": 11},
    {"rows": [SECRET], "priority": -1},
    {"rows": [SECRET], "name": SECRET * 10},
    {"rows": [SECRET], "labels": {"a": 1}},
    {"rows": [SECRET], "labels": [SECRET]},
    {"rows": [SECRET], "idempotency_key": ""},
    {"rows": [SECRET], "external_url": "javascript:" + SECRET},
    {"rows": [SECRET], "input": {"file_id": "file_1"}},
    {"rows": SECRET},
    {},
]


@pytest.mark.parametrize("body", BAD_REQUESTS, ids=[str(number) for number in range(len(BAD_REQUESTS))])
async def test_a_request_that_is_wrong_is_told_where_and_not_repeated(api: Api, body: dict[str, Any]) -> None:
    answer = await api.mine.post("/api/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert SECRET not in answer.text
    assert (await api.mine.get("/api/jobs")).json()["jobs"] == []


@pytest.mark.parametrize(
    "part",
    [
        '"name": "\\ud800"', '"labels": {"a": "\\ud800"}', '"labels": {"\\ud800": "a"}', '"\\ud800": 1',
        '"idempotency_key": "\\udfff"', '"spec": {"prompt": "{\\ud800}"}', '"spec": {"system_prompt": "\\ud83d."}',
        '"spec": {"sampling": {"stop": ["\\ud800"]}}', '"spec": {"output_schema": {"choices": ["a", "\\ud800"]}}',
        '"spec": {"output_schema": {"json_schema": {"properties": {"\\ud800": {}}}}}',
        '"name": "a\\u0000b"', '"labels": {"a": "\\u0000"}', '"idempotency_key": "\\u0000"',
    ],
)  # fmt: skip
async def test_half_a_surrogate_pair_is_refused(api: Api, part: str) -> None:
    """JSON can write one and Python holds it, but UTF-8 has no bytes for it."""
    body = f'{{"rows": ["a"], {part}}}'
    answer = await api.mine.post("/api/jobs", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert (await api.mine.get("/api/jobs")).json()["jobs"] == []


async def test_attach_refuses_half_a_surrogate_pair(api: Api) -> None:
    body, headers = '{"idempotency_key": "\\ud800"}', {"content-type": "application/json"}
    answer = await api.mine.post("/api/jobs/attach", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_row_and_a_whole_pair_may_be_written_with_escapes(api: Api) -> None:
    body = '{"rows": ["\\ud800"], "name": "\\ud83d\\ude00"}'
    answer = await api.mine.post("/api/jobs", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["job"]["name"]) == (201, "\U0001f600")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null", b'"' + SECRET.encode() + b'"', b"[" * 9_999])
async def test_a_body_that_is_no_request_is_told(api: Api, content: bytes) -> None:
    answer = await api.mine.post("/api/jobs", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.json()["code"] == "invalid_request"
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "status=sleeping", f"ids={','.join(['job_1'] * 101)}"],
)
async def test_a_list_is_asked_for_in_bounds(api: Api, query: str) -> None:
    assert (await api.mine.get(f"/api/jobs?{query}")).status_code == 422


@pytest.mark.parametrize("query", ["after=x", "after=-2", "limit=0", "limit=10001", "format=xml"])
async def test_results_are_asked_for_in_bounds(api: Api, query: str) -> None:
    assert (await api.mine.get(f"/api/jobs/job_1/results?{query}")).status_code == 422


@pytest.mark.parametrize("query", ["wait=61", "wait=-1", "on=never", "limit=0", "wait=nan"])
async def test_changes_are_asked_for_in_bounds(api: Api, query: str) -> None:
    assert (await api.mine.get(f"/api/changes?{query}")).status_code == 422


async def test_an_upload_may_be_larger_than_a_body(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 1_000)
    answer = await api.mine.post("/api/files", params={"format": "jsonl"}, content=b'"x"\n' * 1_000)
    assert (answer.status_code, answer.json()["bytes"]) == (201, 4_000)
