"""
The death of what hosts a replica on Ray: its actor, and Ray's own raylet.
"""

import os
import signal
from collections.abc import Callable

import psutil
import pytest
from checker import echo_answers, violations
from stories.server import Server, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
WINDOW_ROWS = 32


def test_killed_actor_and_killed_raylet_lose_nothing(serve: Callable[..., Server]) -> None:
    """`kill -9` of the actor, then of Ray itself, each in mid-job; a SIGTERM still ends all of it in order."""
    server = serve(pool="ray", pace=0.005, engine_args={"window_rows": WINDOW_ROWS, "handout_rows": 16})
    texts = [f"row {index}" for index in range(1_500)]
    with server.client() as client:
        for victim in ("ray::_Host", "raylet"):
            job_id = client.infer(texts)
            wait_for(lambda job_id=job_id: client.job(job_id).rows_succeeded > 300, seconds=90, what="some commits")
            _one(server, victim).kill()
            client.wait(job_id, timeout=120)
            evidence = server.evidence(job_id, echo_answers(texts), spare_executions=WINDOW_ROWS)
            assert [] == violations(evidence), victim
    process = psutil.Process(server.pid)
    os.kill(server.pid, signal.SIGTERM)
    assert 0 == process.wait(60)


def _one(server: Server, name: str) -> psutil.Process:
    children = psutil.Process(server.pid).children(recursive=True)
    [found] = [
        child for child in children if child.name() == name or (child.cmdline()[:1] and name in child.cmdline()[0])
    ]
    return found
