"""
Processes that live and do nothing: a replica frozen by SIGSTOP, and a whole engine.
"""

import time
from collections.abc import Callable

import psutil
import pytest
from checker import echo_answers, violations
from checker.ledger import opened
from stories.server import Server, wait_for

pytestmark = pytest.mark.engine
WINDOW_ROWS = 32
SILENCE = {"MILKRUN_REPLICA_SILENCE_SECONDS": "4"}


def test_a_frozen_replica_is_killed_and_its_rows_run_again(serve: Callable[..., Server]) -> None:
    """Nobody has to help, and nobody is blamed."""
    server = serve(pace=0.002, engine_args={"window_rows": WINDOW_ROWS, "handout_rows": 16}, environ=SILENCE)
    texts = [f"row {index}" for index in range(1_500)]
    with server.client() as client, server.watched() as feed:
        job_id = client.infer(texts)
        wait_for(lambda: client.job(job_id).rows_succeeded > 300, seconds=60, what="some commits")
        [replica] = server.replicas()
        replica.suspend()
        wait_for(lambda: not replica.is_running(), seconds=60, what="the frozen one's end")
        client.wait(job_id, timeout=120)
    assert "no sign of life" in server.log.read_text()
    evidence = server.evidence(job_id, echo_answers(texts), feed=feed, spare_executions=WINDOW_ROWS)
    assert [] == violations(evidence)


def test_a_replica_that_hangs_while_it_loads_is_ended(serve: Callable[..., Server]) -> None:
    """Another one loads; the rows only wait."""
    server = serve(engine_args={"load_seconds": 1.5}, environ={"MILKRUN_REPLICA_LOAD_SECONDS": "6"})
    with server.client() as client:
        job_id = client.infer(["a", "b"])
        [replica] = wait_for(server.replicas, what="a replica")
        replica.suspend()
        assert 2 == client.wait(job_id, timeout=60).rows_succeeded
        assert not replica.is_running()
    assert '"load_failed"' in server.log.read_text()


def test_a_slow_row_is_not_a_silent_replica(serve: Callable[..., Server]) -> None:
    """A row may take many times the silence that is borne."""
    server = serve(environ={"MILKRUN_REPLICA_SILENCE_SECONDS": "2"})
    texts = ["slow:12 but alive", "quick"]
    with server.client() as client:
        job_id = client.infer(texts)
        assert 2 == client.wait(job_id, timeout=120).rows_succeeded
    assert [] == violations(server.evidence(job_id, echo_answers(texts)))
    assert "replica_died" not in server.log.read_text()


def _lease_end(server: Server) -> float:
    with opened(server.place) as ledger:
        [found] = ledger.ask("SELECT max(lease_expires_at) AS latest FROM chunks WHERE state = 'leased'")
    return float(found["latest"])


def test_a_frozen_engine_wakes_and_goes_on(serve: Callable[..., Server]) -> None:
    """Its own leases ended meanwhile, its replica was never silent: no row is counted twice."""
    server = serve(pace=0.002, engine_args={"window_rows": WINDOW_ROWS, "handout_rows": 16}, environ=SILENCE)
    texts = [f"row {index}" for index in range(1_500)]
    with server.client() as client:
        job_id = client.infer(texts)
        wait_for(lambda: client.job(job_id).rows_succeeded > 300, seconds=60, what="some commits")
        engine = psutil.Process(server.pid)
        engine.suspend()
        try:
            wait_for(lambda: _lease_end(server) < time.time(), what="the end of its leases")
        finally:
            engine.resume()
        assert 1_500 == client.wait(job_id, timeout=120).rows_succeeded
        rows = client.await_job_results(job_id).to_list()
    assert [answer.output for answer in echo_answers(texts)] == [row.output for row in rows]
    assert "replica_died" not in server.log.read_text()
