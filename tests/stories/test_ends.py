"""
Jobs at the edges: no rows, only refused rows, cancelled while being read, decided before they are read.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from checker import Answer, echo_answer, echo_answers, violations
from stories.server import Server, wait_for

import milkrun as mr

pytestmark = pytest.mark.engine
BLANK_LINES = b"\n" * 12_000_000  #: no rows, and seconds to read: a slow input without any help from the engine


def test_a_job_of_no_rows_succeeds(serve: Callable[..., Server]) -> None:
    """No rows, and only refused rows: both end at once, by the preparer's last window."""
    server = serve()
    with server.client() as client, server.watched() as feed:
        empty = client.infer([])
        refused = client.infer([[], None, {"neither": "messages nor prompt"}])
        assert 0 == len(client.await_job_results(empty, timeout=30))
        results = client.await_job_results(refused, timeout=30)
        assert ["invalid_row"] * 3 == [row.error.code for row in results if row.error]
        assert mr.JobStatus.succeeded == client.job(refused).status
    assert [] == violations(server.evidence(empty, [], feed=feed))
    assert [] == violations(server.evidence(refused, [Answer(None, "failed", "invalid_row", None)] * 3, feed=feed))


def test_cancelled_while_it_is_read(serve: Callable[..., Server], tmp_path: Path) -> None:
    """A job cancelled in preparation keeps the rows that were read, and gets no more windows, also after a kill."""
    texts = [f"row {index}" for index in range(256)]
    slow = _jsonl(tmp_path / "slow.jsonl", texts, BLANK_LINES, ["never read"])
    server = serve(pace=0.1)
    with server.client() as client, server.watched() as feed:
        job_id = client.infer(slow)
        wait_for(lambda: client.job(job_id).rows_read, what="the first window")
        job = client.cancel(job_id)
        assert (mr.JobStatus.cancelled, 256, False) == (job.status, job.rows_total, job.input_complete)
        server.kill()
        server.start()
        assert job.rows_total == client.job(job_id).rows_total
    assert [] == violations(server.evidence(job_id, echo_answers(texts), feed=feed))


def test_decided_before_it_is_read(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Every chunk commits before the input is read to its end: the last window finishes the job."""
    texts = [f"row {index}" for index in range(256)]
    slow = _jsonl(tmp_path / "slow.jsonl", texts, 5 * BLANK_LINES, [])
    server = serve()
    with server.client() as client, server.watched() as feed:
        client.wait(client.infer(["warm"]), timeout=60)  # else the model may be loaded only when the input is read
        job_id = client.infer(slow)
        decided = wait_for(lambda: job if (job := client.job(job_id)).rows_succeeded == 256 else None)
        assert (mr.JobStatus.running, None) == (decided.status, decided.rows_total)
        ended = client.wait(job_id, timeout=60)
        assert (mr.JobStatus.succeeded, 256) == (ended.status, ended.rows_total)
    assert [] == violations(server.evidence(job_id, echo_answers(texts), feed=feed))


def test_keys_failures_and_cancel(serve: Callable[..., Server]) -> None:
    """Keys and typed errors stay with their rows; what a cancel finds committed stays readable."""
    texts = [f"fail: timeout row {index}" if index % 50 == 7 else f"row {index}" for index in range(600)]
    rows = [{"id": f"k{index % 10}", "text": text} for index, text in enumerate(texts)]
    expected = [
        Answer(row["id"], "failed", "timeout", None)
        if row["text"].startswith("fail:")
        else echo_answer(row["text"], key=row["id"])
        for row in rows
    ]
    server = serve(pace=0.005)
    with server.client() as client, server.watched() as feed:
        whole = client.infer(rows, prompt="{text}", key_column="id")
        client.wait(whole, timeout=60)
        stopped = client.infer(rows, prompt="{text}", key_column="id")
        wait_for(lambda: client.job(stopped).rows_succeeded > 50, what="some commits")
        job = client.cancel(stopped)
        assert job.rows_cancelled > 0
        assert job == client.cancel(stopped)
    assert [] == violations(server.evidence(whole, expected, feed=feed))
    assert [] == violations(server.evidence(stopped, expected, feed=feed))


def _jsonl(path: Path, texts: list[str], between: bytes, more: list[str]) -> Path:
    lines = [b"".join(b'"%s"\n' % text.encode() for text in part) for part in (texts, more)]
    path.write_bytes(lines[0] + between + lines[1])
    return path
