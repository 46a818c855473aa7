"""
A cancel by label stops every live job of its tenant that carries all of the labels, and no other.
"""

from fix_store import World

from milkrun.status import FeedEvents, JobStatus


def stop(world: World, *, after: str = "", limit: int = 100, **labels: str) -> list[str]:
    return [job.id for job in world.store.jobs.cancel_labelled(world.tenant, labels, after=after, limit=limit)]


def test_only_live_jobs_with_all_the_labels_are_stopped(world: World) -> None:
    ended = world.prepared(8, labels={"run": "1", "team": "a"})
    world.run()
    others = [world.submit(8, labels=labels).job.id for labels in ({"run": "1"}, {"run": "2", "team": "a"}, {})]
    meant = sorted(world.submit(8, labels={"run": "1", "team": "a", "more": "x"}).job.id for _ in range(3))
    assert meant == stop(world, run="1", team="a")
    assert JobStatus.succeeded is world.job(ended).status
    assert {JobStatus.preparing} == {world.job(job_id).status for job_id in others}
    assert {JobStatus.cancelled} == {world.job(job_id).status for job_id in meant}
    assert stop(world, run="1", team="a") == []


def test_no_other_tenants_job_is_stopped(world: World) -> None:
    world.store.tenants.ensure("other")
    theirs = world.store.jobs.submit(world.a_job(8, tenant_id="other", labels={"run": "1"})).job.id
    assert stop(world, run="1") == []
    assert JobStatus.preparing is world.store.jobs.get("other", theirs).status


def test_batches_go_on_behind_an_id(world: World) -> None:
    job_ids = sorted(world.submit(8, labels={"run": "1"}).job.id for _ in range(5))
    first = stop(world, run="1", limit=2)
    second = stop(world, run="1", limit=2, after=first[-1])
    assert job_ids == first + second + stop(world, run="1", limit=2, after=second[-1])


def test_each_is_fenced_and_told_like_a_cancel(world: World) -> None:
    job_ids = sorted(world.prepared(8, labels={"run": "1"}) for _ in range(3))
    leases = world.claim(3)
    cursor = world.store.feed.cursor(world.tenant)
    assert job_ids == stop(world, run="1")
    assert [] == [lease for lease in leases if world.finish(lease).accepted]
    told = world.store.feed.changes(world.tenant, cursor, FeedEvents.end, {}, 10).jobs
    assert job_ids == [job.id for job in told]
