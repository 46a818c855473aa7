"""
Files that changed on the engine's disk: what they held is refused by name, and nothing else suffers.
"""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from checker import echo_answers, violations
from checker.ledger import opened
from stories.server import KEY, Server, wait_for

import milkrun as mr

pytestmark = pytest.mark.engine


def flip(path: Path) -> None:
    """Change one bit in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Lose its last byte."""
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {"flipped": flip, "truncated": truncate, "missing": Path.unlink}


def file_of(server: Server, job_id: str, kind: str, *, last: bool = True) -> Path:
    """The file of the job's last chunk, or of its first."""
    with opened(server.place) as ledger:
        chunks = ledger.ask(f"SELECT {kind}_blob AS blob FROM chunks WHERE job_id = ? ORDER BY number", job_id)
    return server.place.blobs / chunks[-1 if last else 0]["blob"]


def test_a_damaged_result_is_told_and_others_are_read(serve: Callable[..., Server]) -> None:
    """Pages and exports of the one job answer `integrity`, or break off; those of the other are whole."""
    server = serve()
    texts = [f"row {index}" for index in range(50)]
    headers = {"Authorization": f"Bearer {KEY}"}
    with server.client() as client, httpx.Client(base_url=server.url, headers=headers, trust_env=False) as http:
        whole, *damaged = [client.infer(texts) for _ in range(1 + len(DAMAGES))]
        for job_id in (whole, *damaged):
            client.wait(job_id, timeout=60)
        for job_id, damage in zip(damaged, DAMAGES.values(), strict=True):
            damage(file_of(server, job_id, "result"))
            with pytest.raises(httpx.RemoteProtocolError):  # the first rows had been sent
                http.get(f"/api/jobs/{job_id}/results", params={"format": "jsonl"})
            damage(file_of(server, job_id, "result", last=False))
            for params in ({}, {"format": "jsonl"}, {"format": "csv"}, {"format": "parquet"}):
                answer = http.get(f"/api/jobs/{job_id}/results", params=params)
                assert (500, "integrity") == (answer.status_code, answer.json()["code"]), params
    assert [] == violations(server.evidence(whole, echo_answers(texts)))


def test_a_damaged_input_fails_its_job_alone(serve: Callable[..., Server]) -> None:
    """What is not yet computed can't be; what is stays readable, and the other job goes on."""
    server = serve(pace=0.01, engine_args={"window_rows": 8, "handout_rows": 8})
    texts = [f"row {index}" for index in range(300)]
    with server.client() as client:
        for damage in DAMAGES.values():
            job_id = client.infer(texts)
            wait_for(lambda job_id=job_id: client.job(job_id).rows_total, seconds=60, what="its preparation")
            damage(file_of(server, job_id, "input"))
            other = client.infer(texts[:8], job_priority=0)
            ended = client.wait(job_id, timeout=90)
            assert mr.JobStatus.failed is ended.status
            assert ended.failure is not None
            assert "input_unreadable" == ended.failure.code
            assert 0 < ended.rows_succeeded < 300
            client.wait(other, timeout=60)
            assert [] == violations(server.evidence(other, echo_answers(texts[:8])))
