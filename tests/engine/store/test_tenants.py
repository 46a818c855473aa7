"""
A tenant sees its own jobs, files and changes, and never another's, by any verb.
"""

from collections.abc import Callable

import pytest
from fix_store import World

from milkrun.status import FeedEvents, InputFormat, JobStatus, OnMismatch
from milkrun_engine.domain.errors import EngineError, InvalidRequest, NotFound
from milkrun_engine.domain.jobs import JobFilter
from milkrun_engine.store.input_files import InputFileRecord
from milkrun_engine.store.tenants import new_key

MINE, OTHER = "default", "other"
KEY = "shared/key"


@pytest.fixture
def job_id(world: World) -> str:
    """A job of the first tenant, with a key and labels."""
    world.store.tenants.ensure(OTHER)
    return world.prepared(8, idempotency_key=KEY, labels={"team": "a"})


def raised(verb: Callable[[], object]) -> tuple[type, str]:
    with pytest.raises(EngineError) as caught:
        verb()
    return type(caught.value), str(caught.value)


def test_anothers_job_is_like_one_that_never_was(world: World, job_id: str) -> None:
    jobs, chunks = world.store.jobs, world.store.chunks
    for verb in (
        lambda name: jobs.get(OTHER, name),
        lambda name: jobs.cancel(OTHER, name, None),
        lambda name: jobs.cancel(OTHER, name, 1),
        lambda name: jobs.page(OTHER, limit=10, before=name),
        lambda name: chunks.readable(OTHER, name),
    ):
        kind, message = raised(lambda verb=verb: verb(job_id))
        assert NotFound is kind
        assert message == raised(lambda verb=verb: verb("job_never"))[1].replace("job_never", job_id)
    assert JobStatus.queued is world.job(job_id).status


def test_lists_and_feeds_hold_only_ones_own(world: World, job_id: str) -> None:
    store = world.store
    assert store.jobs.by_ids(OTHER, [job_id]) == []
    assert store.jobs.page(OTHER, limit=10) == []
    assert store.jobs.page(OTHER, limit=10, wanted=JobFilter(labels={"team": "a"})) == []
    feed = store.feed.cursor(OTHER).rpartition(".")[0]
    assert store.feed.changes(OTHER, f"{feed}.0", FeedEvents.progress, {}, 10).jobs == []
    assert [job_id] == [job.id for job in store.jobs.page(MINE, limit=10, wanted=JobFilter(labels={"team": "a"}))]


def test_ones_change_does_not_move_the_others_feed(world: World, job_id: str) -> None:
    before = world.store.feed.cursor(OTHER)
    world.run()
    world.store.feed.publish_progress([job_id])
    assert before == world.store.feed.cursor(OTHER)


def test_the_same_key_is_two_jobs_in_two_tenants(world: World, job_id: str) -> None:
    with pytest.raises(NotFound):
        world.store.jobs.attach(OTHER, KEY, None)
    theirs = world.submit(9, idempotency_key=KEY, on_mismatch=OnMismatch.replace, tenant_id=OTHER)
    assert (theirs.replaced, theirs.job.retry_of) == (None, None)
    assert job_id == world.store.jobs.attach(MINE, KEY, None).job.id


def test_anothers_upload_is_like_one_that_never_was(world: World) -> None:
    world.store.tenants.ensure(OTHER)
    record = InputFileRecord(
        id="file_1", tenant_id=MINE, format=InputFormat.jsonl, bytes=1, sha256="0", blob="inputs/1"
    )  # fmt: skip
    world.store.input_files.add(record)
    assert record == world.store.input_files.get(MINE, "file_1")
    kind, message = raised(lambda: world.store.input_files.get(OTHER, "file_1"))
    assert InvalidRequest is kind
    assert message == raised(lambda: world.store.input_files.get(OTHER, "file_2"))[1].replace("file_2", "file_1")


def test_a_key_opens_its_tenant_until_it_is_revoked(world: World) -> None:
    world.store.tenants.ensure(OTHER)
    key = new_key()
    world.store.tenants.add_key(key, "theirs", OTHER)
    world.store.tenants.add_key(key, "again", MINE)
    assert world.store.tenants.of_key(key) == OTHER, "a key belongs to who had it first"
    assert None is world.store.tenants.of_key(key + "x")
    with world.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE api_keys SET revoked_at = 1")
    assert None is world.store.tenants.of_key(key)


def test_a_former_key_of_a_name_may_come_back(world: World) -> None:
    first, second = new_key(), new_key()
    for key, shut in ((first, second), (second, first), (first, second)):
        world.store.tenants.add_key(key, "admin")
        assert (MINE, None) == (world.store.tenants.of_key(key), world.store.tenants.of_key(shut))


def test_keys_are_stored_hashed(world: World) -> None:
    key = new_key()
    world.store.tenants.add_key(key, "mine")
    world.close()
    held = b"".join(path.read_bytes() for path in world.folder.glob("milkrun.db*"))
    assert key.encode() not in held
