"""
What a retry takes over is read in a stream: never more than a chunk's worth at once.
"""

from unittest.mock import patch

from fix_store import World

from milkrun_engine.dispatch import copies


def test_the_first_rows_are_there_before_the_last_are_read(world: World) -> None:
    job_id = world.prepared([f"row {number}" for number in range(256)])
    world.run()
    files = world.store.chunks.files(job_id, 0)
    read: list[str] = []

    def noted(name: str, sha256: str) -> bytes:
        read.append(name)
        return type(world.blobs).read(world.blobs, name, sha256)

    with patch.object(copies, "CHUNK_ROWS_MAX", 32), patch.object(world.blobs, "read", noted):
        tables = copies.answered(world.store, world.blobs, job_id, 0, 256)
        first = next(tables)
        assert (2, 16) == (len(read), len(files)), "two files of sixteen rows make the first table"
        assert list(range(256)) == [
            index for table in (first, *tables) for index in table.column("index").to_pylist()
        ]  # fmt: skip


def test_large_answers_are_not_gathered(world: World) -> None:
    job_id = world.prepared([f"row {number}" for number in range(64)])
    world.run()
    with patch.object(copies, "_BYTES", 1):
        tables = list(copies.answered(world.store, world.blobs, job_id, 0, 64))
    assert len(world.store.chunks.files(job_id, 0)) == len(tables)


def test_only_the_rows_asked_for_are_read(world: World) -> None:
    job_id = world.prepared([f"row {number}" for number in range(64)])
    world.run()
    tables = copies.answered(world.store, world.blobs, job_id, 10, 21)
    assert list(range(10, 21)) == [index for table in tables for index in table.column("index").to_pylist()]
    assert [] == list(copies.answered(world.store, world.blobs, "job_that_was_deleted", 0, 64))
