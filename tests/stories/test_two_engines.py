"""
Two engines on one Postgres: one dispatches, both answer, and when one dies the other goes on.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from checker import Place, echo_answers, violations
from checker.ledger import opened
from stories.server import Server, wait_for

import milkrun as mr

pytestmark = pytest.mark.engine
ROWS = 4_000


@pytest.fixture
def place(postgres: Any, tmp_path: Path) -> Iterator[Place]:
    """A new database and a folder for its blobs."""
    url = postgres.database()
    yield Place(tmp_path / "blobs", url)
    postgres.drop(url)


@pytest.fixture
def pair(place: Place, serve: Callable[..., Server]) -> tuple[Server, Server]:
    """Two engines; the first is elected."""
    first = serve(pace=0.000_5, shared=place)
    wait_for(lambda: holder(place), what="an election")
    return first, serve(pace=0.000_5, shared=place)


def holder(place: Place) -> str | None:
    """Who dispatches."""
    with opened(place) as ledger:
        found = ledger.ask("SELECT holder FROM posts")
    return str(found[0]["holder"]) if found else None


@contextmanager
def frozen(engine: Server) -> Iterator[None]:
    """An engine and its replicas, stopped as by SIGSTOP."""
    family = [psutil.Process(engine.pid), *psutil.Process(engine.pid).children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            process.resume()


def test_a_job_submitted_to_either_is_seen_by_both(pair: tuple[Server, Server]) -> None:
    """The one that does not dispatch answers too, and its waiters hear of an end at once."""
    first, second = pair
    with first.client() as one, second.client() as two:
        job_id = two.infer(["a", "b", "fail: invalid_row"], idempotency_key="k")
        assert job_id == one.infer(["a", "b", "fail: invalid_row"], idempotency_key="k")
        assert (2, 1) == ((job := two.wait(job_id, timeout=30)).rows_succeeded, job.rows_failed)
        assert ["succeeded", "succeeded", "failed"] == [row.status for row in two.await_job_results(job_id)]
        wait_for(lambda: two.models()[0].state == "ready", what="the dispatching engine's word")


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_the_other_engine_takes_over(pair: tuple[Server, Server], place: Place, stop: signal.Signals) -> None:
    """Without lost or doubled work, and without anybody's help."""
    first, second = pair
    texts = [f"row {index} of the story" for index in range(ROWS)]
    before = holder(place)
    with second.client() as client:
        job_id = client.infer(texts)
        wait_for(lambda: client.job(job_id).rows_succeeded > ROWS // 4, what="a quarter of the rows")
        with frozen(second):  # else it claims what the first gives back before that was read
            second.interruptions.append(first.kill() if stop is signal.SIGKILL else first.stop())
        wait_for(lambda: holder(place) != before, what="the other's election", seconds=15)
        client.wait(job_id, timeout=60)
    second.echo_log.write_bytes(first.echo_log.read_bytes() + second.echo_log.read_bytes())
    assert violations(second.evidence(job_id, echo_answers(texts))) == []


def test_a_frozen_dispatcher_finds_its_post_lost(pair: tuple[Server, Server], place: Place) -> None:
    """It wakes to find its leases gone: what it had finished is not counted twice."""
    first, second = pair
    texts = [f"row {index} of the story" for index in range(ROWS)]
    with second.client() as client:
        job_id = client.infer(texts)
        wait_for(lambda: client.job(job_id).rows_succeeded > ROWS // 4, what="a quarter of the rows")
        before = holder(place)
        with frozen(first):
            wait_for(lambda: holder(place) != before, what="the other's election", seconds=15)
        client.wait(job_id, timeout=60)
        assert ROWS == client.job(job_id).rows_succeeded
        results = client.await_job_results(job_id).to_list()
    assert [answer.output for answer in echo_answers(texts)] == [row.output for row in results]


def test_a_cancel_reaches_the_dispatcher(pair: tuple[Server, Server]) -> None:
    """Told to the engine that does not dispatch, it takes the rows off the other's replica."""
    first, second = pair
    with second.client() as client:
        job_id = client.infer(["slow:300 never"])
        wait_for(lambda: client.job(job_id).status is mr.JobStatus.running, what="the start")
        client.cancel(job_id)
        after = client.infer(["quick"])
        assert 1 == client.wait(after, timeout=30).rows_succeeded
    assert psutil.pid_exists(first.pid)
