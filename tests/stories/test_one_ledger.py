"""
Engines of one Postgres that do not agree: on where the blobs are, which stops one; on the models, which fails nothing.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checker import Place
from checker.ledger import opened
from stories.server import Server, wait_for

import milkrun as mr

pytestmark = pytest.mark.engine


@pytest.fixture
def place(postgres: Any, tmp_path: Path) -> Iterator[Place]:
    """A new database and a folder for its blobs."""
    url = postgres.database()
    yield Place(tmp_path / "blobs", url)
    postgres.drop(url)


def refusal(folder: Path, place: Place) -> str:
    """What an engine says that does not start."""
    folder.mkdir()
    server = Server(folder, shared=place)
    server.launch()
    assert server._process is not None
    assert 1 == server._process.wait(60), server.tail()
    return " ".join(server.tail().split())


def test_an_engine_with_another_folder_of_blobs_does_not_start(
    serve: Callable[..., Server], place: Place, postgres: Any, tmp_path: Path
) -> None:
    """Neither with an empty folder, nor with another ledger's."""
    serve(shared=place)
    said = refusal(tmp_path / "empty", Place(tmp_path / "elsewhere", place.database))
    assert "lacks the file milkrun-ledger.txt" in said
    assert "MILKRUN_BLOB_DIR" in said
    other = postgres.database()
    said = refusal(tmp_path / "foreign", Place(place.blobs, other))
    assert "are of another ledger" in said
    postgres.drop(other)


def elected(place: Place, before: str | None = None) -> str | None:
    """Who dispatches, once it is another than before."""
    with opened(place) as ledger:
        found = ledger.ask("SELECT holder FROM posts")
    return str(found[0]["holder"]) if found and found[0]["holder"] != before else None


def test_an_engine_whose_models_are_older_fails_no_job(serve: Callable[..., Server], place: Place) -> None:
    """What it does not declare waits for an engine that does, whether its input is read or not."""
    newer = serve(shared=place, models=("echo", "new"))
    first = wait_for(lambda: elected(place), what="an election")
    with newer.client() as client:
        running = client.infer(["a", "slow:300 b", "c"], model="new")
        wait_for(lambda: client.job(running).status is mr.JobStatus.running, what="the start")
    older = serve(shared=place)
    newer.kill()
    second = wait_for(lambda: elected(place, first), what="the older one's election")
    with older.client() as client:
        wait_for(lambda: "a job waits for an engine that declares" in older.tail(), what="a warning")
        assert mr.JobStatus.running is client.job(running).status
        assert "no_capacity" == client.job(running).waiting_reason
        assert 1 == client.wait(client.infer(["a"], model="echo"), timeout=30).rows_succeeded
    newer.start()
    with newer.client() as client:
        unread = client.infer(["d"], model="new")
        wait_for(lambda: "reads another models.yaml" in newer.tail(), what="the newer one's warning")
        assert "it lacks new" in newer.tail()
        client.cancel(running)
        assert mr.JobStatus.preparing is client.job(unread).status
        older.stop()
        wait_for(lambda: elected(place, second), what="the newer one's election")
        assert 1 == client.wait(unread, timeout=60).rows_succeeded
