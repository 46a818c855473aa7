"""
A sooner priority overtakes; a later one never starves.
"""

from fix_store import World

from milkrun_engine.domain.priorities import AGEING_SECONDS


def order(world: World, **options: float) -> list[str]:
    """The jobs in the order in which their chunks are claimed, one chunk a job."""
    return [lease.job_id for lease in world.claim(64, **options)]


def test_a_smaller_priority_is_sooner(world: World) -> None:
    jobs = {priority: world.prepared(4, priority=priority) for priority in (5, 0, 10, 1)}
    assert [jobs[priority] for priority in (0, 1, 5, 10)] == order(world)


def test_equals_are_served_in_their_order(world: World) -> None:
    jobs = [world.prepared(4) for _ in range(4)]
    assert jobs == order(world)


def test_an_urgent_job_overtakes_the_rest_of_a_large_one(world: World) -> None:
    large = world.prepared(250)
    world.claim(2)
    urgent = world.prepared(8, priority=0)
    assert [urgent, large] == order(world)[:2]


def test_a_job_that_waited_long_enough_goes_first(world: World) -> None:
    """An hour a step: behind whatever sooner work came in an hour after it, nobody waits."""
    patient = world.prepared(4, priority=2)
    world.advance(2 * AGEING_SECONDS - 60)
    overtakes = world.prepared(4, priority=0)
    world.advance(120)
    too_late = world.prepared(4, priority=0)
    assert [overtakes, patient, too_late] == order(world)


def test_chunks_of_a_job_are_served_from_its_beginning(world: World) -> None:
    world.prepared(64)
    assert list(range(8)) == [lease.number for lease in world.claim(64)]


def test_before_rank_takes_only_what_is_sooner(world: World) -> None:
    first, second = world.prepared(4), world.prepared(4)
    [lease] = world.claim(1)
    world.take_over()
    assert order(world, before_rank=lease.rank) == []
    assert [first] == order(world, before_rank=lease.rank + 1e-6)
    urgent = world.prepared(4, priority=0)
    assert [urgent] == order(world, before_rank=lease.rank)
    assert [second] == order(world)


def test_pools_do_not_mix(world: World) -> None:
    mine, theirs = world.prepared(4), world.prepared(4, model="other")
    assert [theirs] == [lease.job_id for lease in world.claim(64, pool="other")]
    assert [mine] == order(world)


def test_busy_pools_are_those_with_undecided_chunks(world: World) -> None:
    assert set() == world.store.chunks.busy_pools()
    world.prepared(24)
    world.prepared(8, model="other")
    assert world.store.chunks.busy_pools() == {"echo", "other"}
    [lease] = world.claim(64, pool="other")
    assert world.store.chunks.busy_pools() == {"echo", "other"}
    world.finish(lease)
    assert world.store.chunks.busy_pools() == {"echo"}


def test_inputs_are_read_in_turns_the_fewest_windows_first(world: World) -> None:
    large = world.submit(2_000).job.id
    world.prepare_window()
    small = world.submit(10).job.id
    assert small == world.store.jobs.next_to_prepare().job_id
    world.prepare_window()
    assert large == world.store.jobs.next_to_prepare().job_id
    urgent = [world.submit(10, priority=priority).job.id for priority in (3, 0)]
    assert urgent[1] == world.store.jobs.next_to_prepare().job_id
