"""
A database that goes away: no statement waits for ever, and a commit that may have happened says so.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_store import World
from sqlalchemy.exc import OperationalError
from stories.proxy import FaultProxy
from stories.server import wait_for

from milkrun_engine.domain.errors import OutcomeUnknown
from milkrun_engine.store import Store, postgres


@pytest.fixture
def proxy(postgres: Any) -> Iterator[FaultProxy]:
    """In front of the database server."""
    with FaultProxy(*postgres.address) as opened:
        yield opened


@pytest.fixture
def world(postgres: Any, proxy: FaultProxy, tmp_path: Path) -> Iterator[World]:
    """A ledger that is reached by way of the proxy."""
    url = postgres.database()
    opened = World.open(tmp_path, postgres.at(url, proxy.port))
    yield opened
    proxy.heal()
    opened.close()
    postgres.drop(url)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger's answers are waited for less long."""
    monkeypatch.setattr(postgres, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(postgres, "_CONNECT_SECONDS", 2)  # the least that libpq knows


def test_a_cut_commit_is_of_unknown_outcome_and_happened(world: World, proxy: FaultProxy) -> None:
    """Asked again, the ledger knows the submission."""
    job = world.a_job(4, submission_id="sub_1")
    proxy.cut_after(b"INSERT INTO jobs", b"COMMIT")
    with pytest.raises(OutcomeUnknown):
        world.store.jobs.submit(job)
    wait_for(lambda: world.store.jobs.unfinished() == 1, what="the commit")
    again = world.store.jobs.submit(job)
    assert (True, 1, 1) == (again.reused, world.store.jobs.unfinished(), proxy.cuts)


def test_what_is_cut_before_its_commit_did_not_happen(world: World, proxy: FaultProxy) -> None:
    """And is an error of its own kind, so that what was written for it may go."""
    proxy.cut_after(b"INSERT INTO jobs")
    with pytest.raises(OperationalError):
        world.submit(4)
    assert 0 == world.store.jobs.unfinished()


@pytest.mark.usefixtures("impatient")
def test_a_silent_database_is_given_up_and_found_again(world: World, proxy: FaultProxy) -> None:
    """Each statement ends by its deadline, and one failure is enough to distrust all connections of before."""
    world.submit(4)
    with pytest.raises(OperationalError, match="did not answer"):
        _fall_silent(world, proxy, behind="SELECT 1", then="SELECT 2")
    with pytest.raises(OperationalError, match="timeout"):
        world.store.jobs.unfinished()
    proxy.heal()
    assert 1 == world.store.jobs.unfinished()


@pytest.mark.usefixtures("impatient")
def test_a_commit_into_silence_is_of_unknown_outcome(world: World, proxy: FaultProxy) -> None:
    """The statements were answered and the commit was not."""
    with pytest.raises(OutcomeUnknown):
        _fall_silent(world, proxy, behind="SELECT 1")


def _fall_silent(world: World, proxy: FaultProxy, *, behind: str, then: str | None = None) -> None:
    """The database is gone from some place in a transaction on."""
    with world.store.database.write() as connection:
        connection.exec_driver_sql(behind)
        proxy.black_hole()
        if then is not None:
            connection.exec_driver_sql(then)


@pytest.mark.usefixtures("impatient")
def test_a_listener_notices_silence(world: World, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection over which nothing comes is not the same as one on which there is nothing to say."""
    monkeypatch.setattr(postgres, "_PROBE_SECONDS", 0.1)
    heard: list[str] = []
    failed = threading.Event()
    stopped = threading.Event()

    def listen() -> None:
        try:
            heard.extend(world.store.database.listen(stopped))
        except Exception:
            failed.set()

    thread = threading.Thread(target=listen)
    thread.start()
    wait_for(lambda: proxy.connections >= 2, what="its connection")
    proxy.black_hole()
    assert failed.wait(30)
    thread.join()


def test_an_abandoned_transaction_frees_its_locks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ends what its process left open, so that others go on."""
    monkeypatch.setattr(postgres, "_IDLE_SECONDS", 1)
    left, other = Store(world.place), Store(world.place)
    held, free = left.database.writer.connect(), other.database.writer.connect()
    held.exec_driver_sql("SELECT 1 FROM tenants FOR UPDATE")
    free.exec_driver_sql("SELECT 1 FROM tenants FOR UPDATE")
    held.invalidate()
    for connection in (held, free):
        connection.close()
    for store in (left, other):
        store.close()
