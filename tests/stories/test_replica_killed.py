"""
The death of a replica: killed from outside, or by a row.
"""

import math
from collections.abc import Callable

import pytest
from checker import echo_answers, violations
from stories.server import Server, wait_for

pytestmark = pytest.mark.engine
WINDOW_ROWS = 32


def test_a_killed_replica_loses_nothing(serve: Callable[..., Server]) -> None:
    """`kill -9` of echo in mid-job: its rows in flight run again, alone at first, and nobody is blamed."""
    server = serve(pace=0.002, engine_args={"window_rows": WINDOW_ROWS, "handout_rows": 16})
    texts = [f"row {index}" for index in range(1_500)]
    with server.client() as client, server.watched() as feed:
        job_id = client.infer(texts)
        wait_for(lambda: client.job(job_id).rows_succeeded > 300, what="some commits")
        [replica] = server.replicas()
        replica.kill()
        client.wait(job_id, timeout=60)
    evidence = server.evidence(job_id, echo_answers(texts), feed=feed, spare_executions=WINDOW_ROWS)
    assert [] == violations(evidence)


def test_a_poison_row_is_alone(serve: Callable[..., Server]) -> None:
    """A row that kills its replica ends as `engine_crash`; its neighbours answer as if it were not there."""
    server = serve(engine_args={"window_rows": 8, "handout_rows": 8})
    texts = ["die: now" if index == 21 else f"row {index}" for index in range(40)]
    deaths = math.ceil(math.log2(8)) + 3
    with server.client() as client:
        job_id = client.infer(texts)
        assert 39 == client.wait(job_id, timeout=90).rows_succeeded
    assert [] == violations(server.evidence(job_id, echo_answers(texts), spare_executions=8 * deaths))
    assert _deaths(server) <= deaths


def test_a_lying_row_is_alone(serve: Callable[..., Server]) -> None:
    """A replica that answers what can't be is ended like one that died; only a row that makes it lie fails."""
    server = serve(engine_args={"window_rows": 8, "handout_rows": 8})
    lies = {3: "lie:twice", 9: "lie:foreign", 17: "lie:utf8", 30: "lie:nan"}
    texts = [lies.get(index, f"row {index}") for index in range(40)]
    deaths = len(lies) * (math.ceil(math.log2(8)) + 3)
    with server.client() as client:
        job_id = client.infer(texts)
        ended = client.wait(job_id, timeout=120)
        rows = client.await_job_results(job_id).to_list()
    # A row whose first answer was right has one: the second is what was refused.
    assert {3: None, 9: "engine_crash", 17: "engine_crash", 30: "engine_crash"} == {
        index: row.error and row.error.code for index, row in enumerate(rows) if index in lies
    }
    assert 37 == ended.rows_succeeded
    right = [answer.output for index, answer in enumerate(echo_answers(texts)) if index not in lies]
    assert right == [row.output for row in rows if row.index not in lies]
    assert _deaths(server) <= deaths


def test_suspects_outlive_the_server(serve: Callable[..., Server]) -> None:
    """A server killed between the deaths of a poison row goes on with the bisection where it was."""
    server = serve(engine_args={"window_rows": 8, "handout_rows": 8})
    texts = ["die: now" if index == 5 else f"row {index}" for index in range(24)]
    most_deaths = math.ceil(math.log2(8)) + 3
    with server.client() as client:
        job_id = client.infer(texts)
        wait_for(lambda: _deaths(server) >= 3, what="the third death")
        server.kill()
        server.start()
        assert 23 == client.wait(job_id, timeout=90).rows_succeeded
    assert [] == violations(server.evidence(job_id, echo_answers(texts), spare_executions=8 * most_deaths))
    assert _deaths(server) <= most_deaths, "of both lives together; a bisection from its beginning takes 5"


def _deaths(server: Server) -> int:
    """Deaths of replicas that the server's log tells of, over all its lives."""
    return server.log.read_text().count('"replica_died"')
