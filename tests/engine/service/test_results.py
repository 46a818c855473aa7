"""
Results are read in the caller's order, from anywhere, and never more than is settled.
"""

from typing import Any

import pytest
from fix_store import World
from hypothesis import given
from hypothesis import strategies as st

from milkrun.wire import JobSpec
from milkrun_engine.domain.errors import BlobCorrupt

ROWS = 60


def a_mixed_row(number: int) -> Any:
    """Rows of two models and refused ones, interleaved."""
    match number % 5:
        case 0:
            return {"prompt": f"row {number}", "model": "other"}
        case 3:
            return number
        case _:
            return f"row {number}"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, str]:
    """A finished job whose chunks interleave."""
    world = World.open(tmp_path_factory.mktemp("mixed"))
    job_id = world.prepared([a_mixed_row(number) for number in range(ROWS)])
    world.run()
    world.run("other")
    yield world, job_id
    world.close()


def indices(rows: list[dict[str, Any]]) -> list[int]:
    return [row["index"] for row in rows]


def test_interleaved_chunks_are_read_in_row_order(mixed: tuple[World, str]) -> None:
    world, job_id = mixed
    rows = world.results(job_id)
    assert indices(rows) == list(range(ROWS))
    assert {row["index"] for row in rows if row["status"] == "failed"} == set(range(3, ROWS, 5))
    readable = world.reader.readable(world.tenant, job_id)
    assert sum(table.num_rows for table in world.reader.tables(readable)) == ROWS


@given(after=st.integers(-1, ROWS + 3))
def test_reading_on_from_anywhere_gives_the_rest(mixed: tuple[World, str], after: int) -> None:
    world, job_id = mixed
    assert world.results(job_id, after) == world.results(job_id)[after + 1 :]


def test_the_settled_prefix_ends_at_the_first_undecided_row(world: World) -> None:
    """Chunks are committed in any order: what is read only grows, and is the beginning of the end's result."""
    job_id = world.prepared([a_mixed_row(number) for number in range(ROWS)])
    leases = [*world.claim(64, pool="other"), *world.claim(64)]
    read: list[dict[str, Any]] = []
    lengths = []
    for lease in leases[::2] + leases[1::2]:
        world.finish(lease)
        now = world.results(job_id)
        assert now[: len(read)] == read
        assert indices(now) == list(range(len(now)))
        read = now
        lengths.append(len(now))
    assert lengths[-1] == ROWS
    assert any(0 < length < ROWS for length in lengths)


def test_nothing_is_settled_behind_an_undecided_first_row(world: World) -> None:
    job_id = world.prepared(24)
    _, second, third = world.claim(3)
    world.finish(second)
    world.finish(third)
    readable = world.reader.readable(world.tenant, job_id)
    assert (readable.settled, readable.complete) == (0, False)
    assert world.results(job_id) == []


def test_a_cancelled_job_reads_to_its_end(world: World) -> None:
    job_id = world.prepared([a_mixed_row(number) for number in range(ROWS)])
    done = world.claim(3)[1]
    world.finish(done)
    world.store.jobs.cancel(world.tenant, job_id, None)
    rows = world.results(job_id)
    assert indices(rows) == list(range(ROWS))
    codes = {row["index"]: row["error_code"] for row in rows}
    assert {codes[index] for index in range(3, ROWS, 5)} == {"invalid_row"}, "refused rows were decided before"
    assert sum(code is None for code in codes.values()) == done.rows
    assert sum(code == "cancelled" for code in codes.values()) == ROWS - ROWS // 5 - done.rows
    for after in range(-1, ROWS):
        assert world.results(job_id, after) == rows[after + 1 :]


def test_several_windows_are_read_on_end(world: World) -> None:
    job_id = world.prepared(1_500)
    world.run()
    assert indices(world.results(job_id)) == list(range(1_500))
    for after in (0, 254, 255, 256, 1_278, 1_279, 1_280, 1_498):
        assert indices(world.results(job_id, after)) == list(range(after + 1, 1_500))


def test_keys_stand_beside_their_rows(world: World) -> None:
    rows = [{"id": key, "text": "x"} for key in ["b", "a", "a", None, 3]]
    job_id = world.prepared(rows, spec=JobSpec(prompt="{text}", key_column="id"))
    world.run()
    assert [row["key"] for row in world.results(job_id)] == ["b", "a", "a", None, "3"]


def test_a_changed_result_file_is_told_not_read(world: World) -> None:
    job_id = world.prepared(8)
    world.run()
    [file] = world.store.chunks.files(job_id, 0)
    world.blobs.path(file.result_blob).write_bytes(b"wrong")
    with pytest.raises(BlobCorrupt):
        world.results(job_id)
