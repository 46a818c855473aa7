"""When to try again, and after how long: pure."""

from datetime import UTC, datetime

import httpx
import pytest

from milkrun import _retry
from milkrun._retry import Policy, pause

BUSY = httpx.Response(503)


def test_pauses_grow_to_a_cap_with_jitter() -> None:
    policy = Policy(attempts=10, seconds=100)
    full = [pause(policy, attempt, 0, BUSY, jitter=lambda: 1.0) for attempt in range(1, 8)]
    least = [pause(policy, attempt, 0, BUSY, jitter=lambda: 0.0) for attempt in range(1, 8)]
    assert full == [0.5, 1, 2, 4, 8, 8, 8]
    assert [seconds / 2 for seconds in full if seconds] == least


def test_the_server_is_obeyed_first() -> None:
    response = httpx.Response(429, headers={"retry-after": "11.5"})
    assert pause(Policy(), 1, 0, response) == 11.5
    assert pause(Policy(), 1, 25, response) is None, "not within what is left of the 30 seconds"


def test_a_server_that_asks_for_no_pause_gets_one_all_the_same() -> None:
    response = httpx.Response(503, headers={"retry-after": "0"})
    assert pause(Policy(), 3, 0, response, jitter=lambda: 1.0) == 2.0


def test_a_proxys_404_passes_where_an_engine_was_seen() -> None:
    page, ours = (
        httpx.Response(404, headers={"content-type": kind}) for kind in ("text/html", "application/problem+json")
    )
    assert pause(_retry.PATIENT, 1, 0, page) is not None
    assert pause(_retry.PATIENT, 1, 0, ours) is None
    assert pause(_retry.QUICK, 1, 0, page) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", 3.0), ("-1", 0.0), ("Fri, 02 Jan 2026 00:00:09 GMT", 9.0), ("soon", None), ("", None)],
)
def test_retry_after_is_seconds_or_a_date(text: str, expected: float | None) -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert _retry.retry_after(httpx.Response(429, headers={"retry-after": text}), now=now) == expected


def test_it_gives_up_after_six_tries_or_thirty_seconds() -> None:
    assert pause(Policy(), 5, 0, BUSY) is not None
    assert pause(Policy(), 6, 0, BUSY) is None
    assert pause(Policy(), 1, 29.9, BUSY) is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 422])
def test_a_fact_is_never_asked_twice(status: int) -> None:
    assert pause(Policy(), 1, 0, httpx.Response(status)) is None


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError, httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError],
    ids=lambda e: e.__name__,
)
def test_no_answer_is_asked_again(error: type[httpx.TransportError]) -> None:
    assert pause(Policy(), 1, 0, error("gone")) is not None
