"""
A dispatcher that lost its lease changes nothing any more; the chunk runs again elsewhere.
"""

from fix_store import World

from milkrun.status import JobStatus
from milkrun_engine.domain.leases import LEASE_SECONDS, Suspicion
from milkrun_engine.store.posts import DISPATCHER


def test_a_lease_in_time_is_not_rescued(world: World) -> None:
    world.prepared(8)
    [lease] = world.claim()
    world.advance(LEASE_SECONDS - 1)
    assert not world.store.chunks.expired()
    assert world.store.chunks.rescue() == 0
    assert world.finish(lease).accepted


def test_a_chunk_has_one_lease_at_a_time(world: World) -> None:
    world.prepared(24)
    first, second = world.claim(16, owner="one"), world.claim(16, owner="two")
    assert (len(first), len(second)) == (3, 0)


def test_an_expired_lease_goes_to_another_with_a_new_epoch(world: World) -> None:
    world.prepared(8)
    [old] = world.claim(owner="one")
    world.advance(LEASE_SECONDS + 1)
    assert world.store.chunks.expired()
    assert world.store.chunks.rescue() == 1
    [new] = world.claim(owner="two")
    assert old.chunk_id == new.chunk_id
    assert (old.epoch + 1, old.attempts + 1) == (new.epoch, new.attempts)


def test_a_renewed_lease_lives_on(world: World) -> None:
    world.prepared(8)
    [lease] = world.claim(owner="one")
    for _ in range(5):
        world.advance(LEASE_SECONDS - 1)
        assert {lease.chunk_id} == world.store.chunks.renew("one", {(lease.chunk_id, lease.epoch): 2})
        assert world.store.chunks.rescue() == 0
    assert world.job(lease.job_id).rows_in_hand == 2


def test_a_lost_lease_is_not_renewed(world: World) -> None:
    world.prepared(8)
    [old] = world.claim(owner="one")
    world.expire_leases()
    assert set() == world.store.chunks.renew("one", {(old.chunk_id, old.epoch): 1})
    [new] = world.claim(owner="two")
    assert set() == world.store.chunks.renew("one", {(old.chunk_id, old.epoch): 1})
    assert set() == world.store.chunks.renew("one", {(new.chunk_id, new.epoch): 1}), "only its owner renews"
    assert world.job(new.job_id).rows_in_hand == 0


def test_a_lost_lease_names_no_suspects(world: World) -> None:
    world.prepared(8)
    [old] = world.claim(owner="one")
    assert world.store.chunks.suspect(old, {3: Suspicion(deaths=1)})
    world.expire_leases()
    assert not world.store.chunks.suspect(old, {4: Suspicion(deaths=1)})
    [new] = world.claim(owner="two")
    assert {3: Suspicion(deaths=1)} == new.suspects, "what was written in time stays on the chunk"
    assert not world.store.chunks.suspect(old, {4: Suspicion(deaths=1)})


def test_a_server_death_makes_no_suspects(world: World) -> None:
    world.prepared(8)
    world.claim()
    world.reopen()
    [lease] = world.claim()
    assert (lease.suspects, lease.attempts) == ({}, 2), "the attempt was counted by the claim, not by its end"


def test_an_owner_gives_back_only_its_own(world: World) -> None:
    world.prepared(24)
    [mine], [theirs] = world.claim(owner="one"), world.claim(owner="two")
    assert world.store.chunks.release("one") == 1
    assert not world.finish(mine).accepted
    assert world.finish(theirs).accepted


def test_only_the_dispatcher_of_this_term_takes_over(world: World) -> None:
    """One that lost its post while it started frees none of its successor's leases."""
    world.prepared(8)
    posts, chunks = world.store.posts, world.store.chunks
    lost = posts.take(DISPATCHER, "one", LEASE_SECONDS, {})
    world.advance(LEASE_SECONDS + 1)
    now = posts.take(DISPATCHER, "two", LEASE_SECONDS, {})
    [lease] = world.claim(owner="two")
    assert not chunks.take_over("one", lost.term)
    assert not chunks.take_over("one", now.term)
    assert {lease.chunk_id} == chunks.renew("two", {(lease.chunk_id, lease.epoch): 0})
    assert chunks.take_over("two", now.term)
    assert set() == chunks.renew("two", {(lease.chunk_id, lease.epoch): 0})


def test_a_dropped_chunk_is_not_claimed(world: World) -> None:
    job_id = world.prepared(24)
    world.store.jobs.cancel(world.tenant, job_id, None)
    assert world.claim(16) == []
    assert JobStatus.cancelled is world.job(job_id).status
