"""Errors: picklable, one for every status and code, telling what to do."""

import pickle
from typing import Any

import httpx
import pytest

import milkrun as mr
from milkrun import _requests
from milkrun._requests import Call

CODES = {
    "invalid_request": 422, "missing_column": 422, "unknown_model": 422, "idempotency_mismatch": 422,
    "unauthenticated": 401, "not_found": 404, "inputs_differ": 409, "stale_claim": 409, "cursor_lost": 410,
    "input_too_large": 413, "shutting_down": 503, "internal": 500,
}  # fmt: skip
KINDS = {
    400: mr.InvalidRequest, 401: mr.AuthenticationError, 403: mr.PermissionDenied, 404: mr.NotFound, 409: mr.Conflict,
    410: mr.ResponseError, 413: mr.TooLarge, 422: mr.InvalidRequest, 429: mr.RateLimited, 500: mr.EngineUnavailable,
    502: mr.EngineUnavailable, 503: mr.EngineUnavailable, 504: mr.EngineUnavailable,
}  # fmt: skip
CALL = Call(method="GET", path="/api/jobs/job_1", about="job_1")


def leaves(kind: type[mr.MilkrunError]) -> list[type[mr.MilkrunError]]:
    return [kind, *(leaf for sub in kind.__subclasses__() for leaf in leaves(sub))]


def an_error(kind: type[mr.MilkrunError], job: mr.Job) -> mr.MilkrunError:
    facts: dict[str, Any] = {}
    if issubclass(kind, mr.ResponseError):
        facts = {"status": 429, "code": "busy", "request_id": "r", "retry_after": 2.5}
    elif issubclass(kind, mr.WaitTimeout | mr.JobError):
        facts = {"job": job}
    return kind("what happened", **facts)


@pytest.mark.parametrize("kind", leaves(mr.MilkrunError), ids=lambda kind: kind.__name__)
def test_errors_survive_pickling(kind: type[mr.MilkrunError], build: Any) -> None:
    error = an_error(kind, build.job())
    again = pickle.loads(pickle.dumps(error))
    assert (type(error), error.args, vars(error)) == (type(again), again.args, vars(again))


@pytest.mark.parametrize("status", KINDS)
def test_every_status_has_its_exception(status: int, build: Any) -> None:
    response = build.problem(status, "some_code")
    response.request = CALL.build(_requests.Endpoint(url=build.url))
    error = _requests.failure(response, CALL)
    assert type(error) is KINDS[status]
    assert error.retryable is (status == 429 or status >= 500)


@pytest.mark.parametrize("code", CODES)
def test_an_error_says_what_to_which_job_and_what_next(code: str, build: Any) -> None:
    response = build.problem(CODES[code], code, **{"retry-after": "7"})
    response.request = CALL.build(_requests.Endpoint(url=build.url))
    error = _requests.failure(response, CALL)
    assert isinstance(error, mr.ResponseError)
    assert (error.status, error.code, error.request_id, error.retry_after) == (CODES[code], code, "req_1", 7.0)
    assert f"because of {code} (job job_1) [{CODES[code]} {code}, request req_1]." in str(error)


def test_a_page_that_is_not_ours_is_told_from_an_engines_answer(build: Any) -> None:
    for status, expected in [(404, mr.UnexpectedResponse), (502, mr.EngineUnavailable), (401, mr.AuthenticationError)]:
        response = httpx.Response(status, html="<h1>Proxy</h1>", request=httpx.Request("GET", build.url))
        assert type(_requests.failure(response, CALL)) is expected


def test_the_key_is_masked_everywhere() -> None:
    with mr.Milkrun("http://engine.test", "secret-key") as client:
        seen = f"{client!r} {client.settings!r} {client._link!r} {client._link.locate()!r}"
    assert "secret-key" not in seen


def test_a_key_from_a_mounted_file_loses_its_newline() -> None:
    with mr.Milkrun("http://engine.test", "secret-key\n") as client:
        assert client.settings.api_key == "secret-key"


@pytest.mark.parametrize("key", ["secret\nkey", "secret-kéy", "secret\0key"])
def test_a_key_that_no_header_takes_is_refused_unquoted(key: str) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        mr.Milkrun("http://engine.test", key)
    assert "secret" not in str(caught.value)


def test_a_request_that_could_not_be_written_is_not_quoted() -> None:
    outcome = httpx.LocalProtocolError(
        "Illegal header value b'Bearer secret'", request=httpx.Request("GET", "http://x")
    )
    assert "secret" not in str(_requests.failure(outcome, CALL))


@pytest.mark.parametrize("url", ["localhost:8787", "http://", "http://localhost:abc", "ftp://engine.test"])
def test_an_address_that_is_none_is_told_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="MILKRUN_URL"):
        mr.Milkrun(url)
