"""
Time is the ledger's alone: a caller's clock changes nothing.
"""

import datetime as dt
import time

import pytest
from fix_store import World

from milkrun_engine.domain.leases import LEASE_SECONDS


@pytest.fixture(params=[-36 * 3_600.0, 36 * 3_600.0], ids=["behind", "ahead"])
def skewed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """This process's clock is wrong by a day and a half."""
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + request.param)
    monkeypatch.setattr(time, "monotonic", lambda: true_time() + request.param)

    class Skewed(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "Skewed":
            return cls.fromtimestamp(time.time(), tz)

    monkeypatch.setattr(dt, "datetime", Skewed)
    return request.param


def test_a_skewed_caller_keeps_its_lease(world: World, skewed: float) -> None:
    world.prepared(8)
    [lease] = world.claim()
    assert not world.store.chunks.expired()
    assert world.store.chunks.rescue() == 0
    world.advance(LEASE_SECONDS - 1)
    assert {lease.chunk_id} == world.store.chunks.renew("one", {(lease.chunk_id, lease.epoch): 0})
    world.advance(LEASE_SECONDS - 1)
    assert world.store.chunks.rescue() == 0
    assert world.finish(lease).accepted


def test_a_skewed_caller_does_not_hold_a_lease_too_long(world: World, skewed: float) -> None:
    world.prepared(8)
    world.claim()
    world.advance(LEASE_SECONDS + 1)
    assert world.store.chunks.expired()
    assert world.store.chunks.rescue() == 1


def test_a_skewed_caller_writes_no_wrong_times(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    true_now = time.time()
    first = world.prepared(8)
    with monkeypatch.context() as skew:
        skew.setattr(time, "time", lambda: 0.0)
        second = world.prepared(8)
        world.run()
    jobs = world.job(first), world.job(second)
    assert jobs[0].created_at <= jobs[1].created_at
    for job in jobs:
        for instant in (job.created_at, job.started_at, job.finished_at):
            assert abs(instant - true_now) < 60


def test_two_ledger_clocks_agree_on_one_ledger(world: World) -> None:
    """`clock_offset_seconds` moves the clock of whoever opens the ledger with it."""
    world.prepared(8)
    world.claim()
    later = world.another_store(LEASE_SECONDS + 1)
    assert not world.store.chunks.expired()
    assert later.chunks.expired()
    assert later.chunks.rescue() == 1
    later.close()


def test_a_jump_of_the_clock_takes_no_lease_from_who_works_on(world: World) -> None:
    """A dispatcher rescues what nobody holds any more, never what it holds itself."""
    world.prepared(24)
    [mine], [lost] = world.claim(), world.claim()
    world.advance(3_600)
    assert world.store.chunks.expired([mine.chunk_id])
    assert 1 == world.store.chunks.rescue([mine.chunk_id])
    assert not world.store.chunks.expired([mine.chunk_id])
    assert {mine.chunk_id} == world.store.chunks.renew("one", {(mine.chunk_id, mine.epoch): 0})
    assert world.finish(mine).accepted
    assert not world.finish(lost).accepted
