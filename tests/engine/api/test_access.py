"""
A key opens its tenant's things on every route, and nothing else.
"""

import base64
import json
from typing import Any

import httpx
import pytest
from fix_api import KEY, OTHER_KEY, Api

pytestmark = pytest.mark.anyio
NEVER = "job_neverexisted0000000000"


def a_request(method: str, path: str, job_id: str, file_id: str, cursor: str) -> dict[str, Any]:
    """A well-formed request of a route, about these things."""
    request: dict[str, Any] = {"method": method, "url": path.replace("{job_id}", job_id)}
    match method, path:
        case "POST", "/api/files":
            request |= {"params": {"format": "jsonl"}, "content": b'"x"\n'}
        case "POST", "/api/jobs":
            request |= {"json": {"input": {"file_id": file_id}}}
        case "POST", "/api/jobs/cancel":
            request |= {"json": {"labels": {"team": "a"}}}
        case "POST", "/api/callbacks/replay":
            request |= {"json": {"receiver": "http://a.test"}}
        case "POST", "/api/callbacks/rotate":
            request |= {"json": {"old": "whsec_" + "a" * 32, "new": "whsec_" + "b" * 32}}
        case "GET", "/api/callbacks":
            request |= {"params": {"before": "callback_never"}}
        case "POST", "/api/jobs/attach":
            request |= {"json": {"idempotency_key": f"key of {job_id}"}}
        case "GET", "/api/jobs":
            request |= {"params": {"before": job_id}}
        case "GET", "/api/changes":
            request |= {"params": {"after": cursor}}
    return request


def routes(api: Api) -> list[tuple[str, str]]:
    """All routes under `/api`, from the schema."""
    schema = api.engine.app.openapi()
    return [
        (method.upper(), path)
        for path, methods in schema["paths"].items()
        for method in methods
        if path.startswith("/api")
    ]


def told(answer: httpx.Response, *names: str) -> tuple[int, str]:
    """An error answer, less what was asked for and the request's id."""
    body = json.loads(answer.text)
    body.pop("request_id", None)
    text = json.dumps(body)
    for name in names:
        text = text.replace(name, "NAME")
    return answer.status_code, text


async def test_every_route_wants_a_key(api: Api) -> None:
    job_id = await api.done()
    wrong = [{}, {"Authorization": "Bearer"}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}]
    wrong += [{"Authorization": "Basic !"}, {"Authorization": f"Basic {base64.b64encode(KEY.encode()).decode()}"}]
    assert len(routes(api)) >= 9
    for method, path in routes(api):
        for headers in wrong:
            request = a_request(method, path, job_id, "file_1", "feed.0")
            answer = await api.nobody.request(**request, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), (method, path, headers)


async def test_health_and_schema_need_none(api: Api) -> None:
    for path, status in (("/healthz", 200), ("/readyz", 503), ("/api/openapi.json", 200), ("/style.css", 200)):
        assert (await api.nobody.get(path)).status_code == status


async def test_a_key_is_taken_as_bearer_or_as_a_browsers_password(api: Api) -> None:
    for header in (f"Bearer {KEY}", f"bearer  {KEY}", f"Basic {base64.b64encode(f'anyone:{KEY}'.encode()).decode()}"):
        assert (await api.nobody.get("/api/jobs", headers={"Authorization": header})).status_code == 200


async def test_another_tenants_things_are_like_things_that_never_were(api: Api) -> None:
    """On every route of the schema: the same status, the same words."""
    submitted = await api.submit(labels={"team": "a"})
    mine = submitted["job"]["id"]
    uploaded = await api.mine.post("/api/files", params={"format": "jsonl"}, content=b'"x"\n')
    file_id = uploaded.json()["id"]
    compared = set()
    for method, path in routes(api):
        theirs = a_request(method, path, mine, file_id, submitted["cursor"])
        never = a_request(method, path, NEVER, "file_never", "feed_never.0")
        answer, expected = await api.other.request(**theirs), await api.other.request(**never)
        if "{job_id}" in path or expected.is_error:
            assert expected.status_code in {404, 410, 422}
            assert told(answer, mine, file_id) == told(expected, NEVER, "file_never"), (method, path)
            compared.add(path)
    assert compared >= {
        "/api/jobs",
        "/api/jobs/attach",
        "/api/jobs/{job_id}",
        "/api/jobs/{job_id}/results",
        "/api/changes",
    }
    for form in ("jsonl", "csv", "parquet"):
        assert (await api.other.get(f"/api/jobs/{mine}/results", params={"format": form})).status_code == 404
    assert (await api.mine.get(f"/api/jobs/{mine}")).json()["status"] == "preparing", "nothing was cancelled"


async def test_lists_and_changes_hold_only_ones_own(api: Api) -> None:
    theirs = (await api.other.get("/api/changes")).json()["cursor"]
    job_id = await api.done(labels={"team": "a"}, idempotency_key="shared")
    for query in ("", f"?ids={job_id}", "?label.team=a", "?status=succeeded"):
        assert (await api.other.get(f"/api/jobs{query}")).json()["jobs"] == []
        assert [job["id"] for job in (await api.mine.get(f"/api/jobs{query}")).json()["jobs"]] == [job_id]
    answer = (await api.other.get("/api/changes", params={"after": theirs, "on": "progress"})).json()
    assert (answer["jobs"], answer["cursor"]) == ([], theirs)
    own = await api.other.post("/api/jobs", json={"rows": ["x"], "idempotency_key": "shared"})
    assert (own.status_code, own.json()["reused"]) == (201, False)
    assert (await api.other.get("/api/models")).json() == (await api.mine.get("/api/models")).json()


async def test_a_revoked_key_is_let_in_no_more(api: Api) -> None:
    with api.engine.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE api_keys SET revoked_at = 1 WHERE tenant_id = 'other'")
    assert (await api.other.get("/api/jobs")).status_code == 401
    assert (await api.mine.get("/api/jobs")).status_code == 200


async def test_keys_show_nowhere(api: Api) -> None:
    assert KEY not in repr(api.engine.settings)
    for path in ("/api/jobs", "/api/models", "/healthz", "/jobs"):
        text = (await api.mine.get(path)).text
        assert KEY not in text
        assert OTHER_KEY not in text
