"""
`kill -9` of the server: nothing committed is lost or computed again, and the job ends without help.
"""

import random
from collections.abc import Callable

import pytest
from checker import echo_answers, leased_rows, violations
from stories.server import Server, wait_for

import milkrun as mr
from milkrun.wire import Job

pytestmark = pytest.mark.engine
ROWS = 4_000


def _in_preparation(job: Job, _at: float) -> bool:
    return job.rows_total is None


def _in_dispatch(job: Job, at: float) -> bool:
    return job.rows_succeeded >= ROWS * at


def _near_the_end(job: Job, at: float) -> bool:
    return job.rows_done >= ROWS * (0.95 + 0.05 * at)


@pytest.mark.parametrize("moment", [_in_preparation, _in_dispatch, _near_the_end])
@pytest.mark.parametrize("seed", [1])
def test_a_killed_server_resumes(serve: Callable[..., Server], moment: Callable[[Job, float], bool], seed: int) -> None:
    """Submit, `kill -9` at a random moment of a phase, start again, collect: as if nothing had happened."""
    at = random.Random(seed).random()
    server = serve(pace=0.000_5)
    texts = [f"row {index} of the story" for index in range(ROWS)]
    with server.client() as client, server.watched() as feed:
        job_id = client.infer(texts)
        wait_for(lambda: moment(client.job(job_id), at), what=moment.__name__)
        server.kill()
        server.start()
        results = client.await_job_results(job_id, timeout=60)
        assert len(results) == ROWS
    assert violations(server.evidence(job_id, echo_answers(texts), feed=feed)) == []


def test_killed_again_and_again(serve: Callable[..., Server]) -> None:
    """Three kills in one job, one of them while the server starts, redo leased chunks and no more."""
    server = serve(pace=0.000_5)
    texts = [f"row {index} of the story" for index in range(ROWS)]
    with server.client() as client:
        job_id = client.infer(texts)
        for share in (0.2, 0.6):
            wait_for(lambda share=share: client.job(job_id).rows_done >= ROWS * share, what=f"{share:.0%} done")
            server.kill()
            server.start()
        server.kill()
        server.launch()
        server.kill()
        server.start()
        client.wait(job_id, timeout=60)
    assert violations(server.evidence(job_id, echo_answers(texts))) == []


def test_a_repeated_submit_finds_its_job(serve: Callable[..., Server]) -> None:
    """A key that was answered before the kill names the same job after it."""
    server = serve(pace=0.01)
    texts = [f"row {index}" for index in range(200)]
    with server.client() as client:
        before = client.submit(texts, idempotency_key="nightly")
        server.kill()
        server.start()
        after = client.submit(texts, idempotency_key="nightly")
        assert (after.job.id, after.reused) == (before.job.id, True)
        assert after.claim == before.claim + 1
        with pytest.raises(mr.Conflict):
            client.cancel(before.job.id, claim=before.claim)
        client.wait(before.job.id, timeout=60)
    assert violations(server.evidence(before.job.id, echo_answers(texts))) == []


def test_a_stopped_server_hands_its_leases_back(serve: Callable[..., Server]) -> None:
    """SIGTERM in mid-job leaves no lease, no replica and no engine.json; the next start goes on."""
    server = serve(pace=0.002)
    texts = [f"row {index}" for index in range(2_000)]
    with server.client() as client:
        job_id = client.infer(texts)
        wait_for(lambda: client.job(job_id).rows_succeeded > 200, what="the first commits")
        replicas = server.replicas()
        assert server.stop().leased
        assert leased_rows(server.place) == {}
        assert not any(replica.is_running() for replica in replicas)
        assert not (server.data_dir / "engine.json").exists()
        server.start()
        client.wait(job_id, timeout=60)
    assert violations(server.evidence(job_id, echo_answers(texts))) == []
