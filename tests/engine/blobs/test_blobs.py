"""
Blobs are whole or not there, and a chunk's rows come back as they went.
"""

import contextlib
import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milkrun.status import RowErrorCode, RowStatus
from milkrun_engine.blobs import chunk_files
from milkrun_engine.blobs.chunk_files import InputRow, ResultRow
from milkrun_engine.blobs.files import FileSystem
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.domain.errors import BlobCorrupt, DiskFull
from milkrun_engine.domain.rows import CHAT, PreparedRow

keys = st.none() | st.text(st.characters(codec="utf-8"), max_size=8)
results = st.builds(
    ResultRow, index=st.integers(0, 2**40), key=keys, status=st.sampled_from(RowStatus),
    error_code=st.none() | st.sampled_from(RowErrorCode), error_message=keys, output=st.none() | st.binary(max_size=9),
    finish_reason=keys, prompt_tokens=st.integers(0, 9), cached_tokens=st.integers(0, 9),
    completion_tokens=st.integers(0, 9), attempts=st.integers(0, 9),
)  # fmt: skip


@given(rows=st.lists(st.tuples(st.integers(0, 2**40), keys, st.binary(max_size=20)), max_size=20))
def test_asked_rows_come_back_in_their_slots(rows: list[tuple[int, str | None, bytes]]) -> None:
    prepared = [PreparedRow(index, key, "echo", CHAT, body, 1) for index, key, body in rows]
    expected = [InputRow(index, key, CHAT, body) for index, key, body in rows]
    assert chunk_files.read_input(chunk_files.write_input(prepared)) == expected


@given(rows=st.lists(results, max_size=20, unique_by=lambda row: row.index))
def test_outcomes_come_back_sorted_and_counted(rows: list[ResultRow]) -> None:
    table = chunk_files.read_result(chunk_files.write_result(rows))
    assert [ResultRow(**row) for row in table.to_pylist()] == sorted(rows, key=lambda row: row.index)
    counts = chunk_files.count(rows)
    assert counts.rows == len(rows)
    assert sum(counts.errors.values()) == counts.rows_failed
    assert counts.completion_tokens == sum(row.completion_tokens for row in rows)


def test_rows_hide_their_payload() -> None:
    secret = b"a prompt that nobody may log"
    for row in (
        InputRow(1, "k", CHAT, secret),
        PreparedRow(1, "k", "echo", CHAT, secret, 1),
        ResultRow(1, "k", RowStatus.succeeded, None, None, secret, "stop", 1, 0, 1, 1),
    ):
        assert "prompt that" not in repr(row)


class FullDisk(FileSystem):
    """Refuses one of its calls."""

    def __init__(self, refused: str, number: int) -> None:
        def refuse(*_: object) -> None:
            raise OSError(number, "refused")

        self.armed = lambda: setattr(self, refused, refuse)


@pytest.mark.parametrize("call", ["create", "sync", "rename", "sync_folder"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_leaves_nothing(tmp_path: Path, call: str, number: int) -> None:
    """Wherever it refuses: what nobody will name must not keep it full."""
    files = FullDisk(call, number)
    blobs = LocalBlobs(tmp_path, files)
    (tmp_path / "a").mkdir()
    files.armed()
    with pytest.raises(DiskFull, match="does not take a file"):
        blobs.put("a/b", b"data")
    assert [] == list((tmp_path / "a").iterdir())


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    files = FullDisk("sync", errno.EACCES)
    blobs = LocalBlobs(tmp_path, files)
    files.armed()
    with pytest.raises(PermissionError):
        blobs.put("a/b", b"data")


def test_a_blob_is_there_only_once_it_is_whole(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    with contextlib.suppress(InterruptedError), blobs.create("a/b") as blob:
        blob.write(b"half")
        assert not blobs.path("a/b").exists()
        raise InterruptedError
    assert not [path for path in blobs.root.rglob("*") if path.is_file()]
    sha256 = blobs.put("a/b", b"whole")
    assert blobs.read("a/b", sha256) == b"whole"


def test_what_a_crash_left_does_not_stop_the_next_writer(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    (tmp_path / "a.part").write_bytes(b"half")
    assert blobs.read("a", blobs.put("a", b"whole")) == b"whole"


def test_a_changed_or_missing_blob_is_told(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    sha256 = blobs.put("a", b"whole")
    blobs.path("a").write_bytes(b"wrong")
    with pytest.raises(BlobCorrupt):
        blobs.read("a", sha256)
    blobs.delete("a")
    blobs.delete("a")
    with pytest.raises(BlobCorrupt):
        blobs.read("a", sha256)
