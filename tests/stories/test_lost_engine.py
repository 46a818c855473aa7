"""
Between a client and its engine: slow, reset and silent connections cost time, never a second job.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from checker import Place, echo_answers, violations
from checker.ledger import opened
from stories.proxy import FaultProxy
from stories.server import KEY, Server, wait_for

import milkrun as mr
from milkrun import _requests, _waiting

pytestmark = pytest.mark.engine


@contextmanager
def far_client(server: Server) -> Iterator[tuple[mr.Milkrun, FaultProxy]]:
    """A client with a proxy between it and its engine."""
    port = int(server.url.rpartition(":")[2])
    with FaultProxy("127.0.0.1", port) as proxy, mr.Milkrun(f"http://127.0.0.1:{proxy.port}", KEY) as client:
        yield client, proxy


def the_job(place: Place) -> str:
    """The only one."""
    with opened(place) as ledger:
        [job] = ledger.ask("SELECT id FROM jobs")
    return str(job["id"])


def test_latency_costs_time_only(serve: Callable[..., Server]) -> None:
    """A job from its submit to its results over a slow line."""
    server = serve()
    texts = [f"row {index}" for index in range(300)]
    with far_client(server) as (client, proxy):
        proxy.latency(0.2)
        results = client.await_job_results(client.infer(texts), timeout=60).to_list()
    assert [answer.output for answer in echo_answers(texts)] == [row.output for row in results]


def test_resets_around_a_submit_make_one_job(serve: Callable[..., Server]) -> None:
    """In the midst of the upload of a large input, and before the answer to the submit arrives."""
    server = serve()
    texts = [f"row {index} {'x' * 2_000}" for index in range(6_000)]  # more than a request's body may hold
    with far_client(server) as (client, proxy):
        proxy.cut_after(b"POST /api/files", b"row 3000 ")
        with ThreadPoolExecutor(1) as thread:
            submitting = thread.submit(client.infer, texts, labels={"mark": "the-end"})
            wait_for(lambda: proxy.cuts == 1, seconds=60, what="the cut upload")
            proxy.cut_after(b"POST /api/jobs", b"the-end")
            job_id = submitting.result(60)
        assert 2 == proxy.cuts
        client.wait(job_id, timeout=60)
    assert job_id == the_job(server.place)
    assert violations(server.evidence(job_id, echo_answers(texts))) == []


def test_a_reset_download_is_whole_in_the_end(serve: Callable[..., Server], tmp_path: Path) -> None:
    """The export begins anew and the file appears once."""
    server = serve()
    texts = [f"row {index} {'x' * 40}" for index in range(20_000)]
    with far_client(server) as (client, proxy):
        results = client.await_job_results(client.infer(texts), timeout=120)
        proxy.bandwidth(200_000)
        connections = proxy.connections
        with ThreadPoolExecutor(1) as thread:
            saving = thread.submit(results.save, tmp_path / "results.jsonl")
            wait_for(lambda: list(tmp_path.iterdir()), what="the beginning of a file")
            proxy.reset()
            proxy.heal()
            saved = saving.result(60)
        assert proxy.connections > connections
    assert [saved] == list(tmp_path.iterdir())
    assert 20_000 == len(saved.read_bytes().splitlines())


def test_a_wait_outlives_a_black_hole(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """The job ends while nothing comes through; the waiter hears of it soon after the heal."""
    ask = _requests.changes
    monkeypatch.setattr(_requests, "changes", lambda **options: replace(ask(**options), read_seconds=3.0))
    monkeypatch.setattr(_waiting, "POLL_SECONDS", 1.0)
    server = serve()
    with far_client(server) as (client, proxy), server.client() as near, ThreadPoolExecutor(1) as thread:
        job_id = client.infer(["slow:3 a", "b"])
        wait_for(lambda: near.job(job_id).status is mr.JobStatus.running, what="the start", seconds=60)
        told = threading.Event()
        waiting = thread.submit(client.wait, job_id, timeout=120, on_progress=lambda _job: told.set())
        assert told.wait(30)
        proxy.black_hole()
        near.wait(job_id, timeout=60)
        assert not waiting.done()
        proxy.heal()
        assert mr.JobStatus.succeeded is waiting.result(60).status
    assert violations(server.evidence(job_id, echo_answers(["slow:3 a", "b"]))) == []


def test_a_wait_ends_at_its_time_in_a_black_hole(serve: Callable[..., Server]) -> None:
    """Its `timeout` holds although nobody says anything."""
    server = serve()
    with far_client(server) as (client, proxy), ThreadPoolExecutor(1) as thread:
        job_id = client.infer(["slow:300 never"])
        told = threading.Event()
        waiting = thread.submit(client.wait, job_id, timeout=4, on_progress=lambda _job: told.set())
        assert told.wait(30)
        proxy.black_hole()
        with pytest.raises(mr.WaitTimeout):
            waiting.result(25)
