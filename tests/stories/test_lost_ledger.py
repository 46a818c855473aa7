"""
Between the engine and its Postgres: connections that are reset, fall silent, or are cut just behind a COMMIT.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checker import Place, check_ledger, echo_answers, interruption, violations
from checker.ledger import opened
from stories.proxy import FaultProxy
from stories.server import KEY, Server, free_port, wait_for

import milkrun as mr

pytestmark = pytest.mark.engine
ROWS = 1_500
RECOVERY_SECONDS = 15.0
#: statements behind which a transaction's COMMIT is sent, once
TRANSACTIONS = {
    "submit": (b"INSERT INTO jobs", b"COMMIT"),
    "window": (b"INSERT INTO windows", b"COMMIT"),
    "chunk": (b"result_blob=", b"COMMIT"),
    "cancel": (b"rows_total=jobs.rows_read", b"COMMIT"),
}


@pytest.fixture
def place(postgres: Any, tmp_path: Path) -> Iterator[Place]:
    """A new database and a folder for its blobs, as the checker reaches them."""
    url = postgres.database()
    yield Place(tmp_path / "blobs", url)
    postgres.drop(url)


@pytest.fixture
def proxy(postgres: Any) -> Iterator[FaultProxy]:
    """What the engine has for its database."""
    with FaultProxy(*postgres.address) as opened_proxy:
        yield opened_proxy


@pytest.fixture
def serve_behind(postgres: Any, place: Place, proxy: FaultProxy, serve: Callable[..., Server]) -> Callable[..., Server]:
    """Starts an engine whose database is reached through the proxy."""
    url = {"MILKRUN_DATABASE_URL": postgres.at(place.database, proxy.port)}
    return lambda **arguments: serve(shared=place, environ=url, **arguments)


def jobs(place: Place) -> list[dict[str, Any]]:
    """All jobs of the ledger."""
    with opened(place) as ledger:
        return ledger.ask("SELECT id, status FROM jobs")


@pytest.mark.parametrize("fault", [FaultProxy.reset, FaultProxy.black_hole])
def test_an_engine_recovers_from_a_lost_database_by_itself(
    serve_behind: Callable[..., Server], place: Place, proxy: FaultProxy, fault: Callable[[FaultProxy], None]
) -> None:
    """However long it was away: soon after the heal rows are committed again, none twice."""
    server = serve_behind(pace=0.002)
    texts = [f"row {index} of the story" for index in range(ROWS)]
    with server.client() as client:
        job_id = client.infer(texts)
        wait_for(lambda: client.job(job_id).rows_succeeded > 100, what="the first commits")
        fault(proxy)
        held = interruption(place)
        wait_for(lambda: "election_failed" in server.log.read_text(), what="the engine's notice")
        wait_for(lambda: "post_lost" in server.log.read_text(), what="the end of its term")
        server.interruptions.append(held)
        before = _decided(place, job_id)
        proxy.heal()
        wait_for(lambda: _decided(place, job_id) > before, seconds=RECOVERY_SECONDS, what="another commit")
        client.wait(job_id, timeout=60)
    assert violations(server.evidence(job_id, echo_answers(texts))) == []


def _decided(place: Place, job_id: str) -> int:
    with opened(place) as ledger:
        [row] = ledger.ask("SELECT rows_decided FROM jobs WHERE id = ?", job_id)
    return int(row["rows_decided"])


@pytest.mark.parametrize("at", ["submit", "window", "chunk"])
def test_a_cut_behind_a_commit_doubles_and_loses_nothing(
    serve_behind: Callable[..., Server], place: Place, proxy: FaultProxy, at: str
) -> None:
    """The ledger took it and nobody was told: one job, each row counted once, each file there."""
    server = serve_behind()
    texts = [f"row {index}" for index in range(600)]
    proxy.cut_after(*TRANSACTIONS[at])
    with server.client() as client:
        job_id = client.infer(texts)
        assert 600 == client.wait(job_id, timeout=60).rows_succeeded
    assert 1 == proxy.cuts
    assert [(job_id, "succeeded")] == [(job["id"], job["status"]) for job in jobs(place)]
    assert violations(server.evidence(job_id, echo_answers(texts))) == []


def test_a_cut_behind_the_commit_of_a_cancel_still_cancels(
    serve_behind: Callable[..., Server], place: Place, proxy: FaultProxy
) -> None:
    """The caller hears of it, and the rows leave the replica."""
    server = serve_behind(engine_args={"window_rows": 1, "handout_rows": 1})
    with server.client() as client:
        job_id = client.infer(["slow:300 never"])
        wait_for(lambda: client.job(job_id).status is mr.JobStatus.running, what="the start")
        proxy.cut_after(*TRANSACTIONS["cancel"])
        assert mr.JobStatus.cancelled is client.cancel(job_id).status
        assert 1 == proxy.cuts
        after = client.infer(["quick"])
        assert 1 == client.wait(after, timeout=30).rows_succeeded
    assert check_ledger(place) == []


def test_a_stop_does_not_wait_for_a_silent_database(serve_behind: Callable[..., Server], proxy: FaultProxy) -> None:
    """SIGTERM ends the engine and its replicas although it can't say goodbye to the ledger."""
    server = serve_behind(pace=0.01)
    with server.client() as client:
        client.infer([f"row {index}" for index in range(500)])
        wait_for(server.replicas, what="a replica")
    replicas = server.replicas()
    proxy.black_hole()
    server.stop()
    assert not any(replica.is_running() for replica in replicas)
    assert '"engine_stopped"' in server.log.read_text().splitlines()[-1]
    assert not (server.data_dir / "engine.json").exists()


def test_an_engine_without_its_database_says_so(tmp_path: Path) -> None:
    """One line with what to do, no traceback and no password."""
    serve = [sys.executable, "-m", "milkrun_engine", "serve", "--replica", "echo", "--data-dir", str(tmp_path)]
    url = f"postgresql://somebody:secret@127.0.0.1:{free_port()}/none"
    environ = {**os.environ, "MILKRUN_DATABASE_URL": url, "MILKRUN_ADMIN_KEY": KEY}
    done = subprocess.run(serve, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert 1 == done.returncode
    [line] = done.stderr.splitlines()
    assert line.startswith("milkrun serve: the ledger can't be opened: connection ")
    assert line.endswith("(`milkrun doctor` looks at it closely)")
    assert "secret" not in line
