"""
A retry of failed rows, with the server killed while it is prepared: nothing that has an answer runs again.
"""

from collections.abc import Callable

import pytest
from checker import echo_answers, violations
from stories.server import Server, wait_for

import milkrun as mr

pytestmark = pytest.mark.engine
TEXTS = ["fail: timeout" if index % 50 == 7 else f"row {index} of the story" for index in range(12_000)]


def stopped_half_way(client: mr.Milkrun) -> str:
    """A job with rows that succeeded, failed, were never decided, and perhaps were never read."""
    parent = client.infer(TEXTS, idempotency_key="nightly")
    wait_for(lambda: client.job(parent).rows_succeeded > 1_000, what="the first commits")
    client.cancel(parent)
    return parent


@pytest.mark.parametrize("read", [0, 256, 5_376])
def test_a_server_killed_while_a_retry_is_prepared_goes_on(serve: Callable[..., Server], read: int) -> None:
    """`kill -9` after this many rows were read; the good rows are taken over all the same, and the rest runs."""
    server = serve(pace=0.000_2)
    with server.client() as client:
        parent = client.job(stopped_half_way(client))
        made = client.retry_failed(parent.id)
        wait_for(lambda: client.job(made).rows_read >= read, what=f"{read} rows read")
        server.kill()
        server.start()
        assert made == client.retry_failed(parent.id) or client.job(made).is_terminal
        job = client.wait(made, timeout=120)
    assert (mr.JobStatus.succeeded, 12_000, parent.rows_succeeded) == (job.status, job.rows_total, job.rows_reused)
    assert violations(server.evidence(made, echo_answers(TEXTS))) == []


def test_a_retry_of_a_retry_that_was_cancelled_in_its_preparation(serve: Callable[..., Server]) -> None:
    """What the first job answered is taken over by the third, whatever the second had got to."""
    server = serve(pace=0.000_2)
    with server.client() as client:
        first = client.job(stopped_half_way(client))
        second = client.retry_failed(first.id)
        client.cancel(second)
        submitted = client.submit(TEXTS, idempotency_key="nightly", reuse="failed_rows", max_failed_rows=0)
        assert (False, second) == (submitted.reused, submitted.job.rows_from)
        job = client.wait(submitted.job.id, timeout=120)
    assert (mr.JobStatus.succeeded, 240) == (job.status, job.rows_failed)
    assert job.rows_reused >= first.rows_succeeded
    assert violations(server.evidence(job.id, echo_answers(TEXTS))) == []
