"""
Many jobs at once: the sooner ones overtake, and one connection waits for all.
"""

from collections.abc import Callable

import httpx
import pytest
from checker import echo_answers, violations
from stories.server import KEY, Server, wait_for

import milkrun as mr

pytestmark = pytest.mark.engine


def test_a_sooner_job_overtakes(serve: Callable[..., Server]) -> None:
    """A job of priority 0 submitted while a large one runs ends long before it."""
    server = serve(pace=0.002, engine_args={"window_rows": 64, "handout_rows": 16})
    texts = [f"row {index}" for index in range(5_000)]
    with server.client() as client, server.watched() as feed:
        large = client.infer(texts)
        wait_for(lambda: client.job(large).rows_succeeded > 200, what="the large job's first commits")
        urgent = client.infer(texts[:100], job_priority=0)
        ended = client.wait(urgent, timeout=30)
        meanwhile = client.job(large)
        assert not meanwhile.is_terminal
        # The urgent rows passed all but the replica's window, what waits before it, and the commits' grain.
        assert ended.seconds is not None
        assert ended.seconds < 5
        client.cancel(large)
    assert [] == violations(server.evidence(urgent, echo_answers(texts[:100]), feed=feed))
    assert [] == violations(server.evidence(large, echo_answers(texts), feed=feed))


class _Counted(httpx.HTTPTransport):
    """One connection at most, and the number of requests through it."""

    def __init__(self) -> None:
        super().__init__(limits=httpx.Limits(max_connections=1))
        self.requests = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        return super().handle_request(request)


def test_one_connection_waits_for_many_jobs(serve: Callable[..., Server]) -> None:
    """200 jobs are waited for through one connection, with fewer requests than jobs."""
    server = serve()
    with server.client() as client:
        job_ids = [client.infer([f"job {number}", "fail: timeout"]) for number in range(200)]
    transport = _Counted()
    with mr.Milkrun(server.url, KEY, transport=transport) as waiter:
        ended = list(waiter.as_ended(job_ids, timeout=90))
    assert sorted(job_ids) == sorted(job.id for job in ended)
    assert all((job.status, job.rows_succeeded, job.rows_failed) == ("succeeded", 1, 1) for job in ended)
    assert transport.requests < 200
    assert [] == violations(server.evidence(job_ids[77], echo_answers(["job 77", "fail: timeout"])))
