"""
The change feed tells each changed job once, in its latest state, and its cursor always goes on.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fix_store import World

from milkrun.status import TERMINAL, FeedEvents, JobStatus, OnMismatch
from milkrun_engine.domain.errors import CursorLost
from milkrun_engine.store.feed import ChangePage


def read(world: World, after: str, on: FeedEvents = FeedEvents.status, limit: int = 100, **labels: str) -> ChangePage:
    return world.store.feed.changes(world.tenant, after, on, labels, limit)


def number(cursor: str) -> int:
    return int(cursor.rpartition(".")[2])


def read_all(world: World, after: str, on: FeedEvents, limit: int) -> list[str]:
    found, more = [], True
    while more:
        page = read(world, after, on, limit)
        assert len(page.jobs) <= limit
        found += [job.id for job in page.jobs]
        after, more = page.cursor, page.more
    return found


def test_a_job_is_told_once_in_its_latest_state(world: World) -> None:
    start = world.store.feed.cursor(world.tenant)
    first, second = world.prepared(8), world.prepared(8)
    world.run()
    page = read(world, start)
    assert {first, second} == {job.id for job in page.jobs}
    assert len(page.jobs) == 2
    assert {JobStatus.succeeded} == {job.status for job in page.jobs}
    assert page.cursor == world.store.feed.cursor(world.tenant)
    assert read(world, page.cursor).jobs == []


def test_every_change_of_status_is_told_to_a_reader_who_keeps_up(world: World) -> None:
    cursor, seen = world.store.feed.cursor(world.tenant), []

    def step(_done: object) -> None:
        nonlocal cursor
        page = read(world, cursor)
        assert number(page.cursor) >= number(cursor)
        seen.extend(job.status for job in page.jobs)
        cursor = page.cursor

    step(world.submit(8))
    step(world.prepare())
    leases = world.claim()
    step(leases)
    step(world.finish(leases[0]))
    assert [JobStatus.preparing, JobStatus.queued, JobStatus.running, JobStatus.succeeded] == seen


def test_an_empty_answer_has_the_advanced_cursor(world: World) -> None:
    start = world.store.feed.cursor(world.tenant)
    world.submit(8)
    page = read(world, start, FeedEvents.end)
    assert page.jobs == []
    assert number(page.cursor) > number(start)


def test_submit_tells_the_cursor_before_its_own_change(world: World) -> None:
    submitted = world.submit(8)
    assert [submitted.job.id] == [job.id for job in read(world, submitted.cursor).jobs]


def test_end_tells_only_ends(world: World) -> None:
    start = world.store.feed.cursor(world.tenant)
    done, waiting = world.prepared(8), world.submit(8).job.id
    cancelled = world.submit(8).job.id
    world.run()
    world.store.jobs.cancel(world.tenant, cancelled, None)
    page = read(world, start, FeedEvents.end)
    assert {done, cancelled} == {job.id for job in page.jobs}
    assert all(job.status in TERMINAL for job in page.jobs)
    assert waiting in {job.id for job in read(world, start).jobs}


def test_progress_is_told_to_those_who_ask_for_it(world: World) -> None:
    job_id = world.prepared(24)
    first, *_ = world.claim(3)
    cursor = world.store.feed.cursor(world.tenant)
    world.finish(first)
    assert read(world, cursor, FeedEvents.progress).jobs == [], "a commit alone is not published"
    assert [world.tenant] == world.store.feed.publish_progress([job_id])
    [job] = read(world, cursor, FeedEvents.progress).jobs
    assert (job_id, 8) == (job.id, job.rows_decided)
    assert read(world, cursor, FeedEvents.status).jobs == []


@pytest.mark.parametrize("on", list(FeedEvents))
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_of_any_size_miss_nothing(world: World, on: FeedEvents, limit: int) -> None:
    """Jobs whose changes were numbered by one transaction too: progress is published for many at once."""
    start = world.store.feed.cursor(world.tenant)
    ended = [world.prepared(0) for _ in range(4)]
    world.submit(2, idempotency_key="k")
    replaced = world.submit(3, idempotency_key="k", on_mismatch=OnMismatch.replace)
    ended.append(replaced.cancelled)
    running = [world.prepared(8) for _ in range(4)]
    world.store.feed.publish_progress(running)
    expected = ended if on is FeedEvents.end else [*ended, *running, replaced.job.id]
    found = read_all(world, start, on, limit)
    assert sorted(expected) == sorted(set(found))
    assert len(set(found)) == len(found)


def test_labels_choose_jobs(world: World) -> None:
    start = world.store.feed.cursor(world.tenant)
    both = world.submit(1, labels={"team": "a", "run": "1"}).job.id
    other = world.submit(1, labels={"team": "a", "run": "2"}).job.id
    world.submit(1)
    assert [both, other] == [job.id for job in read(world, start, team="a").jobs]
    assert [both] == [job.id for job in read(world, start, team="a", run="1").jobs]
    page = read(world, start, team="b")
    assert ([], world.store.feed.cursor(world.tenant)) == (page.jobs, page.cursor)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "nonsense",
        "feed_other.0",
        "{feed}.",
        "{feed}.-1",
        "{feed}.1e3",
        "{feed}.٣",
        "{feed}.999",
        "{feed}.1.1",
        "{feed}." + "1" * 5_000,
    ],  # longer than Python lets a number be
)
def test_a_cursor_that_the_feed_never_gave_is_lost(world: World, bad: str) -> None:
    world.submit(1)
    feed = world.store.feed.cursor(world.tenant).rpartition(".")[0]
    with pytest.raises(CursorLost):
        read(world, bad.format(feed=feed))


def test_a_forgotten_cursor_is_lost(world: World) -> None:
    old = world.store.feed.cursor(world.tenant)
    world.submit(1)
    new = world.store.feed.cursor(world.tenant)
    with world.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE tenants SET change_floor = change_number")
    with pytest.raises(CursorLost):
        read(world, old)
    assert read(world, new).jobs == []


def test_a_cursor_of_another_tenant_is_lost(world: World) -> None:
    world.store.tenants.ensure("other")
    with pytest.raises(CursorLost):
        read(world, world.store.feed.cursor("other"))


def test_a_reader_beside_many_writers_misses_no_job(world: World) -> None:
    """Numbers become visible in their order: whoever reads on from a cursor has seen all before it."""
    news = [world.a_job(1) for _ in range(40)]
    cursor = world.store.feed.cursor(world.tenant)
    with ThreadPoolExecutor(4) as threads:
        submits = [threads.submit(world.store.jobs.submit, new) for new in news]
        seen: list[str] = []
        while len(seen) < len(news):
            page = read(world, cursor, limit=7)
            assert number(page.cursor) >= number(cursor)
            seen += [job.id for job in page.jobs]
            cursor = page.cursor
            if not page.jobs and all(submit.done() for submit in submits):
                break
        seen += [job.id for job in read(world, cursor).jobs]
    assert sorted(submit.result().job.id for submit in submits) == sorted(seen)
